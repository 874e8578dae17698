"""A thousand hostile or broken inputs, through every door of the page: each gets an answer or one
sentence, nothing is run, nothing is read outside the page's own folders, and memory stays flat."""

import functools
import itertools
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from hostile import CANARY, Hostile
from test_session import usual as usual_now

from analysis.page import lessons, stored
from analysis.page.endpoints import Endpoints, one_line
from analysis.page.host import Host
from analysis.page.query import Lane, Link
from analysis.page.session import Session
from analysis.tools.browser import ROOT
from d2cache import CachePolicy, Edit

SEED = int(os.environ.get("D2CACHE_HOSTILE_SEED", "0"))  # another one makes other inputs
LONGEST = 1000  # characters of a sentence
# What a process may open: Python and its packages, the page's folder, temporary files, and what
# Linux tells of the machine.
OPEN = [ROOT, tempfile.gettempdir(), sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib")]
OPEN += ["/sys", "/proc/cpuinfo", "/proc/meminfo", "/dev/null", "/dev/urandom"]
PATHS = (str(ROOT), "site-packages", tempfile.gettempdir())  # that no visitor is told of
RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork")
RUNS += ("pickle.find_class",)
QUERY = (
    "prompt=Sort 5 2 9 1.&gen=16&block=8&seed=3&full=0&truth=0&turns=1"
    "&lane=d2,current_k=4/margin,sigma=0~2,3=7,refresh=1.2&lane=none&tab=cache&at=3&see=1"
)
EDIT = "2,5=7,refresh=1.2,policy.current_k=4,decoder.sigma=0.5"
TEST = "step = 14 and lane = 1 or hit_rate >= 80% and policy.current_k < 16"


usual_values = functools.cache(usual_now)


def usual(**changed) -> dict:
    """The values of all controls, but for these."""
    return usual_values() | changed


class Told(Exception):
    """What a caller of an endpoint is told."""


class Watch:
    """What this process opens and runs while it is on: an audit hook cannot be taken away."""

    def __init__(self):
        self.on, self.seen = False, []
        self.allowed = tuple(str(Path(one).resolve()) for one in OPEN)
        sys.addaudithook(self.hook)

    def hook(self, event, given):
        if not self.on or event not in (*RUNS, "open", "socket.connect"):
            return
        if event != "open":
            self.seen.append((event, str(given)))
        elif isinstance(given[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(given[0]))
            if not path.startswith(self.allowed):
                self.seen.append((event, path))


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.fixture(autouse=True)
def nothing_run_or_read(watch):
    watch.seen.clear()
    watch.on = True
    yield
    watch.on = False
    assert not watch.seen
    assert not Path(CANARY).exists() and not (ROOT / CANARY).exists()


@pytest.fixture(scope="module")
def host():
    host = Host({"tiny": "tiny"})
    host.models.get("tiny")
    return host


@pytest.fixture
def session(host):
    yield Session(host, "stranger")
    host.boards.drop("stranger")


def check_sentence(text):
    """One sentence for a visitor: one line, no traceback, no path of this machine."""
    wrong = f"not one sentence: {text!r:.200}"
    assert isinstance(text, str) and 0 < len(text) <= LONGEST, wrong
    assert not [one for one in ("\n", "Traceback", *PATHS) if one in text], wrong


def told(changes, most=3):
    """What a visitor sees of the first changes of an event; then the visitor leaves."""
    stream = iter(changes)
    for change in itertools.islice(stream, most):
        if "said" in change:
            check_sentence(change["said"][0])
        if "board" in change:
            json.loads(change["board"])
    if hasattr(stream, "close"):
        stream.close()


def refused(make, *given) -> bool:
    """Whether something raises ValueError with one sentence; any other exception is a fault."""
    try:
        make(*given)
    except ValueError as error:
        check_sentence(str(error))
        return True
    return False


def test_links(session):
    hostile, count = Hostile(SEED + 1), 0
    for _ in range(200):
        query = hostile.broken(hostile.rng.choice([QUERY, f"trace=d2-word&{QUERY}", QUERY[:60]]))
        if hostile.rng.random() < 0.1:
            query = hostile.value()
        count += refused(Link.parse, query)
        told(session.fill(query, usual()))
        told(session.follow(query, usual()))
    assert 20 < count < 180  # some are nonsense, some are not


def test_prompts_and_knobs(session):
    hostile = Hostile(SEED + 2)
    names = list(usual())
    for _ in range(100):
        several = hostile.rng.sample(names, hostile.rng.randint(1, 3))
        values = usual()
        values |= {name: hostile.value() for name in several}
        told(session.look_over(values))
        doing = hostile.rng.choice([session.run, session.compare, session.add_lane, session.step])
        told(doing(values))
        policy, length = hostile.value(), hostile.value()
        told(session.choose_policy(policy, length))
        told(session.choose_policy(hostile.rng.choice(["d2", "dual"]), length))
        told(session.draw(hostile.value()))
        told(session.choose_preset(hostile.value()))
        told(session.choose_model(hostile.value()))
        told(session.await_model(hostile.value()))
        told(session.open_stored(hostile.value()))


def test_uploads(session, tmp_path):
    hostile = Hostile(SEED + 3)
    files = sorted(stored.LANES.glob("*.safetensors")) + sorted(stored.LANES.parent.glob("*.saf*"))
    good = [one.read_bytes() for one in hostile.rng.sample(files, 6)]
    path = tmp_path / "t.safetensors"
    for _ in range(150):
        path.write_bytes(hostile.trace(hostile.rng.choice(good)))
        told(session.upload(str(path)))
    for strange in (None, 5, "", str(tmp_path), "/nowhere", "\0", "a" * 5000):
        told(session.upload(strange))


def test_edits_and_what_ifs(session):
    hostile = Hostile(SEED + 4)
    list(session.run(usual()))
    (run,) = session.board.runs
    for _ in range(150):
        edit = hostile.broken(EDIT, ",=.~")
        refused(Edit.parse, edit)
        key = hostile.rng.choice([run.key, run.key, hostile.broken(run.key)])
        told(session.follow(f"branch={key}~{edit}", usual()))


def test_questions(host, session):
    hostile = Hostile(SEED + 5)
    list(session.run(usual()))
    asks, key = host.questions, session.board.runs[0].key
    right = [
        ["attention", {"run": key, "step": 3, "layer": 2}],
        ["life", {"run": key, "position": 4}],
        ["export", {"run": key, "what": "html", "view": {"at": 1, "tab": "cache"}}],
        ["token", {"run": key, "text": "7", "mask": False}],
        ["figures", {"run": key}],
        ["sigmas", {"run": key}],
    ]
    for _ in range(120):
        question = hostile.rng.choice(right[:4])
        name, given = question[0], dict(question[1])
        for one in hostile.rng.sample(list(given), hostile.rng.randint(0, len(given))):
            given[one] = hostile.value()
        if hostile.rng.random() < 0.2:
            given[hostile.text()] = hostile.value()
        text = json.dumps([name, given])
        if hostile.rng.random() < 0.4:
            text = hostile.broken(json.dumps(hostile.rng.choice(right)), '"[]{},:')
        answer = asks.answer(hostile.value() if hostile.rng.random() < 0.1 else text)
        json.dumps(answer, allow_nan=False)
        if "error" in answer:
            check_sentence(answer["error"])


def test_endpoints(host):
    hostile, ends = Hostile(SEED + 6), Endpoints(host)
    for _ in range(150):
        given = {"prompt": hostile.rng.choice(["Sort 3 1 2.", hostile.value()]), "gen_length": 8}
        end = hostile.rng.choice([ends.run, ends.compare])
        more = ["gen_length", "block_length", "seed", "model"]
        if end == ends.run:
            more += ["policy", "decoder", "policy_knobs", "decoder_knobs"]
        else:
            lane = hostile.broken("d2,current_k=4/margin,sigma=0")
            given["lanes"] = hostile.rng.choice([[lane], [lane, "none"], hostile.value()])
        for name in hostile.rng.sample(more, hostile.rng.randint(0, 3)):
            given[name] = hostile.value()
        if given["gen_length"] == 256:
            given["gen_length"] = 8
        try:
            answer = one_line(end, Told)(**given)
            json.dumps(answer, allow_nan=False)
        except Told as error:
            check_sentence(str(error))


def test_the_grammars_of_lessons_lanes_and_knobs(tmp_path):
    hostile, count = Hostile(SEED + 7), 0
    folder = tmp_path / "lessons"
    shutil.copytree(lessons.FOLDER, folder)
    texts = {one: one.read_text(encoding="utf-8") for one in sorted(folder.glob("*.md"))}
    terms = lessons.glossary(folder / "glossary.md")
    for _ in range(120):
        count += refused(lessons.condition, hostile.broken(TEST, "=<>!%."))
        count += refused(Lane.parse, hostile.broken("d2,current_k=4/margin,sigma=0~1,5=6"))
        refused(CachePolicy.registry["d2"], *[hostile.value()][: hostile.rng.randrange(2)])
        file = hostile.rng.choice(list(texts))
        broken = hostile.broken(texts[file], "@#*[]()|:-\n").encode("utf-8", "replace")
        (folder / file.name).write_bytes(broken)
        match file.stem:
            case "glossary" | "prompts":
                refused(lessons.glossary, file)
            case "presets":
                refused(lessons.presets, file)
            case _:
                refused(lambda file: lessons._Reader(file, terms).lesson(), file)
        (folder / file.name).write_text(texts[file], encoding="utf-8")
    assert 60 < count
