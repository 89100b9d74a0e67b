"""The driver of a tiny elastic training, as a program that runs on a machine of a test's cluster.

    python -m tests.clusters.training_driver DATA OUT STEPS       on the address in RAY_ADDRESS

Its workers write which pictures they trained on, and prints what came of it as JSON.
"""

import json
import sys
from pathlib import Path

import ray.train

from pipelines import launch, train_feed
from pipelines.dataset import Dataset
from pipelines.train_worker import train_worker
from tests.pipelines import tiny_run, tiny_shards


class Rows:
    """A tracker that keeps nothing."""

    def metrics(self, values, step):
        pass

    def file(self, folder, name, content):
        pass


def recording_worker(raw):
    """Train, and note the pictures of every step."""
    context = ray.train.get_context()
    out = Path(raw["job"]["config"]["out"])
    name = f"{context.get_experiment_name()}-{context.get_world_size()}-{context.get_world_rank()}"
    parts = train_feed.Feed.parts

    def recorded(feed):
        yield from parts(feed)
        with (out / f"{name}.ids").open("a") as stream:
            stream.write(json.dumps(feed.image_ids) + "\n")

    train_feed.Feed.parts = recorded
    return train_worker(raw)


def main(data, out, steps):
    execution = {"workers": 3, "min_workers": 2, "checkpoint_every": 5, "report_every": 5}
    config = tiny_run.config(Dataset(data), out, optim={"steps": steps, "batch": 6}, execution=execution)
    launch.train_worker = recording_worker
    Path(out).mkdir(parents=True, exist_ok=True)
    print(json.dumps({"steps": launch.launch(config, tiny_shards.CLASSES, Rows())}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
