"""Training on three machines of which one dies: it ends on two, and every picture was seen once an epoch."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipelines import checkpoints
from tests.clusters.namespaces import machines, missing, start_ray
from tests.pipelines import tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

# A dead machine is known after seconds rather than after half a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
STEPS = 39  # 26 whole epochs of 9 pictures, 6 a step
PYTHON = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def pictures(out, attempt):
    """Pictures of each step of an attempt in their order, over all its workers, as far as all came."""
    of_workers = [path.read_text().splitlines() for path in sorted(out.glob(f"{attempt}-*.ids"))]
    steps = [[json.loads(share) for share in shares] for shares in zip(*of_workers, strict=False)]
    # Workers interleave: the first of each, then the second of each, ...
    return [[number for turn in zip(*shares, strict=True) for number in turn] for shares in steps]


def test_three_machines_of_which_one_dies(tmp_path):
    data, out = tiny_run.dataset(tmp_path / "data"), tmp_path / "run"
    with machines(3) as nodes:
        address = start_ray(nodes, cpus=1, env={**PYTHON, **QUICK})
        driver = nodes[0].start(
            [sys.executable, "-m", "tests.clusters.training_driver", data.uri, str(out), str(STEPS)],
            env={"RAY_ADDRESS": address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20", **PYTHON, **QUICK},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while len(checkpoints.steps(str(out))) < 2 and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        nodes[2].kill()
        killed = time.monotonic()
        told, log = driver.communicate(timeout=240)
        recovery_s = time.monotonic() - killed
    assert driver.returncode == 0, log
    assert json.loads(told.splitlines()[-1]) == {"steps": STEPS}
    print(f"{recovery_s:.0f} s from the machine's death to the end")
    attempts = sorted({path.stem.rsplit("-", 1)[0] for path in out.glob("*.ids")})
    assert [attempt.rsplit("-", 1)[1] for attempt in attempts] == ["3", "2"], log
    again_from = int(re.search(r"the workers start again from step (\d+)", log)[1])
    before, after = (pictures(out, attempt) for attempt in attempts)
    # The steps that count: those of three machines up to the last checkpoint, then those of two.
    seen = [number for step in before[:again_from] + after for number in step]
    assert len(seen) == STEPS * 6
    epochs = [Counter(seen[first : first + 9]) for first in range(0, STEPS * 6, 9)]
    assert all(epoch == Counter(range(9)) for epoch in epochs)
