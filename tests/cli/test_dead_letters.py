"""``cio-batch dead-letters``: looking at what was refused, in a database and in files."""

import os
import stat
import subprocess
import time
from pathlib import Path

import attrs
import orjson
import pytest

from cio_batch import DeadLetter, Refusal
from cio_batch import operations as ops
from cio_batch.cli import main

from .commands import COMMAND, run, surroundings
from .kept import PLACES, Place, encoded, keep, kept, letter, owned, told, ulid

AGAIN = Refusal("failed", "status 503", "", "", 503, 9, 1_764_000_500.0)
LETTERS = [
    letter(1),
    letter(2, "b", name="viewed"),
    attrs.evolve(letter(3), refusals=(*letter(3).refusals, AGAIN)),
    letter(4, reason="deadline"),
    DeadLetter(encoded(ops.identify("a", {"plan": "secret"}), 5).body, letter(5).refusals, number=5),
]


@pytest.mark.parametrize("place", PLACES)
def test_list(place: Place, tmp_path: Path) -> None:
    """A row for each, counts by reason, and no content."""
    finished = run("dead-letters", "list", str(keep(tmp_path, place, LETTERS)))

    assert finished.returncode == 0, finished.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in finished.stdout.splitlines() if "│" in line]
    assert rows[:5] == [
        ["1", "2025-11-24 16:01:41", "bought", "invalid", "name", "400", "1"],
        ["2", "2025-11-24 16:01:42", "viewed", "invalid", "name", "400", "1"],
        ["3", "2025-11-24 16:08:20", "bought", "status 503", "", "503", "2"],
        ["4", "2025-11-24 16:01:44", "bought", "deadline", "name", "400", "1"],
        ["5", "2025-11-24 16:01:45", "person.identify", "invalid", "name", "400", "1"],
    ]
    assert rows[5] == ["rejected", "invalid", "3"]
    assert sorted(rows[6:]) == [["failed", "status 503", "1"], ["rejected", "deadline", "1"]]
    assert finished.stdout.splitlines()[-1] == "5 dead letters"
    assert "secret" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("place", ["file", "spool"])
