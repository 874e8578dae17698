"""python -m d2cache run | compare | models | methods: decode and list what there is."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys

import torch
from safetensors import SafetensorError

import d2cache
from d2cache import models
from d2cache.decoders import Decoder
from d2cache.edits import FORM
from d2cache.policies import CachePolicy
from d2cache.registry import knobs, make, table
from d2cache.trace import Recorder


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line says what to do), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parse(argv)
        code = args.command(args)
        sys.stdout.flush()  # a closed pipe shows here
        return code
    except ValueError as error:
        print(f"d2cache: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("d2cache: interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Complains like everything else here: one line, exit code 2."""

    def error(self, message: str):
        raise ValueError(f"{message}; see {self.prog} --help")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m d2cache", description="Decode with a cached diffusion language model."
    )
    commands = parser.add_subparsers(required=True, metavar="run|compare|models|methods")
    one = commands.add_parser("run", help="decode one prompt under one policy")
    one.set_defaults(command=run)
    one.add_argument("--policy", default="d2", help=f"one of {_names(CachePolicy)}")
    one.add_argument(
        "--edit",
        metavar="EDIT",
        action="append",
        default=[],
        help=f"change the run after a step; may be repeated: {FORM}",
    )
    one.add_argument("--trace", metavar="FILE", help="write the run to a trace file")
    many = commands.add_parser("compare", help="decode one prompt under several policies")
    many.set_defaults(command=compare, trace=None, edit=[])
    many.add_argument("--policies", default="none,d2", help=f"of {_names(CachePolicy)}, by commas")
    for sub in (one, many):
        sub.add_argument("prompt", help="the question, in quotes")
        sub.add_argument("--model", default="tiny", help="tiny, a hub id, or a checkpoint folder")
        sub.add_argument("--decoder", default="confidence", help=f"one of {_names(Decoder)}")
        sub.add_argument("--gen-length", type=int, default=128, help="answer positions")
        sub.add_argument("--block-length", type=int, default=None, help="default: one block")
        sub.add_argument("--seed", type=int, default=0, help="for temperature > 0")
        sub.add_argument("--stop-at-eos", action="store_true", help="leave the padding masked")
        sub.add_argument("--eager", action="store_true", help="no CUDA graphs on a GPU")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:0,cuda:1")
        sub.add_argument(
            "--dtype", choices=["float32", "bfloat16"], help="default float32, bfloat16 on a GPU"
        )
        sub.add_argument("--weights", choices=["fp8"], help="in 8 bits; default: of the dtype")
        sub.add_argument("--json", action="store_true", help="end with JSON, a line a run")
        for cls in _everything():
            _knob_flags(sub, cls)
    tables = commands.add_parser("methods", help="print tables of every policy and decoder")
    tables.set_defaults(command=list_methods)
    known = commands.add_parser("models", help="list the known models and which fit here")
    known.set_defaults(command=list_models)
    known.add_argument("--device", default="auto", help="auto, cpu or cuda")
    known.add_argument("--json", action="store_true", help="JSON alone, a line a model")
    return parser.parse_args(argv)


def _names(base) -> str:
    return ", ".join(sorted(base.registry))


def _everything():
    return [*CachePolicy.registry.values(), *Decoder.registry.values()]


def _knob_flags(parser: argparse.ArgumentParser, cls) -> None:
    """--knob sets it wherever it exists; --policy-knob and --decoder-knob set one side alone."""
    for one in knobs(cls):
        for side in ("", f"{cls.kind}-"):
            flag = f"--{side}{one.name.replace('_', '-')}"
            if flag in parser._option_string_actions:
                continue
            span = "" if one.low is None else f" ({one.low} to {one.high})"
            text = f"{one.help}{span}; default {one.default}" if not side else argparse.SUPPRESS
            switch = {"action": argparse.BooleanOptionalAction}
            kind = switch if one.kind is bool else {"type": one.kind}
            parser.add_argument(flag, default=None, help=text, **kind)


def _make(args, base, name: str):
    """A policy or decoder with the knobs that were given."""
    cls = base.registry.get(name)
    given = {}
    for one in knobs(cls) if cls else ():
        for flag in (f"{base.kind}_{one.name}", one.name):
            value = getattr(args, flag, None)
            if value is not None:
                given.setdefault(one.name, value)
    return make(base.registry, base.kind, name, given)


