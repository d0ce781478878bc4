r"""Hugging Face folders in and out: config.json and safetensors shards."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dsarch import shards
from dsarch.config import Config
from dsarch.experts import Experts
from dsarch.fp8.reference import weight_dequant
from dsarch.model import DeepSeek
from dsarch.shards import SCALE, Entry

SHARD_BYTES = 5_000_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
ARCHITECTURES = {
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
}


def load_checkpoint(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> DeepSeek:
    """Read a DeepSeek-V2, V3 or V3.2 folder, tensor by tensor.

    Block-FP8 weights are multiplied out. Without ``dtype`` the model has
    that of the stored embedding; router biases are always fp32. The copies
    of embedding and head that an MTP layer carries become the main model's
    own; a folder without the MTP layer gives a model without it.

    Every name, shape and type is checked before anything is allocated, and
    nothing but safetensors is opened. ``ValueError`` names the tensor that
    is missing, unexpected, mis-shaped, wrongly typed, damaged, not finite or
    a copy that differs.
    """
    folder = Path(folder)
    found = shards.entries(folder)
    cfg = _with_stored_mtp(Config.from_hf(folder), found)
    with torch.device("meta"):
        model = DeepSeek(cfg)
    places = _places(model)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    shards.check(found, shapes, places)
    _fill(model, found, places, dtype, device, progress)
    return model


def save_checkpoint(
    model: DeepSeek, folder: str | Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a folder that :func:`load_checkpoint` and transformers read.

    Everything is written beside ``folder``, synced, and then renamed, so
    that the folder is there whole or not at all. ``ValueError`` if it is
    there already or if a weight is not finite, ``OSError`` if the disk does
    not take it.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty")
    state = _stored(model)
    for name, tensor in state.items():
        _check_finite(name, tensor)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write(model, state, partial, shard_bytes)
        partial.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot save to {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_stored_mtp(cfg: Config, found: dict[str, Entry]) -> Config:
    """The config without its MTP layers if the folder has none of them."""
    first = cfg.num_hidden_layers
    extra = range(first, first + cfg.num_nextn_predict_layers)
    prefixes = tuple(f"model.layers.{layer}." for layer in extra)
    if any(name.startswith(prefixes) for name in found):
        return cfg
    return cfg.replace(num_nextn_predict_layers=0)


def _places(model: nn.Module) -> dict[str, list[str]]:
    """For every name, all the names under which its tensor is found."""
    groups: dict[int, list[str]] = {}
    places = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        places[name] = groups.setdefault(id(tensor), [])
        places[name].append(name)
    return places


def _fill(
    model: DeepSeek,
    found: dict[str, Entry],
    places: dict[str, list[str]],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    progress: bool,
) -> None:
    """Give each parameter its tensor, one at a time."""
    dtype = _stored_dtype(found, places) if dtype is None else dtype
    buffers = {name: x.dtype for name, x in model.named_buffers()}
    filled: dict[str, Tensor] = {}
    for module in model.modules():
        if isinstance(module, Experts):
            module.reserve(dtype, device)
    for name, tensor in _tensors(found, progress):
        # A copy, because the tensor may still be a window into the file.
        x = tensor.to(device, buffers.get(name, dtype), copy=True)
        _check_finite(name, x)
        first = filled.get(places[name][0])
        if first is None:
            filled[places[name][0]] = _assign(model, places[name], x)
        elif not torch.equal(first, x):
            raise ValueError(f"{places[name]} are one tensor, but differ")


def _stored_dtype(
    found: dict[str, Entry], places: dict[str, list[str]]
) -> torch.dtype:
    names = places["model.embed_tokens.weight"]
    stored = next(found[name].dtype for name in names if name in found)
    return DTYPES.get(stored, torch.bfloat16)


def _tensors(
    found: dict[str, Entry], progress: bool
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a folder, file by file, FP8 multiplied out."""
    names = [name for name in found if not shards.is_scale(name, found)]
    names.sort(key=lambda name: (found[name].file, name))
    done = 0
    for file, held in groupby(names, lambda name: found[name].file):
        with _open(file) as opened:
            for name in held:
                x = opened.get_tensor(name)
                if found[name].dtype not in DTYPES:
                    x = weight_dequant(x, _scale(name + SCALE, found))
                yield name, x
                done += 1
                if progress:
                    _show(done, len(names))


def _scale(name: str, found: dict[str, Entry]) -> Tensor:
    """The scales of an FP8 weight, which may lie in another file."""
    with _open(found[name].file) as opened:
        scale = opened.get_tensor(name)
    if not (scale > 0).all():
        raise ValueError(f"{name} holds a scale that is not positive")
    return scale


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None


def _assign(model: nn.Module, names: list[str], x: Tensor) -> Tensor:
    """Put one tensor in all its places; return it as it lies there."""
    parameter = nn.Parameter(x)
    for name in names:
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        held = getattr(owner, key)
        if held is parameter:
            continue  # a module that stands in two places
        if not held.is_meta:
            x = held.detach().copy_(x)
            continue
        is_buffer = key in dict(owner.named_buffers(recurse=False))
        setattr(owner, key, x if is_buffer else parameter)
    return x


def _check_finite(name: str, x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite")


def _show(done: int, total: int, width: int = 40) -> None:
    """A bar on standard error, redrawn at every step of its length."""
    bar = "█" * (done * width // total)
    if done == total or done * width % total < width:
        end = "\n" if done == total else ""
        line = f"\rloading [{bar:·<{width}}] {done}/{total} tensors{end}"
        print(line, end="", file=sys.stderr, flush=True)


def _stored(model: DeepSeek) -> dict[str, Tensor]:
    """What a folder holds: copies of the MTP layer, no tied output head."""
    state = dict(model.state_dict())
    if model.cfg.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def _write(
    model: DeepSeek, state: dict[str, Tensor], folder: Path, limit: int
) -> None:
    parts = _parts(state, limit)
    count = len(parts)
    places: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        file = shards.SINGLE if count == 1 else file
        # Copies of one tensor may not share memory inside a file.
        own = torch.contiguous_format
        tensors = {n: state[n].clone(memory_format=own) for n in names}
        save_file(tensors, folder / file, {"format": "pt"})
        _sync(folder / file)
        places |= dict.fromkeys(names, file)
    if count > 1:
        total = {"total_size": sum(x.nbytes for x in state.values())}
        index = {"metadata": total, "weight_map": places}
        _write_json(folder / shards.INDEX, index)
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    _write_json(folder / "config.json", _hf_config(model.cfg, dtype))


def _parts(state: dict[str, Tensor], limit: int) -> list[list[str]]:
    """Names in files of at most ``limit`` bytes; one tensor always fits."""
    parts: list[list[str]] = []
    room = 0
    for name, tensor in state.items():
        if not parts or tensor.nbytes > room:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= tensor.nbytes
    return parts


def _hf_config(cfg: Config, dtype: str) -> dict[str, Any]:
    """The content of config.json, with what transformers wants besides."""
    values = asdict(cfg)
    if cfg.rope_scaling is not None:
        values["rope_scaling"] = {"type": "yarn", **asdict(cfg.rope_scaling)}
    if cfg.index_topk is None:
        for name in ("index_topk", "index_n_heads", "index_head_dim"):
            del values[name]
    return {
        "architectures": [ARCHITECTURES[cfg.model_type]],
        "num_key_value_heads": cfg.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": dtype,
        **values,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf8")
    _sync(path)


def _sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
