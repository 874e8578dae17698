"""Steps and traces -> the compact events that the stage draws, in one format."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.page import characters, grids, planes
from analysis.page.planes import plane
from analysis.probes import Look
from d2cache import ModelConfig, Part, Step, Trace, policies
from d2cache.canvas import Run
from d2cache.registry import title
from d2cache.trace import Totals, answer_ids, density_of, density_sigma
from d2cache.trace_format import given_after

LEAST_SHARE = 0.01  # of a guess that is sent
FINEST = 0.05  # change of a share that is sent
LARGEST_MAP = 256  # a T x T map is averaged down to this many rows before it is sent


def message(events: list[dict]) -> str:
    """What the stage receives: one line of JSON, with its time of sending (ms, Unix time)."""
    stamp = round(1e3 * time.time(), 1)
    return json.dumps({"at": stamp, "events": events}, separators=(",", ":"), allow_nan=False)


def link(board: str, query: str) -> dict:
    """The event with a board's link (`analysis.page.query`), "" for a board without one."""
    return {"k": "link", "board": board, "query": query}


def renamed(board: str, to: str, runs: dict[str, str]) -> dict:
    """The event that gives a board and its runs other keys; runs: old key -> new one."""
    return {"k": "keys", "board": board, "to": to, "runs": runs}


def waiting(words: str) -> dict:
    """The event of a board that waits for its turn; "" when it waits no more."""
    return {"k": "wait", "says": words}


def sharing(words: str) -> dict:
    """The event that says why the board's runs are slow; "" when they are not."""
    return {"k": "share", "says": words}


def refused(words: str) -> dict:
    """The event that says why what the stage asked for cannot be."""
    return {"k": "refused", "says": words}


def paused(run: str) -> dict:
    """The event of a run that makes no steps for now."""
    return {"k": "pause", "run": run}


def ended(run: str, status: str, note: str = "") -> dict:
    """The end of a run. status: done, stopped or failed; note: what is to know about it."""
    return {"k": "end", "run": run, "status": status, "note": note}


def judged(rows: list[dict]) -> dict:
    """The event with what the lanes of a finished board came to, see `verdict.results`."""
    return {"k": "results", "rows": rows}


@dataclass(frozen=True)
class StepDone:
    """What one step of one row did, in numpy. T positions, G of them of the answer, L layers."""

    index: int
    before: np.ndarray  # (T,) int64, the canvas
    after: np.ndarray
    # answer position -> ids and their probabilities, likeliest first, where known
    candidates: dict[int, tuple]
    confidence: np.ndarray  # (G,), -inf where nothing was predicted
    density: np.ndarray  # (G,)
    rollout: np.ndarray | None  # (T,)
    why: np.ndarray  # (T,) uint8 of `Why`
    rows: int  # recomputed
    parts: np.ndarray | None  # (L,T) uint8 of `Part`, where the layers differ
    work: np.ndarray  # (5,), see `Totals.add`
    predicted: int
    seconds: float


def coded(done: StepDone) -> dict[str, str | None]:
    """The planes of a step: confidence c, density d, rollout r, reasons y."""
    seen = np.isfinite(done.confidence)
    confidence = planes.CONFIDENCE.codes(np.where(seen, done.confidence, 0))
    return {
        "c": plane(np.where(seen, confidence, 0)),
        "d": plane(planes.DENSITY.codes(done.density)),
        "r": None if done.rollout is None else plane(planes.ROLLOUT.codes(done.rollout)),
        "y": plane(done.why),
    }


