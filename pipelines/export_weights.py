"""The export-weights command: a checkpoint becomes a weight file of torchvision, Detectron2 or MMDetection."""

import dataclasses
import io
import json
import pickle
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import to_bytes
from model.convert import Framework, to_theirs
from model.settings import to_dict
from pipelines import checkpoints, commit, starting_weights, storage
from pipelines.checkpoints import Checkpoint

_ENDINGS = {
    Framework.TORCHVISION: (".pth", ".safetensors"),
    Framework.DETECTRON2: (".pkl", ".pth", ".safetensors"),
    Framework.MMDETECTION: (".pth", ".safetensors"),
}


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Write a checkpoint's weights as another framework's, under its names and in its orders.

    Attributes:
        checkpoint: a checkpoint, or a training run (its latest checkpoint).
        to: whose weights to write.
        out: file or URI to write; .pth, .safetensors, or .pkl (Detectron2).
    """

    checkpoint: str
    to: Framework | None = None
    out: str = ""


def run(config: ExportConfig) -> int:
    """Convert and write; the number of tensors written.

    Raises:
        ValueError: a framework or file that is not given, a part that the framework's detectors lack, no checkpoint, or
            a file that exists already.
        OSError: the store failed.
    """
    if config.to is None:
        raise ValueError(f"export-weights needs --to: one of {', '.join(f.value for f in Framework)}")
    endings = _ENDINGS[config.to]
    if not config.out.endswith(endings):
        got = repr(config.out) if config.out else "none"
        raise ValueError(f"--out for {config.to.value} must be a file that ends in {' or '.join(endings)}, got {got}")
    checkpoint = checkpoints.load(config.checkpoint)
    ours = checkpoints.load_detector(checkpoint).state_dict()
    state = to_theirs(ours, config.to, starting_weights.load_remainder(checkpoint))
    state = {name: value.detach().contiguous() for name, value in state.items()}
    filesystem, path = storage.open_uri(config.out)
    commit.write_file(filesystem, path, _file(state, config.to, checkpoint, PurePosixPath(path).suffix), exclusive=True)
    return len(state)


def _file(state: dict[str, Tensor], framework: Framework, checkpoint: Checkpoint, ending: str) -> bytes:
    settings = json.dumps(to_dict(checkpoint.detector))
    if ending == ".safetensors":
        return to_bytes(state, {"format": "pt", "maskray": settings})
    names = [info.name for info in checkpoint.classes]
    content: Any = state
    if framework is Framework.DETECTRON2:
        content = {"model": state, "__author__": "maskray", "maskray": settings}
    elif framework is Framework.MMDETECTION:
        meta = {"CLASSES": names, "dataset_meta": {"classes": names}, "maskray": settings}
        content = {"state_dict": state, "meta": meta}
    if ending == ".pkl":
        content["model"] = {name: value.numpy() for name, value in state.items()}
        return pickle.dumps(content, protocol=4)
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
