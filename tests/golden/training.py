"""Golden vectors of FP8, optimizers, schedules and pipelines."""

import torch
from torch import Generator, Tensor

from dsarch.fp8.formats import cast, decode, encode, grid
from dsarch.fp8.reference import TILE, dequantize, fp8_gemm, quantize
from dsarch.train import schedule as plans
from dsarch.train.muon import muon_scale, orthogonalise
from dsarch.train.optim import Settings, adamw_update, clip_grad_norm
from dsarch.train.pipeline import (
    gpipe,
    interleaved,
    one_f_one_b,
    zero_bubble,
)
from dsarch.train.timeline import Program, Times, simulate
from tests.golden.parts import Vectors, random, sizes

FORMATS = ("e4m3", "e5m2", "e5m6", "ue8m0")
FINITE = {"nan": -1e9, "posinf": 1e9, "neginf": -2e9}
COEFFICIENTS = 5 * ((3.4445, -4.7750, 2.0315),)
TIMES = Times(1.0, 2.25, 0.75, 2.75)


def fp8_formats(generator: Generator) -> Vectors:
    """What every code means (NaN -1e9, infinity 1e9 and -2e9), and codes of
    numbers that lie between two values, on ties, and beyond the ends."""
    spread = random(generator, 300) * 10 ** (3 * random(generator, 300))
    points = grid("e4m3"), grid("e5m2"), grid("e5m6")[::16]
    ties = [(x[1:] + x[:-1]) / 2 for x in points]
    ends = torch.tensor([0.0, 464, 465, 61439, 61440, 65279, 65280, 1e30])
    x = torch.cat([spread, *ties, ends, -ends])
    made: Vectors = {"in.x": x}
    for name in FORMATS:
        wide = torch.arange(1 << (12 if name == "e5m6" else 8))
        dtype = torch.int16 if name == "e5m6" else torch.uint8
        values = decode(wide.to(dtype), name)
        made[f"out.{name}.values"] = values.nan_to_num(**FINITE)
        given = x.abs() if name == "ue8m0" else x
        made[f"out.{name}.codes"] = encode(given, name).float()
        if name != "ue8m0":
            made[f"out.{name}.cast"] = cast(x, name)
    return made


def fp8_products(generator: Generator) -> Vectors:
    """Two matrices in tiles, one spoilt, and three ways to multiply."""
    a, b = random(generator, 3, 300) * 3, random(generator, 5, 300)
    a[0, 5], a[1, :128] = 90.0, 0.0
    a[2, 130] = 112.0  # a scale that is a power of two
    made: Vectors = {"in.a": a, "in.b": b}
    cases = {"tile": (TILE, False), "pow2": (TILE, True)}
    for name, (block, pow2) in (cases | {"block": ((2, 48), False)}).items():
        q = quantize(a, block, pow2=pow2)
        codes = q.values.view(torch.uint8)
        made |= {f"out.{name}.codes": codes, f"out.{name}.scale": q.scale}
        made[f"out.{name}.decoded"] = dequantize(q)
    spoilt = a.clone()
    spoilt[0, 7], spoilt[1, 140], spoilt[2, 299] = (
        torch.nan,
        torch.inf,
        -torch.inf,
    )
    made["in.spoilt"] = spoilt.nan_to_num(**FINITE)
    for name, pow2 in (("spoilt", False), ("spoilt_pow2", True)):
        q = quantize(spoilt, pow2=pow2)
        made[f"out.{name}.scale"] = q.scale.nan_to_num(**FINITE)
        made[f"out.{name}.decoded"] = dequantize(q).nan_to_num(**FINITE)
    left, right = quantize(a), quantize(b)
    made["out.gemm"] = fp8_gemm(left, right)
    made["out.gemm_64"] = fp8_gemm(left, right, promote=64)
    made["out.gemm_fp22"] = fp8_gemm(left, right, accumulator="fp22")
    return made


