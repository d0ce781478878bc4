r"""What experts on many nodes cost: nodes per token and all-to-all bytes.

Experts lie on nodes in order, a group of experts is a node. A token is sent
once to each node that holds one of its experts, however many of them it
holds, and comes back summed: a second expert on a node costs no network.
Sources: DeepSeek-V3 report, sections 2.1.2 and 3.2.2; ISCA 2025.
"""

import math
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from dsarch.balance import devices_of
from dsarch.config import Config

FP8, BF16 = 1, 2


def token_bytes(dim: float, send: float = FP8, receive: float = BF16) -> float:
    """Bytes of one trip: the hidden state in FP8, the answer in BF16."""
    return dim * (send + receive)


def all_to_all_bytes(
    cfg: Config,
    tokens: int,
    copies: float,
    send: float = FP8,
    receive: float = BF16,
) -> float:
    r"""Bytes of all expert layers for ``tokens`` with ``copies`` of each.

    $$V = z\,\rho\,d\,(\omega_1 + \omega_2)\,L_{moe}$$

    ``copies`` is $k$ without any sharing, and the number of remote nodes with
    node-limited routing.
    """
    layers = max(cfg.num_hidden_layers - cfg.first_k_dense_replace, 0)
    trip = token_bytes(cfg.hidden_size, send, receive)
    return tokens * copies * trip * layers


def expected_nodes(n_experts: int, k: int, nodes: int) -> float:
    r"""Mean number of nodes of ``k`` experts drawn at random.

    $$D \left(1 - \binom{e - e/D}{k} \Big/ \binom{e}{k}\right)$$

    ``ValueError`` unless the nodes share the experts evenly and there are at
    least ``k``.
    """
    size, rest = divmod(n_experts, nodes)
    if rest or not 0 < k <= n_experts:
        raise ValueError(
            f"cannot draw {k} of {n_experts} experts on {nodes} equal nodes"
        )
    missed = math.comb(n_experts - size, k) / math.comb(n_experts, k)
    return nodes * (1 - missed)


def limited_nodes(n_experts: int, k: int, nodes: int, limit: int) -> float:
    """The same if only ``limit`` nodes are open to a token."""
    return expected_nodes(n_experts // nodes * limit, k, limit)


def free_experts(limit: int, fast: float = 160.0, slow: float = 50.0) -> float:
    """How many experts cost no more than ``limit`` sends over the network.

    While one copy crosses the slow link between nodes, ``fast / slow`` can be
    handed on inside a node: 3.2 on NVLink and InfiniBand, 13 for 4 nodes.
    """
    return limit * fast / slow


def ep_seconds(
    dim: float,
    tokens: int,
    copies: int,
    bandwidth: float,
    send: float = FP8,
    receive: float = BF16,
) -> float:
    """Seconds to send ``tokens`` to ``copies`` experts and back, one layer."""
    return tokens * copies * token_bytes(dim, send, receive) / bandwidth


class Traffic(NamedTuple):
    """Copies sent between nodes, and how many nodes each token reaches."""

    copies: Int[Tensor, "source node"]
    nodes: Int[Tensor, " z"]

    @property
    def remote(self) -> int:
        """Copies that leave their node."""
        return int(self.copies.sum() - self.copies.trace())


def traffic(experts: Int[Tensor, "z k"], n_experts: int, nodes: int) -> Traffic:
    """The traffic that a recorded routing makes.

    Tokens lie on nodes in equal shares, in order. ``ValueError`` if the
    nodes divide the experts or the tokens unevenly.
    """
    if experts.size(0) % nodes:
        raise ValueError(
            f"{nodes} nodes do not divide {experts.size(0)} tokens"
        )
    sent = devices_of(experts, n_experts, nodes)
    by_source = rearrange(sent, "(node z) to -> node z to", node=nodes)
    return Traffic(by_source.sum(1), sent.sum(1))


def node_loads(
    experts: Int[Tensor, "z k"], n_experts: int, nodes: int
) -> Int[Tensor, " {nodes}"]:
    """Slots that each node computes: how evenly the work is spread."""
    size = n_experts // nodes
    return F.one_hot(experts // size, nodes + 1).sum((0, 1))[:nodes]