class Events:
    """The events of one run, step by step: start, then rec and totals for each step (and truth,
    where a `probes.Truth` looked at it), then end.

    A start holds the text of the prompt; where there are masks among text, also given: [position,
    text] of each token of text after the first mask.

    The run's place: board, a text that runs shown side by side share (default: the run's own key);
    lane, its number there from 0; name, a short label (default: the policy); branch, {lane, step,
    says} of the run that it branches off, or None; truth, whether truth events will follow.

    A start has a grid where the answer is one, see `grids.grid`.
    A rec holds rows (recomputed positions, mean over the layers), out (evicted ones, also a mean),
    w (what was written: position, text, confidence, candidates; without those two where an edit
    wrote), m (positions masked again), j, where there are any (other positions whose
    text is another now, and that text: a token completed their character, or broke it), and planes,
    base64 of uint8 on the scales of `analysis.page.planes`: confidence c (G), 0 where nothing was
    predicted; density d (G); rollout r (T); why y (T), bits of `d2cache.Why`. a, where the policy
    decides layer by layer: bits of `d2cache.Part`, layer after layer, as base64 of uint8 pairs
    (value, times 1 to 255).
    At most about 4/3 (2 G + 2 T) bytes a step, or 4/3 (2 G + T) and 8/3 a run of equal parts: no
    policy has both r and a.

    A guesses follows its rec where there are any: position and likeliest tokens of what stays
    masked, where they are other than they were, or surer or less sure by about `FINEST`.
    A truth holds planes of what the step read, see `probes.Look`: kd, vd (T), drift; kl (G), 0
    also where nothing was predicted; flips and oracle, canvas positions; recall or null.
    """

    def __init__(
        self,
        key: str,
        run: dict,
        by_layer: bool,
        text: Callable[[int], str],
        decode: Callable[[list[int]], str] | None = None,
        *,
        board: str | None = None,
        lane: int = 0,
        name: str | None = None,
        branch: dict | None = None,
        truth: bool = False,
    ):
        self.guessed: dict[int, tuple] = {}  # answer position -> the guesses that were sent last
        self.key, self.run, self.text, self.decode, self.seq = key, run, text, decode, 0
        self.place = {
            "board": key if board is None else board,
            "lane": lane,
            "name": run["policy"] if name is None else name,
            "branch": branch,
            "truth": truth,
        }
        self.by_layer, self.layers = by_layer, run["shape"]["layers"]
        self.length = run["prompt_length"] + run["gen_length"]
        self.totals = Totals(ModelConfig(**run["shape"]), self.length)
        self.filled = ~given_after(run)  # (G,): positions that the run is to write

    def start(self, canvas: np.ndarray, rollout: bool, stored: bool = False, steps: int = 0):
        """canvas (T,): before the first step."""
        run, texts = self.run, self.texts(canvas)
        given = [[int(at), texts[at]] for at in np.flatnonzero(~self.filled) + run["prompt_length"]]
        prompt = texts[: run["prompt_length"]]
        grid = None if given else grids.grid(prompt, run["gen_length"])
        return {
            "k": "start",
            "run": self.key,
            "T": self.length,
            "P": run["prompt_length"],
            "G": run["gen_length"],
            "layers": self.layers,
            "by_layer": self.by_layer,
            "model": run["model"],
            "policy": run["policy"],
            "title": policy_title(run["policy"]),
            "decoder": run["decoder"],
            "block_length": run["block_length"],
            "knobs": {"policy": run["policy_knobs"], "decoder": run["decoder_knobs"]},
            "sigma": density_sigma(run["policy_knobs"], run["decoder_knobs"]),
            "prompt": prompt,
            **({"given": given} if given else {}),
            "rollout": rollout,
            "stored": stored,
            "eos": [self.text(run["shape"]["eos_id"])],
            "mask": run["shape"]["mask_id"],
            "steps": steps,
            **({"grid": grid} if grid else {}),
            **self.place,
        }

    def texts(self, ids: np.ndarray) -> list[str]:
        """What the tokens of a canvas show, see `characters.texts`."""
        return characters.texts(ids, self.text, self.decode)

    def step(self, done: StepDone) -> list[dict]:
        """rec, totals and guesses of one step."""
        p, mask_id = self.run["prompt_length"], self.run["shape"]["mask_id"]
        changed, masked = done.after != done.before, done.after == mask_id
        texts, stays = self.texts(done.after), np.flatnonzero(~changed)
        rows, evicted = float(done.rows), 0.0
        if done.parts is not None:
            rows = ((done.parts & Part.MLP) > 0).sum() / self.layers
            evicted = ((done.parts & Part.EVICTED) > 0).sum() / self.layers
        record = {
            "k": "rec",
            "run": self.key,
            "seq": self.seq,
            "s": done.index,
            "ms": round(1e3 * done.seconds, 2),
            "rows": _short(rows),
            "out": _short(evicted),
            "w": self.writes(done, np.flatnonzero(changed & ~masked), texts),
            "m": np.flatnonzero(changed & masked).tolist(),
            **coded(done),
            "a": planes.run_lengths(done.parts),
        }
        before = self.texts(done.before)
        if joined := [[int(at), texts[at]] for at in stays if texts[at] != before[at]]:
            record["j"] = joined
        self.seq += 1
        was_masked = int((done.before[p:] == mask_id).sum())
        self.totals.add(
            rows, done.work, done.predicted, was_masked, int(changed.sum()), done.seconds
        )
        self.filled = self.filled | (done.after[p:] == mask_id)  # an edit may mask given text
        answer = answer_ids(done.after[p:], self.run["shape"], self.filled)
        totals = self.totals.report(len(answer))
        return [
            record,
            {
                "k": "totals",
                "run": self.key,
                "s": done.index,
                "tokens": totals["answer_tokens"],
                "seconds": round(totals["seconds"], 4),
                "tps": _short(totals["tokens_per_second"]),
                "hit_rate": _short(totals["hit_rate"]),
                "flops": totals["flops"],
                "flops_none": totals["flops_none"],
            },
            *self.guesses(done),
        ]

    def writes(self, done: StepDone, positions: np.ndarray, texts: list[str]) -> list[list]:
        """What a step wrote: position, text, confidence, and candidates with their probabilities;
        without the last two where an edit wrote. texts (T): of the canvas after the step."""
        p, by_hand, out = self.run["prompt_length"], self.edited(done.index), []
        for at in positions:
            g, top, sure = int(at) - p, [], None
            if at not in by_hand:
                known = zip(*done.candidates.get(g, ((), ())), strict=True)
                top = [[self.text(int(i)), _short(share)] for i, share in known if share > 0]
                sure = _short(done.confidence[g]) if np.isfinite(done.confidence[g]) else None
            out.append([int(at), texts[at], sure, top])
        return out

    def guesses(self, done: StepDone) -> list[dict]:
        """The event with the likeliest tokens of what the step left masked, where they are new; []
        if they are not. See `Events`."""
        p, mask_id = self.run["prompt_length"], self.run["shape"]["mask_id"]
        tops = []
        for g in np.flatnonzero(done.after[p:] == mask_id).tolist():
            known = zip(*done.candidates.get(g, ((), ())), strict=True)
            top = [(int(i), float(np.float16(share))) for i, share in known]  # as a trace has it
            top = [(i, share) for i, share in top if share >= LEAST_SHARE]
            coarse = tuple((i, round(share / FINEST)) for i, share in top)
            if not top or self.guessed.get(g) == coarse:
                continue
            self.guessed[g] = coarse
            tops.append([p + g, [[self.text(i), round(share, 2)] for i, share in top]])
        return [{"k": "guesses", "run": self.key, "s": done.index, "g": tops}] if tops else []

    def edited(self, step: int) -> set[int]:
        """Positions that an edit changes after this step."""
        edits = (e for e in self.run.get("edits", ()) if e["step"] == step)
        return {int(at) for e in edits for at in e["tokens"]}

    def truth(self, look: Look) -> dict:
        """What an exact pass found for one step; follows that step's rec."""
        return {
            "k": "truth",
            "run": self.key,
            "s": look.step,
            "kd": plane(planes.DRIFT.codes_or_none(look.k_drift)),
            "vd": plane(planes.DRIFT.codes_or_none(look.v_drift)),
            "kl": plane(planes.DIVERGENCE.codes_or_none(look.kl)),
            "flips": list(look.flips),
            "oracle": list(look.oracle),
            "recall": look.recall,
        }


