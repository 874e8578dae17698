"""Knobs and registries: allowed values, and new classes that are found without another edit."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from lab import random_prompt, run, small_model

import d2cache
from d2cache.decoders import Decoder
from d2cache.policies import CachePolicy
from d2cache.registry import Registered, knob, knobs, table

ALL = [(d2cache.make_policy, p) for p in d2cache.policies()] + [
    (d2cache.make_decoder, d) for d in d2cache.decoders()
]
KNOBS = [(make, entry["name"], one) for make, entry in ALL for one in entry["knobs"]]


def label(x):
    return x if isinstance(x, str) else getattr(x, "name", "")


def test_the_papers_names_of_knobs_are_kept():
    d2 = {
        k.name: k.default for k in next(p for p in d2cache.policies() if p["name"] == "d2")["knobs"]
    }
    assert d2 == dict(current_k=32, rollout_p=0.1, sigma=10.0, inflate_w=0, as_shipped=False)
    every = {d["name"]: {k.name: k.default for k in d["knobs"]} for d in d2cache.decoders()}
    common = dict(tokens_per_step=1, temperature=0.0, top_p=1.0, sigma=10.0)
    assert common.items() <= every["confidence"].items()
    assert every["threshold"]["threshold"] == 0.9


@pytest.mark.parametrize(
    ("make", "entry"), ALL, ids=lambda x: x["name"] if isinstance(x, dict) else ""
)
def test_an_entry_has_what_a_front_end_needs(make, entry):
    assert "arXiv" in entry["paper"] and entry["help"]
    assert make(entry["name"]).settings() == {k.name: k.default for k in entry["knobs"]}
    for one in entry["knobs"]:
        assert one.help and one.kind in (bool, int, float)
        if one.kind is not bool:
            assert one.low <= one.default <= one.high


@pytest.mark.parametrize(("make", "name", "one"), KNOBS, ids=label)
def test_a_knob_takes_its_bounds_and_nothing_outside(make, name, one):
    bad = ["3", None, [1], float("nan")]
    if one.kind is bool:
        good, bad = [True, False], [*bad, 0, 1, 1.0]
    else:
        good = [one.low, one.high]
        step = 1 if one.kind is int else 1e-6
        bad += [one.low - step, one.high + step, float("inf"), -float("inf"), True, 10**400]
        bad += [one.low + 0.5] if one.kind is int else []
    for value in good:
        got = getattr(make(name, **{one.name: value}), one.name)
        assert got == value and type(got) is one.kind
    for value in bad:
        with pytest.raises(ValueError, match=f"'{name}': {one.name} is .*; it must be") as error:
            make(name, **{one.name: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knob", "given", "kept"),
    [
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", torch.tensor(0.5), 0.5),
        ("temperature", np.int64(1), 1.0),
        ("tokens_per_step", np.int64(3), 3),
        ("tokens_per_step", np.float64(3), 3),
        ("as_shipped", np.bool_(True), True),
    ],
)
def test_a_knob_of_numpy_or_torch_is_kept_as_a_plain_one(knob, given, kept):
    value = d2cache.make_decoder("confidence", **{knob: given}).settings()[knob]
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize("value", [np.nan, np.bool_(True), 10**400, 1j, "1", None, -np.inf])
def test_what_is_no_number_is_no_value_of_a_knob(value):
    with pytest.raises(ValueError, match="temperature is .*; it must be a number from 0.0 to 2.0"):
        d2cache.make_decoder("confidence", temperature=value)


def test_a_whole_number_written_as_a_float_is_a_whole_number():
    made = d2cache.make_policy("d2", current_k=8.0, sigma=4)
    assert type(made.current_k) is int and made.current_k == 8
    assert type(made.sigma) is float and made.sigma == 4.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: d2cache.make_policy("d3"), r"^unknown policy 'd3'; choose one of .*d2.*none"),
        (lambda: d2cache.make_policy(""), r"^unknown policy ''; choose one of"),
        (lambda: d2cache.make_decoder("x"), r"^unknown decoder 'x'; choose one of .*threshold"),
        (
            lambda: d2cache.make_policy("d2", k=3),
            r"^policy 'd2' has no knob 'k'; its knobs: current_k, rollout_p, sigma",
        ),
        (
            lambda: d2cache.make_policy("none", sigma=3),
            r"^policy 'none' has no knob 'sigma'; its knobs: none$",
        ),
        (
            lambda: d2cache.make_decoder("confidence", threshold=0.5),
            r"^decoder 'confidence' has no knob 'threshold'; its knobs: tokens_per_step",
        ),
        (
            lambda: d2cache.make_policy("d2", current_k=0),
            r"^policy 'd2': current_k is 0; it must be a whole number from 1 to 1024$",
        ),
        (
            lambda: d2cache.make_decoder("threshold", threshold=float("nan")),
            r"^decoder 'threshold': threshold is nan; it must be a number from 0.0 to 1.0$",
        ),
        (
            lambda: d2cache.make_policy("d2", as_shipped=1),
            r"^policy 'd2': as_shipped is 1; it must be True or False$",
        ),
    ],
)
def test_messages_name_what_was_given_and_what_is_allowed(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.fixture
def registries(monkeypatch):
    """Copies of the registries, for one test."""
    for base in (CachePolicy, Decoder):
        monkeypatch.setattr(base, "registry", dict(base.registry))


def test_a_new_class_is_listed_made_and_decoded_with(registries):
    @dataclass
    class Prompt(CachePolicy, key="every-other"):
        """A policy of this test (arXiv 0000.00000)."""

        period: int = d2cache.knob(2, 1, 9, "steps between passes")

    @dataclass
    class Last(Decoder, key="last"):
        """A decoder of this test (arXiv 0000.00000)."""

        def accept(self, canvas, candidates):
            return canvas.eligible & (canvas.position == canvas.eligible.int().cumsum(1).argmax(1))

    entry = next(p for p in d2cache.policies() if p["name"] == "every-other")
    assert [(k.name, k.default, k.low, k.high) for k in entry["knobs"]] == [("period", 2, 1, 9)]
    assert d2cache.make_policy("every-other", period=3).settings() == {"period": 3}
    names = [k.name for k in knobs(Last)]
    assert "temperature" in names, "the common knobs are inherited"
    steps = run(small_model(0), random_prompt(3), "every-other", "last", gen_length=4)
    assert [s.accepted.nonzero()[0, 1].item() for s in steps] == [6, 5, 4, 3]
    assert steps[0].run.policy == "every-other" and steps[0].run.policy_knobs == {"period": 2}


def test_a_name_taken_by_another_file_is_refused(registries):
    for base in (CachePolicy, Decoder):
        taken = next(iter(base.registry))
        with pytest.raises(
            ValueError, match=f"'{taken}' is already registered by d2cache.*; choose"
        ):
            type("Copy", (base,), {"__module__": __name__}, key=taken)


def test_a_decoder_without_a_rule_raises_when_used():
    with pytest.raises(NotImplementedError):
        Decoder.accept(d2cache.make_decoder("confidence"), None, None)


def test_a_table_shows_method_paper_and_the_knobs_that_are_not_shared():
    @dataclass
    class Base(Registered):
        registry: ClassVar[dict] = {}
        kind: ClassVar[str] = "thing"
        shared: int = knob(1, 0, 9, "all things have it")
        moved: int = knob(2, 0, 9, "and this")

    @dataclass
    class One(Base, key="one"):
        """Method One (as in Someone, arXiv 1234.56789): what it does.

        More.
        """

        moved: int = knob(5, 0, 9, "another default")
        own: float = knob(0.5, 0, 1, "its own")

    text = table(Base, "what").splitlines()
    assert text[0] == "| name | method | what | knobs |"
    link = "[1234.56789](https://arxiv.org/abs/1234.56789)"
    assert text[2] == f"| `one` | Method One, {link} | what it does | `moved` 5, `own` 0.5 |"

    @dataclass
    class Vague(Base, key="vague"):
        """Does something."""

    with pytest.raises(ValueError, match="the docstring of 'vague' begins 'Does something.'"):
        table(Base, "what")
