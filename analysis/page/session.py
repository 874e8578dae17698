"""A visitor's session: what the page does when something is clicked, opened or sent.

Plain data in, plain changes out, so that a session can live in another process than the page. What
comes in: text, numbers, and the controls as a dict (see `analysis.page.controls`). What goes out:
dicts of changes by name,

    board      a message for the stage (see `analysis.page.events`)
    said       (a sentence, its kind: info, right, wrong or error)
    download   path of the trace to download, None while there is none
    awaited    label of the model that Run was pressed for before it was ready, "" for none
    changed    (a sentence, names of controls): what to know before Run is pressed; "" for nothing
    preset     key of the guided comparison on the stage, None for none
    story      the text of that comparison

and controls by their names, to be set.
"""

from __future__ import annotations

import functools
import random
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import d2cache
from analysis.page import stored
from analysis.page.boards import Board, advance, describe_edit, loaded_board
from analysis.page.changed import changed, in_words
from analysis.page.controls import asked_of, values_of
from analysis.page.events import judged, link, message, refused, renamed, sharing, waiting
from analysis.page.familiar import remark
from analysis.page.host import Host
from analysis.page.line import Place, sharing_words
from analysis.page.models import Loading
from analysis.page.problems import first_problem, known
from analysis.page.query import Asked, Link, too_long
from analysis.page.remote import FarBoard
from analysis.page.verdict import results, verdict
from analysis.page.zero import ASKING, CLOCK
from d2cache.teaching import tasks
from d2cache.trace_format import LARGEST

USUAL_BLOCK = 16  # masks; proposed with a policy that is made for blocks
KEPT_SESSIONS = 2000
KEPT_PROBLEMS = 1000  # of one visitor, whose answers can be judged

Controls = dict[str, Any]
Changes = dict[str, Any]


def explained(method: Callable[..., Iterator[Changes]]) -> Callable[..., Iterator[Changes]]:
    """A session's method whose ValueErrors are told to the visitor, in one sentence."""

    @functools.wraps(method)
    def call(*args) -> Iterator[Changes]:
        try:
            yield from method(*args)
        except Loading as error:
            yield {"said": (str(error), "info"), "awaited": error.label}
        except ValueError as error:
            yield {"said": (sentence(error), "error")}

    return call


