"""``cio-batch purge``: a person's operations and dead letters, removed from a spool or from files of dead letters.

Rules:

1. A spool belongs to one process at a time: this one must become it, so that nothing is sent that was to be removed.
2. No identifier is printed.
3. What was not looked into, because it cannot be read, is said; then the exit code is 1.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import attrs

from cio_batch.cli.dead_letters import cannot_read
from cio_batch.cli.letters import FAULTS, explain, forget, is_spool, open_spool
from cio_batch.cli.screen import Row, Screen
from cio_batch.errors import InvalidOperationError, SpoolLockedError
from cio_batch.letter_files import names
from cio_batch.operations import CioId, Email, Key, PersonId, Phone, key_of
from cio_batch.spools.ownership import Ownership


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    path: str
    person: str | None
    email: str | None
    phone: str | None
    cio_id: str | None
    as_json: bool

    @property
    def persons(self) -> list[PersonId]:
        """Everybody who was named."""
        named: list[PersonId] = []
        if self.person is not None:
            named.append(self.person)
        if self.email is not None:
            named.append(Email(self.email))
        if self.phone is not None:
            named.append(Phone(self.phone))
        if self.cio_id is not None:
            named.append(CioId(self.cio_id))
        return named


@attrs.frozen
class _Purged:
    letters: int
    operations: int | None = None  # a file of dead letters has none
    unseen: tuple[str, ...] = ()


def run(options: Options) -> int:
    """Remove; return the exit code."""
    screen = Screen(as_json=options.as_json)
    path = Path(options.path)
    try:
        keys = frozenset(key_of(person) for person in options.persons)
    except InvalidOperationError as error:
        screen.note(f"cio-batch: {error}", "bold red")
        return 2
    try:
        is_database = path.exists() and is_spool(path)
    except OSError as error:
        return cannot_read(screen, options.path, error)
    try:
        purged = _purge_spool(path, keys) if is_database else _purge_files(path, keys)
    except SpoolLockedError as error:
        owner = "another process" if error.pid is None else f"the process {error.pid}"
        screen.note(
            f"cio-batch: the spool {path.name} belongs to {owner}: call `await spool.purge(person)` there, or stop it "
            "first; nothing was removed",
            "bold red",
        )
        return 2
    except FAULTS as error:
        screen.note(f"cio-batch: cannot purge {options.path}: {explain(error)}", "bold red")
        return 2
    rows: list[Row] = [] if purged.operations is None else [("operations removed", purged.operations, "")]
    rows.append(("dead letters removed", purged.letters, ""))
    content: dict[str, Any] = {
        "operations": purged.operations or 0,
        "dead_letters": purged.letters,
        "not_looked_into": list(purged.unseen),
    }
    amiss = [f"not looked into: {each}" for each in purged.unseen]
    screen.result(path.name, rows, content, [], amiss, "Nothing about that person is left in it.")
    return 1 if amiss else 0


def _purge_spool(path: Path, keys: frozenset[Key]) -> _Purged:
    owned = Ownership.take(path)
    try:
        database = open_spool(path)
        try:
            numbers, letters = database.purge(keys)
            unseen = [f"{database.quarantined:,} damaged rows in its quarantine"] if database.quarantined else []
        finally:
            database.close()
    finally:
        owned.release()
    damaged = sorted({each.name for each in path.parent.glob(f"{glob.escape(path.name)}.damaged-*[0-9]")})
    return _Purged(letters, len(numbers), (*unseen, *(f"{name}, a damaged file that was kept" for name in damaged)))


def _purge_files(path: Path, keys: frozenset[Key]) -> _Purged:
    letters, unreadable = forget(path, keys)
    files = len(names(path))
    where = f" in {files} files" if files > 1 else ""
    return _Purged(letters, unseen=(f"{unreadable:,} lines that cannot be read{where}",) if unreadable else ())
