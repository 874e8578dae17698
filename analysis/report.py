"""The figures of runs as the page shows them: each with its caption and its data."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis import figures, metrics
from d2cache import Trace

MOST_STEPS = 128  # along each side of the map of steps by steps


def run_figures(trace: Trace, rollouts: np.ndarray | None = None) -> list[dict]:
    """The figures of a run: dicts of key, title, caption, figure (plotly's JSON) and csv.

    The caption says how to read the figure and what is so in this run. csv: the data, with steps
    and positions from 1. rollouts: (S,T) column sums of the exact rollout, as
    `probes.rollout_columns` makes them; without them that figure is left out.
    """
    steps, tokens = metrics.steps(trace), metrics.tokens(trace)
    counted = _from_one(tokens)
    certainty, sure = certainty_of(trace), sure_of(trace)
    order = figures.decode_order(tokens.assign(position=counted["position"]))
    distances = counted[["step", "position", "distance"]]
    confidences = counted[["step", "position", "token", "confidence", "density"]]
    entries = [
        _entry("work", figures.work_per_step(steps), _work_caption(steps), _from_one(steps)),
        _entry("order", order, _order_caption(counted), counted),
        _entry("distance", figures.write_distance(tokens), _distance_caption(tokens), distances),
        _entry(
            "confidence",
            figures.confidence_over_time(tokens),
            _confidence_caption(counted),
            confidences,
        ),
        _entry("tail", figures.tail_confidence(certainty), _tail_caption(certainty), certainty),
        _entry("sure", figures.sure_before_written(sure), _sure_caption(sure), sure),
    ]
    if rollouts is not None:
        entries.append(_rollout_entry(rollouts))
    return entries


def sigma_figure(traces: dict[float, Trace]) -> dict:
    """Decode order of runs that differ only in the sigma of the certainty prior (0: no prior).

    A dict like those of `run_figures`.
    """
    tables = {sigma: _from_one(metrics.tokens(trace)) for sigma, trace in traces.items()}
    means = ", ".join(f"{_mean_distance(t):.1f} at σ = {sigma:g}" for sigma, t in tables.items())
    caption = (
        "A straight rising line is left to right; a cloud is any order. The certainty prior "
        f"favours positions near known text. Mean distance between writes, in positions: {means}."
    )
    parts = [t[["step", "position", "token"]].assign(sigma=s) for s, t in tables.items()]
    return _entry("sigmas", figures.decode_orders(tables), caption, pd.concat(parts))


def _rollout_entry(rollouts: np.ndarray) -> dict:
    change, steps = change_of(np.asarray(rollouts))
    table = pd.DataFrame(change, columns=[f"step {step}" for step in steps])
    table.insert(0, "step", steps)
    figure = figures.rollout_change(change, steps)
    return _entry("rollout", figure, _rollout_caption(change), table)


def _entry(key: str, figure: go.Figure, caption: str, data: pd.DataFrame) -> dict:
    return {
        "key": key,
        "title": figure.layout.title.text,
        "caption": caption,
        "figure": json.loads(figure.to_json()),
        "csv": csv(data),
    }


# Tables of a run.


def certainty_of(trace: Trace) -> pd.DataFrame:
    """How sure the guesses are at up to five steps of the first half of a run.

    step and position (from 1), confidence (NaN where nothing was predicted).
    """
    count, length = trace.confidence.shape
    at = np.unique(np.round((count - 1) * np.array([0, 0.05, 0.15, 0.3, 0.5])).astype(int))
    values = np.where(np.isfinite(trace.confidence[at]), trace.confidence[at], np.nan)
    return pd.DataFrame(
        {
            "step": np.repeat(at + 1, length),
            "position": np.tile(np.arange(length) + 1, len(at)),
            "confidence": values.ravel(),
        }
    )


def sure_of(trace: Trace) -> pd.DataFrame:
    """One line per written answer position, in the order of writing.

    position, token, end (whether it is the end token), sure (the first step whose guess there had
    confidence SURE or more, NaN if none), written (the step); steps and positions from 1.
    """
    tokens = _from_one(metrics.tokens(trace))
    at = tokens["position"].to_numpy() - 1
    seen = trace.confidence[:, at] >= figures.SURE
    first = np.where(seen.any(0), seen.argmax(0) + 1.0, np.nan)
    ids = trace.tokens[-1, trace.prompt_length + at]
    return pd.DataFrame(
        {
            "position": tokens["position"],
            "token": tokens["token"],
            "end": ids == trace.run["shape"]["eos_id"],
            "sure": first,
            "written": tokens["step"],
        }
    )


def change_of(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the attention mass moves between any two steps.

    columns (S,T), what each position receives at each step -> change (N,N) and steps (N,) from 1,
    every n-th of a long run. change: half the sum of |difference| over the whole sum, which is the
    share of the mass that is at another position, 0 to 1.
    """
    every = max(1, -(-len(columns) // MOST_STEPS))
    steps = np.arange(0, len(columns), every)
    part = np.asarray(columns, np.float64)[steps]
    part = part / part.sum(1, keepdims=True)
    change = np.stack([np.abs(part - row).sum(1) / 2 for row in part])
    return change, steps + 1


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV, numbers with at most six significant digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _from_one(frame: pd.DataFrame) -> pd.DataFrame:
    """Steps and positions counted from 1, as on the page."""
    counted = [name for name in ("step", "position") if name in frame]
    return frame.assign(**{name: frame[name] + 1 for name in counted})


# Captions.


def _mean_distance(tokens: pd.DataFrame) -> float:
    """Mean distance between writes; 0 for a run of one step."""
    mean = tokens["distance"].mean()
    return 0.0 if np.isnan(mean) else float(mean)


def _work_caption(steps: pd.DataFrame) -> str:
    slow = steps.loc[steps["milliseconds"].idxmax()]
    return (
        "Solid: the share of positions taken from the cache. Dotted: the time the step took here. "
        f"This run reused {steps['hit_rate'].mean():.0%} on average; its slowest step, "
        f"{int(slow['step']) + 1}, took {slow['milliseconds']:.0f} ms."
    )


def _order_caption(tokens: pd.DataFrame) -> str:
    if len(tokens) < 2 or tokens["step"].nunique() < 2:
        return "Each dot is a write; this run wrote everything in one step."
    rank = float(tokens["step"].rank().corr(tokens["position"].rank()))
    if abs(rank) <= 0.7:
        direction = "in no particular direction"
    else:
        direction = "left to right" if rank > 0 else "right to left"
    return (
        "Each dot is a write: when, where, and how confident. A straight rising line is left to "
        f"right. This run goes {direction} (rank correlation of step and position {rank:.2f})."
    )


def _distance_caption(tokens: pd.DataFrame) -> str:
    bars = "Bars count the writes by their distance from the previous step's writes"
    known = tokens["distance"].dropna()
    if known.empty:
        return f"{bars}; this run has only one step."
    return (
        f"{bars}; the line is the share up to that distance. In this run {(known <= 10).mean():.0%}"
        f" are at most 10 positions away, {(known <= 1).mean():.0%} are right next to one."
    )


def _confidence_caption(tokens: pd.DataFrame) -> str:
    text = (
        "How confident the model was of each write, and how much text around it was known by then "
        "(certainty density)."
    )
    if tokens["confidence"].isna().all():
        return text
    low = tokens.loc[tokens["confidence"].idxmin()]
    return (
        f"{text} The least confident write was at step {int(low['step'])}, position "
        f"{int(low['position'])}: {low['confidence']:.2f}."
    )


def _tail_caption(certainty: pd.DataFrame) -> str:
    first = certainty[certainty["step"] == certainty["step"].min()].dropna()
    half = certainty["position"].max() / 2
    left, right = (
        first.loc[part, "confidence"].mean()
        for part in (first.position <= half, first.position > half)
    )
    text = (
        "Each line is one step; it breaks where nothing was predicted. Above the dotted line, a "
        "guess is called sure. "
    )
    if np.isnan([left, right]).any():
        return text + "Distant positions were not predicted in the first step."
    return text + (
        f"In the first step the mean is {left:.2f} in the left half of the answer and "
        f"{right:.2f} in the right half, where hardly anything can be known yet."
    )


def _sure_caption(sure: pd.DataFrame) -> str:
    text = (
        f"Open: the first step at which the guess had confidence {figures.SURE} or more. "
        "Filled: the step that wrote it. "
    )
    ends = sure[sure["end"]]
    if ends.empty:
        part, who = sure, "No end token was written; a token"
    else:
        part, who = ends, f"An end token ({len(ends)} of {len(sure)} writes)"
    waited = (part["written"] - part["sure"]).mean()
    if np.isnan(waited):
        return f"{text}{who} was never sure before its step."
    return (
        f"{text}{who} was sure {waited:.1f} steps before it was written, on average; a certainty "
        "prior holds back such early certainty at the tail."
    )


def _rollout_caption(change: np.ndarray) -> str:
    text = (
        "Dark where two steps attend to different positions, pale where to the same; from exact "
        "passes. A pale band along the diagonal means that neighbouring steps agree, which is what "
        "a cache relies on."
    )
    if len(change) < 3:
        return text
    near = np.diagonal(change, 1).mean()
    return (
        f"{text} Here {near:.1%} moves between neighbouring steps, {change[0, -1]:.1%} from the "
        "first to the last."
    )
