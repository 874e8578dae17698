"""python -m d2cache run | compare | models | methods: decode prompts, list models and methods."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

import torch
from safetensors import SafetensorError

import d2cache
from d2cache import models
from d2cache.decoders import Decoder
from d2cache.edits import FORM
from d2cache.model import Model
from d2cache.policies import CachePolicy
from d2cache.registry import Knob, Registered, knobs, make, table
from d2cache.trace import Recorder, Trace

Method = type[Registered]  # a class of policies or decoders
Made = TypeVar("Made", bound=Registered)


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line says what to do), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parse(argv)
        code = args.command(args)
        sys.stdout.flush()  # raises here if the pipe was closed
        return code
    except ValueError as error:
        print(f"d2cache: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has closed it: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("d2cache: interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Raises ValueError on a bad command line, so that `main` reports it in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


# Parse.


def parse(argv: list[str]) -> Namespace:
    """The command line; `command` in it is the function to call. Raises ValueError."""
    parser = Parser(
        prog="python -m d2cache", description="Decode with a cached diffusion language model."
    )
    commands = parser.add_subparsers(required=True, metavar="run|compare|models|methods")
    _add_run(commands.add_parser("run", help="decode one prompt under one policy"))
    _add_compare(commands.add_parser("compare", help="decode one prompt under several policies"))
    _add_methods(commands.add_parser("methods", help="print tables of all policies and decoders"))
    _add_models(commands.add_parser("models", help="list the known models and which fit here"))
    return parser.parse_args(argv)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run)
    parser.add_argument("--policy", default="d2", help=f"one of {_names(CachePolicy)}")
    edit_help = f"change the run after a step; may be repeated: {FORM}"
    parser.add_argument("--edit", metavar="EDIT", action="append", default=[], help=edit_help)
    parser.add_argument("--trace", metavar="FILE", help="write the run to a trace file")
    _add_decoding(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=compare, trace=None, edit=[])
    policies_help = f"comma-separated, from {_names(CachePolicy)}"
    parser.add_argument("--policies", default="none,d2", help=policies_help)
    _add_decoding(parser)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    """What `run` and `compare` have in common."""
    add = parser.add_argument
    add("prompt", help="the question, in quotes")
    add("--model", default="tiny", help="tiny, a hub id, or a checkpoint folder")
    add("--decoder", default="confidence", help=f"one of {_names(Decoder)}")
    add("--gen-length", type=int, default=128, help="answer positions")
    add("--block-length", type=int, default=None, help="default: one block")
    add("--seed", type=int, default=0, help="used when sampling")
    add("--stop-at-eos", action="store_true", help="leave positions after the end of text masked")
    add("--eager", action="store_true", help="no CUDA graphs on a GPU")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0,cuda:1")
    dtype_help = "default: float32 on a CPU, bfloat16 on a GPU"
    add("--dtype", choices=["float32", "bfloat16"], help=dtype_help)
    add("--weights", choices=["fp8"], help="load the weights in 8 bits; default: in --dtype")
    add("--json", action="store_true", help="end with JSON, one line per run")
    for cls in _methods():
        _add_knobs(parser, cls)


def _add_knobs(parser: argparse.ArgumentParser, cls: Method) -> None:
    """--KNOB sets a knob of both policy and decoder, --policy-KNOB and --decoder-KNOB of one."""
    for each in knobs(cls):
        bounds = "" if each.low is None else f" ({each.low} to {each.high})"
        text = f"{each.help}{bounds}; default {each.default}"
        for name, shown in ((each.name, text), (f"{cls.kind}_{each.name}", argparse.SUPPRESS)):
            flag = _flag(name)
            if flag in parser._option_string_actions:  # another class has a knob of this name
                continue
            if each.kind is bool:
                switch = argparse.BooleanOptionalAction
                parser.add_argument(flag, default=None, help=shown, action=switch)
            else:
                parser.add_argument(flag, default=None, help=shown, type=each.kind)


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=list_methods)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=list_models)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="only JSON, one line per model")


def _names(base: Method) -> str:
    return ", ".join(sorted(base.registry))


def _methods() -> list[Method]:
    return [*CachePolicy.registry.values(), *Decoder.registry.values()]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# Check.


def _check(args: Namespace, policies: list[str]) -> None:
    """Raises ValueError for anything wrong in names, knobs or edits: before the model loads."""
    if not args.prompt.strip():
        raise ValueError("the prompt is empty; give a question in quotes")
    _check_flags(args, policies)
    for text in args.edit:
        d2cache.Edit.parse(text)
    for name in policies:
        _make(args, CachePolicy, name)
    _make(args, Decoder, args.decoder)


def _check_flags(args: Namespace, policies: list[str]) -> None:
    """Refuse a knob that no chosen policy or decoder has: it would do nothing."""
    chosen = [CachePolicy.registry[p] for p in policies if p in CachePolicy.registry]
    chosen += [Decoder.registry[args.decoder]] if args.decoder in Decoder.registry else []
    for name, each, kinds in _knob_flags():
        if getattr(args, name) is None or _owners(chosen, each.name, kinds):
            continue
        owners = _owners(_methods(), each.name, kinds)
        known = " or ".join(f"{cls.kind} {cls.key!r}" for cls in owners)
        raise ValueError(
            f"{_flag(name)} is a knob of {known}, which is not chosen here; "
            "leave it out or choose that one"
        )


def _knob_flags() -> Iterator[tuple[str, Knob, tuple[str, ...]]]:
    """Each knob's name in the parsed arguments, the knob, and the kinds that it sets."""
    for cls in _methods():
        for each in knobs(cls):
            yield each.name, each, ("policy", "decoder")
            yield f"{cls.kind}_{each.name}", each, (cls.kind,)


