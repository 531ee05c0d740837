"""A SQLite file as it lies on disk, read without SQLite: for one that SQLite refuses.

Rules:

1. Content never raises: what cannot be read is counted. A file that cannot be read raises ``OSError``.
2. A page is what its newest valid frame in the write-ahead log says, else what the file says. Frames count up to the
   last that ends a transaction; where one between is damaged, those behind it still count, which SQLite ignores. A
   last one whose page was never written, because the process was killed meanwhile, ends nothing.
3. A cell counts only if its page's array of cells points to it: what was deleted stays in the gaps of pages.
4. Whole pages that were emptied look like pages in use. They are told apart from two sides: what the tree reaches is in
   use, what the list of free pages names is not, and when one of these two is intact, it decides on the rest. When both
   are damaged, or when the newest state of a page is, the rows there are *in doubt*: they may have been deleted.

Source: https://www.sqlite.org/fileformat2.html

Must not know: what the rows mean.
"""

from __future__ import annotations

import contextlib
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self, TypeAlias

import attrs

PAGE_SIZE: Final = 8192
"""Of a new file; one that another build made says its own in its head."""
_PAGE_SIZES: Final = frozenset(1 << power for power in range(9, 17))
_LOG_HEADER, _FRAME_HEADER = 32, 24
_LEAF, _INTERIOR = 0x0D, 0x05
_MAX_VARINT_BYTES: Final = 9

Value: TypeAlias = int | float | bytes | str | None


@attrs.frozen
class Record:
    """A row: its number in the table (its rowid) and its columns."""

    number: int
    values: tuple[Value, ...]


def _checksum(data: bytes, order: str, seed: tuple[int, int]) -> tuple[int, int]:
    first, second = seed
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second


