"""Edits: changes made by hand between two steps of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from d2cache import plain
from d2cache.model import ModelConfig

MOST_EDITS = 256  # of one run
# Words and marks of an edit's text, which links contain
REFRESH, ALL, OWNERS = "refresh", "all", ("policy", "decoder")
NEXT = ","  # between parts
IS = "="  # between name and value
DOT = "."  # between rows, or before a knob
FORM = (
    "STEP[,POSITION=TOKENID...][,refresh=all|P.P.P][,policy.KNOB=VALUE...][,decoder.KNOB=VALUE...]"
)


@dataclass(frozen=True)
class Edit:
    """A change to a run, made after everything that step `step` does itself.

    tokens {canvas position: token id}: written over whatever is there, prompt included; the id of
    [MASK] masks a position again, or for the first time where it is given text after the first
    mask. refresh: positions whose rows the next step recomputes in addition to its own, or "all", a
    full pass. policy, decoder {knob: value}: in force from the next step on. Rows of changed tokens
    are always recomputed by the next step. Policies that decide layer by layer do not recompute
    single rows: for them any requested row means all rows.

    Raises ValueError for what no run can do; `check` does for what one run cannot.
    """

    step: int
    tokens: Mapping[int, int] = field(default_factory=dict)
    refresh: Sequence[int] | str = ()
    policy: Mapping[str, float] = field(default_factory=dict)
    decoder: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "step", _whole("the step of an edit", self.step))
        for name in ("tokens", "policy", "decoder"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise ValueError(f"an edit's {name} is {given!r:.40}; it must be a dict")
        tokens = {
            _whole("a position in an edit's tokens", at): _whole(
                f"an edit's token at position {at}", token
            )
            for at, token in self.tokens.items()
        }
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "refresh", _rows(self.refresh))
        for name in ("policy", "decoder"):
            object.__setattr__(self, name, _settings(getattr(self, name)))

    @property
    def requested(self) -> tuple[int, ...]:
        """Positions to refresh one by one, none where all are."""
        return () if isinstance(self.refresh, str) else tuple(self.refresh)

    def check(self, prompt_length: int, length: int, config: ModelConfig) -> None:
        """ValueError when the edit does not fit a canvas of `length` positions and this model."""
        for at in (*self.tokens, *self.requested):
            if at >= length:
                raise ValueError(
                    f"an edit names position {at}; this canvas has positions 0 to {length - 1}"
                )
        for at, token in self.tokens.items():
            if token >= config.vocab:
                raise ValueError(
                    f"an edit writes token {token}; the vocabulary has ids 0 to {config.vocab - 1}"
                )
            if token == config.mask_id and at < prompt_length:
                raise ValueError(
                    f"an edit masks position {at} of the prompt; only positions from "
                    f"{prompt_length} on, where the answer begins, can be masked"
                )

    def plain(self) -> dict:
        """As plain JSON values; `of_plain` is the inverse."""
        plain = asdict(self)
        plain["tokens"] = {str(at): token for at, token in self.tokens.items()}
        return plain | {"refresh": "all" if self.refresh == "all" else list(self.refresh)}

    @classmethod
    def of_plain(cls, plain: object) -> Edit:
        """An edit from its JSON values; ValueError for what is wrong with them."""
        if not isinstance(plain, Mapping) or set(plain) - set(cls.__dataclass_fields__):
            raise ValueError(f"an edit is {plain!r:.60}; it must be as `Edit.plain` makes it")
        tokens = plain.get("tokens", {})
        if not isinstance(tokens, Mapping):
            raise ValueError(f"an edit's tokens is {tokens!r:.40}; it must be an object")
        tokens = {_number("a position", str(at)): token for at, token in tokens.items()}
        return cls(**{**plain, "step": plain.get("step"), "tokens": tokens})

    @classmethod
    def parse(cls, text: str) -> Edit:
        """An edit from one line of text, see FORM; `str(edit)` is the inverse."""
        first, *rest = str(text).split(NEXT)
        step, tokens = _number("the step of an edit", first), dict[int, int]()
        refresh: str | list[int] = []
        knobs: dict[str, dict[str, float]] = {owner: {} for owner in OWNERS}
        for part in rest:
            name, equals, value = part.partition(IS)
            kind, dot, knob = name.partition(DOT)
            if not equals:
                raise ValueError(f"the edit {text!r:.80} has a part {part!r:.40}; its form: {FORM}")
            if name == REFRESH:
                rows = value.split(DOT)
                refresh = "all" if value == ALL else [_number("a row", at) for at in rows]
            elif dot and kind in knobs:
                knobs[kind][knob] = _value(knob, value)
            elif name[:1].isdigit():
                tokens[_number("a position", name)] = _number("a token", value)
            else:
                raise ValueError(f"the edit {text!r:.80} has a part {part!r:.40}; its form: {FORM}")
        return cls(step, tokens, refresh, **knobs)

    def __str__(self) -> str:
        parts = [str(self.step), *(f"{at}{IS}{token}" for at, token in self.tokens.items())]
        if self.refresh:
            rows = ALL if self.refresh == "all" else DOT.join(map(str, self.refresh))
            parts.append(f"{REFRESH}{IS}{rows}")
        for owner in OWNERS:
            for knob, value in getattr(self, owner).items():
                parts.append(f"{owner}{DOT}{knob}{IS}{str(value).lower()}")
        return NEXT.join(parts)


def _rows(given: object) -> str | tuple[int, ...]:
    """What an edit asks to refresh: "all", or positions in order, each once."""
    if isinstance(given, str) and given == ALL:
        return ALL
    if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)):
        raise ValueError(
            f"an edit's refresh is {given!r:.40}; it must be 'all' or a list of positions"
        )
    return tuple(sorted({_whole("a position in an edit's refresh", at) for at in given}))


def _settings(given: Mapping[str, object]) -> dict[str, float]:
    """Knobs that an edit sets, as plain values."""
    settings = {}
    for knob, value in given.items():
        if not isinstance(knob, str) or not re.fullmatch(r"[a-z_0-9]{1,60}", knob):
            raise ValueError(f"an edit's knob is {knob!r:.80}; it must be the name of a knob")
        switch = plain.switch(value)
        set_to = plain.number(value) if switch is None else switch
        if set_to is None or not abs(set_to) < 1e12:  # also refuses NaN
            raise ValueError(
                f"an edit sets {knob} to {value!r:.40}; it must be a number, True or False"
            )
        settings[knob] = set_to
    return settings


def _whole(what: str, value: object) -> int:
    given = plain.whole(value)
    if given is None or not 0 <= given < 2**31:
        raise ValueError(f"{what} is {value!r:.40}; it must be a whole number from 0")
    return given


def _number(what: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{what} is {text!r:.40}; it must be a whole number; form: {FORM}")
    return int(text)


def _value(knob: str, text: str) -> float:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else float(text)
    except ValueError as error:
        raise ValueError(
            f"an edit sets {knob} to {text!r:.40}; it must be a number, true or false"
        ) from error
