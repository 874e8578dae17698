"""What the page is asked for, as text: one grammar for its address, presets and lessons.

A query names what should differ from the current settings; fields are joined by &:

    prompt=TEXT  model=LABEL  gen=MASKS  block=MASKS  seed=N  full=1 (fill every mask)
    truth=1 (an exact pass after each step)  turns=1 (lanes take turns)
    lane=POLICY[,KNOB=VALUE...][/DECODER[,KNOB=VALUE...]][~EDIT...]      once for each lane
    trace=NAME (show a stored run)     branch=RUN~EDIT (add a what-if to a run on the stage)
    tab, at (step, from 1), see (lane, from 1), clock, map (of Compare), pos, lesson, card, teach=1
    (large, for a class): what to look at

EDIT is the text of a `d2cache.Edit`. Knobs that are not named have their defaults. Other fields are
left alone: mail and social sites add their own to a link, and so does Gradio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from d2cache import CachePolicy, Decoder, Edit, Model, Step, generate, make_decoder, make_policy
from d2cache.prompts import has_gap
from d2cache.registry import Registered, knobs

LONGEST_PROMPT = 4000  # characters
LONGEST_ANSWER = 256  # masks
LONGEST_QUERY = 20_000  # characters
MOST_LANES = 6  # side by side, what-ifs included

# The words of an address: links and lessons in use contain them. The page's scripts get them from
# here, see `analysis.page.contract`.
TEXTS = ("prompt", "model")
WHOLE = {"gen": "gen_length", "block": "block_length", "seed": "seed"}
SWITCHES = ("full", "truth", "turns")
LANE, TRACE, BRANCH = "lane", "trace", "branch"
RUN_WORDS = (*TEXTS, *WHOLE, *SWITCHES, LANE, TRACE, BRANCH)  # what to run
VIEW = ("tab", "at", "see", "clock", "pos", "lesson", "card", "teach")  # what to look at
MAP = "map"  # the map that the lanes of Compare show
EDIT_MARK, DECODER_MARK, KNOB_MARK = "~", "/", ","  # begin an edit, a decoder, a knob

# of the stage
TABS = ("watch", "stage", "compare", "cache", "attention", "truth", "token", "figures")
CLOCKS = ("step", "ms", "flops")  # what the lanes race by


@dataclass(frozen=True)
class Lane:
    """One way to fill the canvas: a policy and a decoder with their knobs, and edits.

    Knobs are checked: ValueError for an unknown name, knob or value.
    """

    policy: str = "d2"
    knobs: dict = field(default_factory=dict)
    decoder: str = "confidence"
    decoder_knobs: dict = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def __post_init__(self):
        # all knobs, in their own types, so that equal lanes compare equal
        object.__setattr__(self, "knobs", self.make_policy().settings())
        object.__setattr__(self, "decoder_knobs", self.make_decoder().settings())

    def make_policy(self) -> CachePolicy:
        return make_policy(self.policy, **self.knobs)

    def make_decoder(self) -> Decoder:
        return make_decoder(self.decoder, **self.decoder_knobs)

    @staticmethod
    def of(run: dict) -> Lane:
        """The lane of a trace's run configuration."""
        return Lane(
            run["policy"],
            run["policy_knobs"],
            run["decoder"],
            run["decoder_knobs"],
            tuple(map(Edit.of_plain, run.get("edits", ()))),
        )

    def run(self) -> dict:
        """The lane as a trace's run configuration has it; `of` is the inverse."""
        return {
            "policy": self.policy,
            "policy_knobs": self.knobs,
            "decoder": self.decoder,
            "decoder_knobs": self.decoder_knobs,
            "edits": [edit.plain() for edit in self.edits],
        }

    @staticmethod
    def parse(text: str) -> Lane:
        plan, *edits = text.split(EDIT_MARK)
        policy, slash, decoder = plan.partition(DECODER_MARK)
        one, knobs = _named(CachePolicy, policy)
        other, more = _named(Decoder, decoder) if slash else ("confidence", {})
        return Lane(one, knobs, other, more, tuple(Edit.parse(e) for e in edits))

    def __str__(self) -> str:
        sides = [
            _text(CachePolicy, self.policy, self.knobs),
            _text(Decoder, self.decoder, self.decoder_knobs),
        ]
        if sides[1] == "confidence":
            sides.pop()
        return EDIT_MARK.join([DECODER_MARK.join(sides), *map(str, self.edits)])


