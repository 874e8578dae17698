"""Several models on one page: what is offered, how one is loaded, and what is refused."""

import json
import os
import subprocess
import sys
import threading

import pytest
from checkpoints import write_checkpoint
from test_page import QUESTION, answer_on_stage, run_to_end, said_once, state, wait_said
from traffic import Traffic
from transport import begin_paused, press, resume

import d2cache
from analysis.page.models import Loading, Models, offered_models
from analysis.tools import browser
from analysis.tools.browser import open_tab


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small Dream, and one whose weights are missing."""
    root = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(root / "small-dream", "dream")
    broken = write_checkpoint(root / "broken", "dream")
    (broken / "model-00002-of-00003.safetensors").unlink()
    return root


@pytest.fixture(scope="module")
def address(folders, tmp_path_factory):
    names = ["tiny", str(folders / "small-dream"), str(folders / "broken"), "some/model"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("cache"))}
    log = tmp_path_factory.mktemp("app") / "log"
    with browser.server(log, D2CACHE_MODELS=",".join(names), **offline) as (url, _):
        yield url


@pytest.fixture
def tab(chrome, address):
    with open_tab(chrome, address) as page:
        yield page


def choose(tab, model: str):
    tab.locator("#model input").click()
    tab.locator("[data-testid=dropdown-option]", has_text=model).click()


def test_the_hosts_models_are_offered_by_name_and_size_without_its_paths(tab, folders):
    tab.locator("#model input").click()
    tab.wait_for_selector("[data-testid=dropdown-option]")
    offered = tab.locator("[data-testid=dropdown-option]").evaluate_all(
        "all => all.map(o => o.ariaLabel)"
    )
    assert offered == [
        "tiny (7.0 M weights)",
        "small-dream (0.2 M weights)",
        "broken (0.2 M weights)",
        "some/model",
    ]
    config = tab.evaluate("fetch('config').then(r => r.text())")
    assert "small-dream" in config and str(folders) not in config


def test_a_chosen_model_is_loaded_and_runs(tab, folders, tmp_path):
    choose(tab, "small-dream")
    wait_said(tab, "small-dream is loaded. Press Run.")
    run_to_end(tab, QUESTION)
    wait_said(tab, "Done")
    model = d2cache.load(str(folders / "small-dream"), device="cpu")
    steps = d2cache.generate(model, model.encode(QUESTION), "d2", gen_length=64, stop_at_eos=True)
    want = d2cache.Trace.record(steps)
    assert state(tab)["received"] == len(want.seconds)
    assert "model small-dream" in tab.inner_text("#stage")
    with tab.expect_download() as got:
        tab.get_by_role("button", name="Download trace").click()
    trace = d2cache.Trace.load(got.value.path())
    assert trace.run["shape"] == want.run["shape"] and (trace.tokens == want.tokens).all()
    tab.get_by_text("show this step's attention map").click()
    tab.wait_for_function(
        "document.querySelector('.d2-detail').innerText.includes('computed again by a full pass')"
    )


def test_the_attention_map_of_the_stored_run_is_of_the_model_that_made_it(chrome, address):
    with open_tab(chrome, f"{address}/?trace=d2-word") as tab:
        tab.wait_for_function("D2Stage.stage.state().run === 'stored-d2-word'")
        choose(tab, "small-dream")
        wait_said(tab, "small-dream is loaded")
        tab.get_by_text("show this step's attention map").click()
        tab.wait_for_function(
            "document.querySelector('.d2-detail').innerText.includes('again by a full pass')"
        )


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("broken", "broken lacks the shard model-00002-of-00003.safetensors; fetch it again"),
        ("some/model", "could not fetch 'some/model' from the hub: the hub cannot be reached"),
    ],
)
def test_a_model_that_cannot_be_loaded_leaves_the_others(tab, folders, model, sentence):
    choose(tab, model)
    told = said_once(tab, f"^The model {model} cannot be loaded: ")
    assert sentence in told and "\n" not in told and str(folders) not in told
    before = state(tab)["run"]
    press(tab, "stop")
    wait_said(tab, "Nothing is running")
    tab.click("#run")
    wait_said(tab, f"^The model {model} cannot be loaded: .*Choose another model")
    assert state(tab)["run"] == before
    choose(tab, "tiny")
    wait_said(tab, "tiny is loaded. Press Run.")
    run_to_end(tab, QUESTION)
    assert "12" in answer_on_stage(tab)


def test_a_run_with_another_model_is_a_new_run(tab):
    begin_paused(tab)
    wait_said(tab, "Paused")
    first = state(tab)["run"]
    choose(tab, "small-dream")
    wait_said(tab, "small-dream is loaded")
    press(tab, "step")
    tab.wait_for_function("run => D2Stage.stage.state().run !== run", arg=first)
    wait_said(tab, "Paused")
    assert "model small-dream" in tab.inner_text("#stage")
    resume(tab)
    wait_said(tab, "^Done. Expected: .* The answer is 62")  # not judged: it has words of its own


@pytest.mark.parametrize("asked", ["GSAI-ML/LLaDA-8B-Base", "/etc", "", None, ["tiny"]])
def test_a_model_that_is_not_offered_is_refused_whoever_asks(chrome, address, asked):
    """A request is changed on its way, as a visitor's own program could."""
    context = chrome.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("globalThis.D2Stage?.stage")

    def change(route):
        body = json.loads(route.request.post_data)
        body["data"] = [asked if value == "tiny" else value for value in body["data"]]
        route.continue_(post_data=json.dumps(body))

    page.route("**/queue/join*", change)
    traffic = Traffic(page)
    page.click("#run")
    traffic.answered()
    assert state(page)["board"] == "stored-opening"
    page.unroute("**/queue/join*")
    page.click("#run")
    wait_said(page, "Done")
    context.close()


