"""The page: python app.py, then open the address it prints."""

from __future__ import annotations

import html
import json
import logging
import math
import os
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

import d2cache
from analysis import figures, metrics, probes, stage
from d2cache import models
from d2cache.registry import Knob, describe, shared_knobs
from d2cache.teaching import tasks
from d2cache.trace import Recorder

ASSETS = Path(__file__).parent / "assets"
LOG = logging.getLogger("d2cache.page")
MESSAGE_SECONDS = 1 / 30  # steps made within this time travel together
KEPT_RUNS = 64  # visitors whose last run is kept
LONGEST_PROMPT = 4000  # characters
LONGEST_ANSWER = 256  # masks
USUAL_BLOCK = 16  # masks; proposed with a policy that is made for blocks

ENGINE = threading.Lock()  # one step, or one probe, at a time on the device


# ------------------------------------------------------------------------------ models


class Loading(ValueError):
    """The model that was asked for is on its way."""


class Models:
    """The models that this host offers, by the label that a visitor sees; each loaded once, kept.

    The first is loaded when the page starts, the others behind the page when they are first
    wanted, so that nobody's run waits for another's model.
    """

    def __init__(self, offered: dict[str, str]):
        self.offered = offered  # label -> what d2cache.load takes
        self.loaded: dict[str, d2cache.Model] = {}
        self.state: dict[str, str] = {}  # label -> a sentence, while it loads and when it failed
        self.busy: set[str] = set()
        self.one_load = threading.Lock()
        self.news = threading.Condition()

    @property
    def first(self) -> str:
        return next(iter(self.offered))

    def get(self, label: str) -> d2cache.Model:
        """A model that is loaded; waits for the first one.

        Loading says that another one is on its way, ValueError that it is not offered or failed.
        """
        self.start(label)
        if label == self.first:
            for _ in self.watch(label):
                pass
        with self.news:
            if label in self.loaded:
                return self.loaded[label]
            if label in self.busy:
                raise Loading(f"{self.state[label]} Press Run when it is there.")
            raise ValueError(f"{self.state[label]}. Choose another model.")

    def start(self, label: str) -> None:
        """Begin to load behind the page, unless it is loaded or loading."""
        if not isinstance(label, str) or label not in self.offered:
            raise ValueError(
                f"The model is {label!r}; this page offers {', '.join(self.offered)}: choose one."
            )
        with self.news:
            if label in self.loaded or label in self.busy:
                return
            self.busy.add(label)
            self.state[label] = f"Loading {label}."
        threading.Thread(
            target=self._load, args=(label,), name=f"load {label}", daemon=True
        ).start()

    def watch(self, label: str):
        """What the loading of a model is at, a sentence each time that changes, to its end."""
        said = None
        while True:
            with self.news:
                while label in self.busy and self.state[label] == said:
                    self.news.wait()
                if label not in self.busy:
                    return
                said = self.state[label]
            yield said

    def like(self, config: d2cache.ModelConfig) -> d2cache.Model | None:
        """A loaded model of exactly this shape and name; waits for the first one."""
        for _ in self.watch(self.first):
            pass
        return next((m for m in self.loaded.values() if m.config == config), None)

    def _load(self, label: str) -> None:
        def progress(what: str, done: int, total: int) -> None:
            part = f"{what} {100 * done // total} % of {total / 1e9:.1f} GB"
            self._say(label, f"Loading {label}: {part}.")

        try:
            with self.one_load:
                model = d2cache.load(self.offered[label], progress=progress)
                for policy in ("none", "d2"):  # the first steps of a process are slow
                    steps = d2cache.generate(model, model.encode("Hello"), policy, gen_length=64)
                    with ENGINE:
                        next(steps)
            self.loaded[label], said = model, f"{label} is loaded."
        except Exception as error:  # of whatever library: the page goes on with other models
            known = isinstance(error, ValueError)
            LOG.warning("loading %s failed: %s", label, error, exc_info=not known)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = reason.replace(str(Path(self.offered[label])), label)  # no paths for visitors
            said = f"{label} cannot be loaded: {reason}"
        self._say(label, said, done=True)

    def _say(self, label: str, said: str, done: bool = False) -> None:
        with self.news:
            self.state[label] = said
            if done:
                self.busy.discard(label)
            self.news.notify_all()


MODELS = Models({"tiny": "tiny"})


