r"""Rewards: rules that check an answer, and a model that learns to compare.

DeepSeek-R1 rewards reasoning by rules alone, accuracy plus format, because a
learned reward would be gamed over thousands of steps; for open questions it
uses a reward model trained on pairs. Sources: DeepSeek-R1 (arXiv 2501.12948),
DAPO (2503.14476) for the length penalty.
"""

import math
import re
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dsarch.layers import widen
from dsarch.post.logprobs import require_finite

FORMAT = re.compile(
    r"\s*<think>(?P<think>.*?)</think>\s*"
    r"<answer>(?P<answer>.*?)</answer>\s*",
    re.DOTALL,
)


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``, braces balanced; else None."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    begin = start + len(r"\boxed{")
    depth = 1
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end].strip()
    return None


def same_answer(found: str, expected: str) -> bool:
    """Equal as numbers if both are numbers, else as stripped text.

    ``0.5``, ``1/2`` and ``2/4`` are one answer; comparing strings would call
    them three.
    """
    left, right = _number(found), _number(expected)
    if left is not None and right is not None:
        return left == right
    return found.strip() == expected.strip()


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", "").replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return None


def accuracy_reward(text: str, expected: str) -> float:
    r"""1 if the final answer is right, else 0.

    The answer is the last ``\boxed{...}``, or else the ``<answer>`` part of a
    well-formed text. No answer is a wrong answer.
    """
    answer = boxed(text)
    if answer is None:
        match = FORMAT.fullmatch(text)
        answer = match["answer"] if match else None
    return float(answer is not None and same_answer(answer, expected))


def format_reward(text: str) -> float:
    """1 for one thought and one answer in their tags and nothing else."""
    match = FORMAT.fullmatch(text)
    tags = re.compile(r"</?(?:think|answer)>")
    inner = match["think"] + match["answer"] if match else "<think>"
    return float(not tags.search(inner))


def language_reward(text: str, script: str = "latin") -> float:
    """Share of the words in the target language's script (R1, stage 2).

    A run of letters is a word, a Chinese character is one, too; a text
    without words earns 0. Raises ``ValueError`` for an unknown script.
    """
    scripts = {"latin": r"[A-Za-z]+", "han": r"[\u4e00-\u9fff]"}
    if script not in scripts:
        raise ValueError(f"script {script!r} is none of {list(scripts)}")
    counts = {k: len(re.findall(v, text)) for k, v in scripts.items()}
    return counts[script] / max(1, sum(counts.values()))


def overlong_penalty(
    lengths: Int[Tensor, "b"], max_length: int, buffer: int
) -> Float[Tensor, "b"]:
    r"""DAPO's soft punishment of long answers, added to the reward.

    0 up to $L_{max} - L_c$ tokens, falling linearly to $-1$ at $L_{max}$ and
    $-1$ beyond. Raises ``ValueError`` unless $0 < L_c \le L_{max}$.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer {buffer} is not in 1 ... {max_length}")
    over = (lengths - (max_length - buffer)).clamp(0, buffer)
    return -over.to(torch.get_default_dtype()) / buffer


def pass_at_k(samples: int, correct: int, k: int) -> float:
    r"""Chance that one of ``k`` samples is right, unbiased.

    $$1 - \binom{n-c}{k} \Big/ \binom nk$$

    Raises ``ValueError`` unless $0 \le c \le n$ and $1 \le k \le n$.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"{correct} right and k {k} do not fit {samples}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def last_token(
    x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, "b d"]:
    """The vector at each row's last real token, not at its padding.

    Raises ``ValueError`` for a row without a token.
    """
    if not mask.any(1).all():
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"row {row} has 0 real tokens, needs at least 1")
    place = torch.arange(mask.shape[1], device=mask.device)
    last = (place * mask).argmax(1)
    index = last[:, None, None].expand(-1, 1, x.shape[-1])
    return x.gather(1, index).squeeze(1)


class ScoreHead(nn.Module):
    """One number from a hidden state: a reward head or a critic's head.

    The attribute is called as in a released sequence classifier. A reward
    model reads it at the last token, a critic at every token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, hidden: Float[Tensor, "*z d"]) -> Float[Tensor, "*z"]:
        return self.score(hidden).squeeze(-1)


def bradley_terry_loss(
    chosen: Float[Tensor, "b"],
    rejected: Float[Tensor, "b"],
    *,
    margin: Float[Tensor, "b"] | None = None,
    centering: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Negative log-likelihood that the chosen answer wins.

    $$L = -\log\sigma(r_c - r_r - m) + c\,(r_c + r_r)^2$$

    Only differences are identified; the second term keeps their level near 0.
    Raises ``ValueError`` for rewards that are not finite.
    """
    require_finite("chosen", chosen)
    require_finite("rejected", rejected)
    gap = widen(chosen) - widen(rejected)
    if margin is not None:
        gap = gap - margin
    centre = (widen(chosen) + widen(rejected)).square().mean()
    return -logsigmoid(gap).mean() + centering * centre
