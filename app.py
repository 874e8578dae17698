"""The page: python app.py, then open the address it prints."""

from __future__ import annotations

import functools
import html
import json
import logging
import os
import random
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

import d2cache
from analysis import figures, metrics, probes, stage
from d2cache.registry import Knob
from d2cache.teaching import tasks
from d2cache.trace import Recorder

ASSETS = Path(__file__).parent / "assets"
LOG = logging.getLogger("d2cache.page")
MESSAGE_SECONDS = 1 / 30  # steps made within this time travel together
KEPT_RUNS = 64  # finished and paused runs; older ones are dropped
LONGEST_PROMPT = 4000  # characters
STORED = "stored"

ENGINE = threading.Lock()  # one step, or one probe, at a time on the device


@functools.cache
def model() -> d2cache.Model:
    """The bundled model, loaded on first use; warmed up so that the first step is quick."""
    loaded = d2cache.load("tiny")
    for policy in ("none", "d2"):
        next(d2cache.generate(loaded, loaded.encode("Hello"), policy, gen_length=64))
    return loaded


@dataclass
class Run:
    """A run behind the page: the suspended loop, what it recorded, and what is asked of it."""

    key: str
    session: str
    steps: object = None
    recorder: Recorder = field(default_factory=Recorder)
    events: stage.LiveEvents | None = None
    trace: d2cache.Trace | None = None
    paused: bool = False
    stopped: bool = False
    driver: threading.Lock = field(default_factory=threading.Lock)  # one hand on the loop at a time


class Runs:
    """Runs by key, the oldest dropped first; a closed tab takes its own with it."""

    def __init__(self):
        self.lock, self.runs = threading.Lock(), OrderedDict()

    def add(self, run: Run) -> Run:
        with self.lock:
            self.runs[run.key] = run
            while len(self.runs) > KEPT_RUNS:
                self.runs.popitem(last=False)[1].stopped = True
        return run

    def get(self, key: str | None) -> Run | None:
        with self.lock:
            return self.runs.get(key)

    def drop_session(self, session: str) -> None:
        with self.lock:
            for key in [k for k, r in self.runs.items() if r.session == session]:
                self.runs.pop(key).stopped = True


RUNS = Runs()
DRAWN: OrderedDict[str, tasks.Problem] = OrderedDict()  # recent example problems by their prompt


def notice(text: str, kind: str = "info") -> str:
    """One line for the reader; the text may hold anything, so it is escaped."""
    return f'<p class="page-notice page-{kind}" role="status">{html.escape(text)}</p>'


# ------------------------------------------------------------------------------ running


