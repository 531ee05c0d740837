"""Who owns a spool: a lock on a file beside it, which the kernel lets go when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import Final, Self

from cio_batch.errors import SpoolLockedError

_held: Final[dict[int, Ownership]] = {}
_taking: Final = threading.Lock()


class Ownership:
    """The lock, as long as it is held; it names its owner by pid.

    ``flock`` and not a pid alone: a pid that is left behind by a crash may belong to somebody else by now. A child
    process inherits the lock and would keep it after its parent's death, so that it is closed in each.
    """

    def __init__(self, descriptor: int, lock: Path) -> None:
        self._descriptor: int | None = descriptor
        self._lock = lock

    @classmethod
    def take(cls, spool: Path) -> Self:
        """Take it.

        Where the file of the lock cannot be made (the disk is full, or read-only), the lock is on the spool itself.

        Raises:
            SpoolLockedError: Somebody else has it.
            OSError: There is neither a spool nor a lock, and none can be made.
        """
        lock = Path(f"{spool}.lock")
        with _taking:  # a child that is forked meanwhile would not know of the descriptor
            while True:
                descriptor = _open(lock, spool)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found = cls(descriptor, lock)
                    if not found.holds and lock.exists():  # it was replaced in between
                        os.close(descriptor)
                        continue
                except BlockingIOError:
                    text = os.pread(descriptor, 20, 0)
                    os.close(descriptor)
                    pid = int(text) if text.isdigit() else None
                    raise SpoolLockedError(_describe(spool, pid), pid=pid) from None
                except BaseException:
                    os.close(descriptor)
                    raise
                if found.holds:
                    with contextlib.suppress(OSError):  # on a full or read-only disk it stays without a name
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, b"%d" % os.getpid(), 0)
                _held[id(found)] = found
                return found

    @property
    def holds(self) -> bool:
        """Whether it is still what another process would have to wait for."""
        if self._descriptor is None:
            return False
        try:
            named, own = self._lock.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def release(self) -> None:
        """Let it go."""
        _held.pop(id(self), None)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _open(lock: Path, spool: Path) -> int:
    try:
        return os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        for path in (lock, spool):
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY)
        raise error from None


def _close_in_child() -> None:
    for ownership in list(_held.values()):
        ownership.release()
    _taking.release()


os.register_at_fork(before=_taking.acquire, after_in_parent=_taking.release, after_in_child=_close_in_child)


def _describe(spool: Path, pid: int | None) -> str:
    if pid == os.getpid():
        owner = "another tracker of this process"
    else:
        owner = "another process" if pid is None else f"the process {pid}"
    return (
        f"the spool {spool.name} belongs to {owner}: a spool has one owner at a time; close that one first, or give "
        "each process (each worker of a server) a file of its own"
    )
