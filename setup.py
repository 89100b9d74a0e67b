"""Builds the compiled operators; everything else about the package is in pyproject.toml.

Environment:
    MASKRAY_CUDA: 0 builds the CPU part alone even where nvcc is found.
    MASKRAY_CUDA_ARCHS: CUDA architectures, e.g. "9.0 10.0+PTX"; default "8.0 8.6 8.9 9.0 10.0 12.0+PTX", as far as
        the nvcc found knows them.
    MASKRAY_SANITIZE: 1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
    MAX_JOBS: How many compilers run at once; default one a CPU.
"""

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, include_paths

ROOT = Path(__file__).parent
DEFAULT_ARCHS = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"
# The oldest torch the wheel serves, 2.11 (TORCH_VERSION_2_11_0), and the oldest Python, 3.10.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030A0000"]
# Bits must not depend on the SIMD variant: no -ffast-math, no contraction into fused multiply-adds.
EXACT = ["-fno-math-errno", "-ffp-contract=off"]
# Kernels keep their assertions (an index out of range stops the device); USE_CUDA opens torch's C interface to CUDA.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-UNDEBUG", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def sources(folder: str, suffix: str) -> list[str]:
    """Sources of one folder under csrc, relative to this file, in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))


def nvcc() -> str | None:
    """Path of nvcc, if CUDA is wanted, has sources, and nvcc is found."""
    wanted = os.environ.get("MASKRAY_CUDA", "1") != "0" and bool(sources("cuda", ".cu"))
    found = Path(CUDA_HOME or "/nowhere") / "bin" / "nvcc"
    return str(found) if wanted and found.exists() else None


def architecture_flags(compiler: str) -> list[str]:
    """The -gencode flags of MASKRAY_CUDA_ARCHS; of the default those that this nvcc knows."""
    wanted = os.environ.get("MASKRAY_CUDA_ARCHS")
    names = (wanted or DEFAULT_ARCHS).replace(";", " ").split()
    if wanted is None:
        listed = subprocess.run([compiler, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
        names = [name for name in names if f"compute_{name.split('+')[0].replace('.', '')}\n" in listed]
        names = [*names[:-1], names[-1].removesuffix("+PTX") + "+PTX"]  # newer GPUs compile from the newest PTX
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def runtime_flags(compiler: str) -> list[str]:
    """What links the CUDA runtime, in the folders that nvcc itself would look in.

    Its symbols stay inside: torch's own runtime must not answer for them. libtorch, which no C++ file needs, brings
    libtorch_cuda where there is one.
    """
    told = subprocess.run([compiler, "--dryrun", "-x", "cu", os.devnull], check=True, capture_output=True, text=True)
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("#$ LIBRARIES=")]
    runtime = [*shlex.split(line.split("=", 1)[1]), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return [*runtime, "-Wl,--exclude-libs,ALL", "-Wl,--no-as-needed,-ltorch"]


class BuildOperators(BuildExtension):
    """Compiles the CUDA sources with nvcc, side by side, and links them with the rest.

    torch's own way would demand that nvcc and torch be of one CUDA version. The stable interface and a CUDA runtime of
    our own (linked statically) make that needless, so a torch without CUDA will do for building.
    """

    def build_extension(self, ext: Extension) -> None:
        compiler = nvcc()
        if compiler is not None:
            ext.extra_objects = [*ext.extra_objects, *self.compile_cuda(compiler, sources("cuda", ".cu"))]
        super().build_extension(ext)

    def compile_cuda(self, compiler: str, files: list[str]) -> list[str]:
        """Paths of the object files."""
        folder = Path(self.build_temp).absolute() / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
        flags = [*NVCC_FLAGS, *DEFINES, *architecture_flags(compiler), *includes]

        def compile_one(file: str) -> str:
            target = str(folder / f"{Path(file).stem}.o")
            subprocess.run([compiler, "-c", file, "-o", target, *flags], check=True, cwd=ROOT)
            return target

        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        try:
            with ThreadPoolExecutor(jobs) as pool:
                return list(pool.map(compile_one, files))
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"{compiler} could not compile {error.cmd[2]} (its message is above): set MASKRAY_CUDA=0 to build the "
                "operators for the CPU alone"
            ) from None


def extension() -> Extension:
    """The operators: CPU always; nvcc's part joins in BuildOperators."""
    cxx = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wno-psabi", *EXACT, *DEFINES]
    link: list[str] = []
    if os.environ.get("MASKRAY_SANITIZE") == "1":
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        cxx += ["-g", "-fno-omit-frame-pointer", *sanitizers]
        link += sanitizers
    compiler = nvcc()
    if compiler is not None:
        cxx.append("-DMASKRAY_WITH_CUDA")
        link += runtime_flags(compiler)
    return CppExtension(
        "_maskray_ops",
        [*sources("", ".cpp"), *sources("cpu", ".cpp")],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": cxx},
        extra_link_args=link,
        py_limited_api=True,
        depends=[str(path) for path in (ROOT / "csrc").rglob("*.[hc]*")],
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