def _named(base: type[Registered], text: str) -> tuple[str, dict]:
    """POLICY,KNOB=VALUE... -> its name and knobs, in the knobs' own types."""
    name, *given = text.split(KNOB_MARK)
    known = {one.name: one for one in knobs(base.registry[name])} if name in base.registry else {}
    settings = {}
    for pair in given:
        knob, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{base.kind} {name!r:.40}: {pair[:40]!r} is not KNOB=VALUE")
        settings[knob] = number(value, known[knob].kind) if knob in known else value
    return name, settings


def number(text: str, kind: type = float):
    """Text as a knob's value, 1 or 0 for a switch; ValueError if it is not a number."""
    if kind is bool and text in ("0", "1", "True", "False"):
        return text in ("1", "True")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]!r} is not a number; give one such as 8 or 0.5")
    return int(value) if value.is_integer() else value


def _text(base: type[Registered], name: str, settings: dict) -> str:
    """A policy or decoder with its knobs, the inverse of `_named`; defaults are left out."""
    known = knobs(base.registry[name]) if name in base.registry else ()
    defaults = {knob.name: knob.default for knob in known}
    given = [f"{k}={v * 1:.12g}" for k, v in settings.items() if v != defaults.get(k)]
    return KNOB_MARK.join([name, *given])


def too_long(prompt: str) -> str:
    """What is wrong with a prompt that is too long; "" for others."""
    if len(prompt) <= LONGEST_PROMPT:
        return ""
    return f"The prompt has {len(prompt)} characters; {LONGEST_PROMPT} are allowed: shorten it."


