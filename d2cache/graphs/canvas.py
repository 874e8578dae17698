"""The canvas while a step is traced: masks from one kernel, and a step number that is guarded."""

from __future__ import annotations

import operator
from functools import cached_property

from torch import Tensor

from d2cache.canvas import Canvas
from d2cache.graphs.support import kernels


class KernelCanvas(Canvas):
    """A Canvas whose masks come from one kernel, all at once."""

    @cached_property
    def planes(self) -> tuple[Tensor, ...]:
        size = self.prompt_length, self.block_length
        return kernels.canvas_masks(self.tokens, self.start, *size, self.mask_id)

    masked = cached_property(lambda self: self.planes[0])
    known = cached_property(lambda self: self.planes[1])
    block = cached_property(lambda self: self.planes[2])
    eligible = cached_property(lambda self: self.planes[3])
    live = cached_property(lambda self: self.planes[4])


class TracedStep:
    """A step number while a step is traced: every test of it becomes a guard of the arena, and a
    graph serves the steps for which all guards have the same answers."""

    __hash__ = None

    def __init__(self, arena, of):
        self.arena, self.of = arena, of

    def __bool__(self):
        return self.arena.guard(lambda step: bool(self.of(step)))


def _arithmetic(name):
    act = getattr(operator, name)
    return lambda self, other: TracedStep(self.arena, lambda step: act(self.of(step), other))


def _comparison(name):
    act = getattr(operator, name)
    return lambda self, other: self.arena.guard(lambda step: act(self.of(step), other))


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(TracedStep, f"__{_name}__", _arithmetic(_name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(TracedStep, f"__{_name}__", _comparison(_name))


class UnknownStep:
    """The step number of a remembered canvas: nothing may be decided by it."""

    def _refuse(self, *_):
        raise TypeError("a remembered canvas was asked for its step")

    __bool__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __add__ = __sub__ = _refuse
    __hash__ = None


UNKNOWN_STEP = UnknownStep()
