"""Held-out accuracy: python -m analysis.study --policies none,d2 --problems 100 --seed 1

Problems are generated from the seed and disjoint from training by construction; decoding is
greedy; each row stops at its own end of text, which changes no answer. With --devices the lines of
the table are made at the same time, by a process on each device.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import queue
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pandas as pd

import d2cache
from d2cache.models import default_dtype, pick_devices
from d2cache.teaching import tasks
from d2cache.teaching.exam import exam


@functools.cache
def loaded(name: str, device: str, weights: str | None) -> d2cache.Model:
    return d2cache.load(name, device, weights=weights)


def sit(model: tuple, device: str, asked: tuple, settings: dict) -> dict:
    """One exam by the model (name, weights) of this process; asked: family, policy, decoder,
    problems, seed."""
    return exam(loaded(model[0], device, model[1]), *asked, **settings)


@contextlib.contextmanager
def sitting(model: tuple, devices: list[str]):
    """A function that maps `sit` over exams, lines in the order of the exams: in this process, or
    with several devices in one process on each, which takes the next exam when it is free."""
    if len(devices) == 1:
        yield lambda exams, settings: (sit(model, devices[0], one, settings) for one in exams)
        return
    with contextlib.ExitStack() as stack:
        fresh, idle = multiprocessing.get_context("spawn"), queue.SimpleQueue()
        for device in devices:
            idle.put((stack.enter_context(ProcessPoolExecutor(1, fresh)), device))

        def send(settings, one):
            process, device = idle.get()
            try:
                return process.submit(sit, model, device, one, settings).result()
            finally:
                idle.put((process, device))

        threads = stack.enter_context(ThreadPoolExecutor(len(devices)))
        yield lambda exams, settings: threads.map(functools.partial(send, settings), exams)


def study(sat, policies, decoders, families, problems: int, seed: int, **settings):
    """One line a family, policy and decoder: accuracy (0 to 1), problems, mean steps a problem,
    seconds, failures; a DataFrame. sat: from `sitting`. settings: of `exam`."""
    lines = []
    exams = [
        (family, policy, decoder, problems, seed)
        for family, policy, decoder in itertools.product(families, policies, decoders)
    ]
    for (family, policy, decoder, *_), line in zip(exams, sat(exams, settings), strict=True):
        lines.append(line)
        print(
            f"{family}, {policy}, {decoder.key}: {100 * line['accuracy']:.1f} % of {problems}, "
            f"{line['steps']:.1f} steps each, {line['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return pd.DataFrame(lines)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.study", description=__doc__)
    parser.add_argument("--policies", default="none,d2")
    parser.add_argument("--decoders", default="confidence")
    parser.add_argument("--block-length", type=int, default=None, help="default: one block")
    parser.add_argument("--problems", type=int, default=100, help="a family")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--families", default=",".join(tasks.FAMILIES))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--weights", choices=["fp8"], help="in 8 bits; default: of the dtype")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--device", default="auto", help="of several, cuda:0,cuda:1, one model")
    where.add_argument("--devices", metavar="DEV,..", help="as many models, one on each device")
    parser.add_argument("--sigma", type=float, default=None, help="of the decoder's prior")
    parser.add_argument("--shots", type=int, default=0, help="solved examples before a question")
    parser.add_argument("--batch", type=int, default=8, help="problems decoded together")
    parser.add_argument("--show", type=int, default=0, help="failures printed a family")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    try:
        policies = list(dict.fromkeys(p for p in args.policies.split(",") if p))
        families = list(dict.fromkeys(f for f in args.families.split(",") if f))
        if not policies or not families or not args.decoders.strip(","):
            raise ValueError("nothing to study; name at least one policy, decoder and family")
        for policy in policies:
            d2cache.make_policy(policy)
        for family in families:
            if family not in tasks.FAMILIES:
                allowed = ", ".join(tasks.FAMILIES)
                raise ValueError(f"unknown family {family!r}; choose from {allowed}")
        for name in ("problems", "batch", "block_length"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if not 0 <= args.shots <= 8:
            raise ValueError(f"--shots is {args.shots}; it must be from 0 to 8")
        sigma = {} if args.sigma is None else {"sigma": args.sigma}
        names = dict.fromkeys(d for d in args.decoders.split(",") if d)
        decoders = [d2cache.make_decoder(name, **sigma) for name in names]
        devices = [args.device] if args.devices is None else args.devices.split(",")
        device, *_ = [pick_devices(one)[0] for one in devices]  # a look at all of them
        with sitting((args.model, args.weights), devices) as sat:
            frame = study(
                sat,
                policies,
                decoders,
                families,
                args.problems,
                args.seed,
                batch=args.batch,
                shots=args.shots,
                block_length=args.block_length,
            )
    except ValueError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    for line in frame.itertuples():
        for problem, text in line.failures[: args.show]:
            print(f"\n[{line.family}, {line.policy}, {line.decoder}] {problem.prompt}")
            print(f"wanted: {problem.answer}\ngot:    {text}")
    blocks = f", blocks of {args.block_length}" if args.block_length else ""
    kind = f", weights in {args.weights}" if args.weights else ""
    prior = "" if args.sigma is None else f", sigma {args.sigma}"
    print(
        f"\n{args.problems} held-out problems a family, seed {args.seed}, {device.type}, "
        f"{str(default_dtype(device))[6:]}{kind}{blocks}{prior}"
    )
    frame["accuracy"] *= 100
    method = frame["policy"] + " " + frame["decoder"]
    for value, title in (("accuracy", "accuracy in percent"), ("steps", "steps a problem")):
        table = frame.assign(method=method).pivot(index="method", columns="family", values=value)
        table = table.loc[method.unique(), families].rename_axis(index=None, columns=None)
        print(f"\n{title}\n{table.round(1).to_string()}")
    if args.json:
        frame["accuracy"] /= 100
        records = frame.drop(columns="failures").to_dict("records")
        knobs = {decoder.key: decoder.settings() for decoder in decoders}
        ran = {"seed": args.seed, "weights": args.weights, "decoders": knobs}
        print(json.dumps(ran | {"results": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
