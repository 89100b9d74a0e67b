"""The library that holds the operators: what it links to, and what happens without it."""

import importlib.util
import re
import shutil
import subprocess

import pytest
import torch

from model.ops import extension


@pytest.fixture
def fresh_load():
    extension.load.cache_clear()
    yield extension.load
    extension.load.cache_clear()
    extension.load()


def test_says_what_to_run_when_it_is_not_built(fresh_load, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not built; run `pip install --no-build-isolation -e \.`"):
        fresh_load()


def test_refuses_another_version(fresh_load, monkeypatch):
    known = extension.VERSION
    monkeypatch.setattr(extension, "VERSION", 99)
    with pytest.raises(ImportError, match=rf"have interface version {known}, this code wants 99; run `pip install"):
        fresh_load()


def test_errors_of_torch_itself_keep_their_type():
    with pytest.raises(RuntimeError, match="must match the size"):
        extension.call(torch.add, torch.zeros(2), torch.zeros(3))


def test_simd_variant_that_the_machine_lacks():
    with pytest.raises(ValueError, match=r"SIMD variant is 9, this machine has 0\.\."):
        extension.call(torch.ops.maskray.set_simd, 9)


def test_no_unstable_symbol_is_used():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    library = importlib.util.find_spec("_maskray_ops").origin
    listed = subprocess.run([nm, "-DCu", library], check=True, capture_output=True, text=True).stdout
    wanted = [line.split("U ", 1)[1] for line in listed.splitlines() if " U " in line]
    assert any(name.startswith("aoti_torch_") for name in wanted)
    assert [name for name in wanted if re.match(r"(at|c10|torch)::|Py|_Py", name)] == []
