"""Speed on this machine: python -m analysis.bench [--policies none,d2] [--json]

Prints the limits first, measured now, then one line per policy: median milliseconds per step,
steps per second including the recording of a trace, and the ratio to the first policy.

With --shape llada-8b or dream-7b a model of that shape with random weights is measured, one line
per policy, canvas length and batch size (by default larger batches at one length only): the median
over whole generations as a user runs them, with and without the recording of a trace, and the share
of the floor, the time in which this device reads the weights of the layers and the LM head once.

With --weights fp8 the weights of the products are in 8 bits, and the error is printed: the change
of the logits of one full pass, relative to their norm.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

import d2cache
from d2cache import command, models
from d2cache.command import names, real, whole, wholes
from d2cache.generate import open_canvas
from d2cache.memory import OutOfMemory
from d2cache.model import CONFIGS, Linear, Model
from d2cache.quantize import to_fp8
from d2cache.teaching import tasks
from d2cache.trace import Recorder

WIDE = 1024  # the canvas length at which larger batches are measured
FEW_MASKS = 64  # at most so many in the pass that measures the error of 8-bit weights
SHAPE_COLUMNS = (
    "policy      T  batch  ms/step  floor  tokens/s  rows/step  with trace  again  worst ms"
    "  first run s"
)
COLUMNS = "policy        ms/step   steps/s   ratio   hit rate   rows/step   FLOPs vs none   spread"


# Measure.


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Copy bandwidth in GB/s (read + written) and matrix rate in GFLOP/s, best of five.

    The products are computed as a model computes them.
    """
    size = 1 << (28 if device.type == "cuda" else 24)
    source, n = torch.rand(size, device=device), 8192 if device.type == "cuda" else 1024
    target = torch.empty_like(source)
    layer, x = Linear(n, n, False, device, dtype), torch.randn(n, n, device=device, dtype=dtype)
    layer.lay_out()
    copy = min(_timed(lambda: target.copy_(source), device) for _ in range(5))
    with torch.inference_mode():
        product = min(_timed(lambda: layer(x), device) for _ in range(5))
    return {"copy_gb_s": 2 * source.nbytes / copy / 1e9, "matrix_gflop_s": 2 * n**3 / product / 1e9}


def _timed(work: Callable[[], object], device: torch.device) -> float:
    sync(device)
    begin = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - begin


def sync(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    model: Model,
    policy: str,
    prompt,
    gen_length: int,
    block_length: int | None,
    repeats: int,
    eager: bool | None = None,
) -> dict:
    """Whole generations with their traces; the fastest of `repeats`, after one as a warm-up."""
    runs = []
    for repeat in range(repeats + 1):
        recorder, marks = Recorder(), []
        sync(model.device)
        begin = time.perf_counter()
        steps = d2cache.generate(
            model, prompt, policy, gen_length=gen_length, block_length=block_length, eager=eager
        )
        for step in steps:
            recorder.add(step)
            marks.append(time.perf_counter())
        trace = recorder.trace()
        whole = time.perf_counter() - begin
        if repeat:
            gaps = [1e3 * (b - a) for a, b in zip([begin, *marks], marks, strict=False)][1:]
            runs.append((whole, statistics.median(gaps), trace))
    whole, median, trace = min(runs, key=lambda run: run[0])
    totals = trace.totals
    return {
        "policy": policy,
        "steps": totals["steps"],
        "median_ms": median,
        "steps_per_second": totals["steps"] / whole,
        "hit_rate": totals["hit_rate"],
        "rows": float(trace.recomputed_by_layer.mean(1).sum(1)[1:].mean()),
        "flops_vs_none": totals["flops_vs_none"],
        "spread": max(r[0] for r in runs) / whole,
    }


def steps_of(model: Model, policy: str, prompt, args: Namespace, record: bool) -> dict:
    """One generation, or its first `args.steps` steps.

    -> medians per step without the first: milliseconds, and FLOPs if it is recorded; mean rows per
    step if it is not.
    """
    run = _start(model, policy, prompt, args)
    recorder, marks, rows = Recorder(), [], []
    sync(model.device)
    begin = time.perf_counter()
    for step in run:
        if record:
            recorder.add(step)
        marks.append(time.perf_counter())
        if not record:
            rows.append(step.rows_per_layer.float().mean())
        if len(marks) == args.steps:
            break
    sync(model.device)
    whole = time.perf_counter() - begin
    gaps = [1e3 * (b - a) for a, b in zip(marks, marks[1:], strict=False)]
    written = (step.tokens != step.before.mask_id)[:, step.before.prompt_length :].sum()
    return {
        "median_ms": statistics.median(gaps),
        "steps": len(marks),
        "seconds": whole,
        "worst_ms": max(gaps),
        "tokens_per_second": float(written) / whole,
        "rows": float(torch.stack(rows[1:]).mean()) if rows else None,
        "flops": _median_flops(model, recorder.trace()) if record else None,
    }


