"""Write `trl.json`: losses and gradients that TRL 1.16.0 computes.

TRL brings datasets, pyarrow and pandas along, far more than the tests need, so
its answers are stored. To write them again, in an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0 trl==1.16.0
    python tests/golden/trl_golden.py

TRL's own functions run on fixed tensors, with a stand-in for the trainer; the
group advantages are lines inside a long method, which are cut out and run.
"""

import inspect
import json
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from torch import Tensor
from trl import DPOTrainer, GRPOTrainer, RewardTrainer
from trl.experimental.gkd import GKDTrainer
from trl.trainer.utils import nanstd

VERSION = "1.16.0"
PLACE = Path(__file__).with_name("trl.json")
ROWS, LENGTH = 6, 7


def same(x, *args, **kwargs):
    return x


ACCELERATOR = SimpleNamespace(
    device="cpu",
    num_processes=1,
    sync_gradients=True,
    gather=same,
    gather_for_metrics=same,
    reduce=same,
    unwrap_model=same,
)


def metrics() -> dict:
    return {"train": defaultdict(list), "eval": defaultdict(list)}


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def policy_inputs(generator: torch.Generator) -> dict[str, Tensor]:
    """Uneven completions: one empty, one with a tool's words inside."""
    old = -noise(generator, ROWS, LENGTH).abs() - 0.05
    lengths = torch.tensor([7, 5, 0, 3, 6, 1])
    mask = torch.arange(LENGTH) < lengths[:, None]
    mask[4, 2:4] = False
    return {
        "old": old,
        "logp": old + 0.35 * noise(generator, ROWS, LENGTH),
        "ref": old + 0.3 * noise(generator, ROWS, LENGTH),
        "mask": mask,
        "advantage": noise(generator, ROWS),
    }


def policy_cases() -> list[dict]:
    """Settings in TRL's names; every choice meets several others."""
    base = {
        "loss_type": "grpo",
        "level": "token",
        "eps_low": 0.2,
        "eps_high": 0.2,
        "delta": None,
        "beta": 0.0,
        "corrected": False,
        "off_policy": None,
        "tokens": None,
    }
    changes = [
        {"loss_type": kind, "level": level, "beta": beta}
        for kind in ("grpo", "bnpo", "dr_grpo", "dapo")
        for level in ("token", "sequence")
        for beta in (0.0, 0.07)
    ]
    changes += [
        {"beta": 0.07, "corrected": True},
        {"beta": 0.07, "corrected": True, "level": "sequence"},
        {"beta": 0.07, "corrected": True, "delta": 1.1},
        {"delta": 1.1},
        {"off_policy": 0.05},
        {"off_policy": 0.05, "beta": 0.07, "corrected": True},
        {"off_policy": 0.05, "loss_type": "bnpo"},
        {"loss_type": "dapo", "eps_high": 0.28},
        {"loss_type": "dapo", "eps_high": 0.28, "tokens": 53},
        {"level": "sequence", "eps_low": 3e-4, "eps_high": 4e-4},
        {"eps_low": 10.0, "eps_high": 10.0},
        {"loss_type": "cispo", "eps_high": 1.2},
        {"loss_type": "cispo", "eps_high": 1.2, "beta": 0.07},
    ]
    return [base | change for change in changes]


def policy_loss(x: dict[str, Tensor], case: dict) -> tuple[Tensor, Tensor]:
    logp = x["logp"].clone().requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        _metrics=metrics(),
        loss_type=case["loss_type"],
        beta=case["beta"],
        epsilon_low=case["eps_low"],
        epsilon_high=case["eps_high"],
        importance_sampling_level=case["level"],
        args=SimpleNamespace(
            delta=case["delta"],
            use_bias_correction_kl=case["corrected"],
            steps_per_generation=1,
        ),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=case["off_policy"],
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        max_completion_length=9,
        current_gradient_accumulation_steps=1,
        _get_per_token_logps_and_entropies=lambda *a, **k: (
            logp,
            torch.zeros_like(logp),
            None,
        ),
    )
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    mask = x["mask"].to(logp.dtype)
    tokens = mask.sum() if case["tokens"] is None else case["tokens"]
    inputs = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": ids[:, :2] + 1,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": x["advantage"],
        "old_per_token_logps": x["old"],
        "ref_per_token_logps": x["ref"],
        "num_items_in_batch": torch.as_tensor(tokens, dtype=torch.float64),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, torch.autograd.grad(loss, logp)[0]


def advantage(rewards: Tensor, scale: str) -> Tensor:
    """Run TRL's own lines on `[q, g]` rewards."""
    method = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    begin = method.index("rewards = (rewards_per_func * self.reward_weights")
    begin = method.rindex("\n", 0, begin) + 1
    end = method.index('elif self.multi_objective_aggregation == "normalize')
    lines = textwrap.dedent(method[begin : method.rindex("\n", 0, end)])
    names = {
        "torch": torch,
        "nanstd": nanstd,
        "self": SimpleNamespace(
            reward_weights=torch.ones(1, dtype=torch.float64),
            scale_rewards=scale,
        ),
        "device": "cpu",
        "num_generations": rewards.shape[1],
        "rewards_per_func": rewards.reshape(-1, 1),
        "unscorable_mask": torch.zeros(rewards.numel(), dtype=torch.bool),
    }
    exec(lines, names)
    return names["advantages"].reshape(rewards.shape)


