"""Read tensors from safetensors files and from PyTorch's own format, without ever running code from a file."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swintormer.errors import SwintormerError
from swintormer.images.files import reason

_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module"}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHECKSUM = "swintormer.checksum"  # in the metadata: safetensors itself does not notice a changed value
_EXPECTED = "expected safetensors or a PyTorch .pth with the released Swintormer layout"


def to_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file, with a checksum of the tensors that `read_tensors` compares."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return save(state, {**metadata, _CHECKSUM: _checksum(state)})


def _checksum(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes, in the order of names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by bare name, and its metadata (empty for a PyTorch file).

    Raises:
        SwintormerError: the file cannot be read, would run code, holds anything but dense tensors of finite
            floating-point numbers, or carries a checksum that they do not have.
    """
    if _kind(path) == "safetensors":
        with _open_safetensors(path) as file:
            tensors: Mapping[Any, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    else:
        tensors, metadata = _load_pickle(path), {}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = bare_name(str(name))
        if strange := _strangeness(tensor):
            raise SwintormerError(
                f"{path} holds {bare!r} {strange}, where a dense floating-point tensor of 16 to 64 bits was expected."
            )
        if bare in state:
            raise SwintormerError(f"{path} holds {bare!r} twice once the prefixes of wrappers are stripped.")
        if not torch.isfinite(tensor).all():
            raise SwintormerError(f"{path} holds values that are not finite in {bare!r}: its training went wrong.")
        state[bare] = tensor
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(tensors):
        raise SwintormerError(f"{path} is damaged, its values are not those that were written: copy it again.")
    return state, metadata


def _strangeness(tensor: object) -> str | None:
    """Why it is not a plain tensor of numbers, as a phrase; None if it is one."""
    if not isinstance(tensor, Tensor):
        return f"of type {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"in a {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')} layout"
    if tensor.device.type != "cpu":  # map_location leaves meta tensors, which hold no numbers, where they are
        return f"on the device {tensor.device.type}"
    if tensor.dtype not in _DTYPES:
        return f"of type {tensor.dtype}"
    if (
        tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):  # a file may store one number and claim 2**60
        return f"of shape {tuple(tensor.shape)}, more elements than it stores"
    return None


def _kind(path: Path) -> str:
    """ "safetensors" or "pickle", by the first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        size = path.stat().st_size
    except FileNotFoundError:
        raise SwintormerError(f"There is no checkpoint {path}.") from None
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    if not head:
        raise SwintormerError(f"{path} is empty; {_EXPECTED}.")
    header = struct.unpack("<Q", head[:8])[0] if head[8:] == b"{" else None
    if header is not None and header <= _LONGEST_HEADER:
        if header + 8 > size:
            raise SwintormerError(f"{path} is cut off: its header alone needs {header + 8} bytes and it has {size}.")
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of protocol 2 and up
        return "pickle"
    raise SwintormerError(f"{path} is no checkpoint: it begins with {head[:8]!r}; {_EXPECTED}.")


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise SwintormerError(f"{path} is a damaged or cut-off safetensors file ({error}).") from error
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error


def _load_pickle(path: Path) -> Mapping[Any, Any]:
    """The state dict in a `.pth`, without ever running code from it."""
    try:
        # A file object, because torch.load judges a path by its ending. It warns of unusual pickle protocols.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # "Unsupported global: GLOBAL os.system was not an allowed ..."
        found = f"would run the code {wanted[1]} to load" if wanted else "is damaged or no PyTorch file"
        raise SwintormerError(f"{path} {found}; {_EXPECTED}.") from error
    except OSError as error:
        raise SwintormerError(f"Cannot read {path}: {reason(error)}.") from error
    except Exception as error:  # the reader raises RuntimeError, EOFError, KeyError and others on damage
        first = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__
        raise SwintormerError(f"{path} cannot be read as a PyTorch file ({first}).") from error
    for name in ("params_ema", "params", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            return found[name]
    if not isinstance(found, Mapping):
        raise SwintormerError(f"{path} holds one object of type {type(found).__name__}, no state dict; {_EXPECTED}.")
    return found


def bare_name(name: str) -> str:
    """A key without the parts that DataParallel, torch.compile and activation checkpointing insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