@dataclass(frozen=True)
class Asked:
    """Everything that a comparison needs. gen_length and block_length in masks, block_length 0: the
    whole answer is one block; full: fill every mask, also after the end token; truth: an exact pass
    after each step; turns: the lanes take turns, else one runs after the other.

    Raises ValueError, worded for a visitor, for what cannot be run.
    """

    prompt: str
    lanes: tuple[Lane, ...]
    model: str = "tiny"
    gen_length: int = 64
    block_length: int = 0
    seed: int = 0
    full: bool = False
    truth: bool = False
    turns: bool = True

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError("The prompt is empty: write a question, or press New problem.")
        if fault := too_long(self.prompt):
            raise ValueError(fault)
        object.__setattr__(self, "prompt", self.prompt.strip())
        for name, words, low, high in (
            ("gen_length", "answer length", 1, LONGEST_ANSWER),
            ("block_length", "block length", 0, LONGEST_ANSWER),
            ("seed", "seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            number = isinstance(value, (int, float))
            if not number or not low <= value <= high or value % 1 != 0:
                raise ValueError(
                    f"The {words} is {value!r:.80}; it must be a whole number from {low} to {high}."
                )
            object.__setattr__(self, name, int(value))
        for name in SWITCHES:
            object.__setattr__(self, name, bool(getattr(self, name)))
        if not 1 <= len(self.lanes) <= MOST_LANES:
            raise ValueError(
                f"There are {len(self.lanes)} lanes; 1 to {MOST_LANES} are allowed: "
                "choose at least one policy, or remove some."
            )

    @staticmethod
    def of(run: dict, prompt: str, model: str) -> Asked:
        """The request that a trace answers; prompt and model as a visitor knows them."""
        whole = run["block_length"] == run["gen_length"]
        return Asked(
            prompt,
            (Lane.of(run),),
            model,
            run["gen_length"],
            0 if whole else run["block_length"],
            run["seeds"][0],
            not run["stop_at_eos"],
        )

    def generate(self, lane: Lane, model: Model, policy: CachePolicy) -> Iterator[Step]:
        """The steps of one of its lanes; policy: the lane's own, as `Lane.make_policy` makes it.

        A prompt with gaps is a text to complete: it gets no chat template and no further masks.
        """
        gaps = has_gap(self.prompt)
        return generate(
            model,
            model.encode_gaps(self.prompt) if gaps else model.encode(self.prompt),
            policy,
            lane.make_decoder(),
            gen_length=0 if gaps else self.gen_length,
            block_length=self.block_length or None,
            seed=self.seed,
            stop_at_eos=not (self.full or gaps),
            edits=lane.edits,
        )

    def query(self, **view) -> str:
        """The query for exactly this, and for what to look at."""
        numbers = {"gen": self.gen_length, "block": self.block_length, "seed": self.seed}
        switches = {"full": self.full, "truth": self.truth, "turns": self.turns}
        pairs = [("prompt", self.prompt), ("model", self.model), *numbers.items()]
        pairs += [(name, int(on)) for name, on in switches.items()]
        pairs += [(LANE, str(lane)) for lane in self.lanes]
        pairs += [(name, value) for name, value in view.items() if value not in (None, "")]
        return urlencode(pairs, quote_via=quote, safe=",/~=:")


@dataclass(frozen=True)
class Link:
    """A parsed query: what it names; everything else stays as it is."""

    settings: dict  # names of fields of Asked -> values
    trace: str | None = None
    branch: tuple[str, Edit] | None = None  # a run on the stage, and what to change in it
    view: dict = field(default_factory=dict)

    @staticmethod
    def parse(query: str) -> Link:
        """Raises ValueError, one sentence, for a query that this page cannot follow."""
        if not isinstance(query, str) or len(query) > LONGEST_QUERY:
            raise ValueError(f"the link is longer than {LONGEST_QUERY} characters")
        settings: dict[str, Any] = {}
        lanes: list[Lane] = []
        view: dict[str, str] = {}
        trace, branch = None, None
        for name, value in parse_qsl(query.removeprefix("?"), keep_blank_values=True):
            if name == LANE:
                lanes.append(Lane.parse(value))
            elif name in (*VIEW, MAP):
                view[name] = value
            elif name == TRACE:
                trace = value
            elif name == BRANCH:
                key, _, edit = value.partition(EDIT_MARK)
                branch = key, Edit.parse(edit)
            elif name in TEXTS:
                settings[name] = value
            elif name in WHOLE:
                settings[WHOLE[name]] = number(value)
            elif name in SWITCHES:
                if value not in ("0", "1"):
                    raise ValueError(f"the link: {name} is {value[:20]!r}; it must be 0 or 1")
                settings[name] = value == "1"
        if lanes:
            settings["lanes"] = tuple(lanes)
        return Link(settings, trace, branch, view)

    def over(self, asked: Asked) -> Asked:
        """The same request with what this link names changed."""
        return replace(asked, **self.settings)


def name_lanes(lanes: Sequence[Lane]) -> list[str]:
    """A short label for each lane, see `name_runs`."""
    return name_runs([lane.run() for lane in lanes])


def name_runs(runs: Sequence[dict]) -> list[str]:
    """A short label for each run: its policy, and what distinguishes it from the others.

    runs: configurations as a trace's header has them; their policies need not be registered here.
    """
    labels = []
    for run in runs:
        others = [other for other in runs if other is not run]
        label = run["policy"]
        if any(other["policy"] == run["policy"] for other in others):
            label = _text(CachePolicy, run["policy"], run["policy_knobs"])
        decoder = run["decoder"], run["decoder_knobs"]
        if any((other["decoder"], other["decoder_knobs"]) != decoder for other in others):
            label += " + " + _text(Decoder, *decoder)
        labels.append(label.replace(KNOB_MARK, " ") + (" what if" if run.get("edits") else ""))
    # those that are alike in everything are told apart by their place
    return [f"{one} {i}" if labels.count(one) > 1 else one for i, one in enumerate(labels, 1)]
