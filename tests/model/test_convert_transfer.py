"""Heads of other classes: rows copied in order, the background kept, new rows like the source's."""

import pytest
import torch

from model.config import BoxHeadConfig, DetectorConfig, MaskHeadConfig
from model.convert.transfer import take_classes

CONFIG = DetectorConfig(num_classes=3)


def state(classes=3, head="roi.box_head", mask="roi.mask_head"):
    class_of = torch.arange(classes).float()
    return {
        f"{head}.scores.weight": torch.arange(classes + 1).float()[:, None].expand(classes + 1, 5).clone(),
        f"{head}.scores.bias": torch.arange(classes + 1).float(),
        f"{head}.deltas.weight": class_of.repeat_interleave(4)[:, None].expand(4 * classes, 5).clone(),
        f"{head}.deltas.bias": class_of.repeat_interleave(4),
        f"{mask}.logits.weight": class_of.view(-1, 1, 1, 1).expand(classes, 2, 1, 1).clone(),
        f"{mask}.logits.bias": class_of,
        "rpn.head.objectness.bias": torch.arange(3).float(),
    }


@pytest.mark.parametrize("sources", [[0, 1, 2], [2], [1, 1, 0, 2, 0]])
def test_rows_follow_their_classes(sources):
    taken = take_classes(state(), CONFIG, sources)
    assert taken["roi.box_head.scores.bias"].tolist() == [*sources, 3]
    assert taken["roi.box_head.deltas.bias"].tolist() == [s for s in sources for _ in range(4)]
    assert taken["roi.mask_head.logits.bias"].tolist() == sources
    for layer in ("box_head.scores", "box_head.deltas", "mask_head.logits"):
        weight = taken[f"roi.{layer}.weight"].flatten(1)
        assert weight[:, 0].tolist() == taken[f"roi.{layer}.bias"].tolist()
    assert torch.equal(taken["rpn.head.objectness.bias"], state()["rpn.head.objectness.bias"])


def test_a_new_class_is_drawn_with_the_mean_and_deviation_of_the_layer():
    torch.manual_seed(0)
    wide = {
        "roi.box_head.scores.weight": torch.randn(4, 4096) * 3 + 7,
        "roi.box_head.scores.bias": torch.zeros(4),
    }
    taken = take_classes(wide, CONFIG, [0, None])
    row = taken["roi.box_head.scores.weight"][1]
    assert (row.mean().item(), row.std().item()) == (pytest.approx(7, abs=0.2), pytest.approx(3, abs=0.15))
    assert torch.equal(taken["roi.box_head.scores.weight"][2], wide["roi.box_head.scores.weight"][3])
    again, other = (take_classes(wide, CONFIG, [0, None], seed)["roi.box_head.scores.weight"] for seed in (0, 1))
    assert torch.equal(again, taken["roi.box_head.scores.weight"])
    assert not torch.equal(other, again)


def test_layers_that_serve_all_classes_alike_stay():
    # Four rows of deltas and one of masks: of one class, or of all.
    config = DetectorConfig(
        num_classes=1, box=BoxHeadConfig(class_agnostic=True), mask=MaskHeadConfig(class_agnostic=True)
    )
    one = state(1, "roi.box_heads.2", "roi.mask_heads.2")
    taken = take_classes(one, config, [0, 0])
    assert taken["roi.box_heads.2.scores.bias"].tolist() == [0, 0, 1]
    for name in ("roi.box_heads.2.deltas.weight", "roi.mask_heads.2.logits.bias"):
        assert torch.equal(taken[name], one[name])
    own = take_classes(one, DetectorConfig(num_classes=1), [0, 0])
    assert len(own["roi.box_heads.2.deltas.bias"]) == 8


@pytest.mark.parametrize(("sources", "got"), [([3], r"\[3\]"), ([0, -1], r"\[-1\]"), ([], "none")])
def test_labels_that_are_not_there_are_refused(sources, got):
    with pytest.raises(ValueError, match=rf"labels to take must be at least one, in 0\.\.2, got {got}"):
        take_classes(state(), CONFIG, sources)
