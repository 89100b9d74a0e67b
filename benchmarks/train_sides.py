"""The sides of the training benchmark: ours, torchvision's reference step, and Detectron2's where it is installed.

All start from the same kind of picture and the same boxes, which cover the places of anchors so densely that an
untrained network's proposals fill the quota of positives; each side counts its own.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from model.build import build_detector
from model.checkpoint import load_strict
from model.convert import from_torchvision
from model.presets import torchvision_mask_rcnn_r50_fpn
from model.roi import standard
from model.settings import override
from model.structures import Images, PackedMasks, Targets
from pipelines.config import Precision, TrainConfig
from pipelines.host import keep_freed_memory
from pipelines.recipes import torchvision_epochs
from pipelines.train_feed import to_device
from pipelines.train_state import Part, TrainState

CLASSES = 80
QUOTA = 128
Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Side:
    """One side: whose code, in which arithmetic, compiled or not."""

    code: str
    precision: Precision = Precision.FP32
    compiled: bool = False

    @property
    def name(self) -> str:
        return f"{self.code} {self.precision.value}{' compiled' if self.compiled else ''}"


SIDES = {
    side.name: side
    for code in ("torchvision", "ours")
    for side in (Side(code, precision, compiled) for compiled in (False, True)
                 for precision in (Precision.FP32, Precision.BF16))
}  # fmt: skip
if importlib.util.find_spec("detectron2"):
    SIDES |= {side.name: side for side in (Side("detectron2"), Side("detectron2", Precision.BF16))}


class Counting:
    """Passes calls on and keeps the positives of each picture that the last one drew."""

    def __init__(self, draw: Callable[..., Any], count: Callable[[Any], list[int]]) -> None:
        self._draw, self._count = draw, count
        self.positives: list[int] = []

    def __call__(self, *arguments: object) -> object:
        result = self._draw(*arguments)
        self.positives = self._count(result)
        return result


def objects(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [G, 4] of two sizes on dense grids, and labels [G] in 0..79."""
    boxes = []
    for share, pace in ((0.32, 0.5), (0.62, 0.3)):
        side = int(share * height)
        step = int(pace * side)
        corners = [(x, y) for y in range(0, height - side, step) for x in range(0, width - side, step)]
        boxes += [(x, y, x + side, y + side) for x, y in corners]
    found = torch.tensor(boxes, dtype=torch.float32)
    return found, torch.arange(len(found)) % CLASSES


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """[B, 3, H, W] in 0..1, with structure at many scales."""
    generator = torch.Generator().manual_seed(0)
    made = torch.zeros(batch, 3, height, width)
    for cells in (3, 9, 27, 81):
        noise = torch.rand(batch, 3, cells, cells, generator=generator)
        made += torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic") / 4
    return made.clamp(0, 1)


def peer_model(height: int, width: int) -> MaskRCNN:
    """torchvision's, with the weights that both sides start from."""
    torch.manual_seed(0)
    # maskrcnn_resnet50_fpn without pretrained weights has norms that learn; the reference training freezes them.
    frozen = torchvision.ops.FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=frozen, trainable_layers=3,
    )  # fmt: skip
    return MaskRCNN(backbone, CLASSES + 1, min_size=min(height, width), max_size=1333).train()


def _autocast(args: argparse.Namespace, precision: Precision) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(args.device, torch.bfloat16, enabled=precision is Precision.BF16)


def _sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)


def torchvision_targets(args: argparse.Namespace) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The batch as torchvision takes it."""
    boxes, labels = objects(args.height, args.width)
    mask = torch.zeros(len(boxes), args.height, args.width, dtype=torch.uint8)
    for row, (x1, y1, x2, y2) in zip(mask, boxes.int().tolist(), strict=True):
        row[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": labels + 1, "masks": mask}
    targets = [{name: value.to(args.device) for name, value in target.items()}] * args.batch
    return list(pictures(args.batch, args.height, args.width).to(args.device)), targets


def torchvision_step(
    model: MaskRCNN, side: Side, args: argparse.Namespace, batches: Iterator[tuple[list[Any], list[Any]]]
) -> Step:
    """The step of torchvision's reference training: forward (under autocast), backward, SGD."""
    optimiser = _sgd(model.to(args.device))
    network = torch.compile(model) if side.compiled else model

    def step() -> object:
        images, targets = next(batches)
        with _autocast(args, side.precision):
            losses = sum(network(images, targets).values())
        optimiser.zero_grad()
        losses.backward()
        optimiser.step()
        return losses

    return step


