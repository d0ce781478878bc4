"""Traffic between nodes: formulas against counting, and published figures."""

import itertools

import pytest
import torch

from dsarch.analysis.expert_parallel import (
    all_to_all_bytes,
    ep_seconds,
    expected_nodes,
    free_experts,
    limited_nodes,
    node_loads,
    traffic,
)
from dsarch.config import Config
from dsarch.router import route


def test_expected_nodes_is_the_mean_over_all_choices(witness):
    choices = list(itertools.combinations(range(12), 3))
    mean = sum(len({i // 3 for i in c}) for c in choices) / len(choices)
    assert expected_nodes(12, 3, 4) == pytest.approx(mean)
    witness(
        "eq-nodes",
        abs(expected_nodes(12, 3, 4) - mean),
        reference="the mean over all 220 choices",
        code="dsarch.analysis.expert_parallel.expected_nodes",
    )
    open_ = [c for c in choices if max(c) < 6]
    mean = sum(len({i // 3 for i in c}) for c in open_) / len(open_)
    assert limited_nodes(12, 3, 4, 2) == pytest.approx(mean)


def test_v3_reaches_fewer_nodes_than_it_may():
    assert round(expected_nodes(256, 8, 8), 2) == 5.29
    assert round(limited_nodes(256, 8, 8, 4), 2) == 3.63
    assert free_experts(4) == pytest.approx(12.8)


def test_published_times():
    """The hardware paper: 32 tokens, 9 copies, 7000 wide."""
    slow, fast = (ep_seconds(7000, 32, 9, b) for b in (50e9, 900e9))
    assert slow == pytest.approx(120.96e-6)
    assert fast == pytest.approx(6.72e-6)
    both_ways = 2 * 61 * slow
    assert both_ways == pytest.approx(14.76e-3, rel=1e-3)


def test_bytes_count_only_expert_layers():
    cfg = Config.v3()
    trip = cfg.hidden_size * (1 + 2)
    assert all_to_all_bytes(cfg, 10, 8) == 10 * 8 * trip * 58
    dense = Config(num_hidden_layers=1, first_k_dense_replace=1)
    assert all_to_all_bytes(dense, 10, 8) == 0


def recorded(topk_group):
    cfg = Config(hidden_size=8, topk_group=topk_group)
    scores = torch.randn(64, 16).sigmoid()
    return route(scores, torch.zeros(16), cfg).experts


def test_traffic_counts_each_node_of_a_token_once():
    experts = recorded(4)
    found = traffic(experts, 16, 4)
    for source in range(4):
        for node in range(4):
            rows = experts[16 * source : 16 * source + 16].tolist()
            copies = sum(any(i // 4 == node for i in row) for row in rows)
            assert found.copies[source, node] == copies
    assert found.nodes.sum() == found.copies.sum()
    away = sum(found.copies[i, j] for i in range(4) for j in range(4) if i - j)
    assert found.remote == away


def test_all_to_all_is_what_a_routing_sends(witness):
    """Bytes of real buffers, a copy for each remote node of each token."""
    cfg = Config(hidden_size=8, topk_group=2)
    found = traffic(recorded(2), 16, 4)
    remote = int(found.remote)
    sent = torch.zeros(remote, 8, dtype=torch.float8_e4m3fn).nbytes
    answered = torch.zeros(remote, 8, dtype=torch.bfloat16).nbytes
    expert_layers = sum(
        not cfg.is_dense(layer) for layer in range(cfg.num_hidden_layers)
    )
    counted = (sent + answered) * expert_layers
    formula = all_to_all_bytes(cfg, 64, remote / 64)
    assert formula == counted > 0
    witness(
        "eq-all-to-all",
        abs(formula - counted),
        reference="the bytes of the buffers of a routing",
        code="dsarch.analysis.expert_parallel.all_to_all_bytes",
    )


def test_node_limited_routing_limits_nodes():
    free, limited = (traffic(recorded(n), 16, 4) for n in (4, 2))
    assert free.nodes.max() > 2
    assert limited.nodes.max() == 2
    assert limited.remote < free.remote


def test_node_loads_sum_to_all_slots():
    experts = recorded(2)
    loads = node_loads(experts, 16, 4)
    assert loads.tolist() == [int((experts // 4 == n).sum()) for n in range(4)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_nodes(10, 3, 4), "10 experts on 4"),
        (lambda: expected_nodes(12, 13, 4), "13 of 12"),
        (lambda: traffic(recorded(2), 16, 5), "5 nodes do not divide 64"),
        (lambda: traffic(recorded(2)[:60], 16, 3), "3 devices do not divide"),
    ],
)
def test_uneven_nodes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