# ------------------------------------------------------------------------------ without a browser


def offer(folders, *labels):
    return Models({label: str(folders / label) for label in labels})


def test_a_model_is_loaded_once_and_behind_the_page(folders):
    models = offer(folders, "broken", "small-dream")
    with models.one_load:  # nothing can be loaded meanwhile
        for _ in range(2):
            with pytest.raises(Loading, match="Loading small-dream. Press Run when it is"):
                models.get("small-dream")
        at_work = [thread for thread in threading.enumerate() if thread.name == "load small-dream"]
        assert len(at_work) == 1
        seen = models.watch("small-dream")
        assert next(seen) == "Loading small-dream."
    assert all(text.startswith("Loading small-dream: reading ") for text in seen)
    assert models.get("small-dream") is models.get("small-dream")
    assert models.state["small-dream"] == "small-dream is loaded."
    assert list(models.watch("small-dream")) == []


def test_the_first_model_is_waited_for(folders):
    model = offer(folders, "small-dream").get("small-dream")
    assert model.config.name == "small-dream"


def test_a_model_that_failed_can_be_tried_again(folders, tmp_path):
    folder = write_checkpoint(tmp_path / "late", "dream")
    (folder / "config.json").rename(folder / "elsewhere")
    models = Models({"late": str(folder) + "/"})
    with pytest.raises(
        ValueError, match="^The model late cannot be loaded: late has no config.json. Choose"
    ):
        models.get("late")
    (folder / "elsewhere").rename(folder / "config.json")
    assert models.get("late").config.family == "dream"


def test_only_offered_models_are_loaded(folders):
    models = offer(folders, "small-dream")
    for asked in ("broken", str(folders / "broken"), "", None, ["small-dream"]):
        with pytest.raises(ValueError, match="this page offers small-dream: choose one"):
            models.get(asked)
    assert models.state == {}


def test_a_trace_finds_the_model_that_made_it(folders):
    models = offer(folders, "small-dream")
    model = models.get("small-dream")
    assert models.like(model.config) is model
    assert models.like(d2cache.CONFIGS["tiny"]) is None


def test_what_a_host_lists_is_offered(folders):
    tiny, dream = "tiny", str(folders / "small-dream")
    assert offered_models(f" {dream}/ ,tiny, a/b,") == {
        "small-dream": f"{dream}/",
        "tiny": tiny,
        "a/b": "a/b",
    }
    alone = offered_models(None)
    assert next(iter(alone)) == "tiny" and offered_models("") == alone


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (" , ", "it names no model; give tiny, hub ids or folders, by commas"),
        ("tiny,nothing", "no model folder at 'nothing'; give 'tiny', a hub id such as"),
        ("/nowhere", "no model folder at '/nowhere'"),
        ("tiny,tiny", "two models are called 'tiny'"),
        ("{root}", "has no config.json"),
    ],
)
def test_a_wrong_list_is_refused(folders, listed, says):
    with pytest.raises(ValueError, match=says):
        offered_models(listed.format(root=folders))


def test_a_wrong_list_stops_the_page_at_its_start_in_one_line():
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=browser.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"D2CACHE_MODELS": "tiny,nothing"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("D2CACHE_MODELS: no model folder at 'nothing'; give 'tiny', ")
