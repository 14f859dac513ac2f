"""Read tensors from disk, never code: safetensors, or torch files with weights_only."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from backend.errors import BadInput, Unsupported


def read_safetensors(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the tensors of one or more files, on the CPU. Raises BadInput for a damaged file."""
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            state.update(load_file(path))
        except SafetensorError:
            raise BadInput(f"Weights {path.name}", "truncated or damaged", "Copy or download the file again") from None
    return state


def read_torch(path: Path) -> Any:
    """Return what a .pt file holds, tensors and plain values only.

    Raises Unsupported where reading it would run pickled code, BadInput where it is damaged.
    """
    asked = f"File {path.name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: what is wrong becomes the one sentence below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and "Unsupported global" not in str(error) and "Weights only" not in str(error):
            raise BadInput(asked, "truncated or no torch file", "Copy or download the file again") from None
        raise Unsupported(asked, f"reading it would run pickled code{_what(error)}", "Save only tensors") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        found = f"truncated or no torch file ({str(error).splitlines()[0][:80] if str(error) else 'empty'})"
        raise BadInput(asked, found, "Copy or download the file again") from None


def _what(error: Exception) -> str:
    """Return ' (module.name)' of what the pickle wanted to call, where torch says it."""
    _, found, rest = str(error).partition("GLOBAL ")
    return f" ({rest.split()[0]})" if found and rest.split() else ""


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return a flat state dict from .safetensors, .pt or .pth; a dict inside `model` or `state_dict` is taken."""
    if path.suffix == ".safetensors":
        return read_safetensors([path])
    data = read_torch(path)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise BadInput(f"File {path.name}", "it holds no state dict of tensors", "Save model.state_dict()")
    return dict(data)


def fit(model: nn.Module, state: dict[str, torch.Tensor], asked: str) -> None:
    """Load a state dict that must fit exactly; names tied to a given one may be absent.

    Raises BadInput naming the first tensor that is missing, unused or of another shape.
    """
    own = model.state_dict(keep_vars=True)
    given = {id(own[n]) for n in state if n in own}
    missing = [n for n in own if n not in state and id(own[n]) not in given]
    if missing:
        raise _gap(asked, f"weight {missing[0]} is missing ({len(missing)} in all)")
    unused = [n for n in state if n not in own]
    if unused:
        raise _gap(asked, f"weight {unused[0]} has no place ({len(unused)} in all)")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise misfit(asked, name, tensor.shape, own[name].shape)
    model.load_state_dict(state, strict=False)


def _gap(asked: str, found: str) -> BadInput:
    return BadInput(asked, found, "Give the weights that belong to this config")


def misfit(asked: str, name: str, found: Sequence[int], wanted: Sequence[int]) -> BadInput:
    """Return the error for a tensor whose shape is not the config's."""
    words = f"weight {name} is {list(found)} where the config says {list(wanted)}"
    return BadInput(asked, words, "Correct the config or give its weights")


@contextlib.contextmanager
def on_device(asked: str) -> Iterator[None]:
    """Turn running out of device memory into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise BadInput(asked, "it does not fit into the device's memory", "Set PHASESCOPE_DEVICE=cpu") from None
