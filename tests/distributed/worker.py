"""What several processes check together; run by torchrun, not by pytest.

    python -m torch.distributed.run --standalone --nproc-per-node 2 \
        -m tests.distributed.worker results

Every rank writes ``results/rank.json``: the error of each check, or nothing.
All of it is fp64, so that agreement cannot be luck.
"""

import copy
import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dsarch import Config, DeepSeek
from dsarch.dispatch import dispatch_loop
from dsarch.layers import causal_mask, masked_softmax, positions
from dsarch.mtp import nll
from dsarch.router import Routing
from dsarch.train import distributed, parallel, stages
from dsarch.train.data import Corpus
from dsarch.train.loop import Plan, Ranks, Trainer
from dsarch.train.optim import AdamW
from tests.conftest import close

CFG = Config(
    hidden_size=24,
    num_hidden_layers=2,
    intermediate_size=40,
    moe_intermediate_size=16,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=2,
    q_lora_rank=12,
    kv_lora_rank=20,
    initializer_range=0.2,
)
DENSE = CFG.replace(num_hidden_layers=8, first_k_dense_replace=8)
CORPUS = Corpus(
    {"story": 1, "recall": 2, "brackets": 1}, rows=2, length=25, seed=3
)
STEPS = 3


def build(cfg: Config = CFG) -> DeepSeek:
    g = torch.Generator().manual_seed(5)
    model = DeepSeek(cfg, g).double()
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            nn.init.normal_(module.weight, 1.0, 0.2, g)
    return model


def make(model, ranks: Ranks | None, loss=None, optimizer=None) -> Trainer:
    size = dist.get_world_size()
    plan = Plan(
        steps=STEPS,
        rate=lambda step: 1e-2 / (1 + step),
        accumulation=2 if ranks else 2 * size,
        clip=0.5,
        bias_speed=lambda step: 0.01,
    )
    optimizer = optimizer or AdamW(model.parameters(), weight_decay=0.1)
    extra = {} if loss is None else {"loss": loss}
    return Trainer(model, [optimizer], CORPUS, plan, ranks=ranks, **extra)


def single() -> tuple[DeepSeek, list[dict]]:
    """The same run in one process: every rank repeats it for itself."""
    trainer = make(build(), None)
    return trainer.model, trainer.run()


def ranks() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.all_reduce)


def whole(weight: torch.Tensor) -> torch.Tensor:
    full = getattr(weight, "full_tensor", None)
    return full() if full else weight


def compare(trainer: Trainer, rows: list[dict]) -> None:
    model, expected = single()
    for a, b in zip(rows, expected, strict=True):
        for name in ("loss", "mtp", "floor", "norm", "violation", "tokens"):
            x, y = torch.tensor([[a[name]], [b[name]]], dtype=torch.float64)
            close(x, y)
    ours = dict(trainer.model.named_parameters())
    for name, weight in model.named_parameters():
        close(whole(ours[name]).detach(), weight.detach())
    buffers = dict(trainer.model.named_buffers())
    for name, bias in model.named_buffers():
        close(buffers[name], bias)
        assert bias.abs().sum() > 0


def check_naive_data_parallel() -> None:
    """Averaging gradients by hand is what DDP does."""
    model = build()
    wrapped = build()
    loss = distributed.data_parallel(wrapped)
    batch = CORPUS.batch(dist.get_rank())
    distributed.token_loss(model, batch, 0.3).total.backward()
    distributed.average_gradients(model)
    loss(wrapped, batch, 0.3).total.backward()
    for a, b in zip(model.parameters(), wrapped.parameters(), strict=True):
        close(a.grad, b.grad)


def check_data_parallel() -> None:
    model = build()
    trainer = make(model, ranks(), distributed.data_parallel(model))
    compare(trainer, trainer.run())


