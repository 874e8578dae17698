"""Edits: what a hand changes between two steps of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from d2cache.canvas import Canvas, Plan, Why
from d2cache.model import ModelConfig
from d2cache.policies.base import CachePolicy
from d2cache.registry import Registered, knobs, make

MOST_EDITS = 256  # of one run
# Words and marks of an edit's text; links hold them.
REFRESH, ALL, OWNERS = "refresh", "all", ("policy", "decoder")
NEXT, IS, DOT = (
    ",",
    "=",
    ".",
)  # between parts; between name and value; between rows, or before a knob
FORM = (
    "STEP[,POSITION=TOKENID...][,refresh=all|P.P.P][,policy.KNOB=VALUE...][,decoder.KNOB=VALUE...]"
)


@dataclass(frozen=True)
class Edit:
    """A change to a run, made after everything that step `step` does itself.

    tokens {canvas position: token id}: written over whatever stands there, prompt included; the id
    of [MASK] masks an answer position again. refresh: positions whose rows the next step
    recomputes beside its own, or "all", a full pass. policy, decoder {knob: value}: in force from
    the next step on. Rows of changed tokens are always recomputed by the next step. Policies that
    decide layer by layer do not recompute single rows: for them any row asked for means all.

    Raises ValueError for what no run can do; whether it suits a run, `check` says.
    """

    step: int
    tokens: Mapping[int, int] = field(default_factory=dict)
    refresh: Sequence[int] | str = ()
    policy: Mapping[str, float] = field(default_factory=dict)
    decoder: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        _whole("the step of an edit", self.step)
        for name in ("tokens", "policy", "decoder"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise ValueError(f"an edit's {name} is {given!r:.40}; it must be a dict")
            object.__setattr__(self, name, dict(given))
        for at, token in self.tokens.items():
            _whole("a position in an edit's tokens", at)
            _whole(f"an edit's token at position {at}", token)
        if self.refresh != "all":
            rows = self.refresh
            if isinstance(rows, str) or not isinstance(rows, Sequence):
                raise ValueError(
                    f"an edit's refresh is {rows!r:.40}; it must be 'all' or a list of positions"
                )
            for at in rows:
                _whole("a position in an edit's refresh", at)
            object.__setattr__(self, "refresh", tuple(sorted(set(rows))))
        for knob, value in (*self.policy.items(), *self.decoder.items()):
            if not isinstance(knob, str) or not re.fullmatch(r"[a-z_0-9]{1,60}", knob):
                raise ValueError(f"an edit's knob is {knob!r:.80}; it must be the name of a knob")
            if type(value) not in (int, float, bool) or not abs(value) < 1e12:
                raise ValueError(
                    f"an edit sets {knob} to {value!r:.40}; it must be a number, True or False"
                )

    def check(self, prompt_length: int, length: int, config: ModelConfig) -> None:
        """ValueError when a canvas of `length` positions and this model have no room for it."""
        for at in (*self.tokens, *(() if self.refresh == "all" else self.refresh)):
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
                    f"an edit masks position {at} of the prompt; only the answer, from position "
                    f"{prompt_length} on, can be masked"
                )

    def plain(self) -> dict:
        """As JSON keeps it; `of_plain` gives the edit back."""
        plain = asdict(self)
        plain["tokens"] = {str(at): token for at, token in self.tokens.items()}
        return plain | {"refresh": "all" if self.refresh == "all" else list(self.refresh)}

    @classmethod
    def of_plain(cls, plain) -> Edit:
        """An edit from its JSON form; ValueError says what is wrong with it."""
        if not isinstance(plain, Mapping) or set(plain) - set(cls.__dataclass_fields__):
            raise ValueError(f"an edit is {plain!r:.60}; it must be as `Edit.plain` makes it")
        tokens = plain.get("tokens", {})
        if not isinstance(tokens, Mapping):
            raise ValueError(f"an edit's tokens is {tokens!r:.40}; it must be an object")
        tokens = {_number("a position", str(at)): token for at, token in tokens.items()}
        return cls(**{**plain, "step": plain.get("step"), "tokens": tokens})

    @classmethod
    def parse(cls, text: str) -> Edit:
        """An edit from one line of text, see FORM; `str(edit)` makes it."""
        first, *rest = str(text).split(NEXT)
        given = {"step": _number("the step of an edit", first), "tokens": {}}
        for part in rest:
            name, equals, value = part.partition(IS)
            kind, dot, knob = name.partition(DOT)
            if not equals:
                raise ValueError(f"the edit {text!r:.80} has a part {part!r:.40}; its form: {FORM}")
            if name == REFRESH:
                rows = value.split(DOT)
                given["refresh"] = "all" if value == ALL else [_number("a row", at) for at in rows]
            elif dot and kind in OWNERS:
                given.setdefault(kind, {})[knob] = _value(knob, value)
            elif name[:1].isdigit():
                given["tokens"][_number("a position", name)] = _number("a token", value)
            else:
                raise ValueError(f"the edit {text!r:.80} has a part {part!r:.40}; its form: {FORM}")
        return cls(**given)

    def __str__(self) -> str:
        parts = [str(self.step), *(f"{at}{IS}{token}" for at, token in self.tokens.items())]
        if self.refresh:
            rows = ALL if self.refresh == "all" else DOT.join(map(str, self.refresh))
            parts.append(f"{REFRESH}{IS}{rows}")
        for kind in OWNERS:
            for knob, value in getattr(self, kind).items():
                parts.append(f"{kind}{DOT}{knob}{IS}{str(value).lower()}")
        return NEXT.join(parts)


def checked(edits, canvas: Canvas, config: ModelConfig, *owners: Registered) -> tuple[Edit, ...]:
    """Edits that suit a run, in the order of their steps; ValueError says what does not.

    owners: the run's policy and decoder.
    """
    if not isinstance(edits, Sequence) or not all(isinstance(e, Edit) for e in edits):
        raise ValueError(f"edits is {edits!r:.60}; it must be a list of d2cache.Edit")
    if len(edits) > MOST_EDITS:
        raise ValueError(f"there are {len(edits)} edits; {MOST_EDITS} are allowed in one run")
    if edits and len(canvas.tokens) > 1:
        raise ValueError(
            f"edits are for one row, this batch has {len(canvas.tokens)}; run the rows one by one"
        )
    for edit in edits:
        edit.check(canvas.prompt_length, canvas.tokens.shape[1], config)
        for one in owners:
            make(one.registry, one.kind, one.key, getattr(edit, one.kind))
    return tuple(sorted(edits, key=lambda edit: edit.step))


class Hand:
    """The edits of one run, carried out while its loop runs."""

    def __init__(self, edits: Sequence[Edit]):
        self.edits, self.undone = edits, []

    def after(self, step: int) -> list[Edit]:
        return [edit for edit in self.edits if edit.step == step]

    def plan(self, policy: CachePolicy, canvas: Canvas) -> Plan:
        """What the policy plans, and the rows that the edits before this step ask for."""
        edits = self.after(canvas.step - 1)
        changed = [at for edit in edits for at in edit.tokens]
        asked = [at for edit in edits if edit.refresh != "all" for at in edit.refresh]
        whole = any(edit.refresh == "all" for edit in edits)
        # a policy by layers keeps more than K,V, and has no way to renew a row in all of it
        policy.whole = whole or (policy.parts is not None and bool(changed or asked))
        plan = policy.plan(canvas)
        if policy.whole:
            policy.whole = False
            return replace(CachePolicy.plan(policy, canvas), as_shipped=plan.as_shipped)
        if not (changed or asked):
            return plan
        refresh, why = plan.refresh.clone(), plan.why.clone()
        for rows, reason in ((changed, Why.WRITTEN), (asked, Why.FULL)):
            refresh[:, rows] = True
            why[:, rows] |= int(reason)
        return replace(plan, refresh=refresh, why=why)

    def write(self, step: int, tokens: Tensor, *owners: Registered) -> Tensor:
        """The canvas (B,T) as the edits of this step leave it; sets the owners' knobs too."""
        for edit in self.after(step):
            if edit.tokens:
                at = torch.tensor([list(edit.tokens)], device=tokens.device)
                new = torch.tensor([list(edit.tokens.values())], device=tokens.device)
                tokens = tokens.scatter(1, at, new)
            for one in owners:
                given = getattr(edit, one.kind)
                for knob in knobs(type(one)):
                    if knob.name in given:
                        self.undone.append((one, knob.name, getattr(one, knob.name)))
                        setattr(one, knob.name, knob.check(one.key, given[knob.name]))
        return tokens

    def undo(self) -> None:
        """Give policy and decoder the knobs back that they came with."""
        while self.undone:
            setattr(*self.undone.pop())


def _whole(what: str, value) -> None:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{what} is {value!r:.40}; it must be a whole number from 0")


def _number(what: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{what} is {text!r:.40}; it must be a whole number; form: {FORM}")
    return int(text)


def _value(knob: str, text: str):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else float(text)
    except ValueError as error:
        raise ValueError(
            f"an edit sets {knob} to {text!r:.40}; it must be a number, true or false"
        ) from error
