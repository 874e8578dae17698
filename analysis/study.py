"""Held-out accuracy: python -m analysis.study --policies none,d2 --problems 100 --seed 1

Problems are generated from the seed and disjoint from training by construction; decoding is
greedy; each row stops at its own end of text, which changes no answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys

import pandas as pd

import d2cache
from d2cache.teaching import tasks
from d2cache.teaching.exam import exam


def study(model, policies, decoders, families, problems: int, seed: int, **settings):
    """One line a family, policy and decoder: accuracy (0 to 1), problems, mean steps a problem,
    seconds, failures; a DataFrame. settings: of `exam`."""
    lines = []
    for family, policy, decoder in itertools.product(families, policies, decoders):
        line = exam(model, family, policy, decoder, problems, seed, **settings)
        lines.append(line)
        print(
            f"{family}, {policy}, {decoder.key}: {100 * line['accuracy']:.1f} % of {problems}, "
            f"{line['steps']:.1f} steps each, {line['seconds']:.0f} s", file=sys.stderr, flush=True,
        )  # fmt: skip
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
    parser.add_argument("--device", default="auto")
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
        model = d2cache.load(args.model, args.device)
    except ValueError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    frame = study(
        model, policies, decoders, families, args.problems, args.seed, batch=args.batch,
        shots=args.shots, block_length=args.block_length,
    )  # fmt: skip
    for line in frame.itertuples():
        for problem, text in line.failures[: args.show]:
            print(f"\n[{line.family}, {line.policy}, {line.decoder}] {problem.prompt}")
            print(f"wanted: {problem.answer}\ngot:    {text}")
    blocks = f", blocks of {args.block_length}" if args.block_length else ""
    prior = "" if args.sigma is None else f", sigma {args.sigma}"
    print(f"\n{args.problems} held-out problems a family, seed {args.seed}, {model.device.type}, "
          f"{str(model.dtype)[6:]}{blocks}{prior}")  # fmt: skip
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
        print(json.dumps({"seed": args.seed, "decoders": knobs, "results": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
