"""Weights in 8 bits: half the bytes of bfloat16 to read in a step, with a known error.

A weight (N,K) is kept as float8_e4m3fn (arXiv 2209.05433) with one float32 scale for each output
row, that row's largest magnitude / 448. Embedding, norms, biases, keys and values stay as they are.

bfloat16 rows on a GPU of compute capability 8.9 or more are quantized in the same way, row by row,
and multiplied in 8 bits (`torch._scaled_mm`): the output has the error of weights and rows.
Elsewhere the weight is widened for each product, which saves memory and costs time, and the output
has the error of the weights alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2cache import ops
from d2cache.model import Model

MULTIPLE = 16  # of both sizes of a weight, for a GPU's product of 8-bit numbers


class Fp8Linear(nn.Module):
    """A Linear whose weight is in 8 bits: (N,K) float8_e4m3fn, scale (N,1) float32, bias (N,)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        parts = ops.quantize_rows(linear.weight.detach())
        self.weight, self.scale = (nn.Parameter(part, requires_grad=False) for part in parts)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..,K) -> (..,N)."""
        return self.part(x, slice(None))

    def part(self, x: Tensor, rows: slice, out: Tensor | None = None) -> Tensor:
        """(..,K) -> (..,n) by n rows of the weight; written to `out` (M,n) where x is (M,K)."""
        weight, scale = self.weight[rows], self.scale[rows]
        bias = None if self.bias is None else self.bias[rows]
        if len(weight) % MULTIPLE or not has_fp8_product(x):
            y = F.linear(x, (weight.to(x.dtype) * scale).to(x.dtype), bias)
            return y if out is None else out.copy_(y)
        short, size = ops.quantize_rows(x.flatten(0, -2))
        y = torch._scaled_mm(
            short, weight.T, size, scale.T, out_dtype=x.dtype, use_fast_accum=True, out=out
        )
        if bias is not None:  # no product with a scale per row adds a bias
            y += bias
        return y.unflatten(0, x.shape[:-1])


def has_fp8_product(x: Tensor) -> bool:
    """Whether the device of x multiplies 8-bit numbers, and x has the dtype of their product."""
    capable = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9)
    return capable and x.dtype == torch.bfloat16


def to_fp8(model: Model) -> list[str]:
    """Quantize the linear layers of a model, LM head included, in place and one after another;
    -> the names of their weights.

    A layer whose sizes are not multiples of 16 stays as it is; ValueError if all are like that.
    Call this before the model's first run: graphs captured earlier read the old weights.
    """
    linear = {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and not any(n % MULTIPLE for n in one.weight.shape)
    }
    if not linear:
        raise ValueError(
            f"no product of {model.config.name} has sizes that are multiples of {MULTIPLE}, as "
            "8-bit weights need; load it without them"
        )
    names = list(linear)
    for name in names:
        model.set_submodule(name, Fp8Linear(linear.pop(name)))  # free each before the next
    model.weights = "fp8"
    return [f"{name}.weight" for name in names]
