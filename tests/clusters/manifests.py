"""The manifests of clusters/, and every command of maskray that they and their guides give."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CLUSTERS = Path(__file__).parents[2] / "clusters"
LAUNCHERS = sorted(path.name for path in CLUSTERS.glob("*.yaml"))
KUBERAY = sorted(path.name for path in (CLUSTERS / "kuberay").glob("*.yaml"))
GUIDES = sorted(path.relative_to(CLUSTERS).as_posix() for path in CLUSTERS.rglob("*.md"))


def load(name: str) -> dict[str, Any]:
    """A YAML file of clusters/, of a single document."""
    return dict(yaml.safe_load((CLUSTERS / name).read_text()))


def kuberay(kind: str) -> list[str]:
    """Names of the manifests of a kind."""
    return [name for name in KUBERAY if load(f"kuberay/{name}")["kind"] == kind]


def commands(shell: str) -> Iterator[list[str]]:
    """The commands of maskray in a line of shell, without the word maskray."""
    for part in shell.replace("||", "&&").split("&&"):
        words = shlex.split(part, comments=True)
        if words[:1] == ["maskray"]:
            yield words[1:]


def entrypoint_commands(entrypoint: str) -> Iterator[list[str]]:
    """The commands of maskray in a job's entrypoint.

    Raises:
        ValueError: a shell's operator outside sh -c, which the pod that submits would take for its own.
    """
    lexer = shlex.shlex(entrypoint, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    bare = [word for word in words if word and set(word) <= set("();<>|&")]
    if bare:
        raise ValueError(f"{' '.join(bare)} outside sh -c: {entrypoint}")
    if words[:2] == ["sh", "-c"]:
        yield from commands(words[2])
    elif words[:1] == ["maskray"]:
        yield words[1:]


def guide_commands(name: str) -> Iterator[list[str]]:
    """The commands in the indented lines of a guide; a line that ends in a backslash goes on."""
    joined = (CLUSTERS / name).read_text().replace("\\\n", " ")
    for line in joined.splitlines():
        if line.startswith("    "):
            yield from commands(line.strip().removeprefix("$ "))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a tree of mappings and lists with the value at a path replaced."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, list):
        return [replaced(item, tuple(rest), new) if at == first else item for at, item in enumerate(value)]
    return {**value, first: replaced(value.get(first, {}), tuple(rest), new)}
