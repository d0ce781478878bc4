"""Golden vectors of post-training: losses, and gradients by autograd."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from dsarch.post import distill
from dsarch.post.dpo import VARIANTS, dpo_loss
from dsarch.post.grpo import advantages, kl_estimate
from dsarch.post.logprobs import token_logprobs
from dsarch.post.objective import Objective, Samples, objective, policy_loss
from dsarch.post.ppo import gae
from dsarch.post.reward import bradley_terry_loss
from dsarch.post.sft import sft_loss
from tests.golden.parts import Vectors, random, sizes

POLICIES = {
    "grpo": objective("grpo", beta=0.3),
    "v3.2": objective("v3.2", beta=0.3),
    "k1": objective("grpo", beta=0.3, kl="k1"),
    "k2": objective("grpo", beta=0.3, kl="k2"),
    "dr_grpo": objective("dr_grpo", max_length=9),
    "dapo": objective("dapo"),
    "gspo": objective("gspo", eps_low=0.05, eps_high=0.05, beta=0.3),
    "gspo_v3.2": objective("v3.2", level="sequence", beta=0.3),
    "cispo": objective("cispo"),
    "two_sided": objective("grpo", delta=1.1),
}


def graded(name: str, loss: Callable[..., Tensor], *inputs: Tensor) -> Vectors:
    """A loss in fp64 and what autograd says of each of its inputs."""
    wide = [x.double().requires_grad_() for x in inputs]
    with torch.enable_grad():
        value = loss(*wide)
        slopes = torch.autograd.grad(value, wide, allow_unused=True)
    made = {f"out.{name}": value.detach()[None]}
    for number, slope in enumerate(slopes):
        if slope is not None:
            made[f"out.{name}.gradient.{number}"] = slope
    return made


def sft(generator: Generator) -> Vectors:
    """Log-probabilities, and the loss of the trained tokens."""
    logits = random(generator, 2, 7, 11) * 3
    tokens = torch.randint(11, (2, 7), generator=generator)
    mask = torch.rand(2, 7, generator=generator) < 0.6
    mask[0, 0] = True
    # A masked token that cannot come, and a batch without a trained one.
    forbidden = torch.zeros(2, 7, 11, dtype=torch.bool)
    masked = ~mask[:, 1:, None]
    forbidden[:, :-1].scatter_(2, tokens[:, 1:, None], masked)
    fewer = logits.masked_fill(forbidden, -torch.inf)
    nothing = torch.zeros_like(mask)
    return {
        **sizes(temperature=0.7),
        "in.logits": logits,
        "in.tokens": tokens,
        "in.mask": mask,
        "in.forbidden": forbidden,
        "out.logprobs": token_logprobs(
            logits.double(), tokens, temperature=0.7
        ),
        **graded("loss", lambda x: sft_loss(x, tokens, mask), logits),
        **graded("hidden", lambda x: sft_loss(x, tokens, mask), fewer),
        **graded("nothing", lambda x: sft_loss(x, tokens, nothing), logits),
    }


def preferences(generator: Generator) -> Vectors:
    """Bradley and Terry's loss, and every variant of DPO."""
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    sums = [random(generator, 6) * 4 - 9 for _ in names]
    lengths = torch.randint(1, 9, (2, 6), generator=generator)
    margin = random(generator, 6).abs()
    made: Vectors = {
        **sizes(beta=0.4, smoothing=0.1, centering=0.01),
        **{f"in.{k}": x for k, x in zip(names, sums, strict=True)},
        "in.lengths": lengths,
        "in.margin": margin,
    }
    made |= graded(
        "bradley_terry",
        lambda c, r: bradley_terry_loss(c, r, margin=margin, centering=0.01),
        *sums[:2],
    )
    reference = [x.double() for x in sums[2:]]
    for variant in VARIANTS:
        made |= graded(
            variant,
            lambda c, r, variant=variant: dpo_loss(
                *(c, r, *reference),
                beta=0.4,
                variant=variant,
                smoothing=0.1,
                lengths=(lengths[0], lengths[1]),
            ),
            *sums[:2],
        )
    return made


