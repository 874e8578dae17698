"""What visitors leave behind: python -m analysis.tools.leavers [--visitors 200]

Starts `python app.py`. Visitors come, several at a time; each opens the page by a link that makes a
live run, some of them with exact passes (truth), and leaves:

    ended   reads its run to the end, then closes the tab
    closed  closes the tab in the middle of the run
    reset   its connections are reset in the middle of the run
    cut     its network is cut in the middle of the run: it reads nothing more and says nothing, and
            is gone without a word after some seconds

Prints, after the first visitors (which warm the server up) and after each further batch: the
server's resident memory (now, and at most so far), threads and open files, and how many boards are
kept of all visitors so far. The exit code is 1 where memory has grown by more than 5 % since the
warm-up, where a board is left, or more threads or files than a pool keeps idle. Linux only: it
reads /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import secrets
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from analysis.tools import browser
from analysis.tools.visitors import API, ENDED, LONGEST, STEP, Opened, opened_by, query

WAYS = ("ended", "closed", "reset", "cut")
CUT_SECONDS = 3.0  # until a visitor whose network was cut is gone
SETTLE_SECONDS = 4.0  # until what visitors left is expected to be gone
GROWTH = 0.05
IDLE = 8  # threads, or files, that come and go with the load
TCP_REPAIR = 19  # Linux: a socket in this mode is closed without a word to the other side
RUN_KEY = re.compile(r'"k":"start","run":"([0-9a-f]+)"')


@dataclass(frozen=True)
class Server:
    """The server's process, as the system sees it."""

    process: Path  # its folder in /proc

    @staticmethod
    def at(address: str) -> Server:
        """The process that was told to serve this address' port; RuntimeError if there is none."""
        wanted = f"GRADIO_SERVER_PORT={urlsplit(address).port}\0"
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_text(errors="replace"):
                    return Server(folder)
        raise RuntimeError(f"no process serves {address} with GRADIO_SERVER_PORT set")

    def counts(self) -> tuple[float, float, int, int]:
        """MB that are resident, and were at most; threads; open files."""
        status = (self.process / "status").read_text()

        def of(name: str) -> int:
            return int(re.findall(rf"{name}:\s+(\d+)", status)[0])

        files = len(list((self.process / "fd").iterdir()))
        return of("VmRSS") / 1024, of("VmHWM") / 1024, of("Threads"), files


@dataclass
class Crowd:
    """Visitors of one page, and the runs that they have had."""

    address: str
    event: Opened
    gen_length: int
    lane: str
    truth_every: int
    runs: list[str] = field(default_factory=list)

    async def visit(self, i: int) -> None:
        """One visitor, who leaves."""
        way = WAYS[i % len(WAYS)]
        asked = query(i, self.lane, self.gen_length)
        asked += "&truth=1" if i // len(WAYS) % self.truth_every == 0 else ""
        session = secrets.token_hex(6)
        client = httpx.AsyncClient(base_url=self.address, timeout=LONGEST)
        body = {"data": [asked, *self.event.values[1:]], "fn_index": self.event.function}
        sockets: list[socket.socket] = []
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(client)
            alive = client.stream("GET", f"{API}/heartbeat/{session}")
            sockets.append(socket_of(await stack.enter_async_context(alive)))
            await client.post(f"{API}/queue/join", json=body | {"session_hash": session})
            stream = client.stream("GET", f"{API}/queue/data?session_hash={session}")
            told = await stack.enter_async_context(stream)
            sockets.append(socket_of(told))
            lines = told.aiter_lines()  # kept: without it, the connection would be closed
            await self.read(lines, way)
            if way == "cut":
                await asyncio.sleep(CUT_SECONDS)
            for one in sockets:
                leave(one, way)

    async def read(self, lines: AsyncIterator[str], way: str) -> None:
        """Reads until the run has ended, or only its first step."""
        async for line in lines:
            plain = line.replace('\\"', '"')
            self.runs += RUN_KEY.findall(plain)
            if ENDED in plain or (way != "ended" and STEP in plain):
                return

    async def boards_left(self) -> int:
        """How many of all runs so far the server still has."""
        async with httpx.AsyncClient(base_url=self.address, timeout=LONGEST) as client:
            left = 0
            for run in set(self.runs):
                question = json.dumps(["token", {"run": run, "mask": True}])
                body = {
                    "data": question,
                    "component_id": self.event.stage,
                    "fn_name": "ask",
                    "session_hash": "leavers",
                }
                answer = await client.post(f"{API}/component_server/", json=body)
                left += "error" not in answer.json()
            return left


def socket_of(response: httpx.Response) -> socket.socket:
    """The socket of a response that is still read."""
    return response.extensions["network_stream"].get_extra_info("socket")


def leave(connection: socket.socket, way: str) -> None:
    """Makes the connection end in this way once it is closed."""
    if way == "reset":  # no lingering: closing resets it
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if way == "cut":
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)


async def crowd_of(address: str, args: argparse.Namespace) -> Crowd:
    async with httpx.AsyncClient(base_url=address, timeout=LONGEST) as client:
        event = await opened_by(client)
    return Crowd(address, event, args.gen_length, args.lane, args.truth_every)


async def batch(crowd: Crowd, first: int, count: int, at_once: int) -> None:
    """So many visitors, at most at_once at the same time."""
    room = asyncio.Semaphore(at_once)

    async def one(i: int) -> None:
        async with room:
            await crowd.visit(i)

    await asyncio.gather(*(one(first + i) for i in range(count)))
    await asyncio.sleep(SETTLE_SECONDS)


HEAD = """\
| visitors | s | resident, MB | peak, MB | threads | files | boards |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def measured(crowd: Crowd, server: Server, args: argparse.Namespace) -> bool:
    """Prints the table; whether nothing is left."""
    since, done, base = time.monotonic(), 0, None
    print(HEAD, flush=True)
    while done < args.warm_up + args.visitors:
        count = args.batch if done else args.warm_up
        asyncio.run(batch(crowd, done, count, args.at_once))
        done += count
        left = asyncio.run(crowd.boards_left())
        memory, peak, threads, files = server.counts()
        base = base or (memory, threads, files)
        seconds = time.monotonic() - since
        cells = f"{done} | {seconds:.0f} | {memory:.0f} | {peak:.0f} | {threads} | {files} | {left}"
        print(f"| {cells} |", flush=True)
    growth = memory / base[0] - 1
    print(f"memory {growth:+.1%}, threads {threads - base[1]:+}, files {files - base[2]:+}")
    spare = max(threads - base[1], files - base[2])
    return growth <= GROWTH and spare <= IDLE and not left


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tools.leavers", description=__doc__.splitlines()[0]
    )
    usual = "(default: %(default)s)"
    parser.add_argument("--visitors", type=int, default=200, help=f"after the warm-up {usual}")
    parser.add_argument("--warm-up", type=int, default=20, help=f"visitors before {usual}")
    parser.add_argument("--batch", type=int, default=20, help=f"visitors of one row {usual}")
    parser.add_argument("--at-once", type=int, default=10, help=f"visitors at a time {usual}")
    parser.add_argument("--lane", default="d2", help=f"what each runs {usual}")
    parser.add_argument("--truth-every", type=int, default=4, help=f"one in so many {usual}")
    parser.add_argument("--gen-length", type=int, default=32, help=f"masks {usual}")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address, _ = stack.enter_context(browser.server(folder / "log"))
        crowd = asyncio.run(crowd_of(address, args))
        return int(not measured(crowd, Server.at(address), args))


if __name__ == "__main__":
    sys.exit(main())
