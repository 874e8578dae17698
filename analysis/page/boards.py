"""Live runs: the models that a host offers, and each visitor's board of lanes. No page in here."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import d2cache
from analysis import probes
from analysis.page.events import LiveEvents, ending, trace_events
from analysis.page.models import ENGINE
from analysis.page.query import MOST_LANES, Asked, Lane, name_lanes
from d2cache.trace import Recorder

LOG = logging.getLogger("d2cache.live")
MESSAGE_SECONDS = 1 / 30  # steps made within this time travel together
KEPT_BOARDS = 64  # visitors whose last runs are kept


@dataclass
class Run:
    """One lane: the suspended loop, what it recorded, and what the stage was told of it."""

    key: str  # what the stage calls it
    lane: Lane | None = None  # none of a loaded trace
    name: str = ""
    model: d2cache.Model | None = None  # likewise
    steps: Iterator[d2cache.Step] | None = None  # the engine's generator; None when it has ended
    recorder: Recorder | None = None
    events: LiveEvents | None = None
    truth: probes.Truth | None = None
    looks: list = field(default_factory=list)  # what truth saw, step by step
    branch: dict | None = None  # where a what-if leaves which lane
    trace: d2cache.Trace | None = None
    error: str = ""

    def snapshot(self) -> d2cache.Trace | None:
        """What there is of the run, also while it is being made."""
        with ENGINE:  # no step is added meanwhile
            if self.trace is None and self.recorder and self.recorder.run:
                return self.recorder.trace()
            return self.trace


@dataclass
class Board:
    """A visitor's lanes: one prompt and seed, up to `MOST_LANES` ways to fill the canvas."""

    key: str
    asked: Asked | None = None  # None: loaded traces
    runs: list[Run] = field(default_factory=list)
    paused: bool = False
    stopped: bool = False
    driver: threading.Lock = field(default_factory=threading.Lock)  # one hand on the loops

    @property
    def running(self) -> bool:
        """Whether any lane has steps left, paused or not."""
        return any(run.steps is not None for run in self.runs)

    def forget(self) -> None:
        """Stop it and free what it holds; lanes that just make a step end after it."""
        self.stopped = True
        if self.driver.acquire(blocking=False):
            for run in self.runs:
                run.steps = None
            self.driver.release()

    def start(self, lane: Lane, model: d2cache.Model, branch: dict | None = None) -> Run:
        """A further lane, ready for its first step; ValueError says what is wrong with it."""
        asked = self.asked
        if len(self.runs) >= MOST_LANES:
            raise ValueError(f"There are {MOST_LANES} lanes, no more fit: press Run to start anew.")
        policy = lane.make_policy()
        steps = d2cache.generate(
            model,
            model.encode(asked.prompt),
            policy,
            lane.make_decoder(),
            gen_length=asked.gen_length,
            block_length=asked.block_length or None,
            seed=asked.seed,
            stop_at_eos=not asked.full,
            edits=lane.edits,
        )
        run = Run(secrets.token_hex(8), lane, lane.policy, model, steps, Recorder(), branch=branch)
        if asked.truth:
            run.truth = probes.Truth(model, policy)
        self.runs.append(run)
        for one, name in zip(self.runs, name_lanes(tuple(r.lane for r in self.runs)), strict=True):
            one.name = name
        return run

    def step(self, run: Run) -> list[dict]:
        """The events of the lane's next step; [] when it was the last."""
        with ENGINE:
            step = next(run.steps, None)
            if step is None:
                return []
            run.recorder.add(step)
            events = []
            if run.events is None:
                run.events = LiveEvents(
                    run.key,
                    step,
                    board=self.key,
                    lane=self.runs.index(run),
                    name=run.name,
                    branch=run.branch,
                    truth=run.truth is not None,
                )
                events.append(run.events.start())
            events += run.events.step(step)
            if run.truth is not None:
                run.looks.append(run.truth.look(step))
                events.append(run.events.truth(run.looks[-1]))
        return events

    def finish(self, run: Run, error: str = "") -> list[dict]:
        """The end of a lane, of itself, by a stop or by a fault; what was made is kept."""
        events = []
        run.error = error
        if run.recorder.run:
            run.trace = run.snapshot()
            events.append(run.events.end(*(("failed", error) if error else ending(run.trace))))
        run.steps = run.recorder = run.events = run.truth = None  # frees the cache
        return events

    def query(self, **view) -> str:
        """The link that makes this board again; "" for loaded traces."""
        if self.asked is None:
            return ""
        return replace(self.asked, lanes=tuple(run.lane for run in self.runs)).query(**view)

    def events(self) -> list[dict]:
        """Every event of all its lanes as far as they have come, for an export."""
        told = []
        for number, run in enumerate(self.runs):
            trace = run.snapshot()
            if trace is not None:
                told += trace_events(
                    trace,
                    run.key,
                    stored=True,
                    board=self.key,
                    lane=number,
                    name=run.name,
                    branch=run.branch,
                    looks=run.looks,
                )
        return told


