"""Candidates whose distribution has stopped changing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.model import Model
from d2cache.registry import knob


@dataclass
class KLAdaptive(Decoder, key="klass"):
    """KLASS (arXiv 2511.05664): write what is confident and has been stable for some steps.

    A candidate is written if KL(p_t || p_t-1) of its distribution was below `kl` in the last
    `history` steps that computed it, and its confidence is above `threshold`. If these are fewer
    than `tokens_per_step`, the best of the rest are added. A position's first distribution has no
    predecessor and counts as changed. Needs memory for one distribution per position, (B,T,V).
    """

    kl: float = knob(0.01, 0.0, 10.0, "largest change of a stable distribution, in nats")
    history: int = knob(2, 1, 16, "steps for which a candidate must have been stable")
    threshold: float = knob(0.9, 0.0, 1.0, "confidence above which a stable candidate is written")

    def begin(self, model: Model, canvas: Canvas) -> None:
        self.last: Tensor | None = None  # (B,T,V) last log-probabilities of each position
        self.stable = torch.zeros_like(canvas.tokens)  # steps in a row below kl

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        log = candidates.logits.log_softmax(-1)
        at = candidates.target[..., None].expand_as(log)
        if self.last is None:
            self.last = torch.full(
                (*canvas.tokens.shape, log.shape[-1]), torch.nan, dtype=log.dtype, device=log.device
            )
        # p = 0 adds nothing, whatever it was before: 0 * (-inf - -inf) would be NaN
        change = torch.where(log > -torch.inf, log.exp() * (log - self.last.gather(1, at)), 0)
        self.last.scatter_(1, at, log)
        # rounding may make a divergence negative; with kl 0 no candidate may count as stable
        still = candidates.plane(change.sum(-1).clamp_min(0), torch.nan) < self.kl
        self.stable = torch.where(candidates.computed, (self.stable + 1) * still, self.stable)
        sure = (self.stable >= self.history) & (candidates.confidence > self.threshold)
        return self.at_least(canvas, candidates, sure & canvas.eligible)