def _start(model: Model, name: str, prompt, args: Namespace) -> Iterator[d2cache.Step]:
    knobs = dict(rollout_p=args.rollout_p) if name == "d2" else {}
    policy = d2cache.make_policy(name, **knobs)
    block = 32 if policy.for_blocks and args.block_length is None else args.block_length
    return d2cache.generate(
        model, prompt, policy, gen_length=args.gen_length, block_length=block, eager=args.eager
    )


def _median_flops(model: Model, trace: d2cache.Trace) -> float:
    """FLOPs of the median step, summed over the batch."""
    steps = trace.tokens.shape[0] - 1
    work = trace.work.reshape(steps, -1, 5).sum(1)
    predicted = trace.predicted.reshape(steps, -1).sum(1)
    return float(np.median(model.config.flops(*work[1:].T, predicted[1:])))


def prompt_of(model: Model, length: int) -> Tensor:
    """(length,) ids of real text: fact problems, joined and cut."""
    rng = random.Random(0)
    ids: list[int] = []
    while len(ids) < length:
        ids += model.encode(tasks.draw("facts", rng, held_out=True).prompt).tolist()
    return torch.tensor(ids[:length])


def random_model(shape: str, devices: list[torch.device], dtype: torch.dtype) -> Model:
    """A model of a known shape with random weights, made on the devices."""
    model, homes = models.spread_over(CONFIGS[shape], devices)
    rngs = {device: torch.Generator(device).manual_seed(0) for device in devices}
    state = {}
    for name, like in model.named_parameters():
        home = homes[name]
        weight = state[name] = torch.ones(like.shape, device=home, dtype=dtype)
        if not name.endswith("norm.weight"):
            weight.normal_(0, 0.02, generator=rngs[home])
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval().lay_out()


def narrowed(model: Model, prompt: Tensor, masks: int) -> float:
    """Convert a model's weights to 8 bits, in place; -> the relative error of its logits.

    That is ||after - before|| / ||before|| in a full pass over prompt (P,) and `masks` masks.
    """

    def logits() -> Tensor:
        steps = d2cache.generate(model, prompt, "none", gen_length=masks, eager=True)
        made = next(steps).logits.double()
        steps.close()
        return made[..., torch.arange(model.config.vocab) != model.config.mask_id]  # that is -inf

    before = logits()
    to_fp8(model)
    return float((logits() - before).norm() / before.norm())


# The table of a loaded model.


def model_table(args: Namespace, model: Model, prompt: Tensor, error: float | None) -> None:
    """Measure and print; the last line is JSON with --json."""
    found = limits(model.device, model.dtype)
    weights = sum(p.nbytes for p in model.parameters())
    length = args.prompt_length + args.gen_length
    about = {
        "model": model.config.name,
        "dtype": _name(model.dtype),
        "machine": _machine(model.device),
        "length": length,
        **found,
        "weights": args.weights,
        "logits_error": error,
        "weights_bytes": weights,
    }
    full = model.config.flops(*model.config.work(length, length, length), args.gen_length)
    print(_model_heading(about, full))
    print(COLUMNS)
    results: list[dict] = []
    for name in args.names:
        r = measure(
            model, name, prompt, args.gen_length, args.block_length, args.repeats, args.eager
        )
        r["ratio"] = r["steps_per_second"] / (results[0] if results else r)["steps_per_second"]
        results.append(r)
        print(
            f"{name:12} {r['median_ms']:8.2f} {r['steps_per_second']:9.1f} {r['ratio']:7.2f} "
            f"{100 * r['hit_rate']:8.1f} % {r['rows']:11.1f} {r['flops_vs_none']:15.2f} "
            f"{r['spread']:8.2f}"
        )
    if args.json:
        print(json.dumps(about | {"policies": results}))


def _model_heading(about: dict, full: float) -> str:
    """full: FLOPs of a full pass."""
    floor = 1e3 * about["weights_bytes"] / (about["copy_gb_s"] * 1e9)
    return (
        f"{about['model']}, {about['dtype']}, {about['machine']}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"measured limits: copy {about['copy_gb_s']:.1f} GB/s, "
        f"matrix product {about['matrix_gflop_s']:.0f} GFLOP/s\n"
        f"weights {about['weights_bytes'] / 1e6:.1f} MB, read once in {floor:.2f} ms; a full pass "
        f"of {about['length']} positions is {full / 1e9:.2f} GFLOP, "
        f"{1e3 * full / about['matrix_gflop_s'] / 1e9:.1f} ms at that rate\n" + _error_line(about)
    )


