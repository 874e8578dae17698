"""How fast a checkpoint loads: python -m analysis.loading FOLDER [--shape llada-8b] [--device cuda]

Prints for `d2cache.load` in a new process: seconds, bytes per second, and the peak of the host
memory of its own that the process took (without pages of the files, which the system may drop).
Once with the files dropped from memory, as far as the system allows, and once right after. With
--shape a checkpoint of that shape with random bfloat16 weights is written to FOLDER first, in
shards of 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import torch

import d2cache
from analysis.bench import random_model, sync
from d2cache import command, models, weights
from d2cache.model import CONFIGS

SHARD = 5_000_000_000  # bytes, about the size of shards on the hub


def own_memory() -> int:
    """Bytes in memory that belong to this process alone, as Linux reports them."""
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def load_here(folder: str, device: str) -> dict:
    """Load in this process -> seconds, bytes of the weights, peak of own memory above the start."""
    devices = models.pick_devices(device)
    for one in devices:
        torch.zeros(1, device=one)  # the memory of a GPU's driver does not count
    seen, loaded = [own_memory()], threading.Event()

    def watch():
        while not loaded.wait(0.005):
            seen.append(own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        begin = time.perf_counter()
        model = d2cache.load(folder, device)
        for one in devices:
            sync(one)
        seconds = time.perf_counter() - begin
    finally:
        loaded.set()
        watcher.join()
    size = sum(p.nbytes for p in model.parameters())
    return {"seconds": seconds, "bytes": size, "peak_bytes": max(seen) - seen[0]}


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its memory."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def parse(argv=None) -> Namespace:
    parser = command.Parser(prog="python -m analysis.loading", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path)
    add("--shape", choices=list(CONFIGS), help="write a checkpoint of this shape first")
    add("--device", default="auto", help="cuda:0,cuda:1 spreads one model over both")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def check(args: Namespace) -> None:
    """Raises ValueError for what cannot be measured."""
    if not sys.platform.startswith("linux"):
        raise ValueError("the memory of a process is read from Linux's /proc; run it on Linux")
    models.pick_devices(args.device)
    if args.shape and args.folder.exists() and any(args.folder.iterdir()):
        raise ValueError(f"{args.folder} is not empty; name a new folder for --shape")


def write(args: Namespace) -> None:
    """The checkpoint of --shape."""
    model = random_model(args.shape, models.pick_devices(args.device), torch.bfloat16)
    weights.save(model, args.folder, torch.bfloat16, SHARD)


def load_in_a_process(args: Namespace) -> dict:
    """`load_here` in a new process; CalledProcessError if that fails."""
    command = [sys.executable, "-m", "analysis.loading", str(args.folder), "--here"]
    child = subprocess.run(
        [*command, "--device", args.device], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])


def table(args: Namespace) -> None:
    """Measure and print; the last line is JSON with --json."""
    files = sorted(args.folder.glob("*.safetensors"))
    stored = sum(path.stat().st_size for path in files)
    print(f"{args.folder}: {len(files)} files, {stored / 1e9:.2f} GB, to {args.device}\n")
    print("files in memory  seconds    GB/s  peak host memory, GB")
    found = {}
    for name in ("dropped", "kept"):
        if name == "dropped":
            forget(args.folder)
        r = found[name] = load_in_a_process(args)
        print(
            f"{name:15} {r['seconds']:8.2f} {stored / r['seconds'] / 1e9:7.2f} "
            f"{r['peak_bytes'] / 1e9:21.3f}",
            flush=True,
        )
    if args.json:
        print(json.dumps({"stored_bytes": stored, "device": args.device, **found}))


def measure(args: Namespace) -> int:
    """What the flags ask for; returns the command's exit code."""
    if args.here:
        print(json.dumps(load_here(str(args.folder), args.device)))
        return command.DONE
    check(args)
    if args.shape:
        write(args)
    models.label(str(args.folder))
    try:
        table(args)
    except subprocess.CalledProcessError as error:  # it has said why
        return error.returncode
    return command.DONE


def main(argv=None) -> int:
    """Exit codes as of `d2cache.command.guarded`."""
    return command.guarded("loading", lambda: measure(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
