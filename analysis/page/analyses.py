"""What is computed for a question of the stage, by name; here, or with the trace in another
process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import d2cache
from analysis import probes
from analysis.page.models import ENGINE
from analysis.page.query import Lane
from d2cache.trace import Trace

SIGMAS = (0.0, 3.0, 10.0, 40.0)  # of the decode orders that are compared


def orders(model: d2cache.Model, trace: Trace) -> dict[float, Trace]:
    """The run again under each width of the certainty prior in `SIGMAS`."""
    run_of, (ids, gen_length) = trace.run, trace.asked
    traces = {}
    for sigma in SIGMAS:
        knobs = run_of["decoder_knobs"] | {"sigma": sigma}
        lane = Lane(run_of["policy"], run_of["policy_knobs"], run_of["decoder"], knobs)
        steps = d2cache.generate(
            model,
            ids,
            lane.make_policy(),
            lane.make_decoder(),
            gen_length=gen_length,
            block_length=run_of["block_length"],
            seed=run_of["seeds"][0],
            stop_at_eos=run_of["stop_at_eos"],
        )
        traces[sigma] = Trace.record(_in_turn(steps), progress=False)
    return traces


def _in_turn(steps: Iterator[d2cache.Step]) -> Iterator[d2cache.Step]:
    """Steps of a run that frees the engine for others between them."""
    while True:
        step = ENGINE(next, steps, None)
        if step is None:
            return
        yield step


def _at_once(probe: Callable) -> Callable:
    """A probe that the engine makes in one go."""
    return lambda *given: ENGINE(probe, *given)


# Each is called with a model, a trace of it, and further plain values.
ANALYSES: dict[str, Callable[..., Any]] = {
    "rollout": _at_once(probes.rollout_map),
    "attention": _at_once(probes.attention_map),
    "columns": _at_once(probes.rollout_columns),
    "life": _at_once(probes.life),
    "orders": orders,
}


def packed(trace: Trace) -> bytes:
    """A trace as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        trace.save(path)
        return path.read_bytes()


def unpacked(data: bytes) -> Trace:
    """The inverse of `packed`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(data)
        return Trace.load(path)
