"""Programmatic dependent launch (Hopper and later): a kernel is set up while the last one ends."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

ON = (
    os.environ.get("TRITON_INTERPRET") != "1" and torch.cuda.is_available()
    and torch.cuda.get_device_capability() >= (9, 0)
)  # fmt: skip


def early() -> dict:
    """Launch settings of a kernel that calls `begin` first."""
    return {"EARLY": True, "launch_pdl": True} if ON else {"EARLY": False}


@triton.jit
def begin(EARLY: tl.constexpr):
    # nothing is read or written before the kernels ahead are done; the next may be set up already
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
