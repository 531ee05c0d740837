# ruff: noqa: ASYNC240 - a test may wait for the disk
"""Damaged files: every row that is still whole on disk comes back, and nothing comes back that is not."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sqlite3
import struct
import sys
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
from cio_batch.spools.recovery import finish, rebuild

from .files import deletion, event, kept_files, mixed, opened, token

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
        template.originals.update({operation.number: operation for operation in operations})
        database.write(operations, (), (), 1_000.0 + number)
        template.live |= {operation.number for operation in operations}
        done = [each for each in sorted(template.live) if dice.random() < acknowledge]
        buried = [(each, Refusal("rejected", "test", at=1.0)) for each in done[:2]]
        database.write((), done[2:], buried, 1_000.0)
        template.live -= set(done)
        template.letters |= set(done[:2])

    for acknowledge in (0.1, 0.5, 0.9, 0.9, 0.3, 0.1):
        round_of(50, acknowledge)
    if logged:
        database.empty_log()
        for acknowledge in (0.3, 0.5, 0.1, 0.1):
            round_of(14, acknowledge)
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
            numbers = [operation.number for operation in found]
            assert numbers == sorted(set(numbers)), seed
            for operation in found:
                assert operation == template.originals[operation.number], (seed, operation.number)
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
        assert all(template.originals[number].kind in FINAL_KINDS for number in doubted), seed
        missing = template.live - set(numbers)
        again = set(numbers) - template.live
        final_again = {number for number in again if template.originals[number].kind in FINAL_KINDS}
        rebuilt = bool(kept_files(path))
        if missing and side == "":
            assert rebuilt or lost + spool.contents.quarantined >= len(missing), seed
        if side == "" or (end <= 32 + template.commits[-1] * FRAME and start >= 32 and not cut):
            # The last transaction, and with it every acknowledgement, is there.
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


async def numbers_of(path: Path) -> list[int]:
    """Open it, read all of it."""
    async with opened(path) as spool:
        found, lost = await spool.read_all()
        assert lost == 0
        return [operation.number for operation in found]


def large(path: Path, *, delete: int = 0) -> Path:
    """A spool whose tree has interior pages, or the pages of one after a deletion."""
    database = Database(path)
    database.write([event(number, size=6_000) for number in range(1, 2_001)], (), (), 1.0)
    database.write((), range(1, delete + 1), (), 1.0)
    database.close()
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("content", [bytes(PAGE_SIZE), b"\xff" * PAGE_SIZE])
@pytest.mark.parametrize("page", [1, 2, "interior"])
async def test_no_row_is_lost_with_a_page_that_holds_none(
    tmp_path: Path, page: int | str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The header and schema, the root of the tree, an interior page: the leaves behind them are found."""
    path = large(tmp_path / "events.db", delete=500)
    raw = path.read_bytes()
    interior = [n + 1 for n in range(1, len(raw) // PAGE_SIZE) if raw[n * PAGE_SIZE] == 5]
    assert interior[0] == 2
    assert len(interior) > 2
    number = interior[1] if isinstance(page, str) else page
    overwrite(path, (number - 1) * PAGE_SIZE, content)
    damaged = path.read_bytes()
    assert await numbers_of(path) == list(range(501, 2_001))
    (kept,) = kept_files(path)
    assert kept.read_bytes() == damaged
    assert "1500 operations" in caplog.text
    assert await numbers_of(path) == list(range(501, 2_001))  # once, and not at each start
    assert len(kept_files(path)) == 1


@pytest.mark.parametrize("page_size", [1_024, 4_096, 65_536])
async def test_pages_have_the_size_that_the_file_says(tmp_path: Path, page_size: int) -> None:
    """A file that was made with other pages: its size is told, and one damaged page costs the rows on it alone."""
    path = large(tmp_path / "events.db")
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute("VACUUM")
    connection.close()
    database = Database(path)
    assert database.used_bytes() == path.stat().st_size
    database.close()
    raw = path.read_bytes()
    leaf = next(n for n in range(20, len(raw) // page_size) if raw[n * page_size] == 13)
    on_it = int.from_bytes(raw[leaf * page_size + 3 : leaf * page_size + 5], "big")
    overwrite(path, leaf * page_size, bytes(page_size))
    assert len(await numbers_of(path)) == 2_000 - on_it < 2_000


@pytest.mark.parametrize("destroyed", [(1,), (2,), (1, 2)])
async def test_what_was_acknowledged_stays_away(tmp_path: Path, destroyed: tuple[int, ...]) -> None:
    """Pages that were emptied are still there, with all that stood in them: as SQLite leaves them on other builds."""
    path = tmp_path / "events.db"
    database = Database(path)
    database._connection.execute("PRAGMA secure_delete=OFF")
    database.write([event(number) for number in range(1, 2_001)], (), (), 1.0)
    database.write([deletion(number) for number in range(2_001, 2_501)], (), (), 1.0)
    database.write((), range(1, 2_251), (), 1.0)
    database.close()
    assert path.read_bytes().count(b'"delete"') > 400
    for page in destroyed:
        overwrite(path, (page - 1) * PAGE_SIZE, bytes(PAGE_SIZE))
    found = await numbers_of(path)
    assert found[-1] == 2_500 or destroyed == (1, 2)
    if destroyed != (1, 2):  # one of the two sides still tells what is in use
        assert found == list(range(2_251, 2_501))
        return
    # Nothing does: events are sent again, which their id makes harmless; deletions of persons are not.
    assert set(found) <= set(range(1, 2_001))
    assert set_aside(path, "in doubt") >= set(range(2_251, 2_501))


async def test_a_damaged_frame_costs_its_page_and_not_the_log_behind_it(tmp_path: Path) -> None:
    """SQLite would drop all that was committed after it, without a word."""
    working, path = tmp_path / "working.db", tmp_path / "events.db"
    database = Database(working)
    for number in range(1, 51):
        database.write([event(number, size=3_500)], (), (), 1.0)
    copy(working, path)
    database.close()
    overwrite(Path(f"{path}-wal"), 32 + 20 * FRAME + 100, b"damage")
    assert await numbers_of(path) == list(range(1, 51))
    assert {kept.name[-4:] for kept in kept_files(path)} >= {"-wal"}


async def test_a_log_that_is_merely_torn_is_no_damage(tmp_path: Path) -> None:
    """A transaction that a crash cut off was never acknowledged: all before it is there, and nothing is rebuilt."""
    working, path = tmp_path / "working.db", tmp_path / "events.db"
    database = Database(working)
    for number in range(1, 11):
        database.write([event(number, size=20_000)], (), (), 1.0)
    copy(working, path)
    database.close()
    log = Path(f"{path}-wal")
    for size in range(log.stat().st_size - FRAME * 3, log.stat().st_size, 1_777):
        torn = tmp_path / f"{size}.db"
        copy(path, torn)
        os.truncate(f"{torn}-wal", size)
        assert await numbers_of(torn) == list(range(1, 10))
        assert not kept_files(torn)


@pytest.mark.parametrize("written", [24, 1_024])
async def test_a_page_that_a_kill_left_unwritten_is_no_damage(tmp_path: Path, written: int) -> None:
    """SQLite writes a frame's head before its page, over an earlier round of the log: a kill between them."""
    working, path = tmp_path / "working.db", tmp_path / "events.db"
    log = Path(f"{working}-wal")
    database = Database(working)
    for number in range(1, 41):
        database.write([event(number, size=3_500)], (), (), 1.0)
    database._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    for number in range(41, 51):
        database.write([event(number, size=3_500)], (), (), 1.0)
    before = log.read_bytes()
    database.write([event(51, size=3_500)], (), (), 1.0)
    after = log.read_bytes()
    assert len(after) == len(before)
    copy(working, path)
    database.close()
    starts = range(32, len(after), FRAME)
    last = max(start for start in starts if after[start : start + FRAME] != before[start : start + FRAME])
    Path(f"{path}-wal").write_bytes(after[: last + written] + before[last + written :])
    assert await numbers_of(path) == list(range(1, 51))
    assert not kept_files(path)


async def test_what_is_no_database_is_kept_and_the_spool_begins(tmp_path: Path) -> None:
    """Whatever stands there, the service starts; nothing of it is deleted."""
    path = tmp_path / "events.db"
    contents = (b"no database\n" * 1_000, b"xyz", bytes(50_000), random.Random(1).randbytes(50_000))
    for index, content in enumerate(contents):
        path.write_bytes(content)
        assert await numbers_of(path) == []
        path.unlink()
        assert len(kept_files(path)) == index + 1
        assert content in {kept.read_bytes() for kept in kept_files(path)}


async def test_an_older_schema_is_written_anew(tmp_path: Path) -> None:
    """Rows of the same form are taken, whatever tables surround them; the old file is kept."""
    path = tmp_path / "events.db"
    database = Database(path)
    database.write([event(number) for number in range(1, 101)], range(1, 11), [(11, Refusal("failed", "test"))], 7.0)
    database.close()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE quarantine")
    connection.execute("PRAGMA user_version=0")
    connection.close()
    async with opened(path) as spool:
        assert spool.contents.operations == 89
        assert spool.contents.dead_letters == 1
        assert await spool.spool.last_before(7.5) == 100  # the moments of acceptance too
        assert await spool.spool.last_before(6.5) == 0
    assert len(kept_files(path)) == 1


async def test_dead_letters_and_the_quarantine_are_read_back(tmp_path: Path) -> None:
    """With the history and reason that they had, the rows of many pages too."""
    path = tmp_path / "events.db"
    database = Database(path)
    database.write([event(number, size=9_000) for number in range(1, 41)], (), (), 7.0)
    refusals = [(number, Refusal("rejected", f"reason {number}", at=3.0)) for number in range(1, 21)]
    database.write((), (), refusals, 8.0)
    database._connection.execute("UPDATE operations SET checksum = 0 WHERE number > 30")
    database.set_aside(database.page(30, 100, 10**9)[1], "damaged", 9.0)
    before = list(database.letters())
    database.close()
    overwrite(path, 0, bytes(PAGE_SIZE))
    async with opened(path) as spool:
        assert spool.contents == attrs.evolve(spool.contents, operations=10, dead_letters=20, quarantined=10)
    database = Database(path)
    assert list(database.letters()) == before
    database.close()
    assert set_aside(path, "damaged") == set(range(31, 41))


CRASHES = """
import os, shutil, sys
from pathlib import Path
from cio_batch.spools.recovery import finish, rebuild

class Crash:
    \"\"\"End the process at the n-th thing that it does to a file.\"\"\"
    def __init__(self, at):
        self.left = at
    def __call__(self, event, arguments):
        if event in ("os.rename", "os.remove", "os.chmod", "open", "sqlite3.connect", "os.truncate"):
            self.left -= 1
            if self.left < 0:
                os._exit(7)

source = Path(sys.argv[1])
at = 0
while True:
    path = source.parent / f"crash-{at}" / "events.db"
    path.parent.mkdir()
    for side in ("", "-wal"):
        if Path(f"{source}{side}").exists():
            shutil.copy(f"{source}{side}", f"{path}{side}")
    child = os.fork()
    if child == 0:
        sys.addaudithook(Crash(at))
        rebuild(path, None, 1.0)
        finish(path)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        print(at)
        break
    assert status == 7, status
    at += 1
"""


async def test_a_crash_at_any_point_of_a_rebuild_leaves_all_of_it(tmp_path: Path) -> None:
    """Ended at each of its steps, the next start finds every row, and the damaged file is kept."""
    working, path = tmp_path / "working.db", tmp_path / "source.db"
    database = Database(working)
    for number in range(1, 31):
        database.write([event(number, size=3_000)], (), (), 1.0)
    copy(working, path)
    database.close()
    overwrite(Path(f"{path}-wal"), 32 + 20 * FRAME, bytes(10))  # without the log behind it, rows would be missing
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASHES, str(path), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    steps = int(output)
    assert steps > 10
    for step in range(steps + 1):
        crashed = tmp_path / f"crash-{step}" / "events.db"
        assert await numbers_of(crashed) == list(range(1, 31)), step
        kept = kept_files(crashed)
        assert any(each.name.endswith("-wal") for each in kept), step
        assert not list(crashed.parent.glob("*.rebuil*")), step


def test_a_stale_log_is_never_applied_to_a_new_file(tmp_path: Path) -> None:
    """A crash between the two renames: the log of the old file is out of the way before the new one has its name."""
    path = tmp_path / "events.db"
    database = Database(path)
    database.write([event(1)], (), (), 1.0)
    copy(path, tmp_path / "old.db")
    rebuild(path, database, 1.0)
    database.close()
    shutil.copy(tmp_path / "old.db-wal", f"{path}-wal")
    path.unlink()
    finish(path)
    assert not Path(f"{path}-wal").exists()
    database = Database(path)
    assert database.is_sound()
    assert database.count() == 1
    database.close()


async def test_what_a_crash_left_of_a_file_that_was_removed_is_used(tmp_path: Path) -> None:
    """The spool was removed while it was open, and the process killed while it wrote it anew."""
    path = tmp_path / "events.db"
    database = Database(Path(f"{path}.rebuilding"))
    database.write([event(1)], (), (), 1.0)
    database.close()
    assert await numbers_of(path) == [1]
