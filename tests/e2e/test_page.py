"""The real page on the bundled model in a real Chromium: what a visitor does and sees."""

import json
import re
from itertools import zip_longest

import numpy as np
import pytest
from safetensors.numpy import save_file
from transport import LONG, begin_long, begin_paused, pause, press, resume, step, stop

import d2cache
from analysis.tools.browser import choose, open_tab
from d2cache.registry import shared_knobs

QUESTION = "Tom has 5 apples. He buys 3 bags of 4 apples. How many apples does Tom have?"
HOSTILE = "<img src=x onerror=window.hacked=1>"


def state(tab) -> dict:
    return tab.evaluate("D2Stage.stage.state()")


def ask(tab, text: str = QUESTION):
    tab.locator("#prompt textarea").fill(text)


def run_to_end(tab, text: str = QUESTION):
    before = state(tab)["run"]
    ask(tab, text)
    tab.click("#run")
    tab.wait_for_function("run => D2Stage.stage.state().run !== run", arg=before)
    tab.wait_for_function("D2Stage.stage.state().status !== 'running'")


def knobs_shown(tab) -> dict[str, list[str]]:
    """Labels of the visible sliders and switches, by their group."""
    return tab.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('[id^=knobs-]')]
        .filter(group => group.checkVisibility())
        .map(group => [group.id.slice(6), [...group.querySelectorAll(
          'input[aria-label^="number input for "], input[type=checkbox]')]
        .filter(input => input.checkVisibility())
        .map(input => (input.ariaLabel || input.closest('label').innerText)
          .replace('number input for ', '').trim())]))"""
    )


def another_problem(tab):
    before = tab.locator("#prompt textarea").input_value()
    tab.get_by_role("button", name="New problem").click()
    tab.wait_for_function("t => document.querySelector('#prompt textarea').value !== t", arg=before)


def downloaded(tab) -> d2cache.Trace:
    """The finished run, as a visitor saves it."""
    wait_said(tab, "Done")
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Download trace").click()
    return d2cache.Trace.load(got.value.path())


def said(tab) -> str:
    return tab.inner_text("#said").strip()


def said_once(tab, pattern: str) -> str:
    """The first words that match, also where others come right after them."""
    told = tab.wait_for_function(
        """p => { const told = document.querySelector('#said').innerText;
        return new RegExp(p).test(told) && told; }""",
        arg=pattern,
    )
    return told.json_value().strip()


def wait_said(tab, pattern: str):
    said_once(tab, pattern)


def answer_on_stage(tab) -> str:
    """The text of the written answer chips before the first end token."""
    chips = tab.evaluate(
        "[...document.querySelectorAll('.d2-chips:not(.d2-prompt) .d2-chip')]"
        ".map(c => [c.className, c.textContent])"
    )
    words = []
    for name, text in chips:
        if "d2-eos" in name or "d2-masked" in name:
            break
        words.append(text)
    return "".join(words).strip()


@pytest.fixture
def word(chrome, address):
    """A tab with the stored run of one lane."""
    with open_tab(chrome, f"{address}/?trace=d2-word") as page:
        page.wait_for_function("D2Stage.stage.state().run === 'stored-d2-word'")
        yield page


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


def decoded(model, **knobs) -> d2cache.Trace:
    return d2cache.Trace.record(
        d2cache.generate(
            model,
            model.encode(QUESTION),
            d2cache.make_policy("d2"),
            d2cache.make_decoder("confidence", **knobs),
            gen_length=64,
            stop_at_eos=True,
        )
    )


def test_stored_runs_are_there_at_once(tab):
    seen = state(tab)
    assert seen["board"] == "stored-opening" and seen["lanes"] == 2 and seen["status"] == "done"
    assert seen["steps"] > 20 and seen["gaps"] == 0
    asked = "".join(tab.evaluate("D2Stage.stage.page.run.prompt"))
    assert tab.locator("#prompt textarea").input_value() in asked


def test_a_stored_run_is_a_link_away(word):
    assert state(word)["steps"] > 20 and state(word)["status"] == "done"
    assert "The answer is 11" in answer_on_stage(word)
    word.locator(".d2-summary").click()
    asked = "".join(word.locator(".d2-prompt .d2-chip").all_text_contents())
    word.wait_for_function(
        "asked => asked.includes(document.querySelector('#prompt textarea').value)", arg=asked
    )


def test_with_one_model_there_is_none_to_choose(tab):
    assert tab.locator("#run").is_visible() and not tab.locator("#model").is_visible()


def test_a_live_run_paints_every_step_and_gives_the_engines_answer(tab, model):
    run_to_end(tab)
    trace, seen = decoded(model), state(tab)
    assert seen["gaps"] == 0 and seen["received"] == seen["painted"] == len(trace.seconds)
    assert answer_on_stage(tab) == model.decode(trace.tokens[-1, trace.prompt_length :]).strip()
    assert "12" in answer_on_stage(tab)


def test_the_loop_waits_while_paused_and_steps_one_at_a_time(tab):
    ask(tab)
    begin_paused(tab)
    wait_said(tab, "Paused")
    for expected in (2, 3):
        step(tab)
        # no more has come than was asked for, and none has been lost
        assert state(tab)["received"] == expected and state(tab)["status"] == "running"
    resume(tab)
    tab.wait_for_function("D2Stage.stage.state().status === 'done'")
    assert state(tab)["gaps"] == 0
    wait_said(tab, "Done")


def test_stop_ends_a_paused_run_and_keeps_what_was_made(tab):
    ask(tab)
    begin_paused(tab)
    step(tab)
    stop(tab)
    tab.wait_for_function("D2Stage.stage.state().status === 'stopped'")
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Download trace").click()
    assert len(d2cache.Trace.load(got.value.path()).seconds) == 2


def test_a_downloaded_trace_is_the_run_and_loads_back(tab, model, tmp_path):
    run_to_end(tab)
    wait_said(tab, "Done")
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Download trace").click()
    path = tmp_path / "run.safetensors"
    got.value.save_as(path)
    trace, live = d2cache.Trace.load(path), decoded(model)
    assert np.array_equal(trace.tokens, live.tokens) and np.array_equal(trace.why, live.why)
    shown = answer_on_stage(tab)
    begin_paused(tab)  # something else on the stage
    tab.locator("input[type=file]").set_input_files(path)
    tab.wait_for_function("n => D2Stage.stage.state().received === n", arg=len(trace.seconds))
    assert answer_on_stage(tab) == shown


def test_a_bad_trace_is_refused_in_one_line_and_the_stage_stays(tab, tmp_path):
    before = state(tab)
    hostile = HOSTILE.replace("/", "")
    bad = {"Nothing": b"", hostile: b"not a trace", "Noise": b"\xff" * 64}
    for name, content in bad.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        tab.locator("input[type=file]").set_input_files(path)
        told = "onerror" if name == hostile else name
        wait_said(tab, f"{told}.*not a (valid )?trace")
        assert "\n" not in said(tab) and state(tab)["run"] == before["run"]
        assert tab.evaluate("window.hacked") is None


def test_token_text_is_shown_never_run(tab, tmp_path):
    run_to_end(tab, HOSTILE)
    tab.locator(".d2-summary").click()
    shown = "".join(tab.locator(".d2-prompt .d2-chip").all_inner_texts())
    assert "onerror" in re.sub(r"\s", "", shown)
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Download trace").click()
    trace = d2cache.Trace.load(got.value.path())
    end = str(trace.run["shape"]["eos_id"])  # its text would make every token an end token
    trace.header["texts"] = {
        i: t if i == end else HOSTILE for i, t in trace.header["texts"].items()
    }
    trace.header["run"] |= {"model": HOSTILE, "policy": HOSTILE, "decoder": HOSTILE}
    trace.save(tmp_path / "hostile.safetensors")
    tab.locator("input[type=file]").set_input_files(tmp_path / "hostile.safetensors")
    wait_said(tab, "Loaded a run")
    assert HOSTILE in tab.inner_text("#said")
    tab.locator(".d2-chips:not(.d2-prompt) .d2-chip").first.hover()
    tab.wait_for_selector(".d2-tip:not([hidden])")
    assert HOSTILE in tab.inner_text(".d2-tip")
    assert tab.locator("#stage img, #said img").count() == 0
    assert tab.evaluate("window.hacked") is None


def test_a_prompt_that_cannot_be_is_refused_and_the_page_goes_on(tab):
    for text, sentence in (("", "empty"), ("7 " * 1900, "room for 1024"), ("   \n ", "empty")):
        ask(tab, text)
        tab.click("#run")
        wait_said(tab, sentence)
    run_to_end(tab)
    assert state(tab)["status"] == "done"


def test_every_registered_policy_and_decoder_is_offered_with_its_knobs(tab):
    for name, kind in (("policy", d2cache.policies()), ("decoder", d2cache.decoders())):
        tab.locator(f"#{name} input").click()
        tab.wait_for_selector("[data-testid=dropdown-option]")
        menu = tab.locator(f"#{name} input").get_attribute("aria-controls")
        offered = tab.locator(f"#{menu} li").evaluate_all("all => all.map(o => o.ariaLabel)")
        assert sorted(o.split(": ")[0] for o in offered) == sorted(e["name"] for e in kind)
        tab.locator("#intro").click()  # closes the list
    tab.get_by_text("Knobs of d2").click()
    tab.get_by_label("number input for current k").wait_for(state="visible")
    choose(tab, "policy", "none")
    tab.get_by_text("Knobs of d2").wait_for(state="hidden")


def test_every_policy_and_decoder_runs_from_the_page_with_its_own_knobs(tab):
    tab.get_by_text("Canvas", exact=True).click()
    box = tab.get_by_label("number input for answer length")
    box.fill("16")
    box.press("Enter")
    kinds = {"policy": d2cache.policies(), "decoder": d2cache.decoders()}
    chosen = {kind: tab.locator(f"#{kind} input").input_value().split(":")[0] for kind in kinds}
    shared = [k.name for k in shared_knobs(d2cache.Decoder)]
    knobs = {
        e["name"]: [k.name.replace("_", " ") for k in e["knobs"] if k.name not in shared]
        for e in kinds["decoder"]
    }
    knobs |= {e["name"]: [k.name.replace("_", " ") for k in e["knobs"]] for e in kinds["policy"]}
    opened = set()
    tab.get_by_text("Knobs of every decoder", exact=True).click()
    names = {kind: [entry["name"] for entry in entries] for kind, entries in kinds.items()}
    for pair in zip_longest(*names.values()):  # where one list is longer, the other's last stays
        for kind, name in zip(names, pair, strict=True):
            if name:
                chosen[kind] = name
                choose(tab, kind, name)
            tab.get_by_text(f"How {chosen[kind]} works").wait_for(state="visible")
        for one in set(chosen.values()) - opened:
            if knobs[one]:
                tab.get_by_text(f"Knobs of {one}", exact=True).click()
                tab.locator(f"#knobs-{one} input").last.wait_for(state="visible")
        opened |= set(chosen.values())
        wanted = {one: knobs[one] for one in chosen.values() if knobs[one]}
        wanted["decoder"] = [name.replace("_", " ") for name in shared]
        assert knobs_shown(tab) == wanted
        run_to_end(tab)
        wait_said(tab, "Done")
        seen = state(tab)
        assert seen["status"] == "done" and seen["gaps"] == 0, (pair, said(tab))
        assert seen["painted"] == seen["received"] >= 1
        made = " ".join(tab.locator(".d2-which .d2-more").all_inner_texts())
        assert all(f"{kind} {name} " in made for kind, name in chosen.items()), made
        assert tab.locator(".page-error, [data-testid=toast-body]").count() == 0
        told = tab.inner_text(".d2-body")
        assert not re.search("undefined|NaN|null|\\[object", told), (pair, told)


def test_knobs_that_all_decoders_share_stand_once_and_reach_the_run(tab):
    tab.get_by_text("Knobs of every decoder", exact=True).click()
    shared = tab.locator("#knobs-decoder")
    sigma = shared.get_by_label("number input for sigma")
    for decoder, default in (("pc", "0"), ("margin", "10")):
        choose(tab, "decoder", decoder)
        tab.wait_for_function(
            "([s, v]) => document.querySelector(s).value === v",
            arg=["#knobs-decoder input[aria-label='number input for sigma']", default],
        )
    sigma.fill("3")
    box = shared.get_by_label("number input for tokens per step")
    box.fill("4")
    box.press("Enter")
    run_to_end(tab)
    knobs = downloaded(tab).run["decoder_knobs"]
    assert knobs["tokens_per_step"] == 4 and knobs["sigma"] == 3


def test_a_cache_that_is_made_for_blocks_gets_some(tab):
    tab.get_by_text("Canvas", exact=True).click()
    box = tab.get_by_label("number input for block length")
    choose(tab, "policy", "dkv")
    assert box.input_value() == "0"
    choose(tab, "policy", "dual")
    wait_said(tab, "block length is now 16")
    assert box.input_value() == "16"
    box.fill("8")
    box.press("Enter")
    choose(tab, "policy", "sparse")
    run_to_end(tab)
    assert downloaded(tab).run["block_length"] == 8, "what was chosen stays"


def test_what_is_masked_again_is_shown_so_live_and_replayed(tab, tmp_path):
    marks = tab.get_by_text("masked again in this step")
    assert marks.count() and not any(m.is_visible() for m in marks.all())
    choose(tab, "decoder", "wino")
    tab.get_by_text("Knobs of wino", exact=True).click()
    for knob, value in (("wide in", "0.1"), ("narrow out", "1")):
        tab.get_by_label(f"number input for {knob}").fill(value)
        tab.get_by_label(f"number input for {knob}").press("Enter")
    run_to_end(tab)
    wait_said(tab, "Done")

    def story() -> list:
        """Sentence and chips of each step."""
        told = []
        for s in range(state(tab)["steps"]):
            tab.evaluate("s => D2Stage.stage.goto(s)", s)
            tab.wait_for_function(
                "start => document.querySelector('.d2-sentence').innerText.startsWith(start)",
                arg=f"Step {s + 1}:",
            )
            chips = tab.locator(".d2-chips:not(.d2-prompt) .d2-chip")
            drawn = chips.evaluate_all("all => all.map(c => [c.className, c.textContent])")
            told.append((tab.inner_text(".d2-sentence"), drawn))
        return told

    live = story()
    counts = {"again": 0, "shown": 0}
    for sentence, chips in live:
        many = re.search(r"masked (\d+) tokens again", sentence)
        one = re.search("masked ('.*'|the end token) again", sentence)
        counts["again"] += int(many[1]) if many else bool(one)
        counts["shown"] += sum("d2-again" in name and "d2-masked" in name for name, _ in chips)
    assert counts["again"] == counts["shown"] > 2
    assert all(m.is_visible() for m in marks.all())
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Download trace").click()
    got.value.save_as(tmp_path / "wino.safetensors")
    run = state(tab)["run"]
    tab.locator("input[type=file]").set_input_files(tmp_path / "wino.safetensors")
    tab.wait_for_function("run => D2Stage.stage.state().run !== run", arg=run)
    assert story() == live


def test_a_number_may_be_typed_digit_by_digit_and_is_kept_within_bounds(tab):
    tab.get_by_text("Knobs of d2").click()
    box = tab.get_by_label("number input for current k")
    most = box.get_attribute("max")
    box.fill("")
    for typed in ("0", "99999"):
        with tab.expect_response(lambda r: "/run/" in r.url or "/queue/join" in r.url) as answer:
            box.fill(typed)
        assert answer.value.ok, "nothing is refused while it is typed"
    box.blur()
    tab.wait_for_function("([box, most]) => box.value === most", arg=[box.element_handle(), most])
    run_to_end(tab)
    assert downloaded(tab).run["policy_knobs"]["current_k"] == int(most)


def test_pause_clicked_many_times_stays_paused_and_goes_on(tab):
    begin_long(tab)
    pause(tab)
    for _ in range(5):
        press(tab, "pause")
    wait_said(tab, "Paused")
    here = state(tab)["received"]
    step(tab)
    assert state(tab)["received"] == here + 1, "nothing was made meanwhile"
    resume(tab)
    tab.wait_for_function("n => D2Stage.stage.state().received > n + 2", arg=here)
    stop(tab)
    wait_said(tab, "Stopped")
    assert state(tab)["status"] == "stopped" and state(tab)["gaps"] == 0


def test_the_verdict_is_about_the_question_that_ran(tab):
    begin_paused(tab)
    wait_said(tab, "Paused")
    another_problem(tab)
    resume(tab)
    wait_said(tab, "Done, and the answer is right")


def test_a_new_run_replaces_a_running_one(tab):
    begin_long(tab)
    first = state(tab)["run"]
    ask(tab)
    tab.click("#run")
    tab.wait_for_function("run => D2Stage.stage.state().run !== run", arg=first)
    stop(tab)
    wait_said(tab, "Stopped")
    assert state(tab)["status"] == "stopped" and state(tab)["lanes"] == 1
    assert QUESTION in "".join(tab.evaluate("D2Stage.stage.page.run.prompt"))


def test_without_a_cache_nothing_is_reused_and_rollout_says_why_it_is_absent(tab):
    choose(tab, "policy", "none")
    run_to_end(tab)
    assert "0" in tab.locator(".d2-value").nth(2).inner_text()
    assert tab.locator(".d2-map-rollout .d2-absent").is_visible()


def test_a_new_problem_is_solved_and_judged(tab):
    another_problem(tab)
    tab.click("#run")
    wait_said(tab, "answer is (right|wrong)")


def test_scrubbing_and_keys_move_the_clock_without_the_server(word):
    requests = []
    word.on("request", lambda request: requests.append(request))
    word.locator(".d2-stage").focus()
    word.keyboard.press("Home")
    word.wait_for_function("D2Stage.stage.state().step === 0")
    for _ in range(3):
        word.keyboard.press("ArrowRight")
    word.wait_for_function("D2Stage.stage.state().step === 3")
    word.locator(".d2-range").fill("7")
    word.wait_for_function("D2Stage.stage.state().step === 7")
    word.keyboard.press("End")
    word.wait_for_function("D2Stage.stage.state().step === D2Stage.stage.state().steps - 1")
    # what the stage asks, and what it sends; the controls have requests of their own
    assert not [r.url for r in requests if "component_server" in r.url]
    assert not [r.post_data for r in requests if '"query"' in (r.post_data or "")]


def test_pointing_at_a_position_marks_it_everywhere(word):
    word.evaluate("D2Stage.stage.goto(5)")
    chip = word.locator(".d2-chips:not(.d2-prompt) .d2-chip").nth(3)
    chip.hover()
    word.wait_for_selector(".d2-tip:not([hidden])")
    places = word.evaluate(
        "[...document.querySelectorAll('.d2-map .d2-plane > .d2-hair')]"
        ".map(h => [getComputedStyle(h).display, Math.round(h.getBoundingClientRect().left)])"
    )
    assert len(places) == 4 and len({json.dumps(p) for p in places}) == 1
    assert places[0][0] != "none"


def test_the_attention_map_of_one_step_is_made_on_request(tab):
    run_to_end(tab)
    tab.get_by_text("show this step's attention map").click()
    tab.wait_for_function(
        "document.querySelector('.d2-detail').innerText.includes('computed again by a full pass')"
    )
    size = tab.evaluate("document.querySelector('.d2-detail-canvas').width")
    assert size == tab.evaluate(
        "D2Stage.stage.state().run && document.querySelectorAll('.d2-chip[data-p]').length"
    )


def test_figures_of_the_run(tab, model):
    run_to_end(tab)
    wait_said(tab, "Done")
    tab.get_by_role("tab", name="Figures").click()
    panel = tab.locator(".d2-panel-figures")
    panel.locator(".js-plotly-plot").nth(6).wait_for()
    titles = panel.locator(".d2-figure:visible .d2-title").all_inner_texts()
    assert "Decode order" in titles and "Distance between consecutive writes" in titles
    assert panel.locator(".js-plotly-plot").count() == len(titles) - 1, "one waits for its button"
    order = titles.index("Decode order")
    drawn = tab.evaluate(
        """i => document.querySelectorAll('.d2-panel-figures .js-plotly-plot')[i]
        .calcdata[0].map(dot => [dot.x, dot.y])""",
        order,
    )
    trace = decoded(model)
    wrote = [(s + 1, p + 1) for s, p in zip(*np.nonzero(_written(trace)), strict=True)]
    assert sorted(map(tuple, drawn)) == wrote, "the run on the stage, step by step"


def _written(trace: d2cache.Trace) -> np.ndarray:
    """(S,G): whether a step wrote an answer position."""
    answer = trace.tokens[:, trace.prompt_length :]
    return answer[1:] != answer[:-1]


def test_a_closed_tab_frees_its_run(chrome, address, tab):
    leaving = chrome.new_context().new_page()
    leaving.goto(f"{address}/?{LONG}", timeout=120_000)
    leaving.wait_for_function("globalThis.D2Stage?.stage?.state().received > 0", timeout=120_000)
    assert state(leaving)["status"] == "running"
    leaving.context.close()
    run_to_end(tab)  # one run is made at a time: it would wait for minutes
    assert state(tab)["status"] == "done"


@pytest.mark.parametrize("width, dark", [(360, False), (360, True), (1400, True)])
def test_phone_width_and_dark_mode(chrome, address, width, dark):
    context = chrome.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("globalThis.D2Stage?.stage")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colour = page.evaluate("getComputedStyle(document.querySelector('.d2-stage')).color")
    lightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (lightness > 150) == dark
    context.close()


def test_controls_are_named_for_a_screen_reader(tab):
    unnamed = tab.evaluate(
        """[...document.querySelectorAll('#stage button, #stage input, #stage select')]
        .filter(e => !(e.getAttribute('aria-label') || e.innerText || e.title)).length"""
    )
    assert unnamed == 0
    assert tab.locator("#stage [aria-live=polite]").count() >= 1


def test_a_trace_with_values_out_of_bounds_is_refused(tab, tmp_path):
    path = tmp_path / "huge.safetensors"
    save_file({"tokens": np.zeros((2, 2), np.int32)}, path, metadata={"trace": "{}"})
    tab.locator("input[type=file]").set_input_files(path)
    wait_said(tab, "not a valid trace")
