"""Generation: what speculation may not change, and what it must."""

import itertools
from functools import cache as once

import pytest
import torch

from dsarch.cache import Cache
from dsarch.generate import (
    check_prompt,
    decode,
    draft,
    generate,
    speculate,
)
from dsarch.model import DeepSeek
from dsarch.mtp import mtp_losses, nll
from dsarch.sampling import Sampling, nucleus, verify
from tests.conftest import close
from tests.small import CFG, SPARSE, model

FEW = CFG.replace(vocab_size=5, initializer_range=0.1)
FEW_SPARSE = SPARSE.replace(vocab_size=5, initializer_range=0.1)
KINDS = pytest.mark.parametrize("cfg", [FEW, FEW_SPARSE], ids=["v3", "v32"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompt(batch=2, count=7):
    return torch.randint(5, (batch, count), generator=seeded(4))


def ruled(batch, count):
    """Texts in which two tokens nearly decide the next."""
    table = torch.randint(5, (5, 5), generator=seeded(8))
    text = torch.randint(5, (batch, count), generator=seeded(9))
    free = torch.rand(batch, count, generator=seeded(10)) < 0.1
    for i in range(2, count):
        next_one = table[text[:, i - 2], text[:, i - 1]]
        text[:, i] = text[:, i].where(free[:, i], next_one)
    return text


@once
@torch.enable_grad()
def trained(cfg):
    """A model that has seen enough to draft well, but not perfectly."""
    net = DeepSeek(cfg, seeded())
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for text in ruled(16 * 30, 24).split(16):
        hidden = net.hidden(text[:, :-1])
        loss = nll(net.lm_head(hidden), text[:, 1:]).mean()
        loss = loss + 0.5 * mtp_losses(net.mtp, hidden, text).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.double()


@KINDS
@torch.no_grad()
def test_greedy_text_is_the_likeliest_token_again_and_again(cfg):
    net, text = trained(cfg), prompt()
    for _ in range(20):
        text = torch.cat([text, net(text)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generate(net, prompt(), 20), text)
    assert text[:, 7:].unique().numel() > 1


@KINDS
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("drafts", [1, 2, 5])
def test_speculation_does_not_change_greedy_text(cfg, batch, drafts):
    net, text = trained(cfg), prompt(batch)
    plain = generate(net, text, 24)
    fast = generate(net, text, 24, speculative=True, drafts=drafts)
    assert torch.equal(fast, plain)


@KINDS
def test_it_takes_fewer_passes_and_both_refuses_and_accepts(cfg):
    net = trained(cfg)
    pieces = speculate(net, prompt(1), Sampling(), 3)
    sizes = [next(pieces).size(1) for _ in range(25)]
    assert sizes[0] == 1
    assert min(sizes[1:]) == 1 and max(sizes) == 4


def test_a_model_that_drafts_perfectly_has_all_drafts_accepted():
    net = DeepSeek(FEW).double()
    with torch.no_grad():
        net.lm_head.weight.zero_()  # both predict the first token always
    pieces = speculate(net, prompt(), Sampling(), 3)
    assert [next(pieces).size(1) for _ in range(4)] == [1, 4, 4, 4]


@KINDS
@pytest.mark.parametrize("first", [1, 5, 10])
@torch.no_grad()
def test_drafts_do_not_depend_on_how_the_text_came_about(cfg, first):
    net, text, memory = trained(cfg), prompt(2, 12), Cache()
    hidden, known = net.hidden(text[:, :-1]), text[:, 1:]
    module, greedy = net.mtp[0], Sampling()
    expected, p = draft(module, hidden, known, Cache(), greedy, 3)
    draft(module, hidden[:, :first], known[:, :first], memory, greedy, 3)
    assert len(memory) == first
    rest = hidden[:, first:], known[:, first:]
    actual, q = draft(module, *rest, memory, greedy, 3)
    assert len(memory) == 11
    assert torch.equal(actual, expected) and torch.equal(q, p)
    warm = Sampling(1.0)
    memory.crop(first)
    close(
        draft(module, *rest, memory, warm, 1)[1],
        draft(module, hidden, known, Cache(), warm, 1)[1],
    )


def test_a_prompt_of_one_token_is_enough():
    net, text = trained(FEW), prompt(2, 1)
    fast = generate(net, text, 9, speculative=True, drafts=2)
    assert torch.equal(fast, generate(net, text, 9))


def joint(p):
    """All sequences with their probabilities, rows of `p` independent."""
    sequences = itertools.product(range(p.size(-1)), repeat=len(p))
    rows = torch.arange(len(p))
    return {s: p[rows, torch.tensor(s)].prod().item() for s in sequences}


def chi_square(counts, chances, total):
    """Normalised so that values far beyond 4 mean another distribution."""
    terms = [
        (counts.get(key, 0) - total * chance) ** 2 / (total * chance)
        for key, chance in chances.items()
    ]
    freedom = len(terms) - 1
    return (sum(terms) - freedom) / (2 * freedom) ** 0.5


def rows(count, width, seed):
    sharp = torch.randn(count, width, generator=seeded(seed)) * 1.5
    return sharp.double().softmax(-1)


def outcomes(p, q, rounds, batch=1):
    """How often each piece of text came out of drafting and verifying.

    Tokens that a piece leaves open are drawn from `p`, as the next pass
    would do.
    """
    sampling, counts = Sampling(1.0, generator=seeded(1)), {}
    drafts = len(q)
    q, p = q.expand(batch, -1, -1), p.expand(batch, -1, -1)
    for _ in range(rounds):
        guess = sampling.draw(q)
        piece = verify(guess, q, p, sampling)
        rest = sampling.draw(p[:, piece.size(1) :]) if drafts else piece[:, :0]
        for row in torch.cat([piece, rest], 1).tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    return counts


@pytest.mark.parametrize("batch", [1, 3])
def test_sampled_text_has_the_distribution_of_the_model(batch, witness):
    p, q = rows(3, 3, 10), rows(2, 3, 11)
    assert (p[:2] - q).abs().max() > 0.3
    rounds = 6000 // batch
    counts = outcomes(p, q, rounds, batch)
    far = chi_square(counts, joint(p), rounds * batch)
    assert abs(far) < 4
    # The same test notices text drawn from the drafting distribution.
    wrong = torch.cat([q, p[2:]])
    assert chi_square(counts, joint(wrong), rounds * batch) > 40
    drawn = sum(counts.values())
    gap = sum(abs(counts.get(k, 0) / drawn - v) for k, v in joint(p).items())
    assert gap / 2 < 0.03
    witness(
        "eq-speculative-sampling",
        gap / 2,
        reference="identity: exact distribution, total variation of samples",
        code="dsarch.sampling.verify",
    )


def test_acceptance_is_the_overlap_and_gives_the_expected_tokens():
    p, q = rows(1, 5, 20).expand(4, -1), rows(1, 5, 21).expand(3, -1)
    overlap = torch.minimum(p[0], q[0]).sum().item()
    sampling = Sampling(1.0, generator=seeded(2))
    sizes = []
    for _ in range(3000):
        guess = sampling.draw(q[None])
        sizes.append(verify(guess, q[None], p[None], sampling).size(1))
    expected = (1 - overlap**4) / (1 - overlap)
    spread = torch.tensor(sizes).float().std().item() / 3000**0.5
    assert abs(sum(sizes) / 3000 - expected) < 4 * spread
    first = sum(size > 1 for size in sizes) / 3000
    assert abs(first - overlap) < 4 * 0.5 / 3000**0.5


@torch.no_grad()
def test_whole_runs_with_and_without_drafts_agree_in_distribution():
    cfg = FEW.replace(vocab_size=3, num_hidden_layers=1)
    net = model(cfg.replace(initializer_range=0.2))
    text, total = prompt(1, 3) % 3, 200
    chances = {}
    for key in itertools.product(range(3), repeat=3):
        x = torch.cat([text, torch.tensor([key])], 1)
        p = net(x)[0, 2:5].softmax(-1)
        chances[key] = p[range(3), key].prod().item()
    counts = {}
    generator = seeded(7)
    for _ in range(total):
        x = generate(
            net,
            text,
            3,
            temperature=1.0,
            speculative=True,
            drafts=2,
            generator=generator,
        )
        key = tuple(x[0, 3:].tolist())
        counts[key] = counts.get(key, 0) + 1
    assert abs(chi_square(counts, chances, total)) < 4


def test_the_nucleus_is_the_fewest_tokens_that_reach_its_size():
    p = torch.tensor([[[0.1, 0.4, 0.3, 0.2]]])
    kept = {
        0.3: [0, 1, 0, 0],
        0.45: [0, 4 / 7, 3 / 7, 0],
        0.75: [0, 4 / 9, 3 / 9, 2 / 9],
        0.95: [0.1, 0.4, 0.3, 0.2],
        1.0: [0.1, 0.4, 0.3, 0.2],
    }
    for top_p, expected in kept.items():
        close(nucleus(p, top_p), torch.tensor([[expected]]))


def test_temperature_flattens_and_zero_takes_the_best():
    logits = torch.tensor([[[1.0, 3.0, 2.0]]])
    p = Sampling(2.0).probabilities(logits)
    close(p, (logits / 2).softmax(-1))
    greedy = torch.tensor([[[0.0, 1.0, 0.0]]])
    assert torch.equal(Sampling().probabilities(logits), greedy)
    close(Sampling(0.01).probabilities(logits), greedy)


@pytest.mark.parametrize("speculative", [False, True])
def test_the_generator_decides_and_no_other_randomness(speculative):
    net, text = model(), prompt()

    def run(seed):
        return generate(
            net,
            text,
            12,
            temperature=1.0,
            top_p=0.9,
            speculative=speculative,
            generator=seeded(seed),
        )

    state = torch.random.get_rng_state()
    first = run(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(run(1), first)
    assert not torch.equal(run(2), first)


@pytest.mark.parametrize("speculative", [False, True])
def test_pieces_are_streamed_as_they_stand(speculative):
    seen = []
    text = generate(
        trained(FEW),
        prompt(),
        11,
        speculative=speculative,
        drafts=3,
        stream=seen.append,
    )
    assert torch.equal(torch.cat([prompt(), *seen], 1), text)
    assert text.size(1) == 7 + 11
    assert (len(seen) < 11) == speculative


@pytest.mark.parametrize("speculative", [False, True])
def test_a_stop_ends_each_sequence_where_it_falls(speculative):
    net, text = trained(FEW), prompt(3)
    free = generate(net, text, 30)[:, 7:]
    stop = 2
    ends = [row.tolist().index(stop) for row in free]
    assert len(set(ends)) > 1
    found = generate(
        net, text, 30, stop=stop, speculative=speculative, drafts=3
    )
    assert found.size(1) == 7 + max(ends) + 1
    for row, whole, end in zip(found[:, 7:], free, ends, strict=True):
        assert torch.equal(row[: end + 1], whole[: end + 1])
        assert (row[end:] == stop).all()


def test_no_new_tokens_are_no_new_tokens():
    assert torch.equal(generate(model(), prompt(), 0), prompt())


def test_decoding_goes_on_without_end():
    pieces = decode(model(), prompt(), Sampling())
    longer = torch.cat([prompt(), *itertools.islice(pieces, 9)], 1)
    assert torch.equal(longer, generate(model(), prompt(), 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([[3, 53]])}, "3 to 53 leave .* of 53"),
        ({"tokens": torch.tensor([[-1, 5]])}, "-1 to 5 leave .* of 53"),
        ({"max_new_tokens": -1}, "max_new_tokens -1 is below 0"),
        ({"temperature": -0.1}, "temperature -0.1 is below 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, r"top_p 0.0 is outside \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p 1.5 is outside \(0, 1\]"),
        ({"speculative": True, "drafts": 0}, "0 drafts from 1 MTP layers"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    arguments = {"tokens": prompt(), "max_new_tokens": 3} | change
    with pytest.raises(ValueError, match=message):
        generate(model(), **arguments)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0).long(), r"not empty, found \(2, 0\)"),
        (torch.zeros(4).long(), r"\[b, t\] .* found \(4,\)"),
        (torch.zeros(1, 4), "whole numbers .* torch.float32"),
    ],
)
def test_a_prompt_is_a_table_of_whole_numbers(tokens, message):
    with pytest.raises(ValueError, match=message):
        check_prompt(tokens, 53)


def test_drafts_need_an_mtp_layer_and_logits_must_be_finite():
    net = model(CFG.replace(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match="1 drafts from 0 MTP layers"):
        generate(net, prompt(), 3, speculative=True)
    with torch.no_grad():
        net.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        generate(net, prompt(), 3)
