"""Decoder: the rule that picks which candidates are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.model import Model
from d2cache.registry import Registered, knob

if TYPE_CHECKING:
    from d2cache.shadow import Shadow


@dataclass
class Decoder(Registered):
    """The rule that picks which candidates a step writes.

    Subclass as a dataclass with a key and define `accept`. Whatever is remembered from step to
    step is kept in attributes set by `begin`. Every decoder has the knobs defined here.
    """

    registry: ClassVar[dict[str, type]] = {}
    kind: ClassVar[str] = "decoder"
    draws: ClassVar[bool] = False  # whether `accept` needs candidates.noise

    tokens_per_step: int = knob(1, 1, 64, "tokens written per step, at least")
    temperature: float = knob(0.0, 0.0, 2.0, "0 takes the likeliest token; above 0, it is sampled")
    top_p: float = knob(
        1.0, 0.01, 1.0, "keep only the likeliest tokens, up to this probability mass"
    )
    sigma: float = knob(
        10.0, 0.0, 100.0, "certainty prior: width of its Gaussian, in positions; 0 is off"
    )
    as_shipped: bool = knob(False, None, None, "pad the prior's density as the public code does")

    def begin(self, model: Model, canvas: Canvas) -> None:
        """Called once before the first step, to set up the state of a run."""

    def certainty(self, logits: Tensor, probability: Tensor) -> Tensor:
        """Confidence (B,Q) of the chosen tokens, in [0,1]: here their probability.

        logits (B,Q,V) after temperature and top-p, probability (B,Q) of each chosen token.
        """
        return probability

    def prior(self, canvas: Canvas, as_shipped: bool = False) -> Tensor | None:
        """Certainty density (B,T) that scores are multiplied by, or None without a prior.

        as_shipped: whether the policy asks for the public code's padding.
        """
        return canvas.density(self.sigma, self.as_shipped or as_shipped) if self.sigma else None

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        """(B,T) bool: the eligible positions to write; at least one in each live row."""
        raise NotImplementedError

    def revise(self, canvas: Canvas, accepted: Tensor, shadow: Shadow) -> Tensor | None:
        """(B,T) bool: written positions to mask again, fewer than `accepted`, or None for none."""
        return None

    def at_least(self, canvas: Canvas, candidates: Candidates, sure: Tensor) -> Tensor:
        """(B,T) bool: `sure`, filled up to `tokens_per_step` with the best of the rest."""
        # + 2: these come first, whatever the prior makes of their scores
        score = self.score(candidates) + 2 * sure
        return sure | ops.top_k_mask(score, canvas.eligible, self.tokens_per_step)

    def score(self, candidates: Candidates) -> Tensor:
        """(B,T): confidence, times certainty density if there is a prior (d2Cache Eq. 4), in
        [0,1]; -inf where there is no candidate."""
        if candidates.density is None:
            return candidates.confidence
        product = candidates.confidence * candidates.density
        # masked after the product: -inf times a density of 0 would be NaN
        return product.masked_fill(candidates.confidence == -torch.inf, -torch.inf)
