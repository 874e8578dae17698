"""The page: python app.py, then open the address it prints."""

from __future__ import annotations

import functools
import json
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import gradio as gr

from analysis.page import bundle, controls, files, noscript
from analysis.page.bounds import MB
from analysis.page.controls import CANVAS, Control
from analysis.page.endpoints import Endpoints, one_line
from analysis.page.events import message
from analysis.page.gate import gate
from analysis.page.host import Host
from analysis.page.notice import changes_noticed, notice
from analysis.page.problems import first_problem
from analysis.page.session import Changes, Session, Sessions
from analysis.page.untouched import Untouched
from d2cache import bundled
from d2cache.registry import describe

ASSETS = bundled.ASSETS / "page"
MOST_COMPARED = 4  # policies that can be chosen to run side by side
OPEN = "(opened, ...rest) => [location.search, ...rest]"  # the query the page was opened with

# How an event is handled: hidden from the API, and without Gradio's own progress display.
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
QUEUED = QUIET | {"concurrency_limit": None}  # who waits for the engine is told: `Line`
INSTANT = QUIET | {"queue": False}
AS_TYPED = INSTANT | {"preprocess": False}  # Gradio would refuse a number before its last digit
RUNNING = QUEUED | {"with_controls": True}
MOST_STREAMS = 400  # that run or wait, each in a thread of its own

# What a run may change, by name.
RUN = ("board", "said", "changed", "download", "awaited")
TRANSPORT = ("pause", "resume", "step", "stop")  # of a live run; the stage has their buttons

Components = dict[str, gr.components.Component]