def _pair(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")


@attrs.define
class Log:
    """The write-ahead log, up to the last frame that ends a transaction.

    Attributes:
        newest: The last valid frame of each page: which one it is, from 0.
        suspects: Frames that do not fit their checksum, and the page that each claims to be, 0 for none.
        pages: How many pages the file has, by the last transaction; ``None`` when the log does not say.
        is_damaged: Whether SQLite would read less of it than there is.
        page_size: Bytes of a page, as the head of the log or else that of the file says.
    """

    newest: dict[int, int] = attrs.field(factory=dict[int, int])
    suspects: dict[int, int] = attrs.field(factory=dict[int, int])
    pages: int | None = None
    is_damaged: bool = False
    page_size: int = PAGE_SIZE

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the log of a database; an empty one if there is none.

        Raises:
            OSError: It cannot be read.
        """
        page_size = _page_size(path)
        try:
            with Path(f"{path}-wal").open("rb") as file:
                return cls._read(file, page_size)
        except FileNotFoundError:
            return cls(page_size=page_size)

    @classmethod
    def _read(cls, file: BinaryIO, page_size: int) -> Self:
        log = cls(page_size=page_size)
        header, first = file.read(_LOG_HEADER), file.read(_FRAME_HEADER)
        if len(first) < _FRAME_HEADER:
            return log
        order = {b"\x37\x7f\x06\x82": "<", b"\x37\x7f\x06\x83": ">"}.get(header[:4], "<>"[sys.byteorder == "big"])
        is_whole = _checksum(header[:24], order, (0, 0)) == _pair(header[24:])
        if is_whole and (said := int.from_bytes(header[8:12], "big")) in _PAGE_SIZES:
            log.page_size = said
        size = _FRAME_HEADER + log.page_size
        salts = header[16:24] if is_whole else first[8:16]  # what remains of an earlier round has other ones
        seed = _pair(header[24:])
        frames: list[tuple[int, bool]] = []  # the page it claims to be, 0 for none; whether it is valid
        last, last_pages = before = -1, 0
        file.seek(_LOG_HEADER)
        while len(frame := file.read(size)) == size:
            page, pages = _pair(frame)
            stored = _pair(frame[16:24])
            if frame[8:16] == salts and page > 0:
                valid = _checksum(frame[:8] + frame[_FRAME_HEADER:], order, seed) == stored
                if pages:
                    before = last, last_pages
                    last, last_pages = len(frames), pages if valid else 0
                frames.append((page, valid))
            else:
                if last == len(frames) - 1 and frames and not frames[last][1]:
                    # The end of this round, over frames of an earlier one, is a transaction whose last page does not
                    # fit. SQLite writes the head of a frame first and its page second: a kill in between left this,
                    # and what was not written was not acknowledged.
                    last, last_pages = before
                frames.append((0, False))
            seed = stored  # and not what was computed: so that one damaged frame does not condemn all behind it
        for index, (page, valid) in enumerate(frames[: last + 1]):
            if valid:
                log.newest[page] = index
            else:
                log.suspects[index] = page
        log.pages = last_pages or None
        log.is_damaged = last >= 0 and (not is_whole or bool(log.suspects))
        return log


class Pages:
    """The pages of a database, and what they are used for.

    Args:
        path: The file. Nobody in this process may have it open: to close it here would take away SQLite's locks.
        roots: The first page of each table.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, roots: tuple[int, ...]) -> None:
        self._log = Log.read(path)
        self._page_size = self._log.page_size
        self._files = contextlib.ExitStack()
        self._main = self._files.enter_context(path.open("rb"))
        found = path.stat().st_size // self._page_size
        self._wal: BinaryIO | None = None
        if self._log.newest or self._log.suspects:
            self._wal = self._files.enter_context(Path(f"{path}-wal").open("rb"))  # noqa: SIM115 - close()
        # A file grows at its end, so that a damaged frame can be no page far behind it.
        self._count = self._log.pages or max(found, 0, *self._log.newest) + len(self._log.suspects)
        self.unreadable = 0  # pages, and rows in them
        self._outdated: set[int] = set()
        self._last_gap = -1  # the last frame that names no page: whose state it was is not known
        for index, number in self._log.suspects.items():
            if not 0 < number <= self._count:
                self._last_gap = index
            elif index > self._log.newest.get(number, -1):
                self._outdated.add(number)
        head = self._page(1)
        # Some builds of SQLite (Apple's) keep a few bytes at the end of each page for themselves.
        self._usable = self._page_size - (head[20] if head.startswith(b"SQLite format 3\0") and head[20] <= 32 else 0)
        self._reached, self._tree_is_whole = self._walk(roots)
        self._free, self._free_list_is_whole = self._walk_free_list(head)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def records(self, *, in_doubt: bool) -> Iterator[Record]:
        """Every row that can be read, in those pages that are in use, or in those that may be."""
        for number in range(2, self._count + 1):
            if self._is_in_doubt(number) is in_doubt:
                yield from self._records(self._page(number))
        if in_doubt:
            for index in self._log.suspects:
                yield from self._records(self._frame(index))

    def _is_in_doubt(self, number: int) -> bool | None:
        """Whether it is not certain that a page is in use; ``None`` if it certainly is not."""
        if number in self._outdated or self._log.newest.get(number, -1) < self._last_gap:
            return True
        if number in self._reached:
            return False
        if number in self._free or (self._tree_is_whole and not self._free_list_is_whole):
            return None
        return not self._free_list_is_whole

    # ------------------------------------------------------------------------------------------------- pages

    def _page(self, number: int) -> bytes:
        index = self._log.newest.get(number)
        if index is not None:
            return self._frame(index)
        return _read_at(self._main, (number - 1) * self._page_size, self._page_size)

    def _frame(self, index: int) -> bytes:
        size = self._page_size
        at = _LOG_HEADER + index * (_FRAME_HEADER + size) + _FRAME_HEADER
        return _read_at(self._wal, at, size) if self._wal else bytes(size)

    def _walk(self, roots: tuple[int, ...]) -> tuple[set[int], bool]:
        """The pages that the trees reach, and whether that is all of them.

        A page is believed to be where its parent says if its rows lie between the parent's keys.
        """
        reached: set[int] = set()
        whole = True
        waiting = [(root, -math.inf, math.inf) for root in roots]
        while waiting:
            number, low, high = waiting.pop()
            page = self._page(number) if 1 < number <= self._count and number not in reached else b"\0"
            if page[0] not in (_LEAF, _INTERIOR):
                self.unreadable += 1
                whole = False
                continue
            keys: list[float] = []
            children: list[int] = []
            for offset in _pointers(page):
                try:
                    at = offset + 4 if page[0] == _INTERIOR else _varint(page, offset)[1]
                    keys.append(_signed(_varint(page, at)[0]))
                    children.append(int.from_bytes(page[offset : offset + 4], "big"))
                except IndexError:
                    keys.append(math.nan)
            if not all(one < two for one, two in zip([low, *keys], keys, strict=False)) or (keys and keys[-1] > high):
                whole = False
                continue
            reached.add(number)
            whole = whole and number not in self._outdated
            if page[0] == _INTERIOR:
                children.append(int.from_bytes(page[8:12], "big"))
                waiting += zip(children, [low, *keys], [*keys, high], strict=True)
        return reached, whole

    def _walk_free_list(self, head: bytes) -> tuple[set[int], bool]:
        """The pages that the list of free pages names, and whether that is all of them."""
        free: set[int] = set()
        trunk, count = int.from_bytes(head[32:36], "big"), int.from_bytes(head[36:40], "big")
        if not head.startswith(b"SQLite format 3\0") or 1 in self._outdated:
            return free, False
        while trunk:
            page = self._page(trunk) if 1 < trunk <= self._count and trunk not in self._outdated else b""
            leaves = int.from_bytes(page[4:8], "big")
            if not page or leaves > self._usable // 4 - 2:
                return free, False
            named = {trunk, *struct.unpack_from(f">{leaves}I", page, 8)}
            following = int.from_bytes(page[:4], "big")
            if len(named) <= leaves or min(named) < 2 or max(named) > self._count or named & free:
                return free, False
            free |= named
            trunk = following
        return free, len(free) == count

    # -------------------------------------------------------------------------------------------------- rows

    def _records(self, page: bytes) -> Iterator[Record]:
        if page[0] != _LEAF:
            return
        for offset in _pointers(page):
            try:
                size, at = _varint(page, offset)
                number, at = _varint(page, at)
                yield Record(_signed(number), _columns(self._payload(page, at, size)))
            except (IndexError, ValueError, struct.error):
                self.unreadable += 1

    def _payload(self, page: bytes, at: int, size: int) -> bytes:
        usable = self._usable
        if size <= usable - 35:
            return page[at : at + size]
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= usable - 35 else least
        parts, left = [page[at : at + local]], size - local
        following = int.from_bytes(page[at + local : at + local + 4], "big")
        if left > self._count * usable:
            raise ValueError
        while left > 0:
            if not 1 < following <= self._count:
                raise ValueError
            more = self._page(following)
            parts.append(more[4 : 4 + min(left, usable - 4)])
            left -= usable - 4
            following = int.from_bytes(more[:4], "big")
        return b"".join(parts)


