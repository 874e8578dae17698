"""What the tabs say of a run, against the same run made by the engine; real page, real model."""

import functools
import io
import re
import time
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import expect
from test_page import state, wait_said

import d2cache
from analysis import probes, report
from analysis.page.query import Asked, Lane
from analysis.tools import browser
from analysis.tools.browser import open_tab
from d2cache import Edit, Part, Trace, Why
from d2cache.trace import Totals

STORY = "Tell a story about a brave fox named Max who finds a key in the forest."
LANES = ("none", "d2,current_k=2", "dllm,kp=9,kr=4")  # both caches leave the exact run's words
GEN = 24
PARTS = {"K": Part.KEY, "V": Part.VALUE, "attention output": Part.ATTENTION, "MLP output": Part.MLP}
HOLE = "\u2002\u200b"  # what stands for a mask in a lane


# ------------------------------------------------------------------------------ the engine's runs


@functools.cache
def engine() -> d2cache.Model:
    return d2cache.load("tiny", device="cpu")


@functools.cache
def made(lane: str, truth: bool = False, gen: int = GEN) -> tuple[Trace, list[probes.Look]]:
    """The engine's own run of a lane, and what the truth saw."""
    one, model = Lane.parse(lane), engine()
    policy, looks = one.make_policy(), []
    steps = d2cache.generate(
        model,
        model.encode(STORY),
        policy,
        one.make_decoder(),
        gen_length=gen,
        stop_at_eos=True,
        edits=one.edits,
    )
    if truth:
        steps = (
            looks.append(look) or step for step, look in probes.Truth(model, policy).watch(steps)
        )
    return Trace.record(steps), looks


def written(trace: Trace, step: int) -> np.ndarray:
    """(G,) bool: what holds a token after a step."""
    ids = trace.tokens[step + 1, trace.prompt_length :]
    return ids != trace.run["shape"]["mask_id"]


def text_at(trace: Trace, step: int) -> list[str | None]:
    """The answer after a step as the page writes its tokens; None for a mask."""
    shape, told = trace.run["shape"], []
    for i in trace.tokens[step + 1, trace.prompt_length :].tolist():
        text = re.sub(r"\r?\n", "↵", trace.text_of(i)) or "·"
        told.append(None if i == shape["mask_id"] else "end" if i == shape["eos_id"] else text)
    return told


def place(trace: Trace, position: int) -> str:
    p = trace.prompt_length
    return (
        f"prompt position {position + 1}" if position < p else f"answer position {position - p + 1}"
    )


# ------------------------------------------------------------------------------ the page


def opened(chrome, address, lanes=LANES, gen: int = GEN, **more):
    asked = Asked(STORY, tuple(map(Lane.parse, lanes)), gen_length=gen, **more)
    return open_tab(chrome, f"{address}/?{asked.query()}")


def ended(tab, lanes: int):
    tab.wait_for_function(
        """n => { const all = D2Stage.stage.page.board.lanes;
        return all.length === n && all.every(run => run.status === 'done'
          && run.start.stored === false); }""",
        arg=lanes,
    )
    wait_said(tab, "Done")


def soon(get, want, seconds: float = 10):
    """Asserts that what the page says comes to be what is wanted: it paints a frame later."""
    end = time.monotonic() + seconds
    while (got := get()) != want and time.monotonic() < end:
        time.sleep(0.05)
    assert got == want


def show(tab, name: str):
    tab.locator("#stage").get_by_role("tab", name=name, exact=True).click()
    tab.locator(f".d2-panel-{name.lower()}").wait_for(state="visible")


def at(tab, step: int, lane: int | None = None):
    """Goes to a lane and a step, as the scrubber does, and waits for the picture."""
    if lane is not None:
        tab.evaluate("i => D2Stage.stage.setLane(i)", lane)
    tab.evaluate("s => D2Stage.stage.goto(s)", step)
    tab.wait_for_function(
        """([s, i]) => { const { step, lane } = D2Stage.stage.state();
        return step === s && (i === null || lane === i); }""",
        arg=[step, lane],
    )
    frames(tab)


