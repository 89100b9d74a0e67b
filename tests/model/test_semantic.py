"""The semantic branch of HTC: the fused map and its loss, against loops."""

import pytest
import torch
from torch.nn import functional as F

from model.config import SemanticHeadConfig
from model.heads.semantic import SemanticHead

SIZES = ((24, 40), (12, 20), (6, 10), (3, 5), (2, 3))
CLASSES = 4


def levels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, *size, generator=generator) for size in SIZES]


def head(**changes):
    torch.manual_seed(0)
    config = SemanticHeadConfig(**{"enabled": True, "num_classes": CLASSES, "channels": 8, "num_convs": 2, **changes})
    return SemanticHead(6, len(SIZES), config)


def aligned_resize(map_, size):
    """Bilinear with corner on corner, cell by cell."""
    rows, columns = map_.shape[-2:]
    out = torch.zeros(*map_.shape[:2], *size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * (rows - 1) / (size[0] - 1), j * (columns - 1) / (size[1] - 1)
            y0, x0 = min(int(y), rows - 1), min(int(x), columns - 1)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            top = map_[..., y0, x0] * (1 - (x - x0)) + map_[..., y0, x1] * (x - x0)
            bottom = map_[..., y1, x0] * (1 - (x - x0)) + map_[..., y1, x1] * (x - x0)
            out[..., i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


@pytest.mark.parametrize("fusion_level", [0, 1, 4])
def test_levels_are_resized_to_one_and_summed(fusion_level):
    branch, maps = head(fusion_level=fusion_level), levels()
    fused = sum(
        lateral(aligned_resize(map_, SIZES[fusion_level])).relu()
        for lateral, map_ in zip(branch.lateral, maps, strict=True)
    )
    for conv in branch.convs:
        fused = F.conv2d(fused, conv.weight, conv.bias, padding=1).relu()
    logits, embedding = branch(maps)
    torch.testing.assert_close(logits, branch.logits(fused), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedding, branch.embedding(fused).relu(), rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, CLASSES, *SIZES[fusion_level])


@pytest.mark.parametrize("num_convs", [0, 3])
def test_the_number_of_convolutions_is_a_setting(num_convs):
    branch = head(num_convs=num_convs)
    logits, embedding = branch(levels())
    assert len(branch.convs) == num_convs
    assert (logits.shape[1], embedding.shape[1]) == (CLASSES, 8)


def semantic_map(height=96, width=160, seed=0):
    values = torch.randint(0, CLASSES, (2, height, width), generator=torch.Generator().manual_seed(seed))
    values[:, : height // 4] = 255
    return values.to(torch.uint8)


# P6 of a side of 96 or 160 px has 2 or 3 cells of 64 px: the last reaches beyond the picture.
@pytest.mark.parametrize(("fusion_level", "ignore_label"), [(1, 255), (1, 0), (0, 3), (4, 255)])
def test_loss_equals_the_loop(fusion_level, ignore_label):
    branch = head(fusion_level=fusion_level, ignore_label=ignore_label)
    rows, columns = SIZES[fusion_level]
    stride = 4 * 2**fusion_level
    logits = torch.randn(2, CLASSES, rows, columns, generator=torch.Generator().manual_seed(3)).requires_grad_()
    semantic = semantic_map()
    total, learned = 0.0, 0
    for b in range(2):
        for i in range(rows):
            for j in range(columns):
                label = int(semantic[b, i * stride, j * stride])
                if label not in (255, ignore_label):
                    total += (logits[b, :, i, j].logsumexp(0) - logits[b, label, i, j]).item()
                    learned += 1
    assert 0 < learned < 2 * rows * columns
    loss = branch.loss(logits, semantic)
    assert loss.item() == pytest.approx(0.2 * total / (2 * rows * columns), rel=1e-5)
    loss.backward()
    assert int(logits.grad.any(dim=1).sum()) == learned


def test_a_map_of_which_nothing_is_known_teaches_nothing():
    branch = head()
    logits = torch.randn(2, CLASSES, *SIZES[1]).requires_grad_()
    loss = branch.loss(logits, torch.full((2, 96, 160), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
