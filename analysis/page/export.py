"""One HTML file that plays runs offline, with the stage of the page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence

from analysis.page import bundle, stored
from analysis.page.events import message, trace_events
from analysis.page.lessons import glossary, lessons, presets, queries
from analysis.page.query import MOST_LANES, Asked, Link, name_lanes, name_runs
from analysis.probes import Look
from d2cache import Trace

# The look of what surrounds the stage.
STYLE = bundle.STAGE.parent / "page" / "export.css"
INTRODUCTION = STYLE.with_name("intro.md")
FOOTER = (
    "{what}, in one file: it plays without a network, but attention maps, figures, key "
    "paths, what-ifs and new runs need the live page, the d2Cache explorer."
)
LONGEST_TITLE = 120  # characters
START = f"{bundle.GLOBAL}.play();"  # see assets/stage/player.js
START_MANY = f"{bundle.GLOBAL}.playMany();"  # see assets/stage/collection.js
RUNS_TAG = "d2-runs"  # id of the tag with many runs
TITLE = "How caching works in a diffusion language model"
FIRST = "Without a cache, and with d2Cache"  # title of the two runs that a page opens with
OTHER = "<option hidden>Those of the lesson</option>"


# ------------------------------------------------------------------------------ one file


def page(events: Sequence, title: str, view: dict | None = None) -> str:
    """One HTML file that plays runs with the stage of the page, without a network.

    events: of all runs, in one list, or in several lists or messages (`events.message`); runs of
    one board are its lanes, see `lanes`. A run that has not ended is shown up to its last step.
    view: what is shown first, any of {"at": step, "tab": key, "see": lane, "clock": name, "pos":
    the chosen position}, numbers from 0.
    """
    texts = {"glossary": glossary(), "view": view or {}}
    runs = f'<script type="application/x-ndjson" data-runs>{bundle.inert(_lines(events))}</script>'
    return _file(title, "A recorded run", "", texts, runs, START)


def _lines(events: Sequence) -> str:
    """One line with a message for each run; JSON escapes a newline within a text."""
    runs: dict[str, list[dict]] = {}
    for one in events:
        many = json.loads(one)["events"] if isinstance(one, str) else one
        for event in [many] if isinstance(many, dict) else many:
            if "run" in event and event["k"] != "pause":
                runs.setdefault(event["run"], []).append(event)
    lines = []
    for key, told in runs.items():
        # a file is no stored run of the live page, and nothing more will come
        told = [event | {"stored": False} if event["k"] == "start" else event for event in told]
        if not any(event["k"] == "end" for event in told):
            note = "It was exported before it ended."
            told.append({"k": "end", "run": key, "status": "stopped", "note": note})
        lines.append(message(told))
    return "\n".join(lines)


def _file(title: str, what: str, above: str, texts: dict, data: str, start: str) -> str:
    """The file around a stage. what: it holds; above: the stage, HTML; texts: see `bundle.data`;
    data: tags with the runs; start: the script that plays them."""
    code = [bundle.scripts(), start]
    # nothing is loaded, nothing is sent, and no script runs but these
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in code)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    style = STYLE.read_text(encoding="utf-8") + bundle.styles()
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{style}</style>\n</head>\n<body>\n<main>",
            f'<h1>{html.escape(title)}</h1>{above}<div id="stage"></div>',
            f"<footer>{FOOTER.format(what=what)}</footer>\n</main>",
            bundle.data(texts),
            data,
            *(f"<script>{text}</script>" for text in code),
            "</body>\n</html>\n",
        ]
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def lanes(traces: Sequence[Trace]) -> list[list[dict]]:
    """The events of finished runs, side by side on one board; ValueError for too many."""
    if not 1 <= len(traces) <= MOST_LANES:
        raise ValueError(f"{len(traces)} runs; a board holds 1 to {MOST_LANES}: name fewer")
    names = name_runs([trace.run for trace in traces])
    return [
        trace_events(trace, f"lane-{i}", board="file", lane=i, name=name)
        for i, (trace, name) in enumerate(zip(traces, names, strict=True))
    ]


def bundled_page() -> str:
    """One HTML file with every stored run, the guided comparisons and the lessons: a page that
    needs no server."""
    several = {one["key"]: (one["title"], one["story"], one["query"]) for one in presets()}
    single = {
        name: (one["title"], one["words"], f"trace={name}") for name, one in stored.listed().items()
    }
    options = [
        _option("", FIRST, _introduction(), stored.OPENING),
        _group("Side by side", several),
        _group("One run", single),
        OTHER,
    ]
    choice = (
        '<label class="file-pick">Recorded runs '
        f'<select>{"".join(options)}</select></label><p class="file-words" role="status"></p>'
    )
    wanted = [query for _, _, query in (*several.values(), *single.values())]
    return _collection(TITLE, "Recorded runs and lessons", choice, [*queries(), *wanted])


def _introduction() -> str:
    """What the live page says below its title, as plain text."""
    text = INTRODUCTION.read_text(encoding="utf-8")
    return " ".join(text.partition("\n")[2].replace("**", "").split())


def lessons_page() -> str:
    """One HTML file with the lessons and their runs: a page that needs no server."""
    title = f"{TITLE}: six short lessons"
    return _collection(title, "Lessons and their recorded runs", "", queries())


def _group(label: str, choices: dict[str, tuple[str, str, str]]) -> str:
    options = "".join(_option(name, *one) for name, one in choices.items())
    return f'<optgroup label="{label}">{options}</optgroup>'


def _option(name: str, title: str, words: str, query: str) -> str:
    """A choice of runs. name: in the address; words: shown with them."""
    data = f'data-words="{html.escape(words)}" data-query="{html.escape(query)}"'
    return f'<option value="{html.escape(name)}" {data}>{html.escape(title)}</option>'


def _collection(title: str, what: str, above: str, wanted: Sequence[str]) -> str:
    """A page of many runs, which opens as the live page does, and of the lessons."""
    runs = json.dumps(_runs_of([stored.OPENING, *wanted]), separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(runs.encode(), mtime=0)).decode()
    data = f'<script type="application/octet-stream" id="{RUNS_TAG}">{packed}</script>'
    texts = {"glossary": glossary(), "lessons": lessons()}
    return _file(title, what, above, texts, data, START_MANY)


def _runs_of(wanted: Sequence[str]) -> dict:
    """{lanes: {key: [event]}, runs: {query: [[key, name of the lane there]]}} of stored queries;
    each lane once, and once more where its exact passes are shown as well."""
    told: dict[str, list[dict]] = {}
    runs: dict[str, list[list[str]]] = {}
    for query in wanted:
        runs[query] = []
        for key, name, trace, looks in _stored(Link.parse(query)):
            if key not in told:
                told[key] = trace_events(trace, key, looks=looks)
            runs[query].append([key, name])
    return {"lanes": told, "runs": runs}


def _stored(link: Link) -> list[tuple[str, str, Trace, Sequence[Look]]]:
    """Key, name, trace and looks of each lane of a link, all of which are stored."""
    if link.trace is not None:
        trace = stored.load(link.trace)
        return [(link.trace, trace.run["policy"], trace, [])]
    asked = Asked(**link.settings)
    found = stored.lanes(asked)
    if found is None:
        raise ValueError("no stored runs; run python -m analysis.tools.stored_runs lanes")
    return [
        (key + (" truth" if looks else ""), name, trace, looks)
        for name, (key, trace, looks) in zip(name_lanes(asked.lanes), found, strict=True)
    ]


def shortened(text: str, most: int = LONGEST_TITLE) -> str:
    """A text on one line of at most so many characters, cut between two words where it has any."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    whole, _, _ = line[:most].rpartition(" ")
    return f"{whole or line[: most - 1]}…"


def prompt_of(trace: Trace) -> str:
    """The prompt as its tokens read, on one line; gaps in a text as underscores."""
    ids, _ = trace.asked
    mask_id, words = trace.run["shape"]["mask_id"], ""
    for before, token in zip((mask_id, *ids), ids, strict=False):
        space = " " if token == mask_id != before else ""
        words += f"{space}_" if token == mask_id else trace.text_of(int(token))
    return " ".join(words.split())
