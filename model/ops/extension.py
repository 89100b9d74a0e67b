"""Finds and loads the compiled operators into ``torch.ops.maskray``, once, when the first one is needed."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

VERSION = 4
"""Interface version of the operators; ``csrc/schemas.cpp`` states the same number."""

ERROR_PREFIX = "maskray: "
"""How the operators mark an error in their input (``csrc/check.h``)."""

BUILD_COMMAND = "pip install --no-build-isolation -e ."


@functools.cache
def load() -> None:
    """Load the compiled operators; a second call does nothing.

    Raises:
        ImportError: The library is not built, or is of another version; the message says what to run.
    """
    spec = importlib.util.find_spec("_maskray_ops")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"the compiled operators (_maskray_ops) are not built; run `{BUILD_COMMAND}` in the source tree"
        )
    load_library: Callable[[str], None] = torch.ops.load_library
    load_library(spec.origin)
    found = int(torch.ops.maskray.version())
    if found != VERSION:
        raise ImportError(
            f"the compiled operators at {spec.origin} have interface version {found}, this code wants "
            f"{VERSION}; run `{BUILD_COMMAND}` again"
        )


def has_cuda() -> bool:
    """Whether the compiled operators include the CUDA kernels."""
    load()
    return bool(torch.ops.maskray.has_cuda())


def check_device(what: str, tensor: Tensor) -> None:
    """Refuse a CUDA tensor where the operators were built without CUDA: there is no silent slow path.

    Raises:
        ValueError: ``tensor`` is on a device that this build of the operators has no kernel for.
    """
    if tensor.is_cuda and not has_cuda():
        raise ValueError(
            f"{what} is on {tensor.device}, but the operators were built without CUDA: install nvcc and run "
            f"`{BUILD_COMMAND}` again, or move the inputs to the CPU"
        )


def call(operator: Callable[..., Any], *args: object) -> Any:
    """``operator(*args)``, with the errors it finds in its input as ``ValueError``.

    torch raises every C++ exception as ``RuntimeError``; those of torch itself (out of memory, say) stay
    that. Inside a compiled graph the call is left as it is.

    Raises:
        ValueError: The operator refused its input.
    """
    if torch.compiler.is_compiling():
        return operator(*args)
    try:
        return operator(*args)
    except RuntimeError as error:
        message = str(error)
        if not message.startswith(ERROR_PREFIX):
            raise
        raise ValueError(message.removeprefix(ERROR_PREFIX)) from None
