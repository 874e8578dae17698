"""The page: python app.py, then open the address it prints."""

from __future__ import annotations

import functools
import html
import os
import random
import secrets
import sys
import tempfile
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import plotly
from fastapi.responses import FileResponse

import d2cache
from analysis.page import bundle, lessons, stored
from analysis.page.boards import Board, Boards, Run, advance, edit_said, summary
from analysis.page.events import link, message
from analysis.page.models import Loading, Models, offered_models
from analysis.page.query import LONGEST_ANSWER, LONGEST_PROMPT, Asked, Lane, Link
from analysis.page.questions import Asks
from d2cache.models import size as model_size
from d2cache.registry import Knob, describe, shared_knobs
from d2cache.teaching import tasks

ASSETS = Path(__file__).parent / "assets"
USUAL_BLOCK = 16  # masks; proposed with a policy that is made for blocks
MOST_COMPARED = 4  # policies that are chosen to run side by side

MODELS = Models({"tiny": "tiny"})
BOARDS = Boards()
ASKS = Asks(BOARDS, MODELS)
PRESETS = {one["key"]: one for one in lessons.presets()}
WANTED: dict[str, int] = {}  # number of what the stage asked for last, by session
DRAWN: OrderedDict[str, tasks.Problem] = OrderedDict()  # recent example problems by their prompt
FILES = tempfile.TemporaryDirectory(prefix="d2cache-traces-")  # gone with the process


# ------------------------------------------------------------------------------ runs


def open_board(session: str, asked: Asked) -> Board:
    """A board with its lanes ready for their first step; ValueError says what is wrong."""
    model = MODELS.get(asked.model)
    board = Board(secrets.token_hex(8), asked)
    for lane in asked.lanes:
        board.start(lane, model)
    return BOARDS.put(session, board)


def stream(board: Board, session: str, most: int | None = None):
    """Messages of the board's next steps, until it ends, is paused or made `most`."""
    try:
        for events in advance(board, most):
            yield message(events)
    except GeneratorExit:  # the tab was closed, or the event cancelled
        if BOARDS.of(session) is board:
            BOARDS.drop(session)
        raise


def load_board(traces: dict[str, d2cache.Trace], key: str) -> Board:
    """A board of finished traces, by their names."""
    runs = [
        Run(f"{key}-{i}" if i else key, name=name, trace=trace)
        for i, (name, trace) in enumerate(traces.items())
    ]
    return Board(key, runs=runs)


def bundled(name: str) -> Board:
    """One of the runs that come with the page, everybody's; ValueError for a name it has not."""
    for board in BOARDS.stored:
        if board.key == f"stored-{name}":
            return board
    trace = stored.load(name)
    board = load_board({trace.run["policy"]: trace}, f"stored-{name}")
    BOARDS.stored.append(board)
    return board


def save_trace(run: Run) -> str:
    name = "".join(c for c in run.trace.run["policy"] if c.isalnum())[:20]
    path = Path(FILES.name) / f"d2cache-{name}-{run.key[:6]}.safetensors"
    if not path.exists():
        run.trace.save(path)
    return str(path)


def ask(question: str) -> dict:
    """For the stage: see `analysis.page.questions`."""
    return ASKS.answer(question)


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


# ------------------------------------------------------------------------------ endpoints


def run(
    prompt: str,
    policy: str = "d2",
    decoder: str = "confidence",
    gen_length: int = 64,
    block_length: int = 0,
    seed: int = 0,
    model: str = "",
    policy_knobs: dict | None = None,
    decoder_knobs: dict | None = None,
) -> dict:
    """Answer a prompt with a diffusion language model under one cache policy and decoder.

    Args:
        prompt: the question
        policy: a name from /policies
        decoder: a name from /decoders
        gen_length: masks to fill, 1 to 256
        block_length: of blocks that are written from left to right; 0 for none
        seed: for what is drawn by lot
        model: a label from /models; empty for the first
        policy_knobs: such as {"current_k": 16}; what is not named has its default
        decoder_knobs: such as {"sigma": 0}

    Returns:
        text, lane, model, device, steps, seconds, answer_tokens, tokens_per_second, hit_rate (share
        of positions reused), flops, flops_none, flops_vs_none
    """
    lane = Lane(policy, policy_knobs or {}, decoder, decoder_knobs or {})
    return _results(prompt, (lane,), gen_length, block_length, seed, model)[0]


