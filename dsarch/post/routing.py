r"""Keep-routing: training reuses the experts that the sampler chose.

A small change of the weights may send a token to other experts, and then the
ratio $\pi_\theta/\pi_{old}$ compares two different networks. V3.2 (report,
section 3.1) records the indices while sampling and forces them in training;
the weights of the chosen experts are computed from the current scores here,
so that the router keeps a gradient.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from dsarch.config import Config
from dsarch.router import Router, Routing

Routes = dict[str, Int[Tensor, "b t k"]]


def reweigh(
    routing: Routing, experts: Int[Tensor, "z k"], cfg: Config
) -> Routing:
    r"""The routing to other experts, weighed by the scores at hand.

    $$g_i = \lambda\,s_i \Big/ \sum_{j \in \mathcal K} s_j$$
    """
    weights = routing.scores.gather(1, experts)
    if cfg.norm_topk_prob:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    weights = weights * cfg.routed_scaling_factor
    return Routing(weights, experts, routing.scores)


def _routers(model: Any) -> list[tuple[str, Router]]:
    found = model.named_modules()
    return [(name, m) for name, m in found if isinstance(m, Router)]


@contextmanager
def record_routes(model: Any, batch: int) -> Iterator[Routes]:
    """Collect the experts of all tokens of ``batch`` sequences inside.

    The result is filled when the block ends: chunks of one sequence, a
    prefill and its decoded tokens, stand one after the other.
    """
    seen: dict[str, list[Tensor]] = {}
    joined: Routes = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, given: Any, routing: Routing) -> None:
            chunk = routing.experts.unflatten(0, (batch, -1))
            seen.setdefault(name, []).append(chunk)

        return hook

    routers = _routers(model)
    handles = [m.register_forward_hook(listen(n)) for n, m in routers]
    try:
        yield joined
    finally:
        for handle in handles:
            handle.remove()
        joined.update({n: torch.cat(parts, 1) for n, parts in seen.items()})


@contextmanager
def replay_routes(
    model: nn.Module, routes: Mapping[str, Tensor]
) -> Iterator[None]:
    """Force recorded experts upon one forward pass of whole sequences.

    Positions beyond the recorded ones, such as the last sampled token, which
    was never fed to the sampler, are routed anew. Raises ``ValueError`` if
    the batch is not the recorded one.
    """

    def force(experts: Int[Tensor, "b t k"]) -> Any:
        def hook(module: Router, given: Any, routing: Routing) -> Routing:
            chosen = _continued(experts, routing.experts)
            return reweigh(routing, chosen, module.cfg)

        return hook

    routers = [(n, m) for n, m in _routers(model) if n in routes]
    handles = [m.register_forward_hook(force(routes[n])) for n, m in routers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _continued(
    kept: Int[Tensor, "b t k"], found: Int[Tensor, "z k"]
) -> Int[Tensor, "z k"]:
    """The kept choices, and the found ones at later positions."""
    rows, length = kept.shape[:2]
    if len(found) % rows or len(found) // rows < length:
        raise ValueError(
            f"{len(found)} tokens do not continue {rows} recorded sequences "
            f"of {length}"
        )
    later = found.unflatten(0, (rows, -1))[:, length:]
    return torch.cat([kept, later], 1).flatten(0, 1)
