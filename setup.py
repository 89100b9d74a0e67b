"""Builds the compiled operators; everything else about the package is in pyproject.toml.

Environment:
    MASKRAY_CUDA: 0 builds the CPU part alone even where nvcc is found.
    MASKRAY_CUDA_ARCHS: CUDA architectures, e.g. "9.0 10.0+PTX"; default "8.0 8.6 8.9 9.0 10.0 12.0+PTX".
    MASKRAY_SANITIZE: 1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
DEFAULT_ARCHS = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"
# The oldest torch the wheel serves, 2.11 (TORCH_VERSION_2_11_0), and the oldest Python, 3.10.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030A0000"]
# Bits must not depend on the SIMD variant: no -ffast-math, no contraction into fused multiply-adds.
EXACT = ["-fno-math-errno", "-ffp-contract=off"]


def sources(folder: str, suffix: str) -> list[str]:
    """Sources of one folder under csrc, relative to this file, in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))


def extension() -> CppExtension:
    """The operators: CPU always, CUDA where nvcc and CUDA sources are present and MASKRAY_CUDA is not 0."""
    cxx = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wno-psabi", *EXACT, *DEFINES]
    link: list[str] = []
    if os.environ.get("MASKRAY_SANITIZE") == "1":
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        cxx += ["-g", "-fno-omit-frame-pointer"]
        cxx += sanitizers
        link += sanitizers
    files = [*sources("", ".cpp"), *sources("cpu", ".cpp")]
    cuda_files = sources("cuda", ".cu")
    with_cuda = bool(cuda_files) and CUDA_HOME is not None and os.environ.get("MASKRAY_CUDA", "1") != "0"
    common = {
        "include_dirs": [str(ROOT / "csrc")],
        "extra_link_args": link,
        "py_limited_api": True,
        "depends": [str(path) for path in (ROOT / "csrc").rglob("*.h")],
    }
    if not with_cuda:
        return CppExtension("_maskray_ops", files, extra_compile_args={"cxx": cxx}, **common)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", os.environ.get("MASKRAY_CUDA_ARCHS", DEFAULT_ARCHS))
    # USE_CUDA opens the CUDA part of torch's stable C interface (the current stream).
    with_macro = ["-DMASKRAY_WITH_CUDA", "-DUSE_CUDA"]
    nvcc = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fvisibility=hidden", *DEFINES, *with_macro]
    flags = {"cxx": [*cxx, *with_macro], "nvcc": nvcc}
    return CUDAExtension("_maskray_ops", [*files, *cuda_files], extra_compile_args=flags, **common)


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
