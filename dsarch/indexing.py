r"""How an indexer learns: from what attention read, and from nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from dsarch.dsa import SparseMLA, chosen
from dsarch.layers import masked_softmax


def indexer_loss(
    layer: SparseMLA,
    x: Float[Tensor, "b t d"],
    phase: Complex[Tensor, "b t p"],
    mask: Bool[Tensor, "b t s"],
) -> Float[Tensor, ""]:
    r"""How far the indexer is from the attention that it serves.

    $$L^I = \frac1T \sum_t D_{KL}\big(p_{t,S_t} \,\|\,
      \mathrm{softmax}(I_{t,S_t})\big)$$

    $S_t$ is what the layer selects, so this is the loss of both stages:
    with ``index_topk`` no smaller than the text all keys are selected, the
    dense warm-up. $p$ is a constant, and so are the indexer's inputs: no
    gradient leaves the indexer. Source: DeepSeek-V3.2-Exp report, equations
    3 and 4, which sum over the queries instead of taking their mean.
    """
    with torch.no_grad():
        q, q_rope, latent = layer.queries(x, phase)
        c, k_rope = layer.memories(x, phase)
    x, latent = x.detach(), latent.detach()
    k = layer.indexer.keys(x, phase)
    with torch.no_grad():
        index = layer.choose(x, latent, phase, k, mask)
        seen = mask if index is None else chosen(index, mask)
        p = attention(q, q_rope, c, k_rope, layer.up()[0], seen, layer.scale)
    score = layer.indexer(x, latent, phase, k)
    return divergence(p, score, seen).mean()


def attention(
    q: Float[Tensor, "b t h n"],
    q_rope: Float[Tensor, "b t h r"],
    c: Float[Tensor, "b s c"],
    k_rope: Float[Tensor, "b s r"],
    w_uk: Float[Tensor, "h n c"],
    mask: Bool[Tensor, "b t s"],
    scale: float,
) -> Float[Tensor, "b t s"]:
    r"""What all heads of a layer read, as one distribution over the keys.

    $$p_{t,s} = \frac1H \sum_h \mathrm{softmax}_s(\ldots)_{h,t,s}$$

    The mean of probabilities is their sum, normalised; it is not the
    softmax of summed logits.
    """
    score = einsum("bthn,hnc,bsc->bhts", q, w_uk, c)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    return masked_softmax(score * scale, mask).mean(1)


def divergence(
    p: Float[Tensor, "b t s"],
    score: Float[Tensor, "b t s"],
    mask: Bool[Tensor, "b t s"],
) -> Float[Tensor, "b t"]:
    r"""$D_{KL}(p \,\|\, \mathrm{softmax}(I))$ over the keys in ``mask``."""
    log_q = score.masked_fill(~mask, -torch.inf).log_softmax(-1)
    log_q = log_q.masked_fill(~mask, 0.0)
    return F.kl_div(log_q, p.type_as(log_q), reduction="none").sum(-1)


@contextmanager
def indexer_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """While this is open, every sparse layer that runs adds its loss.

        with indexer_losses(model) as losses:
            logits = model(tokens)
        loss = language_loss(logits) + torch.stack(losses).mean()

    Clear the list to run the model twice. Only passes without a cache count.
    """
    losses: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple, _: Tensor) -> None:
        assert isinstance(layer, SparseMLA)
        x, phase, mask, *cache = inputs
        if x.size(1) != mask.size(-1):
            raise ValueError(
                f"{x.size(1)} queries see {mask.size(-1)} keys: the loss of "
                "an indexer needs the whole text at once"
            )
        losses.append(indexer_loss(layer, x, phase, mask))

    sparse = [x for x in model.modules() if isinstance(x, SparseMLA)]
    handles = [layer.register_forward_hook(hook) for layer in sparse]
    try:
        yield losses
    finally:
        for handle in handles:
            handle.remove()


def freeze_all_but_indexers(model: nn.Module) -> list[nn.Parameter]:
    """Set up the warm-up; the parameters that it trains are returned."""
    trained = {
        id(weight)
        for layer in model.modules()
        if isinstance(layer, SparseMLA)
        for weight in layer.indexer.parameters()
    }
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in trained)
    return [weight for weight in model.parameters() if weight.requires_grad]