def compare(
    prompt: str,
    lanes: list[str],
    gen_length: int = 64,
    block_length: int = 0,
    seed: int = 0,
    model: str = "",
) -> list[dict]:
    """Answer a prompt under several cache policies, one after the other.

    Args:
        prompt: the question
        lanes: such as ["none", "d2,current_k=16", "d2/confidence,sigma=0"]: a policy and its
            knobs, then a decoder and its knobs
        gen_length: masks to fill, 1 to 256
        block_length: of blocks that are written from left to right; 0 for none
        seed: for what is drawn by lot
        model: a label from /models; empty for the first

    Returns:
        for each lane what /run returns, and agreement: the share of the answer's positions that
        hold the same token as the first lane's
    """
    return _results(prompt, tuple(map(Lane.parse, lanes)), gen_length, block_length, seed, model)


def _results(prompt, lanes, gen_length, block_length, seed, model) -> list[dict]:
    asked = Asked(prompt, lanes, model or MODELS.first, gen_length, block_length, seed)
    loaded = MODELS.get(asked.model)
    board = Board(secrets.token_hex(8), asked)
    for lane in asked.lanes:
        board.start(lane, loaded)
    for _ in advance(board):
        pass
    failed = [one.error for one in board.runs if one.error]
    if failed:
        raise ValueError(failed[0])
    return [summary(one, board.runs[0]) for one in board.runs]


def checked(endpoint):
    """An endpoint whose ValueErrors reach the caller as one line."""

    @functools.wraps(endpoint)
    def call(*args, **kwargs):
        try:
            return endpoint(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    return call


def policies() -> list[dict]:
    """The cache policies: name, paper, how it works, and knobs with default, bounds and help."""
    return [_entry(e) for e in d2cache.policies()]


def decoders() -> list[dict]:
    """The decoders: name, paper, how it works, and knobs with default, bounds and help."""
    return [_entry(e) for e in d2cache.decoders()]


def models() -> list[dict]:
    """The models that this page offers: label, and whether it is loaded."""
    return [{"model": label, "loaded": label in MODELS.loaded} for label in MODELS.offered]


def _entry(entry: dict) -> dict:
    return entry | {"knobs": [asdict(one) for one in entry["knobs"]]}


# ------------------------------------------------------------------------------ words


def notice(text: str, kind: str = "info") -> str:
    """One line for the reader; the text may hold anything, so it is escaped."""
    return f'<p class="page-notice page-{kind}" role="status">{html.escape(text)}</p>'


def verdict(board: Board) -> str:
    """What to say when a board has ended: whether a generated problem was solved, or how the lanes
    compare."""
    failed = [run for run in board.runs if run.error]
    if failed:
        where = f" in lane {failed[0].name}" if len(board.runs) > 1 else ""
        return notice(f"The run failed{where}: {failed[0].error}", "error")
    done = [run for run in board.runs if run.trace]
    if board.stopped or not done:
        return notice("Stopped.")
    if len(done) > 1:
        return notice(f"Done. {lanes_said(done)}")
    run, problem = done[0], DRAWN.get(board.asked.prompt)
    if problem is None:
        return notice("Done. Scrub through the steps, or open another tab of the stage.")
    if run.model.config.name != "tiny":  # others answer in words of their own
        wanted = "" if problem.family == "stories" else f" Expected: {problem.answer}"
        return notice(f"Done.{wanted}")
    text = run.model.decode(run.trace.tokens[-1, run.trace.prompt_length :]).strip()
    right, story = tasks.correct(problem, text), problem.family == "stories"
    if right:
        return notice(
            f"Done, and the {'story is well formed' if story else 'answer is right'}.", "right"
        )
    if story:
        return notice("Done, but the story leaves its grammar.", "wrong")
    return notice(f"Done, but the answer is wrong. Wanted: {problem.answer}", "wrong")


def lanes_said(runs: list[Run]) -> str:
    """Time of each lane, and whether it wrote what the first wrote."""
    said = []
    for run in runs:
        told = summary(run, runs[0])
        same = "" if run is runs[0] else f", {100 * told['agreement']:.0f} % as lane 1"
        said.append(f"{run.name}: {told['seconds']:.2f} s{same}")
    return "; ".join(said) + "."


# ------------------------------------------------------------------------------ the page

STAGE_JS = """
const host = element.querySelector('.stage-host');
let sent = 0;
const stage = D2Stage.open(host, {
  ask: async (name, given) => {
    const got = await server.ask(JSON.stringify([name, given || {}]));
    if (got.error) throw new Error(got.error);
    return got;
  },
  send: (query) => trigger('submit', {query, number: sent += 1}),
  plotly: 'plotly.min.js',
});
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
#to-stage {display: none; padding: .5rem 0; min-height: 24px}
@media (max-width: 760px) {#to-stage {display: inline-block}}
@media (max-width: 640px) {
  .gradio-container {padding: .5rem !important}
  #said {min-height: 5.4rem}
}
"""

# Gradio's own greys and orange are too pale to read
THEME = gr.themes.Default(primary_hue="blue").set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_text_color="white",
    button_primary_background_fill_dark="*primary_700",
)

