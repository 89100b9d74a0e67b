"""The import command: weights of torchvision, Detectron2 or MMDetection become a checkpoint of maskray."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from model.build import build_detector
from model.checkpoint import load_strict
from model.config import DetectorConfig
from model.convert import Conversion, Found, Framework, convert, describe, fit_counters, identify, observe
from model.convert.conversion import COUNTER
from model.convert.origins import Evidence, rules_of
from model.convert.transfer import take_classes
from model.settings import override
from pipelines import class_lists, foreign_weights, starting_weights
from pipelines.class_lists import ClassOrder
from pipelines.foreign_weights import ForeignWeights, WeightsError
from pipelines.presets.named import preset

_ONE_X = "1."
# How the names of presets with each framework's rules begin.
_PRESETS_OF = {
    Framework.TORCHVISION: ("torchvision_",),
    Framework.DETECTRON2: ("detectron2_",),
    Framework.MMDETECTION: ("mmdet_", "nuimages_", "cityscapes_"),
}


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Read the weights of another framework into a checkpoint that train --init, evaluate and predict take.

    Reads .pth, .pkl and .safetensors, arrays only: no file can run code.

    Attributes:
        source: file or URI of the weights.
        out: folder or URI of the checkpoint.
        framework: whose weights they are; found out by their names where it is not given.
        preset: named run (`maskray list presets`) whose rules hold where neither the weights nor the file tell them.
        norm_eps: epsilon of the backbone's norms, where the file does not tell it.
        classes: classes of new heads: coco, cityscapes or nuimages, or for each class its name or id in the source,
            NEW=SOURCE to copy one under another name, or a new name for new weights; empty keeps all.
        class_order: names of the source's classes in the order of its labels, or coco, cityscapes or nuimages; empty
            takes the file's own list, or assumes by the number of classes.
        seed: of the weights of new classes.
        verbose: list every key and what became of it.
    """

    source: str
    out: str = ""
    framework: Annotated[Framework | None, tyro.conf.arg(name="from")] = None
    preset: str = ""
    norm_eps: float | None = None
    classes: tuple[str, ...] = ()
    class_order: tuple[str, ...] = ()
    seed: int = 0
    verbose: bool = False


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """What was imported, and the account of every key.

    Attributes:
        checkpoint: its URI.
        framework: whose weights they were.
        found: settings that the weights told.
        known: settings known otherwise.
        conversion: where each key went.
        added: our names that were made, since the file has nothing for them.
        order: the source's classes and how their order is known.
        notices: one line for each thing to know.
    """

    checkpoint: str
    framework: Framework
    found: tuple[Found, ...]
    known: tuple[Found, ...]
    conversion: Conversion
    added: tuple[str, ...]
    order: ClassOrder
    notices: tuple[str, ...]

    def settings(self) -> list[tuple[str, str, str]]:
        """Rows of setting, value, and how it is known."""
        rows = [Found("framework", self.framework.value, f"{len(self.conversion.uses)} names of its table")]
        return [(item.path, _text(item.value), item.why) for item in (*rows, *self.known, *self.found)]

    def key_counts(self) -> list[tuple[str, int]]:
        """Rows of what happened and to how many keys."""
        done = Counter(use.done or "as they were" for use in self.conversion.uses)
        rows = [("used", len(self.conversion.uses)), *((f"  {what}", number) for what, number in done.items())]
        dropped, made = self.conversion.dropped, self.added
        return [*rows, ("not needed", len(dropped)), ("left over", len(self.conversion.leftover)),
                ("made new", len(made)), ("missing", 0)]  # fmt: skip

    def every_key(self) -> list[tuple[str, str, str]]:
        """Rows of their name, our name, and what was done."""
        conversion = self.conversion
        return [
            *((use.theirs, use.ours, use.done or "as it was") for use in conversion.uses),
            *((name, "", why) for name, why in conversion.dropped.items()),
            *((name, "", "left over: no rule knows it") for name in conversion.leftover),
            *(("", name, "made new: zero") for name in self.added),
        ]


def _text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    return " ".join(f"{x:g}" for x in value) or "none" if isinstance(value, tuple) else str(value)


