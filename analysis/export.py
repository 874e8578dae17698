"""A run to take along: one HTML file that plays it, a notebook cell that makes it again, CSV.

python -m analysis.export run.safetensors [more.safetensors] -o page.html   several: side by side
python -m analysis.export --bundled -o index.html                           the stored runs
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import stage
from analysis.lessons import glossary
from d2cache import Edit, Trace

ASSETS = Path(__file__).resolve().parents[1] / "assets"
MOST_LANES = 6

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


def scripts() -> str:
    """The stage's scripts in the order of assets/stage/files.json, as the page's head needs them.

    They are what runs live: an exported file holds these and no copy of their logic.
    """
    folder = ASSETS / "stage"
    names = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def styles() -> str:
    """All styles of the stage, in the order of their names."""
    files = sorted((ASSETS / "stage").glob("*.css"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


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
        lines.append(stage.message(told))
    return "\n".join(lines)


def _document(title: str, stories: list[tuple], view=None) -> str:
    """stories: (name, title, words, messages one a line); several are offered as buttons."""
    code = [scripts(), PLAYER_JS]
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
            f"<style>{PAGE_CSS}{styles()}</style>\n</head>\n<body>\n<main>",
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
        stage.trace_events(trace, f"lane-{i}", board="file", lane=i, name=name)
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


def prompt_of(trace: Trace) -> str:
    """The prompt as its tokens read, on one line."""
    ids = trace.tokens[0, : trace.prompt_length]
    return " ".join("".join(trace.text_of(int(i)) for i in ids).split())


def bundled() -> dict[str, dict]:
    """The stored runs of assets/traces, in their order: name -> title, words (a sentence or two)
    and prompt; `stored` loads one."""
    index = json.loads((ASSETS / "traces" / "index.json").read_text(encoding="utf-8"))
    return {one.pop("name"): one for one in index}


def stored(name: str) -> Trace:
    """A stored run by its name; ValueError names those that there are."""
    if name not in bundled():
        raise ValueError(f"there is no stored run {name!r}; choose of {', '.join(bundled())}")
    return Trace.load(ASSETS / "traces" / f"{name}.safetensors")


def bundled_page() -> str:
    """One HTML file with every stored run and a choice of them: a page that needs no server."""
    stories = [
        (name, one["title"], one["words"], _lines(stage.trace_events(stored(name), name)))
        for name, one in bundled().items()
    ]
    return _document("How caching works in a diffusion language model", stories)


# ------------------------------------------------------------------------------ a notebook cell


def notebook(trace: Trace, prompt: str | None = None) -> str:
    """Python source of a cell that makes a run again, every setting spelled out.

    prompt: the text that was encoded; without it the prompt's ids stand in the cell. Raises
    ValueError for a batch.
    """
    if trace.batch > 1:
        raise ValueError(
            f"the trace has {trace.batch} rows, a cell makes one: take trace.row(b) of this batch"
        )
    run = trace.run
    ids = [int(i) for i in trace.tokens[0, : trace.prompt_length]]
    known = f"model.encode({prompt!r})" if prompt is not None else repr(ids)
    dtype = "" if run["dtype"] == "float32" else f", dtype=torch.{run['dtype']}"
    dtype += ", weights='fp8'" if "weights" in run else ""
    lines = ["import torch\n" if "torch" in dtype else None, "import d2cache\n"]
    lines += [f"model = d2cache.load({run['model']!r}{dtype})", f"prompt = {known}"]
    for kind in ("policy", "decoder"):
        given = [repr(run[kind]), *(f"{k}={v!r}" for k, v in run[f"{kind}_knobs"].items())]
        lines.append(f"{kind} = d2cache.make_{kind}({', '.join(given)})")
    lines.append("steps = d2cache.generate(\n    model, prompt, policy, decoder,")
    lines.append(
        f"    gen_length={run['gen_length']}, block_length={run['block_length']}, "
        f"seed={run['seeds'][0]}, stop_at_eos={run['stop_at_eos']},"
    )
    edits = [str(Edit.of_plain(one)) for one in run.get("edits", [])]
    if edits:
        parsed = "".join(f"        d2cache.Edit.parse({one!r}),\n" for one in edits)
        lines.append(f"    edits=[\n{parsed}    ],")
    lines += [")", "trace = d2cache.Trace.record(steps)"]
    lines.append("print(model.decode(trace.answer), trace.totals, sep='\\n')")
    return "\n".join(line for line in lines if line is not None) + "\n"


# ------------------------------------------------------------------------------ tables


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV, numbers with at most six significant digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


# ------------------------------------------------------------------------------ command line


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.export", description="One HTML file that plays runs, offline."
    )
    parser.add_argument("traces", nargs="*", help="trace files; several are lanes of one board")
    parser.add_argument("-o", "--out", required=True, help="the file to write")
    parser.add_argument("--title", default=None, help="default: the first run's prompt")
    parser.add_argument("--bundled", action="store_true", help="the stored runs, with a choice")
    args = parser.parse_args(argv)
    try:
        if args.bundled == bool(args.traces):
            raise ValueError("give trace files, or --bundled, and not both")
        if args.bundled:
            text = bundled_page()
        else:
            traces = [Trace.load(file) for file in args.traces]
            text = page(lanes(traces), args.title or prompt_of(traces[0])[:120])
        Path(args.out).write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(text.encode()) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
