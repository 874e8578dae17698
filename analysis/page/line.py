"""The line: the runs that share the engine by turns, who comes next, and how long that may take."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

RECENT = 20  # turns, and runs, whose time an estimate is made of
KEPT = 10.0  # seconds for which a place given up can be taken again, as by a second press of Run
LOOK = 1.0  # seconds between two looks at the estimate
TOGETHER = 64  # runs that take turns

Portion = TypeVar("Portion")


@dataclass(eq=False)
class Place:
    """A place in the line. share: how much of its run has been made, 0 to 1."""

    visitor: str
    share: Callable[[], float]
    begun: float | None = None  # when its first turn began; None before
    since: float | None = None  # when its present turn began; None while others have theirs
    left: float | None = None  # when it was given up


class Line:
    """Runs take turns, in the order in which they were asked for; a turn is as long as it takes to
    make one message for the stage. A run's first turn comes before the next ones of those that have
    begun: who has nothing to look at waits least. Of those that have begun there are at most
    `together`, since each of them keeps its cache; the others wait. A visitor has one place; a
    place that is given up and taken again soon is where it was."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        most: int = 0,
        together: int = TOGETHER,
    ):
        self.clock, self.most = clock, most  # places; 0: as many as there are visitors
        self.together = together
        self.places: list[Place] = []  # in the order of their next turns
        self.turns: deque[float] = deque(maxlen=RECENT)  # seconds of the last turns
        self.took: deque[float] = deque(maxlen=RECENT)  # and of the last runs
        # reentrant: an abandoned stream may be closed by the garbage collector at any moment
        self.changed = threading.Condition(threading.RLock())

    def join(self, visitor: str, share: Callable[[], float] = lambda: 0.0) -> Place:
        """A place at the end, or instead of the one where this visitor waits; ValueError where
        the line is as long as it may be."""
        place = Place(visitor, share)
        with self.changed:
            self._forget()
            waiting = (p for p in self.places if p.visitor == visitor and p.begun is None)
            old = next(waiting, None)
            if old is None:
                if self.most and len(self.places) >= self.most:
                    raise ValueError(
                        f"The line is full, with {self.most} before you: try again in a minute."
                    )
                self.places.append(place)
            else:
                self.places[self.places.index(old)] = place
            self._pass_on()
        return place

    def leave(self, place: Place) -> None:
        """The place's run has ended, or it is not wanted any more."""
        with self.changed:
            if place not in self.places or place.left is not None:
                return
            if place.begun is None:
                place.left = self.clock()
            else:
                self._end_turn(place)
                self.places.remove(place)
                self.took.append(self.clock() - place.begun)
            self._pass_on()

    def give_up(self, visitor: str, for_good: bool = False) -> None:
        """The visitor waits no longer; for_good: and will not come back."""
        with self.changed:
            for place in [p for p in self.places if p.visitor == visitor and p.since is None]:
                self.leave(place)
                if for_good and place in self.places:
                    self.places.remove(place)

    def wait(self, place: Place) -> Iterator[str]:
        """What the visitor is told, at once and at each change, until it is the place's turn
        (`since` says when it began) or the place is given up."""
        told = None
        while True:
            with self.changed:
                if place.since is not None or place.left is not None or place not in self.places:
                    return
                words = waiting_words(*self.ahead(place))
                if words == told:
                    self.changed.wait(LOOK)
                    continue
            yield words
            told = words

    def in_turns(self, place: Place, portions: Iterable[Portion]) -> Iterator[Portion]:
        """The portions of a run, made in the place's turns; between two of them others have theirs.

        A place that is given up meanwhile has no more turns: its run has been told to end.
        """
        for portion in portions:
            with self.changed:
                if place.since is not None and self._next():
                    self._end_turn(place)
                    self.places.remove(place)
                    self.places.append(place)
                    self._pass_on()
            yield portion
            with self.changed:
                self.changed.wait_for(lambda: place.since is not None or place not in self.places)

    def _next(self) -> Place | None:
        """Whose turn comes next; None where nobody waits for one."""
        return next(self._awake(), None)

    def _end_turn(self, place: Place) -> None:
        if place.since is not None:
            self.turns.append(self.clock() - place.since)
            place.since = None

    def _awake(self) -> Iterator[Place]:
        """Places that can have a turn, without the one that has it; the next first."""
        begun = [p for p in self.places if p.begun is not None]
        fresh = [p for p in self.places if p.begun is None] if len(begun) < self.together else []
        return (p for p in [*fresh, *begun] if p.left is None and p.since is None)

    def ahead(self, place: Place) -> tuple[int, float | None]:
        """How many runs come before this place's, and about how many seconds they take; None while
        nothing is known to tell it from."""
        now = [p for p in self.places if p.since is not None]
        awake = list(self._awake())
        if place in awake:
            count = len(now) + awake.index(place)
            return count, count * mean(self.turns) if self.turns else None
        before = [p for p in self.places[: self.places.index(place)] if p.left is None]
        begun = [p for p in self.places if p.begun is not None]
        waiting = [p for p in before if p.begun is None]
        left, usual = self._left(begun)
        count = len(begun) + len(waiting)
        if left is None or (waiting and usual is None):
            return count, None
        return count, left + len(waiting) * (usual or 0.0) / self.together

    def others(self, place: Place) -> int:
        """How many runs take turns with this place's."""
        with self.changed:
            others = sum(p.left is None and p is not place for p in self.places)
        return min(others, self.together - 1)

    def _left(self, begun: list[Place]) -> tuple[float | None, float | None]:
        """Seconds until the first of these runs ends, and that a run takes in all."""
        usual = mean(self.took) if self.took else None
        ends, wholes = [], []
        for place in begun:
            spent, share = self.clock() - (place.begun or 0.0), place.share()
            if share > 0:
                wholes.append(spent / share)
                ends.append(spent / share - spent)
            elif usual is not None:
                ends.append(max(usual - spent, 0.0))
        return min(ends, default=None), usual or min(wholes, default=None)

    def _pass_on(self) -> None:
        """The turn to the first who waits, where nobody has it."""
        if all(p.since is None for p in self.places):
            first = self._next()
            if first is not None:
                first.since = self.clock()
                first.begun = first.since if first.begun is None else first.begun
        self.changed.notify_all()

    def _forget(self) -> None:
        now = self.clock()
        self.places = [p for p in self.places if p.left is None or now - p.left < KEPT]


def waiting_words(ahead: int, seconds: float | None) -> str:
    """The visitor's place, and the wait in round numbers."""
    runs = "1 run is" if ahead == 1 else f"{ahead} runs are"
    wait = "" if seconds is None else f", about {_about(seconds)}"
    return f"Waiting: {runs} ahead of yours{wait}."


def sharing_words(others: int) -> str:
    """Why a run is slow; "" where it has the engine for itself."""
    if not others:
        return ""
    count = str(others) if others < 10 else f"about {round(others, -1)}"
    return f"This run takes turns with {count} other{'' if others == 1 else 's'}."


def _about(seconds: float) -> str:
    if seconds < 55:
        step = 1 if seconds < 10 else 5
        return f"{max(1, step * math.ceil(seconds / step))} s"
    return f"{max(1, round(seconds / 60))} min"
