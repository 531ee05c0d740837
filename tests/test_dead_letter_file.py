"""Dead letters in real files: their order, their rotation, faults of the disk, other processes.

What forks, fills a disk or ends runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from cio_batch import ConfigurationError, DeadLetter, DeadLetterFile, Refusal
from cio_batch import operations as ops
from cio_batch.letter_files import Snapshot, check_rewritable, names, rewrite

from .conftest import until

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def letter(number: int, person: str = "user-1", *, size: int = 0) -> DeadLetter:
    """A dead letter; its event says its number."""
    draft = ops.event(person, "bought", {"n": number, "filler": "x" * size})
    body = ops.encode(draft, now=1_764_000_000.0, new_id=lambda: ULID).body
    return DeadLetter(body, (Refusal("rejected", "invalid", "name", "no", 400, 1, 5.0),), 4.0)


def read(path: Path) -> list[int]:
    """The numbers of all letters in all files, the oldest first."""
    with Snapshot(path) as snapshot:
        return [DeadLetter.from_line(line).payload["attributes"]["n"] for _, line in snapshot.lines()]


def threads() -> set[int | None]:
    """Those that write dead letters; one may still linger from an earlier test."""
    return {thread.ident for thread in threading.enumerate() if thread.name == "cio_batch dead letters"}


async def test_letters_are_on_disk_after_close(tmp_path: Path) -> None:
    """In their order, for the owner alone; and no thread is left that would hold up anybody."""
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    file.put([letter(1), letter(2)])
    file.put([letter(3)])

    assert await file.close()
    assert read(file.path) == [1, 2, 3]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert (file.pending, file.lost, file.fault) == (0, 0, None)
    await until(lambda: not threads())


async def test_it_may_be_used_after_close(tmp_path: Path) -> None:
    """A letter that comes late is written as well."""
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    assert await file.close()
    file.put([letter(1)])
    assert await file.close()
    file.put([letter(2)])
    await until(lambda: file.pending == 0)
    assert read(file.path) == [1, 2]


def test_the_constructor_makes_nothing(tmp_path: Path) -> None:
    """Neither a file nor a thread, also in a directory that does not exist yet."""
    before = threads()
    DeadLetterFile(tmp_path / "later" / "dead.ndjson").put([])

    assert list(tmp_path.iterdir()) == []
    assert threads() <= before


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"path": ""}, ("path",)),
        ({"path": 7}, ("path",)),
        ({"path": "a", "max_bytes": 10, "backups": 0}, ("max_bytes", "backups")),
        ({"path": "a", "max_pending": True, "max_pending_bytes": 1.5}, ("max_pending", "max_pending_bytes")),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], wrong: tuple[str, ...]) -> None:
    """All of them in one error."""
    with pytest.raises(ConfigurationError) as caught:
        DeadLetterFile(**arguments)  # type: ignore[arg-type]
    assert caught.value.variables == wrong


async def test_a_relative_path_is_that_of_the_constructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may change its directory afterwards."""
    monkeypatch.chdir(tmp_path)
    file = DeadLetterFile("dead.ndjson")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file.put([letter(1)])
    assert await file.close()
    assert read(tmp_path / "dead.ndjson") == [1]


async def test_put_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    """20,000 letters in calls of 500: none takes longer than a disk would."""
    file = DeadLetterFile(tmp_path / "dead.ndjson", max_bytes=1_000_000, backups=20)
    group = [letter(number) for number in range(500)]
    slowest = 0.0
    for _ in range(40):
        began = time.thread_time()
        file.put(group)
        slowest = max(slowest, time.thread_time() - began)
        await asyncio.sleep(0)
    assert slowest < 0.01
    assert await file.close(20)
    assert len(read(file.path)) == 20_000


# ------------------------------------------------------------------------------------------------------- rotation


