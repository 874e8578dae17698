"""Steps and traces -> the compact events that the page's stage draws. One format for both."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable

import numpy as np

from analysis.page import planes
from analysis.page.planes import plane
from analysis.probes import Look
from d2cache import ModelConfig, Part, Step, Trace
from d2cache.canvas import Run
from d2cache.trace import Totals, answer_ids, density_of, density_sigma

LARGEST_MAP = 256  # a T x T map is averaged down to this many rows before it is sent


def message(events: list[dict]) -> str:
    """What the stage receives: one line of JSON, with the moment it was made (ms, Unix time)."""
    stamp = round(1e3 * time.time(), 1)
    return json.dumps({"at": stamp, "events": events}, separators=(",", ":"), allow_nan=False)


def link(board: str, query: str) -> dict:
    """The event with the link that makes a board again (`analysis.page.query`); "": none does."""
    return {"k": "link", "board": board, "query": query}


class Events:
    """The events of one run, step by step: start, then rec and totals for each step (and truth,
    where a `probes.Truth` looked at it), then end.

    Where the run stands: board, a text that the runs shown side by side share (default: the run's
    own key, a board of its own); lane, its place there from 0; name, a short label (default: the
    policy); branch, {lane, step, says} of the run that this one left, or None; truth, whether
    truth events will come.

    A rec holds rows (recomputed positions, mean over the layers), out (evicted ones, likewise),
    w (what was written: position, text, confidence, candidates; without those two where an edit
    wrote), m (positions masked again), and planes, base64 of uint8 on the scales of
    `analysis.page.planes`: confidence c (G), 0 where nothing was predicted; density d (G); rollout
    r (T); why y (T), bits of `d2cache.Why`. a, where the policy decides layer by layer:
    bits of `d2cache.Part`, layer after layer, as base64 of uint8 pairs (value, times 1 to 255).
    At most about 4/3 (2 G + 2 T) bytes a step, or 4/3 (2 G + T) and 8/3 a run of equal parts: no
    policy has both r and a.

    A truth holds planes of what the step read, see `probes.Look`: kd, vd (T), drift; kl (G), 0
    also where nothing was predicted; flips and oracle, canvas positions; recall or null.
    """

    def __init__(
        self,
        key: str,
        run: dict,
        by_layer: bool,
        text: Callable[[int], str],
        *,
        board: str | None = None,
        lane: int = 0,
        name: str | None = None,
        branch: dict | None = None,
        truth: bool = False,
    ):
        self.key, self.run, self.text, self.seq = key, run, text, 0
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

    def start(self, prompt: np.ndarray, rollout: bool, stored: bool = False, steps: int = 0):
        run = self.run
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
            "decoder": run["decoder"],
            "block_length": run["block_length"],
            "knobs": {"policy": run["policy_knobs"], "decoder": run["decoder_knobs"]},
            "sigma": density_sigma(run["policy_knobs"], run["decoder_knobs"]),
            "prompt": [self.text(int(i)) for i in prompt],
            "rollout": rollout,
            "stored": stored,
            "eos": [self.text(run["shape"]["eos_id"])],
            "mask": run["shape"]["mask_id"],
            "steps": steps,
            **self.place,
        }

    def step(
        self,
        index: int,
        before: np.ndarray,
        after: np.ndarray,
        candidates: dict,
        confidence: np.ndarray,
        density: np.ndarray,
        rollout: np.ndarray | None,
        why: np.ndarray,
        rows: int,
        parts: np.ndarray | None,
        work: np.ndarray,
        predicted: int,
        seconds: float,
    ) -> list[dict]:
        """rec and totals of one step. before, after (T,) ids; candidates: answer position ->
        (ids, their probabilities), where known; rows: how many were recomputed; parts (L,T):
        in which layers, where these differ; work, predicted, seconds as `Totals.add` takes them."""
        p, mask_id = self.run["prompt_length"], self.run["shape"]["mask_id"]
        changed, masked, seen = after != before, after == mask_id, np.isfinite(confidence)
        evicted = 0
        if parts is not None:
            rows = ((parts & Part.MLP) > 0).sum() / self.layers
            evicted = ((parts & Part.EVICTED) > 0).sum() / self.layers
        was_masked = int((before[p:] == mask_id).sum())
        self.totals.add(rows, work, predicted, was_masked, int(changed.sum()), seconds)
        totals = self.totals.report(len(answer_ids(after[p:], self.run["shape"])))
        coded = {
            "c": np.where(seen, planes.CONFIDENCE.codes(np.where(seen, confidence, 0)), 0),
            "d": planes.DENSITY.codes(density),
            "r": None if rollout is None else planes.ROLLOUT.codes(rollout),
            "y": why,
        }
        writes, by_hand = [], self.edited(index)
        for at in np.flatnonzero(changed & ~masked):
            top, g = (), at - p
            if at not in by_hand:
                top = zip(*candidates.get(int(g), ((), ())), strict=True)
            top = [[self.text(int(token)), _short(share)] for token, share in top if share > 0]
            sure = _short(confidence[g]) if at not in by_hand and seen[g] else None
            writes.append([int(at), self.text(int(after[at])), sure, top])
        record = {
            "k": "rec",
            "run": self.key,
            "seq": self.seq,
            "s": index,
            "ms": round(1e3 * seconds, 2),
            "rows": _short(rows),
            "out": _short(evicted),
            "w": writes,
            "m": np.flatnonzero(changed & masked).tolist(),
            **{name: plane(values) for name, values in coded.items()},
            "a": planes.run_lengths(parts),
        }
        self.seq += 1
        return [
            record,
            {
                "k": "totals",
                "run": self.key,
                "s": index,
                "tokens": totals["answer_tokens"],
                "seconds": round(totals["seconds"], 4),
                "tps": _short(totals["tokens_per_second"]),
                "hit_rate": _short(totals["hit_rate"]),
                "flops": totals["flops"],
                "flops_none": totals["flops_none"],
            },
        ]

    def edited(self, step: int) -> set[int]:
        """Positions that an edit changed after this step."""
        edits = (e for e in self.run.get("edits", ()) if e["step"] == step)
        return {int(at) for e in edits for at in e["tokens"]}

    def truth(self, look: Look) -> dict:
        """What an exact pass says of one step; comes after that step's rec."""
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

    def end(self, status: str, note: str = "") -> dict:
        return {"k": "end", "run": self.key, "status": status, "note": note}