def frames(tab):
    """Two frames later: what was asked for is painted."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def cells(tab, panel: str, cols: int, rows: int, which: int = 0) -> list[list[str]]:
    """What a map of cells says of each cell when it is pointed at."""
    return tab.evaluate(
        """([panel, cols, rows, which]) => {
        const host = document.querySelector(`.d2-panel-${panel}`);
        const el = host.querySelectorAll('.d2-cells')[which];
        const said = host.querySelectorAll('.d2-said-cell')[which];
        const box = el.querySelector('canvas').getBoundingClientRect(), out = [];
        for (let r = 0; r < rows; r++) { out.push([]); for (let c = 0; c < cols; c++) {
          el.dispatchEvent(new PointerEvent('pointermove', {
            clientX: box.left + (c + 0.5) / cols * box.width,
            clientY: box.top + (r + 0.5) / rows * box.height }));
          out[r].push(said.textContent);
        } }
        el.dispatchEvent(new PointerEvent('pointerleave'));
        return out; }""",
        [panel, cols, rows, which],
    )


def pixels(tab, panel: str, cols: int, rows: int, which: int = 0) -> np.ndarray:
    """(rows, cols, 3) colours in the middle of each cell of a map."""
    frames(tab)
    return np.array(
        tab.evaluate(
            """([panel, cols, rows, which]) => {
        const canvas = document.querySelectorAll(`.d2-panel-${panel} .d2-plane-canvas`)[which];
        const {width, height} = canvas, ctx = canvas.getContext('2d'), out = [];
        const {data} = ctx.getImageData(0, 0, width, height);
        for (let r = 0; r < rows; r++) { out.push([]); for (let c = 0; c < cols; c++) {
          const i = 4 * (Math.floor((r + 0.5) / rows * height) * width
            + Math.floor((c + 0.5) / cols * width));
          out[r].push([...data.slice(i, i + 3)]);
        } }
        return out; }""",
            [panel, cols, rows, which],
        )
    )


def lane_texts(tab) -> list[list[str | None]]:
    """The answer of each lane of Compare, token by token; None for a mask."""
    told = tab.evaluate(
        """() => [...document.querySelectorAll('.d2-panel-compare .d2-lane')].map(lane =>
        [...lane.querySelectorAll('.d2-token')].map(el => el.textContent))"""
    )
    return [[None if text == HOLE else text for text in lane] for lane in told]


def saved_trace(tab, lane: int) -> Trace:
    """A lane's trace, taken along by the Export menu."""
    tab.evaluate("i => D2Stage.stage.setLane(i)", lane)
    tab.wait_for_function("i => D2Stage.stage.state().lane === i", arg=lane)
    tab.get_by_role("button", name="Export", exact=True).click()
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Trace (file)").click()
    tab.keyboard.press("Escape")
    return Trace.load(got.value.path())


def number_in(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found[1])


def same_run(one: Trace, other: Trace) -> bool:
    """All but the clock."""
    arrays = all(
        np.array_equal(getattr(one, n), getattr(other, n))
        for n in ("tokens", "why", "step_of_token", "work", "recomputed")
    )
    parts = (one.parts is None) == (other.parts is None)
    return arrays and parts and (one.parts is None or np.array_equal(one.parts, other.parts))


@pytest.fixture(scope="module")
def board(chrome, address):
    """A page with three lanes and their truth, and the engine's runs of the same; tests look at it
    and change nothing but the view."""
    with opened(chrome, address, truth=True) as tab:
        tab.set_viewport_size({"width": 1400, "height": 2000})  # all lanes in view
        ended(tab, len(LANES))
        runs = [made(lane, truth=True) for lane in LANES]
        yield SimpleNamespace(
            tab=tab,
            traces=[trace for trace, _ in runs],
            looks=[looks for _, looks in runs],
            saved=[saved_trace(tab, i) for i in range(len(LANES))],
        )


def test_every_lane_is_the_engines_run(board):
    for lane, one, other in zip(LANES, board.saved, board.traces, strict=True):
        assert same_run(one, other), lane


# ------------------------------------------------------------------------------ Cache


def ages_said(text: str) -> dict[str, int]:
    """'K and V 4 steps old, MLP output now' -> part: age."""
    name = "|".join(PARTS)
    found = re.findall(
        rf"((?:{name})(?:(?:, | and )(?:{name}))*) (now|never computed|\d+ steps? old)", text
    )
    return {
        one: {"now": 0, "never computed": -1}.get(age) or int(re.sub(r"\D", "", age) or 0)
        if age != "never computed"
        else -1
        for names, age in found
        for one in re.split(", | and ", names)
    }


