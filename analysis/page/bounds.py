"""What one visitor may cost: each bound with its default, and the variable that sets it.

    python -m analysis.page.bounds     prints the table of them that SECURITY.md has

A page that serves its own machine only has no bounds but those on the size of a run and of a file:
there is nobody else to be kept waiting.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from analysis.page.line import TOGETHER
from analysis.page.query import LONGEST_ANSWER, MOST_LANES, Asked
from d2cache.trace_format import LARGEST

PREFIX = "D2CACHE_MOST_"  # and the bound's name, in capitals
LOCAL = ("127.0.0.1", "localhost")  # of GRADIO_SERVER_NAME: the page serves its own machine
NONE = 0  # as a setting: there is no bound
MB = 1 << 20


def bound(public: int, words: str, local: int = NONE, most: int | None = None) -> Any:
    """public, local: defaults; words: what it bounds; most: what it cannot be raised above."""
    known = {"words": words, "public": public, "local": local, "most": most}
    return field(default=public, metadata=known)


@dataclass(frozen=True)
class Bounds:
    """The bounds of a page, by default those of a public one; NONE for those that it has not."""

    lanes: int = bound(MOST_LANES, "lanes on one board", MOST_LANES, MOST_LANES)
    answer: int = bound(LONGEST_ANSWER, "masks of an answer", LONGEST_ANSWER, LONGEST_ANSWER)
    truth: int = bound(512, "masks that exact passes follow, over all lanes of a board")
    runs: int = bound(60, "lanes that a visitor starts in a minute")
    together: int = bound(TOGETHER, "runs that take turns, each with its cache", TOGETHER, 400)
    waiting: int = bound(200, "visitors that wait for their turn")
    programs: int = bound(20, "runs of /run and /compare at once, for everybody")
    questions: int = bound(64, "maps, figures and exports that are made at once, for everybody")
    requests: int = bound(3000, "requests of one address in a minute")
    upload_mb: int = bound(LARGEST // MB, "MB of a trace to load", LARGEST // MB, LARGEST // MB)
    hourly_mb: int = bound(512, "MB that one address uploads in an hour")
    all_hourly_mb: int = bound(4096, "MB that all upload in an hour, after which they are deleted")

    @staticmethod
    def read(environment: Mapping[str, str]) -> Bounds:
        """The bounds that these environment variables set; ValueError names one that is wrong."""
        local = is_local(environment)
        return Bounds(**{one.name: _setting(one, environment, local) for one in fields(Bounds)})

    def check(self, asked: Asked, lanes: int) -> None:
        """ValueError, in a sentence, where a board of so many lanes would be too much."""
        exact = asked.gen_length * lanes if asked.truth else 0
        for found, most, what, advice in (
            (lanes, self.lanes, "lanes", "take fewer, or press Run to start again"),
            (asked.gen_length, self.answer, "masks in an answer", "ask for a shorter one"),
            (exact, self.truth, "masks with truth on", "switch it off, or take fewer lanes"),
        ):
            if most != NONE and found > most:
                raise ValueError(
                    f"This page allows {most} {what}, and there would be {found}: {advice}."
                )


def is_local(environment: Mapping[str, str]) -> bool:
    """Whether the page is for its own machine only."""
    return environment.get("GRADIO_SERVER_NAME", LOCAL[0]) in LOCAL


def variable(name: str) -> str:
    """The environment variable that sets a bound."""
    return PREFIX + name.upper()


def table() -> str:
    """The bounds as a table in Markdown."""

    def shown(value: int) -> str:
        return str(value) if value != NONE else "none"

    rows = ["| variable | public | local | at most |", "| --- | ---: | ---: | --- |"]
    for one in fields(Bounds):
        known = one.metadata
        values = f"{shown(known['public'])} | {shown(known['local'])}"
        rows.append(f"| `{variable(one.name)}` | {values} | {known['words']} |")
    return "\n".join(rows)


def _setting(one: Field, environment: Mapping[str, str], local: bool) -> int:
    text = environment.get(variable(one.name), "").strip()
    if not text:
        return one.metadata["local" if local else "public"]
    most = one.metadata["most"]
    value = int(text) if text.isdecimal() and len(text) < 10 else -1
    if value < (NONE if most is None else 1) or (most is not None and value > most):
        allowed = f"from 1 to {most}" if most is not None else f"or {NONE} for no bound"
        raise ValueError(
            f"{variable(one.name)} is {text[:20]!r}; it must be a whole number {allowed}"
        )
    return value


class Rate:
    """How much each of several visitors has done in the present stretch of time."""

    def __init__(self, most: int, seconds: float = 60, clock=time.monotonic):
        self.most, self.seconds, self.clock = most, seconds, clock
        self.lock = threading.Lock()
        self.since, self.done = clock(), dict[str, int]()

    def add(self, visitor: str, amount: int = 1) -> bool:
        """Whether the visitor may do so much more; it is counted if so."""
        if self.most == NONE:
            return True
        with self.lock:
            if self.clock() - self.since >= self.seconds:
                self.since, self.done = self.clock(), {}
            total = self.done.get(visitor, 0) + amount
            if total > self.most:
                return False
            self.done[visitor] = total
            return True


class AtOnce:
    """A context of which at most so many may be open at once; ValueError, these words, for more."""

    def __init__(self, most: int, words: str):
        self.most, self.words = most, words
        self.lock, self.open = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if self.most != NONE and self.open >= self.most:
                raise ValueError(self.words)
            self.open += 1

    def __exit__(self, *fault) -> None:
        with self.lock:
            self.open -= 1


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
