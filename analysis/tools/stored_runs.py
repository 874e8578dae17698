"""Record the stored runs, which ship with the page: python -m analysis.tools.stored_runs [NAME...]

Runs each story of this file on the bundled model and saves its trace in assets/traces, with an
index.
Record them again whenever the model changes; otherwise only their times differ.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field

import d2cache
from d2cache import command
from d2cache.bundled import ASSETS
from d2cache.teaching import tasks

FOLDER = ASSETS / "traces"
REPEATS = 5  # recordings of each run; the fastest is kept


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
    trace.save(file)
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


def main(argv=None) -> int:
    return command.guarded("stored_runs", lambda: make(argv))


def make(argv) -> None:
    parser = command.Parser(
        prog="python -m analysis.tools.stored_runs", description=__doc__.split("\n\n")[1]
    )
    names = [story.name for story in STORIES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(names)}")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in names]
    if unknown:
        parser.error(f"there is no run {unknown[0]!r}; choose from {', '.join(names)}")
    model = d2cache.load("tiny", device="cpu")
    for story in STORIES:
        if not args.names or story.name in args.names:
            keep(story, model)
    write_index()


if __name__ == "__main__":
    sys.exit(main())
