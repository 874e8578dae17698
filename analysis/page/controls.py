"""The page's controls as plain data: what there is to set, and the run that the values ask for.

A control's name is its key everywhere: in the values that a visitor sets, in the changes that a
session makes, and on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import d2cache
from analysis.page import stored
from analysis.page.query import LONGEST_ANSWER, Asked, Lane
from d2cache import CachePolicy, Decoder, bundled
from d2cache.models import size
from d2cache.registry import Knob, Registered, describe, knobs, shared_knobs, title
from d2cache.teaching import tasks

BASES: dict[str, type[Registered]] = {"policy": CachePolicy, "decoder": Decoder}
# What all lanes share, by the names of `Asked`; its `full` is the switch `to_the_end`, reversed.
CANVAS = ("prompt", "model", "gen_length", "block_length", "seed", "truth", "turns")


@dataclass(frozen=True)
class Control:
    """One thing to set. kind: text, choice, choices (several), slider, switch or number."""

    name: str
    kind: str
    label: str
    value: Any
    help: str | None = None
    options: tuple[tuple[str, Any], ...] = ()  # title and value, of a choice
    low: float = 0
    high: float = 0
    step: float = 1
    visible: bool = True


# ------------------------------------------------------------------------------ what there is


def problem_controls(offered: Mapping[str, str], prompt: str) -> list[Control]:
    """The model, an example problem's family, and the prompt. offered: label -> model."""
    models = tuple((_model_title(label, name), label) for label, name in offered.items())
    families = tuple((tasks.FAMILIES[key].title, key) for key in bundled.FAMILIES)
    only_tiny = list(offered) == ["tiny"]
    return [
        Control(
            "model",
            "choice",
            "Model",
            models[0][1],
            "loaded when it is first chosen",
            models,
            visible=not only_tiny,
        ),
        Control(
            "family",
            "choice",
            "Example",
            "word",
            options=families,
        ),
        Control("prompt", "text", "Prompt", prompt),
    ]


def comparison_controls(presets: Mapping[str, dict]) -> list[Control]:
    """A guided comparison; or policies of one's own choice, side by side."""
    titles = tuple((one["title"], key) for key, one in presets.items())
    policies = tuple((entry["name"], entry["name"]) for entry in d2cache.policies())
    return [
        Control("preset", "choice", "Guided comparisons", None, options=titles),
        Control(
            "lanes",
            "choices",
            "Policies side by side",
            ["none", "d2"],
            "same prompt and seed; each policy with the knobs set for it above",
            policies,
        ),
        Control(
            "turns",
            "switch",
            "lanes take turns",
            True,
            "one step each; off: one lane after the other",
        ),
    ]


def canvas_controls() -> list[Control]:
    """What all lanes share, other than the prompt."""
    most = LONGEST_ANSWER
    return [
        Control(
            "gen_length",
            "slider",
            "answer length",
            64,
            "masks to fill; underscores in the prompt are gaps to fill instead",
            low=16,
            high=most,
            step=8,
        ),
        Control(
            "to_the_end",
            "switch",
            "stop at the end token",
            True,
            "stop once everything before the end token is written; off: fill every mask",
        ),
        Control(
            "block_length",
            "slider",
            "block length",
            0,
            "write block by block, left to right; 0: the whole answer is one block",
            high=most,
            step=8,
        ),
        Control("seed", "number", "seed", 0, "used when sampling"),
        Control(
            "truth",
            "switch",
            "truth",
            False,
            "an exact pass after each step shows what the cache gets wrong; it adds the time "
            "of an uncached run",
        ),
    ]


def stored_control() -> Control:
    """The runs that come with the page."""
    titles = tuple((one["title"], name) for name, one in stored.listed().items())
    return Control("stored", "choice", "Stored runs", None, options=titles)


def method_control(kind: str, label: str, chosen: str) -> Control:
    """The choice of a policy or decoder."""
    named = ((e["name"], title(e["paper"])) for e in describe(BASES[kind].registry))
    options = tuple((f"{name}: {called}", name) for name, called in named)
    return Control(kind, "choice", label, chosen, options=options)


