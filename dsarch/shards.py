r"""What a folder of safetensors files holds, read from its headers alone."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Bytes of an element, for the types that a weight or its scale may have.
FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
SIZES = {**FLOATS, "F8_E4M3": 1}
SCALE = "_scale_inv"
BLOCK = 128
HEADER_LIMIT = 100_000_000
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Entry(NamedTuple):
    """Where a tensor lies, its type as safetensors spells it, its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder; no weight is read.

    Raises ``ValueError`` if there are no safetensors, if the index and the
    files disagree, if a name appears twice or leads out of the folder, or if
    a file is cut off or malformed.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise ValueError(_nothing_in(folder))
        return header(folder / SINGLE)
    listed = _listed(index)
    found: dict[str, Entry] = {}
    paths = {x: _inside(folder, x) for x in sorted(set(listed.values()))}
    for shard, path in paths.items():
        for name, entry in header(path).items():
            if listed.get(name) != shard or name in found:
                raise ValueError(
                    f"{name} is in {shard}, but {INDEX} places it in "
                    f"{listed.get(name)}"
                )
            found[name] = entry
    if absent := sorted(listed.keys() - found.keys()):
        raise ValueError(
            f"{INDEX} places {absent[0]} in {listed[absent[0]]}, "
            f"where it is not{_and_more(absent)}"
        )
    return found


def check(
    found: dict[str, Entry],
    shapes: dict[str, tuple[int, ...]],
    places: dict[str, list[str]],
) -> None:
    """Raise ``ValueError`` unless a folder holds exactly these weights.

    ``places`` gives for each name all the names of its tensor, one of which
    is enough. An FP8 weight brings one scale for each block.
    """
    weights = {name for name in found if not is_scale(name, found)}
    if unexpected := sorted(weights - shapes.keys()):
        raise ValueError(f"unexpected {unexpected[0]}{_and_more(unexpected)}")
    missing = [x for x in shapes if not weights.intersection(places[x])]
    if missing:
        raise ValueError(f"missing {missing[0]}{_and_more(missing)}")
    for name in sorted(weights):
        entry = found[name]
        if entry.shape != shapes[name]:
            raise ValueError(
                f"{name} has shape {list(entry.shape)}, "
                f"expected {list(shapes[name])}"
            )
        if entry.dtype not in FLOATS:
            _check_scale(name, entry, found.get(name + SCALE))


def is_scale(name: str, found: dict[str, Entry]) -> bool:
    """Whether ``name`` scales an FP8 weight of the folder."""
    weight = found.get(name.removesuffix(SCALE))
    scaled = weight is not None and weight.dtype not in FLOATS
    return scaled and name.endswith(SCALE)


def header(path: Path) -> dict[str, Entry]:
    """The tensors of one file; ``ValueError`` unless all bytes are there."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes in {size}")
            table = _parse(file.read(length))
        table.pop("__metadata__", None)
        found = {name: _entry(path, name, x) for name, x in table.items()}
        _check_spans(table, size - 8 - length)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return found


def _entry(path: Path, name: str, item: dict[str, Any]) -> Entry:
    shape, dtype = tuple(item["shape"]), item["dtype"]
    start, end = item["data_offsets"]
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name} has shape {shape}")
    if dtype not in SIZES:
        raise ValueError(f"{name} has type {dtype}, expected {list(SIZES)}")
    wanted = math.prod(shape) * SIZES[dtype]
    if end - start != wanted:
        raise ValueError(
            f"{name} has {end - start} bytes, its shape {list(shape)} in "
            f"{dtype} needs {wanted}"
        )
    return Entry(path, dtype, shape)


def _check_scale(name: str, weight: Entry, scale: Entry | None) -> None:
    if len(weight.shape) != 2 or scale is None:
        raise ValueError(
            f"{name} has type {weight.dtype}, expected one of {list(FLOATS)}, "
            f"or two axes and {name}{SCALE}"
        )
    blocks = tuple(-(-size // BLOCK) for size in weight.shape)
    if scale.shape != blocks or scale.dtype not in FLOATS:
        raise ValueError(
            f"{name}{SCALE} has shape {list(scale.shape)} in {scale.dtype}, "
            f"expected {list(blocks)} in one of {list(FLOATS)}"
        )


def _check_spans(table: dict[str, Any], size: int) -> None:
    """Spans must follow each other without a gap and fill the file."""
    end = 0
    for start, stop in sorted(x["data_offsets"] for x in table.values()):
        if start != end:
            raise ValueError(f"data at {start}, expected it at {end}")
        end = stop
    if end != size:
        raise ValueError(f"{size} bytes of data, the header names {end}")


def _listed(index: Path) -> dict[str, str]:
    try:
        listed = _parse(index.read_bytes())["weight_map"]
        files = set(listed.values())
    except OSError as error:
        raise ValueError(f"cannot read {index}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {error}") from None
    for file in files:
        if not isinstance(file, str):
            raise ValueError(f"{index} names {file!r} as a shard")
    return listed


def _inside(folder: Path, shard: str) -> Path:
    """The shard's path; it must be a plain name, so that it stays inside."""
    if Path(shard).name != shard or "\\" in shard or "\0" in shard:
        raise ValueError(f"{INDEX} names {shard!r}, which leaves {folder}")
    if not shard.endswith(".safetensors"):
        raise ValueError(f"{INDEX} names {shard!r}, which is no safetensors")
    if not (folder / shard).is_file():
        raise ValueError(f"{INDEX} names {shard}, which {folder} lacks")
    return folder / shard


def _parse(text: bytes) -> dict[str, Any]:
    value = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} appears twice")
    return seen


def _nothing_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    pickled = sorted(x.name for p in PICKLED for x in folder.glob(p))
    if pickled:
        return (
            f"{folder} holds pickled weights ({pickled[0]}), which can run "
            "code when they are opened; convert them to safetensors"
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}"


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
