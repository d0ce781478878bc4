"""The agent's environment, its conversations, its context."""

import pytest
import torch

from dsarch.post.agent import (
    ADD,
    ANSWER,
    ASK,
    CALL,
    EOS,
    ERROR,
    KEYS,
    LOOK,
    RESULT,
    VOCABULARY,
    Desk,
    demonstration,
    desks,
    key,
    play,
    turn_ends,
    turn_rewards,
)
from dsarch.post.context import manage, size, visible
from dsarch.post.grpo import process_advantages
from dsarch.post.logprobs import shift, token_logprobs
from dsarch.post.sft import Message, sft_loss
from tests.conftest import close
from tests.post_policy import policy

DESK = Desk((3, 1, 4, 1, 5, 9), (2, 5))


class Script:
    """A stand-in for a policy that says what it is told, row by row."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = [list(row) for row in rows]
        self.fed: list[torch.Tensor] = []

    def caches(self) -> list:
        return []

    def named_modules(self) -> list:
        return []

    def __call__(self, tokens, caches=None):
        self.fed.append(tokens)
        logits = torch.full((len(tokens), 1, VOCABULARY), -50.0)
        for b, row in enumerate(self.rows):
            if self.listens(b):
                continue
            logits[b, 0, row.pop(0) if row else EOS] = 50.0
        return logits

    def listens(self, row: int) -> bool:
        """While the environment speaks, what is sampled is not used."""
        said = torch.cat(self.fed, 1)[row].tolist()
        tail = said[::-1]
        if CALL not in tail:
            return False
        after = tail[: tail.index(CALL)]
        return len(after) < 2 and ERROR not in after


def test_the_verifier_accepts_the_solution_and_nothing_near_it():
    assert DESK.answer == 3
    assert DESK.verify([ANSWER, 3])
    for wrong in ([ANSWER, 4], [3], [ANSWER, 3, 3], [ANSWER], [], [LOOK, 3]):
        assert not DESK.verify(wrong)


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        ([LOOK, key(2)], [RESULT, 4]),
        ([ADD, 4, 9], [RESULT, 3]),
        ([LOOK, 2], [ERROR]),
        ([LOOK, key(KEYS)], [ERROR]),
        ([ADD, 4, key(1)], [ERROR]),
        ([ADD, 4], [ERROR]),
        ([], [ERROR]),
        ([ANSWER, 3], [ERROR]),
    ],
)
def test_tools_answer_calls_and_refuse_everything_else(call, reply):
    assert DESK.respond(call) == reply


def test_instances_are_drawn_with_different_keys():
    drawn = desks(300, torch.Generator().manual_seed(1))
    assert all(d.asked[0] != d.asked[1] for d in drawn)
    assert {d.answer for d in drawn} == set(range(10))
    assert drawn == desks(300, torch.Generator().manual_seed(1))
    assert all(max(d.asked) < KEYS == len(d.database) for d in drawn)


def test_a_conversation_in_full():
    turns = DESK.solution()
    said = [token for turn in turns for token in turn]
    played = play(Script([said]), [DESK], temperature=0.0)
    assert played.solved.tolist() == [True] and played.calls.tolist() == [3]
    tokens, mask = demonstration([DESK])
    assert torch.equal(played.rollout.tokens, tokens)
    assert torch.equal(played.rollout.mask, mask)
    assert tokens[0].tolist() == [
        *[ASK, key(2), key(5), LOOK, key(2), CALL, RESULT, 4],
        *[LOOK, key(5), CALL, RESULT, 9, ADD, 4, 9, CALL, RESULT, 3],
        *[ANSWER, 3, EOS],
    ]
    assert tokens[0][mask[0]].tolist() == said, "no word of a tool"


def test_rows_of_different_turns_run_side_by_side():
    """One answers at once, one errs first, one never ends."""
    right = [token for turn in DESK.solution() for token in turn]
    rows = [[ANSWER, 3, EOS], [ADD, CALL, *right], [LOOK] * 30]
    played = play(Script(rows), [DESK] * 3, max_tokens=24, temperature=0.0)
    assert played.solved.tolist() == [True, True, False]
    assert played.calls.tolist() == [0, 4, 0]
    mask = played.rollout.mask
    assert mask.sum(1).tolist() == [3, 2 + len(right), 24]
    second = played.rollout.tokens[1]
    assert second[3:6].tolist() == [ADD, CALL, ERROR]
    assert mask[1, 3:6].tolist() == [True, True, False]


def test_the_last_allowed_call_ends_the_conversation():
    calls = [LOOK, key(0), CALL]
    played = play(Script([calls * 9]), [DESK], max_turns=2, temperature=0.0)
    assert played.calls.tolist() == [2] and not played.solved.any()
    assert played.rollout.tokens[0, -2:].tolist() == [RESULT, 3]


def test_multi_turn_log_probabilities_are_those_of_training():
    """Cached lock step and one pass over the whole talk are one policy."""
    model = policy(VOCABULARY).double()
    generator = torch.Generator().manual_seed(6)
    played = play(model, desks(40, generator), generator=generator)
    found = played.rollout
    logp = token_logprobs(model(found.tokens), found.tokens)
    mask = shift(found.mask)
    close(found.logp[mask], logp[mask].detach())
    assert (played.calls > 0).any(), "tools must have spoken"
    assert len(set(found.lengths.tolist())) > 3


def test_the_loss_of_a_conversation_counts_the_policys_words_alone(witness):
    model = policy(VOCABULARY).double()
    tokens, mask = demonstration(desks(5, torch.Generator().manual_seed(2)))
    logits = model(tokens).detach().requires_grad_()
    actual = sft_loss(logits, tokens, mask)
    logp = logits.detach().log_softmax(-1)
    terms = [-logp[b, t - 1, tokens[b, t]] for b, t in mask.nonzero().tolist()]
    expected = torch.stack(terms).mean()
    close(actual, expected)
    reached = torch.autograd.grad(actual, logits)[0].abs().sum(-1) > 0
    assert (
        torch.equal(reached[:, :-1], mask[:, 1:]) and not reached[:, -1].any()
    )
    witness(
        "eq-agent-loss",
        (actual - expected).abs(),
        reference="identity: loop over the policy's words",
        code="dsarch.post.sft.sft_loss",
    )


def test_turns_end_where_the_policy_stops_speaking():
    _, mask = demonstration([DESK])
    ends = turn_ends(mask, 5)
    assert ends.tolist() == [[5, 10, 16, 21, -1]]
    with pytest.raises(ValueError, match="has 4 turns, room for 3"):
        turn_ends(mask, 3)
    assert turn_ends(torch.zeros(2, 4).bool(), 2).tolist() == [[-1, -1]] * 2


def test_grpo_over_turns_credits_what_comes_after():
    """A failed first call is worse than the good turns behind it."""
    right = [token for turn in DESK.solution() for token in turn]
    rows = [right, [ADD, CALL, *right], [ADD, CALL, ANSWER, 1, EOS]]
    played = play(Script(rows), [DESK] * 3, max_tokens=30, temperature=0.0)
    tokens, mask, *_ = played.rollout
    ends = turn_ends(mask, 5)
    earned = turn_rewards(tokens, ends, played.solved)
    assert earned.tolist() == [
        [0, 0, 0, 1, 0],
        [-0.5, 0, 0, 0, 1],
        [-0.5, 0, 0, 0, 0],
    ]
    found = process_advantages(earned[None], ends[None], tokens.shape[1])[0]
    assert found[1, 3] < found[1, 6], "the error weighs on its own turn only"
    assert found[0, 3] > 0 > found[2, 3]
    assert not found[0, int(ends[0].max()) + 1 :].any()


HISTORY = [
    Message("system", [1]),
    Message("user", [2]),
    Message("assistant", [3], reasoning=[9]),
    Message("user", [4]),
    *[
        Message(role, [token], reasoning=[9] if role == "assistant" else [])
        for token in range(10, 14)
        for role in ("assistant", "tool")
    ],
]


def test_a_tool_result_keeps_the_thoughts_and_a_user_message_drops_them():
    thoughts = [len(m.reasoning) for m in visible(HISTORY)]
    assert thoughts == [0, 0, 0, 0] + [1, 0] * 4
    asked_again = visible([*HISTORY, Message("user", [5])])
    assert not any(m.reasoning for m in asked_again)
    assert [m.content for m in visible(HISTORY)] == [m.content for m in HISTORY]


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ("none", [3, 4, *(10, 10, 11, 11, 12, 12, 13, 13)]),
        ("discard_all", [3, 4]),
        ("discard_75", [3, 4, 13, 13]),
        ("summary", [3, 4, 77]),
    ],
)
def test_a_full_context_is_cut(strategy, kept):
    settings = {"summarise": lambda history: [70 + len(history) - 1]}
    found = manage(HISTORY, 20, strategy, **settings)
    assert [m.content[0] for m in found][2:] == kept
    assert manage(HISTORY, 100, strategy) == HISTORY, "there is room"


def test_no_tool_result_loses_its_call():
    history = [*HISTORY[:4], *HISTORY[4:10]]  # three calls: cut at 4.5
    found = manage(history, 10, "discard_75")
    assert [m.role for m in found[4:]] == ["assistant", "tool"]
    odd = [*history, Message("assistant", [14]), Message("assistant", [15])]
    assert manage(odd, 10, "discard_75")[4].role == "assistant"


def test_strategies_that_cannot_work_are_refused():
    assert size(HISTORY) == sum(1 + 1 for _ in HISTORY) + 5
    with pytest.raises(ValueError, match="'forget' is no strategy"):
        manage(HISTORY, 10, "forget")
    with pytest.raises(ValueError, match="needs a summarise function"):
        manage(HISTORY, 10, "summary")
