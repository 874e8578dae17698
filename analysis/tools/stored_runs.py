"""Record the stored runs, which ship with the page: python -m analysis.tools.stored_runs [NAME...]

Runs each story of this file, and each lane that a lesson, a preset or the opening of the page asks
for, on the bundled model; saves the traces in assets/traces and assets/traces/lanes.
Record them again whenever the model changes; otherwise only their times differ. --check runs the
lanes again and lists the files that are missing, too large, not wanted or not what a run gives now.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import d2cache
from analysis.page import lessons, stored
from analysis.page.query import Asked, Link
from analysis.probes import Look, Truth
from d2cache import command
from d2cache.bundled import ASSETS
from d2cache.canvas import CANDIDATES
from d2cache.teaching import tasks

FOLDER = ASSETS / "traces"
REPEATS = 5  # recordings of each run; the fastest is kept
LARGEST = 200_000  # bytes of a file


@dataclass(frozen=True)
class Story:
    name: str
    title: str
    words: str  # what to look for
    family: str  # the problem is drawn from these two
    seed: int
    policy: str
    right: bool  # whether the answer is
    decoder: str = "confidence"
    knobs: dict = field(default_factory=dict)  # "policy" and "decoder": knob -> value
    gen_length: int | None = None  # default: the family's

    @property
    def problem(self) -> tasks.Problem:
        return tasks.draw(self.family, random.Random(self.seed), held_out=True)

    def record(self, model: d2cache.Model) -> d2cache.Trace:
        return d2cache.Trace.record(
            d2cache.generate(
                model,
                model.encode(self.problem.prompt),
                d2cache.make_policy(self.policy, **self.knobs.get("policy", {})),
                d2cache.make_decoder(self.decoder, **self.knobs.get("decoder", {})),
                gen_length=self.gen_length or tasks.ANSWER_LENGTH[self.family],
                stop_at_eos=True,
            )
        )


STORIES = (
    Story(
        "d2-word",
        "d2Cache solves a word problem",
        "After the first step most rows come from the cache. Only likely masks and the rows that "
        "attention relies on are recomputed, and the answer is still right.",
        "word",
        129,
        "d2",
        True,
    ),
    Story(
        "none-word",
        "The same problem without a cache",
        "Every position is recomputed in every step. This is the exact answer, which every cache "
        "is measured against.",
        "word",
        129,
        "none",
        True,
    ),
    Story(
        "shipped-word",
        "The same problem with d2Cache's own code",
        "The paper and its public code differ, and this run follows the code: it finds likely "
        "masks by the confidence of the first step throughout the run, and treats the right edge "
        "as known text.",
        "word",
        129,
        "d2",
        True,
        knobs={"policy": {"as_shipped": True}, "decoder": {"as_shipped": True}},
    ),
    Story(
        "prefix-facts",
        "A prefix cache goes stale and gets it wrong",
        "The prompt is computed once, while the answer is all masks, and then only reused. It "
        "stays that way as the answer grows, so the book goes to the wrong owner.",
        "facts",
        201,
        "prefix",
        False,
    ),
    Story(
        "d2-facts",
        "The same question with d2Cache",
        "The prompt is just as long, but the prompt rows that attention leads to are recomputed "
        "as the answer grows: the right owner, for a fifth of the work.",
        "facts",
        201,
        "d2",
        True,
    ),
    Story(
        "dllm-facts",
        "dLLM-Cache on a long prompt",
        "The prompt's outputs are kept for 50 steps. In the answer, each layer computes the "
        "values (V) of all rows, and then recomputes only the rows whose values moved most.",
        "facts",
        400,
        "dllm",
        True,
    ),
    Story(
        "d2-story",
        "d2Cache tells a story",
        "A long answer with freely chosen words. The decode order leans from left to right "
        "because the certainty prior favours positions next to known text.",
        "stories",
        5,
        "d2",
        True,
        gen_length=88,
    ),
    Story(
        "wino-story",
        "Many words at once, and second thoughts",
        "WINO writes every guess that is fairly sure, looks again with the new words in place, "
        "and masks again what it now doubts: 96 positions in 12 steps.",
        "stories",
        7,
        "none",
        True,
        decoder="wino",
    ),
    Story(
        "threshold-code",
        "A whole function in one step",
        "All guesses with a confidence of 0.9 or more are written at once, and here that is all "
        "of them. Where nothing is in doubt, one pass is enough and a cache would have nothing to "
        "keep.",
        "code",
        304,
        "none",
        True,
        decoder="threshold",
    ),
)


def answer_is_right(story: Story, model, trace) -> bool:
    return tasks.correct(story.problem, model.decode(trace.answer).strip())


def keep(story: Story, model: d2cache.Model) -> None:
    """Save the fastest of several recordings of a story, which differ only in their times."""
    trace = min((story.record(model) for _ in range(REPEATS)), key=lambda t: t.seconds.sum())
    right = answer_is_right(story, model, trace)
    if right != story.right:
        raise SystemExit(f"{story.name}: right is {right}; its words say {story.right}")
    file = FOLDER / f"{story.name}.safetensors"
    write_small(trace, file)
    totals = trace.totals
    print(
        f"{story.name}: {totals['steps']} steps, {trace.tokens.shape[1]} positions, "
        f"{totals['flops_vs_none']:.2f} of the work, {file.stat().st_size / 1e3:.0f} kB: "
        f"{model.decode(trace.answer).strip()[:60]!r}"
    )


def write_index() -> None:
    index = [
        {"name": s.name, "title": s.title, "words": s.words, "prompt": s.problem.prompt}
        for s in STORIES
    ]
    text = json.dumps(index, indent=1, ensure_ascii=False)
    (FOLDER / "index.json").write_text(text + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------ lanes


def queries() -> list[str]:
    """What the lessons, the presets and the opening ask for."""
    presets = [one["query"] for one in lessons.presets()]
    found = dict.fromkeys([*lessons.queries(), *presets, stored.OPENING])
    return [query for query in found if Link.parse(query).settings]


def wanted() -> dict[str, Asked]:
    """Name of a lane -> the request for it alone, with exact passes where somebody wants them."""
    out: dict[str, Asked] = {}
    for asked in (Asked(**Link.parse(query).settings) for query in queries()):
        for name, lane in zip(stored.lane_names(asked), asked.lanes, strict=True):
            truth = asked.truth or (name in out and out[name].truth)
            out[name] = replace(asked, lanes=(lane,), truth=truth)
    return out


def record_lane(asked: Asked, model: d2cache.Model) -> tuple[d2cache.Trace, list[Look]]:
    """The run of a request with one lane, as the page makes it, and what exact passes see of it."""
    (lane,) = asked.lanes
    policy = lane.make_policy()
    steps = asked.generate(lane, model, policy)
    if not asked.truth:
        return d2cache.Trace.record(steps), []
    truth, looks = Truth(model, policy), []

    def watched():
        for step in steps:
            looks.append(truth.look(step))
            yield step

    return d2cache.Trace.record(watched()), looks


def keep_lane(name: str, asked: Asked, model: d2cache.Model) -> None:
    """Save the fastest of several recordings of a lane, which differ only in their times."""
    made = (record_lane(asked, model) for _ in range(REPEATS))
    trace, looks = min(made, key=lambda pair: pair[0].seconds.sum())
    write_small(trace, stored.lane_file(name))
    if looks:
        stored.save_looks(name, looks)
    size = stored.lane_file(name).stat().st_size
    print(f"{name}: {len(trace.seconds)} steps, {size / 1e3:.0f} kB: {asked.prompt[:40]!r}")


def write_small(trace: d2cache.Trace, file: Path) -> None:
    """Save a trace in at most `LARGEST` bytes, with fewer guesses at masked positions if it must
    be; those that were written keep all."""
    for most in range(CANDIDATES, 0, -1):
        with_guesses(trace, most).save(file)
        narrow(file)
        if file.stat().st_size <= LARGEST:
            return


def with_guesses(trace: d2cache.Trace, most: int) -> d2cache.Trace:
    """A trace with at most so many guesses for each prediction, the likeliest ones."""
    if trace.guess_count is None or trace.guess is None or trace.guess_share is None:
        return trace
    first = np.cumsum(trace.guess_count, dtype=np.int64) - trace.guess_count
    kept = np.arange(len(trace.guess)) - np.repeat(first, trace.guess_count) < most
    return replace(
        trace,
        guess_count=np.minimum(trace.guess_count, most).astype(np.uint8),
        guess=trace.guess[kept],
        guess_share=trace.guess_share[kept],
    )


def narrow(file: Path) -> None:
    """Write a trace again with the smallest types that hold its numbers exactly."""
    header = file.read_bytes()[8:]
    metadata = json.JSONDecoder().raw_decode(header.decode("utf-8", "ignore"))[0]["__metadata__"]
    arrays = load_file(file)
    save_file({name: narrowed(array) for name, array in arrays.items()}, file, metadata)


def narrowed(array: np.ndarray) -> np.ndarray:
    """The same numbers, of the same kind, in fewer bytes where that is exact."""
    kinds = (np.float16, np.float32) if array.dtype.kind == "f" else (np.uint8, np.uint16, np.int32)
    with np.errstate(over="ignore"):  # what does not fit is not equal
        smaller = (array.astype(kind) for kind in kinds if np.dtype(kind) < array.dtype)
        return next((a for a in smaller if np.array_equal(a, array, equal_nan=True)), array)


def faults() -> list[str]:
    """What is wrong with the files of the lanes, without a run: missing, unwanted, too large."""
    lanes = wanted()
    files = {stored.lane_file(name) for name in lanes}
    files |= {stored.looks_file(name) for name, asked in lanes.items() if asked.truth}
    there = set(stored.LANES.iterdir()) if stored.LANES.is_dir() else set()
    large = (file for file in files & there if file.stat().st_size > LARGEST)
    return [
        *(f"{file.name} is missing" for file in sorted(files - there)),
        *(f"{file.name} is wanted by nobody: delete it" for file in sorted(there - files)),
        *(f"{file.name} has more than {LARGEST} bytes" for file in large),
    ]


def differs(name: str, asked: Asked, model: d2cache.Model) -> str:
    """How a stored lane differs from its run now; "" if it does not, but for times."""
    trace, looks = record_lane(asked, model)
    kept = stored.lane(name)
    if kept.run != json.loads(json.dumps(trace.run)) | {"device": kept.run["device"]}:
        return f"{name} was run with other settings"
    if kept.tokens.shape != trace.tokens.shape or (kept.tokens != trace.tokens).any():
        return f"{name} has other tokens than a run now"
    if asked.truth and len(stored.looks(name)) != len(looks):
        return f"{name} has other exact passes than a run now"
    return ""


def check(model: d2cache.Model) -> list[str]:
    """Every fault of the lanes; each lane is run again."""
    found = faults()
    return found or [text for one in wanted().items() if (text := differs(*one, model))]


# ------------------------------------------------------------------------------ the command


def main(argv=None) -> int:
    return command.guarded("stored_runs", lambda: make(argv))


def make(argv) -> int:
    """-> the exit code: 1 where --check finds faults."""
    parser = command.Parser(
        prog="python -m analysis.tools.stored_runs", description=__doc__.split("\n\n")[1]
    )
    names = [story.name for story in STORIES]
    choice = f"lanes, or one of {', '.join(names)}; default: all"
    parser.add_argument("names", nargs="*", metavar="NAME", help=choice)
    parser.add_argument("--check", action="store_true", help="run the lanes again, write nothing")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in [*names, "lanes"]]
    if unknown:
        parser.error(f"there is no run {unknown[0]!r}; choose from lanes, {', '.join(names)}")
    model = d2cache.load("tiny", device="cpu")
    if args.check:
        found = check(model)
        print(*found, sep="\n" if found else "")
        return int(bool(found))
    for story in STORIES:
        if not args.names or story.name in args.names:
            keep(story, model)
    if not args.names or "lanes" in args.names:
        keep_lanes(model)
    write_index()
    return 0


def keep_lanes(model: d2cache.Model) -> None:
    stored.LANES.mkdir(exist_ok=True)
    for name, asked in wanted().items():
        keep_lane(name, asked, model)
    for fault in faults():
        print(fault)


if __name__ == "__main__":
    sys.exit(main())
