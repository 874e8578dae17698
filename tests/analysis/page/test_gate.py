"""What one visitor may cost is bounded: requests, uploads while they arrive, lanes, exact passes,
places in the line; and each bound that is met is told in one sentence."""

import asyncio
import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from test_session import said, usual
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from analysis.page import gate
from analysis.page.bounds import NONE, AtOnce, Bounds, Rate, table
from analysis.page.host import Host
from analysis.page.line import Line
from analysis.page.query import Asked, Lane
from analysis.page.session import Session
from analysis.tools.browser import ROOT

LOCAL = Bounds.read({})
PEER = "10.0.0.1"  # in a network, as a Space's proxy is


def test_each_bound_has_a_variable_and_a_line_in_the_table_of_security_md():
    assert table() in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    read = Bounds.read({"D2CACHE_MOST_LANES": "3", "D2CACHE_MOST_REQUESTS": "7"})
    assert (read.lanes, read.requests) == (3, 7)


def test_a_page_for_its_own_machine_is_not_held_up():
    assert {LOCAL.runs, LOCAL.requests, LOCAL.waiting, LOCAL.truth, LOCAL.hourly_mb} == {NONE}
    public = Bounds.read({"GRADIO_SERVER_NAME": "0.0.0.0"})
    assert public == Bounds() and NONE not in vars(public).values()


@pytest.mark.parametrize("text", ["-1", "7", "x", "1e3", "9" * 99, "0"])
def test_a_setting_that_cannot_be_names_its_variable(text):
    with pytest.raises(ValueError, match=r"^D2CACHE_MOST_LANES is .*whole number from 1 to 6$"):
        Bounds.read({"D2CACHE_MOST_LANES": text})


# ------------------------------------------------------------------------------ requests


