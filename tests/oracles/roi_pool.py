"""RoIPool and RoIWarp as loops over bins, from the rules in words."""

import math

import torch

from tests.oracles import roi_align as align


def nearest(value):
    """Nearest whole number, halves away from zero."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


def roi_pool(features, rois, output_size, scale):
    """Features [N, C, H, W] and RoIs [R, 5] -> [R, C, h, w]: the largest cell of bins rounded outwards."""
    _, channels, height, width = features.shape
    bins_y, bins_x = output_size
    out = features.new_zeros(len(rois), channels, bins_y, bins_x)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (int(nearest(corner * scale)) for corner in corners)
        rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for by in range(bins_y):
            top, bottom = by * rows // bins_y + y1, -(-(by + 1) * rows // bins_y) + y1
            for bx in range(bins_x):
                left, right = bx * columns // bins_x + x1, -(-(bx + 1) * columns // bins_x) + x1
                top_in, bottom_in = max(top, 0), min(bottom, height)
                left_in, right_in = max(left, 0), min(right, width)
                if top_in < bottom_in and left_in < right_in:
                    cells = features[int(image), :, top_in:bottom_in, left_in:right_in]
                    out[r, :, by, bx] = cells.flatten(1).max(1).values
    return out


def samples(features, roi_cells, output_size, sampling):
    """Bilinear samples [C, h, w, sampling^2] of one RoI (image, x1, y1, x2, y2 in cells), at least one cell long."""
    image, x1, y1, x2, y2 = roi_cells
    bin_h, bin_w = max(y2 - y1, 1.0) / output_size[0], max(x2 - x1, 1.0) / output_size[1]
    out = features.new_zeros(features.shape[1], *output_size, sampling * sampling)
    for by in range(output_size[0]):
        for bx in range(output_size[1]):
            for i in range(sampling * sampling):
                y = y1 + by * bin_h + (i // sampling + 0.5) * bin_h / sampling
                x = x1 + bx * bin_w + (i % sampling + 0.5) * bin_w / sampling
                out[:, by, bx, i] = align.bilinear(features[int(image)], y, x)
    return out


def roi_align_max(features, rois, output_size, scale, sampling):
    """RoIAlign (not aligned) with the largest sample of each bin."""
    cells = [[row[0], *(corner * scale for corner in row[1:])] for row in rois.tolist()]
    return torch.stack([samples(features, roi, output_size, sampling).amax(-1) for roi in cells])


def roi_warp(features, rois, output_size, scale, sampling, mode):
    """The same of corners rounded to whole cells, with the largest sample or the average."""
    cells = [[row[0], *(nearest(corner * scale) for corner in row[1:])] for row in rois.tolist()]
    taken = torch.stack([samples(features, roi, output_size, sampling) for roi in cells])
    return taken.amax(-1) if mode == "max" else taken.mean(-1)
