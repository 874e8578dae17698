"""Arena: state at fixed addresses, and the graphs that are captured over it."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from d2cache.canvas import Canvas, Plan
from d2cache.decoders.base import Decoder
from d2cache.graphs.canvas import KernelCanvas, TracedStep
from d2cache.graphs.rules import canvas_rules
from d2cache.graphs.state import (
    map_tensors,
    plain_values,
    remembered,
    tensor_pairs,
    with_tensors_of,
)
from d2cache.model import Model
from d2cache.policies.base import CachePolicy

LOG = logging.getLogger("d2cache.graphs")
IDLE_KEPT = 2  # arenas of a model that stay for later runs
ARENAS: WeakKeyDictionary[Model, list[Arena]] = WeakKeyDictionary()


@dataclass
class Entry:
    """One traced piece of work: its graph (None until captured), what it returned, the tests of
    the step that it depends on with their answers, and the owners' state after it."""

    made: object
    guards: list[tuple[Callable[[int], bool], bool]]
    after: list[dict]
    plain: tuple
    graph: torch.cuda.CUDAGraph | None = None

    def serves(self, step: int) -> bool:
        return all(test(step) == answer for test, answer in self.guards)


@dataclass
class Buffers:
    """What the loop itself passes from step to step; the third owner of state beside policy and
    decoder."""

    tokens: Tensor
    stuck: Tensor
    plan: Plan
    masks: tuple[Tensor, Tensor, Tensor]
    uniform: Tensor | None
    noise: Tensor | None

    @classmethod
    def made(cls, canvas: Canvas, decoder: Decoder) -> Buffers:
        blank = torch.zeros_like(canvas.masked)
        drawn = torch.zeros(blank.shape, device=blank.device)
        return cls(
            tokens=canvas.tokens.clone(),
            stuck=torch.zeros((), dtype=torch.bool, device=blank.device),
            plan=Plan(blank.clone(), blank.clone(), blank.to(torch.uint8)),
            masks=(blank.clone(), blank.clone(), blank.clone()),
            uniform=drawn if decoder.temperature > 0 else None,
            noise=drawn.clone() if decoder.draws else None,
        )


@dataclass
class Streams:
    """Of an arena on a GPU: one to capture on and one for work beside the layers, which must not
    hold them up; with the pool that its graphs allocate from."""

    capture: torch.cuda.Stream = field(default_factory=lambda: torch.cuda.Stream(priority=-1))
    side: torch.cuda.Stream = field(default_factory=lambda: torch.cuda.Stream(priority=0))
    read_back: torch.cuda.Event = field(default_factory=torch.cuda.Event)
    pool: tuple = field(default_factory=torch.cuda.graph_pool_handle)


