"""Sampling, and keeping what training needs of it."""

import math

import pytest
import torch

from dsarch.config import Config
from dsarch.model import DeepSeek
from dsarch.post.addition import EOS, Addition, right_tokens, text
from dsarch.post.logprobs import shift, token_logprobs
from dsarch.post.rollout import draw, rollout
from dsarch.post.routing import record_routes, replay_routes
from dsarch.router import Router
from dsarch.sampling import Sampling
from tests.conftest import close
from tests.post_policy import policy


def prompts(count: int, length: int = 5, words: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(words, (count, length), generator=generator)


def tiny(**changes) -> DeepSeek:
    sizes = {
        "vocab_size": 9,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "initializer_range": 0.3,
        "num_nextn_predict_layers": 0,
    }
    generator = torch.Generator().manual_seed(3)
    return DeepSeek(Config(**(sizes | changes)), generator).double()


@pytest.mark.parametrize("build", [lambda: policy(9).double(), tiny])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_samplers_log_probabilities_are_those_of_training(
    build, temperature, witness
):
    """Cached decoding and one forward pass are the same policy."""
    model = build()
    found = rollout(
        model,
        prompts(6),
        8,
        eos=0,
        temperature=temperature,
        generator=torch.Generator().manual_seed(2),
    )
    logp = token_logprobs(
        found.logits(model), found.tokens, temperature=temperature
    )
    mask = shift(found.mask)
    close(found.logp[mask], logp[mask].detach())
    assert not found.logp[~mask].any()
    witness(
        "eq-token-logprob",
        (found.logp - logp)[mask].abs().max(),
        reference="identity: cached sampling",
        code="dsarch.post.logprobs.token_logprobs",
    )


def test_a_completion_ends_with_its_end_token_and_padding_is_not_chosen():
    found = rollout(
        policy(9), prompts(64), 6, eos=4, generator=torch.Generator()
    )
    assert not found.mask[:, :5].any()
    for tokens, mask in zip(found.tokens, found.mask, strict=True):
        said = tokens[mask].tolist()
        assert 4 not in said[:-1]
        assert said[-1] == 4 or len(said) == 6
        assert set(tokens[5:][~mask[5:]].tolist()) <= {4}
    assert found.lengths.min() < found.lengths.max() == 6
    again = rollout(
        policy(9), prompts(64), 6, eos=4, generator=torch.Generator()
    )
    assert torch.equal(found.tokens, again.tokens)


def test_sampled_frequencies_are_the_distribution():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0]).expand(20_000, 4)
    generator = torch.Generator().manual_seed(5)
    drawn = draw(logits, Sampling(0.7, 1.0, generator))
    found = drawn.token.bincount(minlength=4) / len(logits)
    expected = (logits[0] / 0.7).softmax(0)
    assert (found - expected).abs().max() < 3 * (0.25 / 20_000) ** 0.5
    close(drawn.logp, expected.log()[drawn.token])


def test_keep_sampling_mask_restores_the_samplers_policy(witness):
    """With top-p the log-probabilities agree only over the same set."""
    model = policy(9).double()
    found = rollout(
        model,
        prompts(32),
        6,
        eos=0,
        temperature=0.8,
        top_p=0.6,
        generator=torch.Generator().manual_seed(2),
    )
    mask = shift(found.mask)
    kept = token_logprobs(
        model(found.tokens),
        found.tokens,
        temperature=0.8,
        allowed=found.allowed,
    )
    close(found.logp[mask], kept[mask].detach())
    witness(
        "eq-sampled-logprob",
        (found.logp - kept)[mask].abs().max(),
        reference="identity: cached sampling with top-p",
        code="dsarch.post.logprobs.token_logprobs",
    )
    free = token_logprobs(model(found.tokens), found.tokens, temperature=0.8)
    assert (found.logp[mask] > free[mask] + 0.1).any()
    assert not (found.logp[mask] < free[mask] - 1e-9).any()
    size = found.allowed.sum(-1)
    assert (size[~mask] == 9).all() and (size[mask] < 9).any()


def test_greedy_sampling_is_certain():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    drawn = draw(logits, Sampling())
    assert drawn.token.item() == 1 and drawn.logp.item() == 0
    assert drawn.allowed.tolist() == [[False, True, False]]


