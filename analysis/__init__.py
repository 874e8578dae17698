"""Runs into numbers and figures: metrics alone knows Trace, figures sees only DataFrames."""

import d2cache  # noqa: F401  (before torch: it settles how OpenMP's threads wait)
