"""``cio-batch purge``: nothing about a person is left, and nobody else loses anything."""

import sqlite3
from pathlib import Path

import orjson
import pytest

from cio_batch import DeadLetter, Email, Phone
from cio_batch import operations as ops
from cio_batch.cli import main
from cio_batch.letter_files import names
from cio_batch.operations import CioId, PersonId
from cio_batch.spools.database import Database

from .commands import numbers, run
from .kept import PLACES, Place, encoded, keep, kept, letter, owned, told


def about(number: int, draft: ops.Draft) -> DeadLetter:
    return DeadLetter(encoded(draft, number).body, letter(number).refusals, number=number)


LETTERS = [
    letter(1, "a"),
    letter(2, "ab"),
    about(3, ops.event(Email("a@b.de"), "bought", {"n": 3})),
    about(4, ops.merge("b", "a")),
    about(5, ops.event(Phone("+15551234567"), "bought", {"n": 5})),
    about(6, ops.event(CioId("0a"), "bought", {"n": 6})),
    about(7, ops.event("a@b.de", "bought", {"n": 7})),
    letter(8, "a"),
]


def left(path: Path) -> list[bytes]:
    return [each.body for each in kept(path)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["a"], [1, 4, 8]),
        (["--email", "a@b.de"], [3]),
        (["--phone", "+15551234567"], [5]),
        (["--cio-id", "cio_0a"], [6]),
        (["a", "--email", "a@b.de"], [1, 3, 4, 8]),
        (["nobody"], []),
    ],
)
def test_a_person_is_removed(
    place: Place, arguments: list[str], gone: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By that identifier and no other, wherever it is named; the rest is untouched."""
    path = keep(tmp_path, place, LETTERS)
    assert main(["purge", str(path), *arguments]) == 0

    assert left(path) == [each.body for number, each in enumerate(LETTERS, 1) if number not in gone]
    output = capsys.readouterr()
    assert numbers(output.out)["dead letters removed"] == str(len(gone))
    assert "a@b.de" not in output.out + output.err


def test_operations_go_too_and_no_byte_stays(tmp_path: Path) -> None:
    """Also what was delivered long ago and still stands in a free page."""
    waiting: list[PersonId] = ["secret-person", "b", Email("secret@b.de")]
    path = keep(tmp_path, "spool", [letter(1, "secret-person")], [ops.event(each, "waits") for each in waiting])
    database = Database(path)
    database.write([encoded(ops.event("secret-person", "delivered"), 2_000_000)], (), (), 0.0)
    database.write((), [2_000_000], (), 0.0)
    database.close()
    finished = run("purge", str(path), "secret-person", "--email", "secret@b.de", "--json")

    assert finished.returncode == 0, finished.stderr
    assert orjson.loads(finished.stdout) == {"operations": 2, "dead_letters": 1, "not_looked_into": []}
    assert all(b"secret" not in each.read_bytes() for each in tmp_path.iterdir())
    database = Database(path)
    assert [operation.key for operation in database.page(0, 10, 10_000)[0]] == ["b"]
    database.close()


def test_a_spool_that_is_owned_is_not_touched(tmp_path: Path) -> None:
    """It names the process and what to call there; afterwards it works."""
    path = keep(tmp_path, "spool", LETTERS)
    with owned(path) as pid:
        finished = run("purge", str(path), "a")
        assert finished.returncode == 2
        assert f"belongs to the process {pid}: call `await spool.purge(person)` there" in finished.stderr
        assert finished.stdout == ""
        assert len(kept(path)) == 8
    assert run("purge", str(path), "a").returncode == 0
    assert len(kept(path)) == 5


def test_what_was_not_looked_into_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A request for deletion is not done with where something cannot be read."""
    path = keep(tmp_path, "spool", LETTERS)
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO quarantine VALUES (1, 0.0, 'damaged', x'00')")
    connection.commit()
    connection.close()
    for side in ("", "-wal"):
        (tmp_path / f"spool.db.damaged-20260101T000000{side}").touch()
    assert main(["purge", str(path), "a"]) == 1
    output = capsys.readouterr().out
    assert "not looked into: 1 damaged rows in its quarantine" in output
    assert output.count("spool.db.damaged-20260101T000000, a damaged file that was kept") == 1
    assert "✓" not in output


def test_lines_that_cannot_be_read_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They stay, in whichever file they are."""
    path = keep(tmp_path, "files", LETTERS)
    oldest = names(path)[0]
    oldest.write_bytes(b"noise\n" + oldest.read_bytes())
    assert main(["purge", str(path), "a"]) == 1
    assert "1 lines that cannot be read" in capsys.readouterr().out
    assert b"noise\n" in b"".join(each.read_bytes() for each in names(path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say whom: PERSON, --email, --phone or --cio-id"),
        ([""], "person"),
        (["--email", "nobody"], "email: must hold an @"),
        (["--phone", "0123"], "phone: must be E.164"),
    ],
)
def test_a_wrong_identifier_is_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and nothing is removed."""
    path = keep(tmp_path, "file", [letter(1)])
    assert main(["purge", str(path), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert told(kept(path)) == [1]
