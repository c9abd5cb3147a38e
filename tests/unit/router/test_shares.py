"""Which process a new connection is for."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.shares import MAX_UNTAKEN, Standing, place_client, place_worker

standings = st.lists(
    st.builds(
        Standing,
        takes=st.booleans(),
        n_workers=st.integers(0, 5),
        n_slots=st.integers(0, 20),
        n_clients=st.integers(0, 40),
        n_untaken=st.integers(0, MAX_UNTAKEN + 1),
    ),
    min_size=1,
    max_size=5,
)


def house(n_workers: int, n_slots: int, n_clients: int) -> Standing:
    return Standing(takes=True, n_workers=n_workers, n_slots=n_slots, n_clients=n_clients)


def test_a_client_stays_where_a_worker_has_nothing_to_do():
    """Every second connection is handed over for nothing."""
    assert place_client([house(2, 4, 1), house(2, 4, 0)], here=0) == 0


def test_a_client_goes_where_a_slot_is():
    """A request waits for, or crosses Redis to, what another process has."""
    assert place_client([house(2, 2, 2), house(2, 2, 0)], here=0) == 1
    assert place_client([house(0, 0, 0), house(1, 1, 9)], here=0) == 1


def test_clients_beyond_the_slots_are_spread_in_proportion():
    """The process with few slots gets as many of those who wait as the one with many."""
    crowd = [house(1, 2, 0), house(3, 6, 0)]
    for n in range(32):
        there = place_client(crowd, here=n % 2)
        crowd[there] = attrs.evolve(crowd[there], n_clients=crowd[there].n_clients + 1)
    assert [one.n_clients for one in crowd] == [8, 24]


def test_equals_keep_what_they_have():
    """Connections are passed on to a sibling that is no better."""
    for one in (house(2, 2, 2), house(0, 0, 7), house(1, 4, 9)):
        assert place_client([one, one, one], here=1) == 1
        assert place_worker([one, one, one], here=1) == 1


def test_workers_are_spread_evenly():
    """Most workers, and with them the work, are on one core."""
    crowd = [house(0, 0, 0)] * 3
    for _ in range(9):
        there = place_worker(crowd, here=0)
        crowd[there] = attrs.evolve(crowd[there], n_workers=crowd[there].n_workers + 1)
    assert [one.n_workers for one in crowd] == [3, 3, 3]


@given(standings, st.data())
def test_nothing_goes_to_who_cannot_take_it_or_is_no_better(crowd, data):
    """A connection is handed to a process that stops, is stuck or has more to do, and from there again."""
    here = data.draw(st.integers(0, len(crowd) - 1))
    for place in (place_client, place_worker):
        there = place(crowd, here=here)
        if there == here:
            continue
        assert crowd[there].takes
        assert crowd[there].n_untaken < MAX_UNTAKEN
        name = "n_clients" if place is place_client else "n_workers"
        later = list(crowd)
        later[there] = attrs.evolve(crowd[there], **{name: getattr(crowd[there], name) + 1})
        assert place(later, here=there) != here  # as far as it counts: it is not handed on again
