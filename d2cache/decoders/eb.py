"""As many candidates as their joint entropy allows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class EntropyBound(Decoder, key="eb"):
    """EB-Sampler (arXiv 2505.24857): write as many candidates as an entropy bound allows.

    The first n are written while the sum of their entropies, less the largest, is at most gamma.
    Candidates are sorted by falling confidence (with the prior, if sigma > 0). The sum of their
    entropies without the largest, in nats, bounds how much n candidates can depend on each other.
    At least `tokens_per_step` are written. The largest is taken in each row of a batch; the public
    code of d2Cache takes it over the whole batch.
    """

    gamma: float = knob(0.001, 0.0, 10.0, "bound on the joint entropy, in nats")

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        score = self.score(candidates).masked_fill(~canvas.eligible, -torch.inf)
        order = score.sort(dim=1, descending=True, stable=True).indices
        entropy = candidates.plane(ops.entropy(candidates.logits), torch.inf)
        entropy = entropy.masked_fill(~canvas.eligible, torch.inf).gather(1, order)
        bound = entropy.cumsum(1) - entropy.cummax(1).values
        # inf - inf is NaN, which is not within the bound: nothing passes from there on
        sure = torch.zeros_like(canvas.masked).scatter(1, order, bound <= self.gamma)
        return self.at_least(canvas, candidates, sure & canvas.eligible)