def policy_title(policy: str) -> str:
    """What a cache policy is called where there is room for words; its key if it is not known."""
    known = {one["name"]: one["paper"] for one in policies()}
    return title(known.get(policy, policy))


def _short(value) -> float:
    """Four significant digits: shorter than the full number, finer than a screen shows."""
    return float(f"{float(value):.4g}")


def trace_events(
    trace: Trace,
    key: str,
    stored: bool = False,
    looks: Iterable[Look] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    **place,
) -> list[dict]:
    """Every event of a finished run of one row. A trace of an earlier version keeps the candidates
    of the last write of a position alone; an earlier write comes without candidates.

    looks: of `probes.Truth`, for the steps that have one. decode: of the model's tokenizer, for
    characters of several tokens; a trace alone knows the text of single ones. place: board, lane,
    name, branch of `Events`."""
    by_layer = trace.parts is not None
    looked = {look.step: look for look in looks or ()}
    events = Events(key, trace.run, by_layer, trace.text_of, decode, truth=bool(looked), **place)
    has_rollout = not np.isnan(trace.rollout).all()
    out = [events.start(trace.tokens[0], has_rollout, stored, len(trace.seconds))]
    for s in range(len(trace.seconds)):
        out += events.step(step_of(trace, s, has_rollout))
        out += [events.truth(looked[s])] if s in looked else []
    return [*out, ended(key, *ending(trace))]


