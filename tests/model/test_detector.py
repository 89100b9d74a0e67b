"""The whole detector: normalisation, losses that can be learnt, and what a picture's neighbours may not change."""

import pytest
import torch

from model.checkpoint import take_proposal_network
from model.config import ChannelOrder, DetectorConfig
from model.detector import loss_names, normalise
from model.picture import pad
from model.structures import Images, Targets
from tests.model.tiny_batch import SIDE, SLOTS, tiny_batch, tiny_detector

MEAN, STD = torch.tensor([1.0, 2.0, 3.0])[:, None, None], torch.tensor([2.0, 4.0, 8.0])[:, None, None]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("order", ChannelOrder)
def test_normalised_padding_is_zero_and_mean_and_std_are_in_the_network_s_order(dtype, order):
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (3, *size), generator=generator).to(dtype) for size in [(5, 8), (6, 3)]]
    values = normalise(pad(pictures, (7, 9)), MEAN, STD, order)
    assert values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last)
    for value, picture in zip(values, pictures, strict=True):
        height, width = picture.shape[1:]
        channels = picture.float() if order is ChannelOrder.RGB else picture.float()[[2, 1, 0]]
        torch.testing.assert_close(value[:, :height, :width], (channels - MEAN) / STD)
        assert not value[:, height:].any()
        assert not value[:, :, width:].any()


def test_what_lies_in_the_padding_does_not_matter():
    detector = tiny_detector().eval()
    images, targets = tiny_batch(0)
    dirty = images.pixels.clone()
    for picture, (height, width) in zip(dirty, images.sizes_hw.tolist(), strict=True):
        picture[:, height:] = 200
        picture[:, :, width:] = 200
    assert not torch.equal(dirty, images.pixels)
    with torch.no_grad():
        clean, other = detector.predict(images), detector.predict(images._replace(pixels=dirty))
        assert clean.heatmaps is other.heatmaps is None
        for one, two in zip(clean[:-1], other[:-1], strict=True):
            assert torch.equal(one, two)
        for value, other in zip(
            detector(images, targets).values(), detector(images._replace(pixels=dirty), targets).values(), strict=True
        ):
            assert torch.equal(value, other)


