"""A process that keeps its memory asks the system for pages once."""

import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import numpy as np
from pipelines.host_memory import keep_freed_memory
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
