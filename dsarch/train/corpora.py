r"""Four domains of text, written together with their exact information.

A domain is a function that makes choices. Every choice is noted with the
probability of each byte that spells it, so that a document comes with two
exact numbers per byte: its surprise $-\ln P(x_i \mid x_{<i})$, which is the
loss of a perfect predictor on this very byte, and the entropy, which is the
expectation of that loss before the byte is seen.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch

from dsarch.train.tokenizer import BOS, EOS, encode

# Stands for the end-of-document token inside the texts of this file.
END = "\x03"


class Document(NamedTuple):
    """Tokens with what each of them tells, in nats; ``bos`` tells nothing."""

    domain: str
    tokens: list[int]
    surprise: list[float]
    entropy: list[float]


class Spelling(NamedTuple):
    """One option of a choice: its tokens, and what they tell one by one."""

    text: str
    tokens: list[int]
    surprise: list[float]
    entropy: list[float]


class Choice(NamedTuple):
    """Options with their cumulative probabilities."""

    bounds: list[float]
    spellings: list[Spelling]


@cache
def _choice(options: tuple[tuple[str, float], ...]) -> Choice:
    """Work out once what every byte of every option tells.

    Where a byte is shared by several options it tells only that one of them
    was meant. Raises ``ValueError`` if one option begins another: the end of
    the choice could then not be seen.
    """
    total = sum(weight for _, weight in options)
    mass: defaultdict[str, float] = defaultdict(float)
    for text, weight in options:
        for end in range(len(text) + 1):
            mass[text[:end]] += weight / total
    spellings = []
    for text, weight in options:
        if mass[text] > weight / total * (1 + 1e-9):
            raise ValueError(f"option {text!r} begins or repeats another")
        ends = range(1, len(text) + 1)
        steps = [mass[text[: end - 1]] / mass[text[:end]] for end in ends]
        entropy = [_branching(mass, text[: end - 1]) for end in ends]
        tokens = [EOS if char == END else ord(char) for char in text]
        surprise = [math.log(step) for step in steps]
        spellings.append(Spelling(text, tokens, surprise, entropy))
    bounds = accumulate(weight / total for _, weight in options)
    return Choice(list(bounds), spellings)


def _branching(mass: Mapping[str, float], prefix: str) -> float:
    """The entropy of the next byte after a prefix."""
    nexts = [
        share / mass[prefix]
        for text, share in mass.items()
        if len(text) == len(prefix) + 1 and text.startswith(prefix)
    ]
    return -sum(p * math.log(p) for p in nexts)


class Writer:
    """Makes the choices of one document and notes what they tell."""

    def __init__(self, chances: Iterator[float]) -> None:
        self.chances = chances
        self.tokens = [BOS]
        self.surprise = [0.0]
        self.entropy = [0.0]

    def say(self, text: str) -> None:
        """Text that follows from what was written before."""
        self.tokens += encode(text)
        self.surprise += [0.0] * len(text)
        self.entropy += [0.0] * len(text)

    def choose(self, options: Iterable[str] | Mapping[str, float]) -> str:
        """Draw one option, by weight or with equal chances, and write it."""
        if not isinstance(options, Mapping):
            options = dict.fromkeys(options, 1.0)
        choice = _choice(tuple(options.items()))
        chance = next(self.chances)
        pick = sum(bound <= chance for bound in choice.bounds[:-1])
        spelling = choice.spellings[pick]
        self.tokens += spelling.tokens
        self.surprise += spelling.surprise
        self.entropy += spelling.entropy
        return spelling.text


NOUNS = {"fox": 3, "girl": 3, "boat": 1, "king": 1, "wolf": 2, "robot": 2}
ADJECTIVES = {"tall ": 3, "red ": 2, "small ": 2, "": 1}
VERBS: dict[str, dict[str, float]] = {
    "fox": {"hunts ": 5, "sees ": 3, "follows ": 2},
    "girl": {"reads to ": 4, "sees ": 3, "calls ": 3},
    "boat": {"carries ": 8, "passes ": 2},
    "king": {"calls ": 6, "fears ": 3, "follows ": 1},
    "wolf": {"hunts ": 4, "hears ": 6},
    "robot": {"carries ": 5, "follows ": 4, "hears ": 1},
}


def story(write: Writer) -> None:
    """Sentences whose verb depends on who acts; a Markov chain of words."""
    described = {
        adjective + noun: share * chance
        for adjective, share in ADJECTIVES.items()
        for noun, chance in NOUNS.items()
    }
    write.choose({"The ": 7, "A ": 3})
    while True:
        actor = write.choose(described).split(" ")[-1]
        write.say(" ")
        write.choose(VERBS[actor])
        write.choose({"the ": 6, "a ": 4})
        write.choose({noun: w for noun, w in NOUNS.items() if noun != actor})
        write.say(".")
        if write.choose({END: 1, " The ": 2, " A ": 1}) == END:
            return


def addition(a: int, b: int) -> str:
    """Column addition as a solution spells it: ``7+8=15,2+5+1=8;85``."""
    steps, carry = [], 0
    columns = max(len(str(a)), len(str(b)))
    for place in range(columns):
        x, y = a // 10**place % 10, b // 10**place % 10
        added = f"{x}+{y}+1" if carry else f"{x}+{y}"
        steps.append(f"{added}={x + y + carry}")
        carry = (x + y + carry) // 10
    return f"{','.join(steps)};{a + b}"


def arithmetic(write: Writer) -> None:
    """Sums with their steps: nothing is open once the operands are."""
    while True:
        operands = []
        for after in "+=":
            tens = write.choose("123456789")
            operands.append(int(tens + write.choose("0123456789")))
            write.say(after)
        write.say(addition(*operands))
        if write.choose({END: 1, "\n": 2}) == END:
            return


def recall(write: Writer) -> None:
    """Pairs, then questions about them: only attention can answer.

    After a key stands its value, two letters, in the list as in the answers:
    the first letter is what followed the key before.
    """
    pairs: dict[str, str] = {}
    write.say("{")
    while True:
        key = write.choose(sorted(set("abcdefghijkl") - pairs.keys()))
        pairs[key] = "".join(write.choose("QRSTUVWXYZ") for _ in range(2))
        ends = {"}": 1.0} | ({",": 3.0} if len(pairs) < 6 else {})
        if write.choose(ends) == "}":
            break
    for _ in range(2 * len(pairs)):
        write.say(pairs[write.choose(sorted(pairs))] + ",")
    write.choose([END])


CLOSING = {"(": ")", "[": "]", "<": ">"}


def brackets(write: Writer, depth: int = 0, close: str = END) -> None:
    """Nested groups: what may close depends on what was opened."""
    while True:
        options = dict.fromkeys("([<", 1.0) if depth < 6 else {}
        if depth:
            options |= {"x": 0.7, "y": 0.7, "z": 0.7, close: 4.0}
        elif len(write.tokens) > 1:
            options |= {close: 1.0}
        chosen = write.choose(options)
        if chosen == close:
            return
        if chosen in CLOSING:
            brackets(write, depth + 1, CLOSING[chosen])


DOMAINS: dict[str, Callable[[Writer], None]] = {
    "story": story,
    "arithmetic": arithmetic,
    "recall": recall,
    "brackets": brackets,
}


def chances(generator: torch.Generator) -> Iterator[float]:
    """Uniform numbers without end, drawn a block at a time."""
    while True:
        yield from torch.rand(
            512, generator=generator, dtype=torch.float64
        ).tolist()


def document(domain: str, numbers: Iterator[float]) -> Document:
    """One document of a domain; ``numbers`` are its uniform chances."""
    write = Writer(numbers)
    DOMAINS[domain](write)
    return Document(domain, write.tokens, write.surprise, write.entropy)
