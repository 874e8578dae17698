"""d2cache run | fill | compare | models | methods | page: decode prompts, fill gaps in texts, list
models and methods, or serve the page."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch

import d2cache
from d2cache import command, models, output_file
from d2cache.command import Parser, names, whole
from d2cache.companion import PAGE, companion
from d2cache.decoders import Decoder
from d2cache.edits import FORM
from d2cache.knob_flags import add_knobs, check_flags, chosen, made
from d2cache.model import Model
from d2cache.policies import CachePolicy
from d2cache.progress import Bar, watched
from d2cache.registry import table
from d2cache.trace import Recorder, Trace, agreement, smallest


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 not done (one line says why), 130 interrupted."""

    def work() -> int:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.command(args)

    return command.guarded("d2cache", work)


# Parse.


def parse(argv: list[str]) -> Namespace:
    """The command line; `command` in it is the function to call. Raises ValueError."""
    installed = Path(sys.argv[0]).stem == "d2cache"
    parser = Parser(
        prog="d2cache" if installed else "python -m d2cache",
        description="Decode with a cached diffusion language model.",
    )
    version = f"d2cache {d2cache.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="run|fill|compare|models|methods|page")
    _add_run(commands.add_parser("run", help="decode one prompt under one policy"))
    _add_fill(commands.add_parser("fill", help="write what is missing in a text"))
    _add_compare(commands.add_parser("compare", help="decode one prompt under several policies"))
    _add_methods(commands.add_parser("methods", help="print tables of all policies and decoders"))
    _add_models(commands.add_parser("models", help="list the known models and which fit here"))
    _add_page(commands.add_parser("page", help="serve the page that shows runs, for a browser"))
    return parser.parse_args(argv)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run, gaps=False)
    _add_prompt(parser)
    _add_one_run(parser)
    _add_length(parser)


def _add_fill(parser: argparse.ArgumentParser) -> None:
    # every mask is written, so there is no length to choose and no end to stop at
    parser.set_defaults(command=run, gaps=True, gen_length=0, stop_at_eos=False)
    help_ = (
        "the text, in quotes, with ___ where words are missing, one _ for each token; - reads it"
    )
    parser.add_argument("prompt", metavar="text", help=f"{help_} from standard input")
    _add_one_run(parser)


