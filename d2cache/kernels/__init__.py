"""Kernels for a GPU, in Triton and one in CUDA; each replaces plain functions of the engine."""

from d2cache.kernels.attention import MOST_ROWS, Weights, attention, column_mass, rollout
from d2cache.kernels.chain import ChainRows, Slots, Tiling, Workspace, chain, compiled_tiling
from d2cache.kernels.layer import add_norm, quantize_rows, rotate_write, swiglu
from d2cache.kernels.sampling import likeliest
from d2cache.kernels.selection import (
    LONGEST,
    canvas_masks,
    certainty_density,
    indices,
    list_rows,
    masks_of,
    moved_most,
    nucleus,
    search_window,
    top_k_mask,
)

__all__ = [
    "LONGEST",
    "MOST_ROWS",
    "ChainRows",
    "Slots",
    "Tiling",
    "Weights",
    "Workspace",
    "add_norm",
    "attention",
    "canvas_masks",
    "certainty_density",
    "chain",
    "column_mass",
    "compiled_tiling",
    "indices",
    "likeliest",
    "list_rows",
    "masks_of",
    "moved_most",
    "nucleus",
    "quantize_rows",
    "rollout",
    "rotate_write",
    "search_window",
    "swiglu",
    "top_k_mask",
]