def test_at_least_one_token_must_be_asked_for():
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        rollout(policy(9), prompts(2), 0, eos=0)


def disturbed(model: DeepSeek) -> DeepSeek:
    """The policy after an update: routers moved enough to choose anew."""
    generator = torch.Generator().manual_seed(8)
    for module in model.modules():
        if isinstance(module, Router):
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.data += 0.3 * noise
    return model


def test_keep_routing_sends_tokens_to_the_recorded_experts():
    model = tiny()
    found = rollout(
        model, prompts(4), 6, eos=0, generator=torch.Generator().manual_seed(2)
    )
    assert found.routes is not None and len(found.routes) == 2
    moved = disturbed(model)
    length = found.tokens.shape[1]
    with record_routes(moved, 4) as free:
        moved(found.tokens)
    with replay_routes(moved, found.routes), record_routes(moved, 4) as kept:
        moved(found.tokens)
    for name, experts in found.routes.items():
        assert experts.shape == (4, length - 1, 2)
        assert torch.equal(kept[name][:, :-1], experts)
        assert not torch.equal(free[name][:, :-1], experts)


def test_kept_experts_are_weighed_by_the_current_scores():
    """Unmoved, replaying changes nothing; gradients reach the router."""
    model = tiny()
    found = rollout(model, prompts(4), 6, eos=0, generator=torch.Generator())
    close(found.logits(model), model(found.tokens))
    found.logits(model).square().sum().backward()
    router = next(m for m in model.modules() if isinstance(m, Router))
    assert router.weight.grad.abs().sum() > 0
    assert not any(m._forward_hooks for m in model.modules())


def test_routes_of_another_batch_are_refused():
    model = tiny()
    found = rollout(model, prompts(4), 6, eos=0, generator=torch.Generator())
    with (
        pytest.raises(ValueError, match="do not continue 4 recorded"),
        replay_routes(model, found.routes),
    ):
        model(found.tokens[:3, :7])
    assert not any(m._forward_hooks for m in model.modules())


def test_rows_of_a_rollout_carry_their_sets_and_routes():
    model = tiny()
    found = rollout(
        model, prompts(4), 5, eos=0, top_p=0.7, generator=torch.Generator()
    )
    part = found.rows(torch.tensor([2, 0]))
    close(part.logits(model), found.logits(model)[[2, 0]])
    assert torch.equal(part.allowed, found.allowed[[2, 0]])
    assert torch.equal(part.tokens, found.tokens[[2, 0]])


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_addition_knows_its_answers(digits):
    task = Addition(digits)
    generator = torch.Generator().manual_seed(4)
    asked = task.prompts(200, generator)
    tokens, mask = task.solve(asked)
    for row, trained in zip(tokens, mask, strict=True):
        question, _, answer = text(row).partition("=")
        left, right = map(int, question.split("+"))
        written = str(left + right)[::-1] + "."
        assert answer.rstrip(".") + "." == written
        assert int(trained.sum()) == len(written)
        assert trained[2 * digits + 2 :][: len(written)].all()
    assert task.reward(tokens).tolist() == [1.0] * 200
    wrong = tokens.clone()
    wrong[:, -3] = (wrong[:, -3] + 1) % 10
    assert task.reward(wrong).sum() == 0


def test_a_sum_without_its_end_or_with_more_behind_it_is_wrong():
    task = Addition(2)
    tokens, _ = task.solve(torch.tensor([[0, 4, 10, 0, 5, 11]]))
    assert text(tokens[0]) == "04+05=9..."
    assert task.reward(tokens[:, :7]).item() == 1, "padding is the end token"
    unended = tokens.clone()
    unended[0, 7:] = 3
    assert task.reward(unended).item() == 0
    steps = right_tokens(task, unended)
    assert steps.tolist() == [[True, False, False, False]]
    with pytest.raises(ValueError, match="11 tokens exceed .* 10"):
        task.reward(torch.full((1, 11), EOS))
    with pytest.raises(ValueError, match="1 digit at least, got 0"):
        Addition(0)


def test_every_question_once():
    every = Addition(1).every()
    assert len({text(row) for row in every}) == len(every) == 100
    assert math.isclose(
        Addition(1).reward(Addition(1).solve(every)[0]).mean(), 1
    )
