"""The waiting line: whose run the engine makes, who comes next, and how long that may take."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

RECENT = 20  # turns whose time an estimate is made of
KEPT = 10.0  # seconds for which a place given up can be taken again, as by a second press of Run
LOOK = 1.0  # seconds between two looks at the estimate


@dataclass(eq=False)
class Place:
    """A place in the line. share: how much of its run has been made, 0 to 1."""

    visitor: str
    share: Callable[[], float]
    since: float | None = None  # when its turn began; None while it waits
    left: float | None = None  # when it was given up


class Line:
    """Visitors take turns of one run, in the order in which they asked. A visitor has one place;
    a place that is given up and taken again soon is where it was."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = 0):
        self.clock, self.most = clock, most  # places; 0: as many as there are visitors
        self.places: list[Place] = []
        self.took: deque[float] = deque(maxlen=RECENT)  # seconds of the last turns
        # reentrant: an abandoned stream may be closed by the garbage collector at any moment
        self.changed = threading.Condition(threading.RLock())

    def join(self, visitor: str, share: Callable[[], float] = lambda: 0.0) -> Place:
        """A place at the end, or instead of the one where this visitor waits; ValueError where
        the line is as long as it may be."""
        place = Place(visitor, share)
        with self.changed:
            self._forget()
            waiting = (p for p in self.places if p.visitor == visitor and p.since is None)
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
        """The place's turn is over, or it is not wanted any more."""
        with self.changed:
            if place not in self.places or place.left is not None:
                return
            if place.since is None:
                place.left = self.clock()
            else:
                self.places.remove(place)
                self.took.append(self.clock() - place.since)
            self._pass_on()

    def give_up(self, visitor: str, for_good: bool = False) -> None:
        """The visitor waits no longer; for_good: and will not come back."""
        with self.changed:
            for place in [p for p in self.places if p.visitor == visitor and p.since is None]:
                self.leave(place)
                if for_good:
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

    @contextlib.contextmanager
    def turn(self, visitor: str) -> Iterator[None]:
        """Waits for a turn, without a word."""
        place = self.join(visitor)
        try:
            for _ in self.wait(place):
                pass
            yield
        finally:
            self.leave(place)

    def ahead(self, place: Place) -> tuple[int, float | None]:
        """How many runs come before this place's, and about how many seconds they take; None while
        nothing is known to tell it from."""
        now = [p for p in self.places if p.since is not None]
        before = self.places[: self.places.index(place)]
        waiting = [p for p in before if p.since is None and p.left is None]
        left, whole = self._left(now[0]) if now else (0.0, self._usual())
        if left is None or (waiting and whole is None):
            return len(now) + len(waiting), None
        return len(now) + len(waiting), left + len(waiting) * (whole or 0.0)

    def _left(self, running: Place) -> tuple[float | None, float | None]:
        """Seconds that a run still takes, and that a run takes in all."""
        spent, share = self.clock() - (running.since or 0.0), running.share()
        usual = self._usual()
        if share > 0:
            whole = spent / share
            return whole - spent, usual or whole
        return (None if usual is None else max(usual - spent, 0.0)), usual

    def _usual(self) -> float | None:
        return sum(self.took) / len(self.took) if self.took else None

    def _pass_on(self) -> None:
        """The turn to the first who waits, where nobody has it."""
        if all(p.since is None for p in self.places):
            awake = (p for p in self.places if p.left is None)
            first = next(awake, None)
            if first is not None:
                first.since = self.clock()
        self.changed.notify_all()

    def _forget(self) -> None:
        now = self.clock()
        self.places = [p for p in self.places if p.left is None or now - p.left < KEPT]


def waiting_words(ahead: int, seconds: float | None) -> str:
    """The visitor's place, and the wait in round numbers."""
    runs = "1 run is" if ahead == 1 else f"{ahead} runs are"
    wait = "" if seconds is None else f", about {_about(seconds)}"
    return f"Waiting: {runs} ahead of yours{wait}."


def _about(seconds: float) -> str:
    if seconds < 55:
        step = 1 if seconds < 10 else 5
        return f"{max(1, step * math.ceil(seconds / step))} s"
    return f"{max(1, round(seconds / 60))} min"