def optim(generator: Generator) -> Vectors:
    """Five steps of AdamW, a clipped gradient, an orthogonal update."""
    weight, gradients = random(generator, 13), random(generator, 5, 13)
    # Gradients from far below epsilon, which is large, to far above it.
    gradients *= 10 ** (torch.arange(13) % 5 - 3.0)
    settings = Settings(0.02, (0.9, 0.95), 0.01, 0.1)
    found = weight.double()
    state = {k: torch.zeros(13).double() for k in ("exp_avg", "exp_avg_sq")}
    for step, gradient in enumerate(gradients, 1):
        state["step"] = torch.tensor(step)
        adamw_update(found, gradient.double(), state, settings)
    parts = [torch.zeros(n).double() for n in (13, 7)]
    for part, row in zip(parts, gradients, strict=False):
        part.grad = row[: len(part)].double()
    norm = clip_grad_norm(parts, 0.5)
    short = [row.double() for row in gradients[2:4]]
    kept = [torch.zeros(13).double() for _ in short]
    for part, row in zip(kept, short, strict=True):
        part.grad = row.clone()
    above = 2 * float(torch.cat(short).norm())
    clip_grad_norm(kept, above)
    wide = random(generator, 4, 6)
    return {
        **sizes(
            lr=0.02,
            beta1=0.9,
            beta2=0.95,
            eps=0.01,
            weight_decay=0.1,
            above=above,
        ),
        "in.weight": weight,
        "in.gradients": gradients,
        "in.matrix": wide,
        "out.weight": found,
        "out.exp_avg": state["exp_avg"],
        "out.exp_avg_sq": state["exp_avg_sq"],
        "out.norm": norm[None],
        "out.clipped": torch.cat([part.grad for part in parts]),
        "out.unclipped": torch.stack([part.grad for part in kept]),
        "out.orthogonal": _orthogonal(wide),
        "out.orthogonal_tall": _orthogonal(wide.T),
        "out.muon_scale": torch.tensor(
            [muon_scale(9, 4, None), muon_scale(9, 4, "match_rms_adamw")]
        ),
    }


def _orthogonal(x: Tensor) -> Tensor:
    return orthogonalise(x.double(), COEFFICIENTS, dtype=torch.float64)


def schedule(generator: Generator) -> Vectors:
    """Every schedule at steps from before its warm-up to beyond its end."""
    steps = torch.arange(0, 1210, 30)
    common = {"peak": 3e-4, "warmup_steps": 100, "first": 1}
    ends = common | {"total": 1000}
    curves = {
        "constant": lambda s: plans.constant(s, **common),
        "linear": lambda s: plans.linear(s, floor=0.1, **ends),
        "cosine": lambda s: plans.cosine(s, floor=0.1, **ends),
        "multi_step": lambda s: plans.multi_step(s, **ends),
        "v3": lambda s: plans.v3(s * 1000),
        "v3_tokens": lambda s: plans.v3_tokens(s * 1000),
        "batch_ramp": lambda s: plans.batch_ramp(plans.v3_tokens(s * 1000)),
    } | {
        f"wsd_{shape}": lambda s, shape=shape: plans.wsd(
            s, decay_steps=200, floor=0.01, shape=shape, **ends
        )
        for shape in plans.SHAPES
    }
    at = {k: [f(int(s)) for s in steps] for k, f in curves.items()}
    return {
        "in.step": steps,
        **{f"out.{name}": torch.tensor(row) for name, row in at.items()},
    }


def pipeline(generator: Generator) -> Vectors:
    """Four schedules, simulated: device, start and end of every item, the
    idle time of each device and how many micro-batches it holds."""
    made = sizes(
        forward=TIMES.forward,
        backward=TIMES.backward,
        weight=TIMES.weight,
        pair=TIMES.pair,
        stages=4,
        micros=8,
        chunks=2,
    )
    programs: dict[str, tuple[Program, float]] = {
        "gpipe": (gpipe(4, 8), 1.0),
        "one_f_one_b": (one_f_one_b(4, 8), 1.0),
        "interleaved": (interleaved(4, 8, 2), 0.5),
        "zero_bubble": (zero_bubble(4, 8), 1.0),
    }
    for name, (program, share) in programs.items():
        line = simulate(program, TIMES, share)
        made[f"out.{name}.slots"] = torch.tensor([x[:3] for x in line.slots])
        made[f"out.{name}.devices"] = torch.tensor(
            [
                (line.idle(device), line.peak_activations(device))
                for device in range(line.devices)
            ]
        )
    return made


FUNCTIONS = (fp8_formats, fp8_products, optim, schedule, pipeline)
