"""Programmatic dependent launch: a kernel takes its place while the one ahead still runs."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@lru_cache
def early(device: torch.device) -> dict:
    """What a kernel that begins with `follow` is launched with."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return dict(EARLY=True, launch_pdl=True) if able else dict(EARLY=False)


@triton.jit
def follow(EARLY: tl.constexpr):
    """Let the next kernel take its place, and wait for what the kernels ahead have written."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
