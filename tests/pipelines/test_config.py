"""Run settings, and how a batch is divided among training sets."""

import dataclasses
import itertools
from fractions import Fraction

import pytest

from model.config import DetectorConfig
from model.settings import from_dict, override, to_dict
from pipelines.config import EvaluationConfig, ExecutionConfig, Precision, TrainConfig, batch_shares
from pipelines.optim import Algorithm, OptimConfig


def largest_remainders(batch, weights):
    """Hamilton's method in fractions; who is due less than one gets one, and the others divide what is left."""
    quotas = {i: Fraction(batch * weight, sum(weights.values())) for i, weight in weights.items()}
    poor = {i: 1 for i, quota in quotas.items() if quota < 1}
    if poor:
        others = {i: weight for i, weight in weights.items() if i not in poor}
        return poor | largest_remainders(batch - len(poor), others)
    shares = {i: int(quota) for i, quota in quotas.items()}
    for i in sorted(quotas, key=lambda i: (shares[i] - quotas[i], i))[: batch - sum(shares.values())]:
        shares[i] += 1
    return shares


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_shares_of_a_batch(parts):
    sizes = [1, 2, 3, 5, 95, 150, 155]
    for weights in itertools.product(sizes, repeat=parts):
        for batch in (1, 2, 3, 4, 7, 8, 16):
            if batch < parts:
                continue
            shares = batch_shares(batch, weights)
            assert sum(shares) == batch
            assert min(shares) >= 1
            wanted = largest_remainders(batch, dict(enumerate(weights)))
            assert shares == tuple(wanted[i] for i in range(parts))
            for (share, weight), (other, more) in itertools.combinations(zip(shares, weights, strict=True), 2):
                assert (share - other) * (weight - more) >= 0  # the larger set never gets less


@pytest.mark.parametrize(
    ("batch", "weights", "shares"),
    [
        (10, (6, 4), (6, 4)),
        (8, (6, 4), (5, 3)),
        (16, (118_287, 123_403), (8, 8)),
        (4, (1_000_000, 1), (3, 1)),
        (4, (95, 150, 155), (1, 1, 2)),
        (3, (1, 1, 1), (1, 1, 1)),
    ],
)
def test_shares_by_hand(batch, weights, shares):
    assert batch_shares(batch, weights) == shares


def test_a_batch_smaller_than_its_parts_is_refused():
    with pytest.raises(ValueError, match="a batch of 2 cannot hold a picture of each of 3 training sets"):
        batch_shares(2, (1, 1, 1))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train": ("a",), "ratio": (1, 2)}, r"ratio needs a number >= 1 for each of the 1 training sets"),
        ({"train": ("a", "b"), "ratio": (1, 0)}, r"ratio needs a number >= 1 .* got \(1, 0\)"),
        (
            {"optim": OptimConfig(batch=5), "execution": ExecutionConfig(workers=2, accumulate=3)},
            r"batch \(5\) must give each of execution\.workers \(2\) x execution\.accumulate \(3\) parts a picture: "
            "use at least 6",
        ),
    ],
)
def test_runs_that_do_not_add_up(changes, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(**changes)


def test_an_elastic_run_needs_no_more_than_it_has():
    with pytest.raises(ValueError, match=r"min_workers \(3\) must not exceed execution\.workers \(2\)"):
        ExecutionConfig(workers=2, min_workers=3)
    with pytest.raises(ValueError, match=r"hang_timeout_s must be > 0, got 0"):
        ExecutionConfig(hang_timeout_s=0)


@pytest.mark.parametrize("name", ["every", "patience", "cpus"])
def test_evaluation_settings_of_at_least_zero(name):
    with pytest.raises(ValueError, match=rf"evaluation\.{name} must be >= 0, got -1"):
        EvaluationConfig(**{name: -1})


@pytest.mark.parametrize("name", ["workers", "cpus_per_worker", "accumulate", "report_every", "checkpoint_every"])
def test_execution_settings_of_at_least_one(name):
    with pytest.raises(ValueError, match=rf"execution\.{name} must be >= 1, got 0"):
        ExecutionConfig(**{name: 0})


@pytest.mark.parametrize(
    "name", ["loader_processes", "loader_actors", "max_failures", "min_workers", "keep_checkpoints", "wait_for_nodes_s"]
)
def test_execution_settings_of_at_least_zero(name):
    with pytest.raises(ValueError, match=rf"execution\.{name} must be >= 0, got -1"):
        ExecutionConfig(**{name: -1})
    ExecutionConfig(**{name: 0})


def test_the_identity_is_what_the_result_depends_on():
    base = TrainConfig(train=("a",), out="o")
    same = [
        {"out": "p"},
        {"train": ("b",)},  # the data's hashes are the run's identity, not their place
        {"val": "v"},
        {"tracking_uri": "t"},
        {"execution": ExecutionConfig(workers=4, loader_processes=2, accumulate=2)},
        {"evaluation": EvaluationConfig(every=5)},
        {"init": "c"},  # the hash of the first weights is, as that of the data
        {"optim": OptimConfig(max_skipped=7)},
    ]
    assert all(dataclasses.replace(base, **change).identity() == base.identity() for change in same)
    for path, value in [
        ("seed", 1),
        ("shuffle_window", 3),
        ("precision", Precision.BF16),
        ("deterministic", True),
        ("optim.ema_decay", 0.9),
        ("ratio", (2,)),
        ("optim.steps", 7),
        ("optim.batch", 4),
        ("optim.algorithm", Algorithm.ADAMW),
        ("augment.flip", 0.25),
        ("detector.num_classes", 3),
        ("detector.rpn.nms_iou", 0.6),
    ]:
        assert override(base, path, value).identity() != base.identity(), path


def test_a_run_survives_plain_values():
    config = TrainConfig(train=("a", "b"), ratio=(6, 4), precision=Precision.BF16, optim=OptimConfig(milestones=(3, 5)))
    assert from_dict(TrainConfig, to_dict(config)) == config


def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="tracking_uri holds a password, which would be logged") as refused:
        TrainConfig(tracking_uri="http://me:geheim@mlflow:5000")
    assert "geheim" not in str(refused.value)


def test_the_best_checkpoint_is_chosen_by_masks_where_there_are_masks():
    assert TrainConfig().metric == "mask/AP"
    assert TrainConfig(detector=override(DetectorConfig(), "mask.enabled", False)).metric == "box/AP"
    assert TrainConfig(evaluation=EvaluationConfig(metric="box/AP50")).metric == "box/AP50"
