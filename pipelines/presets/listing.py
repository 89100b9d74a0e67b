"""The named runs as a table or JSON, chosen by words."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from model.config import BackboneConfig, BackboneKind, DetectorConfig, FeatureKind, Norm
from pipelines.optim import OptimConfig
from pipelines.presets.named import RUNS
from pipelines.presets.preset import Preset

HEADERS = ("preset", "backbone", "schedule", "batch", "init", "box", "mask", "kp", "GB", "fps", "source")
FOOTNOTE = (
    "AP of boxes, masks and keypoints, training memory of a GPU and pictures a second are what the source published,\n"
    "on its own hardware; maskray measured none of it. --json has all fields, also what each run starts from."
)


@dataclasses.dataclass(frozen=True)
class ListPresetsConfig:
    """Which presets to list.

    Attributes:
        words: only presets whose name, backbone, schedule or source holds every one of them; none lists all.
        json: print JSON instead of a table.
    """

    words: tuple[str, ...]
    json: bool = False


def matching(words: Sequence[str]) -> tuple[Preset, ...]:
    """The runs that hold every word, in any case.

    Raises:
        ValueError: there is none.
    """
    wanted = [word.lower() for word in words]
    found = tuple(run for run in RUNS if all(word in _text(run) for word in wanted))
    if not found:
        raise ValueError(
            f"no preset has {' and '.join(map(repr, words))}: use fewer words, or none to list all {len(RUNS)}"
        )
    return found


def _text(run: Preset) -> str:
    source = f"{run.published.source} {run.published.measured_on}"
    return f"{run.name} {network(run().detector)} {run.recipe.schedule} {source}".lower()


def network(config: DetectorConfig) -> str:
    """The backbone and its features as papers write them: R-50-FPN, X-101-64x4d-FPN dconv."""
    backbone = config.backbone
    features = {FeatureKind.FPN: "FPN", FeatureKind.C4: "C4", FeatureKind.C5: "C5", FeatureKind.DC5: "DC5"}
    parts = [_layers(backbone), features[config.features]]
    if backbone.deformable_stages:
        parts.append("mdconv" if backbone.modulated else "dconv")
    norms = {Norm.GROUP: "GN", Norm.SYNC: "SyncBN", Norm.BATCH: "BN"}
    if backbone.norm in norms:
        parts.append(norms[backbone.norm])
    if backbone.non_local:
        parts.append("NL")
    return " ".join(["-".join(parts[:2]), *parts[2:]])


def _layers(backbone: BackboneConfig) -> str:
    if backbone.kind is BackboneKind.TIMM:
        return backbone.timm_name
    if backbone.groups == 1:
        return f"R-{backbone.depth}"
    return f"X-{backbone.depth}-{backbone.groups}x{backbone.group_width}d"


def row(run: Preset) -> tuple[str, ...]:
    """A line of the table."""
    published, optim = run.published, run.recipe.optim
    figures = (published.box_ap, published.mask_ap, published.keypoint_ap, published.memory_gb, published.fps)
    shown = ["-" if figure is None else f"{figure:.1f}" for figure in figures]
    source = f"{published.source}, {published.measured_on}" if any(figures) else published.source
    init = run.init.split(":", maxsplit=1)[0]
    return (run.name, network(run().detector), run.recipe.schedule, str(optim.batch), init, *shown, source)


def notes(runs: Sequence[Preset]) -> list[str]:
    """What is odd about runs, a line each."""
    return [f"{run.name}: {run.published.note}" for run in runs if run.published.note]


def as_json(runs: Sequence[Preset]) -> str:
    """The runs with all fields."""
    return json.dumps([_fields(run) for run in runs], indent=1)


def _fields(run: Preset) -> dict[str, Any]:
    published = dataclasses.asdict(run.published)
    if published["fps"] is not None:
        published["fps"] = round(published["fps"], 1)
    return {
        "name": run.name,
        "detector": run.detector,
        "backbone": network(run().detector),
        "schedule": run.recipe.schedule,
        "batch": run.recipe.optim.batch,
        **_length(run.recipe.optim),
        "learning_rate": run.recipe.optim.learning_rate,
        "precision": run.recipe.precision.value,
        "init": run.init,
        "published": published,
    }


def _length(optim: OptimConfig) -> dict[str, Any]:
    unit, length = ("epochs", optim.epochs) if optim.epochs else ("steps", optim.steps)
    return {unit: length, "milestones": list(optim.milestones)}
