"""As many as their joint entropy allows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class EntropyBound(Decoder, key="eb"):
    """EB-Sampler (arXiv 2505.24857): write as many as an entropy bound allows.

    The first n are written while the sum of their entropies less the largest stays within gamma.
    Candidates are taken by falling confidence (with the prior, when sigma > 0); what n of them
    may tell about each other is at most the sum of their entropies without the largest one, in
    nats. `tokens_per_step` are written at least. Each row of a batch has its own largest: the
    public code of d2Cache takes it over the batch.
    """

    gamma: float = knob(0.001, 0.0, 10.0, "bound on the joint entropy, in nats")

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        score = self.score(candidates).masked_fill(~canvas.eligible, -torch.inf)
        order = score.sort(dim=1, descending=True, stable=True).indices
        entropy = candidates.plane(ops.entropy(candidates.logits), torch.inf)
        entropy = entropy.masked_fill(~canvas.eligible, torch.inf).gather(1, order)
        bound = entropy.cumsum(1) - entropy.cummax(1).values
        # inf - inf is no number and no bound: nothing from there on
        sure = torch.zeros_like(canvas.masked).scatter(1, order, bound <= self.gamma)
        return self.at_least(canvas, candidates, sure & canvas.eligible)