# One typeface everywhere, that of the reader's system: Gradio's own has no bold letters for most
# signs. Its greys and orange are too pale to read.
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Default(primary_hue="blue", font=FONT).set(
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
            return gr.Textbox(control.value, lines=4, max_lines=10, **shown)
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
    if not (knobs := controls.knob_controls(kind, owner)):
        return {}
    with gr.Accordion(title, open=False, elem_id=f"knobs-{owner or kind}"):
        return components(knobs)


def method_choice(kind: str, label: str, chosen: str) -> Components:
    """The choice of a policy or decoder."""
    return components([controls.method_control(kind, label, chosen)])


def method_shown(ui: Components, kind: str) -> None:
    """The text and the own knobs of the policy or decoder that is chosen; the knobs that all
    share."""
    groups, chosen = {}, ui[kind].value
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

    shared = list(controls.shared_defaults(kind)[chosen])

    def set_defaults(name: str, *values) -> dict:
        given = dict(zip(shared, values, strict=True))
        return {ui[n]: v for n, v in controls.with_defaults(kind, name, given).items()}

    ui[kind].change(show_group, ui[kind], list(groups.values()), **INSTANT)
    if moving := [ui[knob] for knob in shared]:  # a link sets them itself
        ui[kind].input(set_defaults, [ui[kind], *moving], moving, **INSTANT)


def problem_shown(host: Host) -> Components:
    """The question, and the buttons that run it."""
    model, family, prompt = controls.problem_controls(host.models.offered, first_problem().prompt)
    ui = components([model, prompt, family]) | method_choice("policy", "Cache", "d2")
    ui["run"] = gr.Button("Run", elem_id="run", variant="primary")
    for name in TRANSPORT:  # the stage's transport presses them
        ui[name] = gr.Button(name.title(), elem_id=name, visible="hidden")
    first = ("A stored run. Press Run for a live one.", "info")
    ui["said"] = gr.HTML(notice(first), padding=False, elem_id="said")
    ui["changed"] = gr.HTML(padding=False, elem_id="changed")
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
    """The controls, on the left: what everybody needs, and one click away the rest."""
    ui: Components = {"awaited": gr.State(""), "opened": gr.Textbox(visible="hidden")}
    ui |= problem_shown(host)
    with gr.Accordion("More settings", open=False, elem_id="more"):
        with gr.Row():
            ui["new_problem"] = gr.Button("New problem", size="sm")
            ui["add_lane"] = gr.Button("Add as another lane", size="sm", elem_id="beside")
        method_shown(ui, "policy")
        ui |= method_choice("decoder", "Decoder", "confidence")
        method_shown(ui, "decoder")
        with gr.Accordion("Canvas", open=False, elem_id="canvas"):
            ui |= components(controls.canvas_controls())
        ui |= comparison_shown(host)
        ui |= files_shown()
    return ui


def stage(host: Host) -> gr.HTML:
    """The stage; it asks its own questions, see `analysis.page.questions`."""

    def ask(question: str) -> dict:
        return host.questions.answer(question)

    return gr.HTML(
        message(host.opening().events()),
        html_template='<div class="stage-host"></div>',
        js_on_load=(ASSETS / "on-load.js").read_text(encoding="utf-8"),
        server_functions=[ask],
        elem_id="stage",
        elem_classes="stage-wrap",
        padding=False,
        apply_default_css=False,
    )


# ------------------------------------------------------------------------------ changes


# How the changes that a session yields are shown; all others are a component's new value.
SHOWN: dict[str, Callable] = {
    "said": notice,
    "download": lambda path: gr.DownloadButton(value=path, interactive=path is not None),
    "changed": changes_noticed,
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
    visits.on(running.then, Session.await_model, ["awaited"], ["said"], **QUEUED)


def wire_choices(visits: Visits, ui: Components, filled: Sequence[str]) -> None:
    """What a visitor chooses on the left, short of running it."""
    visits.on(ui["model"].input, Session.choose_model, ["model"], ["said"], **QUEUED)
    blocks = (["policy", "block_length"], ["block_length", "said"])
    visits.on(ui["policy"].input, Session.choose_policy, *blocks, **INSTANT)
    drawn = {"inputs": ["family"], "outputs": ["prompt", "gen_length", "said"], **INSTANT}
    looked = {"outputs": ["changed"], "with_controls": True, **AS_TYPED}
    for trigger in (ui["new_problem"].click, ui["family"].select):
        visits.on(visits.on(trigger, Session.draw, **drawn).then, Session.look_over, **looked)
    looks = [ui["prompt"].blur, *(ui[n].change for n in visits.controls if n != "prompt")]
    look = functools.partial(gr.on, looks)
    visits.on(look, Session.look_over, trigger_mode="always_last", **looked)
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
    """The named endpoints."""
    ends = Endpoints(host)
    for endpoint in (ends.run, ends.compare, ends.policies, ends.decoders, ends.models):
        gr.api(one_line(endpoint, gr.Error), api_name=endpoint.__name__, concurrency_limit=None)


class Page(Untouched, gr.Blocks):
    """Gradio's page, quicker."""


def build(host: Host) -> Page:
    """The page of a host's models."""
    with Page(title="d2Cache explorer", fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown((ASSETS / "intro.md").read_text(encoding="utf-8"), elem_id="intro")
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=1, min_width=260, elem_id="side"):
                ui = side_column(host)
            with gr.Column(scale=4, min_width=300, elem_id="stage-column"):
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
    """Serve the page; exit code 2 where an environment variable has what cannot be."""
    try:
        host = Host.configured(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    page = build(host)
    page.queue(max_size=MOST_STREAMS)
    page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        head=bundle.head(host.texts()),
        css=(ASSETS / "page.css").read_text(encoding="utf-8") + noscript.style(),
        theme=THEME,
        app_kwargs={
            "middleware": [gate(host.bounds), noscript.WITHOUT_SCRIPTS],
            "routes": files.routes(gr.routes.API_PREFIX),
        },
        prevent_thread_lock=True,
        state_session_capacity=200,
        run_history=False,
        footer_links=[],
        max_threads=MOST_STREAMS,
        max_file_size=host.bounds.upload_mb * MB,
    )
    host.start()  # while the page is already up
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
