"""The parameter explorer: what a mixture stores and what a token uses."""

import math

from dsarch.analysis import count
from dsarch.config import Config
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "split every expert into 4 and see which of the tiles change; count the "
    "embedding as active and compare with the published 21B and 37B."
)
NAMES = (
    "hidden",
    "vocab",
    "layers",
    "dense",
    "inter",
    "width",
    "routed",
    "shared",
    "attention",
    "bias",
    "chosen",
)


def attention(cfg: Config) -> int:
    """Attention weights of one layer, with its indexer if it has one."""
    tensors = count.attention_tensors(cfg) | count.indexer_tensors(cfg)
    return sum(tensors.values())


def sizes(cfg: Config, per_layer: int | None = None) -> list[int]:
    """The sizes that decide the count, in the order of ``NAMES``."""
    return [
        cfg.hidden_size,
        cfg.vocab_size,
        cfg.num_hidden_layers,
        cfg.first_k_dense_replace,
        cfg.intermediate_size,
        cfg.moe_intermediate_size,
        cfg.n_routed_experts,
        cfg.n_shared_experts,
        attention(cfg) if per_layer is None else per_layer,
        int(cfg.topk_method == "noaux_tc"),
        cfg.num_experts_per_tok,
    ]


def config(given: list[int]) -> Config:
    """A model of these sizes, with a small attention of its own."""
    named = dict(zip(NAMES, given, strict=True))
    return Config(
        hidden_size=named["hidden"],
        vocab_size=named["vocab"],
        num_hidden_layers=named["layers"],
        first_k_dense_replace=named["dense"],
        intermediate_size=named["inter"],
        moe_intermediate_size=named["width"],
        n_routed_experts=named["routed"],
        n_shared_experts=named["shared"],
        num_experts_per_tok=named["chosen"],
        topk_method="noaux_tc" if named["bias"] else "greedy",
        n_group=1,
        topk_group=1,
    )


def groups(given: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Stored and active parameters by group, with the attention given."""
    cfg = config(given)
    swapped = {"attention": cfg.num_hidden_layers * given[8]}
    return (
        count.parameter_groups(cfg) | swapped,
        count.active_groups(cfg) | swapped,
    )


def models() -> dict[str, tuple[list[int], int, int]]:
    """Name, sizes, stored and activated parameters of every model.

    DeepSeekMoE-16B is V2-Lite with one layer more and multi-head attention.
    """
    deeper = Config.v2_lite().replace(num_hidden_layers=28)
    mha = count.grouped_attention_parameters(2048, 16, 16, 128)
    given = sizes(deeper, mha)
    total, used = (sum(parts.values()) for parts in groups(given))
    released = {
        "DeepSeek-V2-Lite": Config.v2_lite(),
        "DeepSeek-V2": Config.v2(),
        "DeepSeek-V3": Config.v3(),
        "DeepSeek-V3.2": Config.v3_2(),
    }
    return {"DeepSeekMoE-16B": (given, total, used)} | {
        n: (sizes(c), *count.parameters(c)) for n, c in released.items()
    }


def _checks(found: dict[str, tuple[list[int], int, int]]) -> list[Check]:
    checks: list[Check] = []
    for given, total, used in found.values():
        checks.append(("stored", given[:-1], total))
        checks.append(("active", given, used))
        n, k = given[6], given[-1]
        checks.append(("combinations", [n, k], math.comb(n, k)))
    return checks


def parameters(start: str = "DeepSeek-V3") -> Explorer:
    """Stored and active parameters of published and of your own mixtures.

    ``start`` is the model shown first; an unknown one raises ``ValueError``.
    """
    found = models()
    if start not in found:
        raise ValueError(f"{start!r} is none of {tuple(found)}")
    return Explorer(
        "parameters",
        {
            "models": [
                {"name": name, "sizes": dict(zip(NAMES, row[0], strict=True))}
                for name, row in found.items()
            ],
            "start": list(found).index(start),
        },
        title="How much of a mixture does a token use?",
        columns=["model", "stored", "active, without embedding", "share"],
        rows=[
            (name, f"{total:,}", f"{used:,}", f"{used / total:.1%}")
            for name, (_, total, used) in found.items()
        ],
        checks=_checks(found),
        hint=HINT,
    )
