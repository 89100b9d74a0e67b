"""Greedy non-maximum suppression as two loops in float32."""

import numpy as np

F = np.float32


def iou(a, b):
    """Overlap of two boxes x1, y1, x2, y2 in float32."""
    width = max(F(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(F(0), min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return inter / (area_b + area_a - inter)


def nms(boxes, scores, groups, valid, threshold):
    """Keep mask of one image: boxes [N, 4], scores, groups and valid [N]."""
    boxes = boxes.astype(F)
    keep = np.zeros(len(boxes), bool)
    for i in sorted(np.nonzero(valid)[0], key=lambda i: (-scores[i], i)):
        rivals = [j for j in np.nonzero(keep)[0] if groups[j] == groups[i]]
        # The overlap as float64: numpy 2 would round the threshold to float32 instead, which torchvision does not.
        keep[i] = not any(float(iou(boxes[j], boxes[i])) > threshold for j in rivals)
    return keep
