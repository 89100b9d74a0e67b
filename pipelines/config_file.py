"""A training run's settings as a file: what sweeps write and `maskray train --config` reads."""

import json

from model.settings import from_dict
from pipelines import storage
from pipelines.config import TrainConfig


def load(uri: str) -> TrainConfig:
    """The run of a JSON file of settings; what it does not name keeps its default.

    Raises:
        ValueError: no such file, not JSON, or settings that are none.
    """
    filesystem, path = storage.open_uri(uri)
    try:
        values = json.loads(storage.read_bytes(filesystem, path))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {uri}: give the best.json of a sweep") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {uri} ({error}): give a JSON file of settings") from error
    if not isinstance(values, dict):
        raise ValueError(f"{uri} holds {type(values).__name__}, wanted an object of settings: give a sweep's best.json")
    try:
        return from_dict(TrainConfig, values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{uri} cannot be used: {error.args[0] if error.args else error}") from error
