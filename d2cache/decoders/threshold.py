"""Every candidate that is confident enough."""

from dataclasses import dataclass

from torch import Tensor

from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class Threshold(Decoder, key="threshold"):
    """Confidence threshold (Fast-dLLM, arXiv 2505.22618): write all candidates at or above it.

    The raw confidence is compared, never its product with density. If fewer than
    `tokens_per_step` reach the threshold, the best of the rest are added, ranked with the prior if
    sigma > 0.
    """

    threshold: float = knob(0.9, 0.0, 1.0, "confidence from which a candidate is written")

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        sure = canvas.eligible & (candidates.confidence >= self.threshold)
        return self.at_least(canvas, candidates, sure)
