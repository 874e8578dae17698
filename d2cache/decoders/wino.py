"""Write widely, then look again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder
from d2cache.registry import knob


@dataclass
class WideInNarrowOut(Decoder, key="wino"):
    """WINO (arXiv 2507.18578): write wide in, and mask again what a second look doubts.

    Wide in: all candidates of the open block with confidence `wide_in` or more, at most 0.7 of its
    masks (but 5 to 20). Narrow out: a shadow block of masks looks at the block, each row at all
    but its own token; what was written before and now has a probability below `narrow_out` is
    masked again, least likely first, and always fewer than this step writes, so that every step
    gains. (The public code bounds it by the step before, which need not end.) Costs one more pass
    of the block a step.
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

    def revise(self, canvas: Canvas, accepted: Tensor, shadow) -> Tensor | None:
        if canvas.step == 0:
            return None
        share = shadow.probability()
        doubted = (share < self.narrow_out) & canvas.live[:, None]
        most = accepted.sum(1, keepdim=True) - 1
        order = share.masked_fill(~doubted, torch.inf).sort(dim=1, stable=True).indices
        return torch.zeros_like(doubted).scatter(1, order, canvas.position < most) & doubted
