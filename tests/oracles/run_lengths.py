"""COCO run lengths, one character and one pixel at a time: slow, obvious, sharing nothing with the code."""

import numpy as np


def parse(text):
    """Runs of a compressed string, or None where it is not one."""
    runs, at = [], 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(text) or not 48 <= text[at] <= 111 or shift >= 35:
                return None
            symbol = text[at] - 48
            value |= (symbol & 31) << shift
            more = bool(symbol & 32)
            shift += 5
            at += 1
            if not more and symbol & 16:
                value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
    return runs


def paint(runs, height, width):
    """The bitmap of runs, or None where they do not fit."""
    if not runs or min(runs) < 0 or sum(runs) != height * width:
        return None
    mask = np.zeros((height, width), np.uint8)
    at = 0
    for position, run in enumerate(runs):
        for pixel in range(at, at + run):
            mask[pixel % height, pixel // height] = position % 2
        at += run
    return mask
