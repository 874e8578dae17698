"""The clearest decisions first."""

from dataclasses import dataclass

from torch import Tensor

from d2cache.decoders.confidence import Confidence


@dataclass
class Margin(Confidence, key="margin"):
    """Top-k margin (Dream's topk_margin; arXiv 2502.06768): write where the best token leads most.

    Confidence is the difference of the two largest probabilities: 0 where two tokens tie, however
    likely both are.
    """

    def certainty(self, logits: Tensor, probability: Tensor) -> Tensor:
        top = logits.softmax(-1).topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
