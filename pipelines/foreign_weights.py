"""Weight files of other frameworks: .pth, .pkl and .safetensors, told apart by their first bytes; only arrays are read.

No file can run code here: torch's files are loaded with its weights-only reader and nothing else, pickles of arrays
with `array_pickle`, and what either refuses is refused.
"""

import dataclasses
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import from_bytes
from pipelines import array_pickle, storage

# The protocol 2 pickle of the number that begins every torch file written before torch 1.6.
_OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_MAX_HEADER = 100_000_000
_PREFIXES = ("module.", "model.")


class WeightsError(ValueError):
    """A weight file that cannot be read, in one line."""


@dataclasses.dataclass(frozen=True)
class ForeignWeights:
    """What a weight file holds.

    Attributes:
        uri: where it is.
        state: its parameters and buffers, float ones as float32.
        metadata: what else it holds, plain values only.
        sha256: of the file.
        notices: one line for each thing a reader should know.
    """

    uri: str
    state: dict[str, Tensor]
    metadata: Mapping[str, Any]
    sha256: str
    notices: tuple[str, ...]


def read(uri: str) -> ForeignWeights:
    """The weights in a file.

    Raises:
        WeightsError: there is no such file, it is damaged, not of these formats, or holds anything but arrays.
    """
    filesystem, path = storage.open_uri(uri)
    try:
        data = storage.read_bytes(filesystem, path)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file {uri}: give weights as .pth, .pkl or .safetensors") from error
    except OSError as error:
        raise WeightsError(f"cannot read {uri} ({error}): give weights as .pth, .pkl or .safetensors") from error
    content, metadata = _content(data, uri)
    named, rest = _state_dict(content, uri)
    state, notices = _checked(named, uri)
    return ForeignWeights(uri, state, {**metadata, **rest}, hashlib.sha256(data).hexdigest(), tuple(notices))


def _content(data: bytes, uri: str) -> tuple[Any, dict[str, Any]]:
    """The object in the file, and the metadata that its format keeps apart."""
    # First: a safetensors file begins with the length of its header, whose lowest byte can be any other format's first.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _load_safetensors(data, uri)
    if data.startswith(b"PK\x03\x04"):
        _check_archive(data, uri)
        return _load_torch(data, uri), {}
    if data.startswith(_OLD_TORCH):
        return _load_torch(data, uri), {}
    if data.startswith(b"\x80"):
        try:
            return array_pickle.loads(data), {}
        except array_pickle.PickleError as error:
            raise WeightsError(f"{uri} is a pickle that cannot be read: {error}") from error
    if len(data) > 9 and data[8:9] == b"{":
        return _load_safetensors(data, uri)
    shown = data[:4].hex(" ") or "nothing"
    raise WeightsError(
        f"{uri} begins with {shown}, which is no weight file: give a torch .pth, a Detectron2 .pkl or a .safetensors"
    )


def _check_archive(data: bytes, uri: str) -> None:
    """Refuse archives that unpack to more than they are: torch stores its tensors as they are."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise WeightsError(f"{uri} is a damaged archive ({error}): copy or download it again") from error
    if unpacked > len(data):
        raise WeightsError(
            f"{uri} unpacks from {len(data)} to {unpacked} bytes, wanted a file of torch, which is not compressed: "
            "save the weights again with torch.save"
        )


def _load_torch(data: bytes, uri: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {names[0]}" if names else f"is damaged ({_first_line(error)})"
        raise WeightsError(
            f"{uri} {what}: only tensors and plain values are read, and nothing was run; keep the state dict alone "
            "(for MMDetection state_dict and meta, for Detectron2 model) and save it again"
        ) from error
    except Exception as error:  # whatever a hostile file makes torch's reader stumble over
        raise WeightsError(f"{uri} is damaged ({type(error).__name__}: {_first_line(error)}): copy it again") from error


def _load_safetensors(data: bytes, uri: str) -> tuple[Any, dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER, len(data) - 8):
        raise WeightsError(f"{uri} claims a header of {length} bytes and has {len(data)} in all: it is damaged")
    try:
        state = from_bytes(data)
        return state, dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{uri} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _state_dict(content: Any, uri: str) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """The state dict, and what else a checkpoint holds beside it."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{uri} holds a {type(content).__name__}, wanted a state dict: save model.state_dict()")
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            rest = {key: value for key, value in content.items() if key in ("meta", "__author__", "maskray")}
            return content[name], rest
    return content, {}


def _checked(named: Mapping[Any, Any], uri: str) -> tuple[dict[str, Tensor], list[str]]:
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    notices, converted = [], set()
    for name, value in named.items():
        if not isinstance(name, str):
            raise WeightsError(f"{uri} names a parameter {name!r}, wanted text: it is no state dict")
        short = _without_prefix(name)
        if short in state:
            raise WeightsError(f"{uri} holds both {origin[short]!r} and {name!r}, which mean the same: remove one")
        tensor = _tensor(value, name, uri)
        if tensor.is_floating_point():
            converted |= {str(tensor.dtype).removeprefix("torch.")} - {"float32"}
            tensor = tensor.to(torch.float32).contiguous()
            if not torch.isfinite(tensor).all():
                notices.append(f"{name} holds values that are not finite: the detector will not work")
        state[short], origin[short] = tensor, name
    if not state:
        raise WeightsError(f"{uri} holds no parameters: give the weights of a whole detector")
    if converted:
        notices.append(f"{', '.join(sorted(converted))} became float32")
    stripped = sorted({name.removesuffix(short) for short, name in origin.items()} - {""})
    if stripped:
        notices.append(f"names without their prefix {', '.join(stripped)}")
    return state, notices


def _without_prefix(name: str) -> str:
    """The name without what wrappers (data parallel, trainers) put before it."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _tensor(value: Any, name: str, uri: str) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        raise WeightsError(f"{uri} holds {name!r} as a {type(value).__name__}, wanted arrays only: it is no state dict")
    is_counter = name.endswith("num_batches_tracked")
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise WeightsError(f"{uri} holds {name!r} as {value.dtype} {value.layout}, wanted plain floating-point weights")
    if not value.is_floating_point() and not is_counter:
        raise WeightsError(f"{uri} holds {name!r} as {value.dtype}, wanted floating-point weights")
    if value.device.type != "cpu":
        raise WeightsError(f"{uri} holds {name!r} without values (on {value.device}): save the weights themselves")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise WeightsError(f"{uri} claims {tuple(value.shape)} values for {name!r} and holds fewer: it is damaged")
    return value
