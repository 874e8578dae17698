"""The stage's modules as one classic script, for the live page's head and for exported files.

A browser loads modules given to Gradio's head in no guaranteed order, and an exported page is one
file; so the modules are put in the order of their imports, each in a scope of its own.
"""

from __future__ import annotations

import functools
import graphlib
import json
import re
from pathlib import Path

from d2cache.bundled import ASSETS

STAGE = ASSETS / "stage"
ENTRY, GLOBAL = "main.js", "D2Stage"  # the page's one global is what its entry exports by that name
DATA_TAG = "d2-data"  # id of the tag whose JSON the stage reads when it is opened: see `data`

# The two forms that the stage's modules keep to; the formatter lays them out over several lines.
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+\.js)";\n', re.M)
EXPORT = re.compile(r"^export \{([^}]*)\};\n", re.M)


def modules(folder: Path = STAGE) -> dict[str, str]:
    """File name -> source of every module, each after what it imports.

    Raises ValueError for a circle, and for an import of a file or name that is not there.
    """
    sources = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.js")}
    needs = {name: {m[2] for m in IMPORT.finditer(text)} for name, text in sources.items()}
    for name in sources:
        _check_imports(name, sources)
    try:
        order = list(graphlib.TopologicalSorter(dict(sorted(needs.items()))).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"the modules import each other: {' -> '.join(error.args[1])}") from None
    return {name: sources[name] for name in order}


@functools.cache
def scripts(folder: Path = STAGE) -> str:
    """All modules as one classic script that defines the global D2Stage and nothing else."""
    parts = [_scope(name, text) for name, text in modules(folder).items()]
    entry = f"globalThis.{GLOBAL} = {_variable(ENTRY)}.{GLOBAL};"
    return "\n".join(["(() => {", '"use strict";', *parts, entry, "})();\n"])


def data(values: dict) -> str:
    """A tag with what the page brings along for the stage: lessons, glossary, presets, view."""
    return f'<script type="application/json" id="{DATA_TAG}">{inert(json.dumps(values))}</script>'


def inert(text: str) -> str:
    """JSON that cannot end the script tag that holds it, nor open a comment in it."""
    return text.replace("<", "\\u003c")


def styles(folder: Path = STAGE) -> str:
    """All styles of the stage, in the order of their names."""
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.css")))


def head(texts: dict) -> str:
    """What the live page's head holds: the texts that the stage shows, scripts and styles."""
    return f"{data(texts)}<script>{scripts()}</script><style>{styles()}</style>"


def _check_imports(name: str, sources: dict[str, str]) -> None:
    for names, other in IMPORT.findall(sources[name]):
        if other not in sources:
            raise ValueError(f"{name} imports {other}, which is not there")
        exported = {pair[-1] for found in EXPORT.findall(sources[other]) for pair in _names(found)}
        for wanted in (pair[0] for pair in _names(names)):
            if wanted not in exported:
                raise ValueError(f"{name} imports {wanted} of {other}, which does not export it")


def _scope(name: str, text: str) -> str:
    """A module as a function's scope: imports become constants, exports what it returns."""

    def constants(found: re.Match) -> str:
        return f"const {{ {_renamed(found[1], ': ')} }} = {_variable(found[2])};\n"

    exported = ", ".join(_swapped(found[1]) for found in EXPORT.finditer(text))
    body = EXPORT.sub("", IMPORT.sub(constants, text))
    for line in body.splitlines():
        if re.match(r"(import|export)\b", line):
            raise ValueError(
                f'{name} has a line {line!r:.80}; import {{ a }} from "./b.js" and '
                "export { a } are the forms that this script can join"
            )
    return f"const {_variable(name)} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"


def _variable(name: str) -> str:
    return "in_" + name.removesuffix(".js").replace("-", "_")


def _names(text: str) -> list[list[str]]:
    """[name] or [name, name it is known as], of the names between two braces."""
    return [part.split(" as ") for part in " ".join(text.split()).strip(" ,").split(", ") if part]


def _renamed(text: str, between: str) -> str:
    return ", ".join(between.join(names) for names in _names(text))


def _swapped(text: str) -> str:
    return ", ".join(": ".join(reversed(names)) for names in _names(text))
