"""Prediction in figures: against torchvision, views against their sum, memory over a pool, precision.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/predict.py                 pictures and views, on the CPU
    PYTHONPATH=. python benchmarks/predict.py --device cuda                     the same on a GPU
    PYTHONPATH=. python benchmarks/predict.py --memory 1000 10000               the drivers' memory over a pool
    PYTHONPATH=. python benchmarks/predict.py --ap DATA CHECKPOINT              mask AP in fp32 and in bf16

Both sides have the same weights, random ones scaled so that many objects are found, and take turns on the same
pictures of 640 x 1066 px, which both resize to 800 x 1332 and pad to 800 x 1344, as 800 x 1333 would be. torchvision's
side is its maskrcnn_resnet50_fpn in eager mode, masks pasted, cut at 0.5 and encoded by pycocotools; ours is what
`maskray predict` does with a decoded picture. On a CPU times are the process's own (all threads), so that other work on
the machine disturbs less; on a GPU they are between events on its stream. Each figure is the best of the rounds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from model.detector import Detector
from model.fold import fold_norms
from model.views import parse_views
from pipelines.config import Precision
from pipelines.host import keep_freed_memory
from pipelines.inference import Method, predict_sources
from pipelines.looking import Source
from tests.oracles.torchvision_peer import build_ours, build_peer, textured_picture

SHAPE = (640, 1066)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long a piece of work takes: processor time, or on a GPU the time between two events."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


def best(works: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """Seconds of each piece of work, which take turns; the first turn is not counted."""
    seconds = [float("inf")] * len(works)
    for number in range(rounds + 1):
        for at, work in enumerate(works):
            taken = seconds_of(work, device)
            if number:
                seconds[at] = min(seconds[at], taken)
    return seconds


def torchvision_predict(
    peer: torch.nn.Module, pictures: list[Tensor], device: torch.device
) -> list[list[dict[str, object]]]:
    """Run lengths of the peer's masks."""
    with torch.no_grad():
        found = peer([picture.to(device) for picture in pictures])
    return [
        [
            coco_mask.encode(np.asfortranarray(mask))
            for mask in (one["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
        ]
        for one in found
    ]


def ours(detector: Detector, pictures: list[Tensor], method: Method, device: torch.device) -> Callable[[], object]:
    """Our side on float pictures 0..1, as whole bytes."""
    sources = [Source(number, (picture * 255).round().to(torch.uint8)) for number, picture in enumerate(pictures)]
    return lambda: predict_sources(detector, sources, device, method)


def side_by_side(
    peer: torch.nn.Module, detector: Detector, pictures: list[Tensor], arguments: argparse.Namespace
) -> None:
    """One row a precision."""
    rounds, device, names = arguments.rounds, torch.device(arguments.device), arguments.precisions
    methods = [ours(detector, pictures, Method(precision=Precision(name)), device) for name in names]
    theirs, *times = best([lambda: torchvision_predict(peer, pictures, device), *methods], rounds, device)
    count, batch = sum(map(len, torchvision_predict(peer, pictures, device))), len(pictures)
    for name, seconds in zip(names, times, strict=True):
        print(f"| batch {batch}, {name}, {count} masks | {seconds / batch:.3f} | {theirs / batch:.3f} | "
              f"{theirs / seconds:.2f} |", flush=True)  # fmt: skip


def views(detector: Detector, preset: str, pictures: list[Tensor], rounds: int, device: torch.device) -> None:
    """Views merged, against the sum of the same views each predicted alone, and against one view."""
    wanted = parse_views(preset, detector.config.picture)
    methods = [Method(wanted), Method(), *(Method((view,)) for view in wanted)]
    together, one, *alone = best([ours(detector, pictures, m, device) for m in methods], rounds, device)
    print(f"| {preset}, {len(wanted)} views | {together:.3f} | {sum(alone):.3f} | {together / sum(alone):.2f} | "
          f"{together / one:.1f} |", flush=True)  # fmt: skip


def speed(arguments: argparse.Namespace) -> None:
    """The tables of time."""
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if device.type == "cpu":
        keep_freed_memory()  # as a worker of ours does; here both sides gain by it
    size = {"min_size": arguments.edge, "max_size": round(arguments.edge * 5 / 3)}
    standard = {f"rpn_{when}_nms_top_n_test": 1000 for when in ("pre", "post")}
    peer = build_peer(**size, **standard).eval()
    settings = {"picture.short_edge_px": size["min_size"], "picture.long_edge_px": size["max_size"],
                "rpn.pre_nms_test": 1000, "rpn.post_nms_test": 1000}  # fmt: skip
    detector = build_ours(peer, **settings).eval()
    fold_norms(detector)
    peer, detector = peer.to(device), detector.to(device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{machine}, {arguments.threads} threads, load average {os.getloadavg()[0]:.1f}")
    scale = arguments.edge / 800
    shape = round(SHAPE[0] * scale), round(SHAPE[1] * scale)
    print("| case | ours s a picture | torchvision s | ratio |\n|---|---|---|---|")
    for batch in arguments.batches:
        pictures = [textured_picture(seed, *shape) for seed in range(1, batch + 1)]
        side_by_side(peer, detector, pictures, arguments)
    print("\n| views | merged s | sum of the views alone s | ratio | of one view |\n|---|---|---|---|---|")
    for preset in arguments.views:
        views(detector, preset, [textured_picture(1, *shape)], max(1, arguments.rounds // 3), device)
    print(f"load average {os.getloadavg()[0]:.1f} after")


def child(command: str, folder: str, pictures: int) -> None:
    """What `--memory` runs in a process of its own, whose memory alone is the driver's; says its peak in MB."""
    from benchmarks.pool import distill_pool, make_pool, predict_pool  # noqa: PLC0415

    {"make": lambda: make_pool(folder, pictures), "predict": lambda: predict_pool(folder),
     "distill": lambda: distill_pool(folder)}[command]()  # fmt: skip
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def memory(sizes: Sequence[int]) -> None:
    """Peak memory of the drivers of predict and distill over pools of generated pictures and a tiny detector."""
    print("| pictures | predict's driver MB | distill's driver MB |\n|---|---|---|")
    for pictures in sizes:
        with tempfile.TemporaryDirectory() as folder:
            peaks = []
            for command in ("make", "predict", "distill"):
                asked = [sys.executable, __file__, "--child", command, folder, str(pictures)]
                made = subprocess.run(asked, capture_output=True, text=True, check=False)
                if made.returncode:
                    raise SystemExit(made.stderr)
                peaks.append(float(made.stdout.splitlines()[-1]))
        print(f"| {pictures} | {peaks[1]:.0f} | {peaks[2]:.0f} |", flush=True)


def precision(data: str, checkpoint: str) -> None:
    """Mask AP of one checkpoint in two precisions."""
    from pipelines.evaluate import EvaluateConfig, run  # noqa: PLC0415

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fp32", "bf16"):
            made = run(EvaluateConfig(checkpoint, data, str(Path(folder) / name), precision=Precision(name)))
            assert made.mask is not None, "the detector has no masks"
            found[name] = 100 * made.mask.AP
    print(f"| mask AP in fp32 | in bf16 | difference |\n|---|---|---|\n"
          f"| {found['fp32']:.2f} | {found['bf16']:.2f} | {found['bf16'] - found['fp32']:+.2f} |")  # fmt: skip


def main() -> None:
    """The tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--edge", type=int, default=800, help="shorter side in pixels")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], help="bf16 is slow without AVX512 or AMX")
    parser.add_argument("--views", nargs="*", default=["fast", "paper"])
    parser.add_argument("--memory", type=int, nargs="+", default=[], metavar="PICTURES")
    parser.add_argument("--ap", nargs=2, default=[], metavar=("DATA", "CHECKPOINT"))
    parser.add_argument("--child", nargs=3, default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.child[1], int(arguments.child[2]))
    elif arguments.memory or arguments.ap:
        if arguments.memory:
            memory(arguments.memory)
        if arguments.ap:
            precision(*arguments.ap)
    else:
        speed(arguments)


if __name__ == "__main__":
    main()
