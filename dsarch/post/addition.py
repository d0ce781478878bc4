"""A task whose answers can be checked: addition, written digit by digit.

A prompt is ``ab+cd=``; the answer is the sum with its digits reversed and
without leading zeros, then the end token. Reversed, because a carry is known
only when the smaller digits are. The vocabulary has 13 tokens: ten digits,
plus, equals, end.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PLUS, EQUALS, EOS = 10, 11, 12
VOCABULARY = 13


class Addition:
    """Sums of two numbers of ``digits`` digits, with leading zeros."""

    eos = EOS

    def __init__(self, digits: int = 2) -> None:
        if digits < 1:
            raise ValueError(f"a number needs 1 digit at least, got {digits}")
        self.digits = digits
        self.max_new_tokens = digits + 2

    def prompts(
        self, count: int, generator: torch.Generator
    ) -> Int[Tensor, "{count} t"]:
        """Draw ``count`` questions."""
        shape = (count, 2, self.digits)
        digit = torch.randint(10, shape, generator=generator)
        return self._write(digit[:, 0], digit[:, 1])

    def every(self) -> Int[Tensor, "q t"]:
        """All questions there are, in order: exact accuracy needs no luck."""
        span = torch.arange(10**self.digits)
        pairs = torch.cartesian_prod(span, span)
        power = 10 ** torch.arange(self.digits - 1, -1, -1)
        digit = pairs[..., None] // power % 10
        return self._write(digit[:, 0], digit[:, 1])

    def solve(
        self, prompts: Int[Tensor, "b t"]
    ) -> tuple[Int[Tensor, "b s"], Bool[Tensor, "b s"]]:
        """Questions with their answers, and the mask of the answers."""
        total = self._number(prompts, 0) + self._number(
            prompts, self.digits + 1
        )
        power = 10 ** torch.arange(self.digits + 1)
        digit = total[:, None] // power % 10
        shown = total[:, None] >= power
        shown[:, 0] = True
        answer = torch.where(shown, digit, EOS)
        end = torch.full_like(total, EOS)[:, None]
        trained = torch.cat([shown[:, :1], shown], 1)
        tokens = torch.cat([prompts, answer, end], 1)
        asked = torch.zeros_like(prompts, dtype=torch.bool)
        return tokens, torch.cat([asked, trained], 1)

    def reward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b"]:
        """1 for the exact answer up to its end token, else 0."""
        return right_tokens(self, tokens).all(1).to(torch.float32)

    def _number(self, prompts: Tensor, start: int) -> Int[Tensor, "b"]:
        power = 10 ** torch.arange(self.digits - 1, -1, -1)
        return (prompts[:, start : start + self.digits] * power).sum(1)

    def _write(self, left: Tensor, right: Tensor) -> Int[Tensor, "q t"]:
        sign = torch.full_like(left[:, :1], PLUS)
        return torch.cat([left, sign, right, sign + 1], 1)


def right_tokens(
    task: Addition, tokens: Int[Tensor, "b t"]
) -> Bool[Tensor, "b s"]:
    """Which answer tokens are right, padded as :meth:`Addition.solve` pads.

    The steps of process supervision. Raises ``ValueError`` for a text that is
    longer than any answer.
    """
    width = 2 * task.digits + 2
    expected, _ = task.solve(tokens[:, :width])
    missing = expected.shape[1] - tokens.shape[1]
    if missing < 0:
        raise ValueError(
            f"{tokens.shape[1]} tokens exceed the longest text, "
            f"{expected.shape[1]}"
        )
    padded = torch.nn.functional.pad(tokens, (0, missing), value=EOS)
    return (padded == expected)[:, width:]


def text(tokens: Int[Tensor, "t"]) -> str:
    """A sequence as a reader writes it; the end token is a full stop."""
    return "".join("0123456789+=."[int(token)] for token in tokens)
