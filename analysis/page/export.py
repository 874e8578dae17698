"""A run to take along: one HTML file that plays it with the stage of the page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence

from analysis.page import bundle, stored
from analysis.page.events import message, trace_events
from analysis.page.lessons import glossary
from analysis.page.query import MOST_LANES
from d2cache import Trace

# What is around the stage. Colours as in its own style; a hosted page brings Gradio's instead.
PAGE_CSS = """
:root {color-scheme: light dark}
body {margin: 0; font: 14px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff}
main {max-width: 1500px; margin: 0 auto; padding: 12px 16px 24px}
h1 {margin: 0 0 4px; font-size: 18px; line-height: 1.35; overflow-wrap: anywhere}
.file-words {margin: 0 0 12px; max-width: 80ch; opacity: .85}
.file-pick {display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 10px}
.file-pick button {min-height: 32px; padding: 4px 12px; font: inherit; color: inherit;
  background: none; border: 1px solid #8b93a0; border-radius: 16px; cursor: pointer}
.file-pick button[aria-pressed=true] {color: #fff; background: #0b6aa8; border-color: #0b6aa8}
.file-pick button:focus-visible {outline: 2px solid #0b6aa8; outline-offset: 2px}
footer {margin-top: 20px; font-size: 12.5px; opacity: .75}
@media (prefers-color-scheme: dark) {
  body {color: #e6e9ee; background: #10141b}
  .file-pick button:focus-visible {outline-color: #6db8ea}
}
@media (max-width: 560px) {main {padding: 8px 10px 20px}}
"""

# Plays the stories of the page: each a script tag of messages, one a line, that nothing executes.
PLAYER_JS = """
(() => {
  const tags = [...document.querySelectorAll("script[data-story]")];
  const { view, ...options } = JSON.parse(document.getElementById("file-options").textContent);
  const stage = D2Stage.mount(document.getElementById("stage"), { ...options, offline: true });
  globalThis.d2stage = stage;
  const buttons = [...document.querySelectorAll(".file-pick button")];
  const words = document.querySelector(".file-words");
  function play(i) {
    for (const line of tags[i].textContent.trim().split("\\n")) stage.receive(line);
    buttons.forEach((b, k) => b.setAttribute("aria-pressed", String(k === i)));
    if (words) words.textContent = tags[i].dataset.words;
  }
  buttons.forEach((button, i) => button.addEventListener("click", () => {
    play(i);
    history.replaceState(null, "", "#" + tags[i].dataset.story);
  }));
  const follow = () => {
    play(Math.max(0, tags.findIndex((t) => t.dataset.story === location.hash.slice(1))));
  };
  addEventListener("hashchange", follow);
  follow();
  if (view.see !== undefined) stage.setLane?.(view.see);
  if (view.tab !== undefined) stage.show?.(view.tab);
  if (view.at !== undefined) requestAnimationFrame(() => stage.goto(view.at));
})();
"""


# ------------------------------------------------------------------------------ one file


def page(events: Sequence, title: str, view: dict | None = None) -> str:
    """One HTML file that plays runs with the stage of the page, from a disk, without a network.

    events: of all runs, in one list, or in several lists or messages (`stage.message`); runs of
    one board are its lanes, see `lanes`. A run that has not ended is shown as far as it came.
    view: what is shown at first, of {"at": step, "tab": key, "see": lane}, step and lane from 0.
    """
    return _document(title, [("run", title, "", _lines(events))], view)


def _lines(events: Sequence) -> str:
    """A message a run, one a line; a newline within a text is escaped by JSON."""
    runs: dict[str, list[dict]] = {}
    for one in events:
        many = json.loads(one)["events"] if isinstance(one, str) else one
        for event in [many] if isinstance(many, dict) else many:
            if event["k"] not in ("link", "pause"):
                runs.setdefault(event["run"], []).append(event)
    lines = []
    for key, told in runs.items():
        # the words about a live page, and the waiting for more, do not hold in a file
        told = [event | {"stored": False} if event["k"] == "start" else event for event in told]
        if not any(event["k"] == "end" for event in told):
            note = "It was exported before it ended."
            told.append({"k": "end", "run": key, "status": "stopped", "note": note})
        lines.append(message(told))
    return "\n".join(lines)


def _document(title: str, stories: list[tuple], view=None) -> str:
    """stories: (name, title, words, messages one a line); several are offered as buttons."""
    code = [bundle.scripts(), PLAYER_JS]
    # nothing from elsewhere, nothing to elsewhere, and no script but these
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in code)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    many = len(stories) > 1
    picks = "".join(
        f'<button type="button" aria-pressed="false">{html.escape(one[1])}</button>'
        for one in stories
    )
    pick = f'<div class="file-pick" role="group" aria-label="Runs">{picks}</div>' if many else ""
    said = '<p class="file-words" role="status"></p>' if many else ""
    data = "\n".join(
        f'<script type="application/x-ndjson" data-story="{html.escape(name)}" '
        f'data-words="{html.escape(words)}">{_inert(lines)}</script>'
        for name, _, words, lines in stories
    )
    chosen = _inert(json.dumps({"glossary": glossary(), "view": view or {}}))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{PAGE_CSS}{bundle.styles()}</style>\n</head>\n<body>\n<main>",
            f'<h1>{html.escape(title)}</h1>{pick}{said}<div id="stage"></div>',
            "<footer>A recorded run, in one file: nothing is loaded from anywhere, and nothing is "
            "computed. The live page is the d2Cache explorer.</footer>\n</main>",
            f'<script type="application/json" id="file-options">{chosen}</script>',
            data,
            *(f"<script>{text}</script>" for text in code),
            "</body>\n</html>\n",
        ]
    )


def _inert(text: str) -> str:
    """JSON that cannot end the script tag that holds it, nor open a comment in it."""
    return text.replace("<", "\\u003c")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def lanes(traces: Sequence[Trace]) -> list[list[dict]]:
    """The events of finished runs, side by side on one board; ValueError for too many."""
    if not 1 <= len(traces) <= MOST_LANES:
        raise ValueError(f"{len(traces)} runs; a board holds 1 to {MOST_LANES}: name fewer")
    return [
        trace_events(trace, f"lane-{i}", board="file", lane=i, name=name)
        for i, (trace, name) in enumerate(zip(traces, names(traces), strict=True))
    ]


def names(traces: Sequence[Trace]) -> list[str]:
    """A short label of each run: its policy, then whatever else tells it from the others."""
    settings = []
    for run in (trace.run for trace in traces):
        settings.append({"policy": run["policy"], "decoder": run["decoder"]})
        for kind in ("policy_knobs", "decoder_knobs"):  # both may have a sigma
            settings[-1] |= {(kind, knob): f"{knob} {value}" for knob, value in run[kind].items()}
    keys = list(dict.fromkeys(key for one in settings for key in one))
    telling = [k for k in keys if k == "policy" or len({one.get(k) for one in settings}) > 1]
    for count in range(1, len(telling) + 1):
        out = [", ".join(one[k] for k in telling[:count] if k in one) for one in settings]
        if len(set(out)) == len(out):
            return out
    return [f"{one} {i}" for i, one in enumerate(out, 1)]  # nothing that stands in them tells


def bundled_page() -> str:
    """One HTML file with every stored run and a choice of them: a page that needs no server."""
    stories = [
        (name, one["title"], one["words"], _lines(trace_events(stored.load(name), name)))
        for name, one in stored.listed().items()
    ]
    return _document("How caching works in a diffusion language model", stories)


def prompt_of(trace: Trace) -> str:
    """The prompt as its tokens read, on one line."""
    ids = trace.tokens[0, : trace.prompt_length]
    return " ".join("".join(trace.text_of(int(i)) for i in ids).split())
