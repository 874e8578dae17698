"""Measurements that the engine need not know: made by wrapping or replacing a policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from d2cache import CachePolicy, Canvas, Model, Trace, ops
from d2cache.generate import gather_rows


@dataclass(frozen=True)
class Look:
    """What an exact full pass on the canvas before a step says of that step.

    k_drift, v_drift (T,) float32: how far the keys and values that the step's attention read lie
    from the exact ones, 0 to 2: 1 - cosine over the heads joined, mean over the layers. kl (G,)
    float32: KL(exact || cached) in nats of each prediction, NaN where none was made. flips: canvas
    positions whose likeliest token differs. oracle: the k canvas positions whose kept keys and
    values had drifted most before the step recomputed any, k as many as it recomputed. recall:
    share of those that the step did recompute; None where it recomputed every row.
    """

    step: int
    k_drift: np.ndarray
    v_drift: np.ndarray
    kl: np.ndarray
    flips: tuple[int, ...]
    oracle: tuple[int, ...]
    recall: float | None


class _KeepMaps(CachePolicy):
    """No cache, and every layer's head-averaged attention map kept."""

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.maps = []

    def attend(self, i, block, q, k, v, rows):
        out, attention = ops.attention_map(q, k, v, rows.keys)
        self.maps.append(attention)
        return block.project_out(out)


@torch.inference_mode()
def rollout_map(model: Model, trace: Trace, step: int) -> np.ndarray:
    """(T,T) float32: attention rollout of an exact full pass on the canvas before a step.

    Row i says where position i's output comes from; rows sum to 1. Dense product of
    W = (A + I) / 2 over the layers (arXiv 2005.00928). Raises IndexError for a step that is
    not in the trace.
    """
    steps = trace.seconds.size
    if not 0 <= step < steps:
        raise IndexError(f"step is {step}; this run has steps 0 to {steps - 1}")
    run = trace.run
    tokens = torch.from_numpy(trace.tokens[step][None]).to(model.device)
    canvas = Canvas(
        tokens, torch.zeros(1, dtype=torch.int64, device=model.device), run["prompt_length"],
        run["block_length"], model.config.mask_id, model.config.eos_id,
    )  # fmt: skip
    policy = _KeepMaps()
    policy.begin(model, canvas)
    plan = policy.plan(canvas)
    stuck = torch.tensor(False, device=model.device)
    rows = gather_rows(canvas, plan, model.config.shift, stuck, policy.kv.ids)
    model(canvas.tokens, rows, policy)
    eye = torch.eye(tokens.shape[1], device=model.device)
    product = eye
    for attention in policy.maps:
        product = (attention[0].float() + eye) / 2 @ product
    return product.cpu().numpy()
