"""The generate command: the demo's pictures in the true layout of a source, to try commands on before the real data."""

import dataclasses
from pathlib import Path

from pipelines import shapes, small_cityscapes, small_nuimages
from pipelines.shapes import ShapesConfig

SOURCES = {"coco": shapes.generate, "cityscapes": small_cityscapes.generate, "nuimages": small_nuimages.generate}
_PREPARED_BY = {
    "coco": "coco --images {out}/train2017 --annotations {out}/annotations/instances_train2017.json",
    "cityscapes": "cityscapes --root {out} --split train",
    "nuimages": "nuimages --root {out} --version v1.0-train",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(ShapesConfig):
    """Draw pictures of overlapping shapes and write them as a source has them: a small copy to try commands on.

    Attributes:
        out: local folder to make; the same command again gives the same bytes.
    """

    out: str

    def __post_init__(self) -> None:
        """Check each value's range."""
        super().__post_init__()
        if not self.out or "://" in self.out:
            raise ValueError(f"generate writes to a local folder, got {self.out!r}: give a path")


def run(source: str, config: GenerateConfig) -> str:
    """Write the copy; the command that prepares its training pictures.

    Args:
        source: one of `SOURCES`.
        config: what to draw, and where.

    Raises:
        ValueError: the folder holds something else, or the source has no such annotations.
    """
    if config.keypoints and source != "coco":
        raise ValueError(f"{source} has no keypoints: leave out --keypoints, or generate coco")
    names = [field.name for field in dataclasses.fields(ShapesConfig)]
    SOURCES[source](ShapesConfig(**{name: getattr(config, name) for name in names}), Path(config.out).absolute())
    return f"maskray prepare {_PREPARED_BY[source].format(out=config.out)} --out DATA"
