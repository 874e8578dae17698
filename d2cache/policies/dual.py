"""Fast-dLLM's dual cache: everything outside the current block."""

from dataclasses import dataclass

from torch import Tensor

from d2cache.canvas import Canvas
from d2cache.policies.prefix import PrefixCache


@dataclass
class DualCache(PrefixCache, key="dual"):
    """Fast-dLLM dual cache (arXiv 2505.22618): reuse everything outside the current block.

    Like the prefix cache, but masks to the right of the block are reused too: each block begins
    with a full pass, then only the block is recomputed.
    """

    def window(self, canvas: Canvas) -> Tensor:
        return canvas.block
