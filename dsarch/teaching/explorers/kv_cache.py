"""The KV-cache explorer: sizes of MHA, GQA, MQA and MLA for any model."""

from dsarch.analysis import count
from dsarch.analysis.presets import PRESETS, Kind, Preset, preset
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "choose GPT-3 175B and switch to MLA; then find the context at which one "
    "80 GB card holds a single sequence."
)


def model(
    kind: Kind,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    latent: int,
    rope: int,
) -> Preset:
    """The sizes of one attention, with the KV heads that its kind implies."""
    kept = {"MHA": heads, "GQA": kv_heads, "MQA": 1, "MLA": heads}[kind]
    return Preset(
        name="your own sizes",
        kind=kind,
        layers=layers,
        heads=heads,
        kv_heads=kept,
        head_dim=head_dim,
        latent=latent,
        rope=rope,
    )


def bytes_per_token(kind: Kind, *sizes: int) -> float:
    """Bytes of one token; the last size is the bytes per number."""
    *dims, element = sizes
    return count.kv_bytes_per_token(model(kind, *dims), element)


def _sizes(found: Preset) -> list:
    dims = [found.layers, found.heads, found.kv_heads, found.head_dim]
    return [found.kind, *dims, found.latent, found.rope]


def _checks(context: int) -> list[Check]:
    checks: list[Check] = []
    for found in PRESETS:
        each = count.kv_bytes_per_token(found)
        fit = count.sequences_that_fit(found, context, 80e9)
        checks.append(("bytesPerToken", [*_sizes(found), 2], each))
        checks.append(("sequencesThatFit", [each, context, 80e9], fit))
    return checks


def kv_cache(
    start: str = "DeepSeek-V3", *, context: int = 32_768, batch: int = 8
) -> Explorer:
    """What the cache costs, for published models and for your own sizes.

    ``start`` is the preset shown first; an unknown one raises ``ValueError``.
    """
    names = ["kind", "layers", "heads", "kvHeads", "headDim", "latent", "rope"]
    models = [
        {"name": p.name, **dict(zip(names, _sizes(p), strict=True))}
        for p in PRESETS
    ]
    rows = [
        (p.name, p.kind, f"{count.kv_bytes_per_token(p):,}") for p in PRESETS
    ]
    return Explorer(
        "kv_cache",
        {
            "models": models,
            "start": PRESETS.index(preset(start)),
            "context": context,
            "batch": batch,
        },
        title="How large is the key-value cache?",
        columns=["model", "attention", "bytes per token (BF16)"],
        rows=rows,
        checks=_checks(context),
        hint=HINT,
    )