def step_of(trace: Trace, s: int, has_rollout: bool) -> StepDone:
    """A step of a finished run of one row."""
    written = np.flatnonzero(trace.step_of_token == s)
    return StepDone(
        index=s,
        before=trace.tokens[s],
        after=trace.tokens[s + 1],
        candidates=trace.guesses(s)
        | {int(g): (trace.candidates[g], trace.candidate_confidence[g]) for g in written},
        confidence=trace.confidence[s],
        density=trace.density[s],
        rollout=trace.rollout[s] if has_rollout else None,
        why=trace.why[s],
        rows=int(trace.recomputed[s].sum()),
        parts=None if trace.parts is None else trace.parts[s],
        work=trace.work[s],
        predicted=int(trace.predicted[s]),
        seconds=float(trace.seconds[s]),
    )


def ending(trace: Trace) -> tuple[str, str]:
    """Status and note for the end of a run of one row."""
    ids, shape = trace.tokens[-1, trace.prompt_length :], trace.run["shape"]
    masks = int((ids == shape["mask_id"]).sum())
    if not masks:
        return "done", ""
    ends = np.flatnonzero(ids == shape["eos_id"])
    if trace.run["stop_at_eos"] and len(ends) and (ids[: ends[0]] != shape["mask_id"]).all():
        return "done", f"The end token is reached; masks after it, not needed: {masks}."
    return "stopped", f"Masks left: {masks}."


def decoder_of(tokenizer: Any) -> Callable[[list[int]], str] | None:
    return tokenizer.decode if tokenizer else None


class LiveEvents:
    """Events of a run while it is made, one row; texts through the run's own tokenizer.

    place: board, lane, name, branch, truth of `Events`.
    """

    def __init__(self, key: str, step: Step, **place):
        self.run: Run = step.run
        self.texts: dict[int, str] = {}
        settings, by_layer = step.run.settings(), step.parts is not None
        decode = decoder_of(step.run.tokenizer)
        self.events = Events(key, settings, by_layer, self.text, decode, **place)
        self.canvas, self.has_rollout = step.before, step.rollout is not None
        self.written, self.blank = 0, int(step.before.masked.sum())  # answer positions, of these

    def text(self, token: int) -> str:
        if token not in self.texts:
            tokenizer: Any = self.run.tokenizer
            self.texts[token] = tokenizer.decode([token]) if tokenizer else f"<{token}>"
        return self.texts[token]

    def start(self) -> dict:
        return self.events.start(self.canvas.tokens[0].cpu().numpy(), self.has_rollout)

    def step(self, step: Step) -> list[dict]:
        p = self.run.prompt_length
        self.written = max(0, self.blank - int(step.after.masked.sum()))
        ids, shares = step.likeliest
        top, share = ids[0].cpu().numpy(), shares[0].float().cpu().numpy()
        target = step.rows.target[0].tolist()
        done = StepDone(
            index=step.index,
            before=step.before.tokens[0].cpu().numpy(),
            after=step.tokens[0].cpu().numpy(),
            # none for what is written without having been computed
            candidates={t - p: (top[q], share[q]) for q, t in enumerate(target) if t >= p},
            confidence=step.confidence[0, p:].float().cpu().numpy(),
            density=density_of(step)[0, p:].cpu().numpy(),
            rollout=None if step.rollout is None else step.rollout[0].float().cpu().numpy(),
            why=step.why[0].cpu().numpy(),
            rows=int(step.recomputed[0].sum()),
            parts=None if step.parts is None else step.parts[0].cpu().numpy(),
            work=step.work[0].cpu().numpy(),
            predicted=int(step.predicted[0]),
            seconds=step.seconds,
        )
        return self.events.step(done)

    def truth(self, look: Look) -> dict:
        return self.events.truth(look)


def map_payload(rollout: np.ndarray, prompt_length: int) -> dict:
    """A T x T map for the stage: summed down to n x n, cell i from edges[i] up to the next; shade
    is the root of the share of the largest cell; `largest`: that share."""
    length = len(rollout)
    n = min(length, LARGEST_MAP)
    edges = np.arange(n + 1) * length // n
    pooled = np.add.reduceat(np.add.reduceat(rollout, edges[:-1], 0), edges[:-1], 1)
    largest = float(pooled.max(initial=1e-9))
    return {
        "n": n,
        "edges": edges.tolist(),
        "map": plane(planes.LAST * (pooled / largest) ** (1 / planes.MAP_ROOT)),
        "prompt": prompt_length,
        "largest": _short(largest),
    }
