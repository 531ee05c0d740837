"""Dead letters in files of this machine: a line each, appended by some processes while another one rewrites them.

``path`` is written at its end; when it is full it becomes ``path.1``, that one ``path.2``, and so on.

Rules:

1. Whoever writes, renames or replaces one of the files holds an exclusive ``flock`` on the one that is called
   ``path``. After each wait for the lock it looks whether the name still leads to the file that it locked, and begins
   again if not: what is appended to a file that was replaced would be lost.
2. What is appended is on disk, whole, or not there at all: a write that fails half-way is cut off again.
3. A file is rewritten beside the old one and then takes its name, so that a crash leaves one of them whole. The new one
   has the owner and the mode of the old one.
4. A line that cannot be read is never removed.
5. No lock is held while somebody waits for anything but the disk.

Must not know: threads, asyncio, the tracker.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attrs

_locked: Final[set[int]] = set()
"""Descriptors that are locked at this moment, or wait for that; a child process closes what it inherited of them."""


def _forget_parent() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


os.register_at_fork(after_in_child=_forget_parent)


def names(path: Path) -> list[Path]:
    """The files that exist, the one with the oldest letters first."""
    pattern = re.compile(re.escape(path.name) + r"\.([1-9][0-9]{0,5})")
    numbered = [
        (int(found[1]), each)
        for each in path.parent.iterdir()
        if (found := pattern.fullmatch(each.name)) is not None and each.is_file()
    ]
    older = [each for _, each in sorted(numbered, reverse=True)]
    return [*older, path] if path.exists() else older


@contextlib.contextmanager
def _lock(path: Path, flags: int, kind: int) -> Generator[int]:
    """Open and lock the file that is called so, and still is when the lock is there; yield its descriptor."""
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            _locked.add(descriptor)
            fcntl.flock(descriptor, kind)
            if _leads_to(path, descriptor):
                yield descriptor
                return
        finally:
            _locked.discard(descriptor)
            with contextlib.suppress(OSError):
                # By itself, because a process that was forked meanwhile has the descriptor, too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


# --------------------------------------------------------------------------------------------------------- appending


class Appender:
    """Appends lines, and starts a new file when the current one is full.

    Args:
        path: The current file.
        max_bytes: What it may have.
        backups: How many full ones are kept.

    Attributes:
        removed: How many lines were in the files that were one too many.
        rotation_fault: Why the last attempt to start a new file failed; then the current one grows beyond its limit.
    """

    def __init__(self, path: Path, *, max_bytes: int, backups: int) -> None:
        self.removed = 0
        self.rotation_fault: OSError | None = None
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups

    def append(self, lines: Sequence[bytes]) -> int:
        """Append as many lines as one file takes, at least one; return how many.

        Raises:
            OSError: Nothing was appended.
        """
        while True:
            with _lock(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as file:
                size = os.fstat(file).st_size
                if size and size + len(lines[0]) > self._max_bytes and self._rotate():
                    continue
                return self._write(file, size, lines)

    def _write(self, file: int, size: int, lines: Sequence[bytes]) -> int:
        # Somebody died in the midst of a line: that one is spoilt, and must not spoil the next one.
        parts = [b"\n"] if size and os.pread(file, 1, size - 1) != b"\n" else []
        room = self._max_bytes - size
        count = 0
        for line in lines:
            room -= len(line)
            if count and room < 0 and self.rotation_fault is None:
                break
            parts.append(line)
            count += 1
        rest = memoryview(b"".join(parts))
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
        if not size:
            _sync_folder(self._path)
        return count

    def _rotate(self) -> bool:
        """Rename the files; say whether that was possible."""
        chain = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._backups + 1))]
        # Up to the first gap: what stands behind it can stay.
        length = next((index for index, each in enumerate(chain) if not each.exists()), len(chain))
        oldest = chain[-1] if length == len(chain) else None
        try:
            removed = 0 if oldest is None else _count_lines(oldest)
            for older, newer in reversed(list(zip(chain[1 : length + 1], chain[:length], strict=False))):
                newer.replace(older)
        except OSError as error:
            self.rotation_fault = error
            return False
        self.rotation_fault = None
        self.removed += removed
        _sync_folder(self._path)
        return True


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ----------------------------------------------------------------------------------------------------------- reading


@attrs.frozen
class Place:
    """Where a line stands in a :class:`Snapshot`."""

    file: int
    offset: int
    size: int


class Snapshot:
    """All lines that there are at one moment; what comes or goes afterwards does not show.

    Args:
        path: The current file.

    Raises:
        OSError: There is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._files: list[tuple[int, int]] = []
        try:
            with contextlib.ExitStack() as locks:
                with contextlib.suppress(FileNotFoundError):  # it was renamed, and nothing was appended since
                    locks.enter_context(_lock(path, os.O_RDONLY, fcntl.LOCK_SH))
                for name in names(path) or [path]:
                    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                    self._stack.callback(os.close, file)
                    self._files.append((file, os.fstat(file).st_size))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def lines(self) -> Iterator[tuple[Place, bytes]]:
        """Every line that holds something, the oldest first."""
        for index, (file, size) in enumerate(self._files):
            with open(file, "rb", closefd=False) as source:
                source.seek(0)
                offset = 0
                while offset < size and (line := source.readline(size - offset)):
                    if line.strip():
                        yield Place(index, offset, len(line)), line
                    offset += len(line)

    def read(self, place: Place) -> bytes:
        """One line again."""
        return os.pread(self._files[place.file][0], place.size, place.offset)


