"""The narrowest distributions first."""

import math
from dataclasses import dataclass

from torch import Tensor

from d2cache import ops
from d2cache.decoders.confidence import Confidence


@dataclass
class Entropy(Confidence, key="entropy"):
    """Lowest entropy (Dream's entropy, arXiv 2508.15487): write where the fewest words compete.

    Confidence is 1 - H / ln V, in [0,1]. The public code ranks by the negative entropy itself;
    the order is the same, but a prior multiplied with a negative number prefers what lies far.
    """

    def certainty(self, logits: Tensor, probability: Tensor) -> Tensor:
        return (1 - ops.entropy(logits) / math.log(logits.shape[-1])).clamp(0, 1)
