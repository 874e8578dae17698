"""Decoder: the rule that picks which candidates are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from d2cache.canvas import Candidates, Canvas
from d2cache.registry import Registered, knob


@dataclass
class Decoder(Registered):
    """A pure rule from candidates to the positions that are written.

    Subclass as a dataclass with a key and give it `accept`. The knobs here are every decoder's.
    """

    registry: ClassVar[dict[str, type]] = {}
    kind: ClassVar[str] = "decoder"

    tokens_per_step: int = knob(1, 1, 64, "tokens written a step (at least)")
    temperature: float = knob(0.0, 0.0, 2.0, "0 takes the likeliest token, above 0 samples")
    top_p: float = knob(1.0, 0.01, 1.0, "keep the likeliest tokens up to this mass")
    sigma: float = knob(
        10.0, 0.0, 100.0, "certainty prior: width in positions of its Gaussian; 0 is off"
    )
    as_shipped: bool = knob(False, None, None, "pad the prior's density as the public code does")

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        """(B,T) bool: eligible positions to write; at least one in each live row."""
        raise NotImplementedError

    def score(self, candidates: Candidates) -> Tensor:
        """(B,T): confidence, times certainty density with the prior (d2Cache Eq. 4)."""
        if candidates.density is None:
            return candidates.confidence
        product = candidates.confidence * candidates.density
        # masked after the product: -inf times a density of 0 is not a number
        return product.masked_fill(candidates.confidence == -torch.inf, -torch.inf)