def _check_flags(args, policies: list[str]) -> None:
    """Refuse a knob that none of the chosen policies and decoder has: it would do nothing."""
    chosen = [CachePolicy.registry[p] for p in policies if p in CachePolicy.registry]
    chosen += [Decoder.registry[args.decoder]] if args.decoder in Decoder.registry else []
    for cls in _everything():
        for one in knobs(cls):
            for name, kinds in (
                (one.name, ("policy", "decoder")),
                (f"{cls.kind}_{one.name}", (cls.kind,)),
            ):
                if getattr(args, name) is None or _owners(chosen, one.name, kinds):
                    continue
                owners = " or ".join(
                    f"{c.kind} {c.key!r}" for c in _owners(_everything(), one.name, kinds)
                )
                raise ValueError(
                    f"--{name.replace('_', '-')} is a knob of {owners}, which is not chosen here; "
                    "leave it out or choose that one"
                )


def _owners(classes, knob: str, kinds) -> list:
    return [c for c in classes if c.kind in kinds and knob in {k.name for k in knobs(c)}]


def _load(args):
    """The model, with a bar on a terminal while a large one is fetched and read."""
    from tqdm.auto import tqdm

    with contextlib.ExitStack() as stack:
        bars = {}

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


def _decode(args, model, policy: str):
    if not args.prompt.strip():
        raise ValueError("the prompt is empty; give a question in quotes")
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


def _save(trace, path: str) -> None:
    try:
        trace.save(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"cannot write the trace to {path!r}: {reason}") from error


def _summary(model, trace) -> dict:
    totals = trace.totals
    keys = [
        "answer_tokens",
        "steps",
        "seconds",
        "tokens_per_second",
        "hit_rate",
        "flops",
        "flops_vs_none",
    ]
    run = trace.run
    return {
        "text": model.decode(trace.tokens[-1, trace.prompt_length :]).strip(),
        **{k: totals[k] for k in keys},
        **{k: run[k] for k in ("model", "policy", "decoder", "device", "weights") if k in run},
    }


def _card(summary: dict) -> str:
    s = summary
    return (
        f"{s['text']}\n\n{s['policy']} + {s['decoder']}: {s['steps']} steps in "
        f"{s['seconds']:.2f} s, {s['tokens_per_second']:.1f} answer tokens/s, "
        f"{100 * s['hit_rate']:.1f} % of rows reused, "
        f"{s['flops_vs_none']:.2f} of the FLOPs without a cache"
    )


def run(args) -> int:
    _check_flags(args, [args.policy])
    for text in args.edit:
        d2cache.Edit.parse(text)
    _make(args, CachePolicy, args.policy)  # complain before the model loads
    _make(args, Decoder, args.decoder)
    model = _load(args)
    summary = _summary(model, _decode(args, model, args.policy))
    print(_card(summary))
    if args.json:
        print(json.dumps(summary))
    return 0


def compare(args) -> int:
    names = [n.strip() for n in args.policies.split(",") if n.strip()]
    if not names:
        raise ValueError(f"--policies names none; give some of {_names(CachePolicy)}, by commas")
    _check_flags(args, names)
    for name in names:
        _make(args, CachePolicy, name)
    model = _load(args)
    reference = _decode(args, model, "none")
    for name in names:
        trace = reference if name == "none" else _decode(args, model, name)
        p = trace.prompt_length
        same = float((trace.tokens[-1, p:] == reference.tokens[-1, p:]).mean())
        summary = _summary(model, trace) | {"agreement_vs_none": same}
        card = f"{_card(summary)}, {100 * same:.0f} % of the answer as without a cache\n"
        print(json.dumps(summary) if args.json else card)
    return 0


def list_methods(args) -> int:
    print(table(CachePolicy, "what it does"))
    print()
    print(table(Decoder, "what it does"))
    return 0


def list_models(args) -> int:
    entries = models.known(args.device)
    if args.json:
        for e in entries:
            print(json.dumps(e.summary()))
        return 0
    first = entries[0]
    free = "unknown" if first.free is None else f"{first.free / 1e9:.1f} GB"
    print(f"{first.device}, {first.dtype}, free memory: {free}\n")
    print(f"{'model':38}{'family':8}{'parameters':>12}{'on disk':>9}{'memory':>10}{'fits':>6}")
    for e in entries:
        size = (
            f"{e.parameters / 1e9:.2f} B" if e.parameters > 1e8 else f"{e.parameters / 1e6:.2f} M"
        )
        words = {True: "yes", False: "no", None: "?"}
        print(
            f"{e.name:38}{e.family:8}{size:>12}{words[e.cached]:>9}"
            f"{(e.weights + e.kv) / 1e9:>7.2f} GB{words[e.fits]:>6}"
        )
    print("\nmemory: the weights, and keys and values of 1024 positions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
