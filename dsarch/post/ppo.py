r"""PPO from human feedback, for comparison with GRPO.

A learned critic $V$ replaces the group mean, and the divergence from the
reference is part of the reward, not of the loss: it punishes the sum over the
sequence and so its length. Sources: PPO (arXiv 1707.06347), GAE (1506.02438),
DeepSeekMath (2402.03300) eq. 1-2.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsarch.post.logprobs import masked_mean, require_finite
from dsarch.post.objective import Objective, surrogate


def shaped_rewards(
    score: Float[Tensor, "b"],
    logp: Float[Tensor, "b t"],
    ref_logp: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    beta: float,
) -> Float[Tensor, "b t"]:
    r"""$r_t = -\beta\log\frac{\pi_\theta}{\pi_{ref}} + R\,[t = T]$.

    The score falls on the last trained token; an empty completion has none
    and loses it. Masked places get 0.
    """
    require_finite("logp", logp, mask)
    require_finite("ref_logp", ref_logp, mask)
    penalty = -beta * (logp - ref_logp).masked_fill(~mask, 0.0)
    after = mask.flip(1).cumsum(1).flip(1)
    return penalty + score[:, None] * (mask & (after == 1))


def gae(
    rewards: Float[Tensor, "b t"],
    values: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    r"""Advantages and returns by generalised advantage estimation.

    $$\delta_t = r_t + \gamma V_{t+1} - V_t,\qquad
      \hat A_t = \delta_t + \gamma\lambda\,\hat A_{t+1},\qquad
      R_t = \hat A_t + V_t$$

    Nothing is worth anything after the last trained token. Masked places
    are stepped over: between two turns the recursion continues at the next
    trained token. Returns are taken before any whitening.
    """
    after = torch.zeros_like(values[:, 0])
    carried, found = torch.zeros_like(after), []
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * after - values[:, t]
        step = delta + gamma * lam * carried
        carried = torch.where(here, step, carried)
        after = torch.where(here, values[:, t], after)
        found.append(torch.where(here, step, 0.0))
    advantage = torch.stack(found[::-1], 1)
    return advantage, (advantage + values).masked_fill(~mask, 0.0)


def whiten(
    x: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    r"""Mean 0 and variance 1 over the unmasked tokens of the batch.

    The variance has the divisor $n-1$ and $10^{-8}$ added before the root.
    """
    count = mask.sum()
    centred = (x - masked_mean(x, mask)).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * (variance + 1e-8).rsqrt()


def ppo_loss(
    logp: Float[Tensor, "b t"],
    old_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    eps: float = 0.2,
) -> Float[Tensor, ""]:
    r"""$\max(-\hat A r, -\hat A\,\mathrm{clip}(r, 1\pm\varepsilon))$ per token.

    The clip is GRPO's; only where the advantage comes from differs.
    """
    require_finite("logp", logp, mask)
    require_finite("old_logp", old_logp, mask)
    logp = logp.masked_fill(~mask, 0.0)
    ratio = (logp - old_logp.masked_fill(~mask, 0.0)).exp()
    clip = Objective(eps_low=eps, eps_high=eps)
    return masked_mean(surrogate(ratio, advantage, logp, clip)[0], mask)


def value_loss(
    values: Float[Tensor, "b t"],
    old_values: Float[Tensor, "b t"],
    returns: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    eps: float = 0.2,
) -> Float[Tensor, ""]:
    r"""Half the larger of two squared errors, the second one clipped.

    $$L^V = \tfrac12\max\big((V-R)^2, (V_{clip}-R)^2\big),\quad
      V_{clip} = V_{old} + \mathrm{clip}(V - V_{old}, \pm\varepsilon)$$
    """
    near = old_values + (values - old_values).clamp(-eps, eps)
    error = (values - returns).square()
    clipped = (near - returns).square()
    return 0.5 * masked_mean(torch.maximum(error, clipped), mask)
