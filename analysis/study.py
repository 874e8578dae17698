"""Held-out accuracy: python -m analysis.study --policies none,d2 --problems 100 --seed 1

The problems are drawn from the seed and disjoint from training by construction; decoding is
greedy; each answer stops at its own end of text, which changes no answer. With --devices a process
on each device runs the exams, several at the same time. With --calibration it prints how sure the
written tokens are and how often they are right instead.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import queue
import sys
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pandas as pd

import d2cache
from d2cache import command
from d2cache.bundled import FAMILIES
from d2cache.command import names, places, reals, whole
from d2cache.decoders import Decoder
from d2cache.models import default_dtype, pick_devices
from d2cache.progress import Bar, say
from d2cache.teaching import tasks
from d2cache.teaching.calibration import calibration
from d2cache.teaching.exam import exam

Source = tuple[str, str | None]  # of a model: its name, and how its weights are stored
Paper = tuple[str, str, Decoder, int, int]  # family, policy, decoder, problems, seed
RunExams = Callable[[list[Paper], dict], Iterable[dict]]


# Run.


@functools.cache
def loaded(source: Source, device: str) -> d2cache.Model:
    """The model, loaded once per process."""
    name, weights = source
    return d2cache.load(name, device, weights=weights)


def run_exam(source: Source, device: str, paper: Paper, settings: dict) -> dict:
    """One exam in this process; settings: keyword arguments of `exam`."""
    return exam(loaded(source, device), *paper, **settings)


def run_exam_shown(
    source: Source, device: str, paper: Paper, settings: dict, asked: bool | None
) -> dict:
    """The same, with a bar of the problems that are solved; asked: see `progress.wanted`."""
    family, policy, decoder, problems, _ = paper
    with Bar(f"{family}, {policy}, {decoder.key}", problems, asked, unit="problem") as bar:
        return run_exam(source, device, paper, settings | {"progress": bar.show})


@contextlib.contextmanager
def workers(source: Source, devices: list[str], asked: bool | None = None) -> Iterator[RunExams]:
    """A function that maps `run_exam` over exams, results in the order of the exams.

    They run in this process, with progress displays (asked: see `progress.wanted`), or, with
    several devices, in one process per device, which takes the next exam when it is free.
    """
    if len(devices) == 1:
        yield lambda papers, settings: (
            run_exam_shown(source, devices[0], paper, settings, asked) for paper in papers
        )
        return
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        idle: queue.SimpleQueue[tuple[ProcessPoolExecutor, str]] = queue.SimpleQueue()
        for device in devices:
            idle.put((stack.enter_context(ProcessPoolExecutor(1, context)), device))

        def send(settings: dict, paper: Paper) -> dict:
            process, device = idle.get()
            try:
                return process.submit(run_exam, source, device, paper, settings).result()
            finally:
                idle.put((process, device))

        threads = stack.enter_context(ThreadPoolExecutor(len(devices)))
        yield lambda papers, settings: threads.map(functools.partial(send, settings), papers)


def study(
    run_exams: RunExams,
    policies: list[str],
    decoders: list[Decoder],
    families: list[str],
    problems: int,
    seed: int,
    **settings,
) -> pd.DataFrame:
    """One line per family, policy and decoder, with the entries of `exam`'s result.

    run_exams: from `workers`. settings: keyword arguments of `exam`. Each line is also printed, to
    stderr, when it is known.
    """
    papers = [
        (family, policy, decoder, problems, seed)
        for family, policy, decoder in itertools.product(families, policies, decoders)
    ]
    lines = []
    for line in run_exams(papers, settings):
        lines.append(line)
        say(
            f"{line['family']}, {line['policy']}, {line['decoder']} sigma {line['sigma']:g}: "
            f"{100 * line['accuracy']:.1f} % of {problems}, "
            f"{line['steps']:.1f} steps each, {line['seconds']:.0f} s"
        )
    return pd.DataFrame(lines)


def calibrations(model: d2cache.Model, args: Namespace) -> pd.DataFrame:
    """One line per family: tokens judged, share right, mean confidence, expected calibration error
    (0 to 1 each), and the share of tokens whose confidence is above 1 - 1e-6."""
    lines = []
    for family in args.families:
        found = calibration(model, family, args.problems, args.seed, args.batch)
        lines.append(
            {
                "family": family,
                "tokens": len(found.right),
                "right": found.right.mean(),
                "confidence": found.confidence.mean(),
                "error": found.error,
                "saturated": found.saturated,
            }
        )
        say(f"{family}: {len(found.right)} tokens, error {found.error:.4f}")
    return pd.DataFrame(lines)


# Print.


def print_failures(frame: pd.DataFrame, count: int) -> None:
    """The first failures of each exam."""
    for line in frame.itertuples():
        for problem, text in line.failures[:count]:
            print(f"\n[{line.family}, {line.policy}, {line.decoder}] {problem.prompt}")
            print(f"wanted: {problem.answer}\ngot:    {text}")


def print_tables(frame: pd.DataFrame, families: list[str], priors: bool) -> None:
    """Accuracy and steps: one line per policy and decoder, one column per family.

    priors: whether a line also names the width of its certainty prior.
    """
    frame = frame.assign(accuracy=100 * frame["accuracy"])
    method = frame["policy"] + " " + frame["decoder"]
    if priors:
        method += " sigma " + frame["sigma"].map("{:g}".format)
    for value, title in (("accuracy", "accuracy in percent"), ("steps", "steps per problem")):
        table = frame.assign(method=method).pivot(index="method", columns="family", values=value)
        table = table.loc[method.unique(), families].rename_axis(index=None, columns=None)
        print(f"\n{title}\n{table.round(1).to_string()}")


def print_json(frame: pd.DataFrame, args: Namespace) -> None:
    knobs = {decoder.key: decoder.settings() for decoder in args.decoders}
    about = {"seed": args.seed, "weights": args.weights, "decoders": knobs}
    print(json.dumps(about | {"results": frame.drop(columns="failures").to_dict("records")}))


def conditions(args: Namespace) -> str:
    """A line with the settings that all exams share."""
    dtype = str(default_dtype(args.device)).removeprefix("torch.")
    blocks = f", blocks of {args.block_length}" if args.block_length else ""
    kind = f", weights in {args.weights}" if args.weights else ""
    prior = f", sigma {args.sigma[0]}" if len(args.sigma or []) == 1 else ""
    return (
        f"{args.problems} held-out problems per family, seed {args.seed}, {args.device.type}, "
        f"{dtype}{kind}{blocks}{prior}"
    )


# The command line.


def parse(argv=None) -> Namespace:
    parser = command.Parser(prog="python -m analysis.study", description=__doc__)
    add = parser.add_argument
    add("--policies", type=names, default=["none", "d2"], metavar="NAME,..")
    add("--decoders", type=names, default=["confidence"], metavar="NAME,..")
    add("--block-length", type=whole(1), metavar="N", help="default: one block")
    add("--problems", type=whole(1), default=100, metavar="N", help="per family")
    add("--seed", type=whole(0), default=1, metavar="N")
    families_help = "all: also those that the bundled model was not trained on"
    add("--families", type=names, default=[*FAMILIES], metavar="NAME,..", help=families_help)
    add("--model", default="tiny")
    add("--weights", choices=["fp8"], help="weights in 8 bits; default: in the device's dtype")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--device", default="auto", help="cuda:0,cuda:1 spreads one model over both")
    devices_help = "a copy of the model on each device"
    where.add_argument("--devices", type=places, metavar="DEV,..", help=devices_help)
    sigma_help = "widths of the decoders' certainty prior, a line of the table for each; 0: off"
    add("--sigma", type=reals, metavar="X,..", help=sigma_help)
    shots_help = "solved examples before a question, 0 to 8"
    add("--shots", type=whole(0, 8), default=0, metavar="N", help=shots_help)
    add("--batch", type=whole(1), default=8, metavar="N", help="problems decoded together")
    add("--show", type=whole(0), default=0, metavar="N", help="failures to print per exam")
    calibration_help = "confidence of the written tokens instead of accuracy: no cache, no prior"
    add("--calibration", action="store_true", help=calibration_help)
    add("--json", action="store_true", help="end with one line of JSON")
    progress_help = "show progress; default: where the output is a terminal"
    add("--progress", action=BooleanOptionalAction, default=None, help=progress_help)
    return parser.parse_args(argv)


def check(args: Namespace) -> None:
    """Replace names by what they name; raises ValueError for what cannot be studied."""
    for policy in args.policies:
        d2cache.make_policy(policy)
    if args.families == ["all"]:
        args.families = list(tasks.FAMILIES)
    for family in args.families:
        if family not in tasks.FAMILIES:
            allowed = ", ".join((*tasks.FAMILIES, "all"))
            raise ValueError(f"unknown family {family!r}; choose from {allowed}")
        if args.shots and tasks.FAMILIES[family].gaps:
            raise ValueError(f"--shots is for questions; {family} has texts: leave one of them out")
    if args.calibration and args.json:
        raise ValueError("--json is for exams; leave it out with --calibration")
    priors = [{"sigma": sigma} for sigma in args.sigma or []] or [{}]
    args.decoders = [d2cache.make_decoder(name, **one) for name in args.decoders for one in priors]
    args.devices = args.devices or [args.device]
    args.device, *_ = [pick_devices(name)[0] for name in args.devices]


def run(args: Namespace) -> None:
    """Study what the flags ask for, and print it."""
    check(args)
    if args.calibration:
        frame = calibrations(loaded((args.model, args.weights), args.devices[0]), args)
        print(f"{args.problems} held-out problems per family, seed {args.seed}")
        print(frame.round(4).to_string(index=False))
        return
    with workers((args.model, args.weights), args.devices, args.progress) as run_exams:
        frame = study(
            run_exams,
            args.policies,
            args.decoders,
            args.families,
            args.problems,
            args.seed,
            batch=args.batch,
            shots=args.shots,
            block_length=args.block_length,
        )
    print_failures(frame, args.show)
    print(f"\n{conditions(args)}")
    print_tables(frame, args.families, len(args.sigma or []) > 1)
    if args.json:
        print_json(frame, args)


def main(argv=None) -> int:
    """Exit codes as of `d2cache.command.guarded`."""
    return command.guarded("study", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
