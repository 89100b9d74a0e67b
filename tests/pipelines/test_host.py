"""A process that keeps its memory asks the system for pages once; arithmetic that is emulated is said."""

import subprocess
import sys

import pytest
import torch

from pipelines import host

PAGES = """
import resource, sys
import numpy as np
from pipelines.host import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def pages():
    np.ones(1 << 24, np.float32)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = pages()
for _ in range(4):
    last = pages()
print(last - first)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("the C library's allocator has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again():
    assert faults("kept") < 200 < faults("given back")


@pytest.mark.parametrize(("level", "is_16_bit", "warns"), [("AVX2", True, 1), ("AVX2", False, 0), ("AVX512", True, 0)])
def test_emulated_arithmetic_is_said(monkeypatch, recwarn, level, is_16_bit, warns):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(host, "keep_freed_memory", lambda: True)
    host.set_up(torch.get_num_threads(), is_16_bit)
    assert len(recwarn) == warns
    assert all("this CPU (AVX2) has no 16-bit arithmetic" in str(warning.message) for warning in recwarn)