def sentence(error: Exception) -> str:
    """An error's text as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


class Session:
    """What one visitor does. Each method yields changes; only `pause` and `expect` have none."""

    def __init__(self, host: Host, key: str):
        self.host, self.key = host, key
        self.newest = 0  # number of the last request from the stage
        self.place: Place | None = None  # in the line, of the last run that was wanted
        self.problems = OrderedDict({p.prompt: p for p in [first_problem()]})
        self.stored: Asked | None = None  # what would make the stored run on the stage
        self.told_clock = False  # whether it was said what pause does to a run made elsewhere
        self.proposed = False  # whether the block length is one that the page has set

    @property
    def board(self) -> Board | None:
        return self.host.boards.of(self.key)

    # -------------------------------------------------------------------------- problems

    @explained
    def draw(self, family: str) -> Iterator[Changes]:
        """A held-out problem of a family: its prompt, and an answer length that fits."""
        if family not in list(tasks.FAMILIES):
            raise ValueError(f"there is no example {family!r:.80}: choose one under Example")
        problem = tasks.draw(family, random.Random(secrets.randbits(64)), held_out=True)
        self.problems[problem.prompt] = problem
        while len(self.problems) > KEPT_PROBLEMS:
            self.problems.popitem(last=False)
        yield {"prompt": problem.prompt, "gen_length": tasks.ANSWER_LENGTH[family]}

    # -------------------------------------------------------------------------- runs

    @explained
    def run(self, controls: Controls) -> Iterator[Changes]:
        """A new board with the lane that the controls ask for."""
        yield from self._begin(asked_of(controls))

    @explained
    def compare(self, controls: Controls) -> Iterator[Changes]:
        """A new board with a lane for each policy to be compared."""
        yield from self._begin(asked_of(controls, compared=True))

    @explained
    def add_lane(self, controls: Controls) -> Iterator[Changes]:
        """Another lane on the board."""
        board, asked = self.board, asked_of(controls)
        if board is None and asked == replace(self.host.opening().wanted, lanes=asked.lanes):
            board, change = self._own_opening()
            yield change
        if board is None or board.asked is None:
            yield from self._begin(asked)
            return
        if replace(asked, lanes=board.asked.lanes, turns=board.asked.turns) != board.asked:
            raise ValueError(
                "Lanes share the prompt and the settings under Canvas, and these have changed: "
                "press Run to start again."
            )
        self._may_start(asked, len(board.runs) + 1, new=1)
        board.start(asked.lanes[0], self.host.models.get(asked.model))
        yield from self._show(board)

    @explained
    def step(self, controls: Controls) -> Iterator[Changes]:
        """The next step of a paused run, or the first one of a new run if settings have changed."""
        board, asked = self.board, asked_of(controls)
        waiting = board.asked if board and board.running else None
        if board and waiting and asked == replace(waiting, lanes=waiting.lanes[:1]):
            yield from self._show(board, most=1)
        else:
            yield from self._begin(asked, most=1)

    def resume(self) -> Iterator[Changes]:
        board = self.board
        if board and board.running:
            yield from self._show(board)

    def pause(self) -> None:
        """Takes effect after the step being made; the run's own changes then say so."""
        if board := self.board:
            board.paused = True
        self.host.line.give_up(self.key)

    def stop(self) -> Iterator[Changes]:
        board = self.board
        if board is None:
            yield {"said": ("Nothing is running.", "info")}
        elif board.running:
            board.stopped = True
            self.host.line.give_up(self.key)
            if not board.driver.locked():  # else the run's own changes say so after its step
                messages = [message(events) for events in advance(board)]
                yield self._rest(board) | ({"board": messages[-1]} if messages else {})

    def _begin(self, asked: Asked, most: int | None = None) -> Iterator[Changes]:
        """A new board. Loading says that its model is not ready, ValueError what is wrong."""
        if asked.model == self.host.models.first:
            for text in self.host.models.watch(asked.model):
                yield {"said": (text, "info")}
        self._may_start(asked, len(asked.lanes), new=len(asked.lanes))
        board = self.host.boards.put(self.key, self.host.open_board(asked))
        yield from self._show(board, most, also={"download": None, "awaited": ""})

    def _may_start(self, asked: Asked, lanes: int, new: int) -> None:
        """ValueError where a board of so many lanes, so many of them new, is more than a visitor
        may have."""
        self.host.bounds.check(asked, lanes)
        if not self.host.pace.add(self.key, new):
            raise ValueError(
                f"This page starts {self.host.pace.most} lanes a minute for one visitor, and you "
                "have had them: wait a minute, then press Run."
            )

    def _show(
        self, board: Board, most: int | None = None, text: str = "", also: Changes | None = None
    ) -> Iterator[Changes]:
        """The board's next steps, at most `most` for each lane, from where it is."""
        text = text or ("Running." if most is None else "Stepping.")
        hint = self._hint(board.wanted.model, board.wanted.prompt) + self._far_hint(board)
        asks = isinstance(board, FarBoard) and board.asks
        line = self.host.line_of(board)
        try:
            place = self.place = line.join(self.key, board.share)
        except ValueError:
            board.paused = True  # it is kept no longer than one that nobody runs
            raise
        told, shown = board.opening(), {"changed": ("",)} | (also or {})
        try:
            for words in line.wait(place):
                yield {"board": message([*told, waiting(words)]), "said": (words, "info")} | shown
                told, shown = [waiting("")], {}  # what is said when the turn comes
            if place.since is not None:
                first = ASKING if asks else text
                yield {"board": message(told), "said": (first + hint, "info")} | shown
                shares = None if asks else ""
                for events in line.in_turns(place, advance(board, most)):
                    change, before, shares = {}, shares, sharing_words(line.others(place))
                    if shares != before:
                        events.append(sharing(shares))
                        change["said"] = (f"{text} {shares}".strip() + hint, "info")
                    yield {"board": message(events)} | change
            elif self.board is board:
                yield {"board": message(told)}
        except GeneratorExit:  # the tab was closed, or the request cancelled
            if self.board is board:
                self.host.boards.drop(self.key)
            raise
        finally:
            line.leave(place)
        if self.board is board and self.place is place:  # else another of the visitor's runs tells
            yield self._rest(board)

    def _rest(self, board: Board) -> Changes:
        """What the page shows of a board that is not advancing."""
        if board.running:
            return {"said": ("Paused. Play goes on; the arrow makes one step.", "info")}
        done: Changes = {"said": verdict(board, self._problem(board))}
        if judgement := self._judgement(board):
            done["board"] = message(judgement)
        return done | ({"download": self.host.save(board.runs[0])} if board.runs[0].trace else {})

    def _problem(self, board: Board) -> tasks.Problem | None:
        """The problem that a board is about, where its answer is known here."""
        prompt = board.wanted.prompt
        return self.problems.get(prompt) or known().get(prompt)

    def _judgement(self, board: Board) -> list[dict]:
        """The event with what several finished lanes came to; [] for one, and for loaded traces."""
        finished = [run for run in board.runs if run.trace]
        if board.asked is None or len(finished) < 2:
            return []
        return [judged(results(finished, self._problem(board)))]

    def _hint(self, model: str, prompt: str) -> str:
        """What to know of a prompt, after a space; or ""."""
        bundled = isinstance(model, str) and self.host.models.offered.get(model) == stored.MODEL
        told = remark(prompt, bundled)
        return f" {told}" if told else ""

    def _far_hint(self, board: Board) -> str:
        """What to know of a run that is made on a borrowed GPU, once, after a space; or ""."""
        if self.told_clock or not isinstance(board, FarBoard):
            return ""
        self.told_clock = True
        return f" {CLOCK}"

    def look_over(self, controls: Controls) -> Iterator[Changes]:
        """What to know before Run is pressed: what has changed since the run on the stage, and
        whether the model knows such prompts."""
        board = self.board
        asked = board.asked or self.stored if board else None
        names = changed(asked, controls) if asked else []
        prompt = controls["prompt"] if isinstance(controls["prompt"], str) else ""
        fault = (
            "" if not prompt.strip() else too_long(prompt) or self._hint(controls["model"], prompt)
        )
        yield {"changed": (f"{in_words(names)} {fault}".strip(), *names)}

    # -------------------------------------------------------------------------- loaded runs

    @explained
    def upload(self, path: str) -> Iterator[Changes]:
        """The trace in a file, on the stage."""
        try:
            trace = d2cache.Trace.load(path, LARGEST)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}. Load a file that this page saved.") from error
        run, steps = trace.run, len(trace.seconds)
        text = f"Loaded a run of {run['model']}, {run['policy']}, {steps} steps."
        yield self._put(loaded_board(trace, secrets.token_hex(8)), text)

    @explained
    def open_stored(self, name: str | None) -> Iterator[Changes]:
        """A stored run on the stage, and the controls that would make it again."""
        if name:
            yield from self.fill(f"trace={name}", {})
            yield self._stored(name)

    def _stored(self, name: str) -> Changes:
        board, words = self.host.stored_board(name), stored.listed()[name]["words"]
        return self._put(board, f"A stored run. {words}", f"trace={name}", self._asked(name))

    def _own_opening(self) -> tuple[Board, Changes]:
        """The board that the page opens with, as the visitor's own, which can get other lanes; and
        the event that tells the stage what its runs are called from now on."""
        first = self.host.opening()
        own = self.host.stored_lanes(first.wanted)
        if own is None:
            raise ValueError("the runs that the page opens with are gone; press Run")
        called = {old.key: new.key for old, new in zip(first.runs, own.runs, strict=True)}
        self.host.boards.put(self.key, own)
        return own, {"board": message([renamed(first.key, own.key, called)])}

    def _asked(self, name: str) -> Asked:
        """What would make a stored run again."""
        run = self.host.stored_board(name).runs[0].finished.run
        return Asked.of(run, stored.listed()[name]["prompt"], self.host.models.first)

    def _put(self, board: Board, text: str, query: str = "", asked: Asked | None = None) -> Changes:
        """A board of finished runs onto the stage; asked: what would make it again."""
        self.host.boards.put(self.key, board)
        self.stored = asked
        events = [link(board.key, query), *board.events(), *self._judgement(board)]
        shown = {"board": message(events), "said": (text, "info"), "changed": ("",)}
        return shown | {"download": self.host.save(board.runs[0])}

    # -------------------------------------------------------------------------- links

    def expect(self, number: int) -> None:
        """The stage has sent its request of this number, which ends what earlier ones began."""
        if number > self.newest:  # two requests may overtake each other
            self.newest = number
            self.pause()

    def fill(self, query: str, controls: Controls, number: int | None = None) -> Iterator[Changes]:
        """The controls as a link sets them; those of a stored run would make it again."""
        if self._outdated(number):
            return
        try:
            opened, preset = Link.parse(query), None
            if opened.trace is not None:
                asked = self._asked(opened.trace)
            elif opened.settings and opened.branch is None:
                asked = opened.over(asked_of(controls))
                # the story under the presets is about what is on the stage
                keys = (key for key, one in self.host.presets.items() if one["query"] == query)
                preset = next(keys, None)
            else:
                return
            if self.host.stored_lanes(asked) is None:  # else no model is needed yet
                self.host.models.start(asked.model)
        except ValueError:  # `follow` tells the visitor
            return
        yield self._values(asked) | {"preset": preset}

    def _values(self, asked: Asked) -> Changes:
        """The controls that would make a run; the choice of models stays where its own is not
        offered, as may be with stored runs."""
        values = values_of(asked)
        if asked.model not in self.host.models.offered:
            values.pop("model")
        return values

    @explained
    def follow(
        self, query: str, controls: Controls, number: int | None = None
    ) -> Iterator[Changes]:
        """What a link asks for: a run, a stored run, or a what-if.

        Lanes that are stored are shown at once; no model, and nobody's turn, is waited for.
        """
        if self._outdated(number):
            return
        try:
            yield from self._follow(query, controls)
        except Loading:
            raise
        except ValueError as error:  # told where it was asked for, too
            said = sentence(error)
            yield {"said": (said, "error"), "board": message([refused(said)])}

    def _follow(self, query: str, controls: Controls) -> Iterator[Changes]:
        opened = Link.parse(query)
        if opened.trace is not None:
            yield self._stored(opened.trace)
        elif opened.branch is not None:
            yield from self._what_if(*opened.branch)
        elif opened.settings:  # else it only says what to look at, or nothing
            asked = opened.over(asked_of(controls))
            board = self.host.stored_lanes(asked)
            if board is None:
                yield from self._begin(asked)
            else:
                text = "A stored run." if len(board.runs) == 1 else "Stored runs."
                shown = self._put(board, f"{text} Press Run for a live one.", board.query())
                yield shown | {"awaited": ""}

    def _what_if(self, key: str, edit: d2cache.Edit) -> Iterator[Changes]:
        """A lane that leaves another one at a step, with something changed."""
        board, parent = self.host.boards.holding(key)
        if parent.lane is None or (self.board or self.host.opening()) is not board:
            raise ValueError("this run was loaded, not made here: press Run, then ask what if")
        model = self.host.models.get(board.wanted.model)
        at = board.runs.index(parent)
        lane = replace(parent.lane, edits=(*parent.lane.edits, edit))
        text = describe_edit(edit, model, board.wanted)
        if self.board is None:
            board, change = self._own_opening()
            yield change
        self._may_start(board.wanted, len(board.runs) + 1, new=1)
        board.start(lane, model, {"lane": at, "step": edit.step, "says": text})
        text = f"Lane {len(board.runs)} continues from step {edit.step + 1}: see Compare."
        yield from self._show(board, text=text)

    def _outdated(self, number: int | None) -> bool:
        """Whether the visitor has gone on to something else since the stage sent a request."""
        return number is not None and number < self.newest

    # -------------------------------------------------------------------------- choices

    @explained
    def choose_policy(self, policy: str, block_length: int) -> Iterator[Changes]:
        """A cache that is made for blocks gets blocks; another one loses them again, unless the
        visitor has changed their length."""
        for_blocks = d2cache.make_policy(policy).for_blocks
        text = ""
        if for_blocks and not block_length:
            text = f"{policy} is made for blocks: the block length is now {USUAL_BLOCK}"
        elif not for_blocks and self.proposed and block_length == USUAL_BLOCK:
            text = f"{policy} needs no blocks: the block length is 0 again"
        if text:
            self.proposed = for_blocks
            length = USUAL_BLOCK if for_blocks else 0
            yield {"block_length": length, "said": (f"{text} (under Canvas).", "info")}

    @explained
    def choose_model(self, model: str) -> Iterator[Changes]:
        """Starts to load a model, and reports on it."""
        self.host.models.start(model)
        yield from self.await_model(model)

    def await_model(self, model: str) -> Iterator[Changes]:
        """What the loading of a model is doing, and how it ended."""
        models = self.host.models
        if not isinstance(model, str) or model not in models.offered:
            return  # Run was not pressed in vain
        for text in models.watch(model):
            yield {"said": (text, "info")}
        if model in models.loaded:
            yield {"said": (f"{models.state[model]} Press Run.", "info")}
        else:
            yield {"said": (f"{models.state[model]}. Choose another model.", "error")}

    def choose_preset(self, key: str | None) -> Iterator[Changes]:
        """The story of a guided comparison."""
        found = self.host.presets.get(key) if isinstance(key, str) else None
        yield {"story": found["story"] if found else ""}


class Sessions:
    """The sessions of a page's visitors, by the key that the server gives each."""

    def __init__(self, host: Host):
        self.host, self.lock = host, threading.Lock()
        self.sessions: OrderedDict[str, Session] = OrderedDict()

    def of(self, key: str) -> Session:
        """A visitor's session, made on first use; `leave` ends it."""
        with self.lock:
            if key not in self.sessions:
                self.sessions[key] = Session(self.host, key)
            self.sessions.move_to_end(key)
            while len(self.sessions) > KEPT_SESSIONS:  # of programs that never leave
                self.sessions.popitem(last=False)
            return self.sessions[key]

    def leave(self, key: str) -> None:
        """A visitor has closed the page: stop and forget what was made for them."""
        with self.lock:
            self.sessions.pop(key, None)
        self.host.line.give_up(key, for_good=True)
        self.host.boards.drop(key)