@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--name", "bought"], [1, 3, 4]),
        (["--name", "person.identify"], [5]),
        (["--name", "bought", "--reason", "invalid"], [1]),
        (["--reason", "status 503"], [3]),
        (["--since", "2025-11-24T16:01:44"], [3, 4, 5]),
        (["--since", "2025-11-24T17:01:44+01:00"], [3, 4, 5]),
        (["--since", "2025-11-25"], []),
        (["--limit", "2"], [4, 5]),
    ],
)
def test_filters(
    place: Place, arguments: list[str], numbers: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name or kind, by the newest reason, by the time of refusal; the newest when there are too many."""
    path = str(keep(tmp_path, place, LETTERS))
    assert main(["dead-letters", "list", path, "--json", *arguments]) == 0
    content = orjson.loads(capsys.readouterr().out)
    assert [each["number"] for each in content["letters"]] == numbers
    if "--limit" in arguments:
        assert content["total"] == 5
        assert main(["dead-letters", "list", path, *arguments]) == 0
        assert "5 dead letters, 3 of them older than those above" in capsys.readouterr().out
    else:
        assert content["total"] == len(numbers) == sum(each["count"] for each in content["reasons"])


def test_an_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``2h`` means the last two hours."""
    now = time.time()
    path = keep(tmp_path, "file", [letter(1, at=now - 7_300), letter(2, at=now - 7_100)])
    assert main(["dead-letters", "list", str(path), "--json", "--since", "2h"]) == 0
    assert [each["number"] for each in orjson.loads(capsys.readouterr().out)["letters"]] == [2]


@pytest.mark.parametrize("when", ["yesterday", "2h30m", "-1h", "2025-13-01", ""])
def test_a_wrong_time_is_a_usage_error(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Named as what was expected."""
    assert main(["dead-letters", "list", "file", f"--since={when}"]) == 2
    assert "invalid date, time or age" in capsys.readouterr().err


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", ["3", ulid(3)])
def test_show(
    place: Place, which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number or by id: the operation, and each refusal."""
    monkeypatch.setenv("COLUMNS", "120")
    path = keep(tmp_path, place, LETTERS)
    assert main(["dead-letters", "show", str(path), which]) == 0
    output = capsys.readouterr().out
    assert "a secret explanation" in output
    assert output.index("invalid") < output.index("status 503")
    assert orjson.loads(output[output.index("\n{") :]) == LETTERS[2].payload

    assert main(["dead-letters", "show", str(path), which, "--json"]) == 0
    shown = orjson.loads(capsys.readouterr().out)
    assert shown["number"] == 3
    assert shown["operation"] == LETTERS[2].payload
    assert shown["refusals"] == [attrs.asdict(each) for each in LETTERS[2].refusals]


def test_show_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1."""
    assert main(["dead-letters", "show", str(keep(tmp_path, "file", LETTERS)), "17"]) == 1
    output = capsys.readouterr()
    assert "no dead letter with this number or id" in output.err
    assert output.out == ""


@pytest.mark.parametrize("place", PLACES)
def test_export(place: Place, tmp_path: Path) -> None:
    """To standard output, or to a new file for its owner alone; what comes out is what a DeadLetterFile holds."""
    path, target = keep(tmp_path, place, LETTERS), tmp_path / "out.ndjson"
    finished = run("dead-letters", "export", str(path))
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.encode().splitlines(keepends=True)
    expected = [(each.body, each.refusals) for each in LETTERS]
    assert [(each.body, each.refusals) for each in map(DeadLetter.from_line, lines)] == expected

    arguments = ("dead-letters", "export", str(path), "--out", str(target))
    assert run(*arguments, "--name", "viewed").returncode == 0
    assert told(kept(target)) == [2]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    finished = run(*arguments)
    assert finished.returncode == 2
    assert "File exists" in finished.stderr
    assert told(kept(target)) == [2]


def test_export_to_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """It ends, and silently."""
    path = keep(tmp_path, "file", [letter(number) for number in range(3_000)])
    process = subprocess.Popen(
        [*COMMAND, "dead-letters", "export", str(path)],
        env=surroundings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 0


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """They hide none of the others, and nothing of them is printed."""
    path = keep(tmp_path, "file", LETTERS)
    path.write_bytes(b'{"secret":1}\n\n' + path.read_bytes() + b'{"verdict":"secr')
    finished = run("dead-letters", "list", str(path))
    assert finished.returncode == 1
    assert "5 dead letters" in finished.stdout
    assert finished.stderr == "2 dead letters cannot be read; they stay where they are\n"


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same in a database."""
    import sqlite3

    path = keep(tmp_path, "spool", LETTERS)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE dead_letters SET body = x'00' WHERE number = 2")
    connection.execute("UPDATE dead_letters SET refusals = 'secret' WHERE number = 1")
    connection.commit()
    connection.close()
    assert main(["dead-letters", "list", str(path)]) == 1
    output = capsys.readouterr()
    assert "4 dead letters" in output.out
    assert "unreadable" in output.out
    assert output.err == "1 dead letters cannot be read; they stay where they are\n"


def test_what_others_wrote_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by a reason nor by a name."""
    path = keep(tmp_path, "file", [letter(1, name="\x1b[2Jname", reason="\x1b]0;title\x07[bold]reason")])
    assert main(["dead-letters", "list", str(path)]) == 0
    assert main(["dead-letters", "show", str(path), "1"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "[bold]" in output


def test_a_service_may_own_the_spool_meanwhile(tmp_path: Path) -> None:
    """To read needs no ownership."""
    path = keep(tmp_path, "spool", LETTERS)
    with owned(path):
        assert "5 dead letters" in run("dead-letters", "list", str(path)).stdout
        assert len(run("dead-letters", "export", str(path)).stdout.splitlines()) == 5
    assert len(kept(path)) == 5


def make_foreign(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("command", [["dead-letters", "list"], ["replay", "--dry-run"], ["purge", "--email", "a@b.c"]])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (make_foreign, "a database of another program"),
        (lambda path: path.write_bytes(b"SQLite format 3\x00" + os.urandom(200)), "SQLITE_"),
    ],
    ids=["missing", "directory", "foreign", "damaged"],
)
def test_what_cannot_be_read_is_said(
    command: list[str], make: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and nothing is made."""
    path = tmp_path / "dead"
    make(path)  # type: ignore[operator]
    before = path.exists()
    name, *options = command
    positions = [str(path)] if name != "dead-letters" else [*options[:1], str(path)]
    options = options[1:] if name == "dead-letters" else options
    assert main([name, *positions, *options]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.startswith("cio-batch: cannot ")
    assert output.out == ""
    assert path.exists() is before


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file has no dead letters, and that is well."""
    path = tmp_path / "dead.ndjson"
    path.touch()
    assert main(["dead-letters", "list", str(path)]) == 0
    assert capsys.readouterr().out == "no dead letters\n"