INTRO = """
# How caching works in a diffusion language model
A diffusion language model starts from an answer made of masks and fills it in, a few tokens a
step. Every token looks both ways, so each newly written one changes the keys and values (K,V) of
all the others, and the KV cache of an ordinary language model does not apply. **d2Cache**
recomputes only the few positions that matter and reuses the K,V of the rest. Below, a model does it
live.

<a id="to-stage" href="#stage">To the stage and its lessons</a>
"""


def title(label: str, name: str) -> str:
    """A model as the list of models shows it."""
    size = model_size(name)
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

    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    dropdown.change(
        lambda name: [gr.Group(visible=n == name) for n in groups],
        dropdown,
        list(groups.values()),
        **quiet,
    )
    if moving:  # a visitor's choice brings its own defaults; a link sets them itself
        dropdown.input(
            lambda name: {controls[kind, None, n]: defaults[name][n] for n in moving},
            dropdown,
            [controls[kind, None, n] for n in moving],
            **quiet,
        )
    return dropdown, controls


def side_column() -> SimpleNamespace:
    """The controls at the left."""
    ui = SimpleNamespace()
    ui.late = gr.State("")  # the model that Run was pressed for too early
    ui.opened = gr.Textbox(visible="hidden")  # the query that the page was opened with
    ui.model = gr.Dropdown(
        [(title(label, name), label) for label, name in MODELS.offered.items()],
        value=MODELS.first,
        label="Model",
        elem_id="model",
        info="loaded when it is first chosen",
        visible=list(MODELS.offered) != ["tiny"],  # no choice: nothing to read
    )
    ui.family = gr.Dropdown(
        list(tasks.FAMILIES),
        value="word",
        label="Example problems",
        info="the model in the box knows these six families",
    )
    ui.fresh = gr.Button("New problem", size="sm")
    ui.prompt = gr.Textbox(
        remember(first_problem()),
        lines=4,
        max_lines=10,
        label="Prompt",
        elem_id="prompt",
        max_length=LONGEST_PROMPT,
        info="Shift+Enter runs it",
    )
    with gr.Row():
        small = {"size": "sm", "min_width": 52}
        ui.go = gr.Button("Run", variant="primary", elem_id="run", **small)
        ui.pause = gr.Button("Pause", elem_id="pause", **small)
        ui.resume = gr.Button("Resume", elem_id="resume", visible=False, **small)
        ui.single = gr.Button("Step", elem_id="step", **small)
        ui.stop = gr.Button("Stop", elem_id="stop", **small)
    ui.beside = gr.Button("Run beside, as a further lane", size="sm", elem_id="beside")
    first = "A stored run is on the stage. Press Run for a live one."
    ui.said = gr.HTML(notice(first), padding=False, elem_id="said")
    ui.policy, controls = choice(d2cache.CachePolicy, "Cache policy", "d2")
    ui.decoder, more = choice(d2cache.Decoder, "Decoder", "confidence")
    ui.knobs = controls | more
    with gr.Accordion("Side by side", open=False, elem_id="comparing"):
        ui.preset = gr.Dropdown(
            [(one["title"], key) for key, one in PRESETS.items()],
            value=None,
            label="A comparison that tells a story",
            elem_id="preset",
        )
        ui.story = gr.Markdown(visible=False, elem_classes="knob-paper", padding=True)
        ui.lanes = gr.Dropdown(
            [entry["name"] for entry in d2cache.policies()],
            value=["none", "d2"],
            multiselect=True,
            max_choices=MOST_COMPARED,
            label="Policies side by side",
            info="one prompt and seed; each with the knobs that are set for it above",
            elem_id="lanes",
        )
        ui.turns = gr.Checkbox(
            True, label="lanes take turns", info="a step each; off: one after the other"
        )
        ui.compare = gr.Button("Run side by side", size="sm", variant="primary", elem_id="compare")
    with gr.Accordion("Canvas", open=False):
        ui.gen_length = gr.Slider(
            16, LONGEST_ANSWER, 64, step=8, label="answer length", info="masks to fill"
        )
        ui.to_the_end = gr.Checkbox(
            True,
            label="stop at the end token",
            info="stop when all before the end token is written; off: fill every mask",
        )
        ui.block_length = gr.Slider(
            0,
            LONGEST_ANSWER,
            0,
            step=8,
            label="block length",
            info="write block by block, left to right; 0: the whole answer is one block",
        )
        ui.seed = gr.Number(0, precision=0, label="seed", info="for what is drawn by lot")
        ui.truth = gr.Checkbox(
            False,
            label="truth",
            elem_id="truth",
            info="an exact pass beside each step shows what the cache gets wrong; it takes the "
            "time of a run without a cache on top",
        )
    ui.stored = gr.Dropdown(
        [(one["title"], name) for name, one in stored.listed().items()],
        value=None,
        label="Stored runs",
        elem_id="stored",
    )
    with gr.Row():
        ui.download = gr.DownloadButton("Download trace", size="sm", interactive=False)
        ui.upload = gr.UploadButton(
            "Load trace", size="sm", file_types=[".safetensors"], file_count="single"
        )
    return ui


