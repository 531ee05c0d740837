"""What is done with a spool's file that is damaged, of an older version, or gone: every row that can be read is kept.

Rules:

1. A new file is written beside the old one, as ``<name>.rebuilding``. When it is complete and on disk it is named
   ``<name>.rebuilt``, and only then is the old one touched. From there on there is no way back: whatever interrupts it,
   the next start puts the new file in its place.
2. A damaged file is never deleted: it is kept beside the new one, with its log, as ``<name>.damaged-<time>``.
3. An operation is taken from the damaged file if it fits its checksum. Where it is not certain whether it was
   acknowledged before (see ``pages``), it is kept: to send an event twice is harmless, to lose it is not. But one whose
   repeat could undo what followed is set aside in the table ``quarantine``.
4. What does not fit its checksum is set aside too. What cannot be reached at all stays in the file that was kept, and
   the log says how much that is.

What cannot be told from a damaged file: whether the last transaction was committed when the frame that ends it is
damaged or cut off; then it does not count. Which rows stood on a page whose head is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import attrs

from cio_batch.errors import InvalidOperationError
from cio_batch.operations import FINAL_KINDS, decode
from cio_batch.spools.database import MAX_NUMBER, ROOTS, Database, Kept, checksum
from cio_batch.spools.pages import Log, Pages, Record, Value

_logger = logging.getLogger(__name__)
_SIDES: Final = ("-wal", "-shm", "-journal")
_GROUP: Final = 1_000  # rows of the new file in one transaction


def is_log_damaged(path: Path) -> bool:
    """Whether SQLite would silently leave out a part of the write-ahead log, and overwrite it.

    Raises:
        OSError: The log cannot be read.
    """
    return Log.read(path).is_damaged


def rebuild(path: Path, readable: Database | None, now: float) -> None:
    """Write a complete new file beside the old one; :func:`finish` then puts it in its place.

    Args:
        path: The file. Nobody in this process may have it open, or only ``readable``.
        readable: A connection that still reads what stood there, of a file that was removed or replaced; ``None`` for
            a damaged file.
        now: Unix seconds.

    Raises:
        sqlite3.Error, OSError: The new file cannot be written; the old one is as it was.
    """
    fresh = Path(f"{path}.rebuilding")
    _remove(fresh)
    try:
        if readable is not None:
            readable.copy_to(fresh)
        else:
            target = Database(fresh, synchronous="NORMAL")
            try:
                found = _salvage(path, target, now)
                target.empty_log()
            finally:
                target.close()
            _logger.error(
                "the spool %s is damaged: %d operations and %d dead letters were read back, %d rows are set aside in "
                "its table quarantine, %d pages or rows could not be read",
                path.name,
                *attrs.astuple(found),
            )
        _sync(fresh)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(fresh)
        raise
    fresh.replace(f"{path}.rebuilt")
    sync_directory(path)


def finish(path: Path) -> None:
    """Put a new file in its place, or forget one that was not completed; nothing to do without one.

    Raises:
        OSError: It cannot be done now; it must be done before the file is opened.
    """
    done, fresh = Path(f"{path}.rebuilt"), Path(f"{path}.rebuilding")
    if not done.exists():
        if not fresh.exists():
            return
        if path.exists():
            _remove(fresh)
            return
        # The old file was removed while it was open, and a crash came after that: this is all that there is.
        with contextlib.suppress(sqlite3.Error):
            Database(fresh).close()
        fresh.replace(done)
    written = done.stat().st_mtime_ns  # the same name again after an interruption, another one each time
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(written // 1_000_000_000))
    kept = f"{path}.damaged-{stamp}.{written // 1_000 % 1_000_000:06}"
    names: list[str] = []
    for side in (*_SIDES, ""):  # a log that stayed would be applied to the new file
        with contextlib.suppress(FileNotFoundError):
            if side == "-shm":
                Path(f"{path}{side}").unlink()
                continue
            Path(f"{path}{side}").replace(f"{kept}{side}")
            with contextlib.suppress(OSError):
                Path(f"{kept}{side}").chmod(0o600)
            names.append(Path(f"{kept}{side}").name)
    done.replace(path)
    sync_directory(path)
    if names:
        _logger.error("the former file of the spool %s was kept as %s", path.name, " and ".join(names))


def sync_directory(path: Path) -> None:
    """Make the name of a file survive a loss of power, where the file system can do that."""
    with contextlib.suppress(OSError):
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    for side in ("", *_SIDES):
        Path(f"{path}{side}").unlink(missing_ok=True)


@attrs.define
class _Found:
    operations: int = 0
    dead_letters: int = 0
    set_aside: int = 0
    unreadable: int = 0


def _salvage(path: Path, target: Database, now: float) -> _Found:
    pages = Pages(path, ROOTS)
    found = _Found()
    try:
        for in_doubt in (False, True):  # in this order: what is certain stays
            rows = (row for record in pages.records(in_doubt=in_doubt) for row in _judge(record, in_doubt, now))
            for group in _groups(rows, _GROUP):
                if in_doubt:
                    group = [row for row in group if not target.holds(row.number)]
                kept = target.keep(group)
                found.operations += kept["operations"]
                found.dead_letters += kept["dead_letters"]
                found.set_aside += kept["quarantine"]
        found.unreadable = pages.unreadable
    finally:
        pages.close()
    return found


def _groups(rows: Iterable[Kept], size: int) -> Iterator[list[Kept]]:
    iterator = iter(rows)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _judge(record: Record, in_doubt: bool, now: float) -> Iterator[Kept]:
    """What becomes of a row; which table it stood in shows in the types of its columns.

    The number of an operation, or a dead letter, is the number of its row and not stored again.
    """
    match record.values:
        case (None, moment, int(check), bytes(body)):
            kept = Kept("operations", record.number, (record.number, _moment(moment, now), check, body))
        case (None, moment, str(refusals), int(check), bytes(body)):
            columns = (record.number, _moment(moment, None), refusals, check, body)
            kept = Kept("dead_letters", record.number, columns)
        case (int() | None as number, moment, str(reason), bytes() | str() | None as body):
            if not in_doubt:
                yield Kept("quarantine", 0, (number, _moment(moment, now), reason, body))
            return
        case _:
            return  # a row of the schema
    if not 0 < record.number < MAX_NUMBER or check != checksum(record.number, body):
        if not in_doubt:  # else it is what remains of a page that was used again
            yield Kept("quarantine", 0, (record.number, now, "damaged", body))
        return
    if in_doubt and kept.table == "operations" and _is_final(body):
        yield Kept("quarantine", record.number, (record.number, now, "in doubt", body))
        return
    yield kept


def _moment(value: Value, default: float | None) -> float | None:
    return value if isinstance(value, (int, float)) and 0 <= value < math.inf else default


def _is_final(body: bytes) -> bool:
    try:
        return decode(body).kind in FINAL_KINDS
    except InvalidOperationError:
        return False
