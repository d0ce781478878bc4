"""The memory planner: a layout of devices, and what each of them holds."""

from collections.abc import Sequence

from dsarch.analysis import count
from dsarch.config import Config
from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.train import memory

HINT = (
    "with V3's own layout, change the ZeRO stage; then set the experts to one "
    "rank and see what 64 of them saved."
)
MODELS = {
    "DeepSeek-V3": Config.v3(),
    "DeepSeek-V2": Config.v2(),
    "DeepSeek-V2-Lite": Config.v2_lite(),
}


def sizes(cfg: Config) -> dict[str, float]:
    """Dense and routed parameters, and what decides the layer inputs."""
    groups = count.parameter_groups(cfg)
    routed = groups["routed experts"]
    return {
        "dense": sum(groups.values()) - routed,
        "routed": routed,
        "experts": cfg.n_routed_experts,
        "layers": cfg.num_hidden_layers,
        "hidden": cfg.hidden_size,
    }


# A dense model of round numbers, with the sizes of GPT-3.
DENSE = {
    "dense": 175e9,
    "routed": 0.0,
    "experts": 1.0,
    "layers": 96.0,
    "hidden": 12288.0,
}


def state(
    params: float, ranks: int, stage: int, each: Sequence[float]
) -> float:
    """Bytes of state on one rank, with the bytes of each parameter given."""
    return memory.state_bytes(params, ranks, stage, memory.PerParameter(*each))


def device(
    dense: float,
    routed: float,
    data: int,
    pipeline: int,
    tensor: int,
    expert: int,
    stage: int,
    each: Sequence[float],
    copies: int,
) -> float:
    """Bytes of state on one device of a layout."""
    layout = memory.Layout(data, pipeline, tensor, expert)
    recipe = memory.PerParameter(*each)
    return memory.device_state(dense, routed, layout, stage, recipe, copies)


def inputs(
    length: int, rows: int, hidden: int, layers: int, pipeline: int, held: int
) -> float:
    """Layer inputs of the micro-batches that one pipeline stage holds."""
    each = memory.activation_bytes(length, rows, hidden, 1, recompute="full")
    return each * layers * held / pipeline


def traffic(params: float, stage: int, width: float) -> float:
    """Bytes that a device sends for one step's gradients and weights."""
    return memory.step_traffic(params, stage) * width


def memory_planner() -> Explorer:
    """Data, pipeline, tensor and expert ranks against the bytes of a device."""
    models = {name: sizes(cfg) for name, cfg in MODELS.items()}
    models["dense, 175 billion"] = DENSE
    checks: list[Check] = []
    rows = []
    for name, m in models.items():
        expert = 64 if m["routed"] else 1
        held = []
        for stage in range(4):
            given = [m["dense"], m["routed"], 128, 16, 1, expert]
            more = [stage, list(memory.V3), 2]
            held.append(device(*given, *more))  # type: ignore[arg-type]
            checks.append(("deviceBytes", [*given, *more], held[-1]))
        rows.append((name, *(f"{x / 1e9:.1f} GB" for x in held)))
    checks.append(("trafficBytes", [1e9, 3, 2], traffic(1e9, 3, 2)))
    return Explorer(
        "memory_planner",
        {"models": [{"name": n, **m} for n, m in models.items()], "start": 0},
        title="What does one device hold?",
        columns=["128 × 16 devices", *(f"ZeRO {n}" for n in range(4))],
        rows=rows,
        checks=checks,
        hint=HINT,
    )
