"""The certainty prior with a width taken from the run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Canvas
from d2cache.decoders.confidence import Confidence
from d2cache.registry import knob

RECENT = 16  # last writes, whose spread sets the width


@dataclass
class Adaptive(Confidence, key="adaptive"):
    """Self-set prior (after d2Cache, arXiv 2509.23094): a certainty prior that sets its own width.

    Confidence x certainty density, like the `confidence` decoder, but sigma follows the run: it is
    the standard deviation of the positions of the last 16 writes, between 1 and 40. A run that
    keeps writing in one place narrows its prior; one that works in several places widens it.
    """

    sigma: float = knob(10.0, 1.0, 40.0, "width of the prior before the first writes, in positions")

    def begin(self, model, canvas):
        self.before = canvas
        self.when = torch.full_like(canvas.tokens, -1)  # step that wrote each position

    def prior(self, canvas: Canvas, as_shipped: bool = False) -> Tensor:
        changed = canvas.tokens != self.before.tokens
        self.before = canvas
        self.when = torch.where(changed, canvas.step, self.when)
        return canvas.density(self.width(canvas), self.as_shipped or as_shipped)

    def width(self, canvas: Canvas) -> Tensor:
        """(B,1) float64: sigma of each row."""
        recent = ops.top_k_mask(self.when.double(), self.when >= 0, RECENT)
        count = recent.sum(1, keepdim=True)
        at = canvas.position.double()
        mean = (recent * at).sum(1, keepdim=True) / count.clamp_min(1)
        spread = (recent * (at - mean) ** 2).sum(1, keepdim=True) / count.clamp_min(1)
        return torch.where(count < 2, self.sigma, spread.sqrt().clamp(1, ops.WIDEST))
