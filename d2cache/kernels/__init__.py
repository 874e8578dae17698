"""Kernels for a GPU, written in Triton; each computes what a function of the plain engine does."""

from d2cache.kernels.attention import MOST_ROWS, Weights, attention, rollout
from d2cache.kernels.choose import likeliest
from d2cache.kernels.layer import add_norm, quantize_rows, rotate_write, swiglu
from d2cache.kernels.order import (
    LONGEST,
    certainty_density,
    facts,
    indices,
    masks,
    moved_most,
    nucleus,
    search_window,
    top_k_mask,
)

__all__ = [
    "LONGEST", "MOST_ROWS", "Weights", "add_norm", "attention", "certainty_density", "facts",
    "indices", "likeliest", "masks", "moved_most", "nucleus", "quantize_rows", "rollout",
    "rotate_write", "search_window", "swiglu", "top_k_mask",
]  # fmt: skip
