"""Knobs, and the registries that find each policy and decoder in its own file."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from d2cache import plain


def knob(default: Any, low: float | None, high: float | None, help: str) -> Any:
    """A dataclass field that is a knob: its default, inclusive bounds (None for a switch), help."""
    return field(default=default, metadata={"low": low, "high": high, "help": help})


@dataclass(frozen=True)
class Knob:
    """One knob as a front end needs it; `kind` is bool, int or float."""

    name: str
    default: Any
    low: Any  # a number; None for a switch
    high: Any
    help: str

    @property
    def kind(self) -> type:
        return type(self.default)

    def check(self, owner: str, value: Any) -> Any:
        """The value converted to `kind`; raises ValueError when it is not allowed.

        owner: whose knob it is, for the message, such as "policy 'd2'".
        """
        if self.kind is bool:
            if (on := plain.switch(value)) is not None:
                return on
            raise ValueError(f"{owner}: {self.name} is {value!r:.80}; it must be True or False")
        given = plain.number(value)
        # `not (low <= given <= high)` also refuses NaN
        if (
            given is None
            or not (self.low <= given <= self.high)
            or (self.kind is int and given % 1 != 0)
        ):
            expected = "a whole number" if self.kind is int else "a number"
            raise ValueError(
                f"{owner}: {self.name} is {value!r:.80}; it must be {expected} "
                f"from {self.low} to {self.high}"
            )
        return self.kind(given)


class Registered:
    """Base of policies and decoders: a subclass with a key is registered, its fields are knobs."""

    key: ClassVar[str]
    kind: ClassVar[str]  # "policy" or "decoder", for messages
    registry: ClassVar[dict[str, type]]
    running: bool = False  # whether this object holds the state of an unfinished run

    def __init_subclass__(cls, key: str | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        if key is None:
            return
        if key in cls.registry and cls.registry[key].__module__ != cls.__module__:
            other = cls.registry[key].__module__
            raise ValueError(
                f"{cls.kind} {key!r} is already registered by {other}; choose another name"
            )
        cls.key = key
        cls.registry[key] = cls

    def __post_init__(self) -> None:
        for each in knobs(type(self)):
            value = each.check(f"{self.kind} {self.key!r}", getattr(self, each.name))
            object.__setattr__(self, each.name, value)

    def settings(self) -> dict[str, Any]:
        """Knob name -> value."""
        return {each.name: getattr(self, each.name) for each in knobs(type(self))}


def knobs(cls: type) -> list[Knob]:
    """The knobs of a policy or decoder class, in the order of its fields."""
    return [
        Knob(f.name, f.default, f.metadata["low"], f.metadata["high"], f.metadata["help"])
        for f in fields(cls)
        if f.default is not MISSING and "help" in f.metadata
    ]


def shared_knobs(base: type) -> list[Knob]:
    """The knobs that all subclasses inherit from `base`; a subclass may change their defaults."""
    return knobs(base) if is_dataclass(base) else []


def describe(registry: dict[str, type]) -> list[dict[str, Any]]:
    """One dict per registered class, by name: name, paper (first line of the docstring), help (the
    rest of it), knobs (list of `Knob`)."""
    entries = []
    for name, cls in sorted(registry.items()):
        first, _, rest = (cls.__doc__ or "").strip().partition("\n")
        entries.append({"name": name, "paper": first, "help": rest.strip(), "knobs": knobs(cls)})
    return entries


def title(paper: str) -> str:
    """What a method is called, of the first line of its docstring: what is before its paper."""
    return paper.partition(" (")[0].rstrip(":.")


def table(base: type[Registered], heading: str) -> str:
    """A Markdown table of the policies or decoders: name, method and paper, what it does (under
    `heading`), and the knobs that are not shared by all, with their defaults.

    Raises ValueError for a docstring that does not begin with "METHOD (arXiv NUMBER): WHAT.".
    """
    lines = [f"| name | method | {heading} | knobs |", "| --- | --- | --- | --- |"]
    shared = [(k.name, k.default) for k in shared_knobs(base)]
    for entry in describe(base.registry):
        match = re.fullmatch(r"(.+?) \(.*?arXiv (\d{4}\.\d{5}).*?\): (.+)\.", entry["paper"])
        if not match:
            raise ValueError(
                f"the docstring of {entry['name']!r} begins {entry['paper']!r}; it must begin "
                "'METHOD (arXiv NUMBER): WHAT.'"
            )
        method, number, what = match.groups()
        own = [k for k in entry["knobs"] if (k.name, k.default) not in shared]
        defaults = ", ".join(f"`{each.name}` {each.default}" for each in own)
        link = f"[{number}](https://arxiv.org/abs/{number})"
        lines.append(f"| `{entry['name']}` | {method}, {link} | {what} | {defaults} |")
    return "\n".join(lines)


def make(registry: dict[str, type], kind: str, name: Any, settings: dict[str, Any]) -> Any:
    """The policy or decoder registered as `name`, with these knobs.

    Raises ValueError for an unknown name, an unknown knob or a value that is not allowed.
    """
    if not isinstance(name, str) or name not in registry:
        allowed = ", ".join(sorted(registry))
        raise ValueError(f"unknown {kind} {name!r:.80}; choose one of {allowed}")
    cls = registry[name]
    known = [each.name for each in knobs(cls)]
    for given in settings:
        if given not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"{kind} {name!r} has no knob {given!r:.80}; its knobs: {allowed}")
    return cls(**settings)


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that each new file registers its class."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
