r"""From logits to tokens: temperature, nucleus, and lossless verification."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dsarch.layers import widen


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature zero takes the likeliest.

    ``ValueError`` for a negative temperature or a ``top_p`` outside (0, 1].
    """

    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} is below 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is outside (0, 1]")

    def probabilities(
        self, logits: Float[Tensor, "b t w"]
    ) -> Float[Tensor, "b t w"]:
        r"""$\mathrm{softmax}(\mathrm{logits}/\tau)$, cut to the nucleus.

        At temperature zero all probability is on the likeliest token, so
        greedy decoding is a case of sampling. Logits that are not finite
        raise ``ValueError``.
        """
        if not logits.isfinite().all():
            raise ValueError("the logits are not finite")
        wide = widen(logits)
        if self.temperature == 0:
            return F.one_hot(wide.argmax(-1), wide.size(-1)).to(wide)
        return nucleus((wide / self.temperature).softmax(-1), self.top_p)

    def draw(self, p: Float[Tensor, "b t w"]) -> Int[Tensor, "b t"]:
        """One token for each distribution."""
        flat = p.flatten(0, 1).multinomial(1, generator=self.generator)
        return flat.unflatten(0, p.shape[:2]).squeeze(-1)


def nucleus(p: Float[Tensor, "b t w"], top_p: float) -> Float[Tensor, "b t w"]:
    """Keep the fewest likeliest tokens that together reach ``top_p``."""
    if top_p == 1:
        return p
    ranked, order = p.sort(-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    kept = ranked.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(p).scatter(-1, order, kept)
    return kept / kept.sum(-1, keepdim=True)


def verify(
    drafts: Int[Tensor, "b k"],
    q: Float[Tensor, "b k w"],
    p: Float[Tensor, "b after w"],
    sampling: Sampling,
) -> Int[Tensor, "b some"]:
    r"""Drafted tokens as far as they hold, and one token more.

    A draft from $q$ is kept with probability $\min(1, p/q)$; the first that
    is not is drawn again from $(p-q)_+$, and if all are kept one more comes
    from the last row of $p$. The result is distributed as if every token had
    been drawn from $p$. The sequences of a batch stop together, at the first
    refusal of any. Source: Leviathan et al. 2023, algorithm 1.
    """
    count = drafts.size(1)
    ratio = likelihood(p[:, :count], drafts) / likelihood(q, drafts)
    u = torch.rand(
        ratio.shape,
        generator=sampling.generator,
        dtype=p.dtype,
        device=p.device,
    )
    kept = (u < ratio).cumprod(1).bool()
    good = int(kept.sum(1).min())
    if good == count:
        return torch.cat([drafts, sampling.draw(p[:, count:])], 1)
    here = slice(good, good + 1)
    again = sampling.draw(residual(p[:, here], q[:, here]))
    last = drafts[:, here].where(kept[:, here], again)
    return torch.cat([drafts[:, :good], last], 1)


def likelihood(
    p: Float[Tensor, "b k w"], tokens: Int[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    """The probability of each token."""
    return p.gather(-1, tokens[..., None]).squeeze(-1)


def residual(
    p: Float[Tensor, "b k w"], q: Float[Tensor, "b k w"]
) -> Float[Tensor, "b k w"]:
    r"""What is left for a refused draft: $(p-q)_+$, or $p$ if they agree."""
    left = (p - q).clamp(min=0)
    return left.where(left.sum(-1, keepdim=True) > 0, p)
