"""Records for chapter 14: the tiny DeepSeek becomes sparse, in two stages.

``OMP_NUM_THREADS=1 python -m benchmarks.sparse_attention`` teaches the tiny
model to look things up across a long text, gives it indexers, warms them up,
and goes on sparsely; three seeds, about 5 minutes on one core. It writes
``chapters/data/sparse.json``, which holds this command, the sizes and seeds.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsarch import DeepSeek, load_checkpoint
from dsarch.dsa import SparseMLA, top_k
from dsarch.indexing import (
    attention,
    freeze_all_but_indexers,
    indexer_losses,
)
from dsarch.layers import causal_mask, initialise, positions
from dsarch.rope import phases
from dsarch.train import corpora
from dsarch.train.data import chances
from dsarch.train.tokenizer import BOS, encode

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.sparse_attention"
ROOT = Path(__file__).parents[1]
TARGET = ROOT / "chapters" / "data" / "sparse.json"
SEEDS = (0, 1, 2)
PAIRS, QUESTIONS, TEXT = 6, 10, 256
FIRST = TEXT - 4 * QUESTIONS
STEPS = {"dense": 40, "warm-up": 60, "sparse": 30}
RATES = {"dense": 1e-3, "warm-up": 3e-3, "sparse": 3e-4}
BUDGET = 16
SHOWN = (2, 4, 8, 16, 32, 128)


class Lookup(NamedTuple):
    """Texts ``[b, t]``, and where the answer of each question stands."""

    tokens: Tensor
    source: Tensor


def texts(seed: int, index: int, rows: int = 8) -> Lookup:
    """Six pairs, a story, then ten questions about the pairs."""
    numbers = chances(seed + 31, index)
    made = [_text(numbers) for _ in range(rows)]
    tokens, source = zip(*made, strict=True)
    return Lookup(torch.tensor(tokens), torch.tensor(source))


def _text(numbers: Iterator[float]) -> tuple[list[int], list[int]]:
    def pick(options: str) -> str:
        return options[int(next(numbers) * len(options))]

    pairs: dict[str, str] = {}
    for _ in range(PAIRS):
        key = pick("".join(k for k in "abcdefghijkl" if k not in pairs))
        pairs[key] = pick("QRSTUVWXYZ") + pick("QRSTUVWXYZ")
    head = encode("{" + ",".join(k + v for k, v in pairs.items()) + "}")
    room, story = FIRST - 2 - len(head), []
    while len(story) < room:
        story += corpora.document("story", numbers).tokens[1:-1] + [32]
    questions = [pick("".join(pairs)) for _ in range(QUESTIONS)]
    tail = encode("}" + "".join(k + pairs[k] + "," for k in questions))
    source = [2 + 4 * list(pairs).index(k) + 1 for k in questions]
    return [BOS, *head, *story[:room], *tail], source


def asked() -> Tensor:
    """Where the keys of the questions stand."""
    return FIRST + 4 * torch.arange(QUESTIONS)


def answers(model: DeepSeek, batch: Lookup) -> tuple[Tensor, Tensor]:
    """Logits for both letters of every answer, and the letters."""
    at = torch.cat([asked(), asked() + 1])
    logits = model(batch.tokens).index_select(1, at)
    return logits, batch.tokens.index_select(1, at + 1)


def language_loss(model: DeepSeek, batch: Lookup) -> Tensor:
    """Cross-entropy of the answers."""
    logits, letters = answers(model, batch)
    return F.cross_entropy(logits.flatten(0, 1), letters.flatten())


@torch.no_grad()
def accuracy(model: DeepSeek, rows: int = 48) -> float:
    """Share of right letters on texts of another seed."""
    logits, letters = answers(model, texts(99, 0, rows))
    return round(float((logits.argmax(-1) == letters).double().mean()), 3)


def sparse_layers(model: nn.Module) -> list[SparseMLA]:
    """The layers that have an indexer."""
    return [x for x in model.modules() if isinstance(x, SparseMLA)]


def set_budget(model: nn.Module, k: int) -> None:
    """Let every layer read ``k`` keys from now on."""
    for layer in sparse_layers(model):
        layer.topk = k


def start(seed: int, k: int = TEXT) -> DeepSeek:
    """The tiny pre-trained model with an untrained indexer in each layer."""
    old = load_checkpoint(ROOT / "weights" / "tiny-pretrained", torch.float32)
    changes = {"model_type": "deepseek_v32", "index_topk": k}
    cfg = old.cfg.replace(num_nextn_predict_layers=0, **changes)
    model = DeepSeek(cfg, torch.Generator().manual_seed(seed))
    missing, _ = model.load_state_dict(old.state_dict(), strict=False)
    assert all(".indexer." in name for name in missing)
    for layer in sparse_layers(model):
        generator = torch.Generator().manual_seed(seed)
        initialise(layer.indexer, 0.1, generator)
    return model


def train(model: DeepSeek, stage: str, seed: int) -> list[float]:
    """One stage; returns its loss, every tenth step.

    The dense stage learns the task, the warm-up only what attention reads,
    the sparse stage both at once, each loss for its own weights.
    """
    weights = list(model.parameters())
    if stage == "warm-up":
        weights = freeze_all_but_indexers(model)
    elif stage == "dense":
        weights = [w for n, w in model.named_parameters() if "indexer" not in n]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=RATES[stage], weight_decay=0.0)
    history = []
    for step in range(STEPS[stage]):
        loss = stage_loss(model, stage, texts(seed, step + 1000 * len(stage)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(round(loss.item(), 4))
    return history[::10] + history[-1:]


def stage_loss(model: DeepSeek, stage: str, batch: Lookup) -> Tensor:
    """The language loss, the mean divergence of the indexers, or both."""
    if stage == "dense":
        return language_loss(model, batch)
    with indexer_losses(model) as losses:
        language = language_loss(model, batch)
    divergence = torch.stack(losses).mean()
    return divergence if stage == "warm-up" else language + divergence


@torch.no_grad()
def selection(model: DeepSeek) -> dict[str, dict[int, list[float]]]:
    """Of what dense attention reads, the share that ``k`` keys catch.

    ``indexer`` selects by its scores, ``best`` by attention itself, and
    ``window`` the last keys; one number for each layer, at the questions.
    ``source`` is the share of questions whose answer is selected.
    """
    batch = texts(98, 0, 16)
    names = ("indexer", "best", "window", "source")
    found: dict = {name: {k: [] for k in SHOWN} for name in names}
    for p, score, mask in readings(model, batch.tokens):
        recent = torch.arange(TEXT).expand_as(p).to(p.dtype)
        for name, order in (
            ("indexer", score),
            ("best", p),
            ("window", recent),
        ):
            for k in SHOWN:
                index = top_k(order[:, asked()], mask[:, asked()], k)
                caught = p[:, asked()].gather(-1, index).sum(-1).mean()
                found[name][k].append(round(caught.item(), 3))
                if name == "indexer":
                    hit = (index == batch.source[..., None]).any(-1)
                    share = hit.double().mean().item()
                    found["source"][k].append(round(share, 3))
    return found


def readings(
    model: DeepSeek, tokens: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What each layer reads when it reads all, its index scores, the mask."""
    position = positions(len(tokens), 0, tokens.size(1))
    phase = phases(model.cfg, position)
    mask = causal_mask(position, tokens.size(1))
    x = model.model.embed_tokens(tokens)
    for layer in model.layers:
        attend, h = layer.self_attn, layer.input_layernorm(x)
        q, q_rope, latent = attend.queries(h, phase)
        c, k_rope = attend.memories(h, phase)
        w_uk = attend.up()[0]
        p = attention(q, q_rope, c, k_rope, w_uk, mask, attend.scale)
        keys = attend.indexer.keys(h, phase)
        yield p, attend.indexer(h, latent, phase, keys), mask
        x = layer(x, phase, mask)


