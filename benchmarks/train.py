"""One table: our training step beside torchvision's reference step, same weights, pictures, boxes and sizes.

    PYTHONPATH=. python benchmarks/train.py [--threads 2] [--steps 5] [--rounds 2] [--device cuda] [--quick]

R50-FPN, batch 2, 800 x 1088, 80 classes, losses to updated weights, loading excluded. Each side runs in a process of
its own, so that its peak memory is its own; the sides take turns, and times are medians of all steps after the warm-up.
Objects lie on a grid of sizes so that the untrained proposals fill the quota of positives; the table says how many.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from model.build import build_detector
from model.checkpoint import load_strict
from model.convert import from_torchvision
from model.presets import torchvision_mask_rcnn_r50_fpn
from model.settings import override
from model.structures import Images, PackedMasks, Targets
from pipelines.config import Precision, TrainConfig
from pipelines.recipes import torchvision_epochs
from pipelines.train_state import Part, TrainState

CLASSES = 80
PEER = "torchvision fp32"
OURS = {
    "ours fp32": (Precision.FP32, False),
    "ours fp32 compiled": (Precision.FP32, True),
    "ours bf16": (Precision.BF16, False),
    "ours bf16 compiled": (Precision.BF16, True),
}
Step = Callable[[], object]


def objects(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [G, 4] of three sizes on grids that cover the picture, and labels [G] in 0..79."""
    boxes = []
    for side in (height // 3, height // 6, height // 12):
        for y in range(side // 3, height - side, int(side * 1.5)):
            boxes += [(x, y, x + side, y + side) for x in range(side // 3, width - side, int(side * 1.5))]
    found = torch.tensor(boxes, dtype=torch.float32)[:96]
    return found, torch.arange(len(found)) % CLASSES


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """[B, 3, H, W] in 0..1, with structure at many scales."""
    generator = torch.Generator().manual_seed(0)
    made = torch.zeros(batch, 3, height, width)
    for cells in (3, 9, 27, 81):
        noise = torch.rand(batch, 3, cells, cells, generator=generator)
        made += torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic") / 4
    return made.clamp(0, 1)


def peer_model(height: int, width: int) -> torch.nn.Module:
    """torchvision's, with the weights that both sides start from."""
    torch.manual_seed(0)
    # maskrcnn_resnet50_fpn without pretrained weights has norms that learn; the reference training freezes them.
    frozen = torchvision.ops.FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=frozen, trainable_layers=3,
    )  # fmt: skip
    return MaskRCNN(backbone, CLASSES + 1, min_size=min(height, width), max_size=1333).train()


def peer_step(model: torch.nn.Module, args: argparse.Namespace) -> Step:
    """The step of torchvision's reference training: forward, backward, SGD."""
    boxes, labels = objects(args.height, args.width)
    mask = torch.zeros(len(boxes), args.height, args.width, dtype=torch.uint8)
    for row, (x1, y1, x2, y2) in zip(mask, boxes.int().tolist(), strict=True):
        row[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": labels + 1, "masks": mask}
    targets = [{name: value.to(args.device) for name, value in target.items()}] * args.batch
    images = list(pictures(args.batch, args.height, args.width).to(args.device))
    trained = [p for p in model.to(args.device).parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> object:
        losses = sum(model(images, targets).values())
        optimiser.zero_grad()
        losses.backward()
        optimiser.step()
        return losses

    return step


def positives(model: torch.nn.Module, args: argparse.Namespace) -> list[int]:
    """Positive RoIs a picture in torchvision's first step; the same weights give us the same proposals."""
    seen: list[int] = []
    select = model.roi_heads.select_training_samples

    def counting(*inputs: object) -> object:
        result = select(*inputs)
        seen[:] = [int((labels > 0).sum()) for labels in result[2]]
        return result

    model.roi_heads.select_training_samples = counting
    peer_step(model, args)()
    model.roi_heads.select_training_samples = select
    return seen


def our_step(model: torch.nn.Module, args: argparse.Namespace, precision: Precision, compiled: bool) -> Step:
    """The step of `maskray train`, with all that it checks."""
    settings = override(torchvision_mask_rcnn_r50_fpn(), "num_classes", CLASSES)
    detector = build_detector(settings)
    load_strict(detector, from_torchvision(model.state_dict()), "torchvision's weights")
    detector.to(args.device).train()
    state = TrainState(detector, TrainConfig(detector=settings, optim=torchvision_epochs(), precision=precision))
    for group in state.optimiser.param_groups:
        group["lr"] = 1e-4
    boxes, labels = objects(args.height, args.width)
    count, (height, width) = len(boxes), (args.height, args.width)
    sides = (boxes[:, 2:] - boxes[:, :2]).int().flip(1)
    sizes = torch.tensor([height, width])
    extents = torch.cat([boxes[:, :2].int().flip(1), sides, sizes.expand(count, 2)], 1).long()
    areas = sides.prod(1)
    packed = PackedMasks(
        torch.ones(int(areas.sum()), dtype=torch.uint8),
        (areas.cumsum(0) - areas).long().expand(args.batch, count),
        extents.expand(args.batch, count, 6),
    )
    pixels = (pictures(args.batch, height, width) * 255).contiguous(memory_format=torch.channels_last)
    targets = Targets(
        boxes.expand(args.batch, count, 4), labels.expand(args.batch, count),
        torch.ones(args.batch, count, dtype=torch.bool), PackedMasks(*(part.to(args.device) for part in packed)),
        torch.arange(args.batch),
    )  # fmt: skip
    moved = Targets(*(v if v is None or isinstance(v, PackedMasks) else v.to(args.device) for v in targets))
    images = Images(pixels.to(args.device), sizes.expand(args.batch, 2).to(args.device))
    network = torch.compile(detector) if compiled else detector
    return lambda: state.step(network, [Part(images, moved, 1.0)])


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


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Seconds of each step of one side, and its peak memory."""
    torch.set_num_threads(args.threads)
    model = peer_model(args.height, args.width)
    filled = positives(model, args) if args.side == PEER else []
    step = peer_step(model, args) if args.side == PEER else our_step(model, args, *OURS[args.side])
    del model
    # On a CPU one step is enough, and the peer has made it when its positives were counted.
    warm_up = 50 if args.device == "cuda" else int(args.side != PEER)
    seconds = []
    for number in range(warm_up + args.steps):
        if args.device == "cuda" and args.side != PEER and number >= warm_up:
            torch.cuda.set_sync_debug_mode("error")  # nothing between batch and update waits for the device
        start = time.perf_counter()
        step()
        wait(args.device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_gb": peak_gb(args.device), "positives": filled}


def run_side(side: str) -> dict[str, list[float]]:
    """The same command for one side, in a process of its own."""
    done = subprocess.run([sys.executable, *sys.argv, "--side", side], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
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
    parser.add_argument("--only", nargs="*", default=list(OURS), help="sides of ours to run")
    parser.add_argument("--quick", action="store_true", help="one small picture, one step; ends in one line")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.batch, args.height, args.width, args.steps, args.rounds = 1, 256, 352, 1, 1
        args.only = [side for side in args.only if "compiled" not in side]
    return args


def main() -> None:
    """Print the table, and with --quick a summary line."""
    args = parsed()
    if args.side:
        print(json.dumps(measure(args)))
        return
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {args.threads} threads, {args.device}")
    size = f"batch {args.batch}, {args.height} x {args.width}"
    print(f"{size}, load before the run {os.getloadavg()[0]:.1f}")
    sides = [PEER, *args.only]
    found = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            found[side].append(run_side(side))
    print(f"positives a picture: {found[PEER][0]['positives']} of 128\n")
    print(f"| {'step':20} | median s | least s | most s | times as fast | peak GB | of peer |")
    print(f"|{'-' * 22}|----------|---------|--------|---------------|---------|---------|")
    medians, peaks = {}, {}
    for side, runs in found.items():
        seconds = [second for run in runs for second in run["seconds"]]
        medians[side], peaks[side] = statistics.median(seconds), max(run["peak_gb"] for run in runs)
        spread = f"{medians[side]:8.3f} | {min(seconds):7.3f} | {max(seconds):6.3f}"
        ratios = f"{medians[PEER] / medians[side]:13.2f} | {peaks[side]:7.2f} | {peaks[side] / peaks[PEER]:7.2f}"
        print(f"| {side:20} | {spread} | {ratios} |")
    if args.quick:
        parts = [f"{side} {medians[PEER] / medians[side]:.2f} x" for side in args.only]
        print(f"\ntraining step beside torchvision: {', '.join(parts)}")


if __name__ == "__main__":
    main()
