"""The trainer: what one step is, and that runs can go on."""

import io
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsarch import Config, DeepSeek
from dsarch.balance import updated_bias
from dsarch.mtp import mtp_losses
from dsarch.router import Router
from dsarch.train import loss as losses
from dsarch.train import optim, state
from dsarch.train.data import Batch, Corpus
from dsarch.train.loop import Plan, Trainer
from dsarch.train.monitor import (
    Metrics,
    NonFinite,
    Progress,
    read_metrics,
)
from tests.conftest import close

CFG = Config(
    hidden_size=24,
    num_hidden_layers=2,
    intermediate_size=40,
    moe_intermediate_size=16,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=2,
    initializer_range=0.2,
)
SHARES = {"story": 1, "arithmetic": 1, "recall": 1, "brackets": 2}


class Parts(Corpus):
    """Rows of one large batch handed out in parts of uneven counts."""

    def batch(self, index: int) -> Batch:
        whole = Corpus(*self).batch(0)
        keep = whole.counted.clone()
        for row in range(self.rows):
            keep[row, 3 + 4 * row :] = False
        whole = whole._replace(counted=keep)
        return Batch(*(field[2 * index : 2 * index + 2] for field in whole))


def model(seed: int = 1) -> DeepSeek:
    return DeepSeek(CFG, torch.Generator().manual_seed(seed)).double()


def trainer(folder=None, *, net=None, corpus=None, **options) -> Trainer:
    net = net or model()
    defaults = {"steps": 8, "rate": lambda step: 0.01, "save_every": 3}
    plan = Plan(**defaults | options)
    optimizer = optim.AdamW(net.parameters(), weight_decay=0.1)
    corpus = corpus or Corpus(SHARES, rows=3, length=24, seed=2)
    return Trainer(net, [optimizer], corpus, plan, folder)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in run.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_step_is_what_torch_would_do():
    """Against a loop of torch's own parts: loss, clipping, AdamW."""
    run = trainer(clip=0.7, balance_weight=0.0)
    reference = model()
    optimizer = torch.optim.AdamW(
        reference.parameters(), lr=0.01, weight_decay=0.1
    )
    for step in range(3):
        batch = run.corpus.batch(step)
        target = batch.tokens[:, 1:].masked_fill(~batch.counted[:, 1:], -100)
        hidden = reference.hidden(batch.tokens[:, :-1])
        logits = reference.lm_head(hidden)
        main = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        ahead = mtp_losses(reference.mtp, hidden, batch.tokens).mean()
        (main + 0.3 * ahead).backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.7)
        for w in reference.parameters():
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        optimizer.step()
        optimizer.zero_grad()
        row = run.train_step()
        assert row["loss"] == pytest.approx(main.item())
        assert row["mtp"] == pytest.approx(ahead.item())
        assert row["norm"] == pytest.approx(norm.item())
        assert row["floor"] == pytest.approx(batch.floor())
        for name, bias in reference.named_buffers():
            bias.copy_(run.model.get_buffer(name))
    for a, b in zip(
        run.model.parameters(), reference.parameters(), strict=True
    ):
        close(a.detach(), b.detach())


def step_gradients(parts: int) -> list[torch.Tensor]:
    """Gradients of the same eight uneven rows, in so many micro-batches."""
    corpus = Parts(SHARES, rows=8, length=40)
    if parts == 1:
        whole = Batch(
            *map(torch.cat, zip(*map(corpus.batch, range(4)), strict=True))
        )
        corpus = corpus._replace(rows=8)
        corpus = type("One", (Parts,), {"batch": lambda *_: whole})(*corpus)
    run = trainer(corpus=corpus, accumulation=parts, balance_weight=0.0)
    from dsarch.train.loop import gradients

    run.plan.__dict__["mtp_weight"] = lambda step: 0.0
    gradients(run)
    return [w.grad for w in run.model.parameters()]


