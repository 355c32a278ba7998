"""Reads torch checkpoints without running code that is pickled in them."""

import pathlib
import pickle
import re
import tarfile
import warnings
from collections.abc import Mapping
from typing import Any

from prosam_jax.errors import UserError, cut

try:
    import safetensors.torch
    import torch
except ModuleNotFoundError as error:
    raise UserError("conversion needs torch; run: pip install 'prosam_jax[convert]'") from error

from prosam_jax.convert.checkpoint import Checkpoint
from prosam_jax.weights import other_forms
from prosam_jax.weights.other_forms import AGAIN
from prosam_jax.weights.registry import sha256

WRAPPERS = ("state_dict", "model_state_dict", "model")
UNFOLDED = 1 << 30
"""Bytes that tensors may have beyond the file's own, where strides of 0 repeat a number."""
HELD = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


def read(path: pathlib.Path) -> Checkpoint:
    """Reads a checkpoint of `torch.save`, or a safetensors file with torch's names.

    A state dict may lie under one of `WRAPPERS`, and every name may have DataParallel's prefix
    "module.". Half precision is widened to float32, which loses nothing.

    Raises:
        UserError: The file is missing, damaged, of another format, would run code, or holds no
            dict of tensors; the message is one line.
    """
    state = _state_dict(path, _loaded(path))
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name, x in state.items():
        if problem := _problem(x):
            raise UserError(f"{path}: the tensor {name!r} {problem}")
    if (claimed := sum(map(_bytes, state.values()))) > max(path.stat().st_size, UNFOLDED):
        name = max(state, key=lambda name: _bytes(state[name]))
        raise UserError(
            f"{path} claims {claimed:,} bytes of tensors ({name!r} has {state[name].numel():,} "
            f"elements), far more than it holds; {AGAIN}"
        )
    widened = [name for name, x in state.items() if x.dtype in (torch.float16, torch.bfloat16)]
    tensors = {
        name: (x.float() if name in widened else x).detach().numpy() for name, x in state.items()
    }
    return Checkpoint(path, sha256(path), tensors, widened)


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _problem(x: torch.Tensor) -> str:
    """Why a tensor is no array of numbers that NumPy can hold; "" if it is."""
    kind = str(x.dtype).removeprefix("torch.")
    if x.is_meta:
        return f"is a meta tensor of {kind}, a shape without numbers; save the loaded weights"
    if x.is_quantized:
        return f"is quantised ({kind}); use the checkpoint that was quantised"
    if x.layout is not torch.strided or x.is_nested:
        layout = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        return f"is {layout} ({kind}); save it as a plain tensor"
    if x.dtype not in HELD:
        return f"is {kind}; use a checkpoint of float32, float16 or bfloat16"
    return ""


def _loaded(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file")
    other_forms.check(path)
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":
        return _from_safetensors(path)
    is_zip = other_forms.is_zip(path)
    if is_zip:
        other_forms.check_zip(path)
    elif tarfile.is_tarfile(path):
        raise UserError(
            f"{path} is in the .tar format of torch before 0.1.10; load it with torch.load(..., "
            "weights_only=False), if you trust it, and torch.save its state dict"
        )
    return _from_torch(path, mmap=is_zip)


def _from_safetensors(path: pathlib.Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({cut(str(error))}); {AGAIN}"
        ) from error


def _from_torch(path: pathlib.Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # the unpickler raises anything on arbitrary bytes
        pickled = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if pickled:
            raise UserError(
                f"{path} holds {pickled[1]}, a Python object that runs code when it is read; "
                "torch.save its state dict alone"
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            reason = "not in torch's format"
        else:
            reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(
            f"{path} is damaged or not a torch checkpoint ({reason}); {AGAIN}"
        ) from error


def _state_dict(path: pathlib.Path, loaded: Any) -> dict[str, torch.Tensor]:
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping):
        raise UserError(
            f"{path} holds a {type(loaded).__name__}, not a dict of tensors; "
            "torch.save a state dict"
        )
    if not loaded:
        raise UserError(f"{path} holds an empty dict; torch.save a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(
                f"{path} holds no dict of tensors: entry {name!r} is a {type(value).__name__}; a "
                f"state dict is looked for at the top and under {', '.join(WRAPPERS)}"
            )
    return dict(loaded)
