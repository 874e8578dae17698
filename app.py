"""The page: python app.py, then open the address it prints."""

from __future__ import annotations

import functools
import html
import json
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import gradio as gr
import plotly
from fastapi.responses import FileResponse
from starlette.middleware import Middleware

from analysis.page import bundle, controls, stored
from analysis.page.controls import CANVAS, Control
from analysis.page.endpoints import Endpoints
from analysis.page.events import message
from analysis.page.host import Host
from analysis.page.models import offered_models
from analysis.page.noscript import WithoutScripts
from analysis.page.query import LONGEST_PROMPT
from analysis.page.session import Changes, Session, Sessions, first_problem
from d2cache.registry import describe

ASSETS = Path(__file__).parent / "assets" / "page"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
MOST_COMPARED = 4  # policies that can be chosen to run side by side
# on a phone the stage is far below the button
SHOW_STAGE = "() => { if (innerWidth < 760) document.querySelector('#stage').scrollIntoView(); }"
OPEN = "(opened, ...rest) => [location.search, ...rest]"  # the address that the page has

# How an event is handled: hidden from the API, and without Gradio's own progress display.
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
QUEUED = QUIET | {"concurrency_id": "engine", "concurrency_limit": 1}
INSTANT = QUIET | {"queue": False}
RUNNING = QUEUED | {"with_controls": True}
LOADING = QUIET | {"concurrency_id": "loading", "concurrency_limit": 8}

# What a run may change, by name.
RUN = ("board", "said", "pause", "resume", "download", "awaited")

Components = dict[str, gr.components.Component]

# Gradio's own greys and orange are too pale to read
THEME = gr.themes.Default(primary_hue="blue").set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_text_color="white",
    button_primary_background_fill_dark="*primary_700",
)


# ------------------------------------------------------------------------------ controls


def component(control: Control):
    """A control as Gradio shows it."""
    shown = {"label": control.label, "info": control.help, "elem_id": control.name}
    match control.kind:
        case "text":
            return gr.Textbox(
                control.value, lines=4, max_lines=10, max_length=LONGEST_PROMPT, **shown
            )
        case "choice" | "choices":
            if control.kind == "choices":
                shown |= {"multiselect": True, "max_choices": MOST_COMPARED}
            options = list(control.options)
            return gr.Dropdown(options, value=control.value, visible=control.visible, **shown)
        case "slider":
            bounds = {"minimum": control.low, "maximum": control.high, "step": control.step}
            return gr.Slider(value=control.value, **bounds, **shown)
        case "switch":
            return gr.Checkbox(control.value, **shown)
    return gr.Number(control.value, precision=0, **shown)


def components(several: Iterable[Control]) -> Components:
    return {control.name: component(control) for control in several}


def knobs_shown(title: str, kind: str, owner: str | None) -> Components:
    """An accordion with the knobs of one policy or decoder, or of all; nothing without knobs."""
    knobs = controls.knob_controls(kind, owner)
    if not knobs:
        return {}
    with gr.Accordion(title, open=False, elem_id=f"knobs-{owner or kind}"):
        return components(knobs)


def method_shown(kind: str, label: str, chosen: str) -> Components:
    """The choice of a policy or decoder; its text and its own knobs; the knobs that all share."""
    ui, groups = components([controls.method_control(kind, label, chosen)]), {}
    for entry in describe(controls.BASES[kind].registry):
        name = entry["name"]
        with gr.Group(visible=name == chosen) as groups[name]:
            gr.Markdown(entry["paper"], elem_classes="knob-paper", padding=True)
            if entry["help"]:
                with gr.Accordion(f"How {name} works", open=False):
                    gr.Markdown(entry["help"], elem_classes="knob-paper", padding=True)
            ui |= knobs_shown(f"Knobs of {name}", kind, name)
    ui |= knobs_shown(f"Knobs of every {kind}", kind, None)

    def show_group(name: str) -> dict:
        return {group: gr.Group(visible=n == name) for n, group in groups.items()}

    def set_defaults(name: str) -> dict:
        return {ui[knob]: value for knob, value in defaults[name].items()}

    defaults = controls.shared_defaults(kind)
    ui[kind].change(show_group, ui[kind], list(groups.values()), **INSTANT)
    if shared := [ui[knob] for knob in defaults[chosen]]:  # a link sets them itself
        ui[kind].input(set_defaults, ui[kind], shared, **INSTANT)
    return ui


