"""As many candidates as are rarely wrong together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class Factor(Decoder, key="factor"):
    """Factor decoding (Fast-dLLM, arXiv 2505.22618): write n tokens if (n + 1)(1 - c_n) < factor.

    c_n is the n-th highest raw confidence: the more are written at once, the surer each must be.
    If fewer than `tokens_per_step` pass, the best of the rest are added, ranked with the prior.
    Public ports of the rule stop one short when every position passes.
    """

    factor: float = knob(1.0, 0.0, 8.0, "bound on (n + 1)(1 - confidence of the n-th)")

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        confidence = candidates.confidence.masked_fill(~canvas.eligible, -torch.inf)
        top = confidence.sort(dim=1, descending=True, stable=True)
        n = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        # the left side never falls as n grows, so those that pass are the first
        passes = (n + 1) * (1 - top.values) < self.factor
        sure = torch.zeros_like(passes).scatter(1, top.indices, passes)
        return self.at_least(canvas, candidates, sure)