class Boards:
    """The last board of each visitor, by session; a closed tab takes its own with it."""

    def __init__(self):
        # reentrant: an abandoned stream may be closed by the garbage collector at any moment
        self.lock, self.boards = threading.RLock(), OrderedDict()
        self.stored: list[Board] = []  # bundled ones, everybody's

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


def advance(board: Board, most: int | None = None) -> Iterator[list[dict]]:
    """The events of a board's lanes, in portions for one message each, until all lanes end, the
    board is paused, or each lane that runs made `most` steps.

    Lanes take turns, a step each, or one runs after the other, as the board was asked.
    """
    with board.driver:
        board.paused = False
        waiting, sent = [], 0.0
        turn = 0
        while board.running and not board.stopped:
            if board.paused or turn == most:
                board.paused = True
                break
            left = [run for run in board.runs if run.steps is not None]
            for run in left if board.asked.turns or most else left[:1]:
                waiting += _guarded(board, run)
                if time.perf_counter() - sent >= MESSAGE_SECONDS:
                    yield waiting
                    sent, waiting = time.perf_counter(), []
            turn += 1
        for run in board.runs:
            if run.steps is None:
                continue
            if board.stopped:
                waiting += board.finish(run)
            elif run.events:
                waiting.append(run.events.pause())
        if waiting:
            yield waiting


def _guarded(board: Board, run: Run) -> list[dict]:
    """The lane's next events, its end included; a fault ends this lane alone."""
    steps = run.steps
    try:
        return (steps and board.step(run)) or board.finish(run)
    except Exception as error:
        LOG.exception("run %s failed", run.key)
        return board.finish(run, (str(error).strip() or type(error).__name__).splitlines()[0])


def edit_said(edit: d2cache.Edit, model: d2cache.Model, asked: Asked) -> str:
    """An edit in a reader's words: tokens as text, positions counted from 1 in prompt or answer."""
    prompt_length = len(model.encode(asked.prompt))

    def place(at: int) -> str:
        if at < prompt_length:
            return f"prompt position {at + 1}"
        return f"answer position {at - prompt_length + 1}"

    said = []
    for at, token in edit.tokens.items():
        masked = token == model.config.mask_id
        text = "masked again" if masked else repr(model.tokenizer.decode([token]))
        said.append(f"{place(at)} {text}" if masked else f"{text} at {place(at)}")
    if edit.refresh == "all":
        said.append("all refreshed")
    elif edit.refresh:
        count = len(edit.refresh)
        said.append(f"{place(edit.refresh[0])} refreshed" if count == 1 else f"{count} refreshed")
    said += [f"{knob} {value}" for knob, value in (edit.policy | edit.decoder).items()]
    return ", ".join(said) or "unchanged"


def summary(run: Run, first: Run) -> dict:
    """What a finished lane gave and cost (see `d2cache.trace.Totals`), and agreement: the share of
    answer positions that hold the same token as those of the first lane."""
    trace = run.trace
    answer, other = (t.tokens[-1, t.prompt_length :] for t in (trace, first.trace))
    return {
        "text": run.model.decode(answer).strip(),
        "lane": str(run.lane),
        "model": trace.run["model"],
        "device": trace.run["device"],
        **trace.totals,
        "agreement": float((answer == other).mean()),
    }
