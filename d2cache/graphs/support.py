"""Which models, policies and decoders graphs and kernels support."""

from __future__ import annotations

from d2cache.decoders.base import Decoder
from d2cache.model import Block, Model
from d2cache.policies.base import CachePolicy

try:
    from d2cache import kernels
except ImportError:  # no Triton
    kernels = None


def supports(model: Model, policy: CachePolicy) -> bool:
    """Whether graphs may be tried: a wrapped policy (a probe) and a model that is split over
    devices are left to the plain loop."""
    whole = type(model) is Model and all(type(block) is Block for block in model.blocks)
    return whole and type(policy) is policy.registry.get(policy.key)


def kernels_fit(model: Model) -> bool:
    """Whether the kernels are made for this model: 16-bit on a GPU, heads of 16, 32, 64.."""
    width = model.config.head_width
    return (
        kernels is not None
        and model.device.type == "cuda"
        and model.dtype.itemsize == 2
        and width >= 16
        and width & (width - 1) == 0
    )


def attend_can_wait(policy: CachePolicy) -> bool:
    """Whether the class that defines a policy's `attend` says that it only passes on its inputs."""
    owner = next(cls for cls in type(policy).__mro__ if "attend" in vars(cls))
    return vars(owner).get("attend_can_wait", False)


def stored_by_rows(block: Block) -> bool:
    """Whether `kernels.chain` can read a layer's weights: row by row, at multiples of 16 bytes."""
    products = block.qkv_proj, block.out_proj, block.gate_up_proj, block.down_proj
    return all(p.weight.is_contiguous() and p.weight.data_ptr() % 16 == 0 for p in products)


def reads_logits(decoder: type) -> bool:
    """Whether any function of the decoder's classes names logits: only then are they made float32.

    Otherwise the kernel that chooses tokens reads them in the model's dtype, and sums in float32.
    """
    own = (cls for cls in decoder.__mro__ if issubclass(cls, Decoder) and cls is not Decoder)
    code = (getattr(f, "__code__", None) for cls in own for f in vars(cls).values())
    return any(c is not None and "logits" in c.co_names + c.co_varnames for c in code)
