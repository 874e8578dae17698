"""Fast-dLLM's dual cache: what lies outside the open block."""

from dataclasses import dataclass

from d2cache.policies.prefix import PrefixCache


@dataclass
class DualCache(PrefixCache, key="dual"):
    """Fast-dLLM dual cache (arXiv 2505.22618): reuse everything outside the open block.

    As the prefix cache, with the masks right of the block reused too: a full pass opens each
    block, then the block alone is recomputed.
    """

    def window(self, canvas):
        return canvas.block
