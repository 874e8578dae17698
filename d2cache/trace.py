"""Trace: a recorded run as numpy arrays and a header. Its file holds nothing that can execute."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save as as_safetensors
from torch import Tensor

from d2cache import output_file
from d2cache.canvas import CANDIDATES, Run, Step
from d2cache.companion import TRACE_HTML, companion
from d2cache.model import ModelConfig
from d2cache.progress import watched
from d2cache.rows import Part
from d2cache.trace_format import (
    ARRAYS,
    GUESSES,
    LARGEST,
    LONGEST_TEXT,
    OPTIONAL,
    SCHEMA,
    check_layout,
    checked_arrays,
    checked_header,
    given_after,
)

LEAST_SHARE = 1 / 256  # probability of a guess that is kept


@dataclass(eq=False, repr=False)
class Trace:
    """One recorded run. Axes: S steps, T canvas positions, G answer positions, L layers. A batch of
    B > 1 adds an axis after the steps (tokens (S+1,B,T), step_of_token (B,G)); B = 1 has none.
    G goes from the first mask to the end; where there are masks among text, some of these positions
    are given, which no step predicts or writes: `filled` distinguishes them.

    tokens               (S+1,T) int64    the canvas before the first step and after each step
    step_of_token        (G,)    int32    step that last wrote each position, -1 if none did
    confidence           (S,G)   float32  of the candidate, -inf where there was no prediction
    density              (S,G)   float32  certainty density before the step's writes, in [0,1]
    rollout              (S,T)   float32  attention-rollout column mass, sums to T; NaN if none
    recomputed           (S,T)   bool     rows sent through at least one layer
    why                  (S,T)   uint8    bit set of `d2cache.Why`, 0 where K,V were reused
    parts                (S,L,T) uint8    bit set of `d2cache.Part`: what each layer computed for
                                          each row; None if every layer computed all of
                                          `recomputed`
    work                 (S,5)   int64    the counts that `ModelConfig.flops` takes
    predicted            (S,)    int32    rows sent through the LM head
    seconds              (S,)    float64  host time of each step
    candidates           (G,5)   int64    likeliest tokens at the step that wrote the position
    candidate_confidence (G,5)   float32  their probabilities under the model
    guess_count          (N,)    uint8    how many guesses were kept for each of the N finite values
                                          of confidence, in order; 0 where it is of an earlier step
    guess                (M,)    int32    those guesses, up to five for each prediction, likeliest
                                          first; see `guesses`
    guess_share          (M,)    float16  their probabilities, 1/256 or more
    The last three are None in files of earlier versions.
    header: the run's configuration and edits, the environment, and the text of every token id that
    occurs. Where an edit wrote a position that was not predicted, confidence is -inf and
    candidates are 0.

    Two traces are equal if all of this is. In a notebook a trace of one row shows itself on the
    stage, offline, where the package `analysis` is installed beside this one.
    """

    tokens: np.ndarray
    step_of_token: np.ndarray
    confidence: np.ndarray
    density: np.ndarray
    rollout: np.ndarray
    recomputed: np.ndarray
    why: np.ndarray
    predicted: np.ndarray
    seconds: np.ndarray
    candidates: np.ndarray
    candidate_confidence: np.ndarray
    work: np.ndarray
    header: dict
    parts: np.ndarray | None = None
    guess_count: np.ndarray | None = None
    guess: np.ndarray | None = None
    guess_share: np.ndarray | None = None

    @staticmethod
    def record(steps: Iterable[Step], progress: bool | None = None) -> Trace:
        """Run a generation to its end and record every step; raises ValueError if there is none.

        progress: whether a run of more than two seconds shows a bar on stderr; by default in a
        notebook and on a terminal.
        """
        recorder = Recorder()
        for step in watched(steps, asked=progress):
            recorder.add(step)
        return recorder.trace()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        return self.header == other.header and all(
            _same(getattr(self, name), getattr(other, name)) for name in ARRAYS
        )

    def __repr__(self) -> str:
        run, cost = self.run, f"{float(self.seconds.sum()):.2f} s"
        rows = f"{self.batch} rows of " if self.batch > 1 else ""
        if self.batch == 1:
            cost += f", {100 * self.totals['hit_rate']:.1f} % of rows reused"
        return (
            f"<Trace of {run['model']}, {run['policy']} + {run['decoder']}: {rows}"
            f"{self.prompt_length} + {run['gen_length']} positions, "
            f"{len(self.seconds)} steps in {cost}>"
        )

    def _repr_html_(self) -> str | None:
        """The stage for a notebook cell; None, so that the text is shown, for a batch and where
        there is no stage."""
        shown = companion(TRACE_HTML) if self.batch == 1 else None
        return None if shown is None else shown(self)

    @property
    def run(self) -> dict:
        """The run's configuration as plain values (see `d2cache.canvas.Run`)."""
        return self.header["run"]

    @property
    def prompt_length(self) -> int:
        """Positions before the first mask, padding included."""
        return self.run["prompt_length"]

    @property
    def batch(self) -> int:
        """The number of rows B."""
        return self.tokens.shape[1] if self.tokens.ndim == 3 else 1

    def row(self, b: int) -> Trace:
        """Row b of a batch as a trace of its own, without its padding and the steps after its last
        write."""
        if self.batch == 1:
            return self
        start, first = self.header["start"][b], self._first(b)
        late = first - self.prompt_length  # answer positions before the row's own first
        steps = int(self.step_of_token[b].max()) + 1
        cut: dict[str, Any] = {}
        for name, (_, axes) in ARRAYS.items():
            value = getattr(self, name)
            if value is None or name in GUESSES:
                continue
            if name != "seconds":  # measured once for the whole batch
                value = value[b] if axes[0] == "G" else value[:, b]
            if axes[0] in "SC":
                value = value[: steps + (axes[0] == "C")]
            if "G" in axes:
                value = value[late:] if axes[0] == "G" else value[:, late:]
            cut[name] = value[..., start:] if axes[-1] == "T" else value
        run = self.run | {
            "prompt_length": first - start,
            "gen_length": self.run["gen_length"] - late,
            "block_length": min(self.run["block_length"], self.run["gen_length"] - late),
            "seeds": [self.run["seeds"][b]],
        }
        ranges = [[a - start, z - start] for a, z in run.pop("given", {b: ()})[b] if a > first]
        run |= {"given": [ranges]} if ranges else {}
        cut |= self._guesses_of_row(b, steps)
        return Trace(**cut, header=self.header | {"run": run, "start": [0]})

    def _first(self, b: int) -> int:
        """The position of row b's first mask."""
        start, p = self.header["start"][b], self.prompt_length
        masked = ~given_after(self.run, b) & (np.arange(self.run["gen_length"]) >= start - p)
        return p + int(masked.argmax())

    def _guesses_of_row(self, b: int, steps: int) -> dict[str, np.ndarray]:
        """The arrays of guesses of row b of a batch, of its first steps; {} if there are none."""
        if self.guess_count is None or self.guess is None or self.guess_share is None:
            return {}
        step, row, _ = np.nonzero(np.isfinite(self.confidence))
        mine = (row == b) & (step < steps)
        kept = np.repeat(mine, self.guess_count)
        return {
            "guess_count": self.guess_count[mine],
            "guess": self.guess[kept],
            "guess_share": self.guess_share[kept],
        }

    def guesses(self, step: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """What the model would have written in a step: answer position -> token ids (k,) int32 and
        their probabilities (k,) float16, likeliest first, k <= 5, for every position that went
        through the LM head in it. {} for a trace of an earlier version, which kept none."""
        self._require_one_row("guesses")
        if self.guess_count is None or self.guess is None or self.guess_share is None:
            return {}
        predicted = np.isfinite(self.confidence)
        first = int(predicted[:step].sum())
        ends = np.cumsum(self.guess_count, dtype=np.int64)
        found = {}
        for i, g in enumerate(np.flatnonzero(predicted[step]), first):
            kept = slice(int(ends[i] - self.guess_count[i]), int(ends[i]))
            if self.guess_count[i]:  # 0: a confidence that was carried over from an earlier step
                found[int(g)] = (self.guess[kept], self.guess_share[kept])
        return found

    def text_of(self, token: int) -> str:
        """The text of a token id, or <id> if it does not occur in the run."""
        return self.header["texts"].get(str(token), f"<{token}>")

    @property
    def asked(self) -> tuple[np.ndarray, int]:
        """prompt_ids (P,) int64 and gen_length with which `generate` starts the same run."""
        self._require_one_row("asked")
        if "given" in self.run:
            return self.tokens[0], 0
        return self.tokens[0, : self.prompt_length], self.run["gen_length"]

    @property
    def filled(self) -> np.ndarray:
        """(G,) bool: positions that the run was to write: all, unless there were masks among text.
        A given position that an edit masked is among them."""
        self._require_one_row("filled")
        masked = (self.tokens[:, self.prompt_length :] == self.run["shape"]["mask_id"]).any(0)
        return masked | ~given_after(self.run)

    @property
    def answer(self) -> np.ndarray:
        """(n,) int64: written ids before the first end-of-text token, without masks. Where there
        were masks among text, an end-of-text token counts only after the last given position."""
        self._require_one_row("answer")
        return answer_ids(self.tokens[-1, self.prompt_length :], self.run["shape"], self.filled)

    @property
    def text_ids(self) -> np.ndarray:
        """(n,) int64: the whole text in the end, given and written ids up to where the answer ends,
        without masks and end-of-text tokens, for `Model.decode`."""
        self._require_one_row("text_ids")
        shape, ids = self.run["shape"], self.tokens[-1]
        end = self.prompt_length + end_of(ids[self.prompt_length :], shape["eos_id"], self.filled)
        return ids[:end][~np.isin(ids[:end], (shape["mask_id"], shape["eos_id"]))]

    @property
    def recomputed_by_layer(self) -> np.ndarray:
        """(S,L,T) bool: rows that went through the whole of each layer."""
        self._require_one_row("recomputed_by_layer")
        if self.parts is not None:
            return (self.parts & Part.MLP) > 0
        steps, length = self.recomputed.shape
        shape = (steps, self.run["shape"]["layers"], length)
        return np.broadcast_to(self.recomputed[:, None], shape)

    def age(self, part: Part) -> np.ndarray:
        """(S,L,T) int32: steps since each layer last computed this part of each row; 0 in the same
        step, -1 if never. K, V, attention and MLP output of one row may differ in age."""
        done = self.recomputed_by_layer if self.parts is None else (self.parts & part) > 0
        step = np.arange(len(done), dtype=np.int32)[:, None, None]
        last = np.maximum.accumulate(np.where(done, step, -1), axis=0)
        return np.where(last < 0, -1, step - last)

    @property
    def totals(self) -> dict[str, float]:
        """What the whole run cost; the keys are explained in `Totals`."""
        self._require_one_row("totals")
        config = ModelConfig(**self.run["shape"])
        masked = (self.tokens[:-1, self.prompt_length :] == config.mask_id).sum(1)
        changed = (self.tokens[1:] != self.tokens[:-1]).sum(1)
        totals = Totals(config, self.tokens.shape[1])
        rows = self.recomputed_by_layer.sum((1, 2)) / config.layers
        totals.add(rows, self.work, self.predicted, masked, changed, self.seconds)
        return totals.report(len(self.answer))

    def _require_one_row(self, what: str) -> None:
        if self.batch > 1:
            raise ValueError(f"{what} is defined for one row; take trace.row(b) of this batch")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the arrays, and the header as JSON in its metadata.

        The file is written through links, as a whole or not at all. Raises ValueError for a batch,
        OSError when the file cannot be written.
        """
        self._require_one_row("save")
        present = [n for n in ARRAYS if getattr(self, n) is not None]
        arrays = {n: np.ascontiguousarray(getattr(self, n)) for n in present}
        for name in ("tokens", "candidates"):  # token ids fit in 32 bits: half the file size
            arrays[name] = arrays[name].astype(np.int32)
        arrays["recomputed"] = arrays["recomputed"].astype(np.uint8)
        data = as_safetensors(arrays, metadata={"trace": json.dumps(self.header)})
        output_file.write(path, data)

    @staticmethod
    def load(path: str | os.PathLike[str], largest: int | None = None) -> Trace:
        """Read a trace file; every size and value in it is checked.

        largest: bytes of the largest file to open, for files that strangers send; None for any. In
        either case no more is read than the shape of the run accounts for.

        Raises ValueError with one sentence that says what is wrong with the file.
        """
        try:
            path = Path(path)
        except TypeError as error:
            raise ValueError(f"the trace is {path!r}; give the path of a file") from error
        name = path.name[:80]  # as a stranger called it
        try:
            return _read(path, largest)
        except FileNotFoundError as error:
            raise ValueError(f"there is no trace file {name}") from error
        except (safetensors.SafetensorError, RecursionError, OSError) as error:
            said = getattr(error, "strerror", "") or str(error)  # without the path
            reason = (said or "it is nested too deeply").splitlines()[0]
            raise ValueError(f"{name} is not a trace file: {reason}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{name} is not a valid trace: {reason}") from error


def _read(path: Path, largest: int | None) -> Trace:
    """`Trace.load` without its messages: raises whatever reading and checking raise."""
    size = path.stat().st_size
    if largest is not None and size > largest:
        raise ValueError(f"it is larger than {largest >> 20} MiB")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size, LARGEST):
            raise ValueError(f"its header would have {length} bytes")
        tensors = json.loads(file.read(length))
    header = checked_header(json.loads(tensors.pop("__metadata__")["trace"]))
    check_layout(tensors, header["run"])
    arrays = load_file(path)  # which refuses a file that is longer or shorter than its arrays
    return Trace(**checked_arrays(arrays, header["run"]), header=header)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def smallest(prompt_length: int, gen_length: int) -> int:
    """Bytes that the file of a run of one row has at least: those of its arrays after one step."""
    sizes = dict(T=prompt_length + gen_length, G=gen_length, K=CANDIDATES, S=1, C=2, L=1, W=5)
    axes = [axes for name, (_, axes) in ARRAYS.items() if name not in OPTIONAL]
    return sum(math.prod(sizes[one] for one in each) for each in axes)  # a byte for each value


def agreement(trace: Trace, other: Trace) -> float:
    """Share of the answer's tokens, 0 to 1, that two runs of one row wrote alike.

    Counted up to the later of their first end-of-text tokens: what follows is no answer. Given text
    is none either.
    """
    answers, lengths, filled = [], [], trace.filled | other.filled
    for one in (trace, other):
        eos = one.run["shape"]["eos_id"]
        ids = one.tokens[-1, one.prompt_length :].copy()
        lengths.append(end_of(ids, eos, one.filled))
        ids[lengths[-1] :] = eos
        answers.append(ids)
    size = max(lengths)
    same = (answers[0] == answers[1])[:size][filled[:size]]
    return float(same.mean()) if len(same) else 1.0


def answer_ids(ids: np.ndarray, shape: dict, filled: np.ndarray | None = None) -> np.ndarray:
    """The ids (n,) of an answer (G,) before its end, without masks.

    shape: the model's `ModelConfig` as a dict, as in a trace's header. filled (G,) bool: positions
    that are the run's to write; None for all.
    """
    filled = np.ones(len(ids), dtype=bool) if filled is None else filled
    end = end_of(ids, shape["eos_id"], filled)
    return ids[:end][filled[:end] & (ids[:end] != shape["mask_id"])]


def end_of(ids: np.ndarray, eos_id: int, filled: np.ndarray) -> int:
    """Where an answer (G,) ends: at its first end-of-text token that no given text follows, or G.

    filled (G,) bool: as in `answer_ids`.
    """
    given = np.flatnonzero(~filled)
    last = int(given[-1]) + 1 if len(given) else 0
    ends = np.flatnonzero(ids[last:] == eos_id)
    return last + int(ends[0]) if len(ends) else len(ids)


class Totals:
    """What a run has cost so far. Every number reported about a run is defined here.

    answer_tokens: answer tokens before the first end-of-text token. tokens_per_second: those
    divided by the seconds of all steps. hit_rate: share of rows, over all steps and layers, that
    were not recomputed. flops: `ModelConfig.flops` of what was computed; flops_none: of every row
    at every one of these steps, with the same exact savings; flops_vs_none: their ratio.
    """

    def __init__(self, config: ModelConfig, length: int):
        self.config, self.length = config, length
        self.steps, self.fresh = 0, length  # fresh: rows whose token id is new in the next step
        self.rows = self.seconds = self.flops = self.flops_none = 0.0

    def add(self, rows, work, predicted, masked, changed, seconds) -> None:
        """Add one step, or S steps at once.

        Numbers, or arrays (S,): rows recomputed (mean over the layers), rows predicted by the LM
        head, masked positions before the step, token ids changed by it, seconds. work: (5,) or
        (S,5), the counts that `ModelConfig.flops` takes.
        """
        self.steps += np.size(seconds)
        self.rows += float(np.sum(rows))
        self.seconds += float(np.sum(seconds))
        self.flops += self._flops(np.moveaxis(np.asarray(work), -1, 0), predicted)
        # without a cache, layer 0 meets new ids where the previous step wrote
        fresh = np.append(self.fresh, changed)
        whole = self.config.work(self.length, self.length, fresh[:-1])
        self.flops_none += self._flops(whole, masked)
        self.fresh = int(fresh[-1])

    def _flops(self, work: Iterable, predicted) -> float:
        keys, values, attention, mlp, scores = work
        return float(np.sum(self.config.flops(keys, values, attention, mlp, scores, predicted)))

    def report(self, answer_tokens: int) -> dict[str, float]:
        """The numbers by name, given the answer tokens that were written."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "answer_tokens": answer_tokens,
            "tokens_per_second": answer_tokens / self.seconds if self.seconds else 0.0,
            "hit_rate": 1 - self.rows / (self.steps * self.length),
            "flops": self.flops,
            "flops_none": self.flops_none,
            "flops_vs_none": self.flops / self.flops_none,
        }


