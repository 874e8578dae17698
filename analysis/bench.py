"""Speed on this machine: python -m analysis.bench [--policies none,d2] [--json]

Prints the limits first (measured here, now), then one line a policy: median milliseconds a step,
steps a second with the recording of a trace included, and the ratio to the first policy.

With --shape llada-8b or dream-7b a model of that shape with random weights is measured, one line
a policy, canvas length and batch size (larger batches at one length, if none are named): the median
over whole generations with everything a user gets, with and without the recording of a trace, and
the share of the floor, the time in which this device reads the weights of the layers and the LM
head once.

With --weights fp8 the products' weights are in 8 bits, and the error is stated: how far that moves
the logits of one full pass, relative to their norm, from those of the same weights before.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time

import numpy as np
import torch

import d2cache
from d2cache import models
from d2cache.generate import open_canvas
from d2cache.model import CONFIGS, Linear, Model
from d2cache.quantize import to_fp8
from d2cache.teaching import tasks
from d2cache.trace import Recorder

WIDE = 1024  # the length at which larger batches are measured


def limits(device: torch.device, dtype: torch.dtype) -> dict:
    """Copy bandwidth in GB/s (read + written) and matrix rate in GFLOP/s, best of five; the
    products are computed as a model's are."""
    size = 1 << (28 if device.type == "cuda" else 24)
    source, n = torch.rand(size, device=device), 8192 if device.type == "cuda" else 1024
    target = torch.empty_like(source)
    layer, x = Linear(n, n, False, device, dtype), torch.randn(n, n, device=device, dtype=dtype)
    layer.lay_out()
    copy = min(_timed(lambda: target.copy_(source), device) for _ in range(5))
    with torch.inference_mode():
        product = min(_timed(lambda: layer(x), device) for _ in range(5))
    return {"copy_gb_s": 2 * source.nbytes / copy / 1e9, "matrix_gflop_s": 2 * n**3 / product / 1e9}


def _timed(work, device) -> float:
    sync(device)
    begin = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - begin


