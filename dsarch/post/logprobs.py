r"""Log-probabilities and masked means: what every loss here is made of.

Two alignments exist and nothing else. A *mask* belongs to the tokens
``[b, t]``: true where a token is trained. A *log-probability* belongs to the
targets ``tokens[:, 1:]``, because the logit of position $j$ predicts token
$j+1$ and nothing predicts the first token. :func:`shift` takes a mask from
the first alignment to the second.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsarch.layers import widen


def shift(mask: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t-1"]:
    """The mask of the targets: the first token is never one."""
    return mask[:, 1:]


def token_logprobs(
    logits: Float[Tensor, "b t w"],
    tokens: Int[Tensor, "b t"],
    *,
    temperature: float = 1.0,
    allowed: Bool[Tensor, "b t-1 w"] | None = None,
) -> Float[Tensor, "b t-1"]:
    r"""Log-probability of every token given the ones before it.

    $$\log\pi(x_{j+1}\mid x_{\le j}) = z_{j,x_{j+1}}/T
      - \log\sum_{v \in S_j} e^{z_{j,v}/T}$$

    The temperature must be the one that sampled the tokens. ``allowed`` is
    the set $S_j$ the sampler drew from (V3.2's keep-sampling-mask, report
    section 3.1); without it $S_j$ is the whole vocabulary. A token outside
    its set has log-probability $-\infty$. Raises ``ValueError`` for a
    temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    scores = widen(logits[:, :-1]) / temperature
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    target = tokens[:, 1:, None]
    return scores.log_softmax(-1).gather(-1, target).squeeze(-1)


def sequence_logprobs(
    logp: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> tuple[Float[Tensor, "b"], Int[Tensor, "b"]]:
    r"""Sum of a completion's log-probabilities, and how many there are.

    $$l = \sum_{t} m_t \log\pi(x_t \mid x_{<t})$$

    Both arguments are in the alignment of the targets. An empty completion
    has the sum 0 and the length 0.
    """
    return logp.masked_fill(~mask, 0.0).sum(-1), mask.sum(-1)


def masked_mean(
    x: Float[Tensor, "*z"], mask: Bool[Tensor, "*z"], dim: int | None = None
) -> Float[Tensor, "*rest"]:
    r"""Mean over the unmasked entries; 0 where there are none.

    Masked entries are replaced before the sum, not multiplied by 0: a
    $-\infty$ under the mask would otherwise turn into NaN.
    """
    kept = x.masked_fill(~mask, 0.0)
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim) / mask.sum(dim).clamp(min=1)


def entropy(logits: Float[Tensor, "*z w"]) -> Float[Tensor, "*z"]:
    r"""$H = -\sum_v p_v \log p_v$ in nats; entries of $-\infty$ add 0."""
    logp = widen(logits).log_softmax(-1)
    p = logp.exp()
    return -(p * logp.masked_fill(p == 0, 0.0)).sum(-1)


def require_finite(
    name: str, x: Float[Tensor, "*z"], mask: Bool[Tensor, "*z"] | None = None
) -> None:
    r"""Refuse NaN and infinities where a loss would read them.

    A token with log-probability $-\infty$ was never sampled: either its
    place belongs under the mask, or the policy is evaluated on another
    sampling set than the one it was sampled from. Raises ``ValueError`` with
    the count, the first place and its value.
    """
    wrong = ~torch.isfinite(x)
    if mask is not None:
        wrong = wrong & mask
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be finite where it is not masked: "
            f"{int(wrong.sum())} of {x.numel()} values are not, the first "
            f"is {x[tuple(place)].item()} at {place}"
        )
