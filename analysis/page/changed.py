"""What a visitor has changed on the left since the run on the stage was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.page.controls import values_of
from analysis.page.query import Asked

# What the controls are called in a sentence; a knob by its own name.
WORDS = {
    "gen_length": "answer length",
    "block_length": "block length",
    "turns": "whether lanes take turns",
    "to_the_end": "where the run stops",
}


def changed(asked: Asked, values: Mapping[str, Any]) -> list[str]:
    """Names of the controls that differ from those a board was made with. Of several lanes, what
    counts is the one that the controls come nearest to."""
    each = [_differing(replace(asked, lanes=(lane,)), values) for lane in asked.lanes]
    nearest = min(each, key=len)
    return [name for name in nearest if name != "turns" or len(asked.lanes) > 1]


def _differing(asked: Asked, values: Mapping[str, Any]) -> list[str]:
    made = values_of(asked)
    given = {name: values.get(name) for name in made}
    given["prompt"] = str(given["prompt"]).strip()
    names = [name for name in made if made[name] != given[name]]
    # another method has knobs of its own, which were not compared
    for kind in ("policy", "decoder"):
        if kind in names:
            names = [name for name in names if not name.startswith(f"{kind}.")]
    return names


def in_words(names: list[str]) -> str:
    """What has changed, in a sentence; "" for nothing."""
    if not names:
        return ""
    words = [WORDS.get(name, name.rpartition(".")[2].replace("_", " ")) for name in names]
    return f"Changed since this run: {', '.join(dict.fromkeys(words))}. Press Run."
