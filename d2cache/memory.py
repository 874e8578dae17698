"""What memory a device has left, and one sentence where it is too little."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class OutOfMemory(ValueError):
    """A run or a model needs more memory than there is; the message says what to do."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that a model could take on the device; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _system_numbers(Path("/proc/meminfo")).get("MemAvailable")
    if available is None:
        return None
    free = [available * 1024]
    for folder, limit, used, cache in (  # a container's own limit, cgroup versions 2 and 1
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        group = [_system_numbers(Path(folder, name)) for name in (limit, used, "memory.stat")]
        if all(group):
            free.append(group[0][""] - group[1][""] + group[2].get(cache, 0))
    return max(0, min(free))


def _system_numbers(path: Path) -> dict[str, int]:
    """Lines "name: 12 kB", "name 12" or "12" of a system file; {} if it cannot be read."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return {}
    found = re.findall(r"^(?:([\w()]+):?\s+)?(\d+)(?: kB)?$", text, re.MULTILINE)
    return {name: int(number) for name, number in found}


@contextmanager
def in_one_sentence(what: str, remedy: str) -> Iterator[None]:
    """Turn the out-of-memory errors of torch and numpy into `OutOfMemory`.

    what: what needed the memory. remedy: what to do about it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory: {what}; {remedy}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library ran out of memory: torch on a CPU raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in ("DefaultCPUAllocator", "allocate memory"))
