"""Live runs: each visitor's board of lanes, and the loop that advances it."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import d2cache
from analysis import probes
from analysis.page import stored
from analysis.page.events import (
    LiveEvents,
    decoder_of,
    ended,
    ending,
    link,
    paused,
    trace_events,
)
from analysis.page.memory import give_back
from analysis.page.models import ENGINE
from analysis.page.query import MOST_LANES, Asked, Lane, name_lanes
from d2cache.prompts import has_gap
from d2cache.trace import Recorder, agreement, answer_ids

LOG = logging.getLogger("d2cache.live")
MESSAGE_SECONDS = 1 / 30  # steps made within this time travel together
KEPT_BOARDS = 64  # visitors whose last runs are kept


class Lost(ValueError):
    """What is computed elsewhere came to nothing, for a reason that a visitor is told."""


@dataclass
class Run:
    """The run of one lane: the suspended loop, what it recorded, what the stage has received."""

    key: str  # what the stage calls it
    lane: Lane | None = None  # None for a loaded trace, whose model may not be here either
    name: str = ""
    model: d2cache.Model | None = None
    steps: Iterator[d2cache.Step] | None = None  # the engine's generator; None when it has ended
    recorder: Recorder = field(default_factory=Recorder)
    events: LiveEvents | None = None
    truth: probes.Truth | None = None
    looks: list[probes.Look] = field(default_factory=list)  # what truth saw, step by step
    branch: dict | None = None  # where a what-if leaves which lane
    trace: d2cache.Trace | None = None
    error: str = ""
    blank: int | None = None  # answer positions to write; None before the first step
    written: int = 0  # of these, so far

    def snapshot(self) -> d2cache.Trace | None:
        """The run so far, None before its first step."""
        return ENGINE(self._snapshot)  # no step is added meanwhile

    def _snapshot(self) -> d2cache.Trace | None:
        if self.trace is None and self.recorder.run:
            return self.recorder.trace()
        return self.trace

    @property
    def finished(self) -> d2cache.Trace:
        """The trace of a run that has ended; ValueError while it has not."""
        if self.trace is None:
            raise ValueError("this run has not ended yet")
        return self.trace

    def text(self, answer: np.ndarray) -> str:
        """An answer (G,) of token ids as text, by the model or, without it, as the trace has it."""
        if self.model is not None:
            return self.model.decode(answer).strip()
        ids = answer_ids(answer, self.finished.run["shape"])
        return "".join(self.finished.text_of(int(i)) for i in ids).strip()

    @property
    def outcome(self) -> str:
        """What a finished run made: its answer, or the whole of a text that had gaps."""
        trace = self.finished
        whole = "given" in trace.run
        return self.text(trace.text_ids if whole else trace.tokens[-1][trace.prompt_length :])


@dataclass
class Board:
    """A visitor's lanes: one prompt and seed, up to `MOST_LANES` ways to fill the canvas."""

    key: str
    asked: Asked | None = None  # None: loaded traces
    runs: list[Run] = field(default_factory=list)
    paused: bool = False
    stopped: bool = False
    forgotten: bool = False  # another board has taken its place
    driver: threading.Lock = field(default_factory=threading.Lock)  # one thread advances it

    @property
    def wanted(self) -> Asked:
        """What was asked for; ValueError where traces were loaded."""
        if self.asked is None:
            raise ValueError("these runs were loaded, not made here: press Run to make some")
        return self.asked

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that were made here."""
        return tuple(run.lane for run in self.runs if run.lane is not None)

    @property
    def running(self) -> bool:
        """Whether any lane has steps left, paused or not."""
        return any(run.steps is not None for run in self.runs)

    def forget(self) -> None:
        """Stop it and free what it holds; lanes that just make a step end after it."""
        self.stopped = self.forgotten = True
        if self.driver.acquire(blocking=False):
            for run in self.runs:
                run.steps = None
            self.driver.release()

    def start(self, lane: Lane, model: d2cache.Model, branch: dict | None = None) -> Run:
        """Another lane, ready for its first step; ValueError says what is wrong with it."""
        asked = self.wanted
        if len(self.runs) >= MOST_LANES:
            raise ValueError(
                f"There are {MOST_LANES} lanes and no more fit: press Run to start again."
            )
        for made in self.runs:  # stored ones have waited for it
            made.model = made.model or model
        policy = lane.make_policy()
        steps = asked.generate(lane, model, policy)
        run = Run(secrets.token_hex(8), lane, lane.policy, model, steps, branch=branch)
        if asked.truth:
            run.truth = probes.Truth(model, policy)
        self.runs.append(run)
        for made, name in zip(self.runs, name_lanes(self.lanes), strict=True):
            made.name = name
        return run

    def step(self, run: Run) -> list[dict]:
        """The events of the lane's next step; [] when it was the last."""
        return ENGINE(self._step, run)

    def _step(self, run: Run) -> list[dict]:
        step = next(run.steps, None) if run.steps else None
        if step is None:
            return []
        run.recorder.add(step)
        events = []
        if run.events is None:
            run.events = LiveEvents(run.key, step, truth=run.truth is not None, **self.place(run))
            events.append(run.events.start())
            run.blank = run.events.blank
        events += run.events.step(step)
        run.written = run.events.written
        if run.truth is not None:
            run.looks.append(run.truth.look(step))
            events.append(run.events.truth(run.looks[-1]))
        return events

    def share(self) -> float:
        """How much of what runs here has been made, 0 to 1: of masks that are written."""
        running = [run for run in self.runs if run.steps is not None]
        blank = sum(self.wanted.gen_length if r.blank is None else r.blank for r in running)
        return sum(run.written for run in running) / blank if running else 1.0

    def opening(self) -> list[dict]:
        """What the stage is told before lanes run: the link, and what those that have run before
        are called now, since another lane may change it."""
        events = [link(self.key, self.query())]
        called = {run.key: run.name for run in self.runs if run.blank is not None or run.trace}
        return [*events, {"k": "names", "names": called}] if called else events

    def place(self, run: Run) -> dict:
        """Where a run is on the board, as its start event says."""
        return {
            "board": self.key,
            "lane": self.runs.index(run),
            "name": run.name,
            "branch": run.branch,
        }

    def finish(self, run: Run, error: str = "") -> list[dict]:
        """The end of a lane: by itself, by a stop or by a fault; what was made is kept."""
        events = []
        run.error, run.trace = error, run.snapshot()
        if run.trace and run.blank is not None:
            how = ("failed", error) if error else ending(run.trace)
            events.append(ended(run.key, *how))
        run.steps = run.events = run.truth = None  # frees the cache
        run.recorder = Recorder()
        return events

    def query(self, **view) -> str:
        """The link that makes this board again; "" for loaded traces."""
        if self.asked is None:
            return ""
        return replace(self.asked, lanes=self.lanes).query(**view)

    def events(self) -> list[dict]:
        """Every event of all its lanes so far, for an export."""
        events = []
        for run in self.runs:
            trace = run.snapshot()
            if trace is not None:
                decode = decoder_of(run.model.tokenizer) if run.model else None
                events += trace_events(trace, run.key, True, run.looks, decode, **self.place(run))
        return events


