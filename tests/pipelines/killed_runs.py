"""Runs a tiny training again and again and kills it (kill -9) at a point of a write, or after a time; then lets it end.

A program of its own: one import for many kills, and no thread that a fork would copy half-way.

    python -m tests.pipelines.killed_runs DATA FOLDER POINTS

POINTS is a JSON list of [write number, fault point] and of [seconds].
"""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch

from pipelines import checkpoints, commit
from pipelines.dataset import Dataset
from pipelines.loop import fit
from tests.pipelines import tiny_run


class _Kills:
    def __init__(self, point):
        self._point = point

    def reach(self, point):
        if point == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(point):
    """Make this process kill itself."""
    if len(point) == 1:
        threading.Timer(point[0], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return
    number, name = point
    write, count = commit.write_file, []

    def write_or_die(filesystem, path, data, **options):
        count.append(path)
        write(filesystem, path, data, faults=_Kills(name) if len(count) == number else None, **options)

    commit.write_file = write_or_die


def forked(work):
    """Exit status of `work` in a process of its own; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(data, folder, points):
    torch.set_num_threads(1)
    for number, point in enumerate(points):
        config = tiny_run.config(Dataset(data), Path(folder) / str(number), optim={"steps": 4})
        job = tiny_run.job(config)

        def killed(job=job, point=point):
            arm(point)
            fit(job, tiny_run.CPU, lambda row: None)

        status = forked(killed)
        left = checkpoints.steps(config.out)
        ended = forked(lambda job=job: fit(job, tiny_run.CPU, lambda row: None) and None)
        final = checkpoints.load(config.out)
        temps = [path.name for path in Path(config.out).rglob(".*tmp-*")]
        print(json.dumps([point, status, left, ended, final.step, final.hash, temps]), flush=True)


def random_times(count, least, most, seed=0):
    """Seconds after which to kill."""
    rng = random.Random(seed)
    return [[rng.uniform(least, most)] for _ in range(count)]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