def _owners(classes: Iterable[Method], knob: str, kinds: tuple[str, ...]) -> list[Method]:
    return [c for c in classes if c.kind in kinds and knob in {k.name for k in knobs(c)}]


def _make(args: Namespace, base: type[Made], name: str) -> Made:
    """A policy or decoder with the knobs that were given."""
    cls = base.registry.get(name)
    given: dict[str, object] = {}
    for each in knobs(cls) if cls else ():
        for flag in (f"{base.kind}_{each.name}", each.name):
            value = getattr(args, flag, None)
            if value is not None:
                given.setdefault(each.name, value)
    return make(base.registry, base.kind, name, given)


# Do and print.


def run(args: Namespace) -> int:
    _check(args, [args.policy])
    model = _load(args)
    summary = _summary(model, _decode(args, model, args.policy))
    print(_sentence(summary))
    if args.json:
        print(json.dumps(summary))
    return 0


def compare(args: Namespace) -> int:
    names = [n.strip() for n in args.policies.split(",") if n.strip()]
    if not names:
        raise ValueError(
            f"--policies is empty; give a comma-separated list from {_names(CachePolicy)}"
        )
    _check(args, names)
    model = _load(args)
    reference = _decode(args, model, "none")
    for name in names:
        trace = reference if name == "none" else _decode(args, model, name)
        p = trace.prompt_length
        same = float((trace.tokens[-1, p:] == reference.tokens[-1, p:]).mean())
        summary = _summary(model, trace) | {"agreement_vs_none": same}
        sentence = f"{_sentence(summary)}, {100 * same:.0f} % of the answer as without a cache\n"
        print(json.dumps(summary) if args.json else sentence)
    return 0


def list_methods(args: Namespace) -> int:
    print(table(CachePolicy, "what it does"))
    print()
    print(table(Decoder, "what it does"))
    return 0


def list_models(args: Namespace) -> int:
    entries = models.known(args.device)
    if args.json:
        for entry in entries:
            print(json.dumps(entry.summary()))
    else:
        _print_models(entries)
    return 0


def _load(args: Namespace) -> Model:
    """The model, with a progress bar on a terminal while a large one is fetched and read."""
    from tqdm.auto import tqdm

    with contextlib.ExitStack() as stack:
        bars: dict[str, tqdm] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bar = tqdm(desc=what, unit="B", unit_scale=True, leave=False, disable=None)
                bars[what] = stack.enter_context(bar)
            bars[what].total = total
            bars[what].update(done - bars[what].n)

        return d2cache.load(
            args.model,
            device=args.device,
            dtype=getattr(torch, args.dtype or "", None),
            progress=None if args.model == "tiny" else progress,
            weights=args.weights,
        )


def _decode(args: Namespace, model: Model, policy: str) -> Trace:
    recorder = Recorder()
    steps = d2cache.generate(
        model,
        model.encode(args.prompt),
        _make(args, CachePolicy, policy),
        _make(args, Decoder, args.decoder),
        gen_length=args.gen_length,
        block_length=args.block_length,
        seed=args.seed,
        stop_at_eos=args.stop_at_eos,
        eager=args.eager or None,
        edits=[d2cache.Edit.parse(text) for text in args.edit],
    )
    try:
        for step in steps:
            recorder.add(step)
    finally:  # an interrupted run still leaves its trace
        if args.trace and recorder.run:
            _save(recorder.trace(), args.trace)
    return recorder.trace()


def _save(trace: Trace, path: str) -> None:
    try:
        trace.save(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"cannot write the trace to {path!r}: {reason}") from error


def _summary(model: Model, trace: Trace) -> dict:
    """What --json prints: times in seconds, rates and ratios as fractions of 1."""
    totals, run = trace.totals, trace.run
    costs = "answer_tokens steps seconds tokens_per_second hit_rate flops flops_vs_none"
    settings = ("model", "policy", "decoder", "device", "weights")
    return {
        "text": model.decode(trace.tokens[-1, trace.prompt_length :]).strip(),
        **{name: totals[name] for name in costs.split()},
        **{name: run[name] for name in settings if name in run},
    }


def _sentence(summary: dict) -> str:
    s = summary
    return (
        f"{s['text']}\n\n{s['policy']} + {s['decoder']}: {s['steps']} steps in "
        f"{s['seconds']:.2f} s, {s['tokens_per_second']:.1f} answer tokens/s, "
        f"{100 * s['hit_rate']:.1f} % of rows reused, "
        f"{s['flops_vs_none']:.2f} of the FLOPs without a cache"
    )


def _print_models(entries: list[models.Entry]) -> None:
    first = entries[0]
    free = "unknown" if first.free is None else f"{first.free / 1e9:.1f} GB"
    print(f"{first.device}, {first.dtype}, free memory: {free}\n")
    print(f"{'model':38}{'family':8}{'parameters':>12}{'on disk':>9}{'memory':>10}{'fits':>6}")
    answers = {True: "yes", False: "no", None: "?"}
    for e in entries:
        billions = e.parameters > 1e8
        size = f"{e.parameters / 1e9:.2f} B" if billions else f"{e.parameters / 1e6:.2f} M"
        print(
            f"{e.name:38}{e.family:8}{size:>12}{answers[e.cached]:>9}"
            f"{(e.weights + e.kv) / 1e9:>7.2f} GB{answers[e.fits]:>6}"
        )
    print("\nmemory: the weights, and the keys and values of 1024 positions")


if __name__ == "__main__":
    sys.exit(main())