def main_column(ui: SimpleNamespace) -> None:
    first = next(iter(stored.listed()))
    ui.board = gr.HTML(
        message(bundled(first).events()),
        html_template='<div class="stage-host"></div>',
        js_on_load=STAGE_JS,
        server_functions=[ask],
        elem_id="stage",
        elem_classes="stage-wrap",
        padding=False,
        apply_default_css=False,
    )


def wire(page: gr.Blocks, ui: SimpleNamespace) -> None:
    """Events to handlers. One server state decides what the buttons and the notice say."""
    named = {
        "prompt": ui.prompt,
        "gen_length": ui.gen_length,
        "block_length": ui.block_length,
        "seed": ui.seed,
        "full": ui.to_the_end,
        "model": ui.model,
        "truth": ui.truth,
        "turns": ui.turns,
    }
    inputs = [*named.values(), ui.policy, ui.decoder, ui.lanes, *ui.knobs.values()]
    controls = [*named.values(), ui.policy, ui.decoder, *ui.knobs.values()]
    outputs = [ui.board, ui.said, ui.pause, ui.resume, ui.download, ui.late]

    def read(values, compared: bool = False) -> Asked:
        """What the controls ask for: one lane, or one of each policy that is compared."""
        values = list(values)
        told = dict(zip(named, values, strict=False))
        told["full"] = not told["full"]
        policy, decoder, several, *given = values[len(named) :]
        knobs = list(zip(ui.knobs, given, strict=True))

        def of(kind: str, name: str) -> dict:  # owner None: every one has it
            return {k: v for (side, owner, k), v in knobs if side == kind and owner in (None, name)}

        lanes = tuple(
            Lane(name, of("policy", name), decoder, of("decoder", decoder))
            for name in (several if compared else [policy])
        )
        return Asked(lanes=lanes, **told)

    def filled(asked: Asked) -> dict:
        """The controls as a link sets them; of several lanes the first has the knobs."""
        told = {name: getattr(asked, name) for name in named} | {"full": not asked.full}
        out = {named[name]: value for name, value in told.items()}
        lane = asked.lanes[0]
        out |= {ui.policy: lane.policy, ui.decoder: lane.decoder}
        sides = {"policy": (lane.policy, lane.knobs), "decoder": (lane.decoder, lane.decoder_knobs)}
        for (kind, owner, knob), component in ui.knobs.items():
            name, knobs = sides[kind]
            if owner in (None, name):
                out[component] = knobs[knob]
        return out

    def buttons(board: Board) -> dict:
        waits = board.paused and board.running
        return {ui.pause: gr.Button(visible=not waits), ui.resume: gr.Button(visible=waits)}

    def after(board: Board) -> dict:
        """What the page says of a board that is not running now."""
        if board.running:
            return buttons(board) | {ui.said: notice("Paused. Step, or Resume.")}
        shown = buttons(board) | {ui.said: verdict(board)}
        if board.runs[0].trace:
            shown[ui.download] = gr.DownloadButton(
                value=save_trace(board.runs[0]), interactive=True
            )
        return shown

    def show(board, session: str, most: int | None = None, first: dict | None = None, words=""):
        """Stream a board into the page, from where it stands."""
        made = message([link(board.key, board.query())])
        words = words or ("Running." if most is None else "Stepping.")
        yield (first or {}) | {
            ui.board: made,
            ui.said: notice(words),
            ui.pause: gr.Button(visible=True),
            ui.resume: gr.Button(visible=False),
        }
        for text in stream(board, session, most):
            yield {ui.board: text}
        if BOARDS.of(session) is board:
            yield after(board)

    def begin(session: str, make, most=None):
        """A new board, of what `make()` asks for, into the page."""
        try:
            asked = make()
            if asked.model == MODELS.first:
                for said in MODELS.watch(MODELS.first):
                    yield {ui.said: notice(said)}
            board = open_board(session, asked)
        except Loading as error:
            yield {ui.said: notice(str(error)), ui.late: asked.model}
            return
        except ValueError as error:
            yield {ui.said: notice(_sentence(error), "error")}
            return
        quiet = {ui.download: gr.DownloadButton(interactive=False), ui.late: ""}
        yield from show(board, session, most, quiet)

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
        yield from begin(request.session_hash, lambda: read(values))

    def on_compare(request: gr.Request, *values):
        yield from begin(request.session_hash, lambda: read(values, compared=True))

    def on_beside(request: gr.Request, *values):
        session = request.session_hash
        board = BOARDS.of(session)
        if board is None or board.asked is None:
            yield from begin(session, lambda: read(values))
            return
        try:
            asked = read(values)
            if replace(asked, lanes=board.asked.lanes, turns=board.asked.turns) != board.asked:
                raise ValueError(
                    "Lanes share the prompt and the settings under Canvas, and these have changed: "
                    "press Run to start anew."
                )
            board.start(asked.lanes[0], MODELS.get(asked.model))
        except ValueError as error:
            yield {ui.said: notice(str(error), "error")}
            return
        yield from show(board, session)

    def on_step(request: gr.Request, *values):
        session = request.session_hash
        board = BOARDS.of(session)
        try:
            waits = board is not None and board.running
            waits = waits and read(values) == replace(board.asked, lanes=board.asked.lanes[:1])
        except ValueError:
            waits = False
        if waits:
            yield from show(board, session, most=1)
        else:  # nothing waits, or other words and knobs: a new run
            yield from begin(session, lambda: read(values), most=1)

    def on_resume(request: gr.Request):
        board = BOARDS.of(request.session_hash)
        if board and board.running:
            yield from show(board, request.session_hash)
        else:
            yield {ui.said: gr.skip()}

    def on_pause(request: gr.Request):
        board = BOARDS.of(request.session_hash)
        if board:
            board.paused = True  # the stream sees it after its step, and says so

    def on_stop(request: gr.Request):
        board = BOARDS.of(request.session_hash)
        if board is None or not board.running:
            return {ui.said: notice("Nothing is running.")}
        board.stopped = True
        if board.driver.locked():
            return {ui.said: gr.skip()}  # its stream sees it after its step, and says so
        texts = [message(events) for events in advance(board)]
        return after(board) | ({ui.board: texts[-1]} if texts else {})

    def put(session: str, board: Board, said: str, query: str = "") -> dict:
        """Finished traces onto the stage."""
        BOARDS.put(session, board)
        events = [link(board.key, query), *board.events()]
        return buttons(board) | {
            ui.board: message(events),
            ui.said: notice(said),
            ui.download: gr.DownloadButton(value=save_trace(board.runs[0]), interactive=True),
        }

    def on_upload(request: gr.Request, path):
        try:
            trace = d2cache.Trace.load(path)
            board = load_board({trace.run["policy"]: trace}, secrets.token_hex(8))
            described = f"{trace.run['model']}, {trace.run['policy']}, {len(trace.seconds)} steps"
            return put(request.session_hash, board, f"Loaded a run of {described}.")
        except (ValueError, OSError) as error:
            return {ui.said: notice(f"{error}. Load a file that this page saved.", "error")}

    def show_stored(session: str, name: str) -> dict:
        """A stored run on the stage, and at the left what would make it again."""
        try:
            board = bundled(name)
        except ValueError as error:
            return {ui.said: notice(_sentence(error), "error")}
        said = f"A stored run. {stored.listed()[name]['words']}"
        return put(session, board, said, f"trace={name}")

    def on_stored(request: gr.Request, name):
        if not name:
            return {ui.said: gr.skip()}
        return fill(f"trace={name}") | show_stored(request.session_hash, name)

    def on_preset(name):
        story = PRESETS[name]["story"] if name in PRESETS else ""
        return gr.Markdown(story, visible=bool(story))

    def fill(query: str, *values) -> dict:
        """The controls as a link sets them; those of a stored run make it again."""
        try:
            link, told = Link.parse(query), None
            if link.trace is not None:
                run = bundled(link.trace).runs[0].trace.run
                asked = Asked.of(run, stored.listed()[link.trace]["prompt"], MODELS.first)
            elif link.settings and link.branch is None:
                asked = link.over(read(values))
                # the story under the presets is that of what is on the stage
                told = next((key for key, one in PRESETS.items() if one["query"] == query), None)
            else:
                return {ui.preset: gr.skip()}
            MODELS.start(asked.model)
        except ValueError:  # `follow` says it
            return {ui.preset: gr.skip()}
        return filled(asked) | {ui.preset: told}

    def follow(session: str, query: str, values):
        """Do what a link asks for."""
        try:
            link = Link.parse(query)
            if link.trace is not None:
                yield show_stored(session, link.trace)
                return
            if link.branch is not None:
                yield from what_if(session, *link.branch)
                return
            if not link.settings:  # it only says what to look at, or nothing
                yield {ui.said: gr.skip()}
                return
            asked = link.over(read(values))
        except ValueError as error:
            yield {ui.said: notice(_sentence(error), "error")}
            return
        yield from begin(session, lambda: asked)

    def what_if(session: str, key: str, edit: d2cache.Edit):
        """A lane that leaves another at a step, with something changed."""
        board, parent = BOARDS.holding(key)
        if parent.lane is None or parent.model is None or BOARDS.of(session) is not board:
            raise ValueError("this run was loaded, not made here: press Run, then ask what if")
        lane = replace(parent.lane, edits=(*parent.lane.edits, edit))
        number = board.runs.index(parent)
        says = edit_said(edit, parent.model, board.asked)
        board.start(lane, parent.model, {"lane": number, "step": edit.step, "says": says})
        where = f"Lane {len(board.runs)} goes on from step {edit.step + 1}: see Compare."
        yield from show(board, session, words=where)

    def on_ask(request: gr.Request, event: gr.EventData):
        session = request.session_hash
        if event.number > WANTED.get(session, 0):  # the answers to two may cross
            WANTED[session] = event.number
            on_pause(request)  # a new run ends the old one

    def outdated(request: gr.Request, event: gr.EventData) -> bool:
        """Whether the reader has gone on to something else meanwhile."""
        return event.number < WANTED.get(request.session_hash, 0)

    def on_fill(request: gr.Request, event: gr.EventData, *values):
        late = outdated(request, event)
        return {ui.preset: gr.skip()} if late else fill(event.query, *values)

    def on_send(request: gr.Request, event: gr.EventData, *values):
        if outdated(request, event):
            yield {ui.said: gr.skip()}
            return
        yield from follow(request.session_hash, event.query, values)

    def on_open(request: gr.Request, query, *values):
        yield from follow(request.session_hash, query, values)

    def on_close(request: gr.Request):
        BOARDS.drop(request.session_hash)
        WANTED.pop(request.session_hash, None)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    queued = quiet | {"concurrency_id": "engine", "concurrency_limit": 1}
    instant = quiet | {"queue": False}
    loading = quiet | {"outputs": ui.said, "concurrency_id": "loading", "concurrency_limit": 8}
    filling = [*controls, ui.preset]
    everything = list(dict.fromkeys([*outputs, *filling]))
    ui.model.input(on_model, ui.model, **loading)
    ui.policy.input(on_policy, [ui.policy, ui.block_length], [ui.block_length, ui.said], **instant)
    ui.preset.change(on_preset, ui.preset, ui.story, **instant)
    ui.preset.select(None, ui.preset, None, js=PRESET_JS)
    ui.stored.select(on_stored, ui.stored, everything, **instant)
    starts = (
        (ui.go.click, on_run),
        (ui.prompt.submit, on_run),
        (ui.compare.click, on_compare),
        (ui.beside.click, on_beside),
    )
    gr.on([trigger for trigger, _ in starts], None, js=SHOW_STAGE)
    for trigger, handler in starts:
        trigger(on_pause, None, None, **instant)  # a new run ends the old one
        trigger(lambda: None, None, ui.preset, **instant)  # and its story
        running = trigger(handler, inputs, outputs, trigger_mode="always_last", **queued)
        running.then(on_late, ui.late, **loading)
    ui.single.click(on_pause, None, None, **instant)
    stepping = ui.single.click(on_step, inputs, outputs, trigger_mode="multiple", **queued)
    stepping.then(on_late, ui.late, **loading)
    # the controls are set once, by an answer of their own: each message of a stream that named
    # them would take back what the visitor types meanwhile
    ui.board.submit(on_ask, None, None, trigger_mode="multiple", **instant)
    ui.board.submit(on_fill, inputs, filling, trigger_mode="multiple", **queued)
    # each has its own words: "always_last" would repeat those of the first
    sending = ui.board.submit(on_send, inputs, outputs, trigger_mode="multiple", **queued)
    sending.then(on_late, ui.late, **loading)
    ui.pause.click(on_pause, None, None, **instant)
    ui.resume.click(on_resume, None, outputs, **queued)
    ui.stop.click(on_stop, None, outputs, **instant)
    ui.upload.upload(on_upload, ui.upload, outputs, **queued)
    for trigger in (ui.fresh.click, ui.family.select):
        trigger(new_problem, ui.family, [ui.prompt, ui.gen_length], **instant)
    page.load(fill, [ui.opened, *inputs], filling, js=OPEN_JS, **queued)
    page.load(on_open, [ui.opened, *inputs], outputs, js=OPEN_JS, **queued)
    page.unload(on_close)
    for endpoint in (run, compare, policies, decoders, models):
        gr.api(checked(endpoint), api_name=endpoint.__name__, concurrency_id="engine")


