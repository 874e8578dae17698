"""Write many, then look again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob

if TYPE_CHECKING:
    from d2cache.shadow import Shadow


@dataclass
class WideInNarrowOut(Decoder, key="wino"):
    """WINO (arXiv 2507.18578): write many at once, mask again what a second look doubts.

    Wide in: all candidates of the current block with at least confidence `wide_in`, up to 0.7 of
    its masks (but 5 to 20). Narrow out: a shadow block of masks looks at the block, each row at
    everything but its own token. A token written earlier whose probability is now below
    `narrow_out` is masked again, least likely first, and always fewer than this step writes, so
    that every step makes progress. (The public code bounds this by the previous step, which may
    never end.) Costs one more pass of the block per step.
    """

    wide_in: float = knob(0.6, 0.0, 1.0, "confidence from which a candidate is written")
    narrow_out: float = knob(0.9, 0.0, 1.0, "probability below which a token is masked again")

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        sure = canvas.eligible & (candidates.confidence >= self.wide_in)
        most = (canvas.eligible.sum(1, keepdim=True).double() * 0.7).long().clamp(5, 20)
        score = self.score(candidates).masked_fill(~sure, -torch.inf)
        order = score.sort(dim=1, descending=True, stable=True).indices
        first = torch.zeros_like(sure).scatter(1, order, canvas.position < most)
        return self.at_least(canvas, candidates, first & sure)

    def revise(self, canvas: Canvas, accepted: Tensor, shadow: Shadow) -> Tensor | None:
        if canvas.step == 0:
            return None
        share = shadow.probability()
        doubted = (share < self.narrow_out) & canvas.live[:, None]
        most = accepted.sum(1, keepdim=True) - 1
        order = share.masked_fill(~doubted, torch.inf).sort(dim=1, stable=True).indices
        return torch.zeros_like(doubted).scatter(1, order, canvas.position < most) & doubted
