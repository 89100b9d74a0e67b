"""Pseudo-labels at several score floors, made before the trials that compare them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pipelines import distill, storage
from pipelines.distill_config import DistillConfig
from pipelines.ray_session import ray_session
from pipelines.tune_config import TuneConfig

_FOLDER = "floors"
Say = Callable[[str], None]


def with_floors(config: TuneConfig, say: Say) -> TuneConfig:
    """The sweep with a pseudo-labelled training set for each of its floors; made once, in the sweep's folder.

    Args:
        config: of the sweep; without floors it stays as it is.
        say: takes a line for people on each floor.

    Raises:
        ValueError: predictions, pool and labelled set do not belong together, or a floor keeps nothing.
    """
    if not config.floors:
        return config
    made = []
    with ray_session(config.address or None, dashboard=True):
        for floor in config.floors:
            out = storage.child_uri(storage.canonical_uri(config.out), _FOLDER, f"min-score-{floor:g}")
            distill.run(
                DistillConfig(
                    predictions=config.predictions, pool=config.pool, labelled=config.train[0], out=out,
                    val=config.val, min_score=floor,
                )
            )  # fmt: skip
            say(f"pseudo-labels with scores of {floor:g} and more: {out}")
            made.append(out)
    return dataclasses.replace(config, train=(config.train[0], *made), floors=())
