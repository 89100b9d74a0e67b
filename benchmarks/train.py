"""Our training step beside torchvision's reference step and Detectron2's: same weights, pictures, boxes and sizes.

    PYTHONPATH=. python benchmarks/train.py [--threads 2] [--steps 5] [--rounds 2] [--device cuda] [--quick]
    PYTHONPATH=. python benchmarks/train.py --loading [--coco FOLDER --split val2017]      loading included
    PYTHONPATH=. python benchmarks/train.py --ap CHECKPOINT DATA                            AP in bf16 against fp32

R50-FPN, batch 2, 800 x 1088, 80 classes, from losses to updated weights. Each side runs in a process of its own, so
that its peak memory is its own; the sides take turns, and times are medians of all steps after the warm-up. With
--loading each step also builds its batch, in the same process, from prepared shards on our side and from a COCO folder
on torchvision's (generated pictures where none is given); times are then means, since pictures differ in shape.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision

from benchmarks.loading import Peer
from benchmarks.train_sides import QUOTA, SIDES, build
from model.presets import torchvision_mask_rcnn_r50_fpn
from pipelines import evaluate, prepare, prepare_config
from pipelines.config import Precision
from pipelines.dataset import Dataset
from pipelines.geometry import AugmentConfig
from pipelines.loading import Source, TrainBatches
from pipelines.ray_session import ray_session
from pipelines.shapes import ShapesConfig, generate
from pipelines.train_feed import to_device
from pipelines.train_state import Part

PEER = "torchvision fp32"


def wait(device: str) -> None:
    """Until the GPU is done."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def peak_gb(device: str) -> float:
    """Highest memory so far, in 10^9 bytes: of the process, or of the GPU's tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def our_batches(args: argparse.Namespace) -> Iterator[Part]:
    """Batches of prepared pictures, flipped at random, epoch after epoch."""
    picture = torchvision_mask_rcnn_r50_fpn().picture
    batches = TrainBatches([Source(Dataset(args.data), args.batch)], picture, AugmentConfig(), 0)
    device = torch.device(args.device)
    for number in itertools.count():
        batch = batches[number]
        yield Part(to_device(batch.images, device), to_device(batch.targets, device), 1.0)


def peer_batches(args: argparse.Namespace) -> Iterator[tuple[list[Any], list[Any]]]:
    """The same pictures by torchvision's road; its model resizes and normalises them."""
    peer = Peer(args.coco / args.split, args.coco / f"annotations/instances_{args.split}.json")
    for first in itertools.count(0, args.batch):
        samples = [peer._sample((first + k) % len(peer)) for k in range(args.batch)]
        images, targets = zip(*samples, strict=True)
        yield (
            [image.to(args.device) for image in images],
            [{name: value.to(args.device) for name, value in target.items()} for target in targets],
        )


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Seconds of each step of one side, its peak memory, and the positives it drew."""
    torch.set_num_threads(args.threads)
    side, batches = SIDES[args.side], None
    if args.loading:
        batches = our_batches(args) if side.code == "ours" else peer_batches(args)
    step, positives = build(side, args, batches)
    seconds = []
    for number in range(args.warm_up + args.steps):
        # Nothing of ours between batch and update waits for the device; loaded batches are copied.
        if args.device == "cuda" and side.code == "ours" and number >= args.warm_up and not args.loading:
            torch.cuda.set_sync_debug_mode("error")
        start = time.perf_counter()
        step()
        wait(args.device)
        if number >= args.warm_up:
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_gb": peak_gb(args.device), "positives": positives()}


def run_side(side: str, more: list[str]) -> dict[str, Any]:
    """The same command for one side, in a process of its own."""
    command = [sys.executable, *sys.argv, *more, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each side in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="*", choices=sorted(SIDES), help=f"sides beside {PEER}; default: all")
    parser.add_argument("--loading", action="store_true", help="each step builds its batch too")
    parser.add_argument("--coco", type=Path, default=None, help="COCO folder for --loading; default: generated")
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--ap", nargs=2, metavar=("CHECKPOINT", "DATA"), help="mask AP in bf16 against fp32")
    parser.add_argument("--quick", action="store_true", help="one small picture, one step; ends in one line")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--data", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sides = [side for side in SIDES if side != PEER and (not args.loading or "detectron2" not in side)]
    args.only = args.only or sides
    # A step on a GPU is measured once algorithms are chosen; on a CPU the first step alone is slower.
    args.warm_up = 50 if args.device == "cuda" else 1
    if args.quick:
        args.batch, args.height, args.width, args.steps, args.rounds = 1, 256, 352, 1, 1
        args.warm_up = 50 if args.device == "cuda" else 0
        args.only = [side for side in args.only if side.startswith("ours") and "compiled" not in side]
    return args


def table(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, float]:
    """Print seconds, speed and memory of each side, beside torchvision's in fp32 and in the side's own arithmetic."""
    print(f"\n| {'step':26} | s | least s | most s | times as fast | than its twin | peak GB | of peer | positives |")
    print(f"|{'-' * 28}|---|---------|--------|---------------|---------------|---------|---------|-----------|")
    middle = statistics.mean if args.loading else statistics.median
    of_side = {side: [second for run in runs for second in run["seconds"]] for side, runs in found.items()}
    times = {side: middle(seconds) for side, seconds in of_side.items()}
    peaks = {side: max(run["peak_gb"] for run in runs) for side, runs in found.items()}
    for side, seconds in of_side.items():
        twin = f"torchvision {side.split(' ', 1)[1]}"
        same = f"{times[twin] / times[side]:.2f}" if twin in times else "-"
        print(
            f"| {side:26} | {times[side]:.3f} | {min(seconds):.3f} | {max(seconds):.3f} | "
            f"{times[PEER] / times[side]:.2f} | {same} | {peaks[side]:.2f} | {peaks[side] / peaks[PEER]:.2f} | "
            f"{found[side][0]['positives'] or '-'} |"
        )
    return {side: times[PEER] / seconds for side, seconds in times.items()}


def precision_ap(checkpoint: str, data: str) -> str:
    """Mask AP of the same weights in both precisions, as a line."""
    aps = {}
    with tempfile.TemporaryDirectory() as folder, ray_session():
        for precision in (Precision.FP32, Precision.BF16):
            config = evaluate.EvaluateConfig(checkpoint, data, f"{folder}/{precision.value}", precision=precision)
            found = evaluate.run(config)
            aps[precision.value] = 100 * (found.mask or found.box).AP  # type: ignore[union-attr]
    return f"mask AP fp32 {aps['fp32']:.2f}, bf16 {aps['bf16']:.2f}, difference {aps['bf16'] - aps['fp32']:+.2f}"


def loaded(args: argparse.Namespace, folder: str) -> list[str]:
    """Make what --loading reads; the words that tell the sides where it is."""
    coco = args.coco
    if coco is None:
        coco = Path(folder, "coco")
        side, count = max(args.height, args.width), 4 if args.quick else 24
        generate(ShapesConfig(train=count, val=1, unlabelled=1, size_px=side, crowds=0.0, empty=0.0), coco)
    data = f"{folder}/data"
    annotations = coco / f"annotations/instances_{args.split}.json"
    with ray_session(num_cpus=1):
        prepare.run(prepare_config.PrepareCoco(images=str(coco / args.split), annotations=str(annotations), out=data))
    return ["--coco", str(coco), "--data", data]


def main() -> None:
    """Print the table, and with --quick a summary line."""
    args = parsed()
    if args.side:
        print(json.dumps(measure(args)))
        return
    if args.ap:
        print(precision_ap(*args.ap))
        return
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {args.threads} threads, {args.device}")
    kind = "loading included" if args.loading else "loading excluded"
    size = f"batch {args.batch}, {args.height} x {args.width}"
    print(f"{size}, {kind}, load before the run {os.getloadavg()[0]:.1f}")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in (PEER, *args.only)}
    with tempfile.TemporaryDirectory() as folder:
        more = loaded(args, folder) if args.loading else []
        for _ in range(args.rounds):
            for side, runs in found.items():
                runs.append(run_side(side, more))
    speeds = table(found, args)
    for side, runs in found.items():
        counts = runs[0]["positives"]
        if counts and min(counts) < QUOTA and not args.loading:
            print(f"{side} drew {counts} positives of {QUOTA}: the quota is not filled, its mask head did less work")
    if args.quick:
        parts = [f"{side} {speeds[side]:.2f} x" for side in args.only if side.startswith("ours")]
        print(f"\ntraining step beside torchvision fp32: {', '.join(parts)}")


if __name__ == "__main__":
    main()
