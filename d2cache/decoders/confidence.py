"""The likeliest positions first."""

from dataclasses import dataclass

from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder


@dataclass
class Confidence(Decoder, key="confidence"):
    """Confidence order (LLaDA, arXiv 2502.09992): low-confidence remasking, the surest are written.

    With sigma > 0 the confidence is multiplied by certainty density (d2Cache, arXiv 2509.23094),
    which prefers positions close to what is already known. Ties go to the left.
    """

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        return ops.top_k_mask(self.score(candidates), canvas.eligible, self.tokens_per_step)
