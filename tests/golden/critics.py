"""Golden vectors of PPO, process supervision and mixed distillation."""

import torch
from torch import Generator, Tensor

from dsarch.post import distill, grpo, ppo
from dsarch.post.objective import Samples, objective, policy_loss
from tests.golden.parts import Vectors, random, sizes
from tests.golden.posting import graded


def critic(generator: Generator) -> Vectors:
    """PPO: shaped rewards, whitened advantages, losses of actor and critic.

    Row 2 has no trained token, row 4 one; what no function may read is
    -1e9 in the file and was minus infinity.
    """
    logp = -random(generator, 5, 9).abs() - 0.1
    old = logp + 0.3 * random(generator, 5, 9)
    ref = logp + 0.4 * random(generator, 5, 9)
    values, returns = random(generator, 5, 9), random(generator, 5, 9)
    old_values = values + 0.4 * random(generator, 5, 9)
    score, advantage = random(generator, 5), random(generator, 5, 9)
    mask = torch.rand(5, 9, generator=generator) < 0.7
    mask[2], mask[4] = False, torch.arange(9) == 3
    logp[~mask] = -torch.inf
    given = {
        "logp": logp,
        "old_logp": old,
        "ref_logp": ref,
        "values": values,
        "old_values": old_values,
        "returns": returns,
        "score": score,
        "advantage": advantage,
    }
    wide = {name: x.double() for name, x in given.items()}
    shaped = ppo.shaped_rewards(
        wide["score"], wide["logp"], wide["ref_logp"], mask, 0.3
    )
    return {
        **sizes(beta=0.3, eps=0.2),
        "in.mask": mask,
        **{f"in.{k}": x.nan_to_num(neginf=-1e9) for k, x in given.items()},
        "out.shaped": shaped,
        "out.whitened": ppo.whiten(wide["advantage"], mask),
        "out.whitened_none": ppo.whiten(wide["advantage"], mask & False),
        **graded(
            "ppo",
            lambda x: ppo.ppo_loss(
                x, wide["old_logp"], wide["advantage"], mask
            ),
            logp,
        ),
        **graded(
            "value",
            lambda x: ppo.value_loss(
                x, wide["old_values"], wide["returns"], mask
            ),
            values,
        ),
    }


def process(generator: Generator) -> Vectors:
    """Advantages by steps, a loss with them, and the off-policy mask."""
    rewards = random(generator, 3, 4, 5)
    ends = torch.randint(-1, 8, (3, 4, 5), generator=generator)
    rewards[1], ends[2] = 0.4, -1
    earned = grpo.process_advantages(rewards.double(), ends, 8)
    logp = -random(generator, 12, 8).abs() - 0.1
    old = logp + 0.3 * random(generator, 12, 8)
    mask = torch.rand(12, 8, generator=generator) < 0.7
    mask[5] = False
    each = random(generator, 12)
    # Row 3 has drifted by exactly 0.5; row 4 by more, at no advantage.
    logp[3:5], old[3:5] = torch.tensor([[-1.0], [-2.0]]), -0.5
    each[3], each[4] = -1.0, 0.0
    kept = {
        f"out.keep.{delta}": grpo.off_policy_mask(
            logp.double(), old.double(), each, mask, delta
        )
        for delta in (-0.1, 0.0, 0.1, 0.5)
    }
    flat = earned.flatten(0, 1)
    return {
        "in.rewards": rewards,
        "in.ends": ends,
        "in.logp": logp,
        "in.old_logp": old,
        "in.mask": mask,
        "in.advantage": each,
        "out.earned": earned,
        "out.differs": grpo.dynamic_sampling(rewards.flatten(1)),
        **kept,
        **graded(
            "loss",
            lambda x: (
                policy_loss(
                    Samples(x, flat, mask, old.double()), objective("grpo")
                ).loss
            ),
            logp,
        ),
    }


def mixture(generator: Generator) -> Vectors:
    """Labels and teacher together, shifted alike; maps and rates of layers."""
    student = random(generator, 2, 6, 9) * 2
    teacher = (random(generator, 2, 6, 9) * 2).double()
    tokens = torch.randint(9, (2, 6), generator=generator)
    mask = torch.rand(2, 6, generator=generator) < 0.6
    mask[:, 0] = True
    made: Vectors = {
        **sizes(temperature=1.7),
        "in.student": student,
        "in.teacher": teacher,
        "in.tokens": tokens,
        "in.mask": mask,
    }
    for weight in (0.0, 0.3, 1.0):

        def loss(x: Tensor, weight: float = weight) -> Tensor:
            return distill.mixed_loss(
                x, teacher, tokens, mask, temperature=1.7, weight=weight
            )

        made |= graded(f"mixed_{weight}", loss, student)
    rates = [distill.keep_probability(step) for step in range(0, 5000, 500)]
    return made | {
        "out.layers": torch.tensor(distill.layer_map(7, 61)),
        "out.rates": torch.tensor(rates),
    }


FUNCTIONS = (critic, process, mixture)
