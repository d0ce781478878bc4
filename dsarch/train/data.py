r"""Batches as pure functions of their number: mixing, packing, FIM, masks."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsarch.train import corpora
from dsarch.train.corpora import Document
from dsarch.train.tokenizer import BOS, FIM_BEGIN, FIM_END, FIM_HOLE, PAD

Number = int | float


class Batch(NamedTuple):
    """Packed documents; each field is ``[b, t+1]``, aligned with the tokens.

    ``counted`` marks tokens that are targets: not ``bos``, not padding.
    ``surprise`` and ``entropy`` are their exact information in nats.
    ``domain`` and ``document`` number where a token comes from, the latter
    within its row.
    """

    tokens: Int[Tensor, "b t"]
    counted: Bool[Tensor, "b t"]
    surprise: Float[Tensor, "b t"]
    entropy: Float[Tensor, "b t"]
    domain: Int[Tensor, "b t"]
    document: Int[Tensor, "b t"]

    def floor(self, domain: int | None = None) -> float:
        """The mean loss of a perfect predictor on this very batch."""
        chosen = self.counted
        if domain is not None:
            chosen = chosen & (self.domain == domain)
        return self.surprise[chosen].mean().item()


class Corpus(NamedTuple):
    """An endless stream of batches; ``batch(i)`` depends on nothing but i.

    So the position of a run is one number, and a run that resumes sees the
    very batches it would have seen. ``weights`` are the shares of documents,
    ``fim_rate`` of them are rearranged for fill-in-the-middle.
    """

    weights: Mapping[str, Number]
    rows: int = 16
    length: int = 128
    seed: int = 0
    fim_rate: Number = 0.0

    @property
    def domains(self) -> list[str]:
        """The domains in the order in which batches number them."""
        return list(self.weights)

    def batch(self, index: int) -> Batch:
        """Rows of whole documents; only the last of a row is cut off.

        Every row starts with a fresh document, so no token has lost its
        context and the surprises stay exact.
        """
        numbers = chances(self.seed, index)
        return pack(
            [self._row(numbers) for _ in range(self.rows)],
            self.length + 1,
            self.domains,
        )

    def _row(self, numbers: Iterator[float]) -> list[Document]:
        row: list[Document] = []
        while sum(len(doc.tokens) for doc in row) <= self.length:
            doc = draw(self.weights, numbers)
            row.append(fim(doc, numbers, self.fim_rate))
        return row


def chances(seed: int, index: int) -> Iterator[float]:
    """The uniform numbers of one batch."""
    return corpora.chances(generator_for(seed, index))


def generator_for(seed: int, index: int) -> torch.Generator:
    """A generator for one batch or epoch of one seed.

    torch's CPU generator keeps the low 32 bits of a seed, so the two numbers
    are hashed into 32 bits rather than laid side by side.
    """
    mixed = zlib.crc32(f"{seed} {index}".encode())
    return torch.Generator().manual_seed(mixed)


def draw(weights: Mapping[str, Number], numbers: Iterator[float]) -> Document:
    r"""A document of a random domain, which its first byte gives away.

    No two domains share a first byte, so that byte also tells the domain:
    $-\ln w$ is added to its surprise, the mixture's entropy to its entropy.
    """
    total = sum(weights.values())
    shares = [weight / total for weight in weights.values()]
    chance = next(numbers)
    pick = sum(bound <= chance for bound in list(accumulate(shares))[:-1])
    doc = corpora.document(list(weights)[pick], numbers)
    doc.surprise[1] -= math.log(shares[pick])
    doc.entropy[1] -= sum(p * math.log(p) for p in shares if p)
    return doc


def mixture(
    sizes: Mapping[str, Number], temperature: Number
) -> dict[str, float]:
    r"""Shares $p_i \propto n_i^{1/T}$: proportional at 1, even at infinity.

    Raises ``ValueError`` for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    powers = {name: n ** (1 / temperature) for name, n in sizes.items()}
    return {name: p / sum(powers.values()) for name, p in powers.items()}