def problem_shown(host: Host) -> Components:
    """The question, and the buttons that run it."""
    model, family, prompt = controls.problem_controls(host.models.offered, first_problem().prompt)
    ui = components([model, family])
    ui["new_problem"] = gr.Button("New problem", size="sm")
    ui |= components([prompt])
    with gr.Row():
        for name in ("run", "pause", "resume", "step", "stop"):
            style = {"variant": "primary"} if name == "run" else {"visible": name != "resume"}
            ui[name] = gr.Button(name.title(), elem_id=name, size="sm", min_width=52, **style)
    ui["add_lane"] = gr.Button("Add as another lane", size="sm", elem_id="beside")
    first = ("A stored run is on the stage. Press Run for a live one.", "info")
    ui["said"] = gr.HTML(notice(first), padding=False, elem_id="said")
    return ui


def comparison_shown(host: Host) -> Components:
    """Policies side by side."""
    preset, *others = controls.comparison_controls(host.presets)
    with gr.Accordion("Side by side", open=False, elem_id="comparing"):
        ui = components([preset])
        ui["story"] = gr.Markdown(visible=False, elem_classes="knob-paper", padding=True)
        ui |= components(others)
        look = {"size": "sm", "variant": "primary", "elem_id": "compare"}
        ui["compare"] = gr.Button("Run side by side", **look)
    return ui


def files_shown() -> Components:
    """Stored runs, and traces to save and load."""
    ui = components([controls.stored_control()])
    with gr.Row():
        ui["download"] = gr.DownloadButton("Download trace", size="sm", interactive=False)
        ui["upload"] = gr.UploadButton("Load trace", size="sm", file_types=[".safetensors"])
    return ui


def side_column(host: Host) -> Components:
    """The controls, on the left."""
    opened = gr.Textbox(visible="hidden")  # the query that the page was opened with
    ui: Components = {"awaited": gr.State(""), "opened": opened}
    ui |= problem_shown(host)
    ui |= method_shown("policy", "Cache policy", "d2")
    ui |= method_shown("decoder", "Decoder", "confidence")
    ui |= comparison_shown(host)
    with gr.Accordion("Canvas", open=False):
        ui |= components(controls.canvas_controls())
    return ui | files_shown()


def stage(host: Host) -> gr.HTML:
    """The stage; it asks its own questions, see `analysis.page.questions`."""

    def ask(question: str) -> dict:
        return host.questions.answer(question)

    return gr.HTML(
        message(host.stored_board(next(iter(stored.listed()))).events()),
        html_template='<div class="stage-host"></div>',
        js_on_load=(ASSETS / "on-load.js").read_text(encoding="utf-8"),
        server_functions=[ask],
        elem_id="stage",
        elem_classes="stage-wrap",
        padding=False,
        apply_default_css=False,
    )


# ------------------------------------------------------------------------------ changes


def notice(said: tuple[str, str]) -> str:
    """A sentence for the visitor, and its kind; the text may hold anything, so it is escaped."""
    text, kind = said
    return f'<p class="page-notice page-{kind}" role="status">{html.escape(text)}</p>'


# How the changes that a session yields are shown; all others are a component's new value.
SHOWN: dict[str, Callable] = {
    "said": notice,
    "pause": lambda shown: gr.Button(visible=shown),
    "resume": lambda shown: gr.Button(visible=shown),
    "download": lambda path: gr.DownloadButton(value=path, interactive=path is not None),
    "story": lambda text: gr.Markdown(text, visible=bool(text)),
}


