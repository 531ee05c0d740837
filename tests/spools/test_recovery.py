"""Damaged files: every row that is still whole on disk comes back, and nothing comes back that is not."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from cio_batch.dead_letters import Refusal
from cio_batch.operations import FINAL_KINDS, Operation
from cio_batch.spools.database import Database
from cio_batch.spools.pages import PAGE_SIZE

from .files import event, kept_files, mixed, opened, token

FRAME = PAGE_SIZE + 24
SEEDS = 500


@attrs.define
class Template:
    """A sound spool, and where on disk each of its rows stands.

    A block is a page of the file, ``("", n)``, or a frame of the log, ``("-wal", n)``.
    """

    path: Path
    originals: dict[int, Operation]
    live: set[int] = attrs.field(factory=set[int])
    letters: set[int] = attrs.field(factory=set[int])
    blocks: dict[int, set[tuple[str, int]]] = attrs.field(factory=dict[int, set[tuple[str, int]]])
    commits: list[int] = attrs.field(factory=list[int])

    def look(self) -> None:
        """Find the tokens of the rows in the newest state of each page."""
        main = self.path.read_bytes()
        newest = {
            number: ("", number, main[number * PAGE_SIZE :][:PAGE_SIZE]) for number in range(len(main) // PAGE_SIZE)
        }
        log = Path(f"{self.path}-wal")
        raw = log.read_bytes() if log.exists() else b""
        for index in range(len(raw[32:]) // FRAME):
            frame = raw[32 + index * FRAME :][:FRAME]
            page, size = struct.unpack(">II", frame[:8])
            newest[page - 1] = ("-wal", index, frame[24:])
            if size:
                self.commits.append(index)
        for number in self.live | self.letters:
            mark = token(number)
            self.blocks[number] = {(side, index) for side, index, data in newest.values() if mark in data}


def copy(source: Path, target: Path) -> None:
    """Copy a spool as it lies on disk."""
    for side in ("", "-wal"):
        if Path(f"{source}{side}").exists():
            shutil.copy(f"{source}{side}", f"{target}{side}")


def build(folder: Path, *, logged: bool) -> Template:
    """Write a spool as a program would that has been working for a while, and copy it as a crash would leave it."""
    folder.mkdir()
    working = folder / "working.db"
    database = Database(working)
    template = Template(folder / "events.db", {})
    dice = random.Random(1)
    number = 0

    def round_of(count: int, acknowledge: float) -> None:
        nonlocal number
        operations = mixed(range(number + 1, number + count + 1), number)
        number += count
        template.originals.update({operation[3]: operation for operation in operations})
        database.write(operations, (), (), 1_000.0 + number)
        template.live |= {operation[3] for operation in operations}
        done = [each for each in sorted(template.live) if dice.random() < acknowledge]
        buried = [(each, Refusal("rejected", "test", at=1.0)) for each in done[:2]]
        database.write((), done[2:], buried, 1_000.0)
        template.live -= set(done)
        template.letters |= set(done[:2])

    for acknowledge in (0.1, 0.5, 0.9, 0.9, 0.3, 0.1):
        round_of(70, acknowledge)
    if logged:
        database.empty_log()
        for acknowledge in (0.3, 0.5, 0.1, 0.1):
            round_of(25, acknowledge)
    else:
        database.close()
    copy(working, template.path)
    if logged:
        database.close()
    template.look()
    return template


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> list[Template]:
    folder = tmp_path_factory.mktemp("templates")
    return [build(folder / "file", logged=False), build(folder / "log", logged=True)]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not wait for a disk, where there is one: thousands of syncs would take a minute."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def damage(dice: random.Random, path: Path) -> tuple[str, int, int, bool]:
    """Do something terrible to one of the files; return which, the range that was hit, and if it was cut off."""
    sides = [side for side in ("", "-wal") if Path(f"{path}{side}").exists()]
    side = dice.choice(sides)
    target = Path(f"{path}{side}")
    raw = bytearray(target.read_bytes())
    start = dice.choice((dice.randrange(len(raw)), dice.randrange(min(len(raw), 4 * PAGE_SIZE))))
    length = min(len(raw) - start, dice.choice((1, 16, 100, 3_000, 20_000)))
    what = dice.randrange(3)
    if what == 0:
        raw[start : start + length] = dice.randbytes(length)
    elif what == 1:
        raw[start : start + length] = bytes(length)
    else:
        length = len(raw) - start
        del raw[start:]
    target.write_bytes(raw)
    return side, start, start + length, what == 2


def must_come_back(template: Template, side: str, start: int, end: int, cut: bool) -> set[int]:
    """The rows none of whose pages were hit, by the layout alone."""
    hit: set[tuple[str, int]]
    if side == "":
        hit = {("", block) for block in range(start // PAGE_SIZE, -(-end // PAGE_SIZE))}
    else:
        last = max((start - 32) // FRAME, 0), -(-(end - 32) // FRAME)
        hit = {("-wal", block) for block in range(*last)}
        heads = [32 + commit * FRAME for commit in template.commits]
        size = FRAME if cut else 24
        whole = [
            commit for commit, head in zip(template.commits, heads, strict=True) if end <= head or start >= head + size
        ]
        # Without the mark at its end, a transaction was never committed.
        hit |= {("-wal", block) for block in range(whole[-1] + 1 if whole else 0, template.commits[-1] + 1)}
        if start < 32 and end > 32:  # header and first frame: nothing tells any more which frames belong together
            hit |= {("-wal", block) for block in range(template.commits[-1] + 1)}
    return {number for number, blocks in template.blocks.items() if not blocks & hit}


def set_aside(path: Path, reason: str) -> set[int]:
    """The numbers of rows in the quarantine."""
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT number FROM quarantine WHERE reason = ?", (reason,)).fetchall()
    connection.close()
    return {number for (number,) in found}


async def test_what_is_whole_comes_back_from_500_damaged_files(
    templates: list[Template], memory: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Overwritten, zeroed or cut off anywhere: each row whose pages were not hit is given back, byte-equal."""
    caplog.set_level(logging.CRITICAL)
    began = time.monotonic()
    figures: Counter[str] = Counter()
    for seed in range(SEEDS):
        dice = random.Random(seed)
        template = templates[seed % 2]
        path = memory / f"{seed}" / "events.db"
        path.parent.mkdir()
        copy(template.path, path)
        side, start, end, cut = damage(dice, path)
        expected = must_come_back(template, side, start, end, cut)
        async with opened(path) as spool:
            found, lost = await spool.read_all()
            assert spool.contents.operations == len(found) + lost, seed
            numbers = [operation[3] for operation in found]
            assert numbers == sorted(set(numbers)), seed
            for operation in found:
                assert operation == template.originals[operation[3]], (seed, operation[3])
            await spool.append(event(10_000))  # and it works again
            assert spool.durable == 1, seed
        reader = Database(path)
        letters = {letter.number for letter in reader.letters()}
        assert expected & template.letters <= letters, (seed, sorted(expected & template.letters - letters))
        reader.close()
        doubted = set_aside(path, "in doubt")
        whole = expected & template.live - set(numbers)
        # One whose repeat could undo what followed is set aside when it may have been acknowledged before.
        assert whole <= doubted, (seed, sorted(whole))
        assert all(template.originals[number][2] in FINAL_KINDS for number in doubted), seed
        missing = template.live - set(numbers)
        again = set(numbers) - template.live
        final_again = {number for number in again if template.originals[number][2] in FINAL_KINDS}
        rebuilt = bool(kept_files(path))
        if missing and side == "":
            assert rebuilt or lost + spool.contents.quarantined >= len(missing), seed
        if side == "":
            assert not final_again, (seed, sorted(final_again))
        assert all(kept.stat().st_mode & 0o777 == 0o600 for kept in kept_files(path))
        figures.update(
            {
                "rows": len(template.live),
                "rows on pages that were hit": len(template.live - expected),
                "of these given back": len((template.live - expected) & set(numbers)),
                "missing": len(missing),
                "set aside": spool.contents.quarantined + lost,
                "whole rows set aside in doubt": len(whole),
                "acknowledged rows given back": len(again),
                "of these with an effect of their own": len(final_again),
                "files rebuilt": rebuilt,
            }
        )
        shutil.rmtree(path.parent)
    with capsys.disabled():
        text = ", ".join(f"{name} {count}" for name, count in figures.items())
        print(f"\n{SEEDS} damaged files in {time.monotonic() - began:.1f} s: {text}")  # noqa: T201 - the figures
