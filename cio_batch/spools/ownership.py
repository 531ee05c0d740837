"""Who owns a spool: a lock on a file beside it, which the kernel lets go when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Self

from cio_batch.errors import SpoolLockedError


class Ownership:
    """The lock, as long as it is held; it names its owner by pid.

    ``flock`` and not a pid alone: a pid that is left behind by a crash may belong to somebody else by now.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, spool: Path) -> Self:
        """Take it.

        Raises:
            SpoolLockedError: Somebody else has it.
            OSError: The file of the lock cannot be made.
        """
        descriptor = os.open(f"{spool}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 20, 0)
            os.close(descriptor)
            pid = int(text) if text.isdigit() else None
            raise SpoolLockedError(_describe(spool, pid), pid=pid) from None
        except BaseException:
            os.close(descriptor)
            raise
        with contextlib.suppress(OSError):  # on a full disk it stays without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d" % os.getpid(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let it go."""
        os.close(self._descriptor)


def _describe(spool: Path, pid: int | None) -> str:
    if pid == os.getpid():
        owner = "another tracker of this process"
    else:
        owner = "another process" if pid is None else f"the process {pid}"
    return (
        f"the spool {spool.name} belongs to {owner}: a spool has one owner at a time; close that one first, or give "
        "each process (each worker of a server) a file of its own"
    )