def test_accumulation_weighs_every_token_the_same(witness):
    worst = 0.0
    for a, b in zip(step_gradients(4), step_gradients(1), strict=True):
        close(a, b)
        worst = max(worst, (a - b).abs().max().item())
    witness(
        "eq-accumulation",
        worst,
        code="dsarch.train.loop.gradients",
        reference="torch autograd of one large batch",
    )


def test_the_mean_of_means_is_another_gradient():
    """The common error, on the same rows: far off, not a rounding."""
    corpus = Parts(SHARES, rows=8, length=40)
    naive, exact = model(), step_gradients(4)
    for index in range(4):
        batch = corpus.batch(index)
        total, _ = losses.token_loss(naive, batch, 0.0)
        (total / batch.counted[:, 1:].sum() / 4).backward()
    a = torch.cat(
        [w.grad.flatten() for w in naive.parameters() if w.grad is not None]
    )
    names = [w.grad is not None for w in naive.parameters()]
    b = torch.cat(
        [g.flatten() for g, used in zip(exact, names, strict=True) if used]
    )
    assert (a - b).norm() / b.norm() > 0.1


def test_biases_move_once_per_step_by_the_whole_load():
    run = trainer(accumulation=3, bias_speed=lambda step: 0.02)
    before = {n: b.clone() for n, b in run.model.named_buffers()}
    counts = dict.fromkeys(before, 0)
    copy = model()
    for index in range(3):
        with losses.routings(copy) as seen:
            losses.token_loss(copy, run.corpus.batch(index), 0.3)
        for name, (_, routing) in zip(counts, seen, strict=True):
            counts[name] += torch.bincount(
                routing.experts.flatten(), minlength=8
            )
    run.train_step()
    for name, bias in run.model.named_buffers():
        expected = updated_bias(before[name], counts[name], 0.02)
        assert torch.equal(bias, expected)
        assert bias.abs().max() == pytest.approx(0.02)


def test_a_model_without_experts_trains_too():
    cfg = CFG.replace(first_k_dense_replace=2, num_nextn_predict_layers=0)
    net = DeepSeek(cfg, torch.Generator().manual_seed(1)).double()
    rows = trainer(net=net, rate=lambda step: 0.003).run()
    assert rows[-1]["violation"] == 0
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_every_router_is_seen_once():
    """One dense layer, one with experts, and the MTP layer."""
    net = model()
    batch = Corpus(SHARES, rows=2, length=20).batch(0)
    with losses.routings(net) as seen:
        losses.token_loss(net, batch, 0.3)
    assert len(seen) == 2
    assert all(isinstance(router, Router) for router, _ in seen)
    assert seen[0][1].experts.shape == (40, 3)
    assert seen[1][1].experts.shape == (38, 3)
    losses.token_loss(net, batch, 0.3)
    assert len(seen) == 2


def test_recomputed_layers_give_the_same_bits():
    plain, thrifty = trainer(), trainer()
    losses.recompute(thrifty.model.model.layers)
    for _ in range(2):
        a, b = plain.train_step(), thrifty.train_step()
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert equal(weights(plain), weights(thrifty))


