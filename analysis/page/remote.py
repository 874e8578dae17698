"""Boards whose lanes are made in one call on a GPU of another process.

The page keeps such a board like any other. What has arrived of a call waits here until the board's
visitor wants it, so that pause and step move the page's clock over a run that goes on by itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import d2cache
from analysis.page.analyses import packed
from analysis.page.boards import Board, Lost, Run
from analysis.page.models import ENGINE
from analysis.page.query import Lane
from analysis.page.worker import (
    Analysis,
    Found,
    Lanes,
    Message,
    Order,
    Ready,
    Refused,
    Sent,
    Worker,
)
from analysis.page.zero import Borrow, Pace, in_words
from d2cache.trace import Trace

FASTEST = 2  # times as fast as they were made, steps that have waited are handed on


class Far:
    """The GPU that is borrowed for each call. offered: as for `Models`."""

    def __init__(self, offered: dict[str, str], borrow: Borrow):
        self.pace = Pace()
        self.carried_out = borrow(duration=self.pace.seconds)(Worker(offered).carry_out)

    def call(self, order: Order) -> Generator[Message, None, None]:
        """What comes of an order; Lost says why no more comes. When it is closed, the other
        process ends the work after the step that it is making."""
        with contextlib.closing(self.carried_out(order)) as messages:
            while True:
                try:
                    message = next(messages, None)
                except Exception as error:  # of whatever library is in between
                    raise Lost(in_words(error)) from error
                if message is None:
                    return
                if isinstance(message, Refused):
                    raise Lost(message.says)
                if isinstance(message, Ready):
                    self.pace.loaded(order.model, message.seconds)
                yield message

    def analyse(self, name: str, model: str, trace: Trace, *given) -> Any:
        """An analysis of a run by the model of this label, see `analyses.ANALYSES`."""
        order = Analysis(model, name, packed(trace), len(trace.seconds), given)
        with contextlib.closing(self.call(order)) as messages:
            for message in messages:
                if isinstance(message, Found):
                    return message.value
        raise Lost("the GPU gave no answer; ask again")


class Call:
    """The lanes of one order, each of which is asked for its next step by itself."""

    def __init__(self, far: Far, order: Lanes):
        self.far, self.order = far, order
        self.messages = far.call(order)
        self.policies = {k: n.policy for k, n in zip(order.keys, order.asked.lanes, strict=True)}
        self.arrived: dict[str, deque[Sent]] = defaultdict(deque)
        self.fault = ""
        self.closing = threading.Lock()

    def of(self, key: str) -> Iterator[Sent]:
        """What arrives of the run of this key, up to its end; Lost where it fails to."""
        while True:
            while not self.arrived[key]:
                self._receive()
            sent = self.arrived[key].popleft()
            yield sent
            if sent.ended:
                return

    def close(self) -> None:
        """Ends the call, in a thread: the other process may be in the middle of a step."""
        threading.Thread(target=self._close, name="end of a call", daemon=True).start()

    def _close(self) -> None:
        with self.closing:
            self.messages.close()

    def _receive(self) -> None:
        if self.fault:  # another lane's turn found it
            raise Lost(self.fault)
        try:
            message = next(self.messages, None)
        except Lost as error:
            self.fault = str(error)
            raise
        if message is None:
            self.fault = "the GPU gave back less than was asked for, so press Run again"
        elif isinstance(message, Sent):
            self.arrived[message.run].append(message)
            if not message.ended:
                self.far.pace.stepped(self.order, self.policies[message.run], message.seconds)


@dataclass
class FarBoard(Board):
    """A board whose lanes are made elsewhere. Those that were started since the last call are
    called for together when the first of them is to make a step."""

    far: Far = field(kw_only=True)
    calls: dict[str, Call] = field(default_factory=dict)  # key of a run -> its call
    due: dict[str, float] = field(default_factory=dict)  # key -> when its next step may be shown

    @property
    def asks(self) -> bool:
        """Whether its next step begins with a call."""
        return any(run.steps is not None and run.key not in self.calls for run in self.runs)

    def start(self, lane: Lane, model: d2cache.Model, branch: dict | None = None) -> Run:
        """As `Board.start`: what is wrong with a lane is found here, without a GPU."""
        run = super().start(lane, model, branch)
        run.steps, run.truth = self._arrivals(run), None
        return run

    def step(self, run: Run) -> list[dict]:
        sent: Any = next(run.steps, None) if run.steps else None
        if sent is None:
            return []
        if sent.ended:
            return self.finish(run, sent.error)
        self._keep_time(run, sent.seconds)
        return ENGINE(self._take, run, sent)

    def finish(self, run: Run, error: str = "") -> list[dict]:
        events = super().finish(run, error)
        call = self.calls.get(run.key)
        if call and not any(r.steps for r in self.runs if self.calls.get(r.key) is call):
            call.close()
        return events

    def forget(self) -> None:
        super().forget()
        if not self.running:  # else the thread that advances it ends its lanes
            for call in set(self.calls.values()):
                call.close()

    def _arrivals(self, run: Run) -> Iterator[Any]:
        """What arrives of a run, whose call begins when this is first asked for."""
        if run.key not in self.calls:
            waiting = [r for r in self.runs if r.steps is not None and r.key not in self.calls]
            lanes = tuple(r.lane for r in waiting if r.lane is not None)
            keys = tuple(r.key for r in waiting)
            call = Call(self.far, Lanes(replace(self.wanted, lanes=lanes), keys))
            self.calls |= dict.fromkeys(keys, call)
        yield from self.calls[run.key].of(run.key)

    def _take(self, run: Run, sent: Sent) -> list[dict]:
        """A step that was made elsewhere, as if it were made here."""
        if sent.step is not None:
            run.recorder.receive(sent.step, run.model.tokenizer if run.model else None)
        run.blank, run.written = sent.blank, sent.written
        run.looks += [sent.look] if sent.look else []
        place = self.place(run)
        return [event | place if event["k"] == "start" else event for event in sent.events]

    def _keep_time(self, run: Run, seconds: float) -> None:
        """Waits until the step may be shown: what piled up during a pause is not shown at once."""
        time.sleep(max(0.0, self.due.get(run.key, 0.0) - time.perf_counter()))
        self.due[run.key] = time.perf_counter() + seconds / FASTEST
