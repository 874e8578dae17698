"""What the stage asks the server, by name. Anybody who can reach the page can ask: everything in a
question is checked, and each answer is bounded."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

import d2cache
from analysis import probes, report
from analysis.page import export, notebook
from analysis.page.analyses import ANALYSES, packed
from analysis.page.boards import Board, Boards, Run
from analysis.page.bounds import AtOnce
from analysis.page.events import map_payload
from analysis.page.memory import give_back
from analysis.page.models import Models
from analysis.page.outline import Outline
from analysis.page.query import CLOCKS, TABS
from analysis.page.remote import Far
from d2cache.trace import Trace

LONGEST = 2000  # characters of a question
QUESTIONS = ("attention", "life", "figures", "sigmas", "export", "token")  # each a method below
MANY = "many visitors are asking at once: ask again in a moment"
EXPORTS = ("html", "notebook", "trace")  # what can be exported


class Questions:
    """Answers questions about the runs that are kept. `answer` never raises: it returns {"error":
    one line} for a question that it cannot answer."""

    def __init__(self, boards: Boards, models: Models, far: Far | None = None, most: int = 0):
        self.boards, self.models, self.far = boards, models, far
        self.at_once = AtOnce(most, MANY)
        self.known = {name: getattr(self, name) for name in QUESTIONS}

    def answer(self, question: str) -> dict:
        """question: JSON [name, {argument: value}]."""
        try:
            if not isinstance(question, str) or len(question) > LONGEST:
                raise ValueError(f"the question is longer than {LONGEST} characters")
            name, given = json.loads(question)
            if not isinstance(name, str) or name not in self.known or not isinstance(given, dict):
                raise ValueError(f"there is no such question; ask for {', '.join(self.known)}")
            with self.at_once:
                return self.known[name](**given)
        except (ValueError, TypeError, IndexError, RuntimeError, RecursionError) as error:
            return {"error": (str(error) or type(error).__name__).splitlines()[0]}
        finally:
            give_back()

    def attention(self, run: str, step: int, layer="rollout") -> dict:
        """The rollout, or one layer's head-averaged map, of an exact pass before a step."""
        one, trace, model = self._run(run)
        if layer == "rollout":
            weights = self._analyse("rollout", model, trace, _whole("step", step))
        else:
            places = _whole("step", step), _whole("layer", layer)
            weights = self._analyse("attention", model, trace, *places)
        return map_payload(weights, trace.prompt_length) | {
            "columns": _plain(probes.column_sums(weights)),
            "layers": model.config.layers,
        }

    def life(self, run: str, position: int) -> dict:
        """How one position's exact keys and values move over the steps, in two dimensions."""
        one, trace, model = self._run(run)
        return _plain(self._analyse("life", model, trace, _whole("position", position)))

    def figures(self, run: str) -> dict:
        """The figures of one run, as plotly's JSON and as CSV."""
        one, trace, model = self._run(run)
        rollouts = self._analyse("columns", model, trace)
        return {"figures": report.run_figures(trace, rollouts)}

    def sigmas(self, run: str) -> dict:
        """Decode order under several widths of the certainty prior, each from a run of its own."""
        one, trace, model = self._run(run)
        if "sigma" not in trace.run["decoder_knobs"]:
            raise ValueError(f"the decoder {trace.run['decoder']} has no certainty prior")
        return {"figures": [report.sigma_figure(self._analyse("orders", model, trace))]}

    def export(self, what: str, run: str, view: dict | None = None) -> dict:
        """A file to keep: the page, the trace, or a notebook cell that repeats the run. view: where
        the reader is, which the page opens with, see `_view`."""
        board, one = self.boards.holding(run)
        trace = self._trace(one)
        name = f"d2cache-{trace.run['policy']}-{one.key[:6]}"
        if what == "html":
            text = export.page(board.events(), title(board), _view(view or {}))
            return {"name": f"{name}.html", "text": text}
        if what == "notebook":
            prompt = board.asked.prompt if board.asked else None
            source = self.models.source(trace.run["model"])
            return {"name": f"{name}.py", "text": notebook.cell(trace, prompt, source)}
        if what == "trace":
            raw = base64.b64encode(packed(trace)).decode()
            return {"name": f"{name}.safetensors", "b64": raw}
        raise ValueError(f"{str(what)[:20]!r} cannot be exported; ask for html, notebook or trace")

    def token(self, run: str, text: str = "", mask: bool = False) -> dict:
        """The single token for a text in the vocabulary of the run's model, or its mask token."""
        _, _, model = self._run(run)
        tokenizer: Any = model.tokenizer
        if mask:
            return {"id": model.config.mask_id, "text": "[MASK]"}
        ids = tokenizer.encode(str(text), add_special_tokens=False)
        if len(ids) != 1:
            parts = " + ".join(repr(tokenizer.decode([i])) for i in ids[:6])
            raise ValueError(f"{str(text)[:40]!r} is {len(ids)} tokens ({parts}); give one token")
        return {"id": int(ids[0]), "text": tokenizer.decode(ids)}

    def _run(self, key: str) -> tuple[Run, Trace, d2cache.Model]:
        """A run, its trace so far, and a model like the one that made it."""
        _, run = self.boards.holding(key)
        trace = self._trace(run)
        model = run.model or self.models.like(d2cache.ModelConfig(**trace.run["shape"]))
        if model is None:
            raise ValueError(f"it needs the model {trace.run['model']}, which is not loaded here")
        return run, trace, model

    def _analyse(self, name: str, model: d2cache.Model, trace: Trace, *given) -> Any:
        """An analysis, here or where the model computes."""
        if self.far is not None and isinstance(model, Outline):
            return self.far.analyse(name, model.config.name, trace, *given)
        return ANALYSES[name](model, trace, *given)

    @staticmethod
    def _trace(run: Run) -> Trace:
        trace = run.snapshot()
        if trace is None:
            raise ValueError("this run has made no step yet")
        return trace


def title(board: Board) -> str:
    """A board's title: its prompt, or that of a loaded trace, cut between two words."""
    prompt = board.asked.prompt if board.asked else export.prompt_of(board.runs[0].finished)
    return export.shortened(prompt)


# What a view may name, and what each must be.
VIEW = {
    "at": lambda x: type(x) is int and 0 <= x < 10**6,
    "see": lambda x: type(x) is int and 0 <= x < 100,
    "pos": lambda x: type(x) is int and 0 <= x < 10**6,
    "tab": TABS.__contains__,
    "clock": CLOCKS.__contains__,
}


def _view(given: dict) -> dict:
    """A view as `export.page` takes it; ValueError for anything else."""
    if not isinstance(given, dict):
        raise ValueError(f"the view is {str(given)[:20]!r}; it must be an object")
    for name, value in given.items():
        if name not in VIEW or not isinstance(value, (int, str)) or not VIEW[name](value):
            raise ValueError(f"the view has {name[:20]} = {str(value)[:20]!r}; leave it out")
    return given


def _whole(name: str, value) -> int:
    if type(value) is not int:
        raise ValueError(f"{name} is {str(value)[:20]!r}; it must be a whole number")
    return value


def _plain(values):
    """Arrays, in dicts or not, as lists, with four digits."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[float])(values).tolist()