def offered_models(listed: str | None) -> dict[str, str]:
    """Label -> name of the models in D2CACHE_MODELS, by commas; without it, what suits the device.

    A folder's label is its own name: a visitor sees no paths. ValueError for one that cannot be.
    """
    if not listed:
        names = ["tiny"]
        if models.pick_device().type == "cuda":
            names += ["GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"]
    else:
        names = [name.strip() for name in listed.split(",") if name.strip()]
    offered = {}
    for name in names:
        label = models.label(name)
        if label in offered:
            raise ValueError(f"two models are called {label!r}; rename a folder or drop one")
        offered[label] = name
    if not offered:
        raise ValueError("it names no model; give tiny, hub ids or folders, by commas")
    return offered


# ------------------------------------------------------------------------------ runs


@dataclass
class Run:
    """A visitor's run: the suspended loop, what it recorded, and what is asked of it."""

    key: str  # what the stage calls it
    model: d2cache.Model | None = None  # none of a stored or an uploaded one
    asked: tuple = ()  # prompt and settings
    steps: object = None  # the engine's generator; None when the run has ended
    recorder: Recorder | None = None
    events: stage.LiveEvents | None = None
    trace: d2cache.Trace | None = None
    paused: bool = False
    stopped: bool = False
    error: str = ""
    file: Path | None = None
    driver: threading.Lock = field(default_factory=threading.Lock)  # one hand on the loop

    def snapshot(self) -> d2cache.Trace | None:
        """What there is of the run, also while it is being made."""
        with ENGINE:  # no step is added meanwhile
            if self.trace is None and self.recorder and self.recorder.run:
                return self.recorder.trace()
            return self.trace

    def forget(self) -> None:
        """Stop it and free what it holds."""
        self.stopped, self.steps = True, None
        if self.file:
            self.file.unlink(missing_ok=True)


class Runs:
    """The last run of each visitor, by session; a closed tab takes its own with it."""

    def __init__(self):
        # reentrant: an abandoned stream may be closed by the garbage collector at any moment
        self.lock, self.runs = threading.RLock(), OrderedDict()
        self.stored: Run | None = None

    def put(self, session: str, run: Run) -> Run:
        with self.lock:
            self.drop(session)
            self.runs[session] = run
            idle = [s for s, r in self.runs.items() if r.steps is None or r.paused]
            for old in idle[: max(0, len(self.runs) - KEPT_RUNS)]:
                self.drop(old)
        return run

    def of(self, session: str) -> Run | None:
        with self.lock:
            return self.runs.get(session)

    def named(self, key: str) -> Run | None:
        with self.lock:
            known = [self.stored, *self.runs.values()]
        return next((r for r in known if r and r.key == key), None)

    def drop(self, session: str) -> None:
        with self.lock:
            run = self.runs.pop(session, None)
        if run:
            run.forget()


RUNS = Runs()
DRAWN: OrderedDict[str, tasks.Problem] = OrderedDict()  # recent example problems by their prompt
FILES = tempfile.TemporaryDirectory(prefix="d2cache-traces-")  # gone with the process


def start_run(session: str, asked: tuple) -> Run:
    """A run ready for its first step; ValueError says what is wrong with the input."""
    prompt, policy, decoder, gen_length, block_length, seed, to_the_end, label, knobs = asked
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("The prompt is empty: write a question, or press New problem.")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(
            f"The prompt has {len(prompt)} characters; {LONGEST_PROMPT} are allowed: shorten it."
        )
    settings = {"policy": {}, "decoder": {}}
    for (kind, owner, knob), value in knobs:
        if owner in (None, {"policy": policy, "decoder": decoder}[kind]):  # None: every one has it
            settings[kind][knob] = value
    model = MODELS.get(label)
    steps = d2cache.generate(
        model, model.encode(prompt.strip()),
        d2cache.make_policy(policy, **settings["policy"]),
        d2cache.make_decoder(decoder, **settings["decoder"]),
        gen_length=_whole("answer length", gen_length),
        block_length=_whole("block length", block_length) or None,
        seed=_whole("seed", seed), stop_at_eos=bool(to_the_end),
    )  # fmt: skip
    return RUNS.put(session, Run(secrets.token_hex(8), model, asked, steps, Recorder()))


