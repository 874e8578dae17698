"""Every row in every step."""

from dataclasses import dataclass

from d2cache.policies.base import CachePolicy


@dataclass
class NoCache(CachePolicy, key="none"):
    """No cache (LLaDA, arXiv 2502.09992): reuse nothing, recompute every row in every step.

    The reference for every cache: exact, and the most work.
    """
