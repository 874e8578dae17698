"""What crosses the border to a GPU of another process, and what is done there.

A call is one order in and messages out, all of them plain values and numpy arrays, since they are
pickled. Nothing else that the worker makes outlives the call, except the model that it has loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import d2cache
from analysis.page.analyses import ANALYSES, unpacked
from analysis.page.boards import Board, Run, guarded
from analysis.page.query import Asked
from analysis.probes import Look


@dataclass(frozen=True)
class Lanes:
    """An order: the lanes of a request, from their first steps to their ends. keys: of the runs."""

    asked: Asked
    keys: tuple[str, ...]

    @property
    def model(self) -> str:
        return self.asked.model


@dataclass(frozen=True)
class Analysis:
    """An order: an analysis of a run, see `analyses.ANALYSES`. trace: as `packed` makes it."""

    model: str  # its label
    name: str
    trace: bytes
    steps: int
    given: tuple = ()


Order = Lanes | Analysis


@dataclass(frozen=True)
class Ready:
    """The first message: the model is on the GPU, after so many seconds of loading."""

    seconds: float


@dataclass(frozen=True)
class Sent:
    """A lane's step, or its end."""

    run: str  # its key
    seconds: float  # that all of it took, `truth` and the making of events included
    events: tuple[dict, ...] = ()  # see `analysis.page.events`
    step: dict[str, Any] | None = None  # see `Recorder.parcel`
    look: Look | None = None
    blank: int | None = None  # as in `Run`
    written: int = 0
    ended: bool = False
    error: str = ""  # why it has failed


@dataclass(frozen=True)
class Found:
    """What an analysis has found."""

    value: Any


@dataclass(frozen=True)
class Refused:
    """Why an order cannot be carried out, in one line."""

    says: str


Message = Ready | Sent | Found | Refused


class Worker:
    """Carries out orders. offered: label of a model -> what `d2cache.load` takes."""

    def __init__(self, offered: dict[str, str]):
        self.offered = offered
        self.held: dict[str, d2cache.Model] = {}  # the model used last, by its label

    def carry_out(self, order: Order) -> Iterator[Message]:
        """What comes of an order, message by message; never raises for a bad order."""
        try:
            began = time.perf_counter()
            fresh = order.model not in self.held
            model = self.model(order.model)
            yield Ready(time.perf_counter() - began if fresh else 0.0)
            if isinstance(order, Lanes):
                yield from self.lanes(order, model)
            else:
                yield Found(ANALYSES[order.name](model, unpacked(order.trace), *order.given))
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            yield Refused((str(error).strip() or type(error).__name__).splitlines()[0])

    def model(self, label: str) -> d2cache.Model:
        """The model of this label, on this process's GPU if it has one. Only one is kept."""
        if label not in self.held:
            self.held.clear()
            self.held[label] = d2cache.load(self.offered[label], progress=lambda *_: None)
        return self.held[label]

    def lanes(self, order: Lanes, model: d2cache.Model) -> Iterator[Sent]:
        """The steps of the lanes, in turns or one lane after the other, as was asked for."""
        board = Board("", order.asked)
        for key, lane in zip(order.keys, order.asked.lanes, strict=True):
            board.start(lane, model).key = key
        try:
            while left := [run for run in board.runs if run.steps is not None]:
                for run in left if order.asked.turns else left[:1]:
                    yield next_of(board, run)
        finally:
            board.forget()


def next_of(board: Board, run: Run) -> Sent:
    """A lane's next step as it crosses the border, or its end."""
    began = time.perf_counter()
    events = guarded(board, run)
    took = time.perf_counter() - began
    if run.steps is None:
        return Sent(run.key, took, ended=True, error=run.error)
    look = run.looks[-1] if run.truth is not None else None
    step = run.recorder.parcel()
    return Sent(run.key, took, tuple(events), step, look, run.blank, run.written)
