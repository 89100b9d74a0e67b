"""Two tables: a picture labelled by this project and by torchvision, and the cost of test-time augmentation.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/predict.py [--rounds 5] [--threads 1] [--views fast paper]

Both sides have the same weights, random ones scaled so that many objects are found, and take turns on the same picture
of 640 x 480 px, resized to 800 x 1067. torchvision's side is its maskrcnn_resnet50_fpn in eager mode, masks pasted,
cut at 0.5 and encoded by pycocotools; ours is what `maskray predict` does with a decoded picture. Times are the
process's own (all threads), so that other work on the machine disturbs less; each figure is the best of the rounds.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from model.detector import Detector
from model.fold import fold_norms
from model.views import parse_views
from pipelines.config import Precision
from pipelines.inference import Method, predict_sources
from pipelines.looking import Source
from tests.oracles.torchvision_peer import build_ours, build_peer, textured_picture

CPU = torch.device("cpu")


def best(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of processor time of each piece of work, which take turns; the first turn is not counted."""
    seconds = [float("inf")] * len(works)
    for number in range(rounds + 1):
        for at, work in enumerate(works):
            start = time.process_time()
            work()
            if number:
                seconds[at] = min(seconds[at], time.process_time() - start)
    return seconds


def torchvision_predict(peer: torch.nn.Module, pictures: list[Tensor]) -> list[list[object]]:
    """Run lengths of the peer's masks."""
    with torch.no_grad():
        found = peer(pictures)
    return [
        [coco_mask.encode(np.asfortranarray(mask)) for mask in (one["masks"][:, 0] > 0.5).numpy().astype(np.uint8)]
        for one in found
    ]


def ours(detector: Detector, pictures: list[Tensor], method: Method) -> Callable[[], object]:
    """Our side on float pictures 0..1, as whole bytes."""
    sources = [Source(number, (picture * 255).round().to(torch.uint8)) for number, picture in enumerate(pictures)]
    return lambda: predict_sources(detector, sources, CPU, method)


def side_by_side(peer: torch.nn.Module, detector: Detector, batch: int, rounds: int) -> None:
    pictures = [textured_picture(seed, 480, 640) for seed in range(1, batch + 1)]
    names = ("fp32", "bf16")
    methods = [ours(detector, pictures, Method(precision=Precision(name))) for name in names]
    theirs, *times = best([lambda: torchvision_predict(peer, pictures), *methods], rounds)
    count = sum(map(len, torchvision_predict(peer, pictures)))
    for name, seconds in zip(names, times, strict=True):
        print(f"| batch {batch}, {name}, {count} masks | {seconds / batch:.2f} | {theirs / batch:.2f} | "
              f"{theirs / seconds:.2f} |", flush=True)  # fmt: skip


def views(detector: Detector, preset: str, rounds: int) -> None:
    """Views merged, against the sum of the same views each predicted alone, and against one view."""
    pictures = [textured_picture(1, 480, 640)]
    wanted = parse_views(preset, detector.config.picture)
    together, one, *alone = best(
        [ours(detector, pictures, Method(wanted)), ours(detector, pictures, Method()),
         *(ours(detector, pictures, Method((view,))) for view in wanted)], rounds,
    )  # fmt: skip
    print(f"| {preset}, {len(wanted)} views | {together:.2f} | {sum(alone):.2f} | {together / sum(alone):.2f} | "
          f"{together / one:.1f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--edge", type=int, default=800, help="shorter side in pixels")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--views", nargs="*", default=["fast", "paper"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = {"min_size": arguments.edge, "max_size": round(arguments.edge * 5 / 3)}
    standard = {f"rpn_{when}_nms_top_n_test": 1000 for when in ("pre", "post")}
    peer = build_peer(**size, **standard).eval()
    detector = build_ours(peer, **{"picture.short_edge_px": arguments.edge,
                                   "picture.long_edge_px": size["max_size"],
                                   "rpn.pre_nms_test": 1000, "rpn.post_nms_test": 1000}).eval()  # fmt: skip
    fold_norms(detector)
    print(
        f"{arguments.threads} threads, load average {os.getloadavg()[0]:.1f}, {torch.backends.cpu.get_cpu_capability()}"
    )
    print("| case | ours s a picture | torchvision s | ratio |\n|---|---|---|---|")
    for batch in arguments.batches:
        side_by_side(peer, detector, batch, arguments.rounds)
    print("\n| views | merged s | sum of the views alone s | ratio | of one view |\n|---|---|---|---|---|")
    for preset in arguments.views:
        views(detector, preset, max(1, arguments.rounds // 3))
    print(f"load average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