def test_thirty_steps_on_one_batch_halve_the_loss():
    wider = {"backbone.stem_channels": 16, "fpn_channels": 32, "box.channels": 64, "mask.channels": 32}
    detector = tiny_detector(**wider)
    batch = tiny_batch(0)
    optimiser = torch.optim.Adam(detector.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        optimiser.zero_grad()
        losses = detector(*batch)
        assert tuple(losses) == loss_names(DetectorConfig())
        total = sum(losses.values())
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert sum(totals[-3:]) / 3 < totals[0] / 2


def test_every_trainable_parameter_gets_a_gradient():
    detector = tiny_detector(**{"backbone.frozen_stages": 2})
    sum(detector(*tiny_batch(0)).values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.requires_grad == (not name.startswith(("pyramid.backbone.stem", "pyramid.backbone.stages.0")))
        # A convolution's bias before a pool or a dead unit may be still; a whole tensor may not.
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("with_crops", [True, False])
def test_a_batch_without_objects_has_finite_losses_and_no_boxes_or_masks_to_learn(with_crops):
    detector = tiny_detector()
    images, targets = tiny_batch(0, counts=(0, 0))
    if not with_crops:  # as the loader makes it: nothing to cut from
        masks = targets.masks._replace(
            data=torch.zeros(1, dtype=torch.uint8),
            offsets=torch.full_like(targets.masks.offsets, -1),
            extents=torch.zeros_like(targets.masks.extents),
        )
        targets = targets._replace(boxes=torch.zeros_like(targets.boxes), masks=masks)
    losses = detector(images, targets)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert losses["rpn_box"].item() == losses["box"].item() == losses["mask"].item() == 0
    assert losses["rpn_cls"].item() > 0
    assert losses["cls"].item() > 0
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name  # a data-parallel wrapper waits for each
        assert parameter.grad.isfinite().all(), name
    assert not detector.roi.mask_head.logits.weight.grad.any()
    assert not detector.roi.box_head.deltas.weight.grad.any()


def test_empty_slots_do_not_matter():
    detector = tiny_detector(**{"backbone.norm": "frozen"})
    images, targets = tiny_batch(0, counts=(2, 1))
    other = targets.boxes.clone()
    other[~targets.valid] = torch.tensor([0.0, 0.0, float(SIDE), float(SIDE)])
    changed = targets._replace(boxes=other, labels=torch.where(targets.valid, targets.labels, 0))
    fewer = Targets(
        targets.boxes[:, :2],
        targets.labels[:, :2],
        targets.valid[:, :2],
        targets.masks._replace(offsets=targets.masks.offsets[:, :2], extents=targets.masks.extents[:, :2]),
        targets.seeds,
    )
    assert SLOTS > 2
    wanted = detector(images, targets)
    # Ground-truth boxes are candidates too, so another number of slots may move a sample's keys, never the first stage.
    for name, value in detector(images, changed).items():
        assert torch.equal(value, wanted[name]), name
    for name in ("rpn_cls", "rpn_box"):
        torch.testing.assert_close(detector(images, fewer)[name], wanted[name])


def test_a_picture_s_detections_do_not_depend_on_its_neighbours():
    detector = tiny_detector(**{"box.score_threshold": 0.0}).eval()
    images, _ = tiny_batch(0)
    together = detector.predict(images)
    assert not together.masks.requires_grad
    for b in range(2):
        alone = detector.predict(Images(images.pixels[b : b + 1], images.sizes_hw[b : b + 1]))
        for one, other in zip(alone[:-1], together[:-1], strict=True):
            torch.testing.assert_close(one[0], other[b], rtol=1e-4, atol=1e-4)


def test_a_picture_s_losses_do_not_depend_on_its_neighbours():
    # Losses are means over the batch's samples, so equal counts make the whole the mean of the parts.
    detector = tiny_detector(**{"backbone.norm": "frozen", "rpn.samples": 32, "box.samples": 8})
    images, targets = tiny_batch(3, counts=(2, 2))
    whole = detector(images, targets)
    parts = []
    for b in range(2):
        masks = targets.masks._replace(
            offsets=targets.masks.offsets[b : b + 1], extents=targets.masks.extents[b : b + 1]
        )
        known = {name: part[b : b + 1] for name, part in targets._asdict().items() if isinstance(part, torch.Tensor)}
        one = Targets(**known, masks=masks)
        parts.append(detector(Images(images.pixels[b : b + 1], images.sizes_hw[b : b + 1]), one))
    for name in ("rpn_cls", "rpn_box", "cls", "box"):
        torch.testing.assert_close(whole[name], (parts[0][name] + parts[1][name]) / 2, rtol=1e-4, atol=1e-6, msg=name)


# Stage-wise training: the proposals of another detector's network.


def staged(seed=0):
    """A detector and one whose proposals are the first one's."""
    first = tiny_detector(**{"backbone.norm": "frozen"})
    second = tiny_detector(**{"backbone.norm": "frozen", "separate_rpn": True})
    torch.manual_seed(seed)
    for parameter in second.parameters():
        parameter.data.normal_(std=0.05)
    take_proposal_network(second, first.state_dict(), "the first")
    return first, second


def test_a_separate_proposal_network_proposes_what_its_detector_did_and_is_not_trained():
    first, second = staged()
    images, targets = tiny_batch(0)
    losses = second(images, targets)
    assert tuple(losses) == loss_names(second.config) == ("cls", "box", "mask")
    sum(losses.values()).backward()
    learns = {name for name, parameter in second.named_parameters() if parameter.grad is not None}
    assert learns
    assert not any(name.startswith(("rpn.", "rpn_pyramid.")) for name in learns)
    first.eval()
    second.eval()
    wanted = first.rpn.proposals(first.rpn(first.features(images)), images.sizes_hw)
    seen = []
    detect = second.roi.detect

    def watched(features, proposals, sizes):
        seen.append(proposals)
        return detect(features, proposals, sizes)

    second.roi.detect = watched
    second.predict(images)
    for found, value in zip(seen[0], wanted, strict=True):
        torch.testing.assert_close(found, value)


def test_a_third_stage_takes_the_proposals_of_the_second():
    _, second = staged()
    third = tiny_detector(**{"backbone.norm": "frozen", "separate_rpn": True})
    take_proposal_network(third, second.state_dict(), "the second")
    ours, theirs = third.state_dict(), second.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(("rpn.", "rpn_pyramid.")))
    assert not torch.equal(ours["roi.box_head.scores.weight"], theirs["roi.box_head.scores.weight"])


def test_a_proposal_network_of_another_shape_is_refused():
    other = tiny_detector(**{"backbone.norm": "frozen", "fpn_channels": 32})
    _, second = staged()
    with pytest.raises(ValueError, match=r"^the proposal network of other does not fit this detector \(.* of another"):
        take_proposal_network(second, other.state_dict(), "other")