def start_run(
    session: str, prompt, policy, decoder, gen_length, block_length, seed, to_the_end, knobs
) -> Run:  # fmt: skip
    """A run ready for its first step; ValueError says what is wrong with the input."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("The prompt is empty: write a question, or press New problem.")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(
            f"The prompt has {len(prompt)} characters; {LONGEST_PROMPT} are allowed: shorten it."
        )
    RUNS.drop_session(session)  # a visitor has one run
    steps = d2cache.generate(
        model(), model().encode(prompt.strip()),
        d2cache.make_policy(policy, **knobs.get(("policy", policy), {})),
        d2cache.make_decoder(decoder, **knobs.get(("decoder", decoder), {})),
        gen_length=_whole("answer length", gen_length),
        block_length=_whole("block length", block_length) or None,
        seed=_whole("seed", seed),
        stop_at_eos=bool(to_the_end),
    )  # fmt: skip
    return RUNS.add(Run(secrets.token_hex(8), session, steps))


def _whole(name: str, value) -> int:
    if not isinstance(value, (int, float)) or value != value or value != int(value) or value < 0:
        raise ValueError(f"The {name} is {value!r}; it must be a whole number from 0.")
    return int(value)


def advance(run: Run, most: int | None = None):
    """Messages of the next steps, until the run ends, is paused, or `most` steps were made."""
    with run.driver:
        yield from _advance(run, most)


def _advance(run: Run, most: int | None):
    run.paused, made, waiting, sent = False, 0, [], 0.0
    try:
        while not (run.stopped or run.paused or made == most):
            with ENGINE:
                step = next(run.steps, None)
                if step is None:
                    break
                run.recorder.add(step)
                if run.events is None:
                    run.events = stage.LiveEvents(run.key, step)
                    waiting.append(run.events.start())
                waiting += run.events.step(step)
            made += 1
            if time.perf_counter() - sent >= MESSAGE_SECONDS:
                yield stage.message(waiting)
                sent, waiting = time.perf_counter(), []
        else:
            if not run.stopped:
                run.paused = True
                if waiting:
                    yield stage.message(waiting)
                return
        status = None
    except GeneratorExit:  # the tab was closed, or the event cancelled
        RUNS.drop_session(run.session)
        raise
    except Exception as error:
        LOG.exception("run %s failed", run.key)
        status, note = "failed", (str(error).strip() or type(error).__name__).splitlines()[0]
    run.steps = None  # frees the cache
    if run.recorder.first:
        run.trace = run.recorder.trace()
        status, note = (status, note) if status else stage.ending(run.trace)
        waiting.append(run.events.end(status, note))
    if waiting:
        yield stage.message(waiting)


def save_trace(trace: d2cache.Trace, key: str) -> str:
    name = "".join(c for c in trace.run["policy"] if c.isalnum())[:20]
    path = Path(tempfile.mkdtemp(prefix="d2cache-")) / f"d2cache-{name}-{key[:6]}.safetensors"
    trace.save(path)
    return str(path)


def verdict(run: Run, prompt: str) -> str:
    """What to say when a run has ended: whether a generated problem was solved."""
    if run.trace is None:
        return notice("The run stopped before its first step.", "error")
    problem = DRAWN.get(prompt.strip())
    if problem is None or run.stopped:
        return notice("Done. Scrub through the steps, or open Figures.")
    text = model().decode(run.trace.tokens[-1, run.trace.prompt_length :]).strip()
    if tasks.correct(problem, text):
        return notice("Done, and the answer is right.", "right")
    if problem.family == "stories":
        return notice("Done, but the story leaves the grammar it was learnt from.", "wrong")
    return notice(f"Done, but the answer is wrong. Wanted: {problem.answer}", "wrong")


def rollout_map(asked: str) -> dict:
    """For the stage: the T x T rollout of one step of one run. asked: JSON [run key, step].

    Open to anybody who can reach the page, so everything in it is checked.
    """
    try:
        key, step = json.loads(asked)
        run = RUNS.get(key) if isinstance(key, str) else None
        if run is None or type(step) is not int:
            return {"error": "this run is no longer kept here; run it again"}
        trace = run.trace or run.recorder.trace()
        if trace.run["shape"] != vars(model().config):
            return {"error": f"it needs the model {trace.run['model']}, which is not loaded here"}
        with ENGINE:
            rollout = probes.rollout_map(model(), trace, step)
        return stage.map_payload(rollout, trace.prompt_length)
    except (ValueError, TypeError, IndexError) as error:
        return {"error": str(error).splitlines()[0]}


# ------------------------------------------------------------------------------ the page

STAGE_JS = """
const host = element.querySelector('.stage-host');
const onDetail = async (step) => {
  const got = await server.rollout_map(JSON.stringify([stage.state().run, step]));
  if (got.error) throw new Error(got.error);
  return got;
};
const stage = D2Stage.mount(host, {onDetail});
window.d2stage = stage;
if (props.value) stage.receive(props.value);
watch('value', () => { if (props.value) stage.receive(props.value); });
"""

PAGE_CSS = """
.knob-paper {font-size: .85rem; opacity: .8}
.page-notice {margin: 0; padding: .5rem .75rem; border-radius: .5rem; font-size: .9rem;
  border-left: 4px solid var(--border-color-primary); background: var(--background-fill-secondary)}
