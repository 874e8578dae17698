"""Trace -> tidy DataFrames with documented columns and units."""

from __future__ import annotations

import numpy as np
import pandas as pd

from d2cache import ModelConfig, Part, Trace, Why


def steps(trace: Trace) -> pd.DataFrame:
    """One line a denoising step (a run of one row).

    step (from 0), milliseconds (host time), rows (recomputed, mean over the layers), hit_rate
    (share of the canvas that was not recomputed, 0 to 1), written (tokens), masked_again (tokens
    that a decoder doubted), predicted (rows through the LM head), gflops (`ModelConfig.flops` /
    1e9), and a column why_NAME per reason of `d2cache.Why`: rows recomputed for it (a row may have
    several).
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
            "gflops": config.flops(*trace.work.T, trace.predicted) / 1e9,
        }
    )
    for reason in Why:
        frame[f"why_{reason.name.lower()}"] = ((trace.why & int(reason)) > 0).sum(1)
    return frame


def layers(trace: Trace) -> pd.DataFrame:
    """One line a step and layer (a run of one row): how much was recomputed, how old the rest is.

    step and layer (from 0), rows (recomputed there), evicted (rows left out of its attention),
    and age_key, age_value, age_attention, age_mlp: mean over the canvas of the steps since that
    part of a row was last computed there (0: at this step).
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
    for part in (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP):
        frame[f"age_{part.name.lower()}"] = trace.age(part).mean(2).ravel()
    return frame


def tokens(trace: Trace) -> pd.DataFrame:
    """One line an answer position that is written at the end, in the order of writing.

    position (from 0 in the answer), token (text), step (that wrote it last), confidence and density
    (of that step, 0 to 1; confidence NaN where an edit wrote what was not predicted), recomputed
    (steps that recomputed it, so far as the run went), distance (positions to the nearest token
    of the last step before that wrote; NaN for the first step).
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
    for one in np.unique(step):
        now = step == one
        if before is not None:
            distance[now] = np.abs(at[now][:, None] - before).min(1)
        before = at[now]
    frame["distance"] = distance
    return frame


def premature(trace: Trace) -> pd.DataFrame:
    """One line a step and answer position that it predicted: how sure, and how much too early.

    step (from 0), position (from 0 in the answer), confidence (of the candidate, 0 to 1), written
    (True where this step wrote it), ahead (positions still masked to its left before the step: a
    sure candidate with many of them is sure before it can know), tail (position over the last one,
    0 to 1: the region).
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
