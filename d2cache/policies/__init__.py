"""Cache policies, one file for each. A new file here is found by everything else."""

from d2cache.policies.base import KV, CachePolicy
from d2cache.registry import describe, import_siblings, make

import_siblings(__name__, __path__)


def make_policy(name: str, **knobs) -> CachePolicy:
    """A policy from its registered name; raises ValueError for an unknown name, knob or value."""
    return make(CachePolicy.registry, "policy", name, knobs)


def policies() -> list[dict]:
    """Every registered policy: name, paper, help and knobs (see `d2cache.registry.describe`)."""
    return describe(CachePolicy.registry)


__all__ = ["KV", "CachePolicy", "make_policy", "policies"]