class Boards:
    """The last board of each visitor, by session; a closed tab takes its own with it."""

    def __init__(self) -> None:
        # reentrant: an abandoned stream may be closed by the garbage collector at any moment
        self.lock = threading.RLock()
        self.boards: OrderedDict[str, Board] = OrderedDict()
        self.stored: list[Board] = []  # of the runs that come with the page, for everybody

    def put(self, session: str, board: Board) -> Board:
        with self.lock:
            self.drop(session)
            self.boards[session] = board
            idle = [s for s, b in self.boards.items() if not b.running or b.paused]
            for old in idle[: max(0, len(self.boards) - KEPT_BOARDS)]:
                self.drop(old)
        return board

    def of(self, session: str) -> Board | None:
        with self.lock:
            return self.boards.get(session)

    def holding(self, key: str) -> tuple[Board, Run]:
        """The board with the run of this key; ValueError when it is not kept."""
        with self.lock:
            known = [*self.stored, *self.boards.values()]
        for board in known:
            for run in board.runs:
                if run.key == key:
                    return board, run
        raise ValueError("this run is no longer kept here; run it again")

    def drop(self, session: str) -> None:
        with self.lock:
            board = self.boards.pop(session, None)
        if board:
            board.forget()


def loaded_board(trace: d2cache.Trace, key: str) -> Board:
    """A board of one finished trace, called by its policy."""
    return Board(key, runs=[Run(key, name=trace.run["policy"], trace=trace)])


