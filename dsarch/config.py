"""One flat configuration for every DeepSeek model from V2-Lite to V3.2."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from dsarch import released

Selection = Literal["greedy", "group_limited_greedy", "noaux_tc"]
MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "deepseek_v32")


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """How a context window is stretched: the ``rope_scaling`` of a config.

    A position range of ``original_max_position_embeddings`` becomes
    ``factor`` times as long; ``beta_fast`` and ``beta_slow`` count turns over
    the original window and bound the ramp between kept and slowed pairs.
    """

    factor: float = 40.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"yarn factor {self.factor} is below 1")
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                "original_max_position_embeddings must be positive, found "
                f"{self.original_max_position_embeddings}"
            )
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast {self.beta_fast} must exceed "
                f"beta_slow {self.beta_slow}"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every size of a model, under the names of the released config.json.

    ``Config()`` is the tiny teaching model. Contradictory sizes raise
    ``ValueError`` with both numbers.
    """

    model_type: str = "deepseek_v3"
    vocab_size: int = 264
    hidden_size: int = 128
    num_hidden_layers: int = 4
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    num_attention_heads: int = 4
    q_lora_rank: int | None = 48
    kv_lora_rank: int = 32
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 8
    v_head_dim: int = 16
    rope_theta: float = 10000.0
    rope_scaling: Yarn | None = None
    # sparse attention; without index_topk there is no indexer
    index_topk: int | None = None
    index_n_heads: int = 8
    index_head_dim: int = 16
    intermediate_size: int = 256
    moe_intermediate_size: int = 32
    first_k_dense_replace: int = 1
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    topk_method: Selection = "noaux_tc"
    scoring_func: Literal["softmax", "sigmoid"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    num_nextn_predict_layers: int = 1

    def __post_init__(self) -> None:
        for check in (_check_positive, _check_attention, _check_experts):
            check(self)

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key: the non-rotary and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def qk_widths(self) -> list[int]:
        """How a query head is cut: ``[nope, rope]``."""
        return [self.qk_nope_head_dim, self.qk_rope_head_dim]

    @property
    def kv_widths(self) -> list[int]:
        """What a layer caches of a token: ``[latent, rotary key]``."""
        return [self.kv_lora_rank, self.qk_rope_head_dim]

    def is_dense(self, layer: int) -> bool:
        """Whether ``layer`` has one plain MLP instead of experts."""
        return layer < self.first_k_dense_replace

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> "Config":
        """Read a config.json, its folder or content; refuse other models."""
        return cls(**_from_hf(_read(source)))

    @classmethod
    def v2_lite(cls) -> "Config":
        """DeepSeek-V2-Lite, 15.7B (V2 report, appendix B)."""
        return cls.from_hf(released.V2_LITE)

    @classmethod
    def v2(cls) -> "Config":
        """DeepSeek-V2, 236B (V2 report, section 3.1.2)."""
        return cls.from_hf(released.V2)

    @classmethod
    def v3(cls) -> "Config":
        """DeepSeek-V3, 671B (V3 report, section 4.2); also R1 and V3.1."""
        return cls.from_hf(released.V3)

    @classmethod
    def v3_2(cls) -> "Config":
        """DeepSeek-V3.2: V3 and an indexer in every layer."""
        return cls.from_hf(released.V3_2)


def _check_positive(cfg: Config) -> None:
    may_be_zero = {
        "first_k_dense_replace",
        "n_shared_experts",
        "num_nextn_predict_layers",
    }
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < 0 or (value == 0 and field.name not in may_be_zero):
            raise ValueError(f"{field.name} must be positive, found {value}")
    if cfg.model_type not in MODEL_TYPES:
        raise ValueError(
            f"model_type {cfg.model_type!r} is none of {MODEL_TYPES}"
        )


def _check_attention(cfg: Config) -> None:
    if cfg.qk_rope_head_dim % 2:
        raise ValueError(
            "rotation needs pairs: qk_rope_head_dim must be even, found "
            f"{cfg.qk_rope_head_dim}"
        )
    if cfg.index_topk is None:
        return
    if cfg.q_lora_rank is None:
        raise ValueError(
            f"index_topk {cfg.index_topk} needs a query latent for the "
            "indexer, but q_lora_rank is None"
        )
    if cfg.index_head_dim < cfg.qk_rope_head_dim:
        raise ValueError(
            f"index_head_dim {cfg.index_head_dim} cannot hold "
            f"qk_rope_head_dim {cfg.qk_rope_head_dim}"
        )


def _check_experts(cfg: Config) -> None:
    if cfg.first_k_dense_replace >= cfg.num_hidden_layers:
        return
    size, rest = divmod(cfg.n_routed_experts, cfg.n_group)
    if rest:
        raise ValueError(
            f"n_group {cfg.n_group} does not divide "
            f"n_routed_experts {cfg.n_routed_experts}"
        )
    if cfg.topk_group > cfg.n_group:
        raise ValueError(
            f"topk_group {cfg.topk_group} exceeds n_group {cfg.n_group}"
        )
    if cfg.topk_method == "noaux_tc" and cfg.n_group > 1 and size < 2:
        raise ValueError(
            "a group is scored by its two best experts, but "
            f"n_routed_experts {cfg.n_routed_experts} in n_group "
            f"{cfg.n_group} leaves {size} in each"
        )
    reachable = size * cfg.topk_group
    if cfg.num_experts_per_tok > reachable:
        raise ValueError(
            f"num_experts_per_tok {cfg.num_experts_per_tok} exceeds the "
            f"{reachable} experts of topk_group {cfg.topk_group} groups"
        )


def _read(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read a config from {path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds a {type(values).__name__}, no object")
    return values


def _from_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the fields of :class:`Config`; fill what a model type implies."""
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"model_type {kind!r} is none of {MODEL_TYPES}")
    if not values.get("rope_interleave", True):
        raise ValueError("rope_interleave=False is another model")
    kept = _known(Config, values)
    implied = _V2_ROUTER if kind == "deepseek_v2" else _V3_ROUTER
    if kind != "deepseek_v32":
        kept.pop("index_topk", None)
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    theta = values.get("rope_theta", rope.get("rope_theta", 10000.0))
    kept["rope_theta"] = float(theta)
    kept["rope_scaling"] = _yarn(rope)
    kept["q_lora_rank"] = values.get("q_lora_rank") or None
    return implied | kept


def _yarn(rope: Mapping[str, Any]) -> Yarn | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(f"rope scaling {kind!r} is neither yarn nor default")
    # A missing mscale_all_dim means no softmax factor, as in transformers.
    return Yarn(**{"mscale_all_dim": 0.0} | _known(Yarn, rope))


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are fields of ``kind``, whole numbers made float."""
    kept = {}
    for field in fields(kind):
        if (value := values.get(field.name)) is not None:
            kept[field.name] = float(value) if field.type is float else value
    return kept


# What a config.json leaves out because its model type implies it.
_V2_ROUTER: dict[str, Any] = {
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
_V3_ROUTER: dict[str, Any] = {
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
}
