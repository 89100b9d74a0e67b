"""Named training runs: a detector, the recipe it is trained by and what its source published of the result."""

from pipelines.presets.named import PRESETS, preset
from pipelines.presets.preset import Preset, Published, Recipe

__all__ = ["PRESETS", "Preset", "Published", "Recipe", "preset"]