def _short(value) -> float:
    """Four significant digits: shorter than a float's full text, finer than a screen shows."""
    return float(f"{float(value):.4g}")


def trace_events(
    trace: Trace, key: str, stored: bool = False, looks: Iterable[Look] | None = None, **place
) -> list[dict]:
    """Every event of a finished run of one row. A trace keeps the candidates of the last write
    of a position; an earlier one, masked again later, comes without.

    looks: of `probes.Truth`, for the steps that have one. place: board, lane, name, branch of
    `Events`."""
    p, by_layer = trace.prompt_length, trace.parts is not None
    looks = {look.step: look for look in looks or ()}
    events = Events(key, trace.run, by_layer, trace.text_of, truth=bool(looks), **place)
    has_rollout = not np.isnan(trace.rollout).all()
    out = [events.start(trace.tokens[0, :p], has_rollout, stored, len(trace.seconds))]
    for s in range(len(trace.seconds)):
        candidates = {
            int(g): (trace.candidates[g], trace.candidate_confidence[g])
            for g in np.flatnonzero(trace.step_of_token == s)
        }
        out += events.step(
            s,
            trace.tokens[s],
            trace.tokens[s + 1],
            candidates,
            trace.confidence[s],
            trace.density[s],
            trace.rollout[s] if has_rollout else None,
            trace.why[s],
            int(trace.recomputed[s].sum()),
            trace.parts[s] if by_layer else None,
            trace.work[s],
            int(trace.predicted[s]),
            float(trace.seconds[s]),
        )
        out += [events.truth(looks[s])] if s in looks else []
    return [*out, events.end(*ending(trace))]


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


class LiveEvents:
    """Events of a run while it is made, one row; texts through the run's own tokenizer.

    place: board, lane, name, branch, truth of `Events`.
    """

    def __init__(self, key: str, step: Step, **place):
        self.run: Run = step.run
        self.texts: dict[int, str] = {}
        self.events = Events(key, step.run.settings(), step.parts is not None, self.text, **place)
        self.canvas, self.has_rollout = step.before, step.rollout is not None

    def text(self, token: int) -> str:
        if token not in self.texts:
            tokenizer = self.run.tokenizer
            self.texts[token] = tokenizer.decode([token]) if tokenizer else f"<{token}>"
        return self.texts[token]

    def start(self) -> dict:
        prompt = self.canvas.tokens[0, : self.run.prompt_length].cpu().numpy()
        return self.events.start(prompt, self.has_rollout)

    def step(self, step: Step) -> list[dict]:
        p = self.run.prompt_length
        target = step.rows.target[0].cpu().numpy()
        top, share = step.likeliest
        top, share = top[0].cpu().numpy(), share[0].float().cpu().numpy()
        # none for what is written without having been computed
        candidates = {int(t) - p: (top[q], share[q]) for q, t in enumerate(target)}
        return self.events.step(
            step.index,
            step.before.tokens[0].cpu().numpy(),
            step.tokens[0].cpu().numpy(),
            candidates,
            step.confidence[0, p:].float().cpu().numpy(),
            density_of(step)[0, p:].cpu().numpy(),
            None if step.rollout is None else step.rollout[0].float().cpu().numpy(),
            step.why[0].cpu().numpy(),
            int(step.recomputed[0].sum()),
            None if step.parts is None else step.parts[0].cpu().numpy(),
            step.work[0].cpu().numpy(),
            int(step.predicted[0]),
            step.seconds,
        )

    def truth(self, look: Look) -> dict:
        return self.events.truth(look)

    def end(self, status: str, note: str) -> dict:
        return self.events.end(status, note)

    def pause(self) -> dict:
        return {"k": "pause", "run": self.events.key}


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
