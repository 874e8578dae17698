"""Trace: a whole run as numpy arrays and one header; a file of it holds nothing that executes."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save_file

from d2cache.canvas import CANDIDATES, Canvas, Run, Step
from d2cache.edits import MOST_EDITS, Edit
from d2cache.model import ModelConfig
from d2cache.rows import Part

SCHEMA = "d2cache-trace/2"
LARGEST = 1 << 26  # bytes of a trace file that is still opened
MOST_CELLS = 1 << 22  # steps x positions that are still opened
LONGEST_TEXT = 256  # characters of a token

# name -> dtype and axes: S steps, C = S + 1 canvases, T positions, G answer positions,
# K candidates, L layers, W counts of work
ARRAYS = {
    "tokens": (np.int64, "CT"),
    "step_of_token": (np.int32, "G"),
    "confidence": (np.float32, "SG"),
    "density": (np.float32, "SG"),
    "rollout": (np.float32, "ST"),
    "recomputed": (np.bool_, "ST"),
    "why": (np.uint8, "ST"),
    "parts": (np.uint8, "SLT"),
    "work": (np.int64, "SW"),
    "predicted": (np.int32, "S"),
    "seconds": (np.float64, "S"),
    "candidates": (np.int64, "GK"),
    "candidate_confidence": (np.float32, "GK"),
}
OPTIONAL = ("parts",)  # None in runs of policies that do not decide layer by layer


@dataclass
class Trace:
    """One run. Axes: S steps, T canvas positions, G answer positions; B = 1 has no batch axis,
    B > 1 has it after the steps (tokens (S+1,B,T), step_of_token (B,G)).

    tokens               (S+1,T) int64    the canvas before the first step and after each
    step_of_token        (G,)    int32    step that last wrote each position, -1 where none did
    confidence           (S,G)   float32  of the candidate, -inf where none was predicted
    density              (S,G)   float32  certainty density before the step's writes, in [0,1]
    rollout              (S,T)   float32  attention-rollout column mass, sums to T; NaN if none
    recomputed           (S,T)   bool     rows sent through a layer, all of them or some
    why                  (S,T)   uint8    bit set of `d2cache.Why`, 0 where K,V were reused
    parts                (S,L,T) uint8    bit set of `d2cache.Part`: what each layer computed for
                                          each row; None where every layer computes `recomputed`
    work                 (S,5)   int64    the counts that `ModelConfig.flops` takes
    predicted            (S,)    int32    rows sent through the LM head
    seconds              (S,)    float64  host time of each step
    candidates           (G,5)   int64    likeliest tokens at the step that wrote the position
    candidate_confidence (G,5)   float32  their probabilities under the model
    header: run configuration with its edits, environment, and the text of every token id that
    occurs. Where an edit wrote what was not predicted, confidence is -inf and candidates are 0.
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

    @staticmethod
    def record(steps: Iterable[Step]) -> Trace:
        """Run a generation to its end and keep all of it; ValueError when it makes no step."""
        recorder = Recorder()
        for step in steps:
            recorder.add(step)
        return recorder.trace()

    @property
    def run(self) -> dict:
        return self.header["run"]

    @property
    def prompt_length(self) -> int:
        return self.run["prompt_length"]

    @property
    def batch(self) -> int:
        return self.tokens.shape[1] if self.tokens.ndim == 3 else 1

    def row(self, b: int) -> Trace:
        """Row b of a batch as a run of its own: its padding and the steps after its end cut."""
        if self.batch == 1:
            return self
        start = self.header["start"][b]
        steps = int(self.step_of_token[b].max()) + 1
        cut = {}
        for name, (_, axes) in ARRAYS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if name != "seconds":  # one clock for the batch
                value = value[b] if axes[0] == "G" else value[:, b]
            if axes[0] in "SC":
                value = value[: steps + (axes[0] == "C")]
            cut[name] = value[..., start:] if axes[-1] == "T" else value
        run = self.run | {
            "prompt_length": self.prompt_length - start,
            "seeds": [self.run["seeds"][b]],
        }
        return Trace(**cut, header=self.header | {"run": run, "start": [0]})

    def text_of(self, token: int) -> str:
        return self.header["texts"].get(str(token), f"<{token}>")

    @property
    def answer(self) -> np.ndarray:
        """(n,) int64: answer ids before the first end-of-text token, masks left out."""
        self._single("answer")
        return answer_ids(self.tokens[-1, self.prompt_length :], self.run["shape"])

    @property
    def recomputed_by_layer(self) -> np.ndarray:
        """(S,L,T) bool: rows that went through each layer whole."""
        self._single("recomputed_by_layer")
        if self.parts is not None:
            return (self.parts & Part.MLP) > 0
        steps, length = self.recomputed.shape
        shape = (steps, self.run["shape"]["layers"], length)
        return np.broadcast_to(self.recomputed[:, None], shape)

    def age(self, part: Part) -> np.ndarray:
        """(S,L,T) int32: steps since each layer last computed this part of each row, 0 for this
        step, -1 if it never did. K, V, attention and MLP output of one row may differ in age."""
        done = self.recomputed_by_layer if self.parts is None else (self.parts & part) > 0
        step = np.arange(len(done), dtype=np.int32)[:, None, None]
        last = np.maximum.accumulate(np.where(done, step, -1), axis=0)
        return np.where(last < 0, -1, step - last)

    @property
    def totals(self) -> dict:
        """Numbers of the whole run: see `Totals`."""
        self._single("totals")
        config = ModelConfig(**self.run["shape"])
        masked = (self.tokens[:-1, self.prompt_length :] == config.mask_id).sum(1)
        changed = (self.tokens[1:] != self.tokens[:-1]).sum(1)
        totals = Totals(config, self.tokens.shape[1])
        rows = self.recomputed_by_layer.sum((1, 2)) / config.layers
        totals.add(rows, self.work, self.predicted, masked, changed, self.seconds)
        return totals.report(len(self.answer))

    def _single(self, what: str):
        if self.batch > 1:
            raise ValueError(f"{what} is defined for one row; take trace.row(b) of this batch")

    def save(self, path) -> None:
        """One safetensors file: the arrays, and the header as JSON in its metadata."""
        self._single("save")
        present = [n for n in ARRAYS if getattr(self, n) is not None]
        arrays = {n: np.ascontiguousarray(getattr(self, n)) for n in present}
        for name in ("tokens", "candidates"):  # ids are short; half the file
            arrays[name] = arrays[name].astype(np.int32)
        arrays["recomputed"] = arrays["recomputed"].astype(np.uint8)
        save_file(arrays, path, metadata={"trace": json.dumps(self.header)})

    @staticmethod
    def load(path) -> Trace:
        """A trace from its file; every size and value is checked.

        Raises ValueError with one sentence that says what is wrong with the file.
        """
        try:
            path = Path(path)
        except TypeError as error:
            raise ValueError(f"the trace is {path!r}; give the path of a file") from error
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
            data = path.read_bytes()
            arrays = load_safetensors(data)
            size = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["trace"])
            return _checked(arrays, header)
        except FileNotFoundError as error:
            raise ValueError(f"there is no trace file {path.name}") from error
        except (safetensors.SafetensorError, RecursionError, OSError) as error:
            reason = (str(error) or "it is nested too deeply").splitlines()[0]
            raise ValueError(f"{path.name} is not a trace file: {reason}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path.name} is not a valid trace: {reason}") from error