# The table of a shape.


def shape_table(args: Namespace) -> None:
    """Measure and print; the last line is JSON with --json."""
    devices = models.pick_devices(args.device)
    device = devices[0]
    dtype = getattr(torch, args.dtype) if args.dtype else models.default_dtype(device)
    models.check_fits(CONFIGS[args.shape], devices, dtype)
    model, found = random_model(args.shape, devices, dtype), limits(device, dtype)
    error = _shape_error(model, args) if args.weights else None
    weights = sum(p.nbytes for n, p in model.named_parameters() if not n.startswith("embed"))
    about = {
        "shape": args.shape,
        "dtype": _name(dtype),
        "machine": _machine(device),
        "eager": args.eager,
        "date": time.strftime("%Y-%m-%d"),
        **found,
        "weights": args.weights,
        "logits_error": error,
        "weights_bytes": weights,
        "floor_ms": 1e3 * weights / (found["copy_gb_s"] * 1e9),
        "gen_length": args.gen_length,
    }
    print(f"{_shape_heading(about)}\n{SHAPE_COLUMNS}", flush=True)
    results = list(_shape_lines(model, args, about))
    if args.json:
        print(json.dumps(about | {"results": results}))


def _shape_error(model: Model, args: Namespace) -> float:
    size = (min(args.lengths) - args.gen_length,)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.eos_id, size, generator=rng)
    return narrowed(model, ids, min(FEW_MASKS, args.gen_length))


def _shape_heading(about: dict) -> str:
    kind = f"{about['dtype']} weights" + (f" in {about['weights']}" if about["weights"] else "")
    return (
        f"{about['shape']}, random {kind}, {about['machine']}, torch {torch.__version__}, "
        f"{about['date']}\n"
        f"measured limits: copy {about['copy_gb_s']:.0f} GB/s, "
        f"matrix product {about['matrix_gflop_s'] / 1e3:.1f} TFLOP/s\n"
        f"weights {about['weights_bytes'] / 1e9:.2f} GB, read once in {about['floor_ms']:.2f} ms: "
        f"the floor of a step\n" + _error_line(about)
    )


def _shape_lines(model: Model, args: Namespace, about: dict) -> Iterator[dict]:
    """Measure and print line by line; what does not fit in memory is left out."""
    for length in args.lengths:
        for batch in args.batches or ([1, 4, 16] if length == WIDE else [1]):
            rng = torch.Generator().manual_seed(length)
            size = (batch, length - args.gen_length)
            prompt = torch.randint(0, model.config.eos_id, size, generator=rng)
            for policy in args.names:
                r = {"policy": policy, "length": length, "batch": batch}
                try:
                    r |= _four_runs(model, policy, prompt, args)
                except OutOfMemory:
                    print(f"{policy:8} {length:5} {batch:6}  out of memory", flush=True)
                    continue
                r["floor_share"] = about["floor_ms"] / r["median_ms"]
                r["bytes"] = about["weights_bytes"] + _cache_bytes(model, batch, length)
                print(_shape_line(r), flush=True)
                yield r


def _four_runs(model: Model, policy: str, prompt: Tensor, args: Namespace) -> dict:
    """The first run, a second one, one that is recorded, and a last one to see drift."""
    first = steps_of(model, policy, prompt, args, False)["seconds"]
    found = {"first_run_seconds": first} | steps_of(model, policy, prompt, args, False)
    recorded = steps_of(model, policy, prompt, args, True)
    found |= {"recorded_ms": recorded["median_ms"], "flops": recorded["flops"]}
    return found | {"again_ms": steps_of(model, policy, prompt, args, False)["median_ms"]}


def _cache_bytes(model: Model, batch: int, length: int) -> int:
    """Bytes of the keys and values of a full canvas, which a step must read."""
    c = model.config
    return 2 * c.layers * batch * c.kv_heads * length * c.head_width * model.dtype.itemsize


def _shape_line(r: dict) -> str:
    return (
        f"{r['policy']:8} {r['length']:5} {r['batch']:6} {r['median_ms']:8.2f} "
        f"{100 * r['floor_share']:5.0f}% {r['tokens_per_second']:9.1f} "
        f"{r['rows']:10.1f} {r['recorded_ms']:11.2f} {r['again_ms']:6.2f} "
        f"{r['worst_ms']:9.1f} {r['first_run_seconds']:12.1f}"
    )