def sync(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(model, policy: str, prompt, gen_length: int, block_length, repeats: int) -> dict:
    """Whole generations, recorded; the best of `repeats` after one that warms up."""
    runs = []
    for repeat in range(repeats + 1):
        recorder, marks = Recorder(), []
        sync(model.device)
        begin = time.perf_counter()
        steps = d2cache.generate(
            model, prompt, policy, gen_length=gen_length, block_length=block_length
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


def prompt_of(model, length: int) -> torch.Tensor:
    """(length,) ids of real text: fact problems, joined and cut."""
    rng, ids = random.Random(0), []
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


def narrowed(model: Model, prompt: torch.Tensor, masks: int) -> float:
    """Bring a model's weights to 8 bits, in place; -> the relative error that its logits have from
    it, in a full pass over the prompt (P,) and so many masks: ||after - before|| / ||before||."""

    def logits():
        steps = d2cache.generate(model, prompt, "none", gen_length=masks, eager=True)
        made = next(steps).logits.double()
        steps.close()
        return made[..., torch.arange(model.config.vocab) != model.config.mask_id]  # that is -inf

    before = logits()
    to_fp8(model)
    return float((logits() - before).norm() / before.norm())


def in_words(weights: str, error: float) -> str:
    """The line that states the error of 8-bit weights."""
    return f"weights in {weights}: a full pass has logits off by {100 * error:.2f} % of their norm"


def steps_of(model, policy: str, prompt, args, record: bool) -> dict:
    """One generation, or its first `args.steps` steps; medians of a step, the first left out, in ms
    and, of a recorded one, in FLOPs."""
    knobs = dict(rollout_p=args.rollout_p) if policy == "d2" else {}
    policy = d2cache.make_policy(policy, **knobs)
    block = 32 if policy.for_blocks and args.block_length is None else args.block_length
    recorder, marks, rows = Recorder(), [], []
    sync(model.device)
    begin = time.perf_counter()
    steps = d2cache.generate(
        model, prompt, policy, gen_length=args.gen_length, block_length=block, eager=args.eager
    )
    for step in steps:
        if record:
            recorder.add(step)
        marks.append(time.perf_counter())
        if not record:
            rows.append(step.rows_per_layer.float().mean())
        if len(marks) == args.steps:
            break
    sync(model.device)
    whole, flops = time.perf_counter() - begin, None
    if record:
        trace = recorder.trace()
        steps = len(marks)
        work = trace.work.reshape(steps, -1, 5).sum(1)  # of all rows of a batch
        predicted = trace.predicted.reshape(steps, -1).sum(1)
        flops = float(np.median(model.config.flops(*work[1:].T, predicted[1:])))
    gaps = [1e3 * (b - a) for a, b in zip(marks, marks[1:], strict=False)]
    written = (step.tokens != step.before.mask_id)[:, step.before.prompt_length :].sum()
    return {
        "median_ms": statistics.median(gaps),
        "steps": len(marks),
        "seconds": whole,
        "worst_ms": max(gaps),
        "tokens_per_second": float(written) / whole,
        "rows": float(torch.stack(rows[1:]).mean()) if rows else None,
        "flops": flops,
    }


def shape_table(args) -> int:
    """The table of --shape; its last line is JSON with --json."""
    devices = models.pick_devices(args.device)
    device = devices[0]
    dtype = getattr(torch, args.dtype) if args.dtype else models.default_dtype(device)
    model, found = random_model(args.shape, devices, dtype), limits(device, dtype)
    rng, error = torch.Generator().manual_seed(0), None
    if args.weights:
        size = (min(args.lengths) - args.gen_length,)
        ids = torch.randint(0, model.config.eos_id, size, generator=rng)
        error = narrowed(model, ids, min(64, args.gen_length))
    weights = sum(p.nbytes for n, p in model.named_parameters() if not n.startswith("embed"))
    floor = 1e3 * weights / (found["copy_gb_s"] * 1e9)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    kind = f"{str(dtype)[6:]} weights" + (f" in {args.weights}" if args.weights else "")
    print(
        f"{args.shape}, random {kind}, {name}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}\n"
        f"measured limits: copy {found['copy_gb_s']:.0f} GB/s, "
        f"matrix product {found['matrix_gflop_s'] / 1e3:.1f} TFLOP/s\n"
        f"weights {weights / 1e9:.2f} GB, read once in {floor:.2f} ms: the floor of a step\n"
        + (f"{in_words(args.weights, error)}\n" if args.weights else "")
        + "\n"
        "policy      T  batch  ms/step  floor  tokens/s  rows/step  with trace  again  worst ms"
        "  first run s",
        flush=True,
    )
    results = []
    for length in args.lengths:
        for batch in args.batches or ([1, 4, 16] if length == WIDE else [1]):
            rng = torch.Generator().manual_seed(length)
            size = (batch, length - args.gen_length)
            prompt = torch.randint(0, model.config.eos_id, size, generator=rng)
            for policy in args.names:
                r = {"policy": policy, "length": length, "batch": batch}
                try:
                    r["first_run_seconds"] = steps_of(model, policy, prompt, args, False)["seconds"]
                    r |= steps_of(model, policy, prompt, args, False)
                    recorded = steps_of(model, policy, prompt, args, True)
                    r |= {"recorded_ms": recorded["median_ms"], "flops": recorded["flops"]}
                    r["again_ms"] = steps_of(model, policy, prompt, args, False)["median_ms"]
                except torch.cuda.OutOfMemoryError:
                    print(f"{policy:8} {length:5} {batch:6}  out of memory", flush=True)
                    continue
                r["floor_share"] = floor / r["median_ms"]
                c = model.config
                kept = 2 * c.layers * batch * c.kv_heads * length * c.head_width
                r["bytes"] = weights + kept * dtype.itemsize  # what a step must read
                results.append(r)
                print(
                    f"{policy:8} {length:5} {batch:6} {r['median_ms']:8.2f} "
                    f"{100 * r['floor_share']:5.0f}% {r['tokens_per_second']:9.1f} "
                    f"{r['rows']:10.1f} {r['recorded_ms']:11.2f} {r['again_ms']:6.2f} "
                    f"{r['worst_ms']:9.1f} {r['first_run_seconds']:12.1f}",
                    flush=True,
                )
    if args.json:
        print(
            json.dumps(
                {
                    "shape": args.shape,
                    "dtype": str(dtype)[6:],
                    "machine": name,
                    "eager": args.eager,
                    "date": time.strftime("%Y-%m-%d"),
                    **found,
                    "weights": args.weights,
                    "logits_error": error,
                    "weights_bytes": weights,
                    "floor_ms": floor,
                    "gen_length": args.gen_length,
                    "results": results,
                }
            )
        )
    return 0


def numbers(text: str) -> list[int]:
    """ "512,1024" -> [512, 1024]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.bench", description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--policies", default=",".join(p["name"] for p in d2cache.policies()))
    parser.add_argument("--shape", choices=["llada-8b", "dream-7b", "tiny"], help="random weights")
    parser.add_argument("--lengths", type=numbers, default=[512, 1024, 2048, 4096], metavar="T,..")
    parser.add_argument(
        "--batches", type=numbers, metavar="B,..", help=f"default: 1, at T = {WIDE} 4 and 16 too"
    )
    parser.add_argument("--steps", type=int, default=None, help="with --shape: stop after so many")
    parser.add_argument("--rollout-p", type=float, default=0.1, help="with --shape: d2's knob")
    parser.add_argument("--eager", action="store_true", default=None, help="no graphs on a GPU")
    parser.add_argument("--prompt-length", type=int, default=96)
    parser.add_argument("--gen-length", type=int, default=None, help="default: 96; --shape: 256")
    parser.add_argument("--block-length", type=int, default=None, help="default: one block")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16"])
    parser.add_argument("--weights", choices=["fp8"], help="in 8 bits; default: of the dtype")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    try:
        names = list(dict.fromkeys(n for n in args.policies.split(",") if n))
        if not names:
            raise ValueError("nothing to measure; name at least one policy")
        for name in names:
            d2cache.make_policy(name)
        args.gen_length = args.gen_length or (256 if args.shape else 96)
        args.names = sorted(names, key=lambda n: n != "none")  # the reference first
        for name in ("prompt_length", "gen_length", "repeats"):
            if getattr(args, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(args, name)}; it must be at least 1")
        if args.shape and min(args.lengths + (args.batches or [])) < 1:
            raise ValueError("--lengths and --batches are whole numbers of at least 1")
        if args.shape and min(args.lengths) <= args.gen_length:
            raise ValueError(
                f"--lengths has {min(args.lengths)}; with an answer of {args.gen_length} a canvas "
                f"has at least {args.gen_length + 1} positions"
            )
        if args.shape:
            return shape_table(args)
        dtype = getattr(torch, args.dtype) if args.dtype else None
        model = d2cache.load(args.model, args.device, dtype)
        prompt = prompt_of(model, args.prompt_length)
        open_canvas(model, prompt, args.gen_length, args.block_length)
        error = narrowed(model, prompt, min(64, args.gen_length)) if args.weights else None
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    names = args.names
    found = limits(model.device, model.dtype)
    weights = sum(p.nbytes for p in model.parameters())
    floor = 1e3 * weights / (found["copy_gb_s"] * 1e9)
    length = args.prompt_length + args.gen_length
    full = model.config.flops(*model.config.work(length, length, length), args.gen_length)
    machine = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.machine()
    print(
        f"{model.config.name}, {str(model.dtype)[6:]}, {machine}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"measured limits: copy {found['copy_gb_s']:.1f} GB/s, "
        f"matrix product {found['matrix_gflop_s']:.0f} GFLOP/s\n"
        f"weights {weights / 1e6:.1f} MB, read once in {floor:.2f} ms; a full pass of "
        f"{length} positions is {full / 1e9:.2f} GFLOP, "
        f"{1e3 * full / found['matrix_gflop_s'] / 1e9:.1f} ms at that rate\n"
        + (f"{in_words(args.weights, error)}\n" if args.weights else "")
    )
    results = []
    print("policy        ms/step   steps/s   ratio   hit rate   rows/step   FLOPs vs none   spread")
    for name in names:
        r = measure(model, name, prompt, args.gen_length, args.block_length, args.repeats)
        r["ratio"] = r["steps_per_second"] / (results[0] if results else r)["steps_per_second"]
        results.append(r)
        print(
            f"{name:12} {r['median_ms']:8.2f} {r['steps_per_second']:9.1f} {r['ratio']:7.2f} "
            f"{100 * r['hit_rate']:8.1f} % {r['rows']:11.1f} {r['flops_vs_none']:15.2f} "
            f"{r['spread']:8.2f}"
        )
    if args.json:
        print(
            json.dumps(
                {
                    "model": model.config.name,
                    "dtype": str(model.dtype)[6:],
                    "machine": machine,
                    "length": length,
                    **found,
                    "weights": args.weights,
                    "logits_error": error,
                    "weights_bytes": weights,
                    "policies": results,
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
