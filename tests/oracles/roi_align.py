"""RoIAlign as four nested loops in float64: every bin, every sample, every corner."""

import math

import torch


def bilinear(image, y, x):
    """Value [C] of image [C, H, W] at (y, x) in cells; zeros more than one cell outside, or at NaN."""
    _, height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(image), dtype=image.dtype)
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = min(y - y0, 1.0) if y1 > y0 else 0.0, min(x - x0, 1.0) if x1 > x0 else 0.0
    top = image[:, y0, x0] * (1 - dx) + image[:, y0, x1] * dx
    bottom = image[:, y1, x0] * (1 - dx) + image[:, y1, x1] * dx
    return top * (1 - dy) + bottom * dy


def samples_per_bin(bin_size, sampling_ratio):
    """How many samples along one axis of a bin."""
    if sampling_ratio > 0:
        return sampling_ratio
    return max(math.ceil(bin_size), 0) if math.isfinite(bin_size) else 0


def roi_align(features, rois, output_size, scale, sampling_ratio, aligned):
    """Features [N, C, H, W] and RoIs [R, 5] -> [R, C, h, w], float64."""
    features, rois = features.double(), rois.double()
    height, width = output_size
    out = features.new_zeros(len(rois), features.shape[1], height, width)
    shift = 0.5 if aligned else 0.0
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        sides = (y2 - y1, x2 - x1)
        if not aligned:
            sides = tuple(side if math.isnan(side) else max(side, 1.0) for side in sides)
        bin_h, bin_w = sides[0] / height, sides[1] / width
        num_y, num_x = samples_per_bin(bin_h, sampling_ratio), samples_per_bin(bin_w, sampling_ratio)
        for by in range(height):
            for bx in range(width):
                for iy in range(num_y):
                    for ix in range(num_x):
                        y = y1 + by * bin_h + (iy + 0.5) * bin_h / num_y
                        x = x1 + bx * bin_w + (ix + 0.5) * bin_w / num_x
                        out[r, :, by, bx] += bilinear(features[int(image)], y, x)
                out[r, :, by, bx] /= max(num_y * num_x, 1)
    return out
