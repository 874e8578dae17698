"""Slow steps find a stable stretch, fast steps write it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.model import Model
from d2cache.registry import knob

NOWHERE = -10  # left of every position, and not close to the first


@dataclass
class SlowFast(Decoder, key="slowfast"):
    """SlowFast Sampling (arXiv 2506.10848): explore slowly, then write a stable stretch fast.

    Slow: write the best `tokens_per_step`, or all candidates with at least confidence `threshold`
    if there are more, and note the last position whose confidence is above `low`. Once that end
    has settled (variance of the last two below 1), or after `cycles` slow steps, turn fast. Fast:
    up to that end, write all candidates with at least confidence `threshold`, or else the best;
    when no candidate is left before the end, turn slow again. The numbers are the paper's; its
    code has low 0.3, 6 cycles, 0.9. The paper also reuses logits beyond the end; here that is left
    to the cache policy.
    """

    threshold: float = knob(0.85, 0.0, 1.0, "confidence from which a candidate is written at once")
    low: float = knob(0.1, 0.0, 1.0, "confidence above which a position counts as in sight")
    cycles: int = knob(8, 1, 64, "largest number of slow steps in a row")

    def begin(self, model: Model, canvas: Canvas) -> None:
        zero = torch.zeros_like(canvas.start)
        self.end = zero + NOWHERE  # (B,) where the fast stretch ends
        self.seen = zero + 2 * NOWHERE  # (B,) the last position in sight, one step ago
        self.slow = zero  # (B,) slow steps in a row

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        eligible = canvas.eligible & (candidates.confidence > -torch.inf)
        stretch = eligible & (canvas.position <= self.end[:, None])
        fast = stretch.any(1)
        sight = eligible & (candidates.confidence > self.low)
        end = torch.where(sight, canvas.position, NOWHERE).amax(1)
        self.slow = torch.where(fast, 0, self.slow + 1)
        # two values have variance below 1 if they are less than 2 apart
        settled = ((end - self.seen).abs() < 2) & (self.slow > 1)
        settled = ~fast & (settled | (self.slow >= self.cycles))
        self.end = torch.where(fast, self.end, torch.where(settled, end, NOWHERE))
        self.seen, self.slow = end, torch.where(settled, 0, self.slow)
        among = torch.where(fast[:, None], stretch, eligible)
        sure = among & (candidates.confidence >= self.threshold)
        best = ops.top_k_mask(self.score(candidates) + 2 * sure, among, self.tokens_per_step)
        return sure | best
