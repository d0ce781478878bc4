"""Chat template, loss masks, packing, and the loss on what is trained."""

import pytest
import torch

from dsarch.post.logprobs import token_logprobs
from dsarch.post.sft import (
    Example,
    Message,
    Template,
    document_mask,
    pack,
    render,
    sft_loss,
)
from tests.conftest import close
from tests.post_policy import policy

CHAT = Template(
    bos=90, eos=91, user=92, assistant=93, tool=94, think=95, end_think=96
)
DIALOGUE = [
    Message("system", [1]),
    Message("user", [2, 3]),
    Message("assistant", [4], reasoning=[5, 6]),
    Message("user", [7]),
    Message("assistant", [8], reasoning=[9]),
    Message("tool", [10]),
    Message("assistant", [11], reasoning=[12]),
]


def shown(example: Example) -> tuple[list[int], list[int]]:
    pairs = zip(example.tokens, example.mask, strict=True)
    return example.tokens, [t for t, trained in pairs if trained]


def test_a_dialogue_token_by_token():
    """Old thoughts are gone, those of the running turn survive the tool."""
    tokens, trained = shown(render(DIALOGUE, CHAT))
    assert tokens == [
        *[90, 1, 92, 2, 3, 93, 4, 91],
        *[92, 7, 93, 95, 9, 96, 8, 91, 94, 10],
        *[93, 95, 12, 96, 11, 91],
    ]
    assert trained == [95, 9, 96, 8, 91, 95, 12, 96, 11, 91]


@pytest.mark.parametrize(
    ("keep", "thoughts"),
    [("user", [9, 12]), ("any", [12]), ("never", [5, 6, 9, 12])],
)
def test_who_makes_reasoning_disappear(keep, thoughts):
    tokens, _ = shown(render(DIALOGUE, CHAT, keep=keep))
    assert [t for t in tokens if t in (5, 6, 9, 12)] == thoughts


@pytest.mark.parametrize(
    ("train", "ends"), [("last", 2), ("all", 3), ("none", 0)]
)
def test_which_turns_are_trained(train, ends):
    """The end token of a trained turn is trained, no marker ever is."""
    _, trained = shown(render(DIALOGUE, CHAT, train=train))
    assert trained.count(CHAT.eos) == ends
    assert not {92, 93, 94, 90} & set(trained)


def test_the_prompt_of_generation_is_the_text_of_training():
    """What the sampler is given is a prefix of what was trained."""
    prompt = render(DIALOGUE[:4], CHAT, prompt=True)
    full = render(DIALOGUE[:5], CHAT)
    assert prompt.tokens == full.tokens[: len(prompt.tokens)]
    assert prompt.tokens[-1] == CHAT.assistant
    assert not any(prompt.mask)
    assert full.mask[len(prompt.tokens)], "the first answer token is trained"


def test_bad_dialogues_are_refused():
    with pytest.raises(ValueError, match="special token 91 inside a user"):
        render([Message("user", [5, 91])], CHAT)
    with pytest.raises(ValueError, match="special token 96 inside a ass"):
        render([Message("assistant", [5], reasoning=[96])], CHAT)
    with pytest.raises(ValueError, match="role 'human' is none of"):
        render([Message("human", [5])], CHAT)
    with pytest.raises(ValueError, match="train 'some' is none of"):
        render(DIALOGUE, CHAT, train="some")
    with pytest.raises(ValueError, match="keep 'tool' is none of"):
        render(DIALOGUE, CHAT, keep="tool")
    with pytest.raises(ValueError, match="must differ"):
        Template(bos=1, eos=1)
    assert render([], CHAT).tokens == [CHAT.bos]


def examples() -> list[Example]:
    return [
        Example([1, 2, 3], [True, True, False]),
        Example([4, 5, 6, 7, 8], [False, False, True, True, True]),
        Example([9, 1], [False, True]),
        Example([2, 3, 4, 5], [False, True, True, True]),
    ]


def test_packing_is_longest_first_and_first_fit():
    packed = pack(examples(), 8, pad=0)
    assert packed.tokens.tolist() == [
        [4, 5, 6, 7, 8, 1, 2, 3],
        [2, 3, 4, 5, 9, 1, 0, 0],
    ]
    assert packed.document[1].tolist() == [0, 0, 0, 0, 1, 1, -1, -1]
    assert packed.position[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    trained = packed.tokens[packed.mask].tolist()
    assert trained == [6, 7, 8, 2, 3, 4, 5, 1], "no document's first token"


def test_packed_documents_do_not_see_each_other(witness):
    """The loss of a packed row is that of its documents alone."""
    model = policy(10, dim=16).double()
    packed = pack(examples(), 8)
    logits = model(
        packed.tokens,
        mask=document_mask(packed.document),
        position=packed.position,
    )
    logp = token_logprobs(logits, packed.tokens)[packed.mask[:, 1:]]
    alone = []
    order = [examples()[i] for i in (1, 0, 3, 2)]
    for tokens, mask in order:
        row = torch.tensor([tokens])
        found = token_logprobs(model(row), row)
        alone.append(found[torch.tensor([mask])[:, 1:]])
    close(logp.detach(), torch.cat(alone).detach())
    leaky = token_logprobs(model(packed.tokens), packed.tokens)
    assert (leaky[packed.mask[:, 1:]] - logp).abs().max() > 1e-3
    witness(
        "eq-packing",
        (logp - torch.cat(alone)).abs().max(),
        reference="identity: documents alone",
        code="dsarch.post.sft.pack",
    )


def test_what_does_not_fit_is_refused_and_not_cut():
    with pytest.raises(ValueError, match="example 1 has 5 tokens .* holds 4"):
        pack(examples(), 4)
    with pytest.raises(ValueError, match="has 2 tokens and 1 mask"):
        pack([Example([1, 2], [True])], 4)


def test_labels_all_masked_give_a_loss_of_zero():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    loss = sft_loss(logits, tokens, nothing)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
    first = nothing.clone()
    first[:, 0] = True
    assert sft_loss(logits, tokens, first).item() == 0, "nothing predicts it"


def test_only_trained_tokens_have_a_gradient():
    """And the logit before a trained token is where it arrives."""
    logits = torch.randn(1, 6, 7, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    mask = torch.tensor([[False, False, False, True, True, False]])
    loss = sft_loss(logits, tokens, mask)
    (gradient,) = torch.autograd.grad(loss, logits)
    reached = gradient.abs().sum(-1)[0] > 0
    assert reached.tolist() == [False, False, True, True, False, False]
    p = logits[0, 2].softmax(-1)
    p[3] -= 1
    close(gradient[0, 2], p.detach() / 2)