def answer_ids(ids: np.ndarray, shape: dict) -> np.ndarray:
    """Answer ids (G,) before the first end-of-text token, masks left out."""
    ends = np.flatnonzero(ids == shape["eos_id"])
    ids = ids[: ends[0]] if len(ends) else ids
    return ids[ids != shape["mask_id"]]


class Totals:
    """What a run cost so far; every number of a run is defined here.

    answer_tokens: answer tokens before the first end-of-text token. tokens_per_second: those
    over the seconds of all steps. hit_rate: share of rows, over all steps and layers, that were
    not recomputed. flops: `ModelConfig.flops` of what was computed; flops_none: of every row at
    every one of these steps, with the same exact savings; flops_vs_none: their ratio.
    """

    def __init__(self, config: ModelConfig, length: int):
        self.config, self.length = config, length
        self.steps, self.fresh = 0, length
        self.rows = self.seconds = self.flops = self.flops_none = 0.0

    def add(self, rows, work, predicted, masked, changed, seconds) -> None:
        """One step, or arrays (S,) of steps: recomputed rows (mean over the layers), work (5,) or
        (S,5), LM-head rows, masks before, token ids changed, seconds."""
        self.steps += np.size(seconds)
        self.rows += float(np.sum(rows))
        self.seconds += float(np.sum(seconds))
        flops = self.config.flops
        self.flops += float(np.sum(flops(*np.moveaxis(np.asarray(work), -1, 0), predicted)))
        # without a cache, layer 0 meets new ids where the step before wrote
        fresh = np.append(self.fresh, changed)
        whole = self.config.work(self.length, self.length, fresh[:-1])
        self.flops_none += float(np.sum(flops(*whole, masked)))
        self.fresh = int(fresh[-1])

    def report(self, answer_tokens: int) -> dict:
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
    """Collects steps while somebody else drives the loop; `trace()` at any time.

    Keeps small (B,T) tensors where they are and copies them to the host at the end. The (B,Q,V)
    logits are reduced to the five likeliest candidates at once and not kept.
    """

    def __init__(self):
        self.run: Run | None = None
        self.canvas: Canvas | None = None  # before the first step
        self.columns: dict[str, list] = {}

    def add(self, step: Step) -> None:
        if self.run is None:
            self.run, self.canvas = step.run, step.before
        rows, live = step.rows, step.before.live
        top, share = step.likeliest
        kept = {
            "tokens": step.tokens,
            "confidence": step.confidence,
            "density": density_of(step),
            "rollout": step.rollout,
            "recomputed": step.recomputed,
            "why": step.why,
            "work": step.work,
            "parts": None if step.parts is None else step.parts * live[:, None, None],
            "predicted": step.predicted,
            "seconds": step.seconds,
            "written": step.written,
            "target": rows.target,
            "top": top,
            "share": share,
        }
        for name, value in kept.items():
            self.columns.setdefault(name, []).append(value)

    def trace(self) -> Trace:
        """What was recorded so far; ValueError before the first step."""
        if self.run is None:
            raise ValueError("nothing was recorded: the run made no step")
        canvas, run, columns = self.canvas, self.run, self.columns
        p = run.prompt_length

        def stacked(name: str) -> np.ndarray:
            return torch.stack(columns[name]).cpu().numpy()

        arrays = {name: stacked(name) for name in ("recomputed", "why", "work")}
        if columns["parts"][0] is not None:
            arrays["parts"] = stacked("parts")
        arrays["tokens"] = torch.stack([canvas.tokens, *columns["tokens"]]).cpu().numpy()
        arrays["predicted"] = stacked("predicted").astype(np.int32)
        arrays["seconds"] = np.array(columns["seconds"])
        for name in ("confidence", "density"):
            arrays[name] = stacked(name)[..., p:].astype(np.float32)
        arrays["rollout"] = (
            np.full(arrays["why"].shape, np.nan, np.float32)
            if columns["rollout"][0] is None
            else stacked("rollout").astype(np.float32)
        )
        written = stacked("written")[..., p:]
        arrays["step_of_token"] = _last_step(written)
        arrays["candidates"], arrays["candidate_confidence"] = self._candidates(written, p)
        start = canvas.start.tolist()
        if len(start) == 1:
            for name, whole in arrays.items():
                axes = ARRAYS[name][1]
                if axes[0] == "G":
                    arrays[name] = whole[0]
                elif name != "seconds":
                    arrays[name] = whole[:, 0]
        return Trace(**arrays, header=_header(run, start, arrays))

    def _candidates(self, written: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
        """(B,G,5) ids and probabilities at the step that last wrote each position."""
        shape = (*written.shape[1:], CANDIDATES)
        ids, shares = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        columns = (self.columns[name] for name in ("target", "top", "share"))
        for mask, *parts in zip(written, *columns, strict=True):
            target, index, share = (t.cpu().numpy() for t in parts)
            ids[mask], shares[mask] = 0, 0  # none where an edit wrote what was not predicted
            for b, q in zip(
                *np.nonzero(np.take_along_axis(mask, np.maximum(target - p, 0), 1) & (target >= p)),
                strict=True,
            ):
                count = index.shape[-1]
                ids[b, target[b, q] - p, :count] = index[b, q]
                shares[b, target[b, q] - p, :count] = share[b, q]
        return ids, shares


def _last_step(written: np.ndarray) -> np.ndarray:
    """(S,B,G) bool -> (B,G) int32: the last step that wrote, -1 where none did."""
    last = written.shape[0] - 1 - written[::-1].argmax(0)
    return np.where(written.any(0), last, -1).astype(np.int32)


def density_sigma(policy_knobs: dict, decoder_knobs: dict) -> float:
    """Width of the density that is shown: the decoder's, else the policy's, else 10."""
    return decoder_knobs.get("sigma") or policy_knobs.get("sigma") or 10.0


def density_of(step: Step) -> torch.Tensor:
    """(B,T) float32: certainty density before a step; what the decoder used, if it used any."""
    if step.candidates.density is not None:
        return step.candidates.density
    sigma = density_sigma(*step.run.knobs(step.index))
    return step.before.density(sigma, step.plan.as_shipped)


def _header(run, start: list[int], arrays: dict) -> dict:
    texts = {}
    if run.tokenizer is not None:
        ids = np.union1d(arrays["tokens"], arrays["candidates"])
        texts = {str(i): run.tokenizer.decode([int(i)]) for i in ids}
    environment = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if run.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    return {
        "schema": SCHEMA,
        "run": run.settings(),
        "start": start,
        "environment": environment,
        "texts": texts,
    }


RUN_TYPES = {
    "model": str,
    "policy": str,
    "policy_knobs": dict,
    "decoder": str,
    "decoder_knobs": dict,
    "prompt_length": int,
    "gen_length": int,
    "block_length": int,
    "seeds": list,
    "stop_at_eos": bool,
    "device": str,
    "dtype": str,
    "shape": dict,
}


def _checked(arrays: dict[str, np.ndarray], header) -> Trace:
    """A Trace from what a file held, or ValueError, KeyError, TypeError."""
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise ValueError(f"its schema is {str(found)[:40]!r}, this version reads {SCHEMA!r}")
    run = _checked_run(header["run"])
    texts = header["texts"]
    if not isinstance(texts, dict) or not all(
        isinstance(t, str) and len(t) <= LONGEST_TEXT for t in texts.values()
    ):
        raise ValueError(f"its token texts are not texts of up to {LONGEST_TEXT} characters")
    if header["start"] != [0] or not isinstance(header["environment"], dict):
        raise ValueError("its start or environment is not that of one row")
    clean = _checked_arrays(arrays, run)
    keep = ("schema", "run", "start", "environment", "texts")
    return Trace(**clean, header={name: header[name] for name in keep})


def _checked_run(run) -> dict:
    if not isinstance(run, dict):
        raise ValueError("its run configuration is not an object")
    for name in sorted(set(RUN_TYPES) ^ (set(run) - {"edits", "weights"})):
        raise ValueError(f"it {'lacks' if name in RUN_TYPES else 'has an unknown'} {name[:40]!r}")
    for name, kind in RUN_TYPES.items():
        if type(run[name]) is not kind or (kind is str and len(run[name]) > 200):
            raise ValueError(f"{name} is {str(run[name])[:40]!r}, not a short {kind.__name__}")
    if run.get("weights", "fp8") != "fp8":
        raise ValueError(f"weights is {str(run['weights'])[:40]!r}, not 'fp8'")
    for name in ("prompt_length", "gen_length"):
        if run[name] < 1:
            raise ValueError(f"{name} is {run[name]}, it must be at least 1")
    for name in ("policy_knobs", "decoder_knobs"):
        for knob, value in run[name].items():
            if type(value) not in (int, float, bool) or not abs(value) < 1e12:
                raise ValueError(f"knob {knob[:40]!r} is {str(value)[:40]!r}, not a finite number")
    config = ModelConfig(**run["shape"])
    length = run["prompt_length"] + run["gen_length"]
    if length > config.max_length:
        raise ValueError(f"it has {length} positions, the model has room for {config.max_length}")
    if not 1 <= run["block_length"] <= run["gen_length"]:
        raise ValueError(f"block_length is {run['block_length']}, not 1 to {run['gen_length']}")
    edits = run.get("edits", [])
    if type(edits) is not list or len(edits) > MOST_EDITS:
        raise ValueError(f"its edits are not a list of at most {MOST_EDITS}")
    for edit in edits:
        Edit.of_plain(edit).check(run["prompt_length"], length, config)
    return run


def _checked_arrays(arrays: dict[str, np.ndarray], run: dict) -> dict[str, np.ndarray]:
    """The arrays in their documented types; sizes first, before anything is widened."""
    p, g = run["prompt_length"], run["gen_length"]
    config = ModelConfig(**run["shape"])
    steps = len(arrays["seconds"]) if arrays["seconds"].ndim == 1 else 0
    if not 1 <= steps <= MOST_CELLS // (p + g):
        raise ValueError(f"it has {steps} steps, 1 to {MOST_CELLS // (p + g)} are allowed")
    sizes = {
        "T": p + g,
        "G": g,
        "K": CANDIDATES,
        "S": steps,
        "C": steps + 1,
        "L": config.layers,
        "W": 5,
    }
    present = {n: kind for n, kind in ARRAYS.items() if n in arrays or n not in OPTIONAL}
    for name, (dtype, axes) in present.items():
        shape = tuple(sizes[a] for a in axes)
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, {shape} is needed")
        if arrays[name].dtype.kind not in ("f" if np.dtype(dtype).kind == "f" else "iub"):
            raise ValueError(f"{name} has type {arrays[name].dtype}, not {np.dtype(dtype)}")
    for name, low, high in (
        ("tokens", 0, config.vocab - 1),
        ("candidates", 0, config.vocab - 1),
        ("step_of_token", -1, steps - 1),
        ("density", 0, 1.001),
        ("seconds", 0, 1e6),
        ("candidate_confidence", 0, 1.001),
        ("predicted", 0, 2 * (p + g)),
        ("why", 0, 255),
        ("recomputed", 0, 1),
        ("work", 0, 2 * config.layers * (2 * (p + g)) ** 2),
        *((("parts", 0, 31),) if "parts" in present else ()),
    ):
        # written so that a NaN fails too
        if not ((arrays[name] >= low) & (arrays[name] <= high)).all():
            raise ValueError(f"{name} has values outside {low} to {high}")
    clean = {name: arrays[name].astype(dtype) for name, (dtype, _) in present.items()}
    confidence = clean["confidence"]
    if not (np.isneginf(confidence) | ((confidence >= 0) & (confidence <= 1.001))).all():
        raise ValueError("confidence has values that are neither -inf nor in 0 to 1")
    written = np.flatnonzero(clean["step_of_token"] >= 0)
    by_hand = {(e["step"], int(at) - p) for e in run.get("edits", []) for at in e["tokens"]}
    model = [g for g in written if (clean["step_of_token"][g], g) not in by_hand]
    if np.isneginf(confidence[clean["step_of_token"][model], model]).any():
        raise ValueError("a position was written at a step that has no confidence for it")
    if not (clean["tokens"][:-1, p:] == config.mask_id).any(1).all():
        raise ValueError("a step starts from a canvas without a mask")
    mass = clean["rollout"][~np.isnan(clean["rollout"])]
    if not ((mass >= -1e-3) & (mass <= 1.01 * (p + g))).all():
        raise ValueError(f"rollout has values outside 0 to {p + g}")
    return clean
