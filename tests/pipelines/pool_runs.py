"""A detector that finds something everywhere, and workers that die or find the disk full on the way."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np

from pipelines import commit, starting_weights
from pipelines.labeller import Labeller
from tests.pipelines import tiny_run
from tests.pipelines.tiny_shards import CLASSES


def save(folder, classes=CLASSES, **changes):
    """A checkpoint of random weights to which every box is a detection."""
    box = dataclasses.replace(tiny_run.detector_config().box, score_threshold=0.0)
    return starting_weights.save(str(folder), tiny_run.build(box=box, **changes), classes, {}).uri


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def dying(points, marks):
    """A labeller whose process is killed (kill -9) once at each of the points: (shard, fault point of its write)."""

    class Dying(Labeller):
        def label(self, shard):
            for number, (at, point) in enumerate(points):
                mark = Path(marks) / f"{number}"
                if at != shard or mark.exists():
                    continue
                mark.touch()

                class Kills:
                    def reach(self, name, point=point):
                        if name == point:
                            os.kill(os.getpid(), signal.SIGKILL)

                write = commit.write_file
                # A point that was not reached leaves this in place for the process's next shard, which replaces it.
                commit.write_file = lambda *a, **k: write(*a, **{**k, "faults": Kills()})  # noqa: B023
                break
            return super().label(shard)

    return Dying


def on_a_full_disk(shards, marks):
    """A labeller that has no space left for each of some shards once."""

    class Full(Labeller):
        def label(self, shard):
            mark = Path(marks) / f"full{shard}"
            if shard in shards and not mark.exists():
                mark.touch()
                raise OSError(28, "No space left on device")
            return super().label(shard)

    return Full


def kill_points(count, shards, seed=0):
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(shards)), str(rng.choice(commit.FAULT_POINTS))) for _ in range(count)]
