"""Published schedules: learning rates at the places their papers and configurations name."""

import pytest

from pipelines import recipes
from pipelines.optim import OptimConfig, learning_rate_at, resolve_schedule

COCO = 118_287
CASES = [
    # recipe, pictures, batch, {step: learning rate}
    (recipes.detectron2_steps(1), COCO, 16, {999: 0.02, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002}),
    (recipes.detectron2_steps(3), COCO, 16, {209_999: 0.02, 210_000: 0.002, 250_000: 0.0002, 269_999: 0.0002}),
    (recipes.mmdetection_epochs(12, (8, 11)), COCO, 16, {500: 0.02, 59_143: 0.02, 59_144: 0.002, 81_322: 0.0002}),
    (recipes.mmdetection_epochs(20, (16, 19)), 60_668, 16, {60_668: 0.002, 72_043: 0.0002}),
    (recipes.torchvision_epochs(), COCO, 16, {118_286: 0.02, 118_287: 0.002, 162_645: 0.0002}),
    (recipes.paper_steps(), COCO, 16, {119_999: 0.02, 120_000: 0.002, 159_999: 0.002}),
    (recipes.detectron1(recipes.paper_steps(180_000, 120_000)), COCO, 16, {0: 0.02 / 3, 500: 0.02}),
    (recipes.keypoint_steps(), COCO, 16, {59_999: 0.02, 80_000: 0.0002}),
    (recipes.cityscapes_fine_steps(), 2975, 8, {17_999: 0.01, 18_000: 0.001}),
    (recipes.cityscapes_from_coco_steps(), 2975, 8, {2_999: 0.01, 3_000: 0.001}),
    (recipes.mmdetection_cityscapes_epochs(), 2975, 8, {20_824: 0.01, 20_825: 0.001}),
    (recipes.detectron2_large_scale_jitter(), COCO, 64, {500: 0.1, 163_889: 0.01, 177_546: 0.001, 184_374: 0.001}),
    (recipes.mmdetection_large_scale_jitter(), COCO, 64, {500: 0.08, 162_645: 0.008, 177_431: 0.0008}),
    (recipes.torchvision_large_scale_jitter(), COCO, 64, {1000: 0.1, 650_579: 0.01, 709_722: 0.001}),
]


@pytest.mark.parametrize(("recipe", "pictures", "batch", "rates"), CASES)
def test_the_rate_at_the_published_places(recipe, pictures, batch, rates):
    assert (recipe.batch, recipe.reference_batch) == (batch, batch)
    found = resolve_schedule(recipe, pictures, batch)
    for step, rate in rates.items():
        assert learning_rate_at(step, found) == pytest.approx(rate, rel=2e-3), step
    assert learning_rate_at(0, found) < learning_rate_at(found.warmup_steps, found)
    half = resolve_schedule(OptimConfig(**{**vars(recipe), "batch": batch // 2}), pictures, batch // 2)
    assert half.learning_rate == pytest.approx(found.learning_rate / 2)


def test_detectrons_biases():
    recipe = recipes.detectron1(recipes.detectron2_steps(1))
    assert (recipe.decay_biases, recipe.bias_rate_factor) == (False, 2.0)


def test_another_length_is_refused():
    with pytest.raises(ValueError, match="schedules are 1x, 2x and 3x, got 4x: choose one"):
        recipes.detectron2_steps(4)