def fim(
    doc: Document, numbers: Iterator[float], rate: Number = 0.1
) -> Document:
    r"""With chance ``rate``, move the middle of a document to its end.

    Prefix, suffix, middle, as V3 does before packing. All places to cut are
    equally likely and visible afterwards, so the total surprise stays exact:
    $\ln\frac{(n+1)(n+2)}{2} - \ln \mathrm{rate}$ more than that of the $n$
    bytes. Where in the document it falls is not known; it is spread evenly.
    """
    if not rate:
        return doc
    if next(numbers) >= rate:
        doc.surprise[1] -= math.log1p(-rate)
        return doc
    bos, *text, eos = doc.tokens
    cuts = (len(text) + 1) * (len(text) + 2) // 2
    begin, end = _cut(int(next(numbers) * cuts), len(text))
    tokens = [bos, FIM_BEGIN, *text[:begin], FIM_HOLE, *text[end:], FIM_END]
    tokens += [*text[begin:end], eos]
    count = len(tokens) - 1
    surprise = sum(doc.surprise) + math.log(cuts) - math.log(rate)
    entropy = sum(doc.entropy) + math.log(cuts)
    return Document(
        doc.domain,
        tokens,
        [0.0] + [surprise / count] * count,
        [0.0] + [entropy / count] * count,
    )


def _cut(number: int, size: int) -> tuple[int, int]:
    """The pair of places ``begin <= end <= size`` with this number."""
    begin = 0
    while number > size - begin:
        number -= size - begin + 1
        begin += 1
    return begin, begin + number


def pack(
    rows: Sequence[Sequence[Document]], length: int, domains: Sequence[str]
) -> Batch:
    """Lay documents end to end, one list per row; cut and pad to length."""
    numbered = [
        [
            (
                [domains.index(doc.domain)] * len(doc.tokens),
                *doc[1:],
                [k] * len(doc.tokens),
            )
            for k, doc in enumerate(row)
        ]
        for row in rows
    ]
    domain, tokens, surprise, entropy, document = (
        torch.tensor([_line(row, field, length, filler) for row in numbered])
        for field, filler in enumerate((-1, PAD, 0.0, 0.0, -1))
    )
    counted = (tokens != PAD) & (tokens != BOS)
    return Batch(tokens, counted, surprise, entropy, domain, document)


def _line(row: Sequence, field: int, length: int, filler: Number) -> list:
    """One field of all documents of a row, cut and padded to length."""
    line = [value for doc in row for value in doc[field]][:length]
    return line + [filler] * (length - len(line))


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which documents share a row so that none is cut.

    Longest first, each into the fullest row that still has room. Raises
    ``ValueError`` for a document longer than a row.
    """
    if lengths and max(lengths) > room:
        raise ValueError(f"a document of {max(lengths)} exceeds {room}")
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [r for r, space in enumerate(left) if space >= lengths[i]]
        if not fits:
            fits = [len(rows)]
            rows.append([])
            left.append(room)
        row = min(fits, key=lambda r: left[r])
        rows[row].append(i)
        left[row] -= lengths[i]
    return rows


def shuffled(index: int, size: int, seed: int) -> int:
    """The item at ``index`` of an endless run over ``size`` items.

    Every epoch is a permutation that follows from seed and epoch alone.
    """
    epoch, place = divmod(index, size)
    order = torch.randperm(size, generator=generator_for(seed, epoch))
    return int(order[place])


def document_positions(
    document: Int[Tensor, "b t"],
) -> Int[Tensor, "b t"]:
    """Positions that start again at zero with every packed document."""
    place = torch.arange(document.size(1), device=document.device)
    starts = torch.ones_like(document, dtype=torch.bool)
    starts[:, 1:] = document[:, 1:] != document[:, :-1]
    return place - torch.where(starts, place, 0).cummax(1).values


def document_mask(document: Int[Tensor, "b t"]) -> Bool[Tensor, "b t t"]:
    """Causal, and blind to the other documents of the row.

    V3 packs without this mask in pre-training and with it in fine-tuning.
    """
    size = document.size(1)
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    return causal & (document[:, :, None] == document[:, None, :])