def by_budget(model: DeepSeek) -> dict[int, float]:
    """Accuracy for every number of keys; dense again afterwards."""
    found = {}
    for k in SHOWN:
        set_budget(model, k)
        found[k] = accuracy(model)
    set_budget(model, TEXT)
    return found


class Recent:
    """Chooses the last ``k`` keys of each query, as a sliding window does."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, x, latent, phase, keys, mask):
        order = torch.arange(mask.size(-1)).expand(mask.shape).float()
        return top_k(order, mask, self.k)


def with_window(model: DeepSeek) -> dict[int, float]:
    """Accuracy when every layer reads only the last keys."""
    found = {}
    for k in SHOWN:
        for layer in sparse_layers(model):
            layer.choose = Recent(k)
        found[k] = accuracy(model)
    for layer in sparse_layers(model):
        del layer.choose
    return found


def record(seed: int) -> dict:
    """Everything that one seed shows."""
    model = start(seed)
    found: dict = {"seed": seed, "untaught": accuracy(model)}
    train(model, "dense", seed)
    taught = {name: x.clone() for name, x in model.state_dict().items()}
    found |= {"dense": accuracy(model), "window": with_window(model)}
    before = {"accuracy": by_budget(model), **selection(model)}
    found["cold"] = {k: before[k] for k in ("accuracy", "indexer", "source")}
    found["divergence"] = train(model, "warm-up", seed)
    found["warm"] = {"accuracy": by_budget(model), **selection(model)}
    set_budget(model, BUDGET)
    found["sparse loss"] = train(model, "sparse", seed)
    found["sparse"] = {"accuracy": by_budget(model)}
    other = start(seed, BUDGET)
    other.load_state_dict(taught)
    train(other, "sparse", seed)
    found["no warm-up"] = {"accuracy": by_budget(other)}
    return found


def main() -> None:
    runs = []
    for seed in SEEDS:
        runs.append(record(seed))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    kept = {
        "command": COMMAND,
        "text": {"tokens": TEXT, "pairs": PAIRS, "questions": QUESTIONS},
        "steps": STEPS,
        "rates": RATES,
        "budget": BUDGET,
        "runs": runs,
    }
    TARGET.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
