"""Files that a user asks for: whether they can be written is known before the work is done."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from pathlib import Path


def check(path: str | os.PathLike[str], what: str, size: int = 0) -> None:
    """Raises ValueError, one line, where no file of `size` bytes can be written.

    what: the file's content, for the message, such as "the trace".
    """
    try:
        reason = _reason_against(_target(path), size)
    except OSError as error:  # such as a name that is too long, or links in a circle
        reason = str(error.strerror)
    if reason:
        raise ValueError(f"cannot write {what} to {os.fspath(path)!r}: {reason}")


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that a path means: the end of its links."""
    return Path(os.path.realpath(path))


def _reason_against(target: Path, size: int) -> str:
    if target.is_dir():
        return "it is a folder; name a file in it"
    if not target.parent.is_dir():
        return f"there is no folder {str(target.parent)!r}; make it first"
    if target.exists() and not target.is_file():
        return "it is a pipe or a device; name a file"
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return os.strerror(errno.EACCES)
    if target.exists() and not os.access(target, os.W_OK):
        return os.strerror(errno.EACCES)
    if shutil.disk_usage(target.parent).free < size:
        return os.strerror(errno.ENOSPC)
    return ""


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file as a whole or not at all, through links, with the mode that the umask leaves.

    A file that is there is replaced only once all bytes are on the disk, and keeps its mode. Raises
    OSError; then what was there is still there.
    """
    target = _target(path)
    if target.exists() and not target.is_file():  # it would be replaced by a file
        kind = errno.EISDIR if target.is_dir() else errno.EINVAL
        raise OSError(kind, os.strerror(kind), os.fspath(path))
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        part.unlink(missing_ok=True)