OPEN_JS = "(opened, ...rest) => [location.search, ...rest]"
PRESET_JS = """(key) => {
  const { stage } = D2Stage, one = stage.page.options.presets.find((preset) => preset.key === key);
  if (one) stage.send(one.query);
}"""


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


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
    words = {
        "lessons": lessons.lessons(),
        "glossary": lessons.glossary(),
        "presets": list(PRESETS.values()),
    }
    scripts = f"<script>{bundle.scripts()}</script>{bundle.data(words)}"
    return f"{scripts}<style>{bundle.styles()}</style>"


def main() -> int:
    """Serve the page; exit code 2 when D2CACHE_MODELS names what cannot be a model."""
    try:
        MODELS.offered = offered_models(os.environ.get("D2CACHE_MODELS"))
    except ValueError as error:
        print(f"D2CACHE_MODELS: {error}", file=sys.stderr)
        return 2
    page = build()
    page.queue(max_size=32)
    server, _, _ = page.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        head=head(),
        css=PAGE_CSS,
        theme=THEME,
        prevent_thread_lock=True,
        state_session_capacity=200,
        run_history=False,
    )
    plots = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    server.get("/plotly.min.js")(lambda: FileResponse(plots))
    server.router.routes.insert(0, server.router.routes.pop())  # before Gradio's catch-all
    MODELS.start(MODELS.first)  # behind the page that is already up
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
