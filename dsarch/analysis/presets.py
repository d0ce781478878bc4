"""Attention sizes of published models and two machines to run them on."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["MHA", "GQA", "MQA", "MLA"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sizes that decide how much a model caches for each token.

    ``latent`` and ``rope`` are zero unless ``kind`` is ``"MLA"``; for MLA
    every head has its own key and value once the latent is expanded.
    Sizes below one raise ``ValueError``.
    """

    name: str
    kind: Kind
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int = 0
    rope: int = 0
    source: str = "public config.json"

    def __post_init__(self) -> None:
        needed = ["layers", "heads", "kv_heads", "head_dim"]
        needed += ["latent", "rope"] if self.kind == "MLA" else []
        for name in needed:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(
                    f"{self.name}: {name} must be at least 1, found {value}"
                )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: {self.kv_heads} kv heads do not divide "
                f"{self.heads} query heads"
            )

    @property
    def kv_elements(self) -> int:
        """Numbers that one layer caches for one token."""
        if self.kind == "MLA":
            return self.latent + self.rope
        return 2 * self.kv_heads * self.head_dim


class Machine(NamedTuple):
    """Peak rates of a machine: FLOP per second and bytes per second."""

    name: str
    flops: float
    bandwidth: float
    source: str

    @property
    def balance(self) -> float:
        """FLOP per byte above which arithmetic, not memory, is the limit."""
        return self.flops / self.bandwidth


MACHINES = (
    Machine("H800", 865e12, 3.35e12, "FlashMLA kernel notes, 2025-09-29"),
    Machine("Laptop", 0.5e12, 50e9, "round numbers: 8 cores, two channels"),
)


def _grouped(
    name: str, layers: int, heads: int, kv_heads: int, head_dim: int = 128
) -> Preset:
    ends: dict[int, Kind] = {heads: "MHA", 1: "MQA"}
    return Preset(
        name=name,
        kind=ends.get(kv_heads, "GQA"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )


def _latent(name: str, layers: int, heads: int, source: str) -> Preset:
    return Preset(
        name=name,
        kind="MLA",
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=128,
        latent=512,
        rope=64,
        source=source,
    )


PRESETS = (
    _grouped("GPT-3 175B", 96, 96, 96),
    _grouped("Llama-2-7B", 32, 32, 32),
    _grouped("Llama-2-70B", 80, 64, 8),
    _grouped("Llama-3.1-8B", 32, 32, 8),
    _grouped("Llama-3.1-70B", 80, 64, 8),
    _grouped("Llama-3.1-405B", 126, 128, 8),
    _grouped("Qwen2.5-7B", 28, 28, 4),
    _grouped("Qwen2.5-72B", 80, 64, 8),
    _grouped("Qwen3-8B", 36, 32, 8),
    _grouped("Qwen3-32B", 64, 64, 8),
    _grouped("Qwen3-30B-A3B", 48, 32, 4),
    _grouped("Qwen3-235B-A22B", 94, 64, 4),
    _grouped("Mistral-7B v0.1", 32, 32, 8),
    _grouped("Mixtral-8x7B", 32, 32, 8),
    _grouped("PaLM-540B", 118, 48, 1, 256),
    # Its config says 71 kv heads, but multi_query overrules that number.
    _grouped("Falcon-7B", 32, 71, 1, 64),
    _grouped("Falcon-40B", 60, 128, 8, 64),
    _grouped("Falcon-180B", 80, 232, 8, 64),
    _grouped("DeepSeek-7B", 30, 32, 32),
    _grouped("DeepSeek-67B", 95, 64, 8),
    _latent("DeepSeek-V2-Lite", 27, 16, "V2 report, appendix B"),
    _latent("DeepSeek-V2", 60, 128, "V2 report, section 3.1.2"),
    _latent("DeepSeek-V3", 61, 128, "V3 report, section 4.2"),
)


def preset(name: str) -> Preset:
    """The preset of that name; ``ValueError`` lists the known names."""
    for found in PRESETS:
        if found.name == name:
            return found
    known = ", ".join(p.name for p in PRESETS)
    raise ValueError(f"no preset {name!r}; known are {known}")
