"""Knobs and the two registries: a class in a file of its own is known everywhere."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import MISSING, dataclass, field, fields, is_dataclass


def knob(default, low, high, help: str):
    """A dataclass field that is a knob: default, inclusive bounds (None for a switch) and help."""
    return field(default=default, metadata={"low": low, "high": high, "help": help})


@dataclass(frozen=True)
class Knob:
    """One knob as a front end needs it; `kind` is bool, int or float."""

    name: str
    default: object
    low: float | None
    high: float | None
    help: str

    @property
    def kind(self) -> type:
        return type(self.default)

    def check(self, owner: str, value):
        """The value in the knob's own type; ValueError with what is allowed otherwise."""
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            raise ValueError(f"{owner}: {self.name} is {value!r}; it must be True or False")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = self.kind is float or (number and value % 1 == 0)
        # `not (low <= value <= high)` also refuses a NaN
        if not number or not whole or not (self.low <= value <= self.high):
            sort = "a whole number" if self.kind is int else "a number"
            raise ValueError(
                f"{owner}: {self.name} is {value!r}; it must be {sort} "
                f"from {self.low} to {self.high}"
            )
        return self.kind(value)


class Registered:
    """Base of policies and decoders: subclassing with a key registers, fields are knobs."""

    key: str
    kind: str  # "policy" or "decoder", for messages
    registry: dict[str, type]
    running: bool = False  # a run holds this object's state

    def __init_subclass__(cls, key: str | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        if key is None:
            return
        if key in cls.registry and cls.registry[key].__module__ != cls.__module__:
            other = cls.registry[key].__module__
            raise ValueError(f"{cls.kind} {key!r} stands in {other} already; choose another name")
        cls.key = key
        cls.registry[key] = cls

    def __post_init__(self):
        for one in knobs(type(self)):
            value = one.check(f"{self.kind} {self.key!r}", getattr(self, one.name))
            object.__setattr__(self, one.name, value)

    def settings(self) -> dict:
        """Knob name -> value."""
        return {one.name: getattr(self, one.name) for one in knobs(type(self))}


def knobs(cls) -> list[Knob]:
    """The knobs of a policy or decoder class, in the order they are written."""
    return [
        Knob(f.name, f.default, f.metadata["low"], f.metadata["high"], f.metadata["help"])
        for f in fields(cls)
        if f.default is not MISSING and "help" in f.metadata
    ]


def shared_knobs(base) -> list[Knob]:
    """The knobs that a base gives to everything under it; a subclass may set other defaults."""
    return knobs(base) if is_dataclass(base) else []


def describe(registry: dict[str, type]) -> list[dict]:
    """name, paper (the docstring's first line), help (its rest) and knobs of everything known."""
    entries = []
    for name, cls in sorted(registry.items()):
        first, _, rest = (cls.__doc__ or "").strip().partition("\n")
        entries.append({"name": name, "paper": first, "help": rest.strip(), "knobs": knobs(cls)})
    return entries


def table(base, says: str) -> str:
    """A Markdown table of the policies or decoders: key, method with its paper, what it does (under
    the heading `says`), and the knobs that not all of them share, with their defaults.

    Raises ValueError for a docstring that does not begin with "METHOD (arXiv NUMBER): WHAT.".
    """
    lines = [f"| name | method | {says} | knobs |", "| --- | --- | --- | --- |"]
    common = [(k.name, k.default) for k in shared_knobs(base)]
    for entry in describe(base.registry):
        match = re.fullmatch(r"(.+?) \(.*?arXiv (\d{4}\.\d{5}).*?\): (.+)\.", entry["paper"])
        if not match:
            raise ValueError(
                f"the docstring of {entry['name']!r} begins {entry['paper']!r}; it must begin "
                "'METHOD (arXiv NUMBER): WHAT.'"
            )
        method, number, what = match.groups()
        own = [k for k in entry["knobs"] if (k.name, k.default) not in common]
        own = ", ".join(f"`{one.name}` {one.default}" for one in own)
        link = f"[{number}](https://arxiv.org/abs/{number})"
        lines.append(f"| `{entry['name']}` | {method}, {link} | {what} | {own} |")
    return "\n".join(lines)


def make(registry: dict[str, type], kind: str, name, settings: dict):
    """An object from its registered name and knobs; ValueError names what is allowed."""
    if not isinstance(name, str) or name not in registry:
        allowed = ", ".join(sorted(registry))
        raise ValueError(f"unknown {kind} {name!r}; choose one of {allowed}")
    cls = registry[name]
    known = [one.name for one in knobs(cls)]
    for given in settings:
        if given not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"{kind} {name!r} has no knob {given!r}; its knobs: {allowed}")
    return cls(**settings)


def import_siblings(package: str, path) -> None:
    """Import every module of a package, so that a new file registers itself."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