async def test_full_files_are_kept_and_the_oldest_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No file grows beyond its limit, letters stay in order, and those that are removed are counted."""
    file = DeadLetterFile(tmp_path / "dead.ndjson", max_bytes=3_000, backups=3)
    for start in range(0, 60, 7):
        file.put([letter(number) for number in range(start, min(start + 7, 60))])
        assert await file.close()

    found = names(file.path)
    assert [each.name for each in found] == ["dead.ndjson.3", "dead.ndjson.2", "dead.ndjson.1", "dead.ndjson"]
    assert all(each.stat().st_size <= 3_000 for each in found)
    left = read(file.path)
    assert left == list(range(60 - len(left), 60))
    assert file.lost == 60 - len(left) > 0
    assert "the oldest file of dead.ndjson was removed" in caplog.text


async def test_a_letter_larger_than_a_file_is_written(tmp_path: Path) -> None:
    """Alone, in a file that is too large: better than not at all."""
    file = DeadLetterFile(tmp_path / "dead.ndjson", max_bytes=1_000)
    file.put([letter(1), letter(2, size=5_000), letter(3)])
    assert await file.close()
    assert read(file.path) == [1, 2, 3]
    assert len(names(file.path)) == 3


async def test_a_full_file_that_cannot_be_renamed_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory stands in the way: it is said once, and no letter waits for it."""
    (tmp_path / "dead.ndjson.1" / "inside").mkdir(parents=True)
    file = DeadLetterFile(tmp_path / "dead.ndjson", max_bytes=1_000, backups=1)
    for start in (0, 10):
        file.put([letter(number) for number in range(start, start + 10)])
        assert await file.close()
    assert read(file.path) == list(range(20))
    assert caplog.text.count("cannot be renamed") == 1

    (tmp_path / "dead.ndjson.1" / "inside").rmdir()
    (tmp_path / "dead.ndjson.1").rmdir()
    file.put([letter(20)])
    assert await file.close()
    assert [each.name for each in names(file.path)] == ["dead.ndjson.1", "dead.ndjson"]
    assert read(file.path) == list(range(21))
    assert file.lost == 0


# --------------------------------------------------------------------------------------------------- broken disks


async def test_a_missing_directory_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log for the outage, one for its end; the letters are written then, each once."""
    file = DeadLetterFile(tmp_path / "later" / "dead.ndjson")
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            file.put([letter(number)])
            assert not await file.close(0.02)
        await until(lambda: file.fault == "No such file or directory")
        assert caplog.text.count("cannot be written") == 1
        assert file.pending == 5
        (tmp_path / "later").mkdir()
        assert await file.close()

    assert read(file.path) == [0, 1, 2, 3, 4]
    assert caplog.text.count("are written to dead.ndjson again; 0 were lost") == 1
    assert (file.pending, file.lost, file.fault) == (0, 0, None)


@pytest.mark.parametrize(
    "bound", [{"max_pending": 3}, {"max_pending_bytes": 3 * len(letter(0).body)}], ids=["letters", "bytes"]
)
async def test_memory_is_bounded_and_the_rest_counted(
    bound: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes beyond the bound is lost, and the log says so at once and at the end."""
    (tmp_path / "dead.ndjson").mkdir()
    file = DeadLetterFile(tmp_path / "dead.ndjson", **bound)  # type: ignore[arg-type]
    file.put([letter(number) for number in range(5)])
    file.put([letter(5)])

    assert (file.pending, file.lost) == (3, 3)
    assert caplog.text.count("are lost from here on") == 1
    (tmp_path / "dead.ndjson").rmdir()
    assert await file.close()
    assert read(file.path) == [0, 1, 2]
    assert "3 were lost" in caplog.text
    file.put([letter(6)])
    assert await file.close()
    assert (read(file.path), file.lost) == ([0, 1, 2, 6], 3)


def run(tmp_path: Path, program: str, *arguments: str) -> str:
    """Run a program that knows ``letter`` and ``read`` to its end; return its output."""
    head = (
        "import asyncio, logging, os, resource, signal, sys, time\n"
        "from pathlib import Path\n"
        "from cio_batch import DeadLetterFile\n"
        "from tests.test_dead_letter_file import letter, read\n"
        "logging.basicConfig(format='LOG %(levelname)s %(message)s', stream=sys.stdout)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            head + textwrap.dedent(program),
            str(tmp_path / "dead.ndjson"),
            *arguments,
        ],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_half_a_line_is_cut_off_again(tmp_path: Path) -> None:
    """A disk that is full in the midst of a write: nothing of it stays, and nothing comes twice after the outage."""
    output = run(
        tmp_path,
        """
        file = DeadLetterFile(sys.argv[1])
        async def main():
            file.put([letter(0)])
            assert await file.close()
            size = file.path.stat().st_size
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, hard))  # one more, and a half
            file.put([letter(1), letter(2), letter(3)])
            assert not await file.close(0.1)
            while file.fault is None:
                await asyncio.sleep(0.01)
            assert file.path.stat().st_size == size
            print(file.fault)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert await file.close()
            print(read(file.path), file.lost)
        asyncio.run(main())
        """,
    )
    assert "File too large" in output
    assert "[0, 1, 2, 3] 0" in output


