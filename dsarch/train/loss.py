r"""What a pre-training step minimises, and what it sees of the routing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsarch.balance import sequence_loss
from dsarch.model import DeepSeek
from dsarch.mtp import mtp_losses, nll
from dsarch.rope import phases
from dsarch.router import Router, Routing
from dsarch.train.data import Batch, document_mask, document_positions


class Loss(NamedTuple):
    """A sum over the counted tokens, and sums to report."""

    total: Tensor
    parts: dict[str, float]


def token_loss(model: DeepSeek, batch: Batch, mtp_weight: float) -> Loss:
    r"""Cross-entropy of the next token, plus $\lambda$ times that of MTP.

    Sums, not means: the trainer divides by all tokens of the step, so that
    every token weighs the same however they fall into micro-batches.
    """
    counted = batch.counted[:, 1:]
    hidden = model.hidden(batch.tokens[:, :-1])
    losses = nll(model.lm_head(hidden), batch.tokens[:, 1:])
    total = losses.where(counted, 0.0).sum()
    parts = {"loss": total.item()}
    parts["floor"] = batch.surprise[:, 1:][counted].sum().item()
    if mtp_weight and model.mtp:
        ahead = mtp_losses(model.mtp, hidden, batch.tokens).mean()
        ahead = ahead * counted.sum()
        parts["mtp"] = ahead.item()
        total = total + mtp_weight * ahead
    return Loss(total, parts)


def isolated(
    model: DeepSeek, tokens: Int[Tensor, "b t"], document: Int[Tensor, "b t"]
) -> Float[Tensor, "b t d"]:
    """``model.hidden`` where packed documents do not see each other."""
    phase = phases(model.cfg, document_positions(document))
    mask = document_mask(document)
    x = model.model.embed_tokens(tokens)
    for layer in model.layers:
        x = layer(x, phase, mask)
    return model.model.norm(x)


@contextmanager
def routings(model: nn.Module) -> Iterator[list[tuple[Router, Routing]]]:
    """Collect what every router decides while the context is open.

    Open it around the forward pass alone: activation checkpointing routes
    again in the backward pass, and that must not count twice.
    """
    seen: list[tuple[Router, Routing]] = []

    def note(router: Any, inputs: Any, routing: Routing) -> None:
        seen.append((router, routing))

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, Router)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def even_out(seen: list[tuple[Router, Routing]], rows: int) -> Tensor:
    """V3's sequence-wise balance loss, summed over the layers."""
    losses = []
    for _, routing in seen:
        scores = rearrange(routing.scores, "(b t) e -> b t e", b=rows)
        losses.append(sequence_loss(scores, routing.experts.size(1)))
    return torch.stack(losses).sum()


def recompute(layers: Iterable[nn.Module]) -> None:
    """Activation checkpointing: keep a layer's input, repeat the rest.

    Costs one more forward pass and changes no number.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


@torch.no_grad()
def evaluate(
    model: DeepSeek, batches: Iterable[Batch], domains: list[str]
) -> dict[str, tuple[float, float]]:
    """Mean loss and exact floor, for each domain and for all together."""
    sums = torch.zeros(len(domains), 3, dtype=torch.float64)
    for batch in batches:
        logits = model(batch.tokens[:, :-1])
        losses = nll(logits, batch.tokens[:, 1:])
        for i in range(len(domains)):
            chosen = (batch.domain == i)[:, 1:] & batch.counted[:, 1:]
            sums[i, 0] += losses[chosen].sum()
            sums[i, 1] += batch.surprise[:, 1:][chosen].sum()
            sums[i, 2] += chosen.sum()
    rows = dict(zip(domains, sums, strict=True)) | {"all": sums.sum(0)}
    return {
        name: ((row[0] / row[2]).item(), (row[1] / row[2]).item())
        for name, row in rows.items()
    }
