"""Records for chapter 7: training with MTP, and drafts of the tiny model.

``OMP_NUM_THREADS=1 python -m benchmarks.mtp`` trains 16 small models and
decodes with ``weights/tiny-pretrained`` (about 8 minutes on one core). It
writes ``chapters/data/mtp.json``, which holds this command and the seeds.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from dsarch import Cache, Config, DeepSeek, load_checkpoint
from dsarch.analysis.speculation import agreement
from dsarch.generate import draft, speculate
from dsarch.sampling import Sampling, likelihood, residual, verify
from dsarch.train.data import Corpus
from dsarch.train.loop import Plan, Trainer
from dsarch.train.loss import evaluate
from dsarch.train.optim import AdamW
from dsarch.train.tokenizer import decode

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.mtp"
HOUSE = Path(__file__).parents[1]
TARGET = HOUSE / "chapters" / "data" / "mtp.json"
DOMAINS = ("story", "arithmetic", "recall", "brackets")
STEPS, SEEDS, HELD_OUT = 300, (0, 1, 2, 3), range(10_000, 10_006)
SMALL = Config(
    hidden_size=64,
    num_hidden_layers=2,
    q_lora_rank=None,
    kv_lora_rank=24,
    qk_nope_head_dim=12,
    v_head_dim=12,
    intermediate_size=160,
    moe_intermediate_size=48,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
)
# name: (MTP layers, lambda, steps)
RUNS = {
    "plain": (0, 0.0, STEPS),
    "MTP, lambda 0.3": (1, 0.3, STEPS),
    "two MTP layers": (2, 0.3, STEPS),
    "plain, as long": (0, 0.0, 9 * STEPS // 5),
}
MARKS = (100, 200, 300, 540)
DEPTH, ROUNDS, SHOWN = 4, 400, 12


def train(name: str, seed: int) -> dict:
    """One run: losses above the floor on unseen text, and its drafts."""
    layers, weight, steps = RUNS[name]
    cfg = SMALL.replace(num_nextn_predict_layers=layers)
    model = DeepSeek(cfg, torch.Generator().manual_seed(seed))
    corpus = Corpus(dict.fromkeys(DOMAINS, 1), 8, 96, seed)
    plan = Plan(
        steps=steps,
        rate=lambda step: (
            5e-3 * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        ),
        mtp_weight=lambda step: weight,
    )
    run = Trainer(model, [AdamW(model.parameters(), lr=0.0)], corpus, plan)
    above, spent = {}, 0.0
    for mark in [mark for mark in MARKS if mark <= steps]:
        spent += sum(row["seconds"] for row in run.run(mark))
        above[mark] = held_out(run)["all"]
    last = held_out(run)
    found = {"seed": seed, "above": above, "domains": last, "seconds": spent}
    if layers:
        batch = corpus._replace(seed=99).batch(HELD_OUT[0])
        found["chance"] = agreement(model, batch).chances()
    return found


def held_out(run: Trainer) -> dict[str, float]:
    """Loss above the floor on text that no run has seen."""
    batches = [run.corpus._replace(seed=99).batch(i) for i in HELD_OUT]
    found = evaluate(run.model, batches, list(DOMAINS))
    return {name: round(a - b, 4) for name, (a, b) in found.items()}


def prompts(domain: str, rows: int) -> Tensor:
    """The first 32 tokens of unseen rows of one domain."""
    return Corpus({domain: 1}, rows, 31, 1000).batch(0).tokens


def depths(model: DeepSeek, domain: str, heat: float) -> dict[str, list[int]]:
    """How often the draft of each place was reached, and kept."""
    reached, kept = [0] * DEPTH, [0] * DEPTH
    for seed, text in enumerate(prompts(domain, ROUNDS // 20)):
        sampling = Sampling(heat, generator=torch.Generator().manual_seed(seed))
        pieces = speculate(model, text[None], sampling, DEPTH)
        next(pieces)
        for _ in range(20):
            good = next(pieces).size(1) - 1
            for place in range(min(good + 1, DEPTH)):
                reached[place] += 1
                kept[place] += place < good
    return {"reached": reached, "kept": kept}


def spelled(token: int) -> str:
    """One token as text; a line break as an arrow."""
    return decode([token]).replace("\n", "↵")


def options(p: Tensor, q: Tensor, full: bool, last: int) -> list:
    """What both distributions think, and what a refusal leaves.

    The likeliest eight to come last, and the one that did.
    """
    left = residual(p[None, None], q[None, None])[0, 0]
    left = left / left.sum()
    ranked = (p if full else left).argsort(descending=True)[:8].tolist()
    shown = [x for x in ranked if max(p[x].item(), q[x].item()) >= 0.002]
    return [
        [spelled(x), *(round(v[x].item(), 4) for v in (p, q, left))]
        for x in dict.fromkeys([*shown, last])
    ]


def rounds(model: DeepSeek, domain: str, count: int, seed: int = 5) -> dict:
    """Rounds of drafting and verifying, one by one, with all their numbers.

    The loop is that of ``dsarch.generate.speculate`` with three drafts; a
    copy of the generator foretells the uniform numbers that ``verify`` draws.
    """
    generator, spare = torch.Generator().manual_seed(seed), torch.Generator()
    sampling = Sampling(1.0, generator=generator)
    tokens, caches, memory = prompts(domain, 1), model.caches(), Cache()
    hidden = model.hidden(tokens, caches)
    new = sampling.draw(sampling.probabilities(model.lm_head(hidden[:, -1:])))
    known, made = torch.cat([tokens[:, 1:], new], 1), []
    for _ in range(count):
        guess, q = draft(model.mtp[0], hidden, known, memory, sampling, 3)
        hidden = model.hidden(torch.cat([known[:, -1:], guess], 1), caches)
        p = sampling.probabilities(model.lm_head(hidden))
        spare.set_state(generator.get_state())
        u = torch.rand(1, 3, generator=spare, dtype=p.dtype)
        known = new = verify(guess, q, p, sampling)
        made.append(told(guess, q, p, u, new))
        hidden = hidden[:, : new.size(1)]
        for cache in caches:
            cache.crop(len(cache) - 4 + new.size(1))
    first = tokens[0, 1:].tolist()
    begin = "".join(map(spelled, first)) + spelled(
        int(verify_start(model, domain, seed))
    )
    return {"begin": begin, "rounds": made}


def verify_start(model: DeepSeek, domain: str, seed: int) -> Tensor:
    """The token that the prompt yields with this seed."""
    sampling = Sampling(1.0, generator=torch.Generator().manual_seed(seed))
    return next(speculate(model, prompts(domain, 1), sampling, 3))


def told(guess: Tensor, q: Tensor, p: Tensor, u: Tensor, new: Tensor) -> dict:
    """One round as the explorer shows it; the outcome is checked."""
    mine, theirs = likelihood(p[:, :3], guess), likelihood(q, guess)
    good = int((u < mine / theirs).long().cumprod(1).sum())
    assert new.size(1) == good + 1
    assert torch.equal(new[:, :good], guess[:, :good])
    theirs_here = q[0, min(good, 2)]
    return {
        "drafts": [spelled(x) for x in guess[0].tolist()],
        "p": [round(x, 4) for x in mine[0].tolist()],
        "q": [round(x, 4) for x in theirs[0].tolist()],
        "u": [round(x, 4) for x in u[0].tolist()],
        "kept": good,
        "last": spelled(int(new[0, -1])),
        "options": options(p[0, good], theirs_here, good == 3, int(new[0, -1])),
    }


def decoding() -> dict:
    """Everything that the tiny model's own drafts show."""
    folder = HOUSE / "weights" / "tiny-pretrained"
    model = load_checkpoint(folder, dtype=torch.float32).requires_grad_(False)
    tables = {
        name: {domain: depths(model, domain, heat) for domain in DOMAINS}
        for name, heat in (("sampled", 1.0), ("greedy", 0.0))
    }
    shown = {domain: rounds(model, domain, SHOWN) for domain in DOMAINS}
    return {"depths": tables, "shown": shown}


def main() -> None:
    """Train and decode, and write the record."""
    torch.set_num_threads(1)
    out: dict = {"command": COMMAND, "steps": STEPS} | decoding()
    out["runs"] = {name: [] for name in RUNS}
    for seed in SEEDS:
        for name in RUNS:
            out["runs"][name].append(train(name, seed))
            print(name, out["runs"][name][-1], flush=True)
    for rows in out["runs"].values():
        for row in rows:
            row["seconds"] = round(row["seconds"], 1)
            row["chance"] = [round(x, 3) for x in row.get("chance", [])]
    text = json.dumps(out, separators=(",", ":"), ensure_ascii=False)
    TARGET.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
