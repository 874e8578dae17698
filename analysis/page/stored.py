"""The runs that come with the page: a few with a title, and the lanes of all lessons and presets.

A lane is in a file that is called by everything that determines it, so that all lessons and
presets that have the same lane share it. `python -m analysis.tools.stored_runs` writes the files.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from analysis.page.query import Asked
from analysis.probes import Look
from d2cache import Trace
from d2cache.bundled import ASSETS

LANES = ASSETS / "traces" / "lanes"
MODEL = "tiny"  # label and name of the bundled model, which made them all
# What the page opens with: an address, see `analysis.page.query`.
OPENING = (
    "prompt=Eric has 33 hats. Nora has 4 fewer hats than Eric. How many hats do they have in all?"
    "&gen=24&lane=none/confidence,sigma=0&lane=d2/confidence,sigma=0"
)


def listed() -> dict[str, dict]:
    """The stored runs of assets/traces, in their order: name -> title, words (a sentence or two)
    and prompt; `load` loads one."""
    index = json.loads((ASSETS / "traces" / "index.json").read_text(encoding="utf-8"))
    return {one.pop("name"): one for one in index}


def load(name: str) -> Trace:
    """A stored run by its name; ValueError names those that there are."""
    if not isinstance(name, str) or name not in listed():
        raise ValueError(f"there is no stored run {name!r:.80}; choose of {', '.join(listed())}")
    return Trace.load(ASSETS / "traces" / f"{name}.safetensors")


# ------------------------------------------------------------------------------ lanes


def lane_names(asked: Asked) -> list[str]:
    """The names that the lanes of a request have in `LANES`, whether they are there or not.

    A lane does not depend on the others, on whose turn it is, or on whether an exact pass follows
    each step.
    """
    alone = (replace(asked, lanes=(one,), truth=False, turns=True) for one in asked.lanes)
    digests = [hashlib.sha256(one.query().encode()).hexdigest()[:12] for one in alone]
    return [f"{digest}-{one.policy}" for one, digest in zip(asked.lanes, digests, strict=True)]


def lanes(asked: Asked) -> list[tuple[str, Trace, list[Look]]] | None:
    """Name, trace and looks of each lane of a request, if all are stored; else None. No looks
    where the request wants no exact passes."""
    if asked.model != MODEL:
        return None
    names = lane_names(asked)
    files = [lane_file(name) for name in names]
    files += [looks_file(name) for name in names if asked.truth]
    if not all(file.is_file() for file in files):
        return None
    return [(name, lane(name), looks(name) if asked.truth else []) for name in names]


def lane_file(name: str) -> Path:
    return LANES / f"{name}.safetensors"


def looks_file(name: str) -> Path:
    return LANES / f"{name}.truth.safetensors"


@functools.cache
def lane(name: str) -> Trace:
    """The trace of a stored lane; everybody who asks for it shares it."""
    return Trace.load(lane_file(name))


@functools.cache
def looks(name: str) -> list[Look]:
    """What exact passes saw of a stored lane, step by step."""
    return unpacked(load_file(looks_file(name)))


def save_looks(name: str, found: Sequence[Look]) -> None:
    save_file(packed(found), looks_file(name))


def packed(found: Sequence[Look]) -> dict[str, np.ndarray]:
    """Looks as arrays, one row each: step, k_drift, v_drift, kl, recall (NaN for none) as in
    `Look`; flips and oracle (N,T) uint8, 1 for the positions that they hold."""
    length = len(found[0].k_drift)

    def marked(positions: tuple[int, ...]) -> np.ndarray:
        return np.bincount(np.array(positions, int), minlength=length).astype(np.uint8)

    return {
        "step": np.array([look.step for look in found], np.int32),
        **{n: np.stack([getattr(look, n) for look in found]) for n in ("k_drift", "v_drift", "kl")},
        **{n: np.stack([marked(getattr(look, n)) for look in found]) for n in ("flips", "oracle")},
        "recall": np.array([np.nan if look.recall is None else look.recall for look in found]),
    }


def unpacked(arrays: dict[str, np.ndarray]) -> list[Look]:
    """The inverse of `packed`."""
    return [
        Look(
            int(arrays["step"][i]),
            arrays["k_drift"][i],
            arrays["v_drift"][i],
            arrays["kl"][i],
            tuple(np.flatnonzero(arrays["flips"][i]).tolist()),
            tuple(np.flatnonzero(arrays["oracle"][i]).tolist()),
            None if np.isnan(arrays["recall"][i]) else float(arrays["recall"][i]),
        )
        for i in range(len(arrays["step"]))
    ]
