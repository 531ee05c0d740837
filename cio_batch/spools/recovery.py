"""What is done with a spool's file that is damaged, of an older version, or gone: every row that can be read is kept.

Rules:

1. The new file is complete before the old one is touched; a crash in between leaves one of them whole.
2. A damaged file is never deleted: it is kept beside the new one, as ``<name>.damaged-<time>``.
3. Rows that are no operation any more go into the new file's quarantine; what cannot be reached at all stays in the
   file that was kept, and its log line says so.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from pathlib import Path
from typing import Final

from cio_batch.spools.database import Database

_logger = logging.getLogger(__name__)
_SIDES: Final = ("", "-wal", "-shm")


def restore_interrupted(path: Path) -> None:
    """Finish, or forget, a rebuild that a crash interrupted."""
    fresh = Path(f"{path}.rebuild")
    if not fresh.exists():
        return
    if path.exists():
        for side in _SIDES:
            Path(f"{fresh}{side}").unlink(missing_ok=True)
    else:
        fresh.replace(path)


def rebuild(path: Path, readable: Database | None, now: float) -> None:
    """Write the file anew.

    Args:
        path: The file.
        readable: A connection that still reads what stood there; ``None`` to open the damaged file for that.
        now: Unix seconds.

    Raises:
        sqlite3.Error, OSError: The new file cannot be written; the old one is as it was.
    """
    fresh = Path(f"{path}.rebuild")
    for side in _SIDES:
        Path(f"{fresh}{side}").unlink(missing_ok=True)
    target = Database(fresh)
    try:
        with contextlib.suppress(sqlite3.DatabaseError):
            source = Database(path) if readable is None else readable
            _copy(source, target)
    finally:
        target.close()
    if readable is None:
        kept = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}"
        for side in _SIDES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{side}").replace(f"{kept}{side}")
        _logger.error("the damaged file of the spool was kept as %s", Path(kept).name)
    fresh.replace(path)


def _copy(source: Database, target: Database) -> None:
    after = 0
    while True:
        operations, _ = source.page(after, 1_000, 1_000_000)
        if not operations:
            return
        target.write(operations, (), (), time.time())
        after = operations[-1][3]