@pytest.mark.parametrize("lane", [1, 2])
def test_cache_tells_each_cells_age_and_colours_it_by_its_reason(board, lane):
    tab, trace = board.tab, board.traces[lane]
    count, (layers, length) = len(trace.seconds), trace.recomputed_by_layer.shape[1:]
    show(tab, "Cache")
    reasons = [
        [int(Why[bit]), *bytes.fromhex(colour)]
        for bit, colour in re.findall(
            r'bit: WHY\.(\w+),[^}]*?colour: "#(\w{6})"',
            (browser.ROOT / "assets/stage/reasons.js").read_text(),
        )
    ]
    apart = 0
    for step in (0, 1, 9, count - 1, 5):  # forwards and back, as a reader scrubs
        at(tab, step, lane)
        told = cells(tab, "cache", length, layers)
        for name, part in PARTS.items():
            age = trace.age(part)[step]
            if trace.parts is None and part in (Part.ATTENTION, Part.MLP):
                assert all(name not in text for row in told for text in row)
                continue
            assert [[ages_said(t)[name] for t in row] for row in told] == age.tolist()
            assert told[1][-1].startswith(f"layer 2, answer position {GEN}: ")
        for name, part in (("K", Part.KEY), ("V", Part.VALUE)):
            group = tab.get_by_role("group", name="Part of the cache")
            group.get_by_role("button", name=name, exact=True).click()
            drawn = pixels(tab, "cache", length, layers)
            fresh = trace.age(part)[step] == 0
            why = np.broadcast_to(trace.why[step], fresh.shape)
            kept = {tuple(c) for c in drawn[~fresh]}
            assert len(kept) <= 1, "what is reused has one colour"
            for bit, *colour in reasons:
                mine = fresh & (why & bit > 0)
                assert (drawn[mine] == colour).all(), (step, name, bit)
                fresh &= ~mine  # the first reason that holds gives the colour
            looked = {tuple(c) for c in drawn[fresh]}  # computed for no reason of the row's own
            assert len(looked) <= 1 and not looked & kept
            apart += len(looked)
    assert (apart > 0) == (lane == 2), "dLLM-Cache looks at all V; d2 looks at none"
    mean = tab.locator(".d2-panel-cache .d2-more", has_text="Mean age").inner_text()
    age = trace.age(Part.VALUE)[5]
    assert number_in(mean, r"Mean age of V: ([\d.]+) steps") == pytest.approx(
        age[age >= 0].mean(), abs=0.051
    )


def test_cache_by_age_gives_every_age_its_colour_k_and_v_apart(board):
    tab, trace = board.tab, board.traces[2]
    layers, length = trace.recomputed_by_layer.shape[1:]
    show(tab, "Cache")
    at(tab, 11, 2)
    tab.get_by_role("group", name="Colour of the cells").get_by_role("button", name="age").click()
    seen = []
    for name, part in (("K", Part.KEY), ("V", Part.VALUE)):
        tab.get_by_role("group", name="Part of the cache").get_by_role(
            "button", name=name, exact=True
        ).click()
        drawn, age = pixels(tab, "cache", length, layers), trace.age(part)[11]
        by_age = {a: {tuple(c) for c in drawn[age == a]} for a in np.unique(age).tolist()}
        assert all(len(colours) == 1 for colours in by_age.values())
        assert len(set().union(*by_age.values())) == len(by_age)
        seen.append(drawn)
    assert (seen[0] != seen[1]).any()
    tab.get_by_role("group", name="Colour of the cells").get_by_role("button", name="why").click()


def test_a_click_in_the_cache_chooses_the_position_everywhere(board):
    tab, trace = board.tab, board.traces[2]
    length = trace.tokens.shape[1]
    show(tab, "Cache")
    at(tab, 9, 2)
    p = trace.prompt_length + 4
    box = tab.locator(".d2-panel-cache .d2-cells").bounding_box()
    tab.mouse.click(box["x"] + (p + 0.5) / length * box["width"], box["y"] + box["height"] / 3)
    tab.wait_for_function("p => D2Stage.stage.state().selected === p", arg=p)
    tab.mouse.move(5, 5)
    show(tab, "Token")
    soon(lambda: tab.inner_text(".d2-life-token"), "answer position 5")
    show(tab, "Stage")
    soon(lambda: tab.locator(f".d2-chips .d2-picked[data-p='{p}']").count(), 1)
    tab.evaluate("D2Stage.stage.select(null)")


# ------------------------------------------------------------------------------ Attention


def test_attention_maps_and_what_each_position_receives_are_the_probes(board):
    tab, trace = board.tab, board.traces[1]
    length = trace.tokens.shape[1]
    show(tab, "Attention")
    for step, layer in ((9, "rollout"), (20, 2)):
        at(tab, step, 1)
        tab.get_by_label("Which map").select_option(str(layer))
        words = "followed through all layers" if layer == "rollout" else "mean over the heads"
        note = tab.locator(".d2-panel-attention p[role=status]")
        expect(note).to_have_text(re.compile(f"^Step {step + 1}, computed .*{words}"))
        exact = (
            probes.rollout_map(engine(), trace, step)
            if layer == "rollout"
            else probes.attention_map(engine(), trace, step, layer)
        )
        told = cells(tab, "attention", length, length)
        shares = np.array([[float(t.rpartition("share ")[2]) for t in row] for row in told])
        # the shade is a root in 255 steps, the words have three digits
        allowed = np.sqrt(exact * exact.max()) / 255 + 1 / 255**2 + 6e-4
        assert (np.abs(shares - exact) <= allowed).all(), (step, layer)
        assert np.corrcoef(shares.ravel(), exact.ravel())[0, 1] > 0.99
        assert told[3][length - 1].startswith("query prompt position 4 (")
        assert f"key answer position {GEN} (" in told[3][length - 1]
        received = probes.column_sums(exact)
        most = tab.locator(".d2-panel-attention .d2-more", has_text="Most is received").inner_text()
        for p, (where, times) in zip(
            np.argsort(-received, kind="stable")[:3],
            re.findall(r"((?:prompt|answer) position \d+) \(.*?\): ([\d.]+)×", most),
            strict=True,
        ):
            assert where == place(trace, int(p)) and abs(float(times) - received[p]) < 0.06
        heights = tab.evaluate(
            """n => { const c = document.querySelector('.d2-columns'), {width, height} = c;
            const {data} = c.getContext('2d').getImageData(0, 0, width, height), out = [];
            for (let i = 0; i < n; i++) {
              const x = Math.floor((i + 0.4) / n * width); let y = height;
              while (y > 0 && data[4 * ((y - 1) * width + x) + 3]) y--;
              out.push(1 - y / height);
            }
            return out; }""",
            length,
        )
        level = 1 / received.max()  # of the dashes at the average
        bars = received / received.max()
        away = np.abs(bars - level) > 0.05
        assert np.abs(np.array(heights) - bars)[away].max() < 0.04
    # prompt, decoded and masked are told apart along the edge
    kinds = tab.evaluate(
        """() => { const c = document.querySelectorAll('.d2-kinds')[0];
        const {data} = c.getContext('2d').getImageData(0, 0, c.width, 1);
        return Array.from({length: c.width}, (_, i) => data.slice(4 * i, 4 * i + 3).join()); }"""
    )
    before = trace.tokens[20] == trace.run["shape"]["mask_id"]
    want = np.where(np.arange(length) < trace.prompt_length, 0, np.where(before, 2, 1))
    groups = {kind: {k for k, w in zip(kinds, want, strict=True) if w == kind} for kind in range(3)}
    assert all(len(g) == 1 for g in groups.values()) and len(set().union(*groups.values())) == 3