def saved_bytes(net: DeepSeek) -> int:
    total = 0

    def pack(x):
        nonlocal total
        total += x.nbytes
        return x

    batch = Corpus(SHARES, rows=2, length=60).batch(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses.token_loss(net, batch, 0.0)
    return total


def test_recomputing_keeps_less():
    net = model()
    before = saved_bytes(net)
    losses.recompute(net.model.layers)
    assert saved_bytes(net) < before / 4


def test_autocast_multiplies_in_bf16():
    """Products round to bf16, weights and loss stay fp32."""
    net = model().float()
    run = trainer(net=net, autocast=torch.bfloat16)
    seen = []
    net.lm_head.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    row = run.train_step()
    assert set(seen) == {torch.bfloat16}
    assert all(w.dtype == torch.float32 for w in net.parameters())
    exact = trainer(net=model().float()).train_step()
    close(
        torch.tensor(row["loss"], dtype=torch.bfloat16),
        torch.tensor(exact["loss"], dtype=torch.bfloat16),
    )
    assert row["loss"] != exact["loss"]


def test_the_balance_loss_evens_out_and_is_weighed():
    """Without biases, a strong balance loss alone lowers the violation."""
    options = {"bias_speed": lambda step: 0.0, "steps": 40}
    ends = []
    for weight in (0.0, 1.0):
        run = trainer(balance_weight=weight, **options)
        rows = run.run()
        ends.append(sum(row["violation"] for row in rows[-10:]))
    assert ends[1] < 0.75 * ends[0]


def test_schedules_are_asked_for_the_step():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.001 * (step + 1)

    run = trainer(rate=rate)
    asked.clear()
    rows = run.run(until=3)
    assert asked == [0, 1, 2]
    assert [row["rate"] for row in rows] == [0.001, 0.002, 0.003]
    assert run.optimizers[0].param_groups[0]["lr"] == 0.003


def test_a_resumed_run_is_the_same_run(tmp_path):
    calm = trainer(tmp_path / "calm", accumulation=2)
    rows = calm.run()
    first = trainer(tmp_path / "cut", accumulation=2)
    first.run(until=5)
    second = trainer(tmp_path / "cut", accumulation=2, net=model(seed=99))
    assert (second.step, second.position) == (5, 10)
    second.run()
    assert equal(weights(calm), weights(second))
    for name in ("metrics.jsonl",):
        a, b = (read_metrics(tmp_path / x / name) for x in ("calm", "cut"))
        for row in (*a, *b):
            row.pop("seconds")
        assert a == b and len(a) == len(rows) == 8


def test_what_changed_is_named_on_resume(tmp_path):
    trainer(tmp_path).run(until=3)
    with pytest.raises(ValueError, match="step 3: clip was 1.0, now it is 2"):
        trainer(tmp_path, clip=2.0)
    with pytest.raises(ValueError, match="rate was .*0.01.*now it is .*0.02"):
        trainer(tmp_path, rate=lambda step: 0.02)
    with pytest.raises(ValueError, match="seed was 2, now it is 4"):
        trainer(tmp_path, corpus=Corpus(SHARES, rows=3, length=24, seed=4))
    wider = DeepSeek(CFG.replace(intermediate_size=44)).double()
    with pytest.raises(ValueError, match="intermediate_size was 40.* 44"):
        trainer(tmp_path, net=wider)
    assert trainer(tmp_path).step == 3


def test_a_bad_weight_is_named(tmp_path):
    run = trainer(tmp_path)
    run.run(until=2)
    run.save()
    with torch.no_grad():
        run.model.model.layers[1].mlp.gate.weight[0, 0] = math.nan
    message = "loss at step 2 is nan: weight model.layers.1.mlp.gate.weight"
    with pytest.raises(NonFinite, match=message):
        run.run()
    assert [path.name[:8] for path in state.states(tmp_path)] == ["00000002"]


def test_an_overflowing_module_is_named():
    run = trainer(net=model().float())
    with torch.no_grad():
        run.model.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(NonFinite, match="layers.0.mlp.down_proj overflows"):
        run.train_step()


def test_a_bad_gradient_is_named():
    run = trainer()
    weight = run.model.model.norm.weight
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFinite, match="norm at step 0 is .*model.norm.weig"):
        run.train_step()
    before = weights(trainer())
    assert equal(weights(run), before)