class Visits:
    """Gradio's handlers: an event becomes a call of the visitor's session, and the changes that it
    yields become updates of components."""

    def __init__(self, sessions: Sessions, ui: Components, controls: Sequence[str]):
        self.sessions, self.ui, self.controls = sessions, ui, controls

    def on(
        self,
        trigger: Callable,
        method: Callable[..., Iterator[Changes]],
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = RUN,
        with_controls: bool = False,
        requested: bool = False,
        **how,
    ):
        """Connects an event to a method of `Session`; -> Gradio's dependency.

        inputs: names of the components whose values the method takes; with_controls: then a dict
        of all controls; requested: before all these the query that the stage sent, and after them
        the number of its request.
        """
        names = [*inputs, *(self.controls if with_controls else ())]

        def changes(request: gr.Request, values: Sequence, event=None) -> Iterator[Changes]:
            given = list(values[: len(inputs)])
            if with_controls:
                given.append(dict(zip(self.controls, values[len(inputs) :], strict=True)))
            if event:
                given = [event.query, *given, event.number]
            yield from method(self.sessions.of(request.session_hash), *given)

        def stream(request: gr.Request, *values):
            yield from self.shown(changes(request, values))

        def stream_requested(request: gr.Request, event: gr.EventData, *values):
            yield from self.shown(changes(request, values, event))

        def at_once(request: gr.Request, *values):
            return self.updates(functools.reduce(operator.or_, changes(request, values), {}))

        handler = at_once if "queue" in how else stream_requested if requested else stream
        return trigger(handler, [self.ui[n] for n in names], [self.ui[n] for n in outputs], **how)

    def updates(self, changes: Changes) -> dict:
        shown = {self.ui[k]: SHOWN.get(k, lambda v: v)(v) for k, v in changes.items()}
        return shown or {self.ui["said"]: gr.skip()}

    def shown(self, changes: Iterator[Changes]) -> Iterator[dict]:
        """Updates for each change, and one that changes nothing where there is none: Gradio wants
        an answer. Not after others: it repeats a stream's last answer in case one was lost."""
        yield self.updates(next(changes, {}))
        yield from map(self.updates, changes)

    def expect(self, request: gr.Request, event: gr.EventData) -> None:
        self.sessions.of(request.session_hash).expect(event.number)

    def pause(self, request: gr.Request) -> None:
        self.sessions.of(request.session_hash).pause()

    def leave(self, request: gr.Request) -> None:
        self.sessions.leave(request.session_hash)


# ------------------------------------------------------------------------------ events


def wire_runs(visits: Visits, ui: Components) -> None:
    """The buttons that make, add to, pause and stop a run."""
    starts = (
        (ui["run"].click, Session.run),
        (ui["prompt"].submit, Session.run),
        (ui["compare"].click, Session.compare),
        (ui["add_lane"].click, Session.add_lane),
    )
    gr.on([trigger for trigger, _ in starts], None, js=SHOW_STAGE)
    for trigger, method in starts:
        trigger(visits.pause, None, None, **INSTANT)  # a new run ends the old one
        trigger(lambda: None, None, ui["preset"], **INSTANT)  # and its story
        wire_waiting(visits, visits.on(trigger, method, trigger_mode="always_last", **RUNNING))
    ui["step"].click(visits.pause, None, None, **INSTANT)
    stepped = visits.on(ui["step"].click, Session.step, trigger_mode="multiple", **RUNNING)
    wire_waiting(visits, stepped)
    ui["pause"].click(visits.pause, None, None, **INSTANT)
    visits.on(ui["resume"].click, Session.resume, **QUEUED)
    visits.on(ui["stop"].click, Session.stop, **INSTANT)
    visits.on(ui["upload"].upload, Session.upload, ["upload"], **QUEUED)


def wire_waiting(visits: Visits, running) -> None:
    """When Run was pressed before the model was ready: says when it is."""
    visits.on(running.then, Session.await_model, ["awaited"], ["said"], **LOADING)