def knob_controls(kind: str, owner: str | None) -> list[Control]:
    """The knobs of one policy or decoder only; owner None: those that all of them have."""
    base = BASES[kind]
    shared = {knob.name: knob for knob in shared_knobs(base)}
    if owner is None:
        return [_knob_control(kind, None, knob) for knob in shared.values()]
    own = (knob for knob in knobs(base.registry[owner]) if knob.name not in shared)
    return [_knob_control(kind, owner, knob) for knob in own]


def shared_defaults(kind: str) -> dict[str, dict[str, Any]]:
    """Policy or decoder -> values, by control, of the shared knobs whose defaults differ."""
    base = BASES[kind]
    known = {name: {k.name: k.default for k in knobs(one)} for name, one in base.registry.items()}
    shared = [knob.name for knob in shared_knobs(base)]
    moving = [knob for knob in shared if len({given[knob] for given in known.values()}) > 1]
    return {
        name: {knob_name(kind, None, knob): given[knob] for knob in moving}
        for name, given in known.items()
    }


def with_defaults(kind: str, chosen: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The shared knobs as they are after a policy or decoder is chosen, by control: those at a
    default go to the new one, those that the visitor has set stay."""
    defaults = shared_defaults(kind)
    usual = {name: {given[name] for given in defaults.values()} for name in values}
    return {
        name: defaults[chosen][name] if value in usual[name] else value
        for name, value in values.items()
    }


def knob_name(kind: str, owner: str | None, knob: str) -> str:
    """Name of a knob's control; owner: a policy or decoder, None where all of them have it."""
    return ".".join((kind, owner or "all", knob))


def _knob_control(kind: str, owner: str | None, knob: Knob) -> Control:
    name, label = knob_name(kind, owner, knob.name), knob.name.replace("_", " ")
    if knob.kind is bool:
        return Control(name, "switch", label, knob.default, knob.help)
    if knob.kind is int:
        step, high = 1.0, min(knob.high, LONGEST_ANSWER)  # more would do nothing here
    else:  # a step that meets the bounds and the default
        places = max(len(str(float(x)).partition(".")[2]) for x in (knob.low, knob.default))
        step, high = min(10.0**-places, 0.01 if knob.high <= 2 else 0.1), knob.high
    return Control(
        name, "slider", label, knob.default, knob.help, low=knob.low, high=high, step=step
    )


def _model_title(label: str, name: str) -> str:
    """A model as the list of models shows it."""
    weights = size(name)
    if weights is None:
        return label
    number = f"{weights / 1e9:.1f} B" if weights > 1e8 else f"{weights / 1e6:.1f} M"
    return f"{label} ({number} weights)"


# ------------------------------------------------------------------------------ what they ask for


def _knob_names(kind: str, owner: str) -> dict[str, str]:
    """Knob of a policy or decoder -> name of its control."""
    base = BASES[kind]
    if not isinstance(owner, str) or owner not in base.registry:
        return {}  # the lane itself says which there are
    shared = {one.name for one in shared_knobs(base)}
    return {
        one.name: knob_name(kind, None if one.name in shared else owner, one.name)
        for one in knobs(base.registry[owner])
    }


def asked_of(values: Mapping[str, Any], compared: bool = False) -> Asked:
    """The run that the controls ask for: one lane, or one for each policy to be compared.

    Raises ValueError, in words for a visitor, for what cannot be run.
    """

    def settings(kind: str, owner: str) -> dict:
        return {knob: values[name] for knob, name in _knob_names(kind, owner).items()}

    decoder, several = values["decoder"], values["lanes"] if compared else [values["policy"]]
    if not isinstance(several, (list, tuple)):
        several = ()  # the request itself says that it needs lanes
    lanes = tuple(
        Lane(name, settings("policy", name), decoder, settings("decoder", decoder))
        for name in several
    )
    canvas = {name: values[name] for name in CANVAS}
    return Asked(lanes=lanes, full=not values["to_the_end"], **canvas)


def values_of(asked: Asked) -> dict[str, Any]:
    """The controls as a link sets them; of several lanes, the first one's knobs."""
    lane = asked.lanes[0]
    out = {name: getattr(asked, name) for name in CANVAS}
    out |= {"to_the_end": not asked.full, "policy": lane.policy, "decoder": lane.decoder}
    for kind, owner, settings in (
        ("policy", lane.policy, lane.knobs),
        ("decoder", lane.decoder, lane.decoder_knobs),
    ):
        out |= {name: settings[knob] for knob, name in _knob_names(kind, owner).items()}
    return out