def stored_board(asked: Asked, key: str) -> Board | None:
    """The board that a request makes, if all its lanes are stored; None if one is not.

    It is like a live one, except that its lanes have no model before another lane is started.
    """
    found = stored.lanes(asked)
    if found is None:
        return None
    runs = [
        Run(f"{name}-{key}", lane, label, trace=trace, looks=looks)
        for lane, label, (name, trace, looks) in zip(
            asked.lanes, name_lanes(asked.lanes), found, strict=True
        )
    ]
    return Board(key, asked, runs)


def advance(board: Board, most: int | None = None) -> Iterator[list[dict]]:
    """The events of a board's lanes, in portions for one message each, until all lanes end, the
    board is paused, or each running lane has made `most` steps.

    Lanes take turns of one step, or one runs after the other, as the board's visitor chose.
    """
    with board.driver:
        board.paused = False
        waiting: list[dict] = []
        sent, turn = 0.0, 0
        while board.running and not board.stopped:
            if board.paused or turn == most:
                board.paused = True
                break
            left = [run for run in board.runs if run.steps is not None]
            for run in left if board.wanted.turns or most else left[:1]:
                waiting += guarded(board, run)
                if time.perf_counter() - sent >= MESSAGE_SECONDS and not board.forgotten:
                    yield waiting
                    sent, waiting = time.perf_counter(), []
            turn += 1
        for run in board.runs:
            if run.steps is None:
                continue
            if board.stopped:
                waiting += board.finish(run)
            elif run.blank is not None:
                waiting.append(paused(run.key))
        give_back()
        if waiting and not board.forgotten:  # else its place on the stage is taken
            yield waiting


def guarded(board: Board, run: Run) -> list[dict]:
    """The lane's next events, its end included; a fault ends this lane alone."""
    try:
        return board.step(run) or board.finish(run)
    except Exception as error:
        LOG.error("run %s failed: %s", run.key, error, exc_info=not isinstance(error, Lost))
        return board.finish(run, (str(error).strip() or type(error).__name__).splitlines()[0])


def describe_edit(edit: d2cache.Edit, model: d2cache.Model, asked: Asked) -> str:
    """An edit in plain words: tokens as text, positions counted from 1 in prompt or answer."""
    tokenizer: Any = model.tokenizer
    gaps = has_gap(asked.prompt)
    prompt_length = 0 if gaps else len(model.encode(asked.prompt))

    def place(at: int) -> str:
        if gaps:
            return f"position {at + 1}"
        if at < prompt_length:
            return f"prompt position {at + 1}"
        return f"answer position {at - prompt_length + 1}"

    parts = []
    for at, token in edit.tokens.items():
        masked = token == model.config.mask_id
        text = "masked again" if masked else repr(tokenizer.decode([token]))
        parts.append(f"{place(at)} {text}" if masked else f"{text} at {place(at)}")
    if edit.refresh == "all":
        parts.append("all refreshed")
    elif len(edit.refresh) == 1:
        parts.append(f"{place(int(edit.refresh[0]))} refreshed")
    elif edit.refresh:
        parts.append(f"{len(edit.refresh)} refreshed")
    changed = {**edit.policy, **edit.decoder}
    parts += [f"{knob} {value}" for knob, value in changed.items()]
    return ", ".join(parts) or "unchanged"


def summary(run: Run, first: Run) -> dict:
    """What a finished lane wrote and cost (see `d2cache.trace.Totals`), and its agreement with the
    first lane (see `d2cache.trace.agreement`)."""
    trace = run.finished
    return {
        "text": run.outcome,
        "lane": str(run.lane),
        "model": trace.run["model"],
        "device": trace.run["device"],
        **trace.totals,
        "agreement": agreement(trace, first.finished),
    }
