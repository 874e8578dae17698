"""What policies and decoders remember: tensors at fixed addresses, plain values around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

from torch import Tensor

from d2cache.canvas import Canvas
from d2cache.graphs.canvas import UNKNOWN_STEP


def remembered(owner) -> dict:
    """An owner's attributes: all but K,V, which are written in place, and its run's flag."""
    return {k: v for k, v in vars(owner).items() if k not in ("kv", "running")}


def map_tensors(value, change: Callable[[Tensor], Tensor], step=None):
    """A copy of what an attribute holds, `change` applied to each tensor in it.

    A remembered canvas loses its cached properties, and its step unless one is given.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, change, step) for v in value)
    if isinstance(value, dict):
        return {k: map_tensors(v, change, step) for k, v in value.items()}
    if isinstance(value, Canvas):
        tokens, start = change(value.tokens), change(value.start)
        step = UNKNOWN_STEP if step is None else step
        return replace(value, tokens=tokens, start=start, step=step)
    if is_dataclass(value) and not isinstance(value, type):
        # by its fields alone: cached properties are lost
        mapped = {f.name: map_tensors(getattr(value, f.name), change, step) for f in fields(value)}
        return replace(value, **mapped)
    return value


def leaves(value) -> list:
    """Tensors and plain values in an attribute, in one order; objects of other kinds whole."""
    if isinstance(value, (list, tuple)):
        return [len(value), *(leaf for v in value for leaf in leaves(v))]
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in leaves(v)]
    if isinstance(value, Canvas):
        return [value.tokens, value.start]
    if is_dataclass(value) and not isinstance(value, type):
        return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name))]
    return [value]


def tensor_pairs(old, new) -> list[tuple[Tensor, Tensor]] | None:
    """Tensors of two values of one form, pair by pair; None where their forms differ."""
    a, b = leaves(old), leaves(new)
    if len(a) != len(b) or not all(map(_same_form, a, b)):
        return None
    return [(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, Tensor)]


def _same_form(a, b) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return type(a) is type(b)


def with_tensors_of(old, new):
    """The plain values of `new` around the tensors of `old`."""
    kept = iter([t for t in leaves(old) if isinstance(t, Tensor)])
    return map_tensors(new, lambda _: next(kept))


def plain_values(state: dict) -> list:
    """What is not a tensor in a state: a graph is captured for these values."""
    return [v for value in state.values() for v in leaves(value) if not isinstance(v, Tensor)]
