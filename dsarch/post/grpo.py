r"""Group-relative policy optimisation: advantages, ratios, clips, losses.

Here are the parts, each a function of log-probabilities, masks and rewards;
:mod:`dsarch.post.objective` puts them together. Log-probabilities and masks
are ``[b, t]`` in the alignment of the targets, with $b = q \cdot g$ rows: the
$g$ samples of one question stand side by side. Sources: DeepSeekMath (arXiv
2402.03300) eq. 3-4 and DeepSeek-V3.2 (arXiv 2512.02556) eq. 5-9.

Differentiated as a loss on its own samples, the estimator $k_1$ has the
expected gradient 0, $k_2$ and V3.2's $r\,k_3$ that of the reverse divergence
$KL(\pi_\theta\|\pi_{ref})$, and $k_3$ that of the *forward* one.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsarch.post.logprobs import masked_mean, require_finite

STD_EPS = 1e-4


def advantages(
    rewards: Float[Tensor, "q g"], scale: str = "group"
) -> Float[Tensor, "q g"]:
    r"""How much better each sample is than its group.

    $$\hat A_i = \frac{R_i - \bar R}{\mathrm{std}(R) + 10^{-4}}$$

    ``scale`` says over what the deviation (with $g-1$) is taken: the group
    (DeepSeekMath), the whole batch, or none at all (V3.2, Dr. GRPO). A group
    of equal rewards, a group of one included, gets exact zeros. Raises
    ``ValueError`` for an unknown scale or a reward that is not finite.
    """
    require_finite("rewards", rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    centred = torch.where(equal_groups(rewards)[:, None], 0.0, centred)
    if scale == "none":
        return centred
    if scale == "group":
        return centred / (_std(rewards) + STD_EPS)
    if scale == "batch":
        return centred / (_std(rewards.reshape(1, -1)) + STD_EPS)
    raise ValueError(f"scale {scale!r} is none of 'group', 'batch', 'none'")


def _std(x: Float[Tensor, "q g"]) -> Float[Tensor, "q 1"]:
    """Unbiased deviation; 0 for a single value, where torch gives NaN."""
    if x.shape[1] < 2 or not len(x):
        return x.new_zeros(len(x), 1)
    return x.std(1, keepdim=True)


def equal_groups(rewards: Float[Tensor, "q g"]) -> Bool[Tensor, "q"]:
    """Groups without a signal: every sample has the same reward."""
    return (rewards == rewards[:, :1]).all(1)


def dynamic_sampling(rewards: Float[Tensor, "q g"]) -> Bool[Tensor, "q"]:
    r"""DAPO's filter: keep a question only if its rewards differ.

    With success rate $p$ a group is lost with probability
    $p^g + (1-p)^g$; filling the batch with others keeps its size honest.
    """
    return ~equal_groups(rewards)


def process_advantages(
    step_rewards: Float[Tensor, "q g j"],
    step_ends: Int[Tensor, "q g j"],
    length: int,
) -> Float[Tensor, "q g {length}"]:
    r"""Process supervision: a token earns the steps that end at or after it.

    $$\hat A_{i,t} = \sum_{j:\ \mathrm{end}(j) \ge t} \tilde r_{i,j}$$

    $\tilde r$ are the rewards of all steps of the group, normalised together;
    unused slots have the end $-1$. One step that ends at the last token is
    outcome supervision. (DeepSeekMath, section 4.1.3.) Raises ``ValueError``
    for an end beyond the length.
    """
    last = int(step_ends.max()) if step_ends.numel() else -1
    if last >= length:
        raise ValueError(
            f"a step ends at token {last}, but there are {length} tokens"
        )
    used = step_ends >= 0
    pairs = zip(step_rewards, used, strict=True)
    scores = torch.stack([_normalise(r, u) for r, u in pairs])
    token = torch.arange(length, device=step_ends.device)
    counts = used[..., None] & (step_ends[..., None] >= token)
    return (scores[..., None] * counts).sum(2)


def _normalise(
    x: Float[Tensor, "g j"], used: Bool[Tensor, "g j"]
) -> Float[Tensor, "g j"]:
    """Mean 0 and deviation 1 over the used entries, 0 elsewhere."""
    if not used.any():
        return torch.zeros_like(x)
    return torch.zeros_like(x).masked_scatter(used, advantages(x[used][None]))


def log_ratio(
    logp: Float[Tensor, "b t"],
    old_logp: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    level: str = "token",
) -> Float[Tensor, "b t"]:
    r"""$\log r$ of every token, or its mean over the sequence (GSPO).

    $$\log r_{i,t} = \log\frac{\pi_\theta}{\pi_{old}}(o_{i,t}),\qquad
      \log s_i = \frac1{|o_i|}\sum_t \log r_{i,t}$$

    Masked tokens have the ratio 1; at the sequence level all tokens share
    one. Raises ``ValueError`` for an unknown level.
    """
    difference = (logp - old_logp).masked_fill(~mask, 0.0)
    if level == "token":
        return difference
    if level == "sequence":
        mean = masked_mean(difference, mask, 1)[:, None]
        return mean.expand_as(difference)
    raise ValueError(f"level {level!r} is none of 'token', 'sequence'")


def kl_estimate(
    logp: Float[Tensor, "b t"],
    ref_logp: Float[Tensor, "b t"],
    kind: str = "k3",
    ratio: Float[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b t"]:
    r"""Estimates of $KL(\pi_\theta\,\|\,\pi_{ref})$ from sampled tokens.

    $$k_1 = -\log\rho,\quad k_2 = \tfrac12\log^2\rho,\quad
      k_3 = \rho - \log\rho - 1,\qquad \rho = \pi_{ref}/\pi_\theta$$

    ``unbiased`` is V3.2's $r\,k_3$: ``ratio`` is $\pi_\theta/\pi_{old}$ with
    its gradient; without it the tokens count as on-policy, where the ratio's
    value is 1 and its derivative is not 0. Raises ``ValueError`` for an
    unknown kind.
    """
    log_rho = ref_logp - logp
    on_policy = (logp - logp.detach()).exp()
    k3 = log_rho.exp() - log_rho - 1
    if kind == "k3":
        return k3
    if kind == "unbiased":
        return k3 * (on_policy if ratio is None else ratio)
    if kind == "k2":
        return log_rho.square() / 2
    if kind == "k1":
        return -log_rho
    raise ValueError(f"kind {kind!r} is none of 'k1', 'k2', 'k3', 'unbiased'")


def off_policy_mask(
    logp: Float[Tensor, "b t"],
    sampler_logp: Float[Tensor, "b t"],
    advantage: Float[Tensor, "b"],
    mask: Bool[Tensor, "b t"],
    delta: float,
) -> Bool[Tensor, "b"]:
    r"""Which sequences V3.2 keeps: a stale *negative* sample is dropped.

    $$M_i = 0 \iff \hat A_i < 0 \ \wedge\
      \frac1{|o_i|}\sum_t \log\frac{\pi_{old}}{\pi_\theta} > \delta$$

    $\pi_{old}$ is what the sampler itself returned, so stale weights and a
    differing inference engine count alike. (V3.2, eq. 9.)
    """
    drift = masked_mean(sampler_logp - logp.detach(), mask, 1)
    return (advantage >= 0) | (drift <= delta)
