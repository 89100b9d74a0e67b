"""The Slurm script on two machines, with an srun that does what Slurm's does there."""

import os
import shlex
import subprocess
import sys
import textwrap
import time

import pytest

from tests.clusters.manifests import CLUSTERS, commands
from tests.clusters.namespaces import machines, missing

SCRIPT = CLUSTERS / "slurm.sbatch"
# What Slurm sets for a job on two nodes of two CPUs.
JOB = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NUM_NODES": "2",
       "SLURM_CPUS_PER_TASK": "2", "SLURM_GPUS_ON_NODE": "0"}  # fmt: skip


def fake(folder, **scripts):
    """Programs by name that stand in front of the real ones; the folder to put first on PATH."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{textwrap.dedent(text)}")
        (folder / name).chmod(0o755)
    return folder


def test_the_script_starts_one_ray_over_all_nodes_with_a_token(tmp_path):
    shims = fake(tmp_path / "bin", hostname="echo 10.1.2.3 10.9.9.9", srun='env > "$OUT"; echo "$@"')
    env = {**os.environ, **JOB, "PATH": f"{shims}:{os.environ['PATH']}", "OUT": str(tmp_path / "env")}
    run = subprocess.run(
        ["bash", str(SCRIPT), "inspect", "a b"], env=env, capture_output=True, text=True, check=True
    ).stdout
    # srun no longer takes the number of CPUs from the job's own (Slurm 22.05).
    assert run.startswith("--nodes=2 --ntasks=2 --cpus-per-task=2 ")
    assert "ray symmetric-run --address 10.1.2.3:24242 --min-nodes 2 --num-cpus=2 --num-gpus=0" in run
    assert run.endswith(" inspect a b\n")
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert given["RAY_AUTH_MODE"] == "token"
    assert len(given["RAY_AUTH_TOKEN"]) == 64
    assert given["RAY_AUTH_TOKEN"] not in run
    assert given["RAY_ADDRESS"] == "10.1.2.3:24242"


def test_the_command_alone_is_asked_to_end_before_the_time_is_over(tmp_path):
    said = tmp_path / "said"
    shims = fake(
        tmp_path / "bin",
        hostname="echo 10.1.2.3",
        # What Ray starts on the first node, while its own processes must not hear of the signal.
        srun='trap "echo ray >> $SAID" TERM\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"',
        maskray='trap "echo saved $* >> $SAID; exit 143" TERM\necho up >> $SAID\nwhile :; do sleep 0.1; done',
    )
    env = {**os.environ, **JOB, "PATH": f"{shims}:{os.environ['PATH']}", "SAID": str(said), "TMPDIR": str(tmp_path)}
    script = subprocess.Popen(["bash", str(SCRIPT), "train", "a b"], env=env)
    while not said.exists():
        time.sleep(0.05)
    script.terminate()
    assert script.wait(30) == 143
    assert said.read_text().split("\n")[:-1] == ["up", "saved train a b"]
    assert "--signal=B:TERM@120" in SCRIPT.read_text()


def test_the_script_without_a_command_says_how_to_use_it():
    run = subprocess.run(["bash", str(SCRIPT)], env={**os.environ, **JOB}, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: sbatch slurm.sbatch COMMAND")


def test_the_example_is_a_real_command():
    lines = [line.lstrip("# ") for line in SCRIPT.read_text().splitlines() if line.startswith("#  ")]
    example = " ".join(lines).replace("\\", "")
    (command,) = commands(example.replace("sbatch clusters/slurm.sbatch", "maskray"))
    assert command[:2] == ["train", "mask_rcnn_r50_fpn_1x"]


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_a_command_runs_on_two_nodes(tmp_path):
    # The command that Slurm starts on the first node counts the nodes and their CPUs.
    code = "import ray; ray.init(); print('NODES', len(ray.nodes()), ray.cluster_resources()['CPU']); ray.shutdown()"
    shims = fake(
        tmp_path / "bin",
        maskray=f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}",
        ray=f'exec {shlex.quote(sys.executable)} -m ray.scripts.scripts "$@"',
        # Slurm copies the environment to every node; here each node is a namespace that waits for a command.
        srun='while [ "${1#--}" != "$1" ]; do shift; done\nenv -0 > "$GO/env"\nprintf "%s\\0" "$@" > "$GO/part"\n'
        'mv "$GO/part" "$GO/command"\nexec "$@"',
    )
    waiting = (
        "import os, sys, time, pathlib\n"
        "go = pathlib.Path(os.environ['GO'])\n"
        "while not (go / 'command').exists(): time.sleep(0.2)\n"
        "env = dict(l.split('=', 1) for l in (go / 'env').read_text().split('\\0') if l)\n"
        "words = (go / 'command').read_text().split('\\0')[:-1]\n"
        "os.execvpe(words[0], words, env)\n"
    )
    env = {**JOB, "GO": str(tmp_path), "PATH": f"{shims}:{os.environ['PATH']}"}
    with machines(2) as (first, second):
        worker = second.start([sys.executable, "-c", waiting], env, stdout=subprocess.DEVNULL)
        done = first.run(["bash", str(SCRIPT), "list", "presets"], env, 180)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "NODES 2 4.0" in done.stdout
    worker.wait(10)