async def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    """Somebody died in the midst of a write: what he left is kept as it is, a line of its own."""
    path = tmp_path / "dead.ndjson"
    torn = letter(0).to_line()[:50]
    path.write_bytes(torn)
    file = DeadLetterFile(path)
    file.put([letter(1)])
    assert await file.close()
    assert path.read_bytes() == torn + b"\n" + letter(1).to_line()


async def test_an_operation_is_kept_whatever_is_said_of_it(tmp_path: Path) -> None:
    """An explanation that no JSON can hold costs the explanation, and holds up nobody."""
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    file.put([DeadLetter(letter(1).body, (Refusal("rejected", "\ud800"),)), letter(2)])
    assert await file.close()
    assert read(file.path) == [1, 2]


def test_the_end_of_the_program_waits_for_the_disk(tmp_path: Path) -> None:
    """Also where nobody calls close()."""
    run(tmp_path, "DeadLetterFile(sys.argv[1]).put([letter(n) for n in range(3_000)])")
    assert read(tmp_path / "dead.ndjson") == list(range(3_000))


def test_letters_of_the_last_moment_are_written(tmp_path: Path) -> None:
    """When the program ends already, and no thread can be started any more (Python 3.12 and later refuse it)."""
    run(
        tmp_path,
        """
        import atexit, threading
        file = DeadLetterFile(sys.argv[1])
        def refuse(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        threading.Thread.start = refuse
        file.put([letter(1)])
        atexit.register(lambda: file.put([letter(2)]))  # runs before the library's, which was registered earlier
        """,
    )
    assert read(tmp_path / "dead.ndjson") == [1, 2]


def test_the_end_of_the_program_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Letters that no disk takes are named in the log."""
    output = run(tmp_path / "missing", "file = DeadLetterFile(sys.argv[1]); file.put([letter(1)])")
    assert "1 dead letters are lost: No such file or directory" in output


# ------------------------------------------------------------------------------------------------ other processes


async def test_a_file_that_was_replaced_is_found(tmp_path: Path) -> None:
    """What is appended after a replacement stands in the new file."""
    file = DeadLetterFile(tmp_path / "dead.ndjson")
    file.put([letter(1)])
    assert await file.close()
    fresh = tmp_path / "fresh"
    fresh.write_bytes(letter(2).to_line())
    fresh.replace(file.path)
    file.put([letter(3)])
    assert await file.close()
    assert read(file.path) == [2, 3]


def test_processes_append_while_another_one_rewrites(tmp_path: Path) -> None:
    """Two that append to files that fill up, and one that removes every seventh: nothing is lost, nothing twice."""
    path = tmp_path / "dead.ndjson"
    program = """
        file = DeadLetterFile(sys.argv[1], max_bytes=30_000, backups=100)
        first = int(sys.argv[2])
        async def main():
            for start in range(first, first + 700, 10):
                file.put([letter(n) for n in range(start, start + 10)])
                assert await file.close(30)
        asyncio.run(main())
        assert file.lost == 0
    """
    appending = [threading.Thread(target=run, args=(tmp_path, program, str(first))) for first in (0, 10_000)]
    for thread in appending:
        thread.start()
    removed: list[int] = []

    def change(line: bytes) -> bytes | None:
        number = DeadLetter.from_line(line).payload["attributes"]["n"]
        if number % 7:
            return line
        removed.append(number)
        return None

    while any(thread.is_alive() for thread in appending):
        if path.exists():
            rewrite(path, change)
            seen = read(path)
            assert len(seen) == len(set(seen))  # also while files are renamed
    rewrite(path, change)

    left = read(path)
    assert sorted(left + removed) == [*range(700), *range(10_000, 10_700)]
    assert [n for n in left if n < 10_000] == [n for n in range(700) if n % 7]
    assert list(tmp_path.glob("*.rewrite")) == []
    assert len(names(path)) > 3


def test_a_child_begins_empty(tmp_path: Path) -> None:
    """Its parent writes what the parent holds; the child writes its own, and a lock of the parent's is not its lock."""
    output = run(
        tmp_path,
        """
        import warnings
        warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
        file = DeadLetterFile(sys.argv[1])
        file.put([letter(n) for n in range(2_000)])  # the fork comes while they are written
        child = os.fork()
        if child == 0:
            assert (file.pending, file.lost) == (0, 0)
            file.put([letter(10_000)])
            assert asyncio.run(file.close(20))
            os._exit(0)
        assert asyncio.run(file.close(20))
        assert os.waitpid(child, 0)[1] == 0
        found = read(Path(sys.argv[1]))
        assert sorted(found) == [*range(2_000), 10_000], len(found)
        print("good")
        """,
    )
    assert output == "good\n"


