"""A detector, a data set and a run so small that a training step takes a tenth of a second, without Ray."""

import dataclasses

import numpy as np
import torch
import torch.distributed as dist

from model.build import build_detector
from model.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    DetectorConfig,
    MaskHeadConfig,
    Norm,
    PictureConfig,
    PoolerConfig,
    RpnConfig,
)
from pipelines import checkpoints, loop, train_feed
from pipelines.config import ExecutionConfig, TrainConfig
from pipelines.dataset import Dataset
from pipelines.loop import Job
from pipelines.optim import OptimConfig, Schedule
from pipelines.train_feed import Place
from pipelines.train_state import TrainState
from tests.pipelines import tiny_pictures, tiny_shards

CPU = Place(0, 1, torch.device("cpu"))


def detector_config(norm=Norm.BATCH, **changes):
    made = DetectorConfig(
        num_classes=2,
        fpn_channels=16,
        picture=PictureConfig(short_edge_px=64, long_edge_px=96),
        backbone=BackboneConfig(depth=18, stem_channels=8, norm=norm, frozen_stages=0),
        anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 48.0, 64.0)),
        rpn=RpnConfig(samples=32, pre_nms_train=50, pre_nms_test=50, post_nms_train=30, post_nms_test=30),
        pooler=PoolerConfig(sampling_ratio=1),
        box=BoxHeadConfig(channels=32, samples=16, max_detections=10),
        mask=MaskHeadConfig(channels=16, num_convs=1),
    )
    return dataclasses.replace(made, **changes)


def scene(number):
    """A dark picture with one or two bright rectangles, their colour being their class."""
    rng = np.random.default_rng(number)
    size_hw = ((64, 64), (48, 72), (72, 48))[number % 3]
    pixels = rng.integers(0, 40, (*size_hw, 3), dtype=np.uint8)
    things = []
    for k in range(1 + number % 2):
        height, width = rng.integers(14, 24, 2)
        y, x = rng.integers(0, size_hw[0] - height), rng.integers(0, size_hw[1] - width)
        label = int(rng.integers(2))
        pixels[y : y + height, x : x + width, 2 * label] = 240
        things.append(tiny_shards.thing(10 * number + k, (x, y, x + width, y + height), label))
    return tiny_shards.record(number, things, size_hw, image=tiny_pictures.png(pixels))


def dataset(folder, shards=(5, 4), stride=1):
    """Write pictures of three aspects (all square with a stride of 3) in shards of so many rows."""
    firsts = np.cumsum([0, *shards[:-1]])
    rows = [[scene(stride * (int(first) + at)) for at in range(n)] for first, n in zip(firsts, shards, strict=True)]
    return tiny_shards.write_dataset(folder, rows)


def config(data, out, norm=Norm.BATCH, optim=None, execution=None, **changes):
    """A run of 6 steps of 4 pictures with a checkpoint every second one."""
    steps = {"learning_rate": 0.02, "batch": 4, "steps": 6, "warmup_steps": 2, "warmup_factor": 0.1, "clip_norm": 10.0}
    schedule = {"schedule": Schedule.COSINE, "milestones": ()}
    return TrainConfig(
        train=(str(data.uri),) if isinstance(data, Dataset) else tuple(part.uri for part in data),
        out=str(out),
        detector=detector_config(norm),
        optim=OptimConfig(**{**steps, **schedule, **(optim or {})}),
        execution=ExecutionConfig(**{"report_every": 1, "checkpoint_every": 2, **(execution or {})}),
        **changes,
    )


def job(run_config):
    return Job(run_config, tiny_shards.CLASSES)


def build(norm=Norm.BATCH, seed=0, **changes):
    """A tiny detector with weights fixed by the seed."""
    return build_from(detector_config(norm, **changes), seed)


def build_from(settings, seed=0):
    """The same of any configuration."""
    torch.manual_seed(seed)
    return build_detector(settings)


def as_one_of_two(rank, work, folder, *arguments):
    """One of two gloo workers: `work(place, *arguments)`, its result kept in the folder, by name of what it raised."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        result = work(Place(rank, 2, torch.device("cpu")), *arguments)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    torch.save(result, f"{folder}/rank{rank}.pt")


def fit_and_keep(place, run_config):
    """Train as one of several; weights, what was reported, and what was saved."""
    built, saves, rows = [], [], []
    write = checkpoints.write

    def write_and_count(run, made):
        saves.append(made.step)
        return write(run, made)

    def build_and_keep(detector):
        built.append(build_detector(detector))
        return built[-1]

    loop.build_detector, checkpoints.write = build_and_keep, write_and_count
    loop.fit(job(run_config), place, rows.append)
    return {"state": built[0].state_dict(), "rows": rows, "saves": saves}


def poisoned_part(part):
    """A part with numbers that are none in its first picture."""
    pixels = part.images.pixels.float()
    pixels[0, 0, :8] = float("nan")
    return part._replace(images=part.images._replace(pixels=pixels))


def fit_with_a_bad_picture(place, run_config, step):
    """Train; the second worker's pictures of a step hold a number that is none."""
    given, parts = [], train_feed.Feed.parts

    def poisoned(feed):
        given.append(feed)
        for part in parts(feed):
            yield poisoned_part(part) if len(given) == step and place.rank == 1 else part

    train_feed.Feed.parts = poisoned
    rows = []
    loop.fit(job(run_config), place, rows.append)
    return rows


def fit_with_a_bad_gradient(place, run_config, step):
    """Train; in one step the second worker's gradient is no number, though its losses are."""
    built, stepped = loop.build_detector, TrainState.step

    def build_and_hook(detector):
        made = built(detector)
        weight = made.rpn.head.convs[0].weight
        weight.register_hook(lambda gradient: gradient * (float("nan") if weight.spoilt else 1.0))
        weight.spoilt = False
        return made

    def counted(state, *arguments):
        state.steps_begun = getattr(state, "steps_begun", 0) + 1
        state.detector.rpn.head.convs[0].weight.spoilt = place.rank == 1 and state.steps_begun == step
        return stepped(state, *arguments)

    loop.build_detector, TrainState.step = build_and_hook, counted
    rows = []
    loop.fit(job(run_config), place, rows.append)
    return rows


def fit_on_a_machine_that_computes_wrongly(place, run_config, step):
    """Train; the second worker's weights change by one bit after a step."""
    stepped, done = TrainState.step, []

    def drifting(state, *arguments):
        outcome = stepped(state, *arguments)
        done.append(outcome)
        if len(done) == step and place.rank == 1:
            with torch.no_grad():
                state.detector.rpn.head.convs[0].weight[0, 0, 0, 0] *= 1 + 2**-20
        return outcome

    TrainState.step = drifting
    loop.fit(job(run_config), place, lambda row: None)
