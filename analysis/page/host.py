"""What all visitors of a page share: the models, the boards, the stored runs and the files."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from analysis.page import familiar, lessons, stored, zero
from analysis.page.boards import (
    Board,
    Boards,
    Run,
    advance,
    loaded_board,
    stored_board,
    summary,
)
from analysis.page.bounds import AtOnce, Bounds, Rate
from analysis.page.line import Line
from analysis.page.models import Models, offered_models
from analysis.page.query import Asked, Link
from analysis.page.questions import Questions
from analysis.page.remote import Far, FarBoard
from analysis.page.zero import Borrow

KEPT_FILES = 200  # with traces to be downloaded; a download takes a copy of its own
MANY_PROGRAMS = "as many programs as this page allows are waiting for a run; ask again in a minute"


class Host:
    """One page on one machine. offered: label of a model -> what `d2cache.load` takes. borrow:
    where the GPU is another process's, see `analysis.page.zero`."""

    def __init__(
        self,
        offered: dict[str, str],
        bounds: Bounds | None = None,
        borrow: Borrow | None = None,
    ):
        self.bounds = bounds or Bounds.read(os.environ)
        self.far = None if borrow is None else Far(offered, borrow)
        self.models, self.boards = Models(offered, borrow is not None), Boards()
        self.line = Line(most=self.bounds.waiting, together=self.bounds.together)
        self.questions = Questions(self.boards, self.models, self.far, self.bounds.questions)
        self.programs = AtOnce(self.bounds.programs, MANY_PROGRAMS)
        self.pace = Rate(self.bounds.runs)
        self.presets = {one["key"]: one for one in lessons.presets()}
        self.files = tempfile.TemporaryDirectory(prefix="d2cache-traces-")  # gone with the process
        self.saving = threading.Lock()  # of these files: visitors' runs end at the same time

    @staticmethod
    def configured(environment: Mapping[str, str]) -> Host:
        """The host that environment variables describe; ValueError names one that is wrong."""
        borrow = zero.borrow(environment)  # before all that could touch CUDA
        try:
            offered = offered_models(environment.get("D2CACHE_MODELS"))
        except ValueError as error:
            raise ValueError(f"D2CACHE_MODELS: {error}") from error
        return Host(offered, Bounds.read(environment), borrow)

    def start(self) -> None:
        """Loads the first model, and makes what prompts are measured by, while the page is up."""
        self.models.start(self.models.first)
        threading.Thread(target=familiar.sequences, name="prompts", daemon=True).start()

    def texts(self) -> dict:
        """What the stage shows apart from runs: lessons, glossary and guided comparisons."""
        presets = list(self.presets.values())
        return {"lessons": lessons.lessons(), "glossary": lessons.glossary(), "presets": presets}

    def open_board(self, asked: Asked) -> Board:
        """A board whose lanes are ready for their first step; ValueError says what is wrong."""
        self.bounds.check(asked, len(asked.lanes))
        model = self.models.get(asked.model)
        key = secrets.token_hex(8)
        if self.far is not None and self.models.far(asked.model):
            board: Board = FarBoard(key, asked, far=self.far)
        else:
            board = Board(key, asked)
        for lane in asked.lanes:
            board.start(lane, model)
        return board

    def results(self, asked: Asked) -> list[dict]:
        """Runs all lanes to the end, one dict of results for each; ValueError if a lane fails."""
        with self.programs:
            board = self.open_board(asked)
            self._run(board)
        failed = [run.error for run in board.runs if run.error]
        if failed:
            raise ValueError(failed[0])
        return [summary(run, board.runs[0]) for run in board.runs]

    def line_of(self, board: Board) -> Line:
        """Where a board waits for its turn. One that is made elsewhere waits there, and here for
        nobody."""
        return Line() if isinstance(board, FarBoard) else self.line

    def _run(self, board: Board) -> None:
        """All of a board's steps, in its turns, without a word."""
        line = self.line_of(board)
        place = line.join(board.key, board.share)
        try:
            for _ in line.wait(place):
                pass
            for _ in line.in_turns(place, advance(board)):
                pass
        finally:
            line.leave(place)

    def stored_board(self, name: str) -> Board:
        """The board of a run that comes with the page; ValueError for an unknown name."""
        return self._shared(f"stored-{name}", lambda key: loaded_board(stored.load(name), key))

    def stored_lanes(self, asked: Asked, key: str = "") -> Board | None:
        """A new board with the stored lanes of a request, ended; None if one of them is not stored.

        It needs no model. key: of the board; default: a new one. Put it with `Boards.put`.
        """
        if self.models.offered.get(asked.model, stored.MODEL) != stored.MODEL:
            return None  # another model with the bundled one's label
        return stored_board(asked, key or secrets.token_hex(8))

    def opening(self) -> Board:
        """The board of `stored.OPENING`, which every visitor's page opens with."""
        asked = Asked(**Link.parse(stored.OPENING).settings)
        return self._shared("stored-opening", lambda key: stored_board(asked, key))

    def _shared(self, key: str, make: Callable[[str], Board | None]) -> Board:
        """The board of this key that all visitors share, made when it is first wanted; ValueError
        where its runs are not stored."""
        for board in self.boards.stored:
            if board.key == key:
                return board
        made = make(key)
        if made is None:
            raise ValueError(
                f"the runs of {key} are missing: python -m analysis.tools.stored_runs writes them"
            )
        self.boards.stored.append(made)
        return made

    def save(self, run: Run) -> str:
        """The path of a file with the trace of a finished run."""
        policy = "".join(c for c in run.finished.run["policy"] if c.isalnum())[:20]
        path = Path(self.files.name) / f"d2cache-{policy}-{run.key[:6]}.safetensors"
        with self.saving:
            if not path.exists():
                run.finished.save(path)
                self._tidy()
        return str(path)

    def _tidy(self) -> None:
        """Keeps the newest files only."""
        files = sorted(Path(self.files.name).iterdir(), key=lambda file: file.stat().st_mtime)
        for old in files[:-KEPT_FILES]:
            old.unlink(missing_ok=True)
