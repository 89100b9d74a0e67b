"""The fast judge of many run lengths agrees with the careful one of each."""

import numpy as np

from pipelines import masks
from pipelines.run_lengths import areas


def careful(text, height, width):
    try:
        return masks.area(text) if masks.validate_rle(text, height, width) == text else -1
    except masks.MaskError:
        return -1


def sound(count, rng, height=48, width=64):
    made = []
    for _ in range(count):
        blocks = rng.random((height // 4, width // 4)) < rng.random() ** 2
        bitmap = np.kron(blocks, np.ones((4, 4))).astype(np.uint8)
        made.append(masks.encode(bitmap))
    return made


def test_sound_ones_pass_and_mutated_ones_get_the_careful_verdict():
    rng = np.random.default_rng(0)
    texts = sound(300, rng)
    assert areas(texts, np.full(300, 48 * 64)).tolist() == [masks.area(text) for text in texts]
    assert (areas(texts, np.full(300, 48 * 63)) == -1).all()
    mutated = []
    for text in texts * 10:
        raw = bytearray(text)
        for _ in range(rng.integers(1, 4)):
            kind, at = rng.integers(4), rng.integers(max(len(raw), 1))
            if kind == 0 and raw:
                raw[at] = rng.integers(40, 120)
            elif kind == 1:
                raw.insert(at, rng.integers(48, 112))
            elif kind == 2 and raw:
                del raw[at]
            elif raw:
                raw[at] ^= 1 << int(rng.integers(7))
        mutated.append(bytes(raw))
    verdict = areas(mutated, np.full(len(mutated), 48 * 64))
    assert verdict.tolist() == [careful(text, 48, 64) for text in mutated]
    assert 0 < (verdict >= 0).sum() < len(mutated)


def test_neighbours_do_not_matter():
    """Each string alone and among bad ones gets the same verdict."""
    rng = np.random.default_rng(1)
    good = sound(40, rng)
    mixed = [b"", b"\xff" * 9, b"o" * 50, b"0", b"P", *good, b"ooooooo1", good[0] + b"o"]
    pixels = np.full(len(mixed), 48 * 64)
    alone = [int(areas([text], pixels[:1])[0]) for text in mixed]
    assert areas(mixed, pixels).tolist() == alone
    assert sum(area >= 0 for area in alone) == 40


def test_nothing_and_very_much():
    assert areas([], np.zeros(0, np.int64)).tolist() == []
    text = masks.encode((np.random.default_rng(2).random((600, 800)) < 0.5).astype(np.uint8))
    assert len(text) > 200_000
    assert set(areas([text] * 12, np.full(12, 480_000)).tolist()) == {masks.area(text)}  # more than one piece