def _whole(name: str, value) -> int:
    number = isinstance(value, (int, float)) and math.isfinite(value)
    if not number or value != int(value) or value < 0:
        raise ValueError(f"The {name} is {value!r}; it must be a whole number from 0.")
    return int(value)


def advance(run: Run, session: str, most: int | None = None):
    """Messages of the next steps, until the run ends, is paused, or `most` steps were made."""
    with run.driver:
        run.paused = False
        try:
            yield from _steps(run, most)
        except GeneratorExit:  # the tab was closed, or the event cancelled
            if RUNS.of(session) is run:
                RUNS.drop(session)
            raise


def _steps(run: Run, most: int | None):
    steps = run.steps
    if steps is None:  # it ended meanwhile
        return
    made, waiting, sent, status = 0, [], 0.0, None
    try:
        while not (run.stopped or run.paused or made == most):
            with ENGINE:
                step = next(steps, None)
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
                if run.events:
                    waiting.append(run.events.pause())
                    yield stage.message(waiting)
                return
    except Exception as error:
        LOG.exception("run %s failed", run.key)
        run.error = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = ("failed", run.error)
    if run.recorder.run:
        run.trace = run.snapshot()
        waiting.append(run.events.end(*(status or stage.ending(run.trace))))
        yield stage.message(waiting)
    run.steps = run.recorder = run.events = None  # frees the cache


def save_trace(run: Run) -> str:
    if run.file is None:
        name = "".join(c for c in run.trace.run["policy"] if c.isalnum())[:20]
        run.file = Path(FILES.name) / f"d2cache-{name}-{run.key[:6]}.safetensors"
        run.trace.save(run.file)
    return str(run.file)


def rollout_map(asked: str) -> dict:
    """For the stage: the T x T rollout of one step of one run. asked: JSON [run key, step].

    Open to anybody who can reach the page, so everything in it is checked.
    """
    try:
        key, step = json.loads(asked[:100])
        run = RUNS.named(key) if isinstance(key, str) else None
        trace = run and run.snapshot()
        if trace is None or type(step) is not int:
            return {"error": "this run is no longer kept here; run it again"}
        model = run.model or MODELS.like(d2cache.ModelConfig(**trace.run["shape"]))
        if model is None:
            return {"error": f"it needs the model {trace.run['model']}, which is not loaded here"}
        with ENGINE:
            rollout = probes.rollout_map(model, trace, step)
        return stage.map_payload(rollout, trace.prompt_length)
    except (ValueError, TypeError, IndexError, RuntimeError, RecursionError) as error:
        return {"error": (str(error) or type(error).__name__).splitlines()[0]}


def new_problem(family: str):
    """A held-out problem of a family: its prompt, and an answer length that fits."""
    drawn = tasks.draw(family, random.Random(secrets.randbits(64)), held_out=True)
    return remember(drawn), tasks.ANSWER_LENGTH[family]


def first_problem() -> tasks.Problem:
    """The problem of the stored run: what the page opens with."""
    return tasks.draw("word", random.Random(129), held_out=True)


def remember(problem: tasks.Problem) -> str:
    DRAWN[problem.prompt] = problem
    while len(DRAWN) > 1000:
        DRAWN.popitem(last=False)
    return problem.prompt


def load_stored() -> str:
    """The message that puts the stored run on the stage."""
    trace = d2cache.Trace.load(ASSETS / "traces" / "d2-word.safetensors")
    RUNS.stored = Run("stored", trace=trace)
    return stage.message(stage.trace_events(trace, "stored", stored=True))


# ------------------------------------------------------------------------------ words


def notice(text: str, kind: str = "info") -> str:
    """One line for the reader; the text may hold anything, so it is escaped."""
    return f'<p class="page-notice page-{kind}" role="status">{html.escape(text)}</p>'


def verdict(run: Run) -> str:
    """What to say when a run has ended: whether a generated problem was solved."""
    if run.error:
        return notice(f"The run failed: {run.error}", "error")
    if run.stopped or run.trace is None:
        return notice("Stopped.")
    problem = DRAWN.get(run.asked[0].strip())
    if problem is None:
        return notice("Done. Scrub through the steps, or open Figures.")
    if run.model.config.name != "tiny":  # others answer in words of their own
        wanted = "" if problem.family == "stories" else f" Expected: {problem.answer}"
        return notice(f"Done.{wanted}")
    text = run.model.decode(run.trace.tokens[-1, run.trace.prompt_length :]).strip()
    right, story = tasks.correct(problem, text), problem.family == "stories"
    if right:
        return notice(f"Done, and the {'story is well formed' if story else 'answer is right'}.",
                      "right")  # fmt: skip
    if story:
        return notice("Done, but the story leaves its grammar.", "wrong")
    return notice(f"Done, but the answer is wrong. Wanted: {problem.answer}", "wrong")


