"""The wheel that jobs run from: built from this source tree, named by its content, without requirements.

Ray installs a job's wheel with pip on every node. A wheel with requirements would fetch torch there, and Ray keeps
wheels by file name, so one of the same version would never be replaced. What maskray depends on comes from the nodes'
image.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_SOURCES = ("pyproject.toml", "setup.py", "README.md", "csrc", "model", "pipelines")
_OPERATORS = "_maskray_ops"
_BUILD_SETTINGS = ("MASKRAY_CUDA", "MASKRAY_CUDA_ARCHS", "CUDA_HOME")
_NAME = re.compile(r"^(?P<name>maskray)-(?P<version>[0-9][^-+]*)(?:\+[^-]*)?-(?P<tags>[^-]+-[^-]+-[^-]+)\.whl$")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file of the copy: equal content makes equal bytes


class Operators(enum.Enum):
    """Whose compiled operators a job uses."""

    WHEEL = "wheel"
    IMAGE = "image"  # those installed on the nodes


class WheelError(ValueError):
    """A wheel that cannot be built or is not maskray's."""


def build(cache: Path | None = None) -> Path:
    """The wheel of the source tree this code runs from; built once for each content.

    Args:
        cache: folder that keeps wheels; None takes the user's cache.

    Raises:
        WheelError: this is no source tree, or the build failed.
    """
    source = Path(__file__).parents[1]
    if not all((source / name).exists() for name in _SOURCES):
        raise WheelError("this maskray was installed without its sources, so it cannot be built: give --wheel FILE")
    folder = (cache or _user_cache()) / _fingerprint(source)
    found = sorted(folder.glob("maskray-*.whl"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # A copy: builds inside the tree would leave files there and pick up those of earlier builds.
        clean = Path(scratch) / "source"
        clean.mkdir()
        for name, path in _files(source):
            (clean / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, clean / name)
        command = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*command, "--wheel-dir", scratch, str(clean)], capture_output=True, text=True, check=False
        )
        made = sorted(Path(scratch).glob("maskray-*.whl"))
        if done.returncode or not made:
            last = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
            raise WheelError(f"cannot build the wheel: {last}; build it with `pip wheel --no-deps .`, give --wheel")
        return made[0].replace(folder / made[0].name)


def for_job(wheel: Path, folder: Path, operators: Operators = Operators.WHEEL) -> Path:
    """A copy of a wheel with its requirements removed, and the hash of its content in its version.

    Args:
        wheel: of maskray.
        folder: takes the copy.
        operators: with those of the image the copy has none of its own, which would hide them, and runs anywhere.

    Returns:
        The copy, ``maskray-VERSION+hHASH-TAGS.whl``.

    Raises:
        WheelError: not a wheel of maskray, without its compiled operators, or with those of another system than Linux.
    """
    match = _NAME.match(wheel.name)
    if not match or not wheel.is_file():
        raise WheelError(f"{wheel} is not a wheel of maskray: build one with `pip wheel --no-deps .`")
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    except zipfile.BadZipFile as error:
        raise WheelError(f"{wheel} is damaged ({error}): build it again") from error
    tags = match["tags"]
    if operators is Operators.IMAGE:
        files, tags = {name: data for name, data in files.items() if not name.startswith(_OPERATORS)}, "py3-none-any"
    elif not any(name.startswith(_OPERATORS) for name in files):
        raise WheelError(f"{wheel} lacks the compiled operators: build it with `pip wheel --no-deps .`")
    elif re.search("macosx|win", tags):
        raise WheelError(
            f"{wheel} was built for another system than the nodes' Linux: use the operators of their image "
            "(--operators image), or give a wheel built on Linux"
        )
    kept = {name: data for name, data in files.items() if not name.endswith(".dist-info/RECORD")}
    digest = hashlib.sha256()
    for name in sorted(kept):
        digest.update(f"{name}\0{len(kept[name])}\0".encode() + kept[name])
    version = f"{match['version']}+h{digest.hexdigest()[:16]}"
    target = folder / f"maskray-{version}-{tags}.whl"
    _write(target, {_renamed(name, version): _plain(name, data, version) for name, data in kept.items()})
    return target


def _renamed(name: str, version: str) -> str:
    return re.sub(r"^maskray-[^/]+\.dist-info/", f"maskray-{version}.dist-info/", name)


def _plain(name: str, data: bytes, version: str) -> bytes:
    """METADATA without requirements and with the new version; any other file as it is."""
    if not name.endswith(".dist-info/METADATA"):
        return data
    head, separator, body = data.decode().partition("\n\n")
    lines = [line for line in head.splitlines() if not line.startswith(("Requires-Dist:", "Provides-Extra:"))]
    lines = [f"Version: {version}" if line.startswith("Version:") else line for line in lines]
    return ("\n".join(lines) + separator + body).encode()


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in sorted(files.items())
    )
    (info,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
        own = f"{info}/RECORD"
        archive.writestr(zipfile.ZipInfo(own, _EPOCH), f"{record}{own},,\n", zipfile.ZIP_DEFLATED)


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    for name in _SOURCES:
        top = source / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                yield path.relative_to(source).as_posix(), path


def _fingerprint(source: Path) -> str:
    digest = hashlib.sha256(repr([os.environ.get(name) for name in _BUILD_SETTINGS]).encode())
    for name, path in _files(source):
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskray" / "wheels"
