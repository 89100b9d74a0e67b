"""Full-size float32 pastes of M x M probabilities, by the two rules of mask_rle, one step at a time."""

import numpy as np

F = np.float32


def _sample_weights(low, high, cells, pixels):
    """Matrix [pixels, cells] of the grid_sample rule along one axis."""
    weights = np.zeros((pixels, cells), F)
    for i in range(pixels):
        across = (F(i) + F(0.5) - low) / (high - low) * F(2) - F(1)
        at = ((across + F(1)) * F(cells) - F(1)) / F(2)
        cell = int(np.floor(at))
        rest = at - np.floor(at)
        if 0 <= cell < cells:
            weights[i, cell] = F(1) - rest
        if 0 <= cell + 1 < cells:
            weights[i, cell + 1] = rest
    return weights


def _resize_weights(low, high, cells, pixels):
    """Matrix [pixels, cells] of torchvision's rule along one axis."""
    padded = cells + 2
    half = (high - low) * F(0.5) * F(padded / cells)
    centre = (high + low) * F(0.5)
    first, last = int(centre - half), int(centre + half)
    length = max(last - first + 1, 1)
    weights = np.zeros((pixels, padded), F)
    for i in range(max(first, 0), min(last + 1, pixels)):
        at = max(F(padded) / F(length) * (F(i - first) + F(0.5)) - F(0.5), F(0))
        cell = min(int(at), padded - 1)
        rest = F(0) if length == padded else at - F(cell)
        weights[i, cell] += F(1) - rest
        weights[i, min(cell + 1, padded - 1)] += rest
    return weights[:, 1:-1]


def _interpolate(values, weights):
    """Rows of `values` [cells, ...] mixed by at most two weights each, low cell first."""
    out = np.zeros((len(weights), *values.shape[1:]), F)
    for i, row in enumerate(weights):
        for cell in np.nonzero(row)[0]:
            out[i] = out[i] + values[cell] * row[cell]
    return out


def paste(probs, box, size_hw, padded):
    """Probabilities [M, M] in `box` of a picture: float32 [H, W], along x first, then along y."""
    axis = _resize_weights if padded else _sample_weights
    cells = len(probs)
    box = box.astype(F)
    columns = axis(box[0], box[2], cells, size_hw[1])
    rows = axis(box[1], box[3], cells, size_hw[0])
    along_x = _interpolate(probs.astype(F).T, columns).T
    return _interpolate(along_x, rows)