def _error_line(about: dict) -> str:
    """A line with the error of 8-bit weights; empty for others."""
    if not about["weights"]:
        return ""
    off = f"{100 * about['logits_error']:.2f} % of their norm"
    return f"weights in {about['weights']}: a full pass has logits off by {off}\n"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _machine(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()


# The command line.

LENGTHS = (512, 1024, 2048, 4096)  # of a shape, as far as it has room
# What only one of the two tables reads, by the names of the arguments, with the defaults.
SHAPE_ONLY = {"lengths": None, "batches": None, "steps": None, "rollout_p": 0.1}
MODEL_ONLY = {"model": "tiny", "prompt_length": 96, "repeats": 5}


def parse(argv=None) -> Namespace:
    parser = command.Parser(prog="python -m analysis.bench", description=__doc__)
    add, shape, model = parser.add_argument, "with --shape: ", "without --shape: "
    add("--model", help=f"{model}default tiny")
    every = [policy["name"] for policy in d2cache.policies()]
    add("--policies", type=names, default=every, metavar="NAME,..")
    add("--shape", choices=["llada-8b", "dream-7b", "tiny"], help="random weights of this shape")
    lengths_help = f"{shape}canvas lengths; default 512,1024,2048,4096"
    add("--lengths", type=wholes, metavar="T,..", help=lengths_help)
    batches_help = f"{shape}default 1, and 4 and 16 at T = {WIDE}"
    add("--batches", type=wholes, metavar="B,..", help=batches_help)
    add("--steps", type=whole(2), metavar="N", help=f"{shape}measure only the first steps")
    add("--rollout-p", type=real(), metavar="X", help=f"{shape}a knob of d2; default 0.1")
    add("--eager", action="store_true", default=None, help="no CUDA graphs on a GPU")
    add("--prompt-length", type=whole(1), metavar="N", help=f"{model}default 96")
    # the first step of a run is left out, so one is too few
    gen_help = "masks, all of which are filled; default 96, with --shape 256"
    add("--gen-length", type=whole(2), metavar="N", help=gen_help)
    add("--block-length", type=whole(1), metavar="N", help="default: one block")
    add("--device", default="auto")
    add("--dtype", default=None, choices=["float32", "bfloat16"])
    add("--weights", choices=["fp8"], help="weights in 8 bits; default: in --dtype")
    add("--repeats", type=whole(1), metavar="N", help=f"{model}default 5")
    add("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(argv)


def check(args: Namespace) -> None:
    """Complete the arguments; raises ValueError for what cannot be measured."""
    args.names = sorted(args.policies, key=lambda n: n != "none")  # the reference first
    args.gen_length = args.gen_length or (256 if args.shape else 96)
    _refuse_unread(args, MODEL_ONLY if args.shape else SHAPE_ONLY)
    if args.rollout_p is not None and "d2" not in args.names:
        raise ValueError("--rollout-p is a knob of d2, which --policies leaves out")
    for name, default in (SHAPE_ONLY if args.shape else MODEL_ONLY).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    for name in args.names:
        d2cache.make_policy(name)
    models.pick_devices(args.device)
    if args.shape:
        d2cache.make_policy("d2", rollout_p=args.rollout_p)
        most = CONFIGS[args.shape].max_length
        args.lengths = args.lengths or [length for length in LENGTHS if length <= most]
        _check_lengths(args, most)


def _refuse_unread(args: Namespace, others: dict) -> None:
    """Flags of the other table, which would do nothing."""
    for name in others:
        if getattr(args, name) is not None:
            which = "without --shape only" if args.shape else "for --shape only"
            raise ValueError(f"--{name.replace('_', '-')} is {which}; leave one of them out")


def _check_lengths(args: Namespace, most: int) -> None:
    least = args.gen_length + 1
    for length in args.lengths:
        if not least <= length <= most:
            raise ValueError(
                f"--lengths has {length}; with an answer of {args.gen_length} a canvas of "
                f"{args.shape} has {least} to {most} positions"
            )


def load(args: Namespace) -> tuple[Model, Tensor, float | None]:
    """The model, a prompt, and the error of 8-bit weights; ValueError if they do not fit."""
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = d2cache.load(args.model, args.device, dtype)
    prompt = prompt_of(model, args.prompt_length)
    open_canvas(model, prompt, args.gen_length, args.block_length)
    masks = min(FEW_MASKS, args.gen_length)
    return model, prompt, narrowed(model, prompt, masks) if args.weights else None


def measure_and_print(args: Namespace) -> None:
    """The table that the flags ask for."""
    check(args)
    if args.shape:
        shape_table(args)
    else:
        model_table(args, *load(args))


def main(argv=None) -> int:
    """Exit codes as of `d2cache.command.guarded`."""
    return command.guarded("bench", lambda: measure_and_print(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