def _add_one_run(parser: argparse.ArgumentParser) -> None:
    """What `run` and `fill` have in common."""
    parser.add_argument("--policy", default="d2", help=f"one of {_names(CachePolicy)}")
    edit_help = f"change the run after a step; may be repeated: {FORM}"
    parser.add_argument("--edit", metavar="EDIT", action="append", default=[], help=edit_help)
    parser.add_argument("--trace", metavar="FILE", help="write the run to a trace file")
    _add_decoding(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=compare, gaps=False, trace=None, edit=[])
    _add_prompt(parser)
    policies_help = f"comma-separated, from {_names(CachePolicy)}"
    parser.add_argument("--policies", type=names, default=["none", "d2"], help=policies_help)
    _add_decoding(parser)
    _add_length(parser)


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the question, in quotes; - reads it from standard input")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    """What `run`, `fill` and `compare` have in common."""
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--model", default="tiny", help="tiny, a hub id, or a checkpoint folder")
    add("--decoder", default="confidence", help=f"one of {_names(Decoder)}")
    add("--block-length", type=whole(1), metavar="N", help="default: one block")
    add("--seed", type=whole(0, 2**63 - 1), default=0, metavar="N", help="used when sampling")
    add("--eager", action="store_true", help="no CUDA graphs on a GPU")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0,cuda:1")
    dtype_help = "default: float32 on a CPU, bfloat16 on a GPU"
    add("--dtype", choices=["float32", "bfloat16"], help=dtype_help)
    add("--weights", choices=["fp8"], help="load the weights in 8 bits; default: in --dtype")
    add("--json", action="store_true", help="end with JSON, one line per run")
    progress_help = "show progress; default: where the output is a terminal"
    add("--progress", action=switch, default=None, help=progress_help)
    add_knobs(parser)


def _add_length(parser: argparse.ArgumentParser) -> None:
    """Of an answer that follows its prompt."""
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--gen-length", type=whole(1), default=128, metavar="N", help="answer positions")
    stop_help = "stop once everything before the end token is written (the default), or fill all"
    add("--stop-at-eos", action=switch, default=True, help=stop_help)


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=list_methods)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=list_models)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="only JSON, one line per model")


def _add_page(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=page)
    add = parser.add_argument
    add("--models", metavar="NAME,..", type=names, help="tiny, hub ids or folders to offer")
    add("--host", help="address to serve on; default 127.0.0.1: this machine only")
    add("--port", type=whole(1, 65535), metavar="N", help="default 7860")


def _names(base: type[CachePolicy] | type[Decoder]) -> str:
    return ", ".join(sorted(base.registry))


# Check: before the model is loaded.


def _check(args: Namespace, policies: list[str]) -> None:
    """Raises ValueError for anything wrong in the prompt, names, knobs, edits or files."""
    if args.prompt == "-":
        args.prompt = _standard_input(_wanted(args))
    if not args.prompt.strip():
        raise ValueError(f"the prompt is empty; give {_wanted(args)} in quotes")
    used = chosen(policies, args.decoder)
    check_flags(args, used)
    for text in args.edit:
        d2cache.Edit.parse(text)
    for name in policies:
        made(args, CachePolicy, name, used)
    made(args, Decoder, args.decoder, used)
    if args.trace is not None:
        output_file.check(args.trace, "the trace")


def _wanted(args: Namespace) -> str:
    return "a text with gaps" if args.gaps else "a question"


def _standard_input(wanted: str) -> str:
    if sys.stdin is None:
        raise ValueError(f"standard input is closed; give {wanted} in quotes")
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not text in {error.encoding}") from error


# Do and print.


def run(args: Namespace) -> int:
    _check(args, [args.policy])
    model, recorder = _load(args), Recorder()
    steps = _steps(args, model, args.policy, [args.policy])
    try:
        for step in steps:
            recorder.add(step)
    finally:  # an interrupted run still prints its answer and leaves its trace
        if recorder.run:
            _finish(args, model, recorder.trace())
    return command.DONE


def _finish(args: Namespace, model: Model, trace: Trace) -> None:
    """Print the answer and write the trace; neither is lost where the other fails."""
    summary = _summary(model, trace, args.gaps)
    try:
        print(_sentence(summary))
        if args.json:
            print(json.dumps(summary))
        sys.stdout.flush()
    finally:
        if args.trace is not None:
            _save(trace, args.trace)


def _save(trace: Trace, path: str) -> None:
    try:
        trace.save(path)
    except OSError as error:
        why = command.reason(error)
        raise ValueError(f"cannot write the trace to {path!r}: {why}") from error


def compare(args: Namespace) -> int:
    _check(args, args.policies)
    model = _load(args)
    reference = _recorded(args, model, "none")
    for name in args.policies:
        trace = reference if name == "none" else _recorded(args, model, name)
        same = agreement(trace, reference)
        summary = _summary(model, trace) | {"agreement_vs_none": same}
        sentence = f"{_sentence(summary)}, {100 * same:.0f} % of the answer as without a cache\n"
        print(json.dumps(summary) if args.json else sentence, flush=True)
    return command.DONE


def _recorded(args: Namespace, model: Model, policy: str) -> Trace:
    steps = _steps(args, model, policy, args.policies)
    return Trace.record(steps, progress=False)  # they have their own bar


def list_methods(args: Namespace) -> int:
    print(table(CachePolicy, "what it does"))
    print()
    print(table(Decoder, "what it does"))
    return command.DONE


def list_models(args: Namespace) -> int:
    entries = models.known(args.device)
    if args.json:
        for entry in entries:
            print(json.dumps(entry.summary()))
    else:
        _print_models(entries)
    return command.DONE


def page(args: Namespace) -> int:
    """Serve the page, which reads its settings from the environment as `python app.py` does."""
    serve = companion(PAGE)
    if serve is None:
        raise ValueError("the page is not installed: run pip install . in a clone of d2Cache")
    given = {
        "D2CACHE_MODELS": ",".join(args.models or []),
        "GRADIO_SERVER_NAME": args.host,
        "GRADIO_SERVER_PORT": str(args.port or ""),
    }
    os.environ.update({name: value for name, value in given.items() if value})
    return serve()


def _load(args: Namespace) -> Model:
    """The model, with a progress bar while a large one is fetched and read."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bar = Bar(what, total, args.progress, unit="B", unit_scale=True)
                bars[what] = stack.enter_context(bar)
            bars[what].show(lambda: done)

        return d2cache.load(
            args.model,
            device=args.device,
            dtype=getattr(torch, args.dtype or "", None),
            progress=None if args.model == "tiny" else progress,
            weights=args.weights,
        )


def _steps(
    args: Namespace, model: Model, policy: str, policies: list[str]
) -> Iterator[d2cache.Step]:
    """The steps of a run, with a progress bar. policies: all that are compared.

    Raises ValueError at the call, also where the disk has no room for the shortest trace.
    """
    used = chosen(policies, args.decoder)
    prompt = model.encode_gaps(args.prompt) if args.gaps else model.encode(args.prompt)
    steps = d2cache.generate(
        model,
        prompt,
        made(args, CachePolicy, policy, used),
        made(args, Decoder, args.decoder, used),
        gen_length=args.gen_length,
        block_length=args.block_length,
        seed=args.seed,
        stop_at_eos=args.stop_at_eos,
        eager=args.eager or None,
        edits=[d2cache.Edit.parse(text) for text in args.edit],
    )
    if args.trace is not None:
        output_file.check(args.trace, "the trace", smallest(*_lengths(model, prompt, args)))
    return watched(steps, policy, args.progress)


def _lengths(model: Model, prompt: torch.Tensor, args: Namespace) -> tuple[int, int]:
    """Positions before the first mask, and from there on."""
    masks = torch.nonzero(prompt == model.config.mask_id)
    before = int(masks[0]) if args.gaps else len(prompt)
    return before, len(prompt) + args.gen_length - before


def _summary(model: Model, trace: Trace, gaps: bool = False) -> dict:
    """What --json prints: times in seconds, rates and ratios as fractions of 1. The text is the
    answer, or the whole text where gaps in it were filled."""
    totals, run = trace.totals, trace.run
    costs = "answer_tokens steps seconds tokens_per_second hit_rate flops flops_vs_none"
    settings = ("model", "policy", "decoder", "device", "weights")
    return {
        "text": model.decode(trace.text_ids if gaps else trace.answer).strip(),
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
