"""The real server over HTTP: strangers get one sentence, see nothing of other visitors, read no
file, and leave the server as it was."""

import json
import os
import re
import secrets
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from hostile import READ_ME, Hostile
from test_strangers import LONGEST, SEED, check_sentence

from analysis.page import gate
from analysis.tools import browser

SECRET = "Sort 91 17 53 38."  # the prompt of a visitor whom nobody else may see
API = "/gradio_api"
GROWTH = 30  # MB that inputs may leave behind when they come a second time
GUESSES = 40
MCP = find_spec("mcp") is not None  # comes with gradio[mcp]


class Visitor:
    """A client of the page, without a browser."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=60)
        self.session = secrets.token_hex(6)
        self.config = self.http.get("/config").json()
        self.seen = ""  # all that it was ever sent

    def component(self, name: str) -> int:
        every = self.config["components"]
        return next(one["id"] for one in every if one["props"].get("elem_id") == name)

    def ask(self, method: str, path: str, **how) -> httpx.Response:
        if "content" in how:
            how["headers"] = {"content-type": "application/json"}
        answer = self.http.request(method, path, **how)
        self.seen += answer.text
        return answer

    def question(self, name, **given) -> dict:
        body = {"data": json.dumps([name, given]), "component_id": self.component("stage")}
        body |= {"fn_name": "ask", "session_hash": self.session}
        return self.ask("POST", f"{API}/component_server", json=body).json()

    def event(self, index: int, data, event_data=None) -> list[dict]:
        """The messages that answer an event of the page."""
        body = {"data": data, "fn_index": index, "session_hash": self.session}
        answer = self.ask(
            "POST", f"{API}/queue/join", content=dumped(body | {"event_data": event_data})
        )
        if answer.status_code != 200:
            return [{"status": answer.status_code, "output": answer.json()}]
        messages = []
        with self.http.stream("GET", f"{API}/queue/data?session_hash={self.session}") as stream:
            for line in stream.iter_lines():
                self.seen += line
                if line.startswith("data: "):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] in ("process_completed", "unexpected_error"):
                        break
        return messages

    def event_of(self, name: str, kind: str, inputs: int) -> dict:
        """The event of a component with at least so many inputs."""
        target = [self.component(name), kind]
        every = [one for one in self.config["dependencies"] if target in one["targets"]]
        return next(one for one in every if len(one["inputs"]) >= inputs)

    def values(self, event: dict, **changed) -> list:
        """What the page would send with an event."""
        parts = {one["id"]: one["props"] for one in self.config["components"]}
        props = [parts[number] for number in event["inputs"]]
        return [changed.get(one.get("elem_id"), one.get("value")) for one in props]

    def run(self, prompt: str) -> list[dict]:
        event = self.event_of("run", "click", 10)
        return self.event(event["id"], self.values(event, prompt=prompt, gen_length=16))

    def follow(self, query: str) -> list[dict]:
        event = self.event_of("stage", "submit", 10)
        events = [e for e in self.config["dependencies"] if e["targets"] == event["targets"]]
        follow = next(e for e in reversed(events) if len(e["inputs"]) >= 10)
        return self.event(follow["id"], self.values(follow), {"query": query, "number": 1})


def dumped(value) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("doors") / "log"
    cache = tmp_path_factory.mktemp("cache")
    programs = {"GRADIO_MCP_SERVER": str(MCP)}
    with browser.server(log, GRADIO_TEMP_DIR=str(cache), **programs) as (address, _):
        yield address, cache


def memory(address: str) -> int:
    """MB in use by the server, a child of this process."""
    port = address.rpartition(":")[2]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"GRADIO_SERVER_PORT={port}\0" in (folder / "environ").read_text():
                kilobytes = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())[1]
                return int(kilobytes) >> 10
        except OSError:
            continue
    raise RuntimeError("the server is gone")


def check(answer: httpx.Response) -> None:
    """An answer, or a refusal in one sentence; never a fault."""
    assert answer.status_code < 500, (answer.request.url, answer.text[:200])
    assert "Traceback" not in answer.text and str(browser.ROOT) not in answer.text


def check_event(messages: list[dict]) -> None:
    told = messages[-1].get("output") or {"error": messages[-1].get("message")}
    if "error" in told:
        check_sentence(told["error"])
    assert "Traceback" not in json.dumps(messages)


def knock(visitor: Visitor, hostile: Hostile, count: int) -> None:
    """So many hostile inputs, through a door of the server each."""
    rng, events = hostile.rng, visitor.config["dependencies"]
    ends = ["run", "compare", "policies", "models", "nonesuch", "../x"]
    calls = ["run", "call", "call/v2", "api"]
    rest = ["queue/join", "cancel", "reset", "component_server", "stream/x", "upload", "vibe-edit"]
    for _ in range(count):
        match rng.randrange(6):
            case 0:
                path = f"{API}/{rng.choice(calls)}/{rng.choice(ends)}"
                body = {"data": rng.choice([hostile.value(), [hostile.value()] * rng.randrange(4)])}
                check(visitor.ask("POST", path, content=dumped(body)))
            case 1:
                event = rng.choice(events)
                values = [hostile.value() for _ in range(rng.choice([0, 1, len(event["inputs"])]))]
                body = {"data": values, "session_hash": visitor.session, "fn_index": event["id"]}
                body["event_data"] = hostile.value()
                check(visitor.ask("POST", f"{API}/run/predict", content=dumped(body)))
            case 2:
                event = visitor.event_of("stage", "submit", 10)
                values = visitor.values(event)
                values[rng.randrange(len(values))] = hostile.value()
                check_event(visitor.event(event["id"], values, hostile.plain()))
            case 3:
                junk = rng.choice(
                    [b"", b"{", b"null", b"\xff\xfe", b"[" * 900, dumped(hostile.value())]
                )
                check(visitor.ask("POST", f"{API}/{rng.choice(rest)}", content=junk))
            case 4:
                body = {"data": hostile.value(), "fn_name": rng.choice(["ask", "__init__", 5])}
                body["component_id"] = rng.choice([visitor.component("stage"), hostile.value()])
                body["session_hash"] = rng.choice([visitor.session, hostile.value()])
                check(visitor.ask("POST", f"{API}/component_server", content=dumped(body)))
            case 5:
                name = rng.choice([hostile.text(), "a.safetensors"]).encode("utf-8", "replace")
                file = {"files": (name.decode("latin-1"), rng.randbytes(99))}
                check(visitor.ask("POST", f"{API}/upload", files=file))


def test_hostile_requests_get_a_sentence_and_leave_no_memory_behind(server):
    address, _ = server
    visitor = Visitor(address)
    for _ in range(2):  # once what is loaded late is there, and everything was met before
        knock(visitor, Hostile(SEED + 20), 80)
    before = memory(address)
    knock(visitor, Hostile(SEED + 20), 80)
    assert memory(address) - before < GROWTH
    assert "Done" in json.dumps(Visitor(address).run("Sort 3 1 2.")[-2:])


def test_no_file_is_read_by_its_path(server):
    visitor = Visitor(server[0])
    upload = next(one for one in visitor.config["components"] if one["type"] == "uploadbutton")
    event = next(
        e for e in visitor.config["dependencies"] if [upload["id"], "upload"] in e["targets"]
    )
    for path in [*READ_ME, str(browser.ROOT / "app.py"), str(browser.ROOT / "assets/traces")]:
        told = visitor.event(event["id"], [{"path": path, "meta": {"_type": "gradio.FileData"}}])
        check_event(told)
        assert "error" in told[-1]["output"], path
        for form in (path, path.replace("/", "%2f"), f"..{path}"):
            got = visitor.ask("GET", f"{API}/file={form}", follow_redirects=False)
            assert got.status_code in (302, 403, 404) or "root:" not in got.text
    assert "root:" not in visitor.seen and "wire_endpoints" not in visitor.seen


def test_nobody_sees_anothers_prompt_run_or_file(server):
    address, cache = server
    owner, thief = Visitor(address), Visitor(address)
    told = json.dumps(owner.run(SECRET))
    assert SECRET in owner.seen or SECRET.replace(" ", "%20") in owner.seen
    (key,) = set(re.findall(r'"k\\+":\s*\\+"start\\+",\s*\\+"run\\+":\s*\\+"(\w+)', told)) or {""}
    assert re.fullmatch(r"[0-9a-f]{16}", key), told[:500]
    # the owner's own question is answered
    assert "error" not in owner.question("token", run=key, text="7")

    near = [key[:-1] + digit for digit in "0123456789abcdef" if digit != key[-1]]
    guesses = [*near, key.upper(), key[:8], "", "0", "board", "*", f"stored-{key}"]
    guesses += [secrets.token_hex(8) for _ in range(GUESSES)]
    for guess in guesses:
        assert "error" in thief.question("export", run=guess, what="html"), guess
    # even with the key, no lane can be added to what is another's
    thief.follow(f"branch={key}~1,refresh=all")
    thief.follow("trace=../../x")
    for session in (owner.session[:-1], "", "null", "undefined", owner.session.upper()):
        with thief.http.stream("GET", f"{API}/queue/data?session_hash={session}") as stream:
            thief.seen += next(stream.iter_lines(), "")
    saved = [file for file in cache.rglob("*") if file.is_file()]
    assert saved  # the owner's trace to download, which can be told only from its contents
    hidden = saved[0].relative_to(cache).parts[0]
    close = hidden[:-1] + ("1" if hidden.endswith("0") else "0")
    for path in (str(cache), f"{cache}/{hidden}", f"{cache}/{close}/{saved[0].name}"):
        assert thief.ask("GET", f"{API}/file={path}").status_code in (403, 404)
    for path in ("/monitoring", "/monitoring/summary", f"{API}/runs", f"{API}/queue/status"):
        thief.ask("GET", path)
    thief.ask("GET", "/config")
    thief.ask("GET", f"{API}/info")
    for part in (SECRET, SECRET.replace(" ", "%20"), "91 17 53", owner.session):
        assert part not in thief.seen


class Program:
    """A client that speaks the Model Context Protocol, or something like it."""

    def __init__(self, address: str):
        kinds = {"accept": "application/json, text/event-stream"}
        kinds["content-type"] = "application/json"
        self.http = httpx.Client(base_url=f"{address}{API}", headers=kinds, timeout=60)

    def send(self, body: bytes) -> dict:
        """The answer to a message; one that makes no sense is refused."""
        answer = self.http.post("/mcp/", content=body)
        check(answer)
        return json.loads(answer.text.rpartition("data: ")[2])

    def ask(self, method: str, **params) -> dict:
        return self.send(dumped({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))

    def call(self, name: str, given) -> tuple[str, bool]:
        """What a tool says, and whether it refuses."""
        told = self.ask("tools/call", name=name, arguments=given)
        if "error" in told:
            return told["error"]["message"], True
        (said,) = told["result"]["content"]
        return said["text"], told["result"]["isError"]


ASKED = {"prompt": "Sort 3 1 2.", "gen_length": 4}
MORE = {"policy": "d2", "decoder": "confidence", "block_length": 4, "seed": 1, "model": "tiny"}
MORE |= {"policy_knobs": {"current_k": 8}, "decoder_knobs": {"sigma": 2}}
ALSO = {"lanes": ["none", "d2,current_k=8/confidence,sigma=2"]}
GIVEN = {"run": ASKED | MORE, "compare": ASKED | ALSO}  # the others take nothing


def spoilt(hostile: Hostile, value):
    """A value of the same kind with a mistake in it, or now and then of any kind."""
    if hostile.rng.random() < 0.2:
        return hostile.value()
    match value:
        case str():
            return hostile.rng.choice([hostile.text(), hostile.broken(value)])
        case int():
            return hostile.rng.choice([-1, 0, 3, 300, 2**63, -(10**400)])
        case list():
            return [*value[:1], *(spoilt(hostile, one) for one in value)]
        case _:
            return {hostile.text(): hostile.value()} | {k: hostile.value() for k in value}


def arguments(hostile: Hostile, tool: str) -> dict:
    """Arguments of a tool with one of them spoilt, left out or added."""
    given = dict(GIVEN.get(tool, {}))
    name = hostile.rng.choice([*given, "nonesuch"])
    if hostile.rng.random() < 0.1:
        given.pop(name, None)
    else:
        given[name] = spoilt(hostile, given.get(name, ""))
    return given


@pytest.mark.skipif(not MCP, reason="needs gradio[mcp], as tests/requirements.txt has it")
def test_programs_get_an_answer_or_a_sentence_and_leave_the_server_as_it_was(server):
    address, _ = server
    program, hostile = Program(address), Hostile(SEED + 21)
    tools = [one["name"] for one in program.ask("tools/list")["result"]["tools"]]
    assert tools == ["run", "compare", "policies", "decoders", "models"]
    for name in [*["run"] * 60, *["compare"] * 30, *tools, *["models"] * 4, "../x"]:
        said, refuses = program.call(name, arguments(hostile, name))
        if refuses:
            check_sentence(said[:LONGEST])  # which may repeat what was sent, on one line
        assert "root:" not in said
    for junk in (b"", b"{", b"null", b"[" * 9000, b"\xff", dumped(hostile.value())):
        assert "error" in program.send(junk)
    for one in READ_ME:
        read = program.ask("resources/read", uri=one)
        assert "root:" not in json.dumps(read) and "error" in read
    said, refuses = program.call("run", GIVEN["run"])
    assert not refuses and "'steps': " in said


def test_a_large_upload_is_refused_before_it_is_here(server):
    address, cache = server
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        while sent < 700 << 20:
            sent += 1 << 20
            yield bytes(1 << 20)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    got = httpx.post(f"{address}{API}/upload", content=endless(), headers=kind, timeout=60)
    assert (got.status_code, got.text) == (413, gate.TOO_LARGE.format(64))
    assert sent < 100 << 20
    deadline = time.monotonic() + 10
    while (left := sum(f.stat().st_size for f in cache.rglob("*") if f.is_file())) > 20 << 20:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert os.path.isdir(cache)