.page-error {border-left-color: #d55e00} .page-wrong {border-left-color: #e69f00}
.page-right {border-left-color: #009e73}
#intro p {margin: 0 0 .25rem} #intro h1 {margin: 0 0 .25rem; font-size: 1.5rem}
#said, #said * {max-width: none} #said {padding: 0 !important} #said .prose {padding: 0}
.stage-wrap {padding: 0 !important; overflow: visible !important}
.gradio-container {max-width: 1700px !important}
@media (max-width: 640px) {.gradio-container {padding: .5rem !important}}
"""

INTRO = """
# How caching works in a diffusion language model
A diffusion language model starts from an answer made of masks and writes it in any order; every
step reads the whole canvas, so the usual KV cache does not work. **d2Cache** recomputes only the
few rows that matter and reuses the rest. Below, a small model does it live.
"""


def control(one: Knob):
    """A slider or checkbox for a knob, its help beside it."""
    label = one.name.replace("_", " ")
    if one.kind is bool:
        return gr.Checkbox(one.default, label=label, info=one.help)
    step = 1 if one.kind is int else 0.01 if one.high <= 2 else 0.1
    return gr.Slider(one.low, one.high, one.default, step=step, label=label, info=one.help)


def knob_groups(kind: str, entries: list[dict], chosen: str) -> tuple[dict, dict]:
    """A group of controls a registered policy or decoder; -> groups by name, controls by knob."""
    groups, controls = {}, {}
    for entry in entries:
        name = entry["name"]
        with gr.Group(visible=name == chosen) as groups[name]:
            gr.Markdown(entry["paper"], elem_classes="knob-paper", padding=True)
            if entry["knobs"]:
                with gr.Accordion("Knobs", open=kind == "policy"):
                    for one in entry["knobs"]:
                        controls[kind, name, one.name] = control(one)
    return groups, controls


def build() -> gr.Blocks:
    stored = load_stored()
    with gr.Blocks(title="d2Cache explorer", fill_width=True, delete_cache=(3600, 3600)) as page:
        run_key = gr.State(None)
        gr.Markdown(INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                family = gr.Dropdown(
                    list(tasks.FAMILIES), value="word", label="Example problems",
                    info="the bundled model knows these six families",
                )  # fmt: skip
                fresh = gr.Button("New problem", size="sm")
                prompt = gr.Textbox(
                    _first_prompt(), lines=4, max_lines=10, label="Prompt", elem_id="prompt",
                    max_length=LONGEST_PROMPT,
                )  # fmt: skip
                with gr.Row():
                    small = {"size": "sm", "min_width": 52}
                    go = gr.Button("Run", variant="primary", elem_id="run", **small)
                    pause = gr.Button("Pause", elem_id="pause", **small)
                    single = gr.Button("Step", elem_id="step", **small)
                    stop = gr.Button("Stop", elem_id="stop", **small)
                said = gr.HTML(
                    notice("A stored run is on the stage. Press Run for a live one."),
                    padding=False, elem_id="said",
                )  # fmt: skip
                policy = gr.Dropdown(
                    [p["name"] for p in d2cache.policies()], value="d2", label="Cache policy",
                    elem_id="policy",
                )  # fmt: skip
                policy_groups, controls = knob_groups("policy", d2cache.policies(), "d2")
                decoder = gr.Dropdown(
                    [d["name"] for d in d2cache.decoders()], value="confidence", label="Decoder",
                    elem_id="decoder",
                )  # fmt: skip
                groups, more = knob_groups("decoder", d2cache.decoders(), "confidence")
                controls |= more
                with gr.Accordion("Canvas", open=False):
                    gen_length = gr.Slider(
                        16, 256, 64, step=8, label="answer length", info="masks to fill"
                    )
                    to_the_end = gr.Checkbox(
                        True, label="stop at the end token",
                        info="what comes after it is padding; off: fill every mask",
                    )  # fmt: skip
                    block_length = gr.Slider(
                        0, 256, 0, step=8, label="block length",
                        info="answer written block by block, left to right; 0: one block",
                    )  # fmt: skip
                    seed = gr.Number(0, precision=0, label="seed", info="for temperature above 0")
                with gr.Row():
                    download = gr.DownloadButton("Download trace", size="sm", interactive=False)
                    upload = gr.UploadButton(
                        "Load trace", size="sm", file_types=[".safetensors"], file_count="single"
                    )
            with gr.Column(scale=4, min_width=320), gr.Tabs():
                with gr.Tab("Stage"):
                    board = gr.HTML(
                        stored, html_template='<div class="stage-host"></div>',
                        js_on_load=STAGE_JS, server_functions=[rollout_map], elem_id="stage",
                        elem_classes="stage-wrap", padding=False, apply_default_css=False,
                    )  # fmt: skip
                with gr.Tab("Figures") as figures_tab:
                    gr.Markdown("Figures of the finished run; hover for values, drag to zoom.")
                    plots = [gr.Plot(show_label=False) for _ in FIGURES]

        for dropdown, members in ((policy, policy_groups), (decoder, groups)):
            dropdown.change(
                lambda name, members=members: [gr.Group(visible=n == name) for n in members],
                dropdown, list(members.values()), queue=False, show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip
        fresh.click(
            new_problem, family, [prompt, gen_length], queue=False,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

        outputs = [board, run_key, said, pause, download]
        base = [prompt, policy, decoder, gen_length, block_length, seed, to_the_end]
        names = list(controls)
        inputs = [run_key, *base, *controls.values()]

        def show(run: Run, typed: str, most: int | None = None):
            """Stream a run into the page's outputs, from where it stands."""
            first = {run_key: run.key, pause: gr.Button("Pause")}
            for text in advance(run, most):
                yield first | {board: text}
                first = {}
            last = {pause: gr.Button("Resume" if run.paused else "Pause")}
            if run.paused:
                last[said] = notice("Paused. Step, or Resume.")
            elif RUNS.get(run.key):
                last[said] = verdict(run, typed)
                if run.trace:
                    last[download] = gr.DownloadButton(
                        value=save_trace(run.trace, run.key), interactive=True
                    )
            yield last

        def begin(request: gr.Request, typed, *values, most=None):
            head, knob_values = values[: len(base) - 1], values[len(base) - 1 :]
            settings = {}
            for (kind, name, knob), value in zip(names, knob_values, strict=True):
                settings.setdefault((kind, name), {})[knob] = value
            try:
                run = start_run(request.session_hash, typed, *head, settings)
            except ValueError as error:
                yield {said: notice(str(error), "error")}
                return
            yield {said: notice("Running."), download: gr.DownloadButton(interactive=False)}
            yield from show(run, typed, most)

        def on_run(request: gr.Request, key, *values):
            yield from begin(request, *values)

        def on_step(request: gr.Request, key, typed, *values):
            run = RUNS.get(key)
            if run and run.steps is not None and not run.stopped:
                yield from show(run, typed, most=1)
            else:
                yield from begin(request, typed, *values, most=1)

        def on_resume(label, key, typed):
            run = RUNS.get(key)
            if label == "Resume" and run and run.steps is not None:
                yield from show(run, typed)
            else:
                yield {said: gr.skip()}

        def on_pause(label, key):
            run = RUNS.get(key)
            if run and label == "Pause":
                run.paused = True

        def on_stop(key):
            run = RUNS.get(key)
            if run is None or run.steps is None:
                return {said: notice("Nothing is running.")}
            was_waiting, run.stopped = run.paused, True
            if not was_waiting:  # the streaming event sees it and says the rest
                return {said: notice("Stopping.")}
            text = list(advance(run))
            done = {pause: gr.Button("Pause"), said: notice("Stopped.")}
            if run.trace:
                path = save_trace(run.trace, run.key)
                done[download] = gr.DownloadButton(value=path, interactive=True)
            return done | ({board: text[-1]} if text else {})

        def on_close(request: gr.Request):
            RUNS.drop_session(request.session_hash)

        def on_upload(request: gr.Request, path):
            try:
                trace = d2cache.Trace.load(path)
                run = Run(secrets.token_hex(8), request.session_hash, trace=trace)
                text = stage.message(stage.trace_events(trace, RUNS.add(run).key, stored=True))
            except (ValueError, OSError) as error:
                return {said: notice(f"{error}. Load a file that this page saved.", "error")}
            described = f"{trace.run['model']}, {trace.run['policy']}, {len(trace.seconds)} steps"
            return {
                board: text, run_key: run.key, said: notice(f"Loaded a run of {described}."),
                download: gr.DownloadButton(value=save_trace(trace, run.key), interactive=True),
            }  # fmt: skip

        queued = {
            "concurrency_id": "engine", "concurrency_limit": 1, "show_progress": "hidden",
            "api_visibility": "private",
        }  # fmt: skip
        instant = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        go.click(on_pause, [pause, run_key], None, **instant)  # a new run ends the old one
        go.click(on_run, inputs, outputs, trigger_mode="always_last", **queued)
        single.click(on_pause, [pause, run_key], None, **instant)
        single.click(on_step, inputs, outputs, trigger_mode="multiple", **queued)
        pause.click(on_pause, [pause, run_key], None, **instant)
        pause.click(on_resume, [pause, run_key, prompt], outputs, **queued)
        stop.click(on_stop, run_key, outputs, **instant)
        upload.upload(on_upload, upload, outputs, **queued)
        figures_tab.select(draw_figures, run_key, plots, **instant)
        page.unload(on_close)
    return page


FIGURES = (
    lambda steps, tokens: figures.work_per_step(steps),
    lambda steps, tokens: figures.decode_order(tokens),
    lambda steps, tokens: figures.write_distance(tokens),
    lambda steps, tokens: figures.confidence_over_time(tokens),
)


def draw_figures(key: str | None) -> list:
    run = RUNS.get(key or STORED)
    trace = run and (run.trace or (run.recorder.first and run.recorder.trace()))
    if not trace:
        return [None] * len(FIGURES)
    steps, tokens = metrics.steps(trace), metrics.tokens(trace)
    return [figure(steps, tokens) for figure in FIGURES]


def new_problem(family: str):
    """A held-out problem of a family: its prompt, and an answer length that fits."""
    drawn = tasks.draw(family, random.Random(secrets.randbits(64)), held_out=True)
    DRAWN[drawn.prompt] = drawn
    while len(DRAWN) > 1000:
        DRAWN.popitem(last=False)
    return drawn.prompt, tasks.ANSWER_LENGTH[family]


def _first_prompt() -> str:
    first = tasks.draw("word", random.Random(129), held_out=True)
    DRAWN[first.prompt] = first
    return first.prompt


def load_stored() -> str:
    """The message that puts the stored run on the stage, or an empty one if there is none."""
    path = ASSETS / "traces" / "d2-word.safetensors"
    if not path.is_file():
        return ""
    trace = d2cache.Trace.load(path)
    RUNS.add(Run(STORED, STORED, trace=trace))
    return stage.message(stage.trace_events(trace, STORED, stored=True))


def head() -> str:
    script = (ASSETS / "stage.js").read_text(encoding="utf-8")
    style = (ASSETS / "stage.css").read_text(encoding="utf-8")
    return f"<script>{script}</script><style>{style}</style>"


def main():
    page = build()
    page.queue(max_size=32)
    page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        head=head(), css=PAGE_CSS, prevent_thread_lock=True, state_session_capacity=200,
        run_history=False,
    )  # fmt: skip
    threading.Thread(target=model, daemon=True).start()  # behind the page that is already up
    page.block_thread()


if __name__ == "__main__":
    main()