def _page_size(path: Path) -> int:
    """What the head of a database says, or that of a new one where it is damaged or missing."""
    try:
        with path.open("rb") as file:
            head = file.read(18)
    except FileNotFoundError:
        return PAGE_SIZE
    said = int.from_bytes(head[16:18], "big")
    size = 65_536 if said == 1 else said
    return size if head.startswith(b"SQLite format 3\0") and size in _PAGE_SIZES else PAGE_SIZE


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    try:
        file.seek(offset)
        data = file.read(size)
    except OSError:  # a bad sector
        data = b""
    return data.ljust(size, b"\0")


def _pointers(page: bytes) -> list[int]:
    """Where the cells of a page begin."""
    start = 12 if page[0] == _INTERIOR else 8
    count = min(int.from_bytes(page[3:5], "big"), (len(page) - start) // 2)
    return list(struct.unpack_from(f">{count}H", page, start))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for index in range(at, at + _MAX_VARINT_BYTES - 1):
        value = value << 7 | data[index] & 0x7F
        if data[index] < 0x80:
            return value, index + 1
    return value << 8 | data[at + _MAX_VARINT_BYTES - 1], at + _MAX_VARINT_BYTES


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_WIDTHS: Final = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


def _columns(payload: bytes) -> tuple[Value, ...]:
    end, at = _varint(payload, 0)
    body = end
    values: list[Value] = []
    while at < end:
        kind, at = _varint(payload, at)
        width = _WIDTHS[kind] if kind < 10 else (kind - 12) // 2
        raw = payload[body : body + width]
        if kind in (10, 11) or len(raw) != width:
            raise ValueError
        body += width
        value: Value
        if kind in (0, 8, 9):
            value = (None, 0, 1)[max(0, kind - 7)]
        elif kind < 7:
            value = int.from_bytes(raw, "big", signed=True)
        elif kind == 7:
            value = struct.unpack(">d", raw)[0]
        else:
            value = raw.decode(errors="replace") if kind % 2 else raw
        values.append(value)
    return tuple(values)