def grpo(generator: Generator) -> Vectors:
    """Advantages, members of the policy losses, divergences, and GAE."""
    rewards = torch.randint(3, (4, 3), generator=generator).float()
    rewards[1] = 0.7
    logp = -random(generator, 6, 8).abs() - 0.1
    old = logp + 0.3 * random(generator, 6, 8)
    ref = logp + 0.4 * random(generator, 6, 8)
    mask = torch.rand(6, 8, generator=generator) < 0.7
    mask[4] = False
    values, scores = random(generator, 6, 8), random(generator, 6, 8)
    advantage = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.9, 0.0])
    keep = torch.tensor([True, True, True, False, True, True])
    made: Vectors = {
        "in.rewards": rewards,
        "in.logp": logp,
        "in.old_logp": old,
        "in.ref_logp": ref,
        "in.mask": mask,
        "in.advantage": advantage,
        "in.keep": keep,
        "in.values": values,
        "in.scores": scores,
    }
    # The mean of seven equal numbers need not be that number in fp32.
    equal = torch.tensor([[0.9], [0.7], [0.1]]).expand(3, 7)
    made["in.equal"] = torch.cat([equal, random(generator, 1, 7)])
    made["out.equal"] = advantages(made["in.equal"], "group")
    for scale in ("group", "batch", "none"):
        made[f"out.advantages.{scale}"] = advantages(rewards.double(), scale)
    for kind in ("k1", "k2", "k3"):
        made[f"out.kl.{kind}"] = kl_estimate(logp.double(), ref.double(), kind)
    made |= unusual(logp, old, ref, mask, advantage)
    known = {"old_logp": old.double(), "ref_logp": ref.double(), "keep": keep}
    for name, choice in POLICIES.items():
        made |= graded(
            name,
            lambda x, choice=choice: (
                policy_loss(
                    Samples(x, advantage.double(), mask, **known), choice
                ).loss
            ),
            logp,
        )
    found = gae(scores.double(), values.double(), mask, gamma=0.97, lam=0.9)
    return made | {"out.gae": found[0], "out.returns": found[1]}


def unusual(
    logp: Tensor, old: Tensor, ref: Tensor, mask: Tensor, advantage: Tensor
) -> Vectors:
    """Impossible tokens under the mask; samples that are only just drawn."""
    hidden = [x.masked_fill(~mask, -torch.inf) for x in (logp, old, ref)]
    _, old, ref = (x.double() for x in hidden)
    wide, made = advantage.double(), {}
    # With one ratio for a sequence a masked place could spoil all others.
    for name in ("grpo", "gspo_v3.2"):

        def masked(x: Tensor, choice: Objective = POLICIES[name]) -> Tensor:
            return policy_loss(Samples(x, wide, mask, old, ref), choice).loss

        made |= graded(f"masked.{name}", masked, hidden[0])

    def fresh(x: Tensor) -> Tensor:
        return policy_loss(Samples(x, wide, mask), objective("grpo")).loss

    return made | graded("fresh", fresh, logp)


def distillation(generator: Generator) -> Vectors:
    """Divergences of softened logits, over all positions and over some."""
    student, teacher = random(generator, 5, 9) * 2, random(generator, 5, 9) * 2
    mask = torch.tensor([True, False, True, True, False])
    losses: dict[str, Callable[..., Tensor]] = {
        "kd": lambda s, t, m: distill.kd_loss(s, t, temperature=2.5, mask=m),
        "reverse": lambda s, t, m: distill.reverse_kl_loss(
            s, t, temperature=0.8, mask=m
        ),
    } | {
        f"jsd_{beta}": lambda s, t, m, beta=beta: distill.jsd_loss(
            s, t, beta=beta, temperature=1.3, mask=m
        )
        for beta in (0.0, 0.3, 1.0)
    }
    # What neither of them may say.
    never = torch.arange(9) == torch.tensor([[4], [0], [8], [4], [2]])
    fewer = [x.masked_fill(never, -torch.inf) for x in (student, teacher)]
    cases = {
        "": (student, teacher, None),
        "_masked": (student, teacher, mask),
        "_forbidden": (*fewer, None),
    }
    made: Vectors = {
        "in.student": student,
        "in.teacher": teacher,
        "in.mask": mask,
        "in.forbidden": never,
    }
    for name, loss in losses.items():
        for suffix, (s, t, kept) in cases.items():
            # The teacher asks for a gradient, too, and must get none.
            made |= graded(name + suffix, partial(loss, m=kept), s, t)
    return made


FUNCTIONS = (sft, preferences, grpo, distillation)
