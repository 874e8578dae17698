"""Positions in a random order."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class Random(Decoder, key="random"):
    """Random remasking (LLaDA, arXiv 2502.09992): write positions in a random order.

    The order in which the model was trained to unmask, and the baseline for all others. Every
    seed gives another order, also at temperature 0. With sigma > 0, the random numbers are
    multiplied by certainty density.
    """

    sigma: float = knob(
        0.0, 0.0, 100.0, "certainty prior: width of its Gaussian, in positions; 0 is off"
    )
    draws: ClassVar[bool] = True

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        score = cast(Tensor, candidates.noise)  # there because of `draws`
        if candidates.density is not None:
            score = score * candidates.density
        possible = canvas.eligible & (candidates.confidence > -torch.inf)
        return ops.top_k_mask(score, possible, self.tokens_per_step)
