"""Kernels for a GPU, in Triton and one in CUDA: each does what functions of the plain engine do."""

from d2cache.kernels.attention import MOST_ROWS, Weights, attention, rollout
from d2cache.kernels.chain import Room, Slots, chain, served
from d2cache.kernels.choose import likeliest
from d2cache.kernels.layer import add_norm, quantize_rows, rotate_write, swiglu
from d2cache.kernels.order import (
    LONGEST,
    certainty_density,
    facts,
    indices,
    list_rows,
    masks,
    moved_most,
    nucleus,
    search_window,
    top_k_mask,
)

__all__ = [
    "LONGEST",
    "MOST_ROWS",
    "Room",
    "Slots",
    "Weights",
    "add_norm",
    "attention",
    "certainty_density",
    "chain",
    "facts",
    "indices",
    "likeliest",
    "list_rows",
    "masks",
    "moved_most",
    "nucleus",
    "quantize_rows",
    "rollout",
    "rotate_write",
    "search_window",
    "served",
    "swiglu",
    "top_k_mask",
]