# ------------------------------------------------------------------------------ Truth


def drift_said(text: str) -> float:
    found = re.search(r"(?:K drift|V drift|KL of predictions) ([\d.e−-]+)", text)
    return float(found[1].replace("−", "-")) if found else 0.0


def test_truth_says_what_the_probe_saw(board):
    tab, trace, looks = board.tab, board.traces[2], board.looks[2]
    count, length, p = len(looks), trace.tokens.shape[1], trace.prompt_length
    show(tab, "Truth")
    at(tab, 9, 2)
    recalls = [look.recall for look in looks if look.recall is not None]
    flips = [len(look.flips) for look in looks]
    assert sum(flips) > 10 and 0 < np.mean(recalls) < 1
    numbers = tab.locator(".d2-panel-truth .d2-numbers .d2-value").all_inner_texts()
    assert float(numbers[0]) == pytest.approx(np.mean(recalls), abs=0.0051)
    assert numbers[1] == str(sum(flips))
    assert numbers[2] == f"{sum(f > 0 for f in flips)} / {count}"
    kinds = tab.get_by_role("group", name="What the map shows")
    for label, name in (
        ("K drift", "k_drift"),
        ("V drift", "v_drift"),
        ("KL of predictions", "kl"),
    ):
        kinds.get_by_role("button", name=label).click()
        frames(tab)
        told = cells(tab, "truth", length, count)
        exact = np.stack([getattr(look, name) for look in looks]).astype(float)
        if name == "kl":
            assert all("nothing is predicted in the prompt" in t for row in told for t in row[:p])
            exact, said = np.nan_to_num(exact), [row[p:] for row in told]
        else:
            said = told
        shown = np.array([[drift_said(t) for t in row] for row in said])
        least = 2.0 ** (-12 if name == "kl" else -14)
        # a code is a sixteenth of an octave; the words have two or three digits
        assert (
            np.abs(shown - exact)
            <= 0.03 * exact
            + 0.06 * exact * (exact < 0.01)
            + 6e-3 * (exact > 0.01)
            + least * (exact <= least * 1.03)
        ).all(), name
        assert shown.max() > 0.02
        flipped = [[("best guess differs" in t) for t in row] for row in told]
        assert np.argwhere(flipped).tolist() == [
            [s, q] for s, look in enumerate(looks) for q in sorted(look.flips)
        ]
    tab.mouse.move(5, 5)


def test_the_oracle_is_shown_against_the_policys_choice(board):
    tab = board.tab
    show(tab, "Truth")
    for lane in (1, 2):
        trace, looks = board.traces[lane], board.looks[lane]
        for step in (1, 10, 17):
            at(tab, step, lane)
            look, did = looks[step], trace.recomputed[step]
            told = cells(tab, "truth", len(did), 2, which=1)[0]
            if look.recall is None:
                assert all("nothing to choose" in t for t in told)
                continue
            want = np.where(
                np.isin(np.arange(len(did)), look.oracle),
                np.where(did, "hit", "missed"),
                np.where(did, "beyond the oracle's", "rightly reused"),
            )
            assert [t.split(": ")[1] for t in told] == want.tolist()
            said = tab.locator(".d2-panel-truth .d2-sentence").inner_text()
            hits = int(did[list(look.oracle)].sum())
            assert f"of the {len(look.oracle)} positions" in said and f"recomputed {hits} (" in said
            assert number_in(said, r"recall ([\d.]+)") == pytest.approx(look.recall, abs=0.0051)


