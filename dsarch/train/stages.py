r"""The model cut into pipeline stages for torch's own schedules."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from dsarch.layers import causal_mask, positions
from dsarch.model import DeepSeek
from dsarch.rope import phases

# V-shaped schedules give a rank the stages r and 2p-1-r, looped ones r, r+p.
V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
LOOPED = ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble")


class Stage(nn.Module):
    """Neighbouring layers; the first stage embeds, the last has the head."""

    def __init__(self, model: DeepSeek, stage: int, stages: int) -> None:
        super().__init__()
        depth = len(model.layers)
        if depth < stages:
            raise ValueError(f"{depth} layers cannot fill {stages} stages")
        first, last = stage * depth // stages, (stage + 1) * depth // stages
        self.cfg = model.cfg
        self.layers = nn.ModuleList(model.layers[first:last])
        begin, end = stage == 0, stage == stages - 1
        self.embed_tokens = model.model.embed_tokens if begin else None
        self.norm = model.model.norm if end else None
        self.lm_head = model.lm_head if end else None

    def forward(
        self, x: Int[Tensor, "b t"] | Float[Tensor, "b t d"]
    ) -> Float[Tensor, "b t _"]:
        if self.embed_tokens is not None:
            x = self.embed_tokens(x)
        position = positions(len(x), 0, x.size(1), x.device)
        phase = phases(self.cfg, position)
        mask = causal_mask(position, x.size(1))
        for layer in self.layers:
            x = layer(x, phase, mask)
        if self.norm is not None and self.lm_head is not None:
            x = self.lm_head(self.norm(x))
        return x


def stages_of(schedule: str, rank: int, ranks: int) -> list[int]:
    """Which stages a rank holds: two for V-shaped and looped schedules."""
    if schedule in V_SHAPED:
        return [rank, 2 * ranks - 1 - rank]
    if schedule in LOOPED:
        return [rank, rank + ranks]
    return [rank]


def pipeline(
    model: DeepSeek,
    schedule: str,
    micros: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    rank: int,
    ranks: int,
) -> Any:
    """One of torch's schedules over this model, by its name in torch.

    Call ``.step(tokens)`` on the first rank and ``.step(target=…)`` on the
    one with the last stage. Raises ``ValueError`` for too many stages.
    """
    own = stages_of(schedule, rank, ranks)
    total = len(own) * ranks
    device = model.lm_head.weight.device
    parts = [
        PipelineStage(Stage(model, i, total), i, total, device) for i in own
    ]
    kind = get_schedule_class(schedule)
    single = len(own) == 1
    return kind(parts[0] if single else parts, micros, loss_fn=loss)
