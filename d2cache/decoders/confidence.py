"""The most confident candidates first."""

from dataclasses import dataclass

from torch import Tensor

from d2cache import ops
from d2cache.canvas import Candidates, Canvas
from d2cache.decoders.base import Decoder


@dataclass
class Confidence(Decoder, key="confidence"):
    """Confidence order (LLaDA, arXiv 2502.09992): low-confidence remasking, most confident first.

    With sigma > 0, confidence is multiplied by certainty density (d2Cache, arXiv 2509.23094),
    which favours positions close to known ones. Ties go to the left.
    """

    def accept(self, canvas: Canvas, candidates: Candidates) -> Tensor:
        return ops.top_k_mask(self.score(candidates), canvas.eligible, self.tokens_per_step)