def preference(x: dict[str, Tensor], case: dict) -> tuple[Tensor, Tensor]:
    logp = x["logp"].clone().requires_grad_()
    outputs = SimpleNamespace(
        log_probs=logp * x["mask"],
        entropy=torch.zeros_like(logp),
        mean_logits=torch.zeros_like(logp),
        is_top1=torch.zeros_like(logp, dtype=torch.bool),
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        _metrics=metrics(),
        _total_train_tokens=0,
        _tp_size=1,
        loss_types=[case["variant"]],
        loss_weights=[1.0],
        beta=case["beta"],
        label_smoothing=case["smoothing"],
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
        ld_alpha=None,
        use_weighting=False,
        aux_loss_enabled=False,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    prompt = torch.zeros(len(logp), 1, dtype=torch.bool)
    half = len(logp) // 2
    ids = torch.zeros(len(logp), logp.shape[1] + 1, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids + 1,
        "completion_mask": torch.cat([prompt, x["mask"]], 1).long(),
        "ref_chosen_logps": x["ref"][:half],
        "ref_rejected_logps": x["ref"][half:],
    }
    loss = DPOTrainer._compute_loss(
        trainer, lambda **kwargs: outputs, inputs, False
    )
    return loss, torch.autograd.grad(loss, logp)[0]


def reward(x: dict[str, Tensor], case: dict) -> tuple[Tensor, Tensor]:
    scores = x["scores"].clone().requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        _metrics=metrics(),
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(center_rewards_coefficient=case["centering"]),
    )
    inputs = {"attention_mask": torch.ones(len(scores), 3)}
    if case["margin"]:
        inputs["margin"] = x["margin"]
    loss = RewardTrainer.compute_loss(
        trainer,
        lambda **kwargs: SimpleNamespace(logits=scores[:, None]),
        inputs,
    )
    return loss, torch.autograd.grad(loss, scores)[0]


def distil(x: dict[str, Tensor], case: dict) -> tuple[Tensor, Tensor]:
    student = x["student"].clone().requires_grad_()
    labels = torch.where(x["mask"], 0, -100)
    loss = GKDTrainer.generalized_jsd_loss(
        student,
        x["teacher"],
        labels,
        beta=case["beta"],
        temperature=case["temperature"],
    )
    return loss, torch.autograd.grad(loss, student)[0]


def listed(x) -> object:
    return x.tolist() if isinstance(x, Tensor) else x


def solved(inputs: dict[str, Tensor], cases: list[dict], loss) -> dict:
    answers = []
    for case in cases:
        value, gradient = loss(inputs, case)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        answers.append(
            case | {"loss": value.item(), "gradient": listed(gradient)}
        )
    return {
        "inputs": {k: listed(v) for k, v in inputs.items()},
        "cases": answers,
    }


def preference_part(generator: torch.Generator) -> dict:
    lengths = torch.tensor([5, 8, 3, 1, 6, 4, 8, 2])
    x = {
        "logp": -noise(generator, 8, 8).abs(),
        "ref": -4 - 3 * noise(generator, 8).abs(),
        "mask": torch.arange(8) < lengths[:, None],
    }
    names = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair")
    names += ("bco_pair", "sppo_hard", "apo_zero", "apo_down", "sft")
    names += ("sigmoid_norm",)
    smoothed = ("robust", "exo_pair")
    cases = [
        {"variant": n, "beta": b, "smoothing": 0.1 if n in smoothed else 0.0}
        for n in names
        for b in (0.1, 0.7)
    ]
    return solved(x, cases, preference)


def reward_part(generator: torch.Generator) -> dict:
    x = {
        "scores": noise(generator, 10),
        "margin": noise(generator, 5).abs(),
    }
    cases = [
        {"margin": margin, "centering": centering}
        for margin in (False, True)
        for centering in (None, 0.01)
    ]
    return solved(x, cases, reward)


def distil_part(generator: torch.Generator) -> dict:
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]]).bool()
    x = {
        "student": 2 * noise(generator, 2, 4, 5),
        "teacher": 2 * noise(generator, 2, 4, 5),
        "mask": mask,
    }
    cases = [
        {"beta": beta, "temperature": temperature}
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0)
        for temperature in (1.0, 2.5)
    ]
    return solved(x, cases, distil)


def advantage_part(generator: torch.Generator) -> dict:
    rewards = noise(generator, 5, 4)
    rewards[1] = 0.25
    rewards[2] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    answers = {
        scale: listed(advantage(rewards, scale))
        for scale in ("group", "batch", "none")
    }
    return {"rewards": listed(rewards), "answers": answers}


def main() -> None:
    assert trl.__version__ == VERSION, trl.__version__
    generator = torch.Generator().manual_seed(20)
    golden = {
        "trl": VERSION,
        "advantages": advantage_part(generator),
        "policy": solved(policy_inputs(generator), policy_cases(), policy_loss),
        "preference": preference_part(generator),
        "reward": reward_part(generator),
        "distil": distil_part(generator),
    }
    text = json.dumps(golden, separators=(",", ":"))
    PLACE.write_text(text + "\n", encoding="utf8")
    print(f"{PLACE.name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
