"""The waiting line: one run at a time, in the order of asking, and everybody knows their place."""

import threading

import pytest

from analysis.page.line import KEPT, Line


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def line():
    return Line(Clock())


def told(line, place) -> str | None:
    """What a visitor is told now; None: it is their turn, or they wait no longer."""
    return next(line.wait(place), None)


def test_turns_come_in_the_order_of_asking(line):
    places = [line.join(f"v{i}") for i in range(4)]
    for i, place in enumerate(places):
        assert place.since is not None and told(line, place) is None
        assert [p.since for p in places[i + 1 :]] == [None] * (3 - i)
        line.leave(place)
    assert line.places == []


def test_the_place_and_the_wait_are_told_at_once(line):
    first = line.join("a", lambda: 0.25)
    second, third = line.join("b"), line.join("c")
    line.clock.now = 5.0  # a quarter took 5 s, so 15 are left, and another run takes 20
    assert told(line, second) == "Waiting: 1 run is ahead of yours, about 15 s."
    assert told(line, third) == "Waiting: 2 runs are ahead of yours, about 35 s."
    line.leave(first)
    assert told(line, third) == "Waiting: 1 run is ahead of yours, about 5 s."  # one took 5 s
    line.clock.now = 65.0
    line.leave(second)
    assert third.since == 65.0


def test_without_anything_to_tell_it_from_no_wait_is_made_up(line):
    line.join("a")
    assert told(line, line.join("b")) == "Waiting: 1 run is ahead of yours."


def test_a_visitor_has_one_place_and_keeps_it(line):
    line.join("a")
    mine, other = line.join("b"), line.join("c")
    again = line.join("b")
    assert told(line, mine) is None and mine.since is None
    assert line.ahead(again)[0] == 1 and line.ahead(other)[0] == 2
    assert len(line.places) == 3


def test_a_place_given_up_is_free_for_the_next_and_kept_for_a_moment(line):
    first = line.join("a")
    mine, other = line.join("b"), line.join("c")
    line.give_up("b")
    assert told(line, mine) is None and line.ahead(other)[0] == 1
    again = line.join("b")
    assert line.ahead(again)[0] == 1 and line.ahead(other)[0] == 2
    line.give_up("b")
    line.clock.now = KEPT + 1
    late = line.join("b")
    assert line.ahead(other)[0] == 1 and line.ahead(late)[0] == 2
    line.leave(first)
    assert other.since is not None


def test_who_leaves_for_good_is_forgotten_and_a_running_one_is_not_cut_short(line):
    running = line.join("a")
    line.join("b")
    for visitor in ("a", "b"):
        line.give_up(visitor, for_good=True)
    assert line.places == [running]


def test_forty_at_once_are_all_served_one_at_a_time():
    line, busy, seen = Line(), threading.Lock(), []

    def visit(i):
        with line.turn(f"v{i}"):
            assert busy.acquire(blocking=False)
            seen.append(i)
            busy.release()

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(40)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert sorted(seen) == list(range(40)) and line.places == []
