"""What a module keeps by `get_extra_state`, as a tensor that a weights file can hold."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cktf.errors import ModelError


def pack_extra_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Write the values of a state dict that are no tensors as bytes, [N] uint8.

    Raises:
        ModelError: a value that could not be loaded again without running code.
    """
    packed = dict(state)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            file = io.BytesIO()
            try:
                torch.save(value, file)
                packed[key] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
                unpack_extra_state({key: packed[key]}, {key: value})
            except Exception as error:  # pickling calls methods of the value
                raise ModelError(
                    f"The network's get_extra_state gives {key!r} as a {type(value).__name__}, "
                    "which cannot be saved. Let it give tensors, numbers, strings, and lists and "
                    "dicts of these."
                ) from error
    return packed


def unpack_extra_state(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Read the values that are no tensors in the expected state dict; loading runs no code."""
    unpacked: dict[str, Any] = dict(state)
    for key, value in expected.items():
        if key in state and not isinstance(value, Tensor):
            file = io.BytesIO(state[key].cpu().numpy().tobytes())
            unpacked[key] = torch.load(file, weights_only=True)
    return unpacked