def test_without_truth_the_invitation_makes_it(chrome, address):
    with opened(chrome, address, lanes=("d2,current_k=2",), gen=24) as tab:
        ended(tab, 1)
        old = state(tab)["board"]
        show(tab, "Truth")
        assert tab.locator(".d2-panel-truth .d2-numbers").is_hidden()
        tab.get_by_role("button", name="Run again with Truth").click()
        tab.wait_for_function("b => D2Stage.stage.state().board !== b", arg=old)
        ended(tab, 1)
        _, looks = made("d2,current_k=2", truth=True, gen=24)
        flips = sum(len(look.flips) for look in looks)
        numbers = tab.locator(".d2-panel-truth .d2-numbers .d2-value")
        soon(lambda: numbers.nth(1).inner_text(), str(flips))
        assert "truth=1" in tab.url
        assert state(tab)["tab"] == "truth", "the reader stays where the button is"


# ------------------------------------------------------------------------------ Token


def rank_of(trace: Trace, step: int, g: int) -> str:
    """Place among the masked that got a guess, by what the decoder ranks: 'rank 1 of 9'."""
    seen = np.isfinite(trace.confidence[step])
    masked = trace.tokens[step, trace.prompt_length :] == trace.run["shape"]["mask_id"]
    score = np.round(254 * np.where(seen, trace.confidence[step], 0)) * np.round(
        255 * trace.density[step]
    )
    among = score[seen & masked]
    return f"rank {1 + int((among > score[g]).sum())} of {len(among)}"


def test_token_tells_the_life_of_a_position(board):
    tab, trace, looks = board.tab, board.traces[1], board.looks[1]
    p, count = trace.prompt_length, len(trace.seconds)
    g = int(np.flatnonzero(trace.step_of_token == 14)[0])
    show(tab, "Token")
    at(tab, count - 1, 1)
    tab.get_by_role("group", name="Part of the canvas").get_by_role("button", name="answer").click()
    frames(tab)
    field = tab.get_by_label("Position, counted from 1")
    field.fill(str(g + 1))
    tab.evaluate("D2Stage.stage.page.schedule()")  # as each step of a run does
    frames(tab)
    assert field.input_value() == str(g + 1), "what is being typed was overwritten"
    field.press("Enter")
    tab.wait_for_function("p => D2Stage.stage.state().selected === p", arg=p + g)
    sentence = tab.locator(".d2-panel-token .d2-sentence").first
    for step in (14, count - 1):
        at(tab, step)
        recomputed = int((trace.why[: step + 1, p + g] > 0).sum())
        said = sentence.inner_text()
        word = text_at(trace, 14)[g]
        assert said.startswith(f"Answer position {g + 1}: written in step 15 as '{word}' with ")
        sure = number_in(said, r"with confidence (\d\.\d+)")
        assert sure == pytest.approx(trace.confidence[14, g], abs=0.0052)
        assert f"{rank_of(trace, 14, g)} then." in said
        assert f"Recomputed in {recomputed} of {step + 1} steps" in said
    guessed = 0
    for step in range(1, 14, 3):
        at(tab, step)
        said, sure = sentence.inner_text(), trace.confidence[step, g]
        if np.isfinite(sure):
            guessed += 1
            told = number_in(said, r"still masked; its best guess has confidence (\d\.\d+)")
            assert told == pytest.approx(sure, abs=0.0072)
            assert f", {rank_of(trace, step, g)}." in said
        else:
            assert "no guess was made here in this step" in said
        charts = dict(
            tab.evaluate(
                """() => [...document.querySelectorAll('.d2-panel-token .d2-line')]
            .filter(el => el.checkVisibility() && el.querySelector('.d2-line-value'))
            .map(el => [el.querySelector('.d2-defined').textContent,
              el.querySelector('.d2-line-value').textContent])"""
            )
        )
        drift = float(looks[step].k_drift[p + g])
        shown = float(charts["K drift"].replace("−", "-"))
        assert abs(shown - drift) <= 0.08 * drift + 2.0**-14
        assert abs(float(charts["certainty density"]) - trace.density[step, g]) < 0.0072
    assert guessed
    told = cells(tab, "token", count, 1)[0]
    assert [("recomputed" in t) for t in told] == (trace.why[:, p + g] > 0).tolist()
    assert [(", written" in t) for t in told] == [s == 14 for s in range(count)]

    for name, to in (
        ("Next position", g + 1),
        ("Previous position", g),
        ("Previous position", g - 1),
    ):
        tab.get_by_role("button", name=name).click()
        tab.wait_for_function("p => D2Stage.stage.state().selected === p", arg=p + to)
        soon(lambda: tab.inner_text(".d2-life-token"), f"answer position {to + 1}")

    tab.get_by_role("button", name="Trace its keys").click()
    points = tab.locator(".d2-path >> nth=0 >> circle:not(.d2-path-written):not(.d2-path-now)")
    points.first.wait_for(state="attached")
    assert points.count() == count
    tab.evaluate("D2Stage.stage.select(null)")