# --------------------------------------------------------------------------------------------------------- rewriting


def rewrite(path: Path, change: Callable[[bytes], bytes | None], is_done: Callable[[], bool] = lambda: False) -> None:
    """Change lines in all files, while others append.

    Args:
        path: The current file.
        change: Gets each line, end of line included; returns it, or another one, or ``None`` to remove it.
        is_done: Says, after each file, whether the others need no look.

    Raises:
        OSError: It is not possible, and what was not changed yet stands as it was.
    """
    with _all(path) as found:
        for name in found:
            _rewrite_one(name, change)
            if name != path and not name.stat().st_size:
                name.unlink()
            if is_done():
                break
        _sync_folder(path)


def check_rewritable(path: Path) -> None:
    """Find out whether :func:`rewrite` would be possible.

    Raises:
        OSError: It would not.
    """
    with _all(path) as found:
        for name in found:
            with _beside(name):
                pass


@contextlib.contextmanager
def _all(path: Path) -> Generator[list[Path]]:
    """Hold the lock; yield the files, the current one last."""
    existing = names(path)
    if not existing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    like = existing[-1].stat()
    with _lock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as file:
        if path not in existing:  # it was renamed, and nothing was appended since
            _make_alike(file, like)
        yield names(path)


def _rewrite_one(name: Path, change: Callable[[bytes], bytes | None]) -> None:
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(name.open("rb"))
        target = fresh = None
        unchanged = 0
        for line in source:
            changed = change(line)
            if target is None:
                if changed == line:
                    unchanged += len(line)
                    continue
                target, fresh = stack.enter_context(_beside(name))
                _copy(name, target, unchanged)
            if changed:
                _write_all(target, changed)
        if target is not None and fresh is not None:
            os.fsync(target)
            fresh.replace(name)


@contextlib.contextmanager
def _beside(name: Path) -> Generator[tuple[int, Path]]:
    """Make a file like this one beside it; if it is not renamed, it vanishes."""
    fresh = name.with_name(f"{name.name}.rewrite")
    file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _make_alike(file, name.stat())
        yield file, fresh
    finally:
        os.close(file)
        fresh.unlink(missing_ok=True)


def _make_alike(file: int, like: os.stat_result) -> None:
    mine = os.fstat(file)
    if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(file, like.st_uid, like.st_gid)
    os.fchmod(file, like.st_mode & 0o777)


def _copy(name: Path, target: int, size: int) -> None:
    with name.open("rb") as source:
        while size and (block := source.read(min(size, 1 << 20))):
            _write_all(target, block)
            size -= len(block)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