class Arena:
    """State at fixed addresses, and the graphs over it; for runs of one shape, one at a time.

    Owners are the run's policy and decoder and the arena's `Buffers`; `state` has a dict of
    attributes for each.
    """

    def __init__(
        self, key: tuple, model: Model, policy: CachePolicy, decoder: Decoder, canvas: Canvas
    ):
        self.key, self.busy, self.step, self.guards = key, True, 0, []
        self.entries: dict[tuple, list[Entry]] = {}
        on_gpu = canvas.tokens.device.type == "cuda"
        # on the host: of the next plan, and the layer to run again from
        self.counts = torch.zeros(6, dtype=torch.int64, pin_memory=on_gpu)
        self.restart = torch.zeros((), dtype=torch.int64, pin_memory=on_gpu)
        self.streams = Streams() if on_gpu else None
        kernels_serve = canvas_rules(model, canvas) and not canvas.stop_at_eos
        kind = KernelCanvas if kernels_serve else Canvas
        blank = kind(**{f.name: getattr(canvas, f.name) for f in fields(canvas)})
        self.template = map_tensors(blank, torch.clone)
        self.buffers = Buffers.made(canvas, decoder)
        every = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)[None]
        self.rope = tuple(t[0, 0] for t in model.rotary(every))
        self.kv = policy.kv
        owners = self.owners(policy, decoder)
        self.state = [map_tensors(remembered(owner), torch.clone) for owner in owners]
        self.install(owners)

    def owners(self, policy: CachePolicy, decoder: Decoder) -> tuple:
        return policy, decoder, self.buffers

    def adopt(self, policy: CachePolicy, decoder: Decoder, canvas: Canvas) -> bool:
        """Copy another run's state after its first step into this arena; False if its form
        differs."""
        pairs, kv = [], policy.kv
        self.buffers.tokens.copy_(canvas.tokens)
        self.buffers.stuck.zero_()
        self.template.start.copy_(canvas.start)
        self.buffers.plan = self.state[2]["plan"]
        for owner, state in zip((policy, decoder), self.state, strict=False):
            new = remembered(owner)
            if set(new) != set(state):
                return False
            for name, old in state.items():
                matched = tensor_pairs(old, new[name])
                if matched is None:
                    return False
                pairs += matched
                state[name] = with_tensors_of(old, new[name])
        pairs += [(self.kv.k, kv.k), (self.kv.v, kv.v), (self.kv.ids, kv.ids)]
        for old, given in pairs:
            old.copy_(given)
        policy.kv = self.kv
        self.busy = True
        self.install(self.owners(policy, decoder))
        return True

    def canvas(self) -> Canvas:
        """The canvas now, without any cached property yet."""
        step = TracedStep(self, lambda step: step)
        return replace(self.template, tokens=self.buffers.tokens, step=step)

    def install(self, owners: tuple) -> None:
        """Give owners the arena's attributes, remembered canvases without cached properties."""
        for owner, state in zip(owners, self.state, strict=True):
            vars(owner).update(map_tensors(state, lambda t: t))
        self.plain = tuple(v for state in self.state for v in plain_values(state))

    def release(self, owners: tuple) -> None:
        """Give owners copies, for a run that goes on eagerly from where the last work ended."""
        for owner, state in zip(owners, self.state, strict=True):
            vars(owner).update(map_tensors(state, torch.clone, self.step))
        if self.streams:
            torch.cuda.synchronize()

    def guard(self, test: Callable[[int], bool]) -> bool:
        """The answer of a test of the step that is traced; the entry holds for steps with the same
        answer."""
        answer = test(self.step)
        self.guards.append((test, answer))
        return answer

    def read_counts(self) -> list[int]:
        self.await_read_back()
        return self.counts.tolist()

    def read_restart(self) -> int:
        self.await_read_back()
        return int(self.restart)

    def await_read_back(self) -> None:
        if self.streams:
            self.streams.read_back.synchronize()

    # Three turns: trace, capture, replay.

    def run(self, kind: str, size: tuple, work, step: int, owners: tuple, captures: bool):
        """See `GraphWork.attempt`."""
        self.step = step
        known = self.entries.setdefault((kind, size, self.plain), [])
        entry = next((e for e in known if e.serves(step)), None)
        if entry is None or not captures:
            entry = self.trace_or_restore(work, owners)
            if captures:
                known.append(entry)
        else:
            if entry.graph is None:
                self.capture(entry, kind, size, work, owners)
            self.replay(entry, owners)
        if kind in ("plan", "layers") and self.streams:
            self.streams.read_back.record()
        return entry.made

    def run_once(self, work, step: int, owners: tuple):
        """work() from Python, never captured; it must leave nothing half done where it fails."""
        self.step = step
        return self.trace(work, owners).made

    def trace_or_restore(self, work, owners: tuple) -> Entry:
        """`trace`, with the state as it was before where that fails."""
        backup = [map_tensors(state, torch.clone) for state in self.state]
        try:
            return self.trace(work, owners)
        except BaseException:
            for state, kept in zip(self.state, backup, strict=True):
                for name, old in state.items():
                    for tensor, before in tensor_pairs(old, kept[name]):
                        tensor.copy_(before)
            raise

    def trace(self, work, owners: tuple) -> Entry:
        """work() from Python; what it leaves in the owners is copied to the fixed addresses."""
        self.install(owners)
        self.guards = []
        made = work()
        moved: list[tuple[Tensor, Tensor]] = []
        for owner, state in zip(owners, self.state, strict=True):
            after = remembered(owner)
            for name in after.keys() | state.keys():
                known = name in state and name in after
                pairs = tensor_pairs(state[name], after[name]) if known else None
                if pairs is None:
                    raise TypeError(f"{type(owner).__name__}.{name} changes its form between steps")
                moved += [(old, new) for old, new in pairs if old is not new]
                state[name] = with_tensors_of(state[name], after[name])
        _copy_all(moved)
        self.install(owners)
        return Entry(made, self.guards, [dict(state) for state in self.state], self.plain)

    def capture(self, entry: Entry, kind: str, size: tuple, work, owners: tuple) -> None:
        begin, graph, streams = time.perf_counter(), torch.cuda.CUDAGraph(), self.streams
        streams.capture.wait_stream(torch.cuda.current_stream())
        collects = gc.isenabled()
        gc.disable()  # another arena's graphs must not be freed while this one is made
        try:
            with torch.cuda.stream(streams.capture):
                graph.capture_begin(pool=streams.pool, capture_error_mode="thread_local")
                try:
                    new = self.trace(work, owners)
                finally:
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()
        torch.cuda.current_stream().wait_stream(streams.capture)
        vars(entry).update(vars(new), graph=graph)
        what = f"{kind}, {size[0]} rows, {size[1]} predictions" if size else kind
        LOG.info("captured a graph (%s) in %.2f s", what, time.perf_counter() - begin)

    def replay(self, entry: Entry, owners: tuple) -> None:
        entry.graph.replay()
        for owner, state, after in zip(owners, self.state, entry.after, strict=True):
            vars(owner).update(after)
            state.update(after)
        self.plain = entry.plain


def _copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor into the first; all are read before any is written."""
    places = {old.untyped_storage().data_ptr() for old, _ in pairs}
    shared = lambda t: t.untyped_storage().data_ptr() in places
    pairs = [(old, new.clone() if shared(new) else new) for old, new in pairs]
    for dtype in {old.dtype for old, _ in pairs}:
        some = [pair for pair in pairs if pair[0].dtype == dtype]
        torch._foreach_copy_(*map(list, zip(*some, strict=True)))


def claim_arena(
    model: Model, policy: CachePolicy, decoder: Decoder, canvas: Canvas, captures: bool
) -> Arena:
    """An arena for this run: one that an earlier run of its kind left, or a new one."""
    kinds = [(one.key, *one.settings().items()) for one in (policy, decoder)]
    key = (
        *kinds,
        tuple(canvas.tokens.shape),
        canvas.prompt_length,
        canvas.block_length,
        canvas.padded,
        canvas.stop_at_eos,
        captures,
    )
    kept = ARENAS.setdefault(model, [])
    for arena in kept:
        if arena.key == key and not arena.busy and arena.adopt(policy, decoder, canvas):
            return arena
    arena = Arena(key, model, policy, decoder, canvas)
    idle = [a for a in kept if not a.busy]
    for old in idle[: 1 - IDLE_KEPT]:
        old.entries.clear()  # their graphs, and what holds the arena in a reference cycle
    ARENAS[model] = [a for a in kept if a.busy] + idle[1 - IDLE_KEPT :] + [arena]
    return arena


def discard_arena(model: Model, arena: Arena) -> None:
    ARENAS[model] = [a for a in ARENAS[model] if a is not arena]