# ------------------------------------------------------------------------------ lanes


def test_lanes_show_their_own_words_and_mark_those_that_differ(board):
    tab = board.tab
    show(tab, "Compare")
    first = board.traces[0]
    for step in (4, 20, 23):
        at(tab, step, 0)
        want = [text_at(trace, step) for trace in board.traces]
        soon(lambda: lane_texts(tab), want)
        marks = tab.evaluate(
            """() => [...document.querySelectorAll('.d2-panel-compare .d2-lane')].map(lane =>
            [...lane.querySelectorAll('.d2-token')].map(el => el.matches('.d2-differs')))"""
        )
        apart = [
            [a is not None and b is not None and a != b for a, b in zip(lane, want[0], strict=True)]
            for lane in want
        ]
        assert marks == apart
        for i, said in enumerate(tab.locator(".d2-difference").all_inner_texts()):
            if not i:
                continue
            leaves = next(
                s
                for s in range(len(first.seconds))
                if (board.traces[i].tokens[s + 1] != first.tokens[s + 1]).any()
            )
            when = [(t.step_of_token, written(t, step)) for t in (first, board.traces[i])]
            order = int(((when[0][0] != when[1][0]) & when[0][1] & when[1][1]).sum())
            assert f"Leaves lane 1 at step {leaves + 1}." in said
            assert f"Here {sum(apart[i])} token" in said and f"(≠), {order} w" in said
    assert any(map(any, apart[1:]))


def test_pointing_at_a_token_marks_its_place_in_every_lane(board):
    tab = board.tab
    show(tab, "Compare")
    at(tab, 20, 0)
    for lane, g in ((0, 3), (2, 17)):
        tab.locator(".d2-lane").nth(lane).locator(".d2-token").nth(g).hover()
        marked = """() => [...document.querySelectorAll('.d2-panel-compare .d2-lane')].map(lane =>
            [...lane.querySelectorAll('.d2-token')].flatMap((el, g) =>
              el.classList.contains('d2-marked') ? [g] : []))"""
        soon(lambda m=marked: tab.evaluate(m), [[g]] * 3)
        lines = tab.evaluate(
            "[...document.querySelectorAll('.d2-lane-map.d2-pointed')].map(el => "
            "el.style.getPropertyValue('--d2-col'))"
        )
        assert lines == [str(board.traces[0].prompt_length + g)] * 3
    assert "lane 3" in tab.inner_text(".d2-readout")
    tab.mouse.move(5, 5)
    soon(lambda: tab.locator(".d2-token.d2-marked").count(), 0)


def test_digits_choose_a_lane_and_n_goes_to_the_next_difference(board):
    tab = board.tab
    show(tab, "Stage")
    at(tab, 0, 0)
    tab.locator(".d2-stage").focus()
    for lane in (2, 1):
        tab.keyboard.press(str(lane + 1))
        tab.wait_for_function("i => D2Stage.stage.state().lane === i", arg=lane)
        shown = tab.locator(".d2-panel-stage .d2-chips:not(.d2-prompt) .d2-chip:not(.d2-masked)")
        soon(shown.all_text_contents, [t for t in text_at(board.traces[lane], 0) if t])
    for lane in (1, 2):
        tab.keyboard.press(str(lane + 1))
        first, other = board.traces[0].tokens, board.traces[lane].tokens
        one, two = ((t[1:] != t[:-1]) * (t[1:] + 1) for t in (first, other))  # what a step wrote
        changed = np.flatnonzero((one != two).any(1)).tolist()
        tab.keyboard.press("Home")
        tab.wait_for_function("D2Stage.stage.state().step === 0")
        for step in [s for s in changed if s > 0][:3]:
            tab.keyboard.press("n")
            tab.wait_for_function("s => D2Stage.stage.state().step === s", arg=step)