# -------------------------------------------------------------------------------------------------------- rewriting


async def write(path: Path, letters: list[DeadLetter], **options: int) -> None:
    file = DeadLetterFile(path, **options)  # type: ignore[arg-type]
    file.put(letters)
    assert await file.close()


async def test_rewriting_keeps_mode_and_unreadable_lines(tmp_path: Path) -> None:
    """Only what is to be changed changes; a file without letters goes, the current one stays."""
    path = tmp_path / "dead.ndjson"
    await write(path, [letter(number) for number in range(12)], max_bytes=1_000)
    before = len(names(path))
    path.write_bytes(path.read_bytes() + b"noise\n" + letter(12).to_line()[:30])
    path.chmod(0o640)
    inode = path.stat().st_ino
    rewrite(path, lambda line: line)
    assert path.stat().st_ino == inode

    rewrite(path, lambda line: None if line.endswith(b"}}}\n") else line)
    assert before > 2
    assert names(path) == [path]
    assert path.read_bytes() == b"noise\n" + letter(12).to_line()[:30]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_ino != inode


async def test_a_snapshot_stays_as_it_was(tmp_path: Path) -> None:
    """Letters that are removed or added afterwards do not show in it."""
    path = tmp_path / "dead.ndjson"
    await write(path, [letter(number) for number in range(10)], max_bytes=1_000)
    with Snapshot(path) as snapshot:
        places = [place for place, _ in snapshot.lines()]
        rewrite(path, lambda _: None)
        await write(path, [letter(99)])
        assert [DeadLetter.from_line(snapshot.read(place)) for place in places] == [letter(n) for n in range(10)]
        assert len(list(snapshot.lines())) == 10
    assert read(path) == [99]


async def test_files_whose_current_one_was_just_renamed(tmp_path: Path) -> None:
    """They are read and rewritten all the same."""
    path = tmp_path / "dead.ndjson"
    await write(path, [letter(1), letter(2)])
    path.rename(tmp_path / "dead.ndjson.1")
    (tmp_path / "dead.ndjson.1").chmod(0o640)
    assert read(path) == [1, 2]
    check_rewritable(path)
    rewrite(path, lambda line: None if b'"n":1' in line else line)
    assert read(path) == [2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # whoever appends next can


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_rewritten_file_keeps_its_owner(tmp_path: Path) -> None:
    """A service must be able to append to what an administrator rewrote."""
    path = tmp_path / "dead.ndjson"
    await write(path, [letter(1), letter(2)])
    os.chown(path, 12_345, 12_345)
    rewrite(path, lambda line: None if b'"n":1' in line else line)
    assert (path.stat().st_uid, path.stat().st_gid) == (12_345, 12_345)
    assert read(path) == [2]


@pytest.mark.parametrize("call", [check_rewritable, lambda path: rewrite(path, lambda line: line), Snapshot])
def test_nothing_there_is_an_error(call: object, tmp_path: Path) -> None:
    """And makes no file."""
    with pytest.raises(FileNotFoundError):
        call(tmp_path / "dead.ndjson")  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []
