"""Data whose information is known exactly, and its packing."""

import math
from itertools import islice, product, repeat

import pytest
import torch

from dsarch import Config
from dsarch.train import corpora, data, tokenizer
from dsarch.train.corpora import DOMAINS, END, Writer
from dsarch.train.tokenizer import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE, PAD
from tests.conftest import close

WEIGHTS = {"story": 3, "arithmetic": 2, "recall": 2, "brackets": 1}


def numbers(seed: int = 0):
    return data.chances(seed, 0)


def test_the_vocabulary_is_the_models():
    assert tokenizer.VOCAB_SIZE == Config().vocab_size == 264


def test_text_survives_and_specials_cannot_be_spelled():
    text = "naïve <bos> 🙂\n"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert max(tokens) < 256
    assert tokenizer.decode([BOS, 104, EOS]) == "<bos>h<eos>"
    with pytest.raises(ValueError, match="264"):
        tokenizer.decode([264])


def tree(write):
    """A small domain that can be enumerated: shared and nested choices."""
    if write.choose({"ab": 2, "ac": 1, "b": 1}) == "ab":
        write.say("!")
        write.choose({"xy": 3, "xz": 1, "y": 4})
    write.choose([END])


def scripted(*values):
    """Chances that walk through every combination of options."""
    yield from values
    yield from repeat(0.0)


def test_surprise_is_the_information_of_every_byte():
    """Against a brute-force table of the documents and their chances."""
    documents: dict[tuple, float] = {}
    written = {}
    for a, b in product(range(8), range(8)):
        write = Writer(scripted(a / 8, b / 8))
        tree(write)
        key = tuple(write.tokens)
        documents[key] = documents.get(key, 0.0) + 1 / 64
        written[key] = write
    assert sum(documents.values()) == 1.0
    assert len(documents) == 5
    for tokens, write in written.items():
        for end in range(1, len(tokens)):
            before, now = (
                sum(p for t, p in documents.items() if t[:k] == tokens[:k])
                for k in (end, end + 1)
            )
            nexts: dict[int, float] = {}
            for t, p in documents.items():
                if t[:end] == tokens[:end]:
                    nexts[t[end]] = nexts.get(t[end], 0.0) + p / before
            entropy = -sum(p * math.log(p) for p in nexts.values())
            surprise = math.log(before / now)
            assert write.surprise[end] == pytest.approx(surprise, abs=1e-12)
            assert write.entropy[end] == pytest.approx(entropy, abs=1e-12)


def test_a_choice_whose_end_is_invisible_is_refused():
    for options in (["a", "ab"], ["ab", "a"], [END, END + "x"]):
        with pytest.raises(ValueError, match="begins"):
            Writer(numbers()).choose(options)


@pytest.mark.parametrize("domain", DOMAINS)
def test_entropy_is_the_expected_surprise(domain):
    """Over many documents both have the same mean, within four errors."""
    source = numbers()
    excess = []
    for _ in range(1500):
        doc = corpora.document(domain, source)
        assert doc.tokens[0] == BOS and doc.tokens[-1] == EOS
        assert EOS not in doc.tokens[:-1]
        assert doc.surprise[0] == doc.entropy[0] == 0.0
        assert min(doc.surprise) >= 0 and min(doc.entropy) >= 0
        excess.append(sum(doc.surprise) - sum(doc.entropy))
    excess = torch.tensor(excess)
    error = excess.std() / math.sqrt(len(excess))
    assert excess.mean().abs() < 4 * error


def test_first_bytes_tell_the_domains_apart():
    source = numbers()
    first = {
        domain: {corpora.document(domain, source).tokens[1] for _ in range(99)}
        for domain in DOMAINS
    }
    assert len(set.union(*first.values())) == sum(map(len, first.values()))


def text(domain: str, source) -> str:
    doc = corpora.document(domain, source)
    return tokenizer.decode(doc.tokens[1:-1])


def test_arithmetic_is_true():
    source = numbers()
    for _ in range(200):
        for line in text("arithmetic", source).split("\n"):
            problem, steps = line.split("=", 1)
            a, b = map(int, problem.split("+"))
            shown, total = steps.split(";")
            assert int(total) == a + b
            for step in shown.split(","):
                left, right = step.split("=")
                assert sum(map(int, left.split("+"))) == int(right)
    assert corpora.addition(27, 58) == "7+8=15,2+5+1=8;85"
    assert corpora.addition(95, 905).endswith(",9+0+1=10,0+9+1=10;1000")
    assert corpora.addition(7, 95) == "7+5=12,0+9+1=10;102"


def test_recall_answers_its_questions():
    source = numbers()
    for _ in range(200):
        pairs, answers = text("recall", source)[1:].split("}")
        table = {pair[0]: pair[1:] for pair in pairs.split(",")}
        asked = answers[:-1].split(",")
        assert len(asked) == 2 * len(table)
        for answer in asked:
            assert table[answer[0]] == answer[1:]


def test_brackets_match():
    source = numbers()
    for _ in range(200):
        stack = []
        for char in text("brackets", source):
            if char in corpora.CLOSING:
                stack.append(corpora.CLOSING[char])
            elif char in ")]>":
                assert stack.pop() == char
        assert not stack


def test_verbs_fit_their_subjects():
    source = numbers()
    for _ in range(100):
        for sentence in text("story", source)[:-1].split(". "):
            words = sentence.replace("reads to", "reads").split(" ")
            actor, verb = words[-4], words[-3]
            options = [v.split(" ")[0] for v in corpora.VERBS[actor]]
            assert verb in options and words[-1] != actor


def test_mixture():
    sizes = {"a": 1.0, "b": 9.0}
    assert data.mixture(sizes, 1)["b"] == pytest.approx(0.9)
    assert data.mixture(sizes, 2)["b"] == pytest.approx(0.75)
    assert data.mixture(sizes, 1e9)["b"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="0"):
        data.mixture(sizes, 0)


def test_the_first_byte_also_tells_the_domain():
    source = numbers()
    shares = {name: w / 8 for name, w in WEIGHTS.items()}
    mixed = -sum(p * math.log(p) for p in shares.values())
    alone = {d: corpora.document(d, source).entropy[1] for d in DOMAINS}
    least = {
        d: min(corpora.document(d, source).surprise[1] for _ in range(99))
        for d in DOMAINS
    }
    found = dict.fromkeys(DOMAINS, 0)
    for _ in range(4000):
        doc = data.draw(WEIGHTS, source)
        found[doc.domain] += 1
        assert doc.entropy[1] - alone[doc.domain] == pytest.approx(mixed)
        told = -math.log(shares[doc.domain])
        assert doc.surprise[1] - told > least[doc.domain] - 1e-9
    for name, n in found.items():
        assert n / 4000 == pytest.approx(shares[name], abs=0.03)


def test_fim_keeps_the_text_and_counts_its_information():
    source = numbers()
    plain = 0
    for _ in range(300):
        doc = corpora.document("brackets", source)
        before = list(doc.tokens), sum(doc.surprise)
        moved = data.fim(doc, source, 0.9)
        if FIM_BEGIN not in moved.tokens:
            plain += 1
            told = -math.log(0.1)
            assert moved.tokens == before[0]
        else:
            hole = moved.tokens.index(FIM_HOLE)
            end = moved.tokens.index(FIM_END)
            assert moved.tokens[:2] == [BOS, FIM_BEGIN]
            prefix, suffix = moved.tokens[2:hole], moved.tokens[hole + 1 : end]
            middle = moved.tokens[end + 1 : -1]
            assert [BOS, *prefix, *middle, *suffix, EOS] == before[0]
            n = len(before[0]) - 2
            told = math.log((n + 1) * (n + 2) / 2) - math.log(0.9)
        assert sum(moved.surprise) == pytest.approx(before[1] + told)
        assert len(moved.surprise) == len(moved.tokens)
    assert 10 <= plain <= 60


def test_every_cut_is_equally_likely():
    pairs = [data._cut(k, 5) for k in range(21)]
    assert len(set(pairs)) == 21
    assert all(0 <= begin <= end <= 5 for begin, end in pairs)


def test_a_batch_depends_on_its_number_alone():
    corpus = data.Corpus(WEIGHTS, rows=3, length=50, seed=4, fim_rate=0.2)
    third = corpus.batch(3)
    corpus.batch(7)
    again = data.Corpus(WEIGHTS, rows=3, length=50, seed=4, fim_rate=0.2)
    for a, b in zip(third, again.batch(3), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(third.tokens, corpus.batch(4).tokens)
    other = corpus._replace(seed=5)
    assert not torch.equal(third.tokens, other.batch(3).tokens)


def test_rows_are_whole_documents_from_the_start():
    corpus = data.Corpus(WEIGHTS, rows=40, length=90)
    batch = corpus.batch(0)
    assert batch.tokens.shape == (40, 91)
    assert (batch.tokens[:, 0] == BOS).all()
    assert torch.equal(batch.counted, batch.tokens != BOS)
    starts = batch.tokens[:, 1:] == BOS
    assert torch.equal(batch.tokens[:, :-1] == EOS, starts)
    steps = batch.document[:, 1:] - batch.document[:, :-1]
    assert torch.equal(steps == 1, starts)
    assert torch.equal(steps != 0, starts)
    assert (batch.surprise[~batch.counted] == 0).all()


def test_floors_are_means_over_targets():
    batch = data.Corpus(WEIGHTS, rows=30, length=100).batch(1)
    total = batch.surprise.sum() / batch.counted.sum()
    assert batch.floor() == pytest.approx(total.item())
    parts = [
        batch.floor(d) * ((batch.domain == d) & batch.counted).sum()
        for d in range(4)
    ]
    assert sum(parts) / batch.counted.sum() == pytest.approx(total.item())
    assert len({round(batch.floor(d), 2) for d in range(4)}) == 4


def test_padding_is_no_target():
    doc = corpora.document("recall", numbers())
    size = len(doc.tokens)
    batch = data.pack([[doc], [doc, doc]], size + 3, ["recall"])
    assert batch.tokens[0, size:].tolist() == [PAD] * 3
    assert not batch.counted[0, size:].any()
    assert (batch.domain[0, size:] == -1).all()
    assert batch.tokens[1, size:].tolist() == doc.tokens[:3]
    assert batch.document[1].tolist() == [0] * size + [1] * 3


def test_best_fit_cuts_nothing():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (200,), generator=g).tolist()
    rows = data.best_fit(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(200))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= 64
    assert sum(filled) / (64 * len(rows)) > 0.95
    with pytest.raises(ValueError, match="65.*64"):
        data.best_fit([3, 65], 64)


def test_shuffling_visits_every_item_once_an_epoch():
    epochs = [
        [data.shuffled(epoch * 17 + i, 17, seed=3) for i in range(17)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = [data.shuffled(i, 17, seed=4) for i in range(17)]
    assert other != epochs[0]


def test_document_positions_and_mask():
    document = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    positions = data.document_positions(document)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    mask = data.document_mask(document)
    for b, t, s in product(range(2), range(6), range(6)):
        same = document[b, t] == document[b, s]
        assert mask[b, t, s] == (s <= t and same)


def test_an_eavesdropper_needs_the_entropy():
    """A model that knows a domain's rules exactly pays exactly the floor.

    For ``recall`` after the closing brace only the choice of the key is
    open: one of the pairs, with equal chances.
    """
    source = numbers()
    for _ in range(50):
        doc = corpora.document("recall", source)
        close_at = doc.tokens.index(ord("}"))
        pairs = doc.tokens[:close_at].count(ord(",")) + 1
        after = doc.surprise[close_at + 1 :]
        expected = 2 * pairs * math.log(pairs)
        close(
            torch.tensor(sum(after), dtype=torch.float64),
            torch.tensor(expected, dtype=torch.float64),
        )


def test_chances_go_on():
    values = list(islice(numbers(), 1500))
    assert len(set(values)) == 1500
    assert 0.45 < sum(values) / 1500 < 0.55