def run(config: ImportConfig) -> ImportResult:
    """Read, convert, check and write.

    Raises:
        ValueError: weights that cannot be read, that are not those of a detector that maskray has, or that lack a
            part; settings that nothing tells.
    """
    if not config.out:
        raise WeightsError("import needs --out: give a folder or URI for the checkpoint")
    weights = foreign_weights.read(config.source)
    framework = config.framework or identify(weights.state)
    conversion = convert(weights.state, framework, background_first=_is_background_first(weights, framework))
    observed = observe(conversion.state, framework)
    chosen = preset(config.preset).detector if config.preset else None
    evidence = Evidence(weights.metadata, weights.sha256, chosen, config.norm_eps)
    base, known = rules_of(framework, observed, evidence)
    detector_config, found = describe(conversion.state, framework, base)
    state, added = _fitted(conversion.state, detector_config, config.source)
    conversion = dataclasses.replace(conversion, remainder={**conversion.remainder, **_counters(conversion, state)})
    order = class_lists.order(
        detector_config.num_classes,
        config.class_order,
        class_lists.own_list(weights.metadata),
        detector_config.keypoint.num_keypoints if detector_config.keypoint.enabled else 0,
    )
    classes, notices = order.classes, [*weights.notices, *_preset_notices(config.preset, framework)]
    if config.classes:
        choice = class_lists.choose(config.classes, classes)
        state = take_classes(state, detector_config, choice.sources, config.seed)
        detector_config = override(detector_config, "num_classes", len(choice.classes))
        classes = choice.classes
        notices += _class_notices(choice, order.classes, config.seed)
    detector = build_detector(detector_config)
    load_strict(detector, state, config.source)
    checkpoint = starting_weights.save(config.out, detector, classes, conversion.remainder)
    return ImportResult(checkpoint.uri, framework, found, known, conversion, added, order, tuple(notices))


def _is_background_first(weights: ForeignWeights, framework: Framework) -> bool:
    """MMDetection 1.x, if the file says so."""
    meta = weights.metadata.get("meta")
    version = meta.get("mmdet_version") if isinstance(meta, Mapping) else None
    return framework is Framework.MMDETECTION and isinstance(version, str) and version.startswith(_ONE_X)


def _fitted(
    state: Mapping[str, Tensor], config: DetectorConfig, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights with the norms' counters that the detector has, and which of them are new.

    Raises:
        WeightsError: a parameter of the detector is missing, or one is of no use to it.
    """
    with torch.device("meta"):
        wanted = build_detector(config).state_dict()
    fitted = fit_counters(state, wanted)
    missing, useless = sorted(wanted.keys() - fitted.keys()), sorted(fitted.keys() - wanted.keys())
    for names, what in ((missing, "lacks"), (useless, "has more than the detector it describes, namely")):
        if names:
            listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise WeightsError(
                f"{source} {what} {len(names)} parameters ({listed}): give the weights of a whole detector"
            )
    return fitted, tuple(sorted(fitted.keys() - state.keys()))


def _counters(conversion: Conversion, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counters of theirs, other than zero, that ours has no place for."""
    return {
        use.theirs: conversion.state[use.ours]
        for use in conversion.uses
        if use.ours.endswith(COUNTER) and use.ours not in state and bool(conversion.state[use.ours])
    }


def _preset_notices(name: str, framework: Framework) -> list[str]:
    others = {other.value for other, starts in _PRESETS_OF.items() if name.startswith(starts) and other != framework}
    return [f"{name} has the rules of {other}, the weights are of {framework.value}" for other in others]


def _class_notices(choice: class_lists.Choice, source: Sequence[Any], seed: int) -> list[str]:
    pairs = list(zip(choice.classes, choice.sources, strict=True))
    copied = [f"{info.name} from {source[label].name}" for info, label in pairs if label is not None]
    new = [info.name for info, label in pairs if label is None]
    notices = [f"heads of {len(pairs)} classes: {', '.join(copied)}"]
    if new:
        notices.append(f"new weights for {', '.join(new)}, with the mean and deviation of each layer (seed {seed})")
    return notices
