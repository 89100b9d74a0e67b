"""Which pictures are held out."""

import numpy as np

from pipelines.holdout import held_out_ids

IDS = np.arange(7, 1007, dtype=np.int64)


def test_the_share_is_exact_and_the_seed_decides():
    first = held_out_ids(IDS, 0.05, 0)
    assert len(first) == 50
    assert first.tolist() == sorted(first.tolist())
    assert held_out_ids(np.random.default_rng(0).permutation(IDS), 0.05, 0).tolist() == first.tolist()
    assert len(set(first) & set(held_out_ids(IDS, 0.05, 1))) < 15
    assert set(first) <= set(held_out_ids(IDS, 0.2, 0))
    assert held_out_ids(IDS, 0.0, 0).size == 0


def test_held_out_pictures_are_spread():
    halves = held_out_ids(IDS, 0.5, 0)
    assert 200 < (halves < 507).sum() < 300
