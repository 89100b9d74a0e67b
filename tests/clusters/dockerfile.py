"""A Dockerfile as a list of instructions, checked for what goes wrong in images, and run without Docker."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

KNOWN = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}


class Instruction(NamedTuple):
    """One instruction: its word, the rest of it, and the stage it is in."""

    word: str
    rest: str
    stage: str


def parse(text: str) -> list[Instruction]:
    """All instructions in order; comment lines are left out, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        rest = re.sub(r"\s+", " ", rest.strip())
        if word == "FROM":
            stage = rest.rsplit(" AS ", 1)[-1]
        found.append(Instruction(word, rest, stage))
    return found


def complaints(instructions: Sequence[Instruction]) -> Iterator[str]:
    """What a reviewer would send back, one line each."""
    stages: list[str] = []
    for word, rest, stage in instructions:
        if word not in KNOWN:
            yield f"unknown instruction {word}"
        if word == "FROM":
            image = rest.split(" AS ", 1)[0]
            if " AS " not in rest:
                yield f"stage without a name: {rest}"
            if image not in stages and not image.startswith("compiler-") and not re.search(r":.*(\d|\${)", image):
                yield f"image without a version: {image}"
            stages.append(stage)
        source = re.search(r"--from=(\S+)", rest)
        if word == "COPY" and source and source[1] not in stages:
            yield f"copy from an unknown stage: {source[1]}"
        if word == "RUN":
            yield from _run_complaints(rest)
        if word in ("ENV", "ARG") and re.search(r"token|password|secret", rest, re.IGNORECASE):
            yield f"a secret in the image: {rest}"
    yield from _user_complaints([rest for word, rest, stage in instructions if (word, stage) == ("USER", stages[-1])])


def _user_complaints(users: Sequence[str]) -> Iterator[str]:
    if not users or users[-1] in ("root", "0"):
        yield "the image runs as root"
    elif not users[-1].isdigit():
        yield "USER must be a number: Kubernetes cannot tell whether a name is root"


def _run_complaints(rest: str) -> Iterator[str]:
    if "apt-get install" in rest:
        if not rest.startswith("apt-get update &&"):
            yield f"apt-get install on an old package list: {rest}"
        if "--no-install-recommends" not in rest or "--yes" not in rest:
            yield f"apt-get install asks, or takes more than it must: {rest}"
        if "rm -rf /var/lib/apt/lists/*" not in rest:
            yield f"package lists left in the image: {rest}"
    if re.search(r"pip (install|wheel)", rest) and "--no-cache-dir" not in rest:
        yield f"pip's cache left in the image: {rest}"
    if re.search(r"\b(curl|wget) .*\|", rest):
        yield f"runs what it downloads: {rest}"
    if re.search(r"\bsudo\b|chmod (-R )?777", rest):
        yield f"loose rights: {rest}"


class Outcome(NamedTuple):
    """What the run of a Dockerfile left: its root folder, and the commands that only a system can obey."""

    root: Path
    asked: list[str]


def run(instructions: Sequence[Instruction], checkout: Path, root: Path, arguments: Mapping[str, str]) -> Outcome:
    """Obey COPY, ENV and RUN of the stages of a variant in a folder that stands for /.

    Packages of the system and users cannot be made here: those commands are noted instead. Virtual environments see
    the packages of this Python, so that pip finds what it would download.
    """
    shims, notes = root / "shims", root / "asked"
    shims.mkdir(parents=True)
    for name in ("apt-get", "useradd"):
        _script(shims / name, f'#!/bin/sh\necho "{name} $*" >> {notes}\n')
    packages = sysconfig.get_path("purelib")
    _script(
        shims / "python3",
        f'#!/bin/sh -e\n{sys.executable} "$@"\nsite=$(echo "$3"/lib/python*/site-packages)\n'
        f'rm -rf "$site"/setuptools*\necho {packages} > "$site/here.pth"\n',
    )
    env = {"HOME": str(root), "PATH": f"{shims}:{os.environ['PATH']}", "PIP_NO_INDEX": "1", "MAX_JOBS": "2"}
    values, folder, used = dict(arguments), root, f"compiler-{arguments['VARIANT']}"
    for word, rest, stage in instructions:
        if stage.startswith("compiler-") and stage != used:
            continue
        if word == "ARG":
            name, _, default = rest.partition("=")
            values.setdefault(name, default.strip('"'))
        elif word == "WORKDIR":
            folder = _inside(root, rest)
            folder.mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            for pair in rest.split():
                name, _, value = pair.partition("=")
                env[name] = value.replace("$PATH", env["PATH"]).replace("/opt/", f"{root}/opt/")
        elif word == "COPY":
            _copy(rest, checkout, root, folder)
        elif word == "RUN":
            # Absolute paths of the image lie below the folder that stands for it.
            command = re.sub(r"(?<![\w.$-])/(build|wheels|opt|var/lib)\b", rf"{root}/\1", _without_absent_extras(rest))
            done = subprocess.run(
                ["sh", "-euc", command], cwd=folder, env=env | values, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return Outcome(root, notes.read_text().splitlines())


def _without_absent_extras(command: str) -> str:
    """Clients of clouds are no packages of this Python, and pip has no index here."""
    are_there = all(importlib.util.find_spec(name) for name in ("boto3", "googleapiclient"))
    return command if are_there else command.replace("[clouds]", "")


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _copy(rest: str, checkout: Path, root: Path, folder: Path) -> None:
    *sources, target = [word for word in rest.split() if not word.startswith("--")]
    base = root if "--from=" in rest else checkout
    place = _inside(root, target) if target.startswith("/") else folder / target
    for source in sources:
        found = base / source.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            place.mkdir(parents=True, exist_ok=True) if target.endswith("/") else place.parent.mkdir(
                parents=True, exist_ok=True
            )
            shutil.copy(found, place)
