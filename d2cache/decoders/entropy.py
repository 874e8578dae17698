"""The narrowest distributions first."""

import math
from dataclasses import dataclass

from torch import Tensor

from d2cache import ops
from d2cache.decoders.confidence import Confidence


@dataclass
class Entropy(Confidence, key="entropy"):
    """Lowest entropy (Dream's entropy, arXiv 2508.15487): write where the fewest tokens compete.

    Confidence is 1 - H / ln V, in [0,1]. The public code ranks by negative entropy, which gives
    the same order, but a prior multiplied by a negative number would favour distant positions.
    """

    def certainty(self, logits: Tensor, probability: Tensor) -> Tensor:
        return (1 - ops.entropy(logits) / math.log(logits.shape[-1])).clamp(0, 1)