def our_batch(args: argparse.Namespace) -> Part:
    """The same batch as we take it."""
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
    pixels = (pictures(args.batch, height, width) * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    targets = Targets(
        boxes.expand(args.batch, count, 4), labels.expand(args.batch, count),
        torch.ones(args.batch, count, dtype=torch.bool), packed, torch.arange(args.batch),
    )  # fmt: skip
    images = Images(pixels, sizes.expand(args.batch, 2))
    device = torch.device(args.device)
    return Part(to_device(images, device), to_device(targets, device), 1.0)


def our_step(model: MaskRCNN, side: Side, args: argparse.Namespace, parts: Iterator[Part]) -> Step:
    """The step of `maskray train`, with all that it checks, from torchvision's weights."""
    if args.device == "cpu":
        keep_freed_memory()
    settings = override(torchvision_mask_rcnn_r50_fpn(), "num_classes", CLASSES)
    detector = build_detector(settings)
    load_strict(detector, from_torchvision(model.state_dict()), "torchvision's weights")
    detector.to(args.device).train()
    state = TrainState(detector, TrainConfig(detector=settings, optim=torchvision_epochs(), precision=side.precision))
    for group in state.optimiser.param_groups:
        group["lr"] = 1e-4
    if side.compiled:
        detector.compile(fullgraph=True, dynamic=False)
    return lambda: state.step(detector, [next(parts)])


def detectron2_step(side: Side, args: argparse.Namespace) -> tuple[Step, Callable[[], list[int]]]:
    """Detectron2's Mask R-CNN R50-FPN with its own rules, and its count of positives (a mean over pictures)."""
    from detectron2 import model_zoo  # noqa: PLC0415 -- where it is installed
    from detectron2.modeling import build_model  # noqa: PLC0415
    from detectron2.structures import BitMasks, Boxes, Instances  # noqa: PLC0415
    from detectron2.utils.events import EventStorage  # noqa: PLC0415

    config = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    config.MODEL.DEVICE, config.MODEL.WEIGHTS, config.INPUT.MASK_FORMAT = args.device, "", "bitmask"
    torch.manual_seed(0)
    model = build_model(config).train()
    images, targets = torchvision_targets(args)
    inputs = []
    for image, target in zip(images, targets, strict=True):
        there = Instances((args.height, args.width))
        there.gt_boxes, there.gt_classes = Boxes(target["boxes"]), target["labels"] - 1
        there.gt_masks = BitMasks(target["masks"].bool())
        inputs.append({"image": image.flip(0) * 255, "instances": there, "height": args.height, "width": args.width})
    optimiser, storage = _sgd(model), EventStorage()

    def step() -> object:
        with storage, _autocast(args, side.precision):
            losses = sum(model(inputs).values())
        optimiser.zero_grad()
        losses.backward()
        optimiser.step()
        return losses

    return step, lambda: [int(storage.latest()["roi_head/num_fg_samples"][0])]


def build(side: Side, args: argparse.Namespace, batches: Iterator[Any] | None = None) -> tuple[Step, Callable[[], Any]]:
    """A side's step, and what tells the positives of each picture that its last step outside a graph drew.

    Args:
        side: which.
        args: the command line.
        batches: of pictures and boxes, in the side's own form; None for the same made-up one again and again.
    """
    if side.code == "detectron2":
        return detectron2_step(side, args)
    model = peer_model(args.height, args.width)
    if side.code == "torchvision":
        heads = model.roi_heads
        counter = Counting(heads.select_training_samples, lambda drawn: [int((k > 0).sum()) for k in drawn[2]])
        if not side.compiled:
            heads.select_training_samples = counter
        made = torchvision_targets(args) if batches is None else None
        return torchvision_step(model, side, args, batches or iter(lambda: made, 0)), lambda: counter.positives
    counter = Counting(standard.sample_rois, lambda drawn: drawn.positive.sum(1))
    if not side.compiled:
        standard.sample_rois = counter
    part = our_batch(args) if batches is None else None
    return our_step(model, side, args, batches or iter(lambda: part, 0)), lambda: list(map(int, counter.positives))
