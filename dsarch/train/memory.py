r"""Bytes and seconds of parallel training, as closed formulas."""

from typing import Literal, NamedTuple

Number = int | float


class PerParameter(NamedTuple):
    """Bytes of weight, gradient and optimizer state for each parameter.

    Mixed-precision Adam: 2 + 2 + 12, the 12 being an fp32 master weight and
    two moments. V3 keeps fp32 gradients and bf16 moments: 2 + 4 + 8.
    """

    weight: Number = 2
    gradient: Number = 2
    optimizer: Number = 12


ADAM, V3 = PerParameter(), PerParameter(2, 4, 8)


def state_bytes(
    parameters: Number,
    ranks: int = 1,
    stage: int = 0,
    each: PerParameter = ADAM,
) -> float:
    r"""Weights, gradients and optimizer state on one rank.

    Stage 0 keeps all three everywhere, ZeRO-1 shards the optimizer state,
    ZeRO-2 the gradients too, ZeRO-3 the weights too: with Adam
    $16\Psi$, $4\Psi+12\Psi/N$, $2\Psi+14\Psi/N$, $16\Psi/N$ bytes.
    Source: Rajbhandari et al. 2020, section 5.
    """
    if stage not in range(4) or ranks < 1:
        raise ValueError(f"stage {stage} is none of 0 to 3, or ranks {ranks}")
    shared = [ranks if stage >= first else 1 for first in (3, 2, 1)]
    return parameters * sum(
        size / by for size, by in zip(each, shared, strict=True)
    )


def step_traffic(parameters: Number, stage: int = 0) -> float:
    r"""Elements each rank sends per step: $2\Psi$, with ZeRO-3 $3\Psi$.

    An all-reduce is a reduce-scatter and an all-gather, so stages 1 and 2
    cost no more than plain data parallelism; stage 3 gathers the weights
    once more for the backward pass.
    """
    return parameters * (3 if stage == 3 else 2)


def activation_bytes(
    length: int,
    batch: int,
    hidden: int,
    heads: int,
    *,
    tensor: int = 1,
    sequence_parallel: bool = False,
    recompute: Literal["none", "selective", "full"] = "none",
) -> float:
    r"""What the backward pass of one classic 16-bit layer keeps.

    $$s\,b\,h\,\Big(10 + \frac{24}{t} + 5\frac{a\,s}{h\,t}\Big)$$

    Sequence parallelism divides the 10 too, selective recomputation (or a
    fused attention) removes the last term, full recomputation leaves the
    layer's input, $2sbh$. Source: Korthikanti et al. 2022, table 2.
    """
    size = length * batch * hidden
    if recompute == "full":
        return 2.0 * size
    norms = 10 / tensor if sequence_parallel else 10
    scores = 5 * heads * length / hidden / tensor
    kept = scores if recompute == "none" else 0.0
    return size * (norms + 24 / tensor + kept)


class Layout(NamedTuple):
    """How many ways each axis is split; experts reuse the data ranks."""

    data: int = 1
    pipeline: int = 1
    tensor: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """Experts are spread over data ranks, so they do not multiply."""
        return self.data * self.pipeline * self.tensor


def device_state(
    dense: Number,
    routed: Number,
    layout: Layout,
    stage: int = 1,
    each: PerParameter = ADAM,
    copies: int = 1,
) -> float:
    """Bytes of training state on one device of a mixture-of-experts model.

    ``dense`` parameters are replicated over the data ranks, a routed expert
    over ``data / expert`` of them; ``copies`` is two for DualPipe. Raises
    ``ValueError`` if the experts do not divide the data ranks.
    """
    replicas, rest = divmod(layout.data, layout.expert)
    if rest:
        raise ValueError(
            f"expert {layout.expert} does not divide data {layout.data}"
        )
    stages = layout.pipeline * layout.tensor / copies
    shared = state_bytes(dense / stages, layout.data, stage, each)
    own = routed / stages / layout.expert
    return shared + state_bytes(own, replicas, stage, each)


def collective_seconds(
    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"],
    size: Number,
    ranks: int,
    *,
    bandwidth: Number,
    latency: Number = 0.0,
) -> float:
    r"""A ring's time for ``size`` bytes: $(n-1)(\alpha + S/(nB))$, twice for
    an all-reduce, which is a reduce-scatter and an all-gather."""
    once = (ranks - 1) * (latency + size / ranks / bandwidth)
    return 2 * once if kind == "all_reduce" else once
