"""The divergence explorer: three estimators, their errors and gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsarch.post.grpo import kl_estimate
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "make the policy almost certain of B while the reference prefers A, and "
    "compare the pulls of k3 and of V3.2."
)
KINDS = ("k1", "k2", "k3", "unbiased")
POLICY, REFERENCE = (50, 30, 20), (20, 50, 30)


def _logs(weights: Sequence[float]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64).log().log_softmax(-1)


def divergence(policy: Sequence[float], reference: Sequence[float]) -> float:
    """KL(policy || reference) of two distributions, given as weights."""
    p, q = _logs(policy), _logs(reference)
    return float((p.exp() * (p - q)).sum())


def estimates(
    policy: Sequence[float], reference: Sequence[float], kind: str
) -> list[float]:
    """The estimate from each token, if it is the one that was drawn."""
    p, q = _logs(policy)[:, None], _logs(reference)[:, None]
    return kl_estimate(p, q, kind)[:, 0].tolist()


def moments(
    policy: Sequence[float], reference: Sequence[float], kind: str
) -> list[float]:
    """Mean and standard deviation of one estimate, by enumeration."""
    p = _logs(policy).exp()
    x = torch.tensor(estimates(policy, reference, kind), dtype=torch.float64)
    mean = (p * x).sum()
    return [float(mean), float((p * (x - mean) ** 2).sum().sqrt())]


def pull(
    policy: Sequence[float], reference: Sequence[float], kind: str
) -> list[float]:
    """Expected gradient by the logits, the samples held fixed."""
    logits = _logs(policy).requires_grad_()
    logp = logits.log_softmax(-1)[:, None]
    found = kl_estimate(logp, _logs(reference)[:, None], kind)[:, 0]
    mean = (logp.detach()[:, 0].exp() * found).sum()
    (slope,) = torch.autograd.grad(mean, logits)
    # the zeros of k1 come out as another 1e-17 on every processor
    return [round(x, 12) + 0.0 for x in slope.tolist()]


def _checks() -> list[Check]:
    checks: list[Check] = []
    for p, q in ((POLICY, REFERENCE), ((1, 98, 1), (70, 10, 20))):
        pair = [list(p), list(q)]
        checks.append(("divergence", pair, divergence(p, q)))
        for kind in KINDS:
            args = [*pair, kind]
            checks.append(("estimates", args, estimates(p, q, kind)))
            checks.append(("moments", args, moments(p, q, kind)))
            checks.append(("pull", args, pull(p, q, kind)))
    return checks


def kl_estimators() -> Explorer:
    """Two distributions over three tokens, and what samples say of them."""
    rows = [
        (kind, *(f"{x:.4f}" for x in moments(POLICY, REFERENCE, kind)))
        for kind in KINDS[:3]
    ]
    return Explorer(
        "kl_estimators",
        {"policy": POLICY, "reference": REFERENCE},
        title="How far is the policy from its reference?",
        columns=["estimator", "mean", "deviation of one sample"],
        rows=rows,
        checks=_checks(),
        hint=HINT,
    )
