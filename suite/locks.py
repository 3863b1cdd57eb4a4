"""One writer at a time in a run folder: a lock that the system releases when its process dies."""

import errno
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import filelock
import psutil

from sae_lib.errors import BusyError

WRITER = ".lock"  # held while something is made
HEADLESS = ".run.lock"  # held by `python -m suite run`, whose notebooks take the other one
POLL = 0.2  # seconds between two tries
NO_LOCKS = {errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
_threads = threading.RLock()
_without_locks: set[Path] = set()


@contextmanager
def locked(folder: Path, name: str = WRITER, wait: bool = True) -> Iterator[None]:
    """Hold the lock `name` of `folder`; re-entrant in this process.

    Where another process holds it, one line says who, and this one waits, or raises `BusyError`
    with `wait` off. The lock file, and folders made for it, are gone afterwards.
    """
    path = folder.resolve() / name
    if int(os.environ.get("RANK", 0)) > 0:  # of torchrun's processes the first writes
        yield
        return
    with _threads:
        how = {"is_singleton": True, "thread_local": False, "fallback_to_soft": False}
        lock = filelock.FileLock(path, **how)
        if lock.is_locked:
            yield
            return
        new = [p for p in path.parents if not p.exists()]
        _acquire(lock, path, folder, wait)
        try:
            remove_leftovers(folder)
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            lock.release()
            for parent in new:
                with suppress(OSError):  # it is in use
                    parent.rmdir()


def _acquire(lock: filelock.FileLock, path: Path, folder: Path, wait: bool) -> None:
    told = ""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
            break
        except FileNotFoundError:  # the process before has just removed the folder
            continue
        except filelock.Timeout:
            holder = _holder(path)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if folder not in _without_locks:
                _say(
                    f"{folder}: this file system has no locks ({error.strerror}); "
                    "start no second process on this folder"
                )
            _without_locks.add(folder)
            return
        if not wait:
            raise BusyError(
                f"{folder} is in use by {holder or 'another process'}; wait until it has "
                "ended, or choose another folder with --run"
            )
        if holder and holder != told:
            _say(f"{folder}: waiting for {holder}, which is writing there; Ctrl-C ends this")
        told = holder or told
        time.sleep(POLL)
    if before := _holder(path):
        _say(f"{folder}: {before} ended without finishing; going on from what it left")
    _sign(path)


def _sign(path: Path) -> None:
    notebook = "ipykernel" in Path(sys.argv[0]).name
    command = "a notebook" if notebook else f"suite {' '.join(sys.argv[1:])}"[:300]
    since = datetime.now().isoformat(" ", "seconds")
    who = f"process {os.getpid()} on {socket.gethostname()} ({command}) since {since}"
    with suppress(OSError):  # a full disk: the lock holds, only its message is missing
        path.write_text(who, errors="replace")


def _holder(path: Path) -> str:
    """Who holds the lock and since when; empty where that is not written (yet)."""
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that have died were writing."""
    for path in folder.rglob(".*.partial"):
        host, _, rest = path.name.partition(f".{socket.gethostname()}.")
        pid = rest.partition(".")[0]
        if host and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
