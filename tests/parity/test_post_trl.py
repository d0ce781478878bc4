"""Post-training losses against TRL 1.16.0: stored answers and gradients.

`tests/golden/trl_golden.py` writes them with TRL's own functions; here only
its numbers are needed.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from dsarch.post.distill import jsd_loss
from dsarch.post.dpo import dpo_loss
from dsarch.post.grpo import advantages, off_policy_mask
from dsarch.post.logprobs import masked_mean, sequence_logprobs, shift
from dsarch.post.objective import Objective, Samples, policy_loss
from dsarch.post.reward import bradley_terry_loss
from tests.conftest import TOL, close

PLACE = Path(__file__).resolve().parents[1] / "golden" / "trl.json"
DIVISORS = {"grpo": "sequence", "dr_grpo": "constant"}


@cache
def golden() -> dict:
    return json.loads(PLACE.read_text(encoding="utf8"))


def tensors(part: str) -> dict[str, torch.Tensor]:
    inputs = golden()[part]["inputs"]
    return {
        k: torch.tensor(v, dtype=None if k == "mask" else torch.float64)
        for k, v in inputs.items()
    }


def cases(part: str) -> list:
    return [
        pytest.param(
            case,
            id="-".join(
                f"{v}" for k, v in case.items() if k not in ("loss", "gradient")
            ),
        )
        for case in golden()[part]["cases"]
    ]


def agree(loss, leaf, case, witness, equation, code):
    # TRL holds the smoothing of EXO in fp32, everything else in fp64
    rough = case.get("variant") == "exo_pair"
    tol = TOL[torch.float32 if rough else torch.float64]
    expected = torch.tensor(case["loss"], dtype=torch.float64)
    close(loss, expected, tol)
    (gradient,) = torch.autograd.grad(loss, leaf)
    close(gradient, torch.tensor(case["gradient"], dtype=torch.float64), tol)
    witness(
        equation,
        (loss - expected).abs(),
        reference=f"trl {golden()['trl']}",
        code=code,
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_trl(scale, witness):
    part = golden()["advantages"]
    rewards = torch.tensor(part["rewards"], dtype=torch.float64)
    expected = torch.tensor(part["answers"][scale], dtype=torch.float64)
    found = advantages(rewards, scale)
    # TRL's factor g / (g - 1) is a quotient of integers, hence fp32
    close(found, expected, TOL[torch.float32])
    witness(
        "eq-group-advantage",
        (found - expected).abs().max(),
        reference=f"trl {golden()['trl']}",
        code="dsarch.post.grpo.advantages",
    )


def objective_of(case: dict) -> Objective:
    cispo = case["loss_type"] == "cispo"
    return Objective(
        level=case["level"],
        reduction=DIVISORS.get(case["loss_type"], "token"),
        eps_low=case["eps_low"],
        # TRL's cap of CISPO is the ratio itself, not its distance from 1
        eps_high=case["eps_high"] - 1 if cispo else case["eps_high"],
        delta=case["delta"],
        beta=case["beta"],
        kl="unbiased" if case["corrected"] else "k3",
        max_length=9,
        detached=cispo,
    )


@pytest.mark.parametrize("case", cases("policy"))
def test_policy_losses_equal_trl_with_gradients(case, witness):
    x = tensors("policy")
    logp = x["logp"].requires_grad_()
    keep = None
    if case["off_policy"] is not None:
        keep = off_policy_mask(
            logp, x["old"], x["advantage"], x["mask"], case["off_policy"]
        )
        assert 0 < keep.sum() < len(keep), "the mask must matter"
    samples = Samples(logp, x["advantage"], x["mask"], x["old"], x["ref"], keep)
    found = policy_loss(samples, objective_of(case), tokens=case["tokens"])
    if keep is not None:
        witness(
            "eq-off-policy-mask",
            (found.loss.detach() - case["loss"]).abs(),
            reference=f"trl {golden()['trl']}",
            code="dsarch.post.grpo.off_policy_mask",
        )
    agree(
        found.loss,
        logp,
        case,
        witness,
        "eq-policy-loss",
        "dsarch.post.objective.policy_loss",
    )


@pytest.mark.parametrize("case", cases("preference"))
def test_preference_losses_equal_trl_with_gradients(case, witness):
    x = tensors("preference")
    logp = x["logp"].requires_grad_()
    sums, lengths = sequence_logprobs(logp, x["mask"])
    half = len(sums) // 2
    if case["variant"] == "sft":
        loss = -masked_mean(logp[:half], x["mask"][:half])
    else:
        loss = dpo_loss(
            *sums.split(half),
            *x["ref"].split(half),
            beta=case["beta"],
            variant=case["variant"],
            lengths=(lengths[:half], lengths[half:]),
            smoothing=case["smoothing"],
        )
    agree(loss, logp, case, witness, "eq-dpo", "dsarch.post.dpo.dpo_loss")


@pytest.mark.parametrize("case", cases("reward"))
def test_reward_loss_equals_trl_with_gradients(case, witness):
    x = tensors("reward")
    scores = x["scores"].requires_grad_()
    chosen, rejected = scores.chunk(2)
    loss = bradley_terry_loss(
        chosen,
        rejected,
        margin=x["margin"] if case["margin"] else None,
        centering=case["centering"] or 0.0,
    )
    code = "dsarch.post.reward.bradley_terry_loss"
    agree(loss, scores, case, witness, "eq-bradley-terry", code)


@pytest.mark.parametrize("case", cases("distil"))
def test_jsd_equals_trl_with_gradients(case, witness):
    x = tensors("distil")
    student = x["student"].requires_grad_()
    loss = jsd_loss(
        student,
        x["teacher"],
        beta=case["beta"],
        temperature=case["temperature"],
        mask=x["mask"],
    )
    code = "dsarch.post.distill.jsd_loss"
    agree(loss, student, case, witness, "eq-jsd", code)


def test_the_stored_policy_case_has_every_kind_of_row():
    """Parity says nothing about what its inputs never reach."""
    x = tensors("policy")
    ratio = (x["logp"] - x["old"]).exp()[x["mask"]]
    assert (ratio > 1.28).any() and (ratio < 0.8).any()
    sign = x["advantage"].sign()
    assert (sign > 0).any() and (sign < 0).any()
    assert (x["mask"].sum(1) == 0).any()
    assert shift(x["mask"]).diff(dim=1).any()