def zero(stage: int) -> None:
    model = build()
    loss, optimizer = distributed.zero(model, stage, AdamW, weight_decay=0.1)
    trainer = make(model, ranks(), loss, optimizer)
    compare(trainer, trainer.run())
    if stage > 1:
        weight = model.lm_head.weight
        rows = CFG.vocab_size // dist.get_world_size()
        assert weight.to_local().shape == (rows, CFG.hidden_size)
        moment = optimizer.state[weight]["exp_avg"]
        assert moment.to_local().shape == (rows, CFG.hidden_size)
    else:
        held = len(optimizer.optim.state)
        assert 0 < held < len(list(model.parameters()))


def check_zero_1() -> None:
    zero(1)


def check_zero_2() -> None:
    zero(2)


def check_zero_3() -> None:
    zero(3)


def check_tensor_parallel() -> None:
    """Heads and MLP columns split: values and every gradient agree."""
    from torch.distributed.device_mesh import init_device_mesh

    model, split = build(DENSE), build(DENSE)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in split.layers:
        parallel.split_heads(layer.self_attn)
        parallel.split_mlp(layer.mlp, mesh)
    tokens = CORPUS.batch(0).tokens
    outputs = [m(tokens) for m in (model, split)]
    close(*(out.detach() for out in outputs))
    for out in outputs:
        out.square().sum().backward()
    rank, size = dist.get_rank(), dist.get_world_size()
    ours = dict(split.named_parameters())
    for name, weight in model.named_parameters():
        if weight.grad is None:
            continue
        expected, grad = weight.grad, whole(ours[name].grad)
        if grad.shape != expected.shape:
            axis = 1 if "o_proj" in name else 0
            expected = expected.chunk(size, axis)[rank]
        close(grad, expected)


def check_expert_parallel() -> None:
    """Each rank has its own tokens; experts answer to all of them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    moe = build().layers[1].mlp
    own = copy.deepcopy(moe)
    parallel.split_experts(own)
    g = torch.Generator().manual_seed(9)
    counts = [5 + 2 * r for r in range(size)]
    x = torch.randn(1, sum(counts), 24, generator=g, dtype=torch.float64)
    x.requires_grad_()
    y = moe(x)
    y.square().sum().backward()
    part = x.detach().split(counts, 1)[rank].requires_grad_()
    out = own(part)
    close(out.detach(), y.detach().split(counts, 1)[rank])
    out.square().sum().backward()
    close(part.grad, x.grad.split(counts, 1)[rank])
    local = len(own.experts)
    for i, expert in enumerate(own.experts):
        reference = moe.experts[rank * local + i]
        for a, b in zip(
            expert.parameters(), reference.parameters(), strict=True
        ):
            close(
                a.grad if a.grad is not None else torch.zeros_like(a),
                b.grad if b.grad is not None else torch.zeros_like(b),
            )
    dist.all_reduce(own.gate.weight.grad)
    close(own.gate.weight.grad, moe.gate.weight.grad)


def check_experts_without_tokens() -> None:
    """All tokens go to one rank: the others send and receive nothing."""
    rank, size = dist.get_rank(), dist.get_world_size()
    g = torch.Generator().manual_seed(2)
    experts = build().layers[1].mlp.experts
    local = len(experts) // size
    x = torch.randn(4, 24, generator=g, dtype=torch.float64)
    chosen = torch.full((4, 2), 1)
    chosen[:, 1] = 0
    weights = torch.rand(4, 2, generator=g, dtype=torch.float64)
    routing = Routing(weights, chosen, torch.zeros(4, 8))
    mine = experts[rank * local : (rank + 1) * local]
    y = parallel.exchange_experts(x, routing, mine)
    close(y.detach(), dispatch_loop(x, routing, experts).detach())


def check_ring_attention() -> None:
    """Values and gradients of causal attention, one part per rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    g = torch.Generator().manual_seed(4)
    shapes = (2, 3 * size, 5, 4), (2, 3 * size, 5, 4), (2, 3 * size, 5, 6)
    q, k, v = (
        (2 * torch.randn(shape, generator=g, dtype=torch.float64))
        for shape in shapes
    )
    full = [x.clone().requires_grad_() for x in (q, k, v)]
    score = torch.einsum("bthn,bshn->bhts", full[0], full[1]) * 0.7
    p = masked_softmax(score, causal_mask(positions(2, 0, 3 * size), 3 * size))
    y = torch.einsum("bhts,bshv->bthv", p, full[2])
    y.square().sum().backward()
    part = [x.chunk(size, 1)[rank].clone().requires_grad_() for x in (q, k, v)]
    out = parallel.ring_attention(*part, 0.7)
    close(out.detach(), y.detach().chunk(size, 1)[rank])
    out.square().sum().backward()
    for a, b in zip(part, full, strict=True):
        close(a.grad, b.grad.chunk(size, 1)[rank])