@pytest.mark.parametrize("clock", ["milliseconds", "FLOPs"])
def test_the_race_says_who_has_done_what_at_a_moment(board, clock):
    tab, saved = board.tab, board.saved
    show(tab, "Compare")
    tab.get_by_role("group", name="Clock").get_by_role("button", name=clock).click()
    frames(tab)
    times = []
    for trace in saved:
        if clock == "milliseconds":
            times.append(np.cumsum(1e3 * trace.seconds))
            continue
        config, totals, done = d2cache.ModelConfig(**trace.run["shape"]), None, []
        for s in range(len(trace.seconds)):
            totals = totals or Totals(config, trace.tokens.shape[1])
            totals.add(0, trace.work[s], trace.predicted[s], 0, 0, trace.seconds[s])
            done.append(totals.report(0)["flops"])
        times.append(np.array(done))
    ends = [t[-1] for t in times]
    assert np.argmin(ends) != 0 or clock == "milliseconds", "a cache computes less"
    every = np.sort(np.concatenate(times))
    # between two events, so that rounding to hundredths of a millisecond cannot matter
    wide = np.flatnonzero(np.diff(every) > max(ends) * 2e-3)
    moments = (every[:-1] + every[1:])[wide] / 2
    picked = [*moments[:: max(1, len(moments) // 5)], max(ends) * 1.0]
    picked += [m for m in moments if (np.array(ends) < m).sum() == 1][:1]  # one has finished
    for moment in picked:
        last = moment == max(ends)
        if last:
            tab.locator(".d2-range").focus()
            tab.keyboard.press("End")
        else:
            tab.evaluate(
                """m => { const r = document.querySelector('.d2-range'); r.value = m;
                r.dispatchEvent(new Event('input', {bubbles: true})); }""",
                float(moment),
            )
        frames(tab)
        steps = [len(t) - 1 if last else int((t <= moment).sum()) - 1 for t in times]
        soon(
            lambda: [
                int(t.split(" / ")[0]) - 1
                for t in tab.locator(".d2-facts > :first-child b").all_inner_texts()
            ],
            steps,
        )
        told = tab.locator(".d2-told").all_inner_texts()
        counts = [
            int(written(t, s).sum()) if s >= 0 else 0 for t, s in zip(saved, steps, strict=True)
        ]
        over = [s == len(t) - 1 for s, t in zip(steps, times, strict=True)]
        for said, count, finished in zip(told, counts, over, strict=True):
            assert said.startswith(f"{count} of {GEN} positions written")
            assert ("finished at" in said) == finished
        best = [min(e for e, o in zip(ends, over, strict=True) if o)] if any(over) else None
        leads = (
            [o and e == best[0] for e, o in zip(ends, over, strict=True)]
            if best
            else [c == max(counts) > 0 for c in counts]
        )
        marked = [one and not all(leads) for one in leads]  # level: none stands out
        assert [(" · first" in t or " · leads" in t) for t in told] == marked
        who = re.search(
            r"lanes? ([\d, and]+?)(?: finished| leads| lead)", tab.inner_text(".d2-leader")
        )
        if who:
            assert [int(n) - 1 for n in re.findall(r"\d", who[1])] == list(np.flatnonzero(leads))
    tab.get_by_role("group", name="Clock").get_by_role("button", name="steps").click()


# ------------------------------------------------------------------------------ what if


def one_token(*texts: str) -> tuple[str, int]:
    """The first of these texts that is one token to the model."""
    for text in texts:
        ids = engine().tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1:
            return text, int(ids[0])
    raise AssertionError(f"none of {texts} is one token")


def test_what_if_runs_on_as_the_engine_does_with_that_edit(chrome, address):
    lane, step = "d2,current_k=2", 12
    base, _ = made(lane)
    p, mask = base.prompt_length, base.run["shape"]["mask_id"]
    g = int(np.flatnonzero(base.step_of_token == 7)[0])
    text, token = one_token(" dog", " cat", " sea", " a", "7")
    edits = [
        Edit(step, {p + g: token}),
        Edit(step, {p + g: mask}),
        Edit(step, refresh="all"),
        Edit(step, policy={"current_k": 8}),
    ]
    with opened(chrome, address, lanes=(lane,)) as tab:
        tab.set_viewport_size({"width": 1400, "height": 2400})
        ended(tab, 1)
        at(tab, step, 0)
        tab.evaluate("p => D2Stage.stage.select(p)", p + g)
        show(tab, "Token")
        panel, made_lanes = tab.locator("[data-point=whatif]"), [base]
        go = panel.get_by_role("button", name=f"Run on from step {step + 1}")
        assert go.is_disabled(), "nothing is changed yet"
        for number, edit in enumerate(edits, 2):
            tab.evaluate("D2Stage.stage.setLane(0)")
            show(tab, "Token")
            words, refresh, knob = (
                panel.get_by_label(label)
                for label in ("Another token here", "Refresh", "Turn a knob")
            )
            words.select_option("keep")
            refresh.select_option("none")
            knob.select_option("")
            if mask in edit.tokens.values():
                words.select_option("mask")
            elif edit.tokens:
                words.select_option("other")
                panel.get_by_role("textbox", name="The token").fill(text)
            if edit.refresh:
                refresh.select_option("all")
            if edit.policy:
                knob.select_option("policy.current_k")
                panel.get_by_role("spinbutton", name="Its new value").fill("8")
            go.click()
            ended(tab, number)
            made_lanes.append(made(f"{lane}~{edit}")[0])
            # the new lane is shown, beside its parent
            soon(lambda: [state(tab)[k] for k in ("lane", "tab")], [number - 1, "compare"])
            assert state(tab)["step"] == step
        assert any((t.tokens[-1] != base.tokens[-1]).any() for t in made_lanes[1:])
        soon(lambda: tab.url.count("~"), len(edits))  # the address holds what was changed
        notes = tab.locator(".d2-lane-note").all_inner_texts()
        assert all(f"(left lane 1 at step {step + 1})" in note for note in notes[1:])
        assert "left" not in notes[0]
        show(tab, "Compare")
        for s in (step - 1, step, step + 1, len(base.seconds) - 1):
            at(tab, s)
            soon(
                lambda s=s: lane_texts(tab),
                [text_at(t, min(s, len(t.seconds) - 1)) for t in made_lanes],
            )
        marks = tab.evaluate(
            """() => [...document.querySelectorAll('.d2-lane-map')].map(map => {
            const el = map.querySelector('.d2-branch'), box = map.querySelector('.d2-plane');
            return el.hidden ? null : (el.getBoundingClientRect().top
              - box.getBoundingClientRect().top) / box.getBoundingClientRect().height; })"""
        )
        rows = max(len(t.seconds) for t in made_lanes)
        assert marks[0] is None
        assert marks[1:] == pytest.approx([(step + 1) / rows] * len(edits), abs=0.02)
        for i, (edit, trace) in enumerate(zip(edits, made_lanes[1:], strict=True), 1):
            got = saved_trace(tab, i)
            assert same_run(got, trace), str(edit)
            assert [Edit.of_plain(e) for e in got.run["edits"]] == [edit]


# ------------------------------------------------------------------------------ figures


def test_figures_come_when_a_run_has_ended_and_can_be_kept(tab):
    asked = []
    tab.on(
        "request",
        lambda r: (
            asked.append(r.post_data)
            if "figures" in (r.post_data or "") and "component_server" in r.url
            else None
        ),
    )
    panel = tab.locator(".d2-panel-figures")
    show(tab, "Figures")  # of the stored run
    panel.locator(".js-plotly-plot").nth(6).wait_for()
    browser.choose(tab, "policy", "none")
    tab.locator("#prompt textarea").fill(STORY)
    assert len(asked) == 1
    tab.click("#run")
    tab.wait_for_function("D2Stage.stage.state().status === 'running'")
    panel.get_by_text("The figures come when the run has ended").wait_for()
    asked_then, steps_then = len(asked), state(tab)["received"]
    tab.wait_for_function("n => D2Stage.stage.state().received > n + 5", arg=steps_then)
    if state(tab)["status"] == "running":
        assert len(asked) == asked_then == 1, "none is sent while the run goes on"
    tab.wait_for_function("D2Stage.stage.state().status === 'done'")
    wait_said(tab, "Done")
    panel.locator(".js-plotly-plot").nth(6).wait_for()
    assert len(asked) == 2
    tab.evaluate("D2Stage.stage.goto(4)")
    frames(tab)
    assert len(asked) == 2 and panel.locator(".js-plotly-plot").count() == 7

    trace = saved_trace(tab, 0)
    want = {
        one["title"]: one
        for one in report.run_figures(trace, probes.rollout_columns(engine(), trace))
    }
    titles = panel.locator(".d2-figure:visible[aria-label] .d2-title").all_inner_texts()
    assert titles == list(want)

    def kept(title: str, kind: str):
        with tab.expect_download() as got:
            tab.get_by_role("button", name=f"{title}: save as {kind}", exact=True).click()
        assert got.value.suggested_filename == f"d2cache-{want[title]['key']}.{kind.lower()}"
        return got.value.path()

    for title, one in want.items():
        told = pd.read_csv(kept(title, "CSV"))
        pd.testing.assert_frame_equal(told, pd.read_csv(io.StringIO(one["csv"])), rtol=1e-3)
    order = next(title for title, one in want.items() if one["key"] == "order")
    with Image.open(kept(order, "PNG")) as image:
        assert image.format == "PNG" and image.width == 1800 and image.height > 600
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    svg = ElementTree.parse(kept(order, "SVG")).getroot()
    points = [e for e in svg.iter() if "point" in e.get("class", "").split()]
    writes = int((trace.step_of_token >= 0).sum())
    assert svg.tag.endswith("svg") and len(points) == writes


def test_the_decode_orders_under_several_sigmas_are_runs_that_differ_in_it_alone(chrome, address):
    title = "Decode order under several widths of the prior"
    with opened(chrome, address, lanes=("d2,current_k=2",)) as tab:
        ended(tab, 1)
        show(tab, "Figures")
        tab.get_by_role("button", name="compare the decode order under").click()
        save = tab.get_by_role("button", name=f"{title}: save as CSV", exact=True)
        with tab.expect_download() as got:
            save.click()
        told = pd.read_csv(got.value.path())
    orders = []
    for sigma in (0, 3, 10, 40):
        run, _ = made(f"d2,current_k=2/confidence,sigma={sigma}")
        part = told[told["sigma"] == sigma].sort_values("position")
        done = np.flatnonzero(run.step_of_token >= 0)
        assert part["position"].tolist() == (done + 1).tolist()
        orders.append(part["step"].tolist())
        assert orders[-1] == (run.step_of_token[done] + 1).tolist()
    assert orders[0] != orders[2]
