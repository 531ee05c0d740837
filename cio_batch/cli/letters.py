"""Where dead letters are kept, a spool's database or files of NDJSON, seen as one thing.

Rules:

1. A service may write to it meanwhile. What it adds after the first look is not seen, and nothing that it wrote is
   lost.
2. Letters come in the order in which their operations were accepted, so that sending them again keeps each person's
   order. (Files that several processes wrote are in the order of refusal.)
3. A letter is changed or removed by what it is, never by its place: that may have changed.
4. What cannot be read is counted, and stays.

Must not know: the screen, the tracker, asyncio.
"""

from __future__ import annotations

import abc
import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import attrs

from cio_batch.dead_letters import DeadLetter, Refusal, body_of
from cio_batch.errors import SpoolError
from cio_batch.letter_files import Place, Snapshot, check_rewritable, names, rewrite
from cio_batch.operations import Key
from cio_batch.spools.database import Database, describe

_SQLITE: Final = b"SQLite format 3\x00"
FAULTS: Final = (SpoolError, sqlite3.Error, OSError)
"""What can go wrong with either; :func:`explain` says it in words."""

Refused: TypeAlias = Sequence[tuple[DeadLetter, Refusal]]


@attrs.frozen(kw_only=True)
class Wanted:
    """Which letters are meant.

    Attributes:
        name: The name of an event, or a kind like ``person.identify``; ``None`` for all.
        reason: Of the newest refusal; ``None`` for all.
        since: Refused at that moment or later, in unix seconds; ``None`` for all.
    """

    name: str | None = None
    reason: str | None = None
    since: float | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a letter is one of them."""
        last = letter.last
        if self.reason is not None and last.reason != self.reason:
            return False
        if self.since is not None and last.at < self.since:
            return False
        return self.name is None or self.name in (letter.name, letter.kind)


class Letters(abc.ABC):
    """Dead letters of one place.

    Attributes:
        unreadable: How many there are that cannot be read; known after :meth:`all` or :meth:`choose`.
    """

    unreadable: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def all(self) -> Iterator[DeadLetter]:
        """Every letter that can be read, in order, with its number."""

    @abc.abstractmethod
    def choose(self, wanted: Wanted) -> int:
        """Decide on the letters that :meth:`take` gives; return how many they are."""

    @abc.abstractmethod
    def take(self, most: int) -> list[DeadLetter]:
        """The next of the chosen letters; none when there are no more."""

    @abc.abstractmethod
    def check_writable(self) -> None:
        """Find out whether :meth:`settle` would be possible."""

    @abc.abstractmethod
    def settle(self, delivered: Sequence[DeadLetter], refused: Refused) -> None:
        """Remove letters, and add to the history of others, durably."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of it."""