def draw_figures(request: gr.Request) -> list:
    """A line that says which run this is, then the figures; nothing while a run streams."""
    run = RUNS.of(request.session_hash) or RUNS.stored
    trace = run.snapshot()
    if trace is None:
        return [gr.skip()] * (1 + len(FIGURES))
    prompt = "".join(trace.text_of(int(i)) for i in trace.tokens[0, : trace.prompt_length])
    shape = f"{trace.run['policy']} + {trace.run['decoder']}, {len(trace.seconds)} steps"
    state = "" if run.steps is None else " so far"
    steps, tokens = metrics.steps(trace), metrics.tokens(trace)
    said = notice(f"{shape}{state}: {prompt[:160]}")
    return [said, *(figure(steps, tokens) for figure in FIGURES)]


FIGURES = (
    lambda steps, tokens: figures.work_per_step(steps),
    lambda steps, tokens: figures.decode_order(tokens),
    lambda steps, tokens: figures.write_distance(tokens),
    lambda steps, tokens: figures.confidence_over_time(tokens),
)


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

# on a phone the stage lies far below the button
SHOW_STAGE = "() => { if (innerWidth < 760) document.querySelector('#stage').scrollIntoView(); }"

PAGE_CSS = """
.knob-paper {font-size: .85rem}
.page-notice {margin: 0; padding: .5rem .75rem; border-radius: .5rem; font-size: .9rem;
  border-left: 4px solid var(--border-color-primary); background: var(--background-fill-secondary)}
.page-error {border-left-color: #d55e00} .page-wrong {border-left-color: #e69f00}
.page-right {border-left-color: #009e73}
#intro p {margin: 0 0 .25rem; max-width: 75rem} #intro h1 {margin: 0 0 .25rem; font-size: 1.5rem}
#said {padding: 0 !important; min-height: 4.2rem} #said .prose {padding: 0; max-width: none}
.stage-wrap {padding: 0 !important; overflow: visible !important}
.gradio-container {max-width: 1700px !important}
@media (max-width: 640px) {.gradio-container {padding: .5rem !important}}
"""

# Gradio's own greys and orange are too pale to read
THEME = gr.themes.Default(primary_hue="blue").set(
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700", button_primary_text_color="white",
    button_primary_background_fill_dark="*primary_700",
)  # fmt: skip

INTRO = """
# How caching works in a diffusion language model
A diffusion language model starts from an answer made of masks and fills it in, a few tokens a
step. Every token looks both ways, so each newly written one changes the keys and values (K,V) of
all the others, and the KV cache of an ordinary language model does not apply. **d2Cache**
recomputes only the few positions that matter and reuses the K,V of the rest. Below, a model does it
live.
"""


def title(label: str, name: str) -> str:
    """A model as the list of models shows it."""
    size = models.size(name)
    if size is None:
        return label
    number = f"{size / 1e9:.1f} B" if size > 1e8 else f"{size / 1e6:.1f} M"
    return f"{label} ({number} weights)"


def control(one: Knob):
    """A slider or checkbox for a knob, its help beside it."""
    label = one.name.replace("_", " ")
    if one.kind is bool:
        return gr.Checkbox(one.default, label=label, info=one.help)
    if one.kind is int:
        step, high = 1, min(one.high, LONGEST_ANSWER)  # more would do nothing here
    else:  # a step that meets the bounds and the default
        places = max(len(str(float(x)).partition(".")[2]) for x in (one.low, one.default))
        step, high = min(10.0**-places, 0.01 if one.high <= 2 else 0.1), one.high
    return gr.Slider(one.low, high, one.default, step=step, label=label, info=one.help)


