"""The cache: what goes in comes out, and bad input leaves no trace."""

import pytest
import torch

from dsarch.cache import Cache
from tests.conftest import close


def pieces(sizes, *widths):
    return [torch.randn(2, t, *widths) for t in sizes]


@pytest.mark.parametrize("reserve", [0, 3, 64])
def test_streams_come_back_whole(reserve):
    cache = Cache(reserve)
    k, v = pieces([5, 1, 1, 9], 3, 4), pieces([5, 1, 1, 9], 6)
    for i in range(4):
        whole = cache.extend(k=k[i], v=v[i])
        close(whole[0], torch.cat(k[: i + 1], 1))
        close(whole[1], torch.cat(v[: i + 1], 1))
    assert len(cache) == 16
    assert cache.nbytes == 2 * 16 * (3 * 4 + 6) * 4
    assert cache.reserved_nbytes >= cache.nbytes


def test_appending_copies_the_past_only_now_and_then():
    cache, moves, last = Cache(), 0, None
    for _ in range(1000):
        (k,) = cache.extend(k=torch.randn(1, 1, 8))
        moves += k.data_ptr() != last
        last = k.data_ptr()
    assert moves <= 11  # 1, 2, 4, … 1024


def test_crop_then_continue_equals_the_uninterrupted_run():
    cache = Cache()
    a, wrong, b = pieces([4, 3, 2], 5)
    cache.extend(k=a)
    cache.extend(k=wrong)
    cache.crop(4)
    close(cache.extend(k=b)[0], torch.cat([a, b], 1))


def test_gradients_pass_through_every_piece():
    a, b = (x.requires_grad_() for x in pieces([4, 3], 5))
    cache = Cache()
    first = cache.extend(k=a)[0].square().sum()
    (first + cache.extend(k=b)[0].square().sum()).backward()
    close(a.grad, 4 * a.detach())
    close(b.grad, 2 * b.detach())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"k": torch.zeros(3, 1, 4)}, r"batch 2.*batch 3"),
        ({"k": torch.zeros(2, 1, 5)}, r"widths \[4\].*widths \[5\]"),
        ({"k": torch.zeros(2, 1, 4).double()}, r"float32.*float64"),
        ({"v": torch.zeros(2, 1, 4)}, r"\['k'\], not \['v'\]"),
        ({}, "no stream was named"),
        ({"k": torch.zeros(4)}, r"\(4,\), needs \[b, t"),
    ],
)
def test_bad_input_changes_nothing(bad, message):
    cache = Cache()
    (before,) = cache.extend(k=torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match=message):
        cache.extend(**bad)
    assert len(cache) == 3
    close(cache["k"], before)


def test_uneven_streams_and_impossible_lengths_are_refused():
    cache = Cache()
    with pytest.raises(ValueError, match="differ in batch or length"):
        cache.extend(k=torch.zeros(1, 2, 4), v=torch.zeros(1, 3, 4))
    assert len(cache) == 0
    with pytest.raises(ValueError, match="cannot crop to 1: the cache holds 0"):
        cache.crop(1)
    with pytest.raises(ValueError, match="cannot reserve -1"):
        Cache(-1)
