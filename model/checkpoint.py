"""Weights as safetensors bytes, and loading with a report of what does not fit."""

from collections.abc import Mapping

import safetensors.torch
from torch import Tensor, nn


def to_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A state dict as a safetensors file; tensors keep their type and are stored contiguous."""
    plain = {name: value.detach().contiguous() for name, value in state.items()}
    data: bytes = safetensors.torch.save(plain, dict(metadata) if metadata else None)
    return data


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """A state dict from the bytes of a safetensors file; cannot run code.

    Raises:
        ValueError: the bytes are not a safetensors file.
    """
    try:
        state: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file ({error}): the file is damaged or of another format") from error
    return state


def take_proposal_network(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load another detector's feature maps and region proposal network as those of `module` (stage-wise training).

    Args:
        module: a detector built with `separate_rpn`.
        state: the other detector's weights; of one with `separate_rpn` too, the maps its proposals come from.
        what: where they come from, for the message.

    Raises:
        ValueError: names missing, left over or of another shape.
    """
    separate = {name: value for name, value in state.items() if name.startswith("rpn_pyramid.")}
    maps = separate or {f"rpn_{name}": value for name, value in state.items() if name.startswith("pyramid.")}
    taken = {**maps, **{name: value for name, value in state.items() if name.startswith("rpn.")}}
    rest = {name: value for name, value in module.state_dict().items() if not name.startswith(("rpn_pyramid.", "rpn."))}
    load_strict(module, {**rest, **taken}, f"the proposal network of {what}")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `module`, every name and shape matching.

    Args:
        module: the built module.
        state: its weights.
        what: where the weights come from, for the message.

    Raises:
        ValueError: names missing, left over or of another shape.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    found = "; ".join(f"{len(names)} {kind}: {', '.join(names[:4])}" for kind, names in problems if names)
    if found:
        raise ValueError(f"{what} does not fit this detector ({found}): build it from the checkpoint's own config")
    module.load_state_dict(state)
