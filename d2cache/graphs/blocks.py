"""Layers as policies see them while kernels run them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from d2cache.graphs.support import kernels
from d2cache.model import Block

MOST_QUERIES = 256  # rows up to which our attention is faster than torch's


class KernelBlock:
    """A Block whose MLP and attention use the kernels."""

    def __init__(self, block: Block):
        self.block = block

    def __getattr__(self, name):
        return getattr(self.block, name)

    def attend(self, q, k, v, keys):
        if q.shape[2] > MOST_QUERIES or (keys is not None and keys.dim() == 3):
            return Block.attend(self, q, k, v, keys)
        return self.project_out(kernels.attention(q, k, v, keys)[0])

    def mlp(self, x: Tensor) -> Tensor:
        block = self.block
        y = kernels.add_norm(x, None, block.mlp_norm.weight, block.config.norm_eps)[1]
        return block.down_proj(kernels.swiglu(block.gate_up_proj(y)))


class Deferred:
    """A placeholder for q, k, v and outputs of a layer whose attention the kernel of all layers
    computes: it may be passed on, nothing else."""


@dataclass(frozen=True, eq=False)
class UnprojectedHeads:
    """The heads (B,R,d) of a layer before its output projection; nothing else can be done with
    them."""

    heads: Tensor | Deferred


class UnprojectedBlock(KernelBlock):
    """A Block whose output projection, and attention itself where that is deferred, is left to the
    next kernel."""

    def attend(self, q, k, v, keys):
        if isinstance(q, Deferred):
            return UnprojectedHeads(q)
        return super().attend(q, k, v, keys)

    def project_out(self, y):
        if isinstance(y, Deferred):
            return UnprojectedHeads(y)
        return UnprojectedHeads(y.transpose(1, 2).flatten(2))
