"""The file of a spool: what is written, read, removed; hostile rows."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from cio_batch import operations as ops
from cio_batch.dead_letters import Refusal
from cio_batch.errors import SpoolError
from cio_batch.operations import Email
from cio_batch.spools.database import APPLICATION_ID, MAX_NUMBER, ROOTS, SCHEMA_VERSION, TABLES, Database, checksum

from .files import event, opened

REFUSED = Refusal("rejected", "test", at=1.0)
HOSTILE = {
    "a wrong checksum": "UPDATE operations SET checksum = checksum + 1 WHERE number = 2",
    "a checksum of bytes": "UPDATE operations SET checksum = x'00ff' WHERE number = 2",
    "a checksum that is infinite": "UPDATE operations SET checksum = 9e999 WHERE number = 2",
    "a checksum of text that is none": "UPDATE operations SET checksum = CAST(x'ff22ff' AS TEXT) WHERE number = 2",
    "a body of text": "UPDATE operations SET body = CAST(body AS TEXT) || 'ü' WHERE number = 2",
    "a body of text that is none": "UPDATE operations SET body = CAST(x'ff00ff' AS TEXT) WHERE number = 2",
    "a body that is a number": "UPDATE operations SET body = 7 WHERE number = 2",
    "an empty body": "UPDATE operations SET body = x'' WHERE number = 2",
    "a body that is cut": "UPDATE operations SET body = substr(body, 1, 40) WHERE number = 2",
    "a body of zeros": "UPDATE operations SET body = zeroblob(100) WHERE number = 2",
    "a body of many MB": "UPDATE operations SET body = zeroblob(20000000) WHERE number = 2",
    "another number": "UPDATE operations SET number = 4 WHERE number = 2",
    "number 0": "UPDATE operations SET number = 0 WHERE number = 2",
    "a negative number": "UPDATE operations SET number = -2 WHERE number = 2",
    "the largest number": "UPDATE operations SET number = 9223372036854775807 WHERE number = 2",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def run(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Change the file behind the spool's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    found: list[tuple[object, ...]] = []
    for statement in statements:
        found = connection.execute(statement).fetchall()
    connection.close()
    return found


def test_the_file_is_made_for_its_owner_alone(path: Path) -> None:
    """Mode 0600, whatever the umask, and so are its log and the memory that it shares."""
    before = os.umask(0)
    try:
        database = Database(path)
        database.write([event(1)], (), (), 1.0)
        assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
        assert len(list(path.parent.iterdir())) == 3
        database.close()
    finally:
        os.umask(before)


def test_the_tables_begin_where_salvage_looks_for_them(path: Path) -> None:
    """Also after the file was written anew."""
    database = Database(path)
    for _ in range(2):
        database.write([event(number) for number in range(1, 100)], range(1, 100), (), 1.0)
        database.scrub()
        found = run(path, "SELECT name, rootpage FROM sqlite_schema ORDER BY rootpage")
        assert found == list(zip(TABLES, ROOTS, strict=True))
    database.close()


def test_what_is_written_is_read_in_order_with_the_same_bytes(path: Path) -> None:
    """Pages end where their count or their bytes are reached, and hold at least one."""
    database = Database(path)
    written = [event(number, size=number * 10) for number in range(1, 101)]
    database.write(written, (), (), 1.0)
    assert database.page(0, 1_000, 10**9) == (written, [])
    assert database.page(50, 7, 10**9) == (written[50:57], [])
    assert database.page(50, 1_000, 1) == (written[50:51], [])
    assert database.page(100, 1_000, 1) == ([], [])
    assert database.count() == database.last_number() == 100
    database.close()


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    """A number that is there already undoes the acknowledgements and dead letters of its transaction too."""
    database = Database(path)
    database.write([event(1), event(2)], (), (), 1.0)
    with pytest.raises(sqlite3.IntegrityError):
        database.write([event(3), event(1)], [1], [(2, REFUSED)], 2.0)
    assert [operation.number for operation in database.page(0, 10, 10**9)[0]] == [1, 2]
    assert database.dead_letters == 0
    database.close()


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_row_costs_itself_alone(path: Path, what: str) -> None:
    """It is counted as lost and set aside; its neighbours are read, and new operations follow."""
    database = Database(path)
    database.write([event(1), event(2), event(3)], (), (), 1.0)
    database.close()
    run(path, HOSTILE[what])
    async with opened(path) as spool:
        assert spool.contents.last_number < MAX_NUMBER
        found, lost = await spool.read_all(most=1)
        assert [operation.number for operation in found] == [1, 3]
        assert spool.contents.operations == 2 + lost
        await spool.append(event(spool.contents.last_number + 1))
        assert spool.reports[-1].error is None
        assert spool.reports[-1].quarantined == 1
        assert (await spool.read_all())[1] == 0
    assert len(run(path, "SELECT number, body FROM quarantine")) == 1


async def test_a_page_of_damaged_rows_alone_is_not_the_end(path: Path) -> None:
    """Read on, until there is an operation or nothing more."""
    database = Database(path)
    database.write([event(number) for number in range(1, 301)], (), (), 1.0)
    database.close()
    run(path, "UPDATE operations SET checksum = 0 WHERE number BETWEEN 1 AND 250")
    async with opened(path) as spool:
        page = await spool.spool.read(0, 10, 10**9)
        assert page.operations[0].number == 251
        assert page.lost == 250


def test_the_moment_of_acceptance_finds_a_number_that_is_there(path: Path) -> None:
    """The highest of those before it, 0 for none; a clock that goes back makes nothing older than its predecessors."""
    database = Database(path)
    database.write([event(10)], (), (), 100.0)
    database.write([event(11)], (), (), 200.0)
    database.write([event(12)], (), (), 150.0)
    found = [database.last_before(moment) for moment in (50.0, 100.0, 101.0, 160.0, 200.0, 201.0)]
    assert found == [0, 0, 10, 10, 10, 12]
    database.write((), [10], (), 1.0)
    assert database.last_before(101.0) == 0
    database.close()


def test_used_bytes_follow_what_is_in_it(path: Path) -> None:
    """They grow with the operations, shrink with acknowledgements, and the pages are used again."""
    database = Database(path)
    empty = database.used_bytes()
    size = 0
    for start in range(1, 5_001, 1_000):
        database.write([event(number, size=1_000) for number in range(start, start + 1_000)], (), (), 1.0)
        assert database.used_bytes() - empty > 1_000_000
        database.write((), range(start, start + 1_000), (), 1.0)
        assert database.used_bytes() - empty < 50_000
        database.empty_log()
        size = size or path.stat().st_size
    assert path.stat().st_size <= size + 100_000
    database.close()


def test_purging_leaves_no_byte_of_a_person(path: Path) -> None:
    """Neither in the file nor in its log: of what waits, of dead letters, of damaged rows, of what was delivered."""
    secret = "ada.lovelace@example.com"
    mark = secret.encode()
    database = Database(path)
    wire = b'{"type":"person","action":"identify","identifiers":{"email":"%s"},"attributes":{"a":"%s"}}'
    body = wire % (mark, mark * 300)
    numbers = [number for number in range(1, 400) if number % 3]
    database.write([event(number) for number in range(3, 400, 3)], (), (), 1.0)
    database.write([ops.decode(body, number) for number in numbers], numbers[:100], [(numbers[200], REFUSED)], 1.0)
    database.write((), numbers[100:150], (), 1.0)
    run(path, f"UPDATE operations SET checksum = 0 WHERE number = {numbers[210]}")
    bad = database.page(numbers[210] - 1, 1, 1)[1]
    database.set_aside(bad, "damaged", 1.0)
    purged, dead = database.purge(frozenset({ops.key_of(Email(secret))}))
    assert dead == 1
    assert set(purged) == set(numbers[150:]) - {numbers[200], numbers[210]}
    assert database.quarantined == 0
    database.scrub()
    for each in path.parent.iterdir():
        assert mark not in each.read_bytes(), each.name
    assert [operation.number for operation in database.page(0, 1_000, 10**9)[0]] == list(range(3, 400, 3))
    database.close()
    assert mark not in path.read_bytes()


def test_a_purge_says_when_a_reader_keeps_the_log(path: Path) -> None:
    """The bytes would stay in it: that is an error, and a second call ends the matter."""
    database = Database(path)
    database.write([event(1, person="ada")], (), (), 1.0)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM operations").fetchone()
    database._connection.execute("PRAGMA busy_timeout=50")
    assert database.purge(frozenset({"ada"})) == ([1], 0)
    with pytest.raises(SpoolError, match="another process reads it"):
        database.scrub()
    reader.close()
    database.scrub()
    assert b'"ada"' not in path.read_bytes()
    database.close()


def test_dead_letters_with_a_damaged_history_are_still_letters(path: Path) -> None:
    """Their operation counts; what cannot be read of the rest is said to be so, and can be added to."""
    database = Database(path)
    database.write([event(number) for number in (1, 2, 3)], (), (), 1.0)
    strange = Refusal("rejected", "lone \ud800 surrogate", at=5.0)
    database.write((), (), [(1, REFUSED), (2, strange), (3, REFUSED)], 1.0)
    run(path, "UPDATE dead_letters SET refusals = 'nonsense', accepted_at = x'00' WHERE number = 1")
    database.refuse_again([(1, REFUSED), (3, strange)])
    letters = {letter.number: letter for letter in database.letters()}
    assert letters[1].refusals == (REFUSED,)
    assert letters[1].accepted_at is None
    assert letters[2].last.at == letters[3].last.at == 5.0
    assert len(letters[3].refusals) == 2
    database.close()


def test_dead_letters_that_another_process_removed_are_counted_again(path: Path) -> None:
    """The count follows the file."""
    database = Database(path)
    database.write([event(1), event(2)], (), [(1, REFUSED), (2, REFUSED)], 1.0)
    database.used_bytes()
    assert database.dead_letters == 2
    other = Database(path)
    other.remove_letters([1])
    other.close()
    database.used_bytes()
    assert database.dead_letters == 1
    database.close()


def test_the_file_of_another_program_is_refused_and_not_touched(path: Path) -> None:
    """A SQLite file with other tables is somebody's; ours of a later version is too."""
    run(path, "CREATE TABLE theirs (a)", "INSERT INTO theirs VALUES (1)")
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="another program"):
        Database(path)
    assert path.read_bytes() == before
    path.unlink()
    Database(path).close()
    run(path, f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(SpoolError, match="newer version"):
        Database(path)
    run(path, f"PRAGMA user_version={SCHEMA_VERSION}", "PRAGMA application_id=7")
    damaged = Database(path)
    assert not damaged.is_current  # our tables under another mark: damaged, and not somebody else's
    damaged.close()
    assert APPLICATION_ID != 7


def test_a_checksum_knows_its_row() -> None:
    """The same body under another number has another one."""
    assert checksum(1, b"x") != checksum(2, b"x")
