r"""Training state on disk: whole or not there, checked by hash.

A state is one safetensors file, ``00000120-3fa9….safetensors``: the step and
the start of the SHA-256 of its bytes. It is written under another name,
synced and renamed, so a process killed at any moment leaves the states before
it untouched and never a half one that looks whole.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = "dsarch training state 1"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DIGITS = 16


def save(folder: str | Path, step: int, tree: Any, keep: int = 3) -> Path:
    """Write a tree of tensors and plain values; keep the newest few.

    Raises ``OSError`` if the disk does not take it: then nothing has
    changed. ``ValueError`` names a value that cannot be stored.
    """
    folder = Path(folder)
    chunks = _serialise(tree)
    partial = folder / f".partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = _write(partial, chunks)
        path = folder / f"{step:08}-{digest}.safetensors"
        os.replace(partial, path)
        _sync(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        good = [path.name for path in states(folder)[-1:]] or ["none"]
        raise OSError(
            f"cannot save step {step}: {error}; the last good state is "
            f"{good[0]}"
        ) from error
    _tidy(path, keep)
    return path


def _write(path: Path, chunks: list[bytes]) -> str:
    """Write and sync a file; the start of its hash."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()[:DIGITS]


def load(path: str | Path) -> Any:
    """Read a state back, bit for bit.

    Raises ``ValueError`` if a byte has changed, if the file is cut off, or
    if it is no training state.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    found = hashlib.sha256(content).hexdigest()[:DIGITS]
    expected = path.stem.partition("-")[2]
    if found != expected:
        raise ValueError(
            f"{path} is damaged: its name says {expected}, "
            f"its bytes say {found}"
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {FORMAT!r}: {error}") from None


def states(folder: str | Path) -> list[Path]:
    """All states of a folder by step, unchecked."""
    return sorted(Path(folder).glob("[0-9]*-*.safetensors"))


def latest(folder: str | Path) -> Any:
    """The newest sound state, or None where there is none to find.

    A damaged one is passed over with a warning. Raises ``ValueError`` if
    there are states and every one is damaged.
    """
    found = states(folder)
    for path in reversed(found):
        try:
            return load(path)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    if found:
        raise ValueError(f"all {len(found)} states in {folder} are damaged")
    return None


def random_state() -> dict[str, Any]:
    """Where Python's, NumPy's, torch's and each GPU's generators stand."""
    numpy: Any = np.random.get_state(legacy=False)
    keys = numpy["state"].pop("key").astype(np.int64)
    return {
        "python": random.getstate(),
        "numpy": (numpy, torch.from_numpy(keys)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_random_state(saved: dict[str, Any]) -> None:
    """Put all generators back to where :func:`random_state` found them."""
    numpy, keys = saved["numpy"]
    state = numpy["state"] | {"key": keys.numpy().astype(np.uint32)}
    random.setstate(saved["python"])
    np.random.set_state(numpy | {"state": state})
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])


def _serialise(tree: Any) -> list[bytes]:
    """The chunks of a safetensors file, the header first."""
    tensors: list[Tensor] = []
    metadata = {"format": FORMAT, "tree": json.dumps(_fold(tree, tensors))}
    header: dict[str, Any] = {"__metadata__": metadata}
    chunks, end = [], 0
    for number, tensor in enumerate(tensors):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        chunks.append(flat.view(torch.uint8).numpy().tobytes())
        start, end = end, end + len(chunks[-1])
        header[f"{number:06}"] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *chunks]


def _parse(content: bytes) -> Any:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    if metadata["format"] != FORMAT:
        raise ValueError(f"it says {metadata['format']!r}")
    body = memoryview(content)[8 + size :]
    tensors = [_tensor(entry, body) for entry in header.values()]
    return _unfold(json.loads(metadata["tree"]), tensors)


def _tensor(entry: dict[str, Any], body: memoryview) -> Tensor:
    start, end = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(body[start:end]), dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


def _fold(value: Any, tensors: list[Tensor]) -> Any:
    """Replace what JSON lacks: a container by its kind and its items."""
    if isinstance(value, Tensor) and value.dtype in NAMES:
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, torch.dtype) and value in NAMES:
        return {"dtype": NAMES[value]}
    if isinstance(value, dict):
        pairs = [[_fold(x, tensors) for x in pair] for pair in value.items()]
        return {"dict": pairs}
    if type(value) in (tuple, list):
        kind = "tuple" if type(value) is tuple else "list"
        return {kind: [_fold(item, tensors) for item in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"cannot store {value!r} of type {type(value).__name__}")


def _unfold(value: Any, tensors: list[Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return DTYPES[content]
    if kind == "dict":
        return {
            _unfold(key, tensors): _unfold(item, tensors)
            for key, item in content
        }
    items = [_unfold(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _tidy(newest: Path, keep: int) -> None:
    """Remove other states of this step, all but the newest few, and what
    killed runs left behind."""
    folder, step = newest.parent, newest.name[:8]
    same = [path for path in states(folder) if path.name.startswith(step)]
    for path in (*same, *states(folder)[:-keep], *folder.glob(".partial-*")):
        if path != newest:
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make the rename itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
