"""Watching functions reports what ran, with the values that were bound."""

import sys

import pytest
import torch

from dsarch.analysis.watch import find, watch


def halved(x: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        x = (
            x
            / 2
        )  # fmt: skip
    total = x.sum()
    return total


def counted(top: int):
    seen = 0
    while seen < top:
        seen += 1
        yield seen


def test_statements_come_in_order_with_what_they_bound():
    with watch(halved) as moments:
        result = halved(torch.tensor([4.0, 8.0]), 2)
    bound = [name for m in moments for name in m.values if name != "_"]
    assert bound == ["x", "x", "total", "return"]
    assert [
        find(moments, "halved", "x", nth=n, call=0).values["x"].tolist()
        for n in (0, 1)
    ] == [[2.0, 4.0], [1.0, 2.0]]
    last = moments[-1]
    assert last.code == "return total"
    assert torch.equal(last.values["return"], result)


def test_a_statement_of_many_lines_is_one_moment():
    with watch(halved) as moments:
        halved(torch.ones(1), 1)
    codes = [m.code for m in moments if "x" in m.values]
    assert codes == ["x = (\n    x\n    / 2\n)  # fmt: skip"]


def test_values_are_copies():
    kept = torch.ones(2)

    def passes(x):
        y = x
        return y

    with watch(passes) as moments:
        passes(kept)
    kept.zero_()
    assert moments[0].values["y"].tolist() == [1, 1]


def test_a_generator_is_one_call_over_all_its_pieces():
    with watch(counted) as moments:
        assert list(counted(2)) == [1, 2]
        assert list(counted(1)) == [1]
    assert {m.call for m in moments} == {0, 1}
    given = [m.values["return"] for m in moments if "return" in m.values]
    assert given == [1, 2, None, 1, None]


def test_only_watched_functions_and_only_inside_the_block():
    before = sys.gettrace()
    with pytest.raises(RuntimeError), watch(counted) as moments:
        halved(torch.ones(1), 1)
        raise RuntimeError
    assert sys.gettrace() is before
    list(counted(2))
    assert moments == []


def test_what_did_not_happen_is_named():
    with watch(halved) as moments:
        halved(torch.ones(1), 1)
    with pytest.raises(ValueError, match="bound 'x' 1 times, not 2"):
        find(moments, "halved", "x", nth=1, call=0)
    with pytest.raises(ValueError, match="no Python function"), watch(len):
        pass
