"""The certainty prior without its parameter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Canvas
from d2cache.decoders.confidence import Confidence
from d2cache.registry import knob

RECENT = 16  # writes whose spread is looked at


@dataclass
class Adaptive(Confidence, key="adaptive"):
    """Self-set prior (after d2Cache, arXiv 2509.23094): a certainty prior that finds its width.

    Confidence x certainty density, as the `confidence` decoder, with sigma taken from the run: the
    spread (standard deviation) of the positions of the last 16 writes, between 1 and 40. A run
    that goes on where it was narrows its window, one that works at several places widens it.
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