def wire_choices(visits: Visits, ui: Components, filled: Sequence[str]) -> None:
    """What a visitor chooses on the left, short of running it."""
    visits.on(ui["model"].input, Session.choose_model, ["model"], ["said"], **LOADING)
    blocks = (["policy", "block_length"], ["block_length", "said"])
    visits.on(ui["policy"].input, Session.choose_policy, *blocks, **INSTANT)
    for trigger in (ui["new_problem"].click, ui["family"].select):
        visits.on(trigger, Session.draw, ["family"], ["prompt", "gen_length", "said"], **INSTANT)
    visits.on(ui["preset"].change, Session.choose_preset, ["preset"], ["story", "said"], **INSTANT)
    queries = {key: one["query"] for key, one in visits.sessions.host.presets.items()}
    send = f"(key) => {{ if (key) D2Stage.stage.send({json.dumps(queries)}[key]); }}"
    ui["preset"].select(None, ui["preset"], None, js=send)
    everything = list(dict.fromkeys([*RUN, *filled]))
    visits.on(ui["stored"].select, Session.open_stored, ["stored"], everything, **INSTANT)


def wire_links(page: gr.Blocks, visits: Visits, ui: Components, filled: Sequence[str]) -> None:
    """What the stage sends, and what the page is opened with.

    The controls are set once, by an answer of their own: each message of a stream that named them
    would take back what the visitor types meanwhile.
    """
    # each request has its own query: "always_last" would repeat the first one's
    asked = RUNNING | {"requested": True, "trigger_mode": "multiple"}
    ui["board"].submit(visits.expect, None, None, trigger_mode="multiple", **INSTANT)
    visits.on(ui["board"].submit, Session.fill, outputs=[*filled, "said"], **asked)
    wire_waiting(visits, visits.on(ui["board"].submit, Session.follow, **asked))
    opened = RUNNING | {"inputs": ["opened"], "js": OPEN}
    visits.on(page.load, Session.fill, outputs=[*filled, "said"], **opened)
    visits.on(page.load, Session.follow, **opened)
    page.unload(visits.leave)


def wire_endpoints(host: Host) -> None:
    """The named endpoints, whose ValueErrors reach the caller as one line."""

    def one_line(endpoint: Callable) -> Callable:
        @functools.wraps(endpoint)
        def call(*args, **kwargs):
            try:
                return endpoint(*args, **kwargs)
            except ValueError as error:
                raise gr.Error(str(error)) from error

        return call

    ends = Endpoints(host)
    for endpoint in (ends.run, ends.compare, ends.policies, ends.decoders, ends.models):
        gr.api(one_line(endpoint), api_name=endpoint.__name__, concurrency_id="engine")


def build(host: Host) -> gr.Blocks:
    """The page of a host's models."""
    with gr.Blocks(title="d2Cache explorer", fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown((ASSETS / "intro.md").read_text(encoding="utf-8"), elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                ui = side_column(host)
            with gr.Column(scale=4, min_width=320):
                ui["board"] = stage(host)
        knobs = [name for name in ui if "." in name]
        filled = [*CANVAS, "to_the_end", "policy", "decoder", *knobs]
        visits = Visits(Sessions(host), ui, [*filled, "lanes"])
        wire_runs(visits, ui)
        wire_choices(visits, ui, [*filled, "preset"])
        wire_links(page, visits, ui, [*filled, "preset"])
        wire_endpoints(host)
    return page


def main() -> int:
    """Serve the page; exit code 2 when D2CACHE_MODELS names what cannot be a model."""
    try:
        host = Host(offered_models(os.environ.get("D2CACHE_MODELS")))
    except ValueError as error:
        print(f"D2CACHE_MODELS: {error}", file=sys.stderr)
        return 2
    page = build(host)
    page.queue(max_size=32)
    server, _, _ = page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        head=bundle.head(host.texts()),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
        theme=THEME,
        app_kwargs={"middleware": [Middleware(WithoutScripts)]},
        prevent_thread_lock=True,
        state_session_capacity=200,
        run_history=False,
    )
    server.get("/plotly.min.js")(lambda: FileResponse(PLOTLY))
    server.router.routes.insert(0, server.router.routes.pop())  # before Gradio's catch-all
    host.models.start(host.models.first)  # while the page is already up
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
