"""Trace -> tidy DataFrames with documented columns and units, each of a run of one row."""

from __future__ import annotations

import numpy as np
import pandas as pd

from d2cache import ModelConfig, Part, Trace, Why

PARTS = {"key": Part.KEY, "value": Part.VALUE, "attention": Part.ATTENTION, "mlp": Part.MLP}


def gflops(trace: Trace) -> np.ndarray:
    """Billions of floating-point operations of each step, (S,), see `ModelConfig.flops`."""
    keys, values, attention, mlp, scores = trace.work.T
    config = ModelConfig(**trace.run["shape"])
    return config.flops(keys, values, attention, mlp, scores, trace.predicted) / 1e9


def steps(trace: Trace) -> pd.DataFrame:
    """One line per denoising step.

    step (from 0), milliseconds (host time), rows (recomputed, mean over the layers), hit_rate
    (share of the canvas that was not recomputed, 0 to 1), written (tokens), masked_again (tokens
    that the decoder masked again), predicted (rows through the LM head), gflops
    (`ModelConfig.flops` / 1e9), and a column why_NAME per reason of `d2cache.Why`: rows recomputed
    for that reason (a row may have several).
    """
    config = ModelConfig(**trace.run["shape"])
    rows, length = trace.recomputed_by_layer.mean(1).sum(1), trace.tokens.shape[1]
    changed = trace.tokens[1:] != trace.tokens[:-1]
    masked = trace.tokens[1:] == config.mask_id
    frame = pd.DataFrame(
        {
            "step": np.arange(len(rows)),
            "milliseconds": 1e3 * trace.seconds,
            "rows": rows,
            "hit_rate": 1 - rows / length,
            "written": (changed & ~masked).sum(1),
            "masked_again": (changed & masked).sum(1),
            "predicted": trace.predicted,
            "gflops": gflops(trace),
        }
    )
    for reason in Why:  # without aliases
        frame[f"why_{str(reason.name).lower()}"] = ((trace.why & int(reason)) > 0).sum(1)
    return frame


def layers(trace: Trace) -> pd.DataFrame:
    """One line per step and layer: how much was recomputed, and how old the rest is.

    step and layer (from 0), rows (recomputed there), evicted (positions left out of its attention),
    and age_key, age_value, age_attention, age_mlp: mean over the canvas of the steps since that
    part of a position was last computed there (0: at this step).
    """
    rows = trace.recomputed_by_layer.sum(2)
    steps, count = rows.shape
    none = np.zeros_like(rows)
    evicted = none if trace.parts is None else ((trace.parts & Part.EVICTED) > 0).sum(2)
    frame = pd.DataFrame(
        {
            "step": np.repeat(np.arange(steps), count),
            "layer": np.tile(np.arange(count), steps),
            "rows": rows.ravel(),
            "evicted": evicted.ravel(),
        }
    )
    for name, part in PARTS.items():
        frame[f"age_{name}"] = trace.age(part).mean(2).ravel()
    return frame


def tokens(trace: Trace) -> pd.DataFrame:
    """One line per answer position that is written in the end, in the order of writing.

    position (from 0 in the answer), token (text), step (the last that wrote it), confidence and
    density (at that step, 0 to 1; confidence NaN where an edit wrote and nothing was predicted),
    recomputed (number of steps that recomputed it), distance (in positions, to the nearest token
    written by the previous step that wrote any; NaN for the first step).
    """
    written = trace.tokens[-1, trace.prompt_length :] != trace.run["shape"]["mask_id"]
    at = np.flatnonzero((trace.step_of_token >= 0) & written)
    at = at[np.lexsort((at, trace.step_of_token[at]))]
    step = trace.step_of_token[at]
    ids = trace.tokens[-1, trace.prompt_length + at]
    sure = trace.confidence[step, at]
    frame = pd.DataFrame(
        {
            "position": at,
            "token": [trace.text_of(int(i)) for i in ids],
            "step": step,
            "confidence": np.where(np.isfinite(sure), sure, np.nan),
            "density": trace.density[step, at],
            "recomputed": trace.recomputed[:, trace.prompt_length + at].sum(0),
        }
    )
    distance, before = np.full(len(at), np.nan), None
    for each in np.unique(step):
        now = step == each
        if before is not None:
            distance[now] = np.abs(at[now][:, None] - before).min(1)
        before = at[now]
    frame["distance"] = distance
    return frame


def premature(trace: Trace) -> pd.DataFrame:
    """One line per step and answer position that it predicted: how sure, and how early.

    step (from 0), position (from 0 in the answer), confidence (of the candidate, 0 to 1), written
    (True where this step wrote it), ahead (positions on its left that were masked before the step:
    a sure candidate with many of them is sure too early), tail (position / last position, 0 to 1).
    """
    p, mask_id = trace.prompt_length, trace.run["shape"]["mask_id"]
    masked = trace.tokens[:, p:] == mask_id
    step, at = np.nonzero(np.isfinite(trace.confidence))
    ahead = masked.cumsum(1) - masked
    return pd.DataFrame(
        {
            "step": step,
            "position": at,
            "confidence": trace.confidence[step, at],
            "written": masked[step, at] & ~masked[step + 1, at],
            "ahead": ahead[step, at],
            "tail": at / max(masked.shape[1] - 1, 1),
        }
    )