def is_spool(path: Path) -> bool:
    """Whether it is a SQLite database.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(len(_SQLITE))
    # Before the first checkpoint everything may stand in the write-ahead log.
    return head == _SQLITE or (not head and Path(f"{path}-wal").exists())


def open_letters(path: Path) -> Letters:
    """Open a spool's database, or a file of dead letters and those that it was before.

    Raises:
        SpoolError, sqlite3.Error, OSError: It cannot be read, or is something else.
    """
    if not path.exists() and path.parent.is_dir() and names(path):
        return _FileLetters(path)  # the current file was renamed, and nothing was appended since
    return _SpoolLetters(path) if is_spool(path) else _FileLetters(path)


def open_spool(path: Path) -> Database:
    """Open a spool's database.

    Raises:
        SpoolError, sqlite3.Error, OSError: It cannot be read, or is something else.
    """
    database = Database(path)
    if not database.is_current:
        database.close()
        msg = f"{path.name} was written by an older version: start its service once, which brings it up to date"
        raise SpoolError(msg)
    return database


def explain(error: BaseException) -> str:
    """What went wrong, without content."""
    return str(error) if isinstance(error, SpoolError) else describe(error)


class _SpoolLetters(Letters):
    def __init__(self, path: Path) -> None:
        self._database = open_spool(path)
        self._wanted = Wanted()
        self._after = self._last = 0

    def all(self) -> Iterator[DeadLetter]:
        count = 0
        for letter in self._database.letters():
            count += 1
            yield letter
        self.unreadable = max(0, self._database.dead_letters - count)

    def choose(self, wanted: Wanted) -> int:
        count = 0
        for letter in self.all():
            self._last = letter.number
            count += wanted.matches(letter)
        self._wanted = wanted
        return count

    def take(self, most: int) -> list[DeadLetter]:
        # By pages: a reader that stays open would keep the write-ahead log from being emptied.
        while self._after < self._last:
            page = [letter for letter in self._database.letters(self._after, most) if letter.number <= self._last]
            self._after = page[-1].number if page else self._next_after(most)
            if found := [letter for letter in page if self._wanted.matches(letter)]:
                return found
        return []

    def _next_after(self, most: int) -> int:
        """The number before the next letter that can be read, where a whole page cannot."""
        following = next(self._database.letters(self._after), None)
        return self._last if following is None or following.number > self._last else following.number - 1

    def check_writable(self) -> None:
        self._database.remove_letters(())

    def settle(self, delivered: Sequence[DeadLetter], refused: Refused) -> None:
        if refused:
            self._database.refuse_again((letter.number, refusal) for letter, refusal in refused)
        if delivered:
            self._database.remove_letters(letter.number for letter in delivered)

    def close(self) -> None:
        self._database.close()


class _FileLetters(Letters):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._snapshot = Snapshot(path)
        self._chosen: Iterator[tuple[int, Place]] = iter(())

    def all(self) -> Iterator[DeadLetter]:
        for _, letter in self._places():
            yield letter

    def _places(self) -> Iterator[tuple[Place, DeadLetter]]:
        self.unreadable = 0
        for number, (place, line) in enumerate(self._snapshot.lines(), 1):
            try:
                letter = DeadLetter.from_line(line, number)
            except ValueError:
                self.unreadable += 1
                continue
            yield place, letter

    def choose(self, wanted: Wanted) -> int:
        chosen = [(_moment(letter), letter.number, place) for place, letter in self._places() if wanted.matches(letter)]
        chosen.sort(key=lambda each: each[:2])
        self._chosen = iter([(number, place) for _, number, place in chosen])
        return len(chosen)

    def take(self, most: int) -> list[DeadLetter]:
        return [
            DeadLetter.from_line(self._snapshot.read(place), number)
            for number, place in itertools.islice(self._chosen, most)
        ]

    def check_writable(self) -> None:
        check_rewritable(self._path)

    def settle(self, delivered: Sequence[DeadLetter], refused: Refused) -> None:
        changes: dict[bytes, list[tuple[DeadLetter, bytes | None]]] = {}
        for letter in delivered:
            changes.setdefault(letter.body, []).append((letter, None))
        for letter, refusal in refused:
            changed = attrs.evolve(letter, refusals=(*letter.refusals, refusal))
            changes.setdefault(letter.body, []).append((letter, changed.to_line()))
        if changes:
            rewrite(self._path, _by(changes), lambda: not changes)

    def close(self) -> None:
        self._snapshot.close()


def _by(changes: dict[bytes, list[tuple[DeadLetter, bytes | None]]]) -> Callable[[bytes], bytes | None]:
    def change(line: bytes) -> bytes | None:
        candidates = changes.get(body_of(line))
        if not candidates:
            return line
        try:
            found = DeadLetter.from_line(line)
        except ValueError:
            return line
        for index, (letter, changed) in enumerate(candidates):
            if (letter.refusals, letter.accepted_at) == (found.refusals, found.accepted_at):
                del candidates[index]  # of equal lines each one is a letter of its own
                if not candidates:
                    del changes[letter.body]
                return changed
        return line

    return change


def _moment(letter: DeadLetter) -> float:
    """When its operation was accepted, as far as that is known."""
    return letter.accepted_at if letter.accepted_at is not None else letter.refusals[0].at


def forget(path: Path, keys: frozenset[Key]) -> tuple[int, int]:
    """Remove the letters of persons from files of dead letters.

    Returns:
        How many there were, and how many lines cannot be read.
    """
    removed = unreadable = 0

    def change(line: bytes) -> bytes | None:
        nonlocal removed, unreadable
        if not line.strip():
            return line
        try:
            letter = DeadLetter.from_line(line)
        except ValueError:
            unreadable += 1
            return line
        if not letter.is_about(keys):
            return line
        removed += 1
        return None

    rewrite(path, change)
    return removed, unreadable
