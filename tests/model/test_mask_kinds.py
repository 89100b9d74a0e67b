"""The mask head's other kinds: perceptron, softmax over classes, one mask for all classes, normalised, chained."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from model.config import MaskActivation, MaskHeadConfig, MaskKind, Norm
from model.heads.mask import MaskHead, build_mask_head, mask_loss, mask_probabilities
from tests.model.test_heads import CLASSES, loss_of, mask_case, sampled

SOFTMAX = MaskHeadConfig(activation=MaskActivation.SOFTMAX)
AGNOSTIC = MaskHeadConfig(class_agnostic=True)


def wanted_mask(whole, roi):
    """The binary target of one RoI on a full mask."""
    box = torch.cat([torch.zeros(1), roi])[None]
    return roi_align(whole.float()[None, None], box, 14, 1.0, -1, aligned=True)[0, 0] >= 0.5


def softmax_case(seed=0):
    *case, _ = mask_case(seed)
    logits = torch.randn(8, CLASSES + 1, 14, 14, generator=torch.Generator().manual_seed(seed + 5)).requires_grad_()
    return *case, logits


def test_softmax_loss_equals_the_loop_over_cells():
    whole, packed, rois, objects, labels, logits = softmax_case()
    positive = torch.tensor([[True, True, False, False], [True, False, False, False]])
    total, cells = 0.0, 0
    for b, r in positive.nonzero().tolist():
        inside = wanted_mask(whole[b, objects[b, r]], rois[b, r])
        for i in range(14):
            for j in range(14):
                own = logits[4 * b + r, :, i, j].double()
                label = int(labels[b, r]) if inside[i, j] else CLASSES  # background comes last
                total += (own.logsumexp(0) - own[label]).item()
                cells += 1
    found = loss_of(logits, rois, objects, labels, positive, packed, SOFTMAX)
    assert found.item() == pytest.approx(total / cells, rel=1e-5)
    found.backward()
    assert [r for r in range(8) if logits.grad[r].any()] == [0, 1, 4]


def test_softmax_probabilities_are_of_the_own_class_among_all():
    logits = torch.randn(3, CLASSES + 1, 14, 14, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 0, 2])
    found = mask_probabilities(logits, labels, SOFTMAX)
    for r, label in enumerate(labels.tolist()):
        torch.testing.assert_close(found[r], logits[r].exp()[label] / logits[r].exp().sum(dim=0))


def test_one_mask_for_all_classes_learns_from_each():
    whole, packed, rois, objects, labels, _ = mask_case()
    logits = torch.randn(8, 1, 14, 14, generator=torch.Generator().manual_seed(1)).requires_grad_()
    positive = torch.tensor([[True, True, False, False], [True, False, False, False]])
    terms = [
        F.binary_cross_entropy_with_logits(
            logits[4 * b + r, 0], wanted_mask(whole[b, objects[b, r]], rois[b, r]).float()
        )
        for b, r in positive.nonzero().tolist()
    ]
    found = loss_of(logits, rois, objects, labels, positive, packed, AGNOSTIC)
    torch.testing.assert_close(found, torch.stack(terms).mean())
    torch.testing.assert_close(
        mask_probabilities(logits, torch.tensor([4] * 8), AGNOSTIC), logits.detach()[:, 0].sigmoid()
    )


@pytest.mark.parametrize("config", [MaskHeadConfig(), SOFTMAX], ids=["sigmoid", "softmax"])
def test_weights_scale_each_roi_s_share(config):
    _, packed, rois, objects, labels, logits = softmax_case()
    positive = torch.tensor([[True, True, False, False], [True, False, False, False]])
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.where(positive, labels, CLASSES)
    given = sampled(rois, labels, torch.zeros_like(rois), positive, torch.ones_like(positive), objects)
    total = 0.0
    for b, r in positive.nonzero().tolist():
        alone = torch.zeros_like(positive)
        alone[b, r] = True
        total += weights[b, r] * loss_of(logits, rois, objects, labels, alone, packed, config)
    found = mask_loss(logits, given._replace(weights=weights), packed, config)
    torch.testing.assert_close(found, total / 3)


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        pytest.param(MaskHeadConfig(), CLASSES, id="sigmoid"),
        pytest.param(SOFTMAX, CLASSES + 1, id="softmax"),
        pytest.param(AGNOSTIC, 1, id="agnostic"),
    ],
)
@pytest.mark.parametrize("kind", MaskKind)
def test_a_head_has_a_channel_a_class(config, channels, kind):
    config = MaskHeadConfig(**{**vars(config), "kind": kind, "channels": 4, "hidden_channels": 10})
    head = build_mask_head(6, 7, CLASSES, config)
    assert head(torch.zeros(3, 6, 7, 7)).shape == (3, channels, 14, 14)


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
def test_a_perceptron_is_its_layers_in_the_order_channel_row_column(hidden_layers):
    config = MaskHeadConfig(kind=MaskKind.MLP, hidden_layers=hidden_layers, hidden_channels=10)
    torch.manual_seed(0)
    head = build_mask_head(6, 7, CLASSES, config)
    assert len(head.fcs) == hidden_layers
    crops = torch.randn(3, 6, 7, 7).contiguous(memory_format=torch.channels_last)
    hidden = torch.stack([crop.contiguous().flatten() for crop in crops])
    for layer in head.fcs:
        hidden = (hidden @ layer.weight.T + layer.bias).relu()
    out = (hidden @ head.logits.weight.T + head.logits.bias).reshape(3, CLASSES, 14, 14)
    torch.testing.assert_close(head(crops), out)


@pytest.mark.parametrize("norm", [Norm.BATCH, Norm.GROUP])
def test_padding_does_not_move_a_normalised_head(norm):
    torch.manual_seed(0)
    config = MaskHeadConfig(channels=4, num_convs=2, norm=norm)
    one, other = MaskHead(6, CLASSES, config), MaskHead(6, CLASSES, config)
    other.load_state_dict(one.state_dict())
    crops, valid = torch.randn(5, 6, 7, 7), torch.tensor([True, True, True, False, False])
    torch.testing.assert_close(one(crops, valid)[:3], other(crops[:3], valid[:3]))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def test_what_flows_from_the_head_before_is_added_to_the_crop():
    torch.manual_seed(0)
    config = MaskHeadConfig(channels=4, num_convs=2)
    first, second = MaskHead(6, CLASSES, config), MaskHead(6, CLASSES, config, takes_flow=True)
    crops = torch.randn(3, 6, 7, 7)
    flow = first.features(crops)
    joined = crops + F.conv2d(flow, second.flow.weight, second.flow.bias).relu()
    torch.testing.assert_close(second.features(crops, flow=flow), second.features(joined))
    torch.testing.assert_close(second(crops), second.upsample(second.features(crops)))
    assert first.flow is None
