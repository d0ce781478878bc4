"""The expert balancer against the published example of its repository."""

import pytest

from dsarch.analysis import eplb

LOADS = (
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
)
PUBLISHED = (
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
)


@pytest.mark.parametrize("layer", (0, 1))
def test_the_published_placement(layer):
    found = eplb.place(LOADS[layer], slots=16, groups=4, nodes=2, devices=8)
    assert found.slots == PUBLISHED[layer]


def test_published_loads():
    """Busiest over mean: 1.208 and 1.242, global 1.073 and 1.190."""
    for groups, want in ((4, (1.208, 1.242)), (3, (1.073, 1.190))):
        found = [
            eplb.place(loads, 16, groups, 2, 8).excess(loads) for loads in LOADS
        ]
        assert found == pytest.approx(want, abs=5e-4)


def test_replicas_of_the_first_layer():
    found = eplb.place(LOADS[0], 16, 4, 2, 8).replicas(12)
    assert found == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]


def test_a_replica_goes_where_it_helps_most():
    """9 is halved, then 5 beats the halves of 9."""
    assert eplb.replicate([9, 5, 1], 5) == [0, 1, 2, 0, 1]


def test_packs_are_equally_full():
    assert eplb.pack([10, 1, 1, 1], 2) == [[0, 3], [1, 2]]


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="16 do not divide by 5"):
        eplb.place(LOADS[0], 16, 4, 1, 5)
    with pytest.raises(ValueError, match="8 slots are fewer than 12"):
        eplb.place(LOADS[0], 8, 4, 2, 8)