def test_isolated_documents_do_not_see_each_other():
    """Packed with a mask and restarted positions = one by one."""
    net = model()
    batch = Corpus({"recall": 1, "brackets": 2}, rows=3, length=90).batch(0)
    assert batch.document.max() > 1
    hidden = losses.isolated(net, batch.tokens, batch.document)
    plain = net.hidden(batch.tokens)
    for row in range(3):
        for number in batch.document[row].unique():
            own = batch.document[row] == number
            alone = net.hidden(batch.tokens[row, own][None])
            close(hidden[row, own].detach(), alone[0].detach())
    first = batch.document[:1] == 0
    close(hidden[:1][first].detach(), plain[:1][first].detach())
    assert not torch.allclose(hidden, plain)


def test_evaluation_adds_up():
    net = model()
    corpus = Corpus(SHARES, rows=4, length=60)
    batches = [corpus.batch(i) for i in range(2)]
    found = losses.evaluate(net, batches, corpus.domains)
    assert list(found) == [*SHARES, "all"]
    total = count = 0.0
    for batch in batches:
        value, parts = losses.token_loss(net, batch, 0.0)
        total += value.item()
        count += batch.counted[:, 1:].sum().item()
    assert found["all"][0] == pytest.approx(total / count)
    floors = [batch.surprise.sum().item() for batch in batches]
    assert found["all"][1] == pytest.approx(sum(floors) / count)
    for i, name in enumerate(SHARES):
        chosen = [(b.domain == i) & b.counted for b in batches]
        sums = [
            b.surprise[c].sum() for b, c in zip(batches, chosen, strict=True)
        ]
        size = sum(c.sum() for c in chosen)
        assert found[name][1] == pytest.approx((sum(sums) / size).item())


def test_mtp_is_weighed_and_can_be_left_out():
    net, batch = model(), Corpus(SHARES, rows=2, length=30).batch(0)
    plain, parts = losses.token_loss(net, batch, 0.0)
    both, more = losses.token_loss(net, batch, 0.25)
    assert "mtp" not in parts
    assert both.item() == pytest.approx(plain.item() + 0.25 * more["mtp"])


def test_metrics_of_repeated_steps_are_written_once(tmp_path):
    metrics = Metrics(tmp_path)
    for step in range(5):
        metrics.write({"step": step, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    again = Metrics(tmp_path, step=3)
    again.write({"step": 3, "loss": 2.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


def test_the_bar_shows_progress():
    stream = io.StringIO()
    bar = Progress(40, 10, stream)
    bar.show(20, "loss 1.5")
    assert stream.getvalue() == ""
    bar.shown -= 60
    bar.show(20, "loss 1.5")
    bar.show(40, "loss 1.2")
    lines = stream.getvalue().splitlines()
    assert "███████████████···············" in lines[0]
    assert "20/40 loss 1.5" in lines[0] and "left" in lines[0]
    assert "40/40 loss 1.2" in lines[1] and "·" not in lines[1]


def test_thinned_curves_keep_the_means():
    from dsarch.train.pretrain import thin

    rows = [{"step": i, "loss": float(i), "seconds": 1.0} for i in range(10)]
    assert thin(rows, 5) == [
        {"loss": 2 * i + 0.5, "step": 2 * i + 1} for i in range(5)
    ]


def test_loss_falls_towards_the_floor():
    """A few dozen steps of the real recipe on one domain."""
    corpus = Corpus({"story": 1}, rows=8, length=48)
    run = trainer(net=model().float(), corpus=corpus, steps=60)
    rows = run.run()
    assert rows[0]["loss"] > 5
    assert rows[-1]["floor"] < rows[-1]["loss"] < 1.5
    assert json.dumps(rows)


def test_routers_stay_wide_under_autocast():
    """The same tokens choose the same experts, with fp32 scores."""
    net = model().float()
    batch = Corpus(SHARES, rows=2, length=20).batch(0)
    router = net.model.layers[1].mlp.gate
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    plain = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = router(x)
        total, _ = losses.token_loss(net, batch, 0.3)
    assert torch.equal(plain.scores, narrow.scores)
    assert torch.equal(plain.experts, narrow.experts)
    assert total.dtype == torch.float32