def run_pipeline(schedule: str) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    tokens = torch.cat([CORPUS.batch(i).tokens for i in range(4)])
    inputs, target = tokens[:, :-1], tokens[:, 1:]

    def loss(logits, target):
        return nll(logits, target).mean()

    model, cut = build(DENSE), build(DENSE)
    loss(model(inputs), target).backward()
    line = stages.pipeline(cut, schedule, 8, loss, rank=rank, ranks=size)
    own = stages.stages_of(schedule, rank, size)
    last = len(own) * size - 1
    arguments = (inputs,) if 0 in own else ()
    losses: list[torch.Tensor] = []
    keyword = {"target": target, "losses": losses} if last in own else {}
    line.step(*arguments, **keyword)
    if last in own:
        mean = torch.stack(losses).mean()
        close(mean, loss(model(inputs), target).detach())
    grads = {n: w.grad for n, w in cut.named_parameters()}
    seen = 0
    depth, total = len(cut.layers), len(own) * size
    for stage in own:
        low, high = stage * depth // total, (stage + 1) * depth // total
        for name, weight in model.named_parameters():
            mine = any(
                name.startswith(f"model.layers.{i}.") for i in range(low, high)
            )
            mine |= stage == 0 and name == "model.embed_tokens.weight"
            mine |= stage == last and name == "lm_head.weight"
            if mine:
                close(grads[name], weight.grad)
                seen += 1
    assert seen > 0


def check_gpipe() -> None:
    run_pipeline("GPipe")


def check_1f1b() -> None:
    run_pipeline("1F1B")


def check_interleaved() -> None:
    run_pipeline("Interleaved1F1B")


def check_zero_bubble() -> None:
    run_pipeline("ZBVZeroBubble")


def check_dualpipe_v() -> None:
    run_pipeline("DualPipeV")


def check_sharded_checkpoint(folder: Path) -> None:
    """Written by two ranks, read by four; a step later all agree."""
    model = build()
    loss, optimizer = distributed.zero(model, 3, AdamW, weight_decay=0.1)
    trainer = make(model, ranks(), loss, optimizer)
    store = folder / "sharded"
    if dist.get_world_size() == 2:
        trainer.run(until=1)
        distributed.save_sharded(store, model, optimizer)
        return
    reference = make(build(), None)
    reference.plan = Plan(**vars(reference.plan) | {"accumulation": 4})
    reference.run(until=1)
    distributed.load_sharded(store, model, optimizer)
    ours = dict(model.named_parameters())
    for name, weight in reference.model.named_parameters():
        close(whole(ours[name]).detach(), weight.detach())
        moment = reference.optimizers[0].state[weight]["exp_avg"]
        close(whole(optimizer.state[ours[name]]["exp_avg"]), moment)


def main(folder: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.start(30)
    results = {}
    for name, check in globals().copy().items():
        if not name.startswith("check_") or (only and name not in only):
            continue
        try:
            check(*(folder,) if "checkpoint" in name else ())
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
            if only:
                print(results[name])
        path = f"{dist.get_world_size()}-{dist.get_rank()}.json"
        (folder / path).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
