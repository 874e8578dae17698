"""Measure the page with many visitors at once: python -m analysis.tools.visitors [--counts 1,10,40]

Starts `python app.py`. Each visitor opens the page by a link that makes a live run, all at the same
moment, and reads what streams back, as a browser does. Prints for each count, over its visitors:
seconds to the first step (median and longest) and to the end (longest), the steps a second that one
of them sees (median) and that all make together, how many were told to wait, and how many were
refused. The prompts differ, so that no run is a stored one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import httpx

from analysis.tools import browser

API = "/gradio_api"
LONGEST = 600  # seconds that a visitor may take
STEP, WAITING, ENDED = '"k":"rec"', "Waiting: ", '"k":"end"'


@dataclass
class Visit:
    """What one visitor met; seconds since all of them came."""

    first: float | None = None  # the first step
    last: float | None = None  # the last one
    steps: int = 0
    waited: bool = False  # whether the page said so
    ended: bool = False

    @property
    def rate(self) -> float:
        if self.first is None or self.last is None or self.last <= self.first:
            return 0.0
        return (self.steps - 1) / (self.last - self.first)


def query(i: int, lane: str, gen_length: int) -> str:
    prompt = f"Tom has {i + 2} apples. He buys 3 bags of 4 apples. How many apples does Tom have?"
    return urlencode({"prompt": prompt, "gen": gen_length, "full": 1, "lane": lane})


@dataclass(frozen=True)
class Opened:
    """Gradio's event of a page that is opened: which function, and what the controls hold."""

    function: int
    values: list  # the first is the page's address
    stage: int  # Gradio's number of the stage, which also answers questions


async def opened_by(client: httpx.AsyncClient) -> Opened:
    config = (await client.get("/config")).json()
    parts = {one["id"]: one["props"] for one in config["components"]}
    (stage,) = (at for at, props in parts.items() if props.get("elem_id") == "stage")
    (load,) = (
        one
        for one in config["dependencies"]
        if any(event == "load" for _, event in one["targets"]) and stage in one["outputs"]
    )
    return Opened(load["id"], [parts[at].get("value") for at in load["inputs"]], stage)


async def visit(client: httpx.AsyncClient, event: Opened, asked: str, since: float) -> Visit:
    """Opens the page with a link and reads until its run has ended."""
    met, session = Visit(), secrets.token_hex(6)
    data = [asked, *event.values[1:]]
    body = {"data": data, "fn_index": event.function, "session_hash": session}
    joined = await client.post(f"{API}/queue/join", json=body)
    if joined.status_code != 200:
        return met
    async with client.stream("GET", f"{API}/queue/data?session_hash={session}") as stream:
        async for line in stream.aiter_lines():
            if not line.startswith("data:"):
                continue
            note(met, line, time.perf_counter() - since)
            if json.loads(line[5:])["msg"] == "process_completed":
                break
    return met


def note(met: Visit, line: str, now: float) -> None:
    """What a message of the stream says."""
    plain = line.replace('\\"', '"')  # the stage's message is text within the message
    met.waited |= WAITING in plain
    met.ended |= ENDED in plain
    if steps := plain.count(STEP):
        met.steps += steps
        met.first = now if met.first is None else met.first
        met.last = now


async def together(address: str, count: int, lane: str, gen_length: int) -> list[Visit]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=LONGEST, limits=limits) as client:
        event = await opened_by(client)
        since = time.perf_counter()
        asked = (query(i, lane, gen_length) for i in range(count))
        return await asyncio.gather(*(visit(client, event, one, since) for one in asked))


def row(count: int, met: list[Visit]) -> str:
    served = [one for one in met if one.first is not None]
    firsts = [one.first for one in served if one.first is not None]
    lasts = [one.last for one in served if one.last is not None]
    cells = (
        f"{count}",
        f"{statistics.median(firsts):.2f}",
        f"{max(firsts):.2f}",
        f"{max(lasts):.1f}",
        f"{statistics.median(one.rate for one in served):.1f}",
        f"{sum(one.steps for one in served) / max(lasts):.1f}",
        f"{sum(one.waited for one in met)}",
        f"{sum(not one.ended for one in met)}",
    )
    return f"| {' | '.join(cells)} |"


HEAD = """\
| visitors | first step, s | longest | all, s | steps/s each | together | waited | refused |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tools.visitors", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("--address", help="of a page that is served already")
    usual = "(default: %(default)s)"
    parser.add_argument("--counts", default="1,10,40", help=f"visitors at once {usual}")
    parser.add_argument("--lane", default="d2", help=f"what each runs {usual}")
    parser.add_argument("--gen-length", type=int, default=64, help=f"masks {usual}")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = stack.enter_context(browser.served(args.address, folder / "log"))
        asyncio.run(together(address, 1, args.lane, args.gen_length))  # loads the model
        print(HEAD, flush=True)
        for count in map(int, args.counts.split(",")):
            met = asyncio.run(together(address, count, args.lane, args.gen_length))
            print(row(count, met), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
