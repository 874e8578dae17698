"""Every row, every step."""

from dataclasses import dataclass

from d2cache.policies.base import CachePolicy


@dataclass
class NoCache(CachePolicy, key="none"):
    """No cache (LLaDA, arXiv 2502.09992): reuse nothing, recompute every row at every step.

    The reference that every cache is compared with: exact, and the most work.
    """
