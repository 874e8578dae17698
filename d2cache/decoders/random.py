"""Any position."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class Random(Decoder, key="random"):
    """Random remasking (LLaDA, arXiv 2502.09992): write positions in an order drawn by lot.

    The order in which the model was trained to unmask, and the baseline for all others. Every
    seed gives another order, at temperature 0 too. With sigma > 0 the lots are multiplied by
    certainty density.
    """

    sigma: float = knob(0.0, 0.0, 100.0, "certainty prior: width of its Gaussian; 0 is off")
    draws: ClassVar[bool] = True

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        lots = (
            candidates.noise
            if candidates.density is None
            else (candidates.noise * candidates.density)
        )
        return ops.top_k_mask(
            lots, canvas.eligible & (candidates.confidence > -float("inf")), self.tokens_per_step
        )
