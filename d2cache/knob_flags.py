"""The knobs of policies and decoders as flags of the command line.

--KNOB sets a knob of the policy and of the decoder, --policy-KNOB and --decoder-KNOB of one of
them. Bounds may differ between owners of the same name: --KNOB then reaches those that allow its
value, and only where none does it is refused.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from d2cache.command import real, whole
from d2cache.decoders import Decoder
from d2cache.policies import CachePolicy
from d2cache.registry import Knob, Registered, knobs, make

Method = type[Registered]  # a class of policies or decoders
Made = TypeVar("Made", bound=Registered)
Owned = list[tuple[Method, Knob]]  # a knob's owners; bounds and default may differ


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# Add.


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """A flag for each knob; the help names its owners, with their bounds and defaults."""
    known: dict[str, Owned] = {}
    for cls in _methods():
        for each in knobs(cls):
            known.setdefault(each.name, []).append((cls, each))
    titles: dict[tuple[str, ...], str] = {
        ("policy",): "knobs of policies",
        ("decoder",): "knobs of decoders",
    }
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, owned in known.items():
        kinds = tuple(dict.fromkeys(cls.kind for cls, _ in owned))
        title = titles.get(kinds, "knobs of both: each owner takes a value that its bounds allow")
        group = groups.setdefault(title, parser.add_argument_group(title))
        _add(group, name, owned, _help(owned))
        for kind in kinds:
            own = [(cls, each) for cls, each in owned if cls.kind == kind]
            text = f"only the {kind}'s" if len(kinds) > 1 else argparse.SUPPRESS
            _add(group, f"{kind}_{name}", own, text)


def _add(group: argparse._ArgumentGroup, name: str, owned: Owned, text: str) -> None:
    kinds = {each.kind for _, each in owned}
    if kinds == {bool}:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag(name), default=None, help=text, action=action)
    elif kinds == {int}:
        group.add_argument(flag(name), metavar="N", help=text, type=whole())
    else:
        group.add_argument(flag(name), metavar="X", help=text, type=real())


def _help(owned: Owned) -> str:
    """What a knob does, for each group of owners that share help, bounds and default."""
    alike: dict[tuple, list[Method]] = {}
    for cls, each in owned:
        alike.setdefault((each.help, each.low, each.high, each.default), []).append(cls)
    parts = []
    for text, several in groupby(alike.items(), lambda item: item[0][0]):
        owners = ", ".join(f"{_owners_named(c)}: {_bounds(*key)}" for key, c in several)
        parts.append(f"{text} [{owners}]")
    return "; ".join(parts).replace("%", "%%")


def _bounds(_: str, low: float | None, high: float | None, default: float) -> str:
    if low is None:
        return "on" if default else "off"
    return f"{low:g} to {high:g}, default {default:g}"


def _owners_named(classes: list[Method]) -> str:
    """Owners by kind: "policy d2", "every decoder", or "decoders eb, klass"."""
    parts = []
    for kind, several in groupby(classes, lambda cls: cls.kind):
        keys = [cls.key for cls in several]
        if len(keys) == sum(cls.kind == kind for cls in _methods()):
            parts.append(f"every {kind}")
        else:
            plural = {"policy": "policies", "decoder": "decoders"}[kind] if keys[1:] else kind
            parts.append(f"{plural} {', '.join(keys)}")
    return " and ".join(parts)


def _methods() -> list[Method]:
    return [*CachePolicy.registry.values(), *Decoder.registry.values()]


# Read.


def chosen(policies: Iterable[str], decoder: str) -> list[Method]:
    """The classes of these names; a name that is unknown is left out, `made` refuses it."""
    found = [*map(CachePolicy.registry.get, policies), Decoder.registry.get(decoder)]
    return [cls for cls in found if cls is not None]


def check_flags(args: Namespace, used: list[Method]) -> None:
    """Refuse a knob that no chosen policy or decoder has: it would do nothing."""
    for name, each, kinds in _flags():
        if getattr(args, name) is None or _owners(used, each.name, kinds):
            continue
        owners = _owners(_methods(), each.name, kinds)
        known = " or ".join(f"{cls.kind} {cls.key!r}" for cls in owners)
        raise ValueError(
            f"{flag(name)} is a knob of {known}, which is not chosen here; "
            "leave it out or choose that one"
        )


def _flags() -> Iterator[tuple[str, Knob, tuple[str, ...]]]:
    """Each knob's name in the parsed arguments, the knob, and the kinds that it sets."""
    for cls in _methods():
        for each in knobs(cls):
            yield each.name, each, ("policy", "decoder")
            yield f"{cls.kind}_{each.name}", each, (cls.kind,)


def _owners(classes: Iterable[Method], knob: str, kinds: tuple[str, ...]) -> list[Method]:
    return [c for c in classes if c.kind in kinds and knob in {k.name for k in knobs(c)}]


def made(args: Namespace, base: type[Made], name: str, used: list[Method]) -> Made:
    """A policy or decoder with the knobs that were given; used: all classes that are chosen.

    Raises ValueError for an unknown name, and for a value that no chosen owner allows.
    """
    cls = base.registry.get(name)
    given: dict[str, object] = {}
    for each in knobs(cls) if cls else ():
        own, shared = getattr(args, f"{base.kind}_{each.name}"), getattr(args, each.name)
        if own is not None:
            given[each.name] = own
        elif shared is not None and (
            _allows(each, shared) or not _taken(args, each.name, shared, used)
        ):
            given[each.name] = shared
    return make(base.registry, base.kind, name, given)


def _taken(args: Namespace, name: str, value: float, used: list[Method]) -> bool:
    """Whether a chosen owner without a flag of its own allows the value of a shared flag."""
    return any(
        each.name == name and _allows(each, value)
        for cls in used
        if getattr(args, f"{cls.kind}_{name}", None) is None
        for each in knobs(cls)
    )


def _allows(each: Knob, value: float) -> bool:
    try:
        each.check("", value)
    except ValueError:
        return False
    return True
