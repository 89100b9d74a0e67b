"""A training step uses no operator that has no deterministic form on a GPU."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.test_cascade import SEMANTIC, batch_of
from tests.model.tiny_batch import tiny_batch, tiny_detector

# torch.use_deterministic_algorithms names those that raise; torchvision's own gradients say so in their sources.
WITHOUT = (
    "aten._adaptive_avg_pool2d", "aten.adaptive_max_pool2d", "aten.avg_pool3d", "aten.nll_loss2d", "aten.put_",
    "aten.histc", "aten.kthvalue", "aten.median", "aten.grid_sampler", "aten.reflection_pad", "aten.replication_pad",
    "aten.upsample_bicubic2d", "aten.upsample_linear1d", "torchvision.roi_pool", "torchvision.deform_conv2d",
    "torchvision._roi_pool", "torchvision._deform_conv2d",
)  # fmt: skip


class Recorded(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.names.add(str(operator))
        return operator(*arguments, **(keywords or {}))


def used(detector, batch):
    with Recorded() as recorded:
        sum(detector.losses(*batch).values()).backward()
    return sorted(name for name in recorded.names if name.startswith(WITHOUT))


@pytest.mark.parametrize(
    ("settings", "batch"),
    [({}, tiny_batch), ({"mask.activation": "softmax"}, tiny_batch), (SEMANTIC, batch_of)],
    ids=["mask", "softmax", "htc"],
)
def test_every_operator_has_a_deterministic_form(settings, batch):
    assert used(tiny_detector(**settings), batch(0)) == []


def test_the_check_finds_one_that_has_none():
    assert used(tiny_detector(**{"pooler.operation": "pool", "pooler.reduction": "max"}), tiny_batch(0))