class Recorder:
    """Collects the steps of a run whose loop is elsewhere; `trace()` can be called at any time.

    Small (B,T) tensors stay on their device until `trace()` copies them to the host. The logits
    (B,Q,V) are reduced at once to the five likeliest candidates, and not kept.

    A run that is made in another process is recorded in both: `parcel` there, `receive` here.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.first: Tensor | None = None  # (B,T) int64, the tokens before the first step
        self.start: list[int] = []  # each row's first position that is not padding
        self.environment: dict[str, Any] = {}
        self.columns: dict[str, list[Any]] = {}

    def add(self, step: Step) -> None:
        if self.run is None:
            self.run, self.first = step.run, step.before.tokens
            self.start = step.before.start.tolist()
            self.environment = _environment(step.run)
        live = step.before.live[:, None, None]
        likeliest, probability = step.likeliest
        kept = {
            "tokens": step.tokens,
            "confidence": step.confidence,
            "density": density_of(step),
            "rollout": step.rollout,
            "recomputed": step.recomputed,
            "why": step.why,
            "work": step.work,
            "parts": None if step.parts is None else step.parts * live,
            "predicted": step.predicted,
            "seconds": step.seconds,
            "written": step.written,
            "target": step.rows.target,
            "likeliest": likeliest,
            "probability": probability,
        }
        self._keep(kept)

    def _keep(self, kept: dict[str, Any]) -> None:
        for name, value in kept.items():
            self.columns.setdefault(name, []).append(value)

    def parcel(self) -> dict[str, Any]:
        """The last step, for `receive` in another process: numpy arrays and plain values, no
        tensors; of the first step also what it needs to know of the run."""
        if self.run is None or self.first is None:
            raise ValueError("nothing was recorded: the run made no step")
        parcel: dict[str, Any] = {
            "step": {
                name: kept[-1].cpu().numpy() if isinstance(kept[-1], Tensor) else kept[-1]
                for name, kept in self.columns.items()
            }
        }
        if len(self.columns["tokens"]) == 1:
            parcel["run"] = replace(self.run, tokenizer=None)
            parcel["first"] = self.first.cpu().numpy()
            parcel["start"], parcel["environment"] = self.start, self.environment
        return parcel

    def receive(self, parcel: dict[str, Any], tokenizer: object = None) -> None:
        """Adds the step of a `parcel`, in the order in which they were made. tokenizer: of the
        run's model; it gives the trace its texts."""
        if "run" in parcel:
            self.run = replace(parcel["run"], tokenizer=tokenizer)
            self.first = torch.from_numpy(parcel["first"])
            self.start, self.environment = parcel["start"], parcel["environment"]
        self._keep(
            {
                name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for name, value in parcel["step"].items()
            }
        )

    def trace(self) -> Trace:
        """The run so far; raises ValueError before the first step."""
        if self.run is None or self.first is None:
            raise ValueError("nothing was recorded: the run made no step")
        arrays = self._arrays(self.run.prompt_length, self.first)
        if len(self.start) == 1:
            for name, whole in arrays.items():
                if ARRAYS[name][1][0] == "G":
                    arrays[name] = whole[0]
                elif name not in ("seconds", *GUESSES):
                    arrays[name] = whole[:, 0]
        return Trace(**arrays, header=self._header(self.run, arrays))

    def _header(self, run: Run, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        texts, tokenizer = {}, cast(Any, run.tokenizer)
        if tokenizer is not None:
            ids = functools.reduce(
                np.union1d, (arrays[name] for name in ("tokens", "candidates", "guess"))
            )
            texts = {str(i): tokenizer.decode([int(i)])[:LONGEST_TEXT] for i in ids}
        return {
            "schema": SCHEMA,
            "run": run.settings(),
            "start": self.start,
            "environment": self.environment,
            "texts": texts,
        }

    def _arrays(self, p: int, first: Tensor) -> dict[str, Any]:
        """Every array of the trace, with its batch axis. p: length of the prompt."""
        columns = self.columns
        arrays = {name: self._stacked(name) for name in ("recomputed", "why", "work")}
        if columns["parts"][0] is not None:
            arrays["parts"] = self._stacked("parts")
        arrays["tokens"] = torch.stack([first, *columns["tokens"]]).cpu().numpy()
        arrays["predicted"] = self._stacked("predicted").astype(np.int32)
        arrays["seconds"] = np.array(columns["seconds"])
        for name in ("confidence", "density"):
            arrays[name] = self._stacked(name)[..., p:].astype(np.float32)
        arrays["rollout"] = (
            np.full(arrays["why"].shape, np.nan, np.float32)
            if columns["rollout"][0] is None
            else self._stacked("rollout").astype(np.float32)
        )
        written = self._stacked("written")[..., p:]
        arrays["step_of_token"] = _last_step(written)
        arrays["candidates"], arrays["candidate_confidence"] = self._candidates(written, p)
        return arrays | self._guesses(np.isfinite(arrays["confidence"]), p)

    def _stacked(self, name: str) -> np.ndarray:
        return torch.stack(self.columns[name]).cpu().numpy()

    def _candidates(self, written: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
        """(B,G,5) ids and probabilities at the step that last wrote each position.

        written (S,B,G) bool: the answer positions that each step wrote.
        """
        shape = (*written.shape[1:], CANDIDATES)
        ids, shares = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        columns = (self.columns[name] for name in ("target", "likeliest", "probability"))
        for mask, *tensors in zip(written, *columns, strict=True):
            target, likeliest, probability = (t.cpu().numpy() for t in tensors)
            ids[mask], shares[mask] = 0, 0  # where an edit wrote what was not predicted
            wrote = np.take_along_axis(mask, np.maximum(target - p, 0), 1) & (target >= p)
            count = likeliest.shape[-1]
            for b, q in zip(*np.nonzero(wrote), strict=True):
                ids[b, target[b, q] - p, :count] = likeliest[b, q]
                shares[b, target[b, q] - p, :count] = probability[b, q]
        return ids, shares

    def _guesses(self, predicted: np.ndarray, p: int) -> dict[str, np.ndarray]:
        """guess_count, guess and guess_share of the predictions, (S,B,G) bool."""
        counts, ids, shares = [], [], []
        columns = (self.columns[name] for name in ("target", "likeliest", "probability"))
        for mask, *tensors in zip(predicted, *columns, strict=True):
            target, likeliest, probability = (t.cpu().numpy() for t in tensors)
            rows = np.zeros((*mask.shape, 2, likeliest.shape[-1]))
            b, q = np.nonzero(target >= p)
            rows[b, target[b, q] - p, 0] = likeliest[b, q]
            rows[b, target[b, q] - p, 1] = probability[b, q]
            top, share = np.moveaxis(rows[mask], 1, 0)
            keep = share >= LEAST_SHARE
            counts.append(keep.sum(1, dtype=np.uint8))
            ids.append(top[keep].astype(np.int32))
            shares.append(share[keep].astype(np.float16))
        arrays = {"guess_count": counts, "guess": ids, "guess_share": shares}
        return {name: np.concatenate(parts) for name, parts in arrays.items()}


def _last_step(written: np.ndarray) -> np.ndarray:
    """(S,B,G) bool -> (B,G) int32: the last step that wrote each position, -1 if none did."""
    last = written.shape[0] - 1 - written[::-1].argmax(0)
    return np.where(written.any(0), last, -1).astype(np.int32)


def density_sigma(policy_knobs: dict, decoder_knobs: dict) -> float:
    """Width of the density that is shown, in positions: the decoder's, the policy's, or 10."""
    return decoder_knobs.get("sigma") or policy_knobs.get("sigma") or 10.0


def density_of(step: Step) -> torch.Tensor:
    """(B,T) float32: certainty density before a step, the decoder's own if it used one."""
    if step.candidates.density is not None:
        return step.candidates.density
    sigma = density_sigma(*step.run.knobs(step.index))
    return step.before.density(sigma, step.plan.as_shipped)


def _environment(run: Run) -> dict[str, Any]:
    """What a run is made by, for a trace's header."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if run.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
