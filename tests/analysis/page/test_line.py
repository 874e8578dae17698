"""The line: runs take turns in the order of asking, and everybody knows their place."""

import threading
import time

import pytest

from analysis.page.line import KEPT, Line, sharing_words


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def line():
    """Where one run is made at a time."""
    return Line(Clock(), together=1)


def turn_of(line) -> str | None:
    """Whose turn it is."""
    return next((p.visitor for p in line.places if p.since is not None), None)


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


def test_runs_that_share_take_turns_and_one_alone_is_not_interrupted():
    line = Line(Clock())
    a, b = line.join("a"), line.join("b")
    mine, its = line.in_turns(a, range(3)), line.in_turns(b, range(3))
    seen = []
    for run in (mine, its, mine, its):
        seen.append((next(run), turn_of(line)))
    assert seen == [(0, "b"), (0, "a"), (1, "b"), (1, "a")]
    line.leave(b)
    assert next(mine) == 2 and turn_of(line) == "a", "nobody else is there"


def test_who_comes_has_a_turn_before_the_others_have_another():
    line = Line(Clock())
    runs = {name: line.in_turns(line.join(name), range(9)) for name in "abc"}
    order = []
    for _ in range(7):
        order.append(turn_of(line))
        next(runs[order[-1]])
        if len(order) == 2:
            runs["new"] = line.in_turns(line.join("new"), range(9))
    assert order == ["a", "b", "c", "new", "a", "b", "c"]


def test_no_more_runs_share_than_may_and_the_next_begins_when_one_ends():
    line = Line(Clock(), together=2)
    a, b, c = (line.join(name) for name in "abc")
    turns = {p.visitor: line.in_turns(p, range(9)) for p in (a, b)}
    for _ in range(4):
        next(turns[turn_of(line)])
    assert c.begun is None
    line.leave(a)
    assert turn_of(line) == "c"


def test_a_wait_for_a_turn_is_as_many_turns_as_come_before():
    line = Line(Clock())
    run = line.in_turns(line.join("a"), range(9))
    second, third = line.join("b"), line.join("c")
    assert told(line, third) == "Waiting: 2 runs are ahead of yours."
    line.clock.now = 2.0
    next(run)  # a turn of 2 s
    assert turn_of(line) == "b" and told(line, second) is None
    assert told(line, third) == "Waiting: 1 run is ahead of yours, about 2 s."


def test_those_who_have_begun_are_not_before_a_newcomer():
    line = Line(Clock())
    runs = [line.in_turns(line.join(name), range(9)) for name in "ab"]
    line.clock.now = 2.0
    next(runs[0])  # a turn of 2 s, and now b has one
    assert told(line, line.join("c")) == "Waiting: 1 run is ahead of yours, about 2 s."


def test_a_run_knows_how_many_it_shares_the_engine_with():
    line = Line(Clock(), together=3)
    first = line.join("a")
    assert sharing_words(line.others(first)) == ""
    second = line.join("b")
    assert sharing_words(line.others(first)) == "This run takes turns with 1 other."
    for i in range(4):
        line.join(f"v{i}")
    assert line.others(second) == 2, "the rest waits until one of these ends"
    line.leave(first)
    line.give_up("v0")
    assert line.others(second) == 2
    assert sharing_words(39) == "This run takes turns with about 40 others."


def test_a_run_that_rests_and_is_given_up_has_no_more_turns_and_is_not_stuck():
    line, made = Line(Clock()), []
    a, b = line.join("a"), line.join("b")
    run = line.in_turns(a, iter(range(3)))
    next(run)
    line.give_up("a")
    made += run  # to its end, without a turn
    assert made == [1, 2] and line.places == [b] and turn_of(line) == "b"


def test_forty_at_once_are_all_served_and_only_one_is_at_work():
    line, busy, seen = Line(), threading.Lock(), []

    def work(i):
        for _ in range(3):
            assert busy.acquire(blocking=False)
            time.sleep(0.001)
            busy.release()
            yield i

    def visit(i):
        place = line.join(f"v{i}")
        list(line.wait(place))
        seen.extend(line.in_turns(place, work(i)))
        line.leave(place)

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(40)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert sorted(seen) == sorted([*range(40)] * 3) and line.places == []