def choice(base: type, label: str, chosen: str):
    """A dropdown of what is registered, and for each a group with its words and its own knobs; the
    knobs that all share stand once, below.

    -> dropdown, controls by (kind, name, knob), name None for a shared one.
    """
    kind, entries, groups, controls = base.kind, describe(base.registry), {}, {}
    shared = {one.name: one for one in shared_knobs(base)}
    named = [(f"{e['name']}: {e['paper'].partition(' (')[0]}", e["name"]) for e in entries]
    dropdown = gr.Dropdown(named, value=chosen, label=label, elem_id=kind)
    for entry in entries:
        own = [one for one in entry["knobs"] if one.name not in shared]
        name = entry["name"]
        with gr.Group(visible=name == chosen) as groups[name]:
            gr.Markdown(entry["paper"], elem_classes="knob-paper", padding=True)
            if entry["help"]:
                with gr.Accordion(f"How {name} works", open=False):
                    gr.Markdown(entry["help"], elem_classes="knob-paper", padding=True)
            if own:
                with gr.Accordion(f"Knobs of {name}", open=False, elem_id=f"knobs-{name}"):
                    for one in own:
                        controls[kind, name, one.name] = control(one)
    if shared:
        with gr.Accordion(f"Knobs of every {kind}", open=False, elem_id=f"knobs-{kind}"):
            for one in shared.values():
                controls[kind, None, one.name] = control(one)
    defaults = {e["name"]: {k.name: k.default for k in e["knobs"]} for e in entries}
    moving = [n for n in shared if len({known[n] for known in defaults.values()}) > 1]

    def on_change(name):
        return [gr.Group(visible=n == name) for n in groups] + [defaults[name][n] for n in moving]

    dropdown.change(
        on_change, dropdown, [*groups.values(), *(controls[kind, None, n] for n in moving)],
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    return dropdown, controls


def side_column() -> SimpleNamespace:
    """The controls at the left."""
    ui = SimpleNamespace()
    ui.late = gr.State("")  # the model that Run was pressed for too early
    ui.model = gr.Dropdown(
        [(title(label, name), label) for label, name in MODELS.offered.items()],
        value=MODELS.first, label="Model", elem_id="model", info="loaded when it is first chosen",
        visible=list(MODELS.offered) != ["tiny"],  # no choice: nothing to read
    )  # fmt: skip
    ui.family = gr.Dropdown(
        list(tasks.FAMILIES), value="word", label="Example problems",
        info="the model in the box knows these six families",
    )  # fmt: skip
    ui.fresh = gr.Button("New problem", size="sm")
    ui.prompt = gr.Textbox(
        remember(first_problem()), lines=4, max_lines=10, label="Prompt", elem_id="prompt",
        max_length=LONGEST_PROMPT, info="Shift+Enter runs it",
    )  # fmt: skip
    with gr.Row():
        small = {"size": "sm", "min_width": 52}
        ui.go = gr.Button("Run", variant="primary", elem_id="run", **small)
        ui.pause = gr.Button("Pause", elem_id="pause", **small)
        ui.resume = gr.Button("Resume", elem_id="resume", visible=False, **small)
        ui.single = gr.Button("Step", elem_id="step", **small)
        ui.stop = gr.Button("Stop", elem_id="stop", **small)
    first = "A stored run is on the stage. Press Run for a live one."
    ui.said = gr.HTML(notice(first), padding=False, elem_id="said")
    ui.policy, controls = choice(d2cache.CachePolicy, "Cache policy", "d2")
    ui.decoder, more = choice(d2cache.Decoder, "Decoder", "confidence")
    ui.knobs = controls | more
    with gr.Accordion("Canvas", open=False):
        ui.gen_length = gr.Slider(
            16, LONGEST_ANSWER, 64, step=8, label="answer length", info="masks to fill"
        )
        ui.to_the_end = gr.Checkbox(
            True, label="stop at the end token",
            info="stop when all before the end token is written; off: fill every mask",
        )  # fmt: skip
        ui.block_length = gr.Slider(
            0, LONGEST_ANSWER, 0, step=8, label="block length",
            info="write block by block, left to right; 0: the whole answer is one block",
        )  # fmt: skip
        ui.seed = gr.Number(0, precision=0, label="seed", info="for what is drawn by lot")
    with gr.Row():
        ui.download = gr.DownloadButton("Download trace", size="sm", interactive=False)
        ui.upload = gr.UploadButton(
            "Load trace", size="sm", file_types=[".safetensors"], file_count="single"
        )
    return ui


def main_column(ui: SimpleNamespace) -> None:
    with gr.Tabs():
        with gr.Tab("Stage"):
            ui.board = gr.HTML(
                load_stored(), html_template='<div class="stage-host"></div>',
                js_on_load=STAGE_JS, server_functions=[rollout_map], elem_id="stage",
                elem_classes="stage-wrap", padding=False, apply_default_css=False,
            )  # fmt: skip
        with gr.Tab("Figures") as ui.figures_tab:
            ui.described = gr.HTML(notice("Figures of the run on the stage."), padding=False)
            ui.plots = [gr.Plot(show_label=False) for _ in FIGURES]


def wire(page: gr.Blocks, ui: SimpleNamespace) -> None:
    """Events to handlers. One server state decides what the buttons and the notice say."""
    settings = [
        ui.prompt, ui.policy, ui.decoder, ui.gen_length, ui.block_length, ui.seed, ui.to_the_end,
        ui.model,
    ]  # fmt: skip
    outputs = [ui.board, ui.said, ui.pause, ui.resume, ui.download, ui.late]

    def asked(values) -> tuple:
        values = list(values)
        knobs = zip(ui.knobs, values[len(settings) :], strict=True)
        return (*values[: len(settings)], tuple(knobs))

    def buttons(run: Run) -> dict:
        waits = run.paused and run.steps is not None
        return {ui.pause: gr.Button(visible=not waits), ui.resume: gr.Button(visible=waits)}

    def after(run: Run) -> dict:
        """What the page says of a run that is not running now."""
        if run.steps is not None:
            return buttons(run) | {ui.said: notice("Paused. Step, or Resume.")}
        shown = buttons(run) | {ui.said: verdict(run)}
        if run.trace:
            shown[ui.download] = gr.DownloadButton(value=save_trace(run), interactive=True)
        return shown

    def show(run: Run, session: str, most: int | None = None):
        """Stream a run into the page, from where it stands."""
        words = notice("Running." if most is None else "Stepping.")
        first = {ui.said: words, ui.pause: gr.Button(visible=True),
                 ui.resume: gr.Button(visible=False)}  # fmt: skip
        for text in advance(run, session, most):
            yield first | {ui.board: text}
            first = {}
        if RUNS.of(session) is run:
            yield after(run)

    def begin(session: str, values, most=None):
        label = values[settings.index(ui.model)]
        if label == MODELS.first:
            for said in MODELS.watch(MODELS.first):
                yield {ui.said: notice(said)}
        try:
            run = start_run(session, asked(values))
        except Loading as error:
            yield {ui.said: notice(str(error)), ui.late: label}
            return
        except ValueError as error:
            yield {ui.said: notice(str(error), "error")}
            return
        yield {ui.said: notice("Running."), ui.download: gr.DownloadButton(interactive=False),
               ui.late: ""}  # fmt: skip
        yield from show(run, session, most)

    def on_policy(name, block_length):
        """A cache that is made for blocks gets some."""
        if block_length or not d2cache.CachePolicy.registry[name].for_blocks:
            return gr.skip(), gr.skip()
        said = f"{name} is made for blocks: the block length is now {USUAL_BLOCK} (under Canvas)."
        return USUAL_BLOCK, notice(said)

    def tell(label):
        """What the loading of a model is at, and how it ended."""
        for said in MODELS.watch(label):
            yield notice(said)
        if label in MODELS.loaded:
            yield notice(f"{MODELS.state[label]} Press Run.")
        else:
            yield notice(f"{MODELS.state[label]}. Choose another model.", "error")

    def on_model(label):
        try:
            MODELS.start(label)
        except ValueError as error:
            yield notice(str(error), "error")
            return
        yield from tell(label)

    def on_late(label):
        """Run was pressed while the model was on its way: say when it is there."""
        yield from tell(label) if label else [gr.skip()]

    def on_run(request: gr.Request, *values):
        yield from begin(request.session_hash, values)

    def on_step(request: gr.Request, *values):
        session = request.session_hash
        run = RUNS.of(session)
        if run and run.steps is not None and run.asked == asked(values):
            yield from show(run, session, most=1)
        else:  # nothing waits, or other words and knobs: a new run
            yield from begin(session, values, most=1)

    def on_resume(request: gr.Request):
        run = RUNS.of(request.session_hash)
        if run and run.steps is not None:
            yield from show(run, request.session_hash)
        else:
            yield {ui.said: gr.skip()}

    def on_pause(request: gr.Request):
        run = RUNS.of(request.session_hash)
        if run:
            run.paused = True  # the stream sees it after its step, and says so

    def on_stop(request: gr.Request):
        run = RUNS.of(request.session_hash)
        if run is None or run.steps is None:
            return {ui.said: notice("Nothing is running.")}
        run.stopped = True
        if not run.driver.acquire(blocking=False):
            return {ui.said: gr.skip()}  # its stream sees it after its step, and says so
        try:
            texts = list(_steps(run, None))
        finally:
            run.driver.release()
        return after(run) | ({ui.board: texts[-1]} if texts else {})

    def on_upload(request: gr.Request, path):
        try:
            trace = d2cache.Trace.load(path)
            run = Run(secrets.token_hex(8), trace=trace)
            text = stage.message(stage.trace_events(trace, run.key, stored=True))
        except (ValueError, OSError) as error:
            return {ui.said: notice(f"{error}. Load a file that this page saved.", "error")}
        RUNS.put(request.session_hash, run)
        described = f"{trace.run['model']}, {trace.run['policy']}, {len(trace.seconds)} steps"
        return buttons(run) | {
            ui.board: text, ui.said: notice(f"Loaded a run of {described}."),
            ui.download: gr.DownloadButton(value=save_trace(run), interactive=True),
        }  # fmt: skip

    def on_close(request: gr.Request):
        RUNS.drop(request.session_hash)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    queued = quiet | {"concurrency_id": "engine", "concurrency_limit": 1}
    instant = quiet | {"queue": False}
    drawing = {"fn": draw_figures, "inputs": None, "outputs": [ui.described, *ui.plots], **instant}
    inputs = [*settings, *ui.knobs.values()]
    loading = quiet | {"outputs": ui.said, "concurrency_id": "loading", "concurrency_limit": 8}
    ui.model.change(on_model, ui.model, **loading)
    ui.policy.change(on_policy, [ui.policy, ui.block_length], [ui.block_length, ui.said], **instant)
    gr.on([ui.go.click, ui.prompt.submit], None, js=SHOW_STAGE)
    for trigger in (ui.go.click, ui.prompt.submit):
        trigger(on_pause, None, None, **instant)  # a new run ends the old one
        running = trigger(on_run, inputs, outputs, trigger_mode="always_last", **queued)
        running.then(**drawing).then(on_late, ui.late, **loading)
    ui.single.click(on_pause, None, None, **instant)
    stepping = ui.single.click(on_step, inputs, outputs, trigger_mode="multiple", **queued)
    stepping.then(on_late, ui.late, **loading)
    ui.pause.click(on_pause, None, None, **instant)
    ui.resume.click(on_resume, None, outputs, **queued).then(**drawing)
    ui.stop.click(on_stop, None, outputs, **instant)
    ui.upload.upload(on_upload, ui.upload, outputs, **queued).then(**drawing)
    ui.figures_tab.select(**drawing)
    for trigger in (ui.fresh.click, ui.family.change):
        trigger(new_problem, ui.family, [ui.prompt, ui.gen_length], **instant)
    page.unload(on_close)


def build() -> gr.Blocks:
    with gr.Blocks(title="d2Cache explorer", fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                ui = side_column()
            with gr.Column(scale=4, min_width=320):
                main_column(ui)
        wire(page, ui)
    return page


def head() -> str:
    here = ASSETS / "stage"
    scripts = [here / name for name in json.loads((here / "files.json").read_text("utf-8"))]
    script, style = (
        "\n".join(path.read_text("utf-8") for path in paths)
        for paths in (scripts, sorted(here.glob("*.css")))
    )
    return f"<script>{script}</script><style>{style}</style>"


def main() -> int:
    """Serve the page; exit code 2 when D2CACHE_MODELS names what cannot be a model."""
    try:
        MODELS.offered = offered_models(os.environ.get("D2CACHE_MODELS"))
    except ValueError as error:
        print(f"D2CACHE_MODELS: {error}", file=sys.stderr)
        return 2
    page = build()
    page.queue(max_size=32)
    page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        head=head(), css=PAGE_CSS, theme=THEME, prevent_thread_lock=True,
        state_session_capacity=200, run_history=False,
    )  # fmt: skip
    MODELS.start(MODELS.first)  # behind the page that is already up
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