class Server:
    """A gate before a page that reads all it is sent, and answers as it is told."""

    def __init__(self, status=200, body=b"{}", kind=b"application/json", space=False, **bounds):
        self.answer, self.read, self.fault = (status, body, kind), 0, None
        gated = gate.Gate(self.page, Bounds(**vars(LOCAL) | bounds), space)
        known = uvicorn.Config(gated)  # as Gradio makes it
        self.gate = ProxyHeadersMiddleware(gated, known.forwarded_allow_ips)

    async def page(self, scope, receive, send):
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            self.read += len(message.get("body", b""))
        if self.fault:
            raise self.fault
        status, body, kind = self.answer
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def ask(
        self, path="/gradio_api/queue/join", chunks=(b"{}",), method="POST", peer=PEER, **headers
    ):
        """-> status and body of the answer."""
        parts, sent = list(chunks), []

        async def receive():
            if not parts:
                return {"type": "http.disconnect"}
            body = parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(parts)}

        async def send(message):
            sent.append(message)

        named = [(k.replace("_", "-").encode(), str(v).encode()) for k, v in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": named}
        scope["client"] = (peer, 1)
        asyncio.run(self.gate(scope, receive, send))
        return sent[0]["status"], b"".join(one.get("body", b"") for one in sent).decode()


def many(megabytes: int):
    return (bytes(1 << 20) for _ in range(megabytes))


@pytest.mark.parametrize("headers", [{"content_length": 700 << 20}, {}])
def test_a_large_upload_is_refused_while_it_arrives(headers):
    server = Server()
    status, told = server.ask("/gradio_api/upload", many(80), **headers)
    assert (status, told) == (413, gate.TOO_LARGE.format(64))
    assert server.read <= 65 << 20 if not headers else server.read == 0


def test_only_an_upload_may_be_large_and_only_an_upload_holds_files():
    server = Server()
    status, told = server.ask(chunks=many(3))
    assert status == 413 and json.loads(told) == both(gate.TOO_LONG)
    kind = "multipart/form-data; boundary=x"
    assert server.ask("/gradio_api/component_server", content_type=kind)[0] == 415
    assert server.ask("/gradio_api/upload", content_type=kind) == (200, "{}")


def both(words: str) -> dict:
    return json.loads(gate._said({"path": "/"}, words, 400).body)


def test_what_all_upload_in_an_hour_is_bounded_and_so_is_what_one_does():
    server = Server(hourly_mb=3, all_hourly_mb=5)
    told = [server.ask("/gradio_api/upload", many(2), peer=who) for who in "aabcc"]
    assert [status for status, _ in told] == [200, 429, 200, 429, 429]
    assert told[1][1] == gate.TOO_MUCH and told[3][1] == gate.FULL


def test_requests_of_an_address_are_counted_and_reading_the_page_is_not():
    server = Server(requests=3)
    assert statuses(server, ["8.8.8.8"] * 3) == [200] * 3
    status, told = server.ask(peer="8.8.8.8")
    assert status == 429 and "more than 3 requests a minute" in json.loads(told)["detail"]
    assert server.ask(peer="8.8.8.9")[0] == 200
    assert server.ask("/", method="GET", peer="8.8.8.8")[0] == 200


def statuses(server: Server, peers, passed_on=None) -> list[int]:
    """passed_on: what proxies say, one for each peer."""
    said = [{"x_forwarded_for": one} for one in passed_on] if passed_on else [{}] * len(peers)
    return [server.ask(peer=peer, **one)[0] for peer, one in zip(peers, said, strict=True)]


INVENTED = [f"9.9.9.{i}" for i in range(3)]


def test_who_comes_directly_cannot_choose_an_address():
    for peer in ("8.8.8.8", PEER):
        assert statuses(Server(requests=2), [peer] * 3, INVENTED) == [200, 200, 429]


def test_a_proxy_on_the_same_machine_is_believed_and_what_stands_before_its_word_is_not():
    """nginx adds its visitor's address at the end, and Gradio's Node passes it on as it is."""
    for proxy in ("127.0.0.1", "::1"):
        told = [f"{one}, 8.8.8.8" for one in INVENTED] + ["8.8.8.8, 8.8.4.4"]
        assert statuses(Server(requests=2), [proxy] * 4, told) == [200, 200, 429, 200]


def test_on_a_space_the_last_public_address_is_the_visitors(monkeypatch):
    told = [f"{one}, 8.8.8.8, 10.1.2.{i}" for i, one in enumerate(INVENTED)]
    told += ["8.8.8.8, 8.8.4.4, 10.1.2.3"]
    for proxy in ("127.0.0.1", PEER):  # with Node in front, or without
        assert statuses(Server(requests=2, space=True), [proxy] * 4, told) == [200, 200, 429, 200]
    assert statuses(Server(requests=1, space=True), [PEER] * 2, ["x", ","]) == [200, 429]
    assert not gate.gate(LOCAL).kwargs["on_space"]
    monkeypatch.setenv("SPACE_ID", "someone/d2cache")
    assert gate.gate(LOCAL).kwargs["on_space"]


def test_whoever_has_a_long_address_has_many_of_them_and_counts_as_one():
    nearby = ["2600:1f00:1:2::1", "2600:1f00:1:2:a::9", "2600:1f00:1:3::1"]
    assert statuses(Server(requests=1), nearby) == [200, 429, 200]
    assert statuses(Server(requests=1), ["8.8.8.8", "::ffff:8.8.8.8"]) == [200, 429]


def test_a_fault_is_one_sentence_and_a_sentence_of_the_page_stays():
    server = Server(500, b"Internal Server Error")
    status, told = server.ask()
    assert status == 400 and json.loads(told) == both(gate.NO_ANSWER)
    server = Server(500, b'{"error": "gen_length is 0"}')
    assert json.loads(server.ask()[1])["error"] == "gen_length is 0"
    server = Server()
    server.fault = KeyError("Traceback")
    assert server.ask()[0] == 400 and "Traceback" not in server.ask()[1]
    told = b'data: {"output":{"error":null},"text":"\\"output\\":{\\"error\\":null"}\n\n'
    server = Server(200, told, b"text/event-stream; charset=utf-8")
    spoken = json.loads(server.ask()[1][6:])
    assert spoken["output"]["error"] == gate.NO_ANSWER
    assert spoken["text"] == '"output":{"error":null'


@pytest.mark.parametrize("path", ["monitoring/summary", "gradio_api/vibe-edit", "monitoring"])
def test_what_the_page_has_no_use_for_is_shut(path):
    assert Server().ask("/" + path, method="GET")[0] == 404


# ------------------------------------------------------------------------------ runs


def test_a_rate_starts_again_after_its_time():
    now = [0.0]
    rate = Rate(2, 60, lambda: now[0])
    assert [rate.add("a"), rate.add("a"), rate.add("a"), rate.add("b")] == [True, True, False, True]
    now[0] = 60.0
    assert rate.add("a", 2) and not rate.add("a")


def test_only_so_many_are_at_once():
    several = AtOnce(1, "wait")
    with several, pytest.raises(ValueError, match="wait"), several:
        pass
    with several:
        assert several.open == 1
    assert several.open == 0


def test_lanes_answers_and_exact_passes_are_bounded():
    lanes = tuple(Lane(one) for one in ("none", "d2", "dkv"))
    few = Bounds(lanes=2, answer=32, truth=64)
    few.check(Asked("x", lanes[:2], gen_length=32, truth=True), 2)
    for asked, count, says in (
        (Asked("x", lanes), 3, "allows 2 lanes, and there would be 3: take fewer"),
        (Asked("x", lanes[:1]), 1, "allows 32 masks in an answer, and there would be 64"),
    ):
        with pytest.raises(ValueError, match=says):
            few.check(asked, count)
    with pytest.raises(ValueError, match=r"allows 64 masks with truth on.*switch it off"):
        Bounds(truth=64).check(Asked("x", lanes[:1], gen_length=65, truth=True), 1)


def test_a_visitor_is_told_which_bound_was_met():
    host = Host({"tiny": "tiny"}, Bounds(lanes=2, runs=2, truth=64, waiting=1))
    session = Session(host, "visitor")
    assert "allows 64 masks with truth" in said([*session.run(usual(gen_length=72, truth=True))])[0]
    assert host.boards.of("visitor") is None
    assert said([*session.compare(usual(lanes=["none", "d2"]))])[1] != "error"
    assert "allows 2 lanes" in said([*session.add_lane(usual(policy="dkv"))])[0]
    assert "starts 2 lanes a minute" in said([*session.run(usual())])[0]
    assert len(host.boards.of("visitor").runs) == 2  # which is still there
    host.line.join("another")
    other = said([*Session(host, "third").run(usual())])[0]
    assert other == "The line is full, with 1 before you: try again in a minute."
    assert not host.boards.of("third").running or host.boards.of("third").paused


def test_a_line_without_a_bound_has_room():
    line = Line()
    assert len({id(line.join(str(i))) for i in range(300)}) == 300


def test_files_to_download_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("analysis.page.host.KEPT_FILES", 2)
    host = Host({"tiny": "tiny"})
    session = Session(host, "visitor")
    saved = [list(session.run(usual()))[-1]["download"] for _ in range(4)]
    there = [re.sub(r".*/", "", one) for one in saved if (ROOT / one).exists()]
    assert len(there) == 2 and saved[-1].endswith(there[-1])


def test_runs_that_end_at_the_same_time_are_all_saved(monkeypatch):
    monkeypatch.setattr("analysis.page.host.KEPT_FILES", 2)
    host = Host({"tiny": "tiny"})
    list(Session(host, "visitor").run(usual()))
    run = host.boards.of("visitor").runs[0]
    runs = [dataclasses.replace(run, key=f"{i:06}") for i in range(200)]
    with ThreadPoolExecutor(8) as at_once:
        saved = list(at_once.map(host.save, runs))
    assert len(set(saved)) == 200 and len(list(Path(host.files.name).iterdir())) == 2
