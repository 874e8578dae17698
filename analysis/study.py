"""Held-out accuracy: python -m analysis.study --policies none,d2 --problems 100 --seed 1

Problems are generated from the seed and disjoint from training by construction; decoding is
greedy, one token a step; each row stops at its own end of text, which changes no answer.
"""

from __future__ import annotations

import argparse
import json
import sys

import pandas as pd

import d2cache
from d2cache.teaching import tasks
from d2cache.teaching.exam import exam


def study(
    model, policies, decoder, families, problems: int, seed: int, batch: int, shots: int = 0
) -> pd.DataFrame:
    """One line a family and policy: accuracy (0 to 1), problems, steps, seconds, failures."""
    lines = []
    for family in families:
        for policy in policies:
            lines.append(exam(model, family, policy, decoder, problems, seed, batch, shots))
            line = lines[-1]
            print(
                f"{family}, {policy}: {100 * line['accuracy']:.1f} % of {problems} "
                f"in {line['seconds']:.0f} s", file=sys.stderr, flush=True,
            )  # fmt: skip
    return pd.DataFrame(lines)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.study", description=__doc__)
    parser.add_argument("--policies", default="none,d2")
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
        if not policies or not families:
            raise ValueError("nothing to study; name at least one policy and one family")
        for policy in policies:
            d2cache.make_policy(policy)
        for family in families:
            if family not in tasks.FAMILIES:
                allowed = ", ".join(tasks.FAMILIES)
                raise ValueError(f"unknown family {family!r}; choose from {allowed}")
        for name in ("problems", "batch"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
        if not 0 <= args.shots <= 8:
            raise ValueError(f"--shots is {args.shots}; it must be from 0 to 8")
        sigma = {} if args.sigma is None else {"sigma": args.sigma}
        decoder = d2cache.make_decoder("confidence", **sigma)
        model = d2cache.load(args.model, args.device)
    except ValueError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    frame = study(
        model, policies, decoder, families, args.problems, args.seed, args.batch, args.shots
    )
    for line in frame.itertuples():
        for problem, text in line.failures[: args.show]:
            print(f"\n[{line.family}, {line.policy}] {problem.prompt}")
            print(f"wanted: {problem.answer}\ngot:    {text}")
    percent = frame.assign(accuracy=(100 * frame["accuracy"]).round(1))
    table = percent.pivot(index="family", columns="policy", values="accuracy")
    print(f"\nheld-out accuracy in percent, {args.problems} problems a family, seed {args.seed}, "
          f"{model.device.type}, {str(model.dtype)[6:]}, sigma {decoder.sigma}")  # fmt: skip
    print(table.reindex(families)[policies].to_string())
    if args.json:
        records = frame.drop(columns="failures").to_dict("records")
        print(json.dumps({"seed": args.seed, "decoder": decoder.settings(), "results": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
