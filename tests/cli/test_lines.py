"""Lines of a file: how they are read, and what is wrong with them."""

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cio_batch import operations as ops
from cio_batch.cli.ledger import Ledger
from cio_batch.cli.lines import LineError, read_line
from cio_batch.cli.reading import MAX_LINE_BYTES, Line, Lines, read_blocks
from cio_batch.cli.stopping import Stop

ULID = "01JAZZZZZZZZZZZZZZZZZZZZZZ"


def line(**fields: Any) -> bytes:
    """Return a line."""
    return orjson.dumps(fields)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            line(user_id="a", type="identify", attributes={"x": 1}, timestamp=5),
            ops.identify("a", {"x": 1}, timestamp=5),
        ),
        (line(user_id="a", type="identify"), ops.identify("a")),
        (line(user_id="a", type="track", name="n", data=None), ops.event("a", "n")),
        (
            line(user_id="a", type="track", name="n", data={"é": 1}, timestamp=5, id=ULID),
            ops.event("a", "n", {"é": 1}, timestamp=5, id=ULID),
        ),
        (line(user_id="a", type="page", name="/x"), ops.page("a", "/x")),
        (line(user_id="a", type="screen", name="Home"), ops.screen("a", "Home")),
        (line(user_id="a", type="delete", timestamp=5), ops.delete("a")),
        (line(user_id="a", type="suppress"), ops.suppress("a")),
        (line(user_id="a", type="unsuppress"), ops.unsuppress("a")),
    ],
)
def test_a_line_says_an_operation(given: bytes, said: ops.Draft) -> None:
    """Each type has its operation."""
    assert read_line(given) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b'{"user_id": "a"', "is not valid JSON (column 16)"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (line(type="track", name="n"), "user_id: is missing"),
        (line(user_id="a", type="track", name=None), "name: is missing"),
        (line(user_id="a"), "type: is missing"),
        (line(user_id="a", type="group"), "type: must be one of identify, track, page"),
        (line(user_id="a", type=["track"]), "type: must be one of"),
        (line(user_id="a", type="track", name="n", properties={}), "properties: is no field of track"),
        (line(user_id="a", type="delete", name="n"), "name: is no field of delete; it has timestamp"),
        (line(user_id="a", type="delete", **{"x" * 99: 1}), "<a long or odd name>: is no field"),
    ],
)
def test_a_bad_line_is_explained(given: bytes, said: str) -> None:
    """The text names the field."""
    with pytest.raises(LineError) as caught:
        read_line(given)

    assert said in str(caught.value)


def split(blocks: list[bytes]) -> Iterator[Line]:
    """Split blocks to the end."""
    lines = Lines()
    for block in blocks:
        yield from lines.split(block)
    yield from lines.end()


def test_lines_do_not_depend_on_the_blocks() -> None:
    """Wherever a block ends, the lines and their numbers are the same."""
    content = b"one\r\n\n  \ntwo\nthree\n\nfour"
    expected = [(1, b"one"), (4, b"two"), (5, b"three"), (7, b"four")]
    draw = random.Random(1)
    for _ in range(200):
        cuts = sorted(draw.choices(range(len(content) + 1), k=draw.randint(0, 8)))
        blocks = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
        assert list(split(blocks)) == expected


def test_every_byte_and_every_line_is_counted() -> None:
    """Blank lines have their own count, and the bytes of the lines that came out are those of the file."""
    lines = Lines()
    content = b"one\r\n\n  \ntwo\nthree"
    list(lines.split(content))
    assert (lines.number, lines.blank, lines.ended_bytes) == (4, 2, len(content) - len("three"))
    list(lines.end())
    assert (lines.number, lines.blank, lines.ended_bytes) == (5, 2, len(content))


def test_a_line_without_end_is_bounded() -> None:
    """A line that is too long comes out as None, at its number, and the next one is whole again."""
    blocks = [b"one\n", *[b"x" * 300_000] * 5, b"x\nthree\n", b"y" * (MAX_LINE_BYTES + 1)]

    assert list(split(blocks)) == [(1, b"one"), (2, None), (3, b"three"), (4, None)]
    assert list(split([b"z" * MAX_LINE_BYTES])) == [(1, b"z" * MAX_LINE_BYTES)]


async def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    """The blocks are the file."""
    content = os.urandom(600_000)
    (tmp_path / "file").write_bytes(content)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with Stop() as stop:
            assert b"".join([block async for block in read_blocks(file, stop)]) == content
    finally:
        os.close(file)


async def test_a_silent_pipe_does_not_hold_up_the_end() -> None:
    """Rule 1: whoever stops does not wait for the next block."""
    reading, writing = os.pipe()
    try:
        with Stop() as stop:
            os.write(writing, b"one\n")
            asyncio.get_running_loop().call_later(0.05, stop.now)
            async with asyncio.timeout(5):
                assert [block async for block in read_blocks(reading, stop)] == [b"one\n"]
    finally:
        os.close(writing)
        while any(thread.name == "cio-batch read" for thread in threading.enumerate()):
            await asyncio.sleep(0.002)  # until the reading thread has seen the end
        os.close(reading)


async def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """What the system says comes out of the thread."""
    file = os.open(tmp_path, os.O_RDONLY)
    try:
        with Stop() as stop, pytest.raises(IsADirectoryError):
            [block async for block in read_blocks(file, stop)]
    finally:
        os.close(file)


def wire(identifier: str, number: int, **fields: Any) -> dict[str, Any]:
    """Return an event as the service has it."""
    event = {"type": "person", "action": "event", "identifiers": {"id": identifier}, "name": "n", "timestamp": 5}
    return event | {"id": ULID[:-1] + str(number)} | fields


def ledger() -> Ledger:
    """Return the ledger of two people: an identify and three events, and one event."""
    book = Ledger()
    book.add(ops.identify("ann", {"a": 1.50}, timestamp=4))
    for number in range(3):
        book.add(ops.event("ann", "n", timestamp=5, id=ULID[:-1].lower() + str(number)))
    book.add(ops.event("bob", "n", {"x": None}, timestamp=5.9, id=ULID[:-1] + "9"))
    return book


IDENTIFY = {
    "type": "person",
    "action": "identify",
    "identifiers": {"id": "ann"},
    "attributes": {"a": 1.5},
    "timestamp": 4,
}
BOB = wire("bob", 9, attributes={"x": None})


def test_a_ledger_agrees_with_a_faithful_service() -> None:
    """Ids in upper case, whole seconds, fields in any order: the same operations."""
    arrived = {"ann": [IDENTIFY, *(wire("ann", number) for number in range(3))], "bob": [BOB]}
    comparison = ledger().compare(arrived)

    assert comparison.broken == []
    assert (comparison.people, comparison.expected) == (2, 5)


@pytest.mark.parametrize(
    ("arrived", "said"),
    [
        ({"ann": [IDENTIFY, wire("ann", 0), wire("ann", 2)], "bob": [BOB]}, ["1 operations never arrived"]),
        (
            {"ann": [IDENTIFY, wire("ann", 1), wire("ann", 0), wire("ann", 2)], "bob": [BOB]},
            ["1 operations arrived after a later one of the same person"],
        ),
        (
            {"ann": [IDENTIFY, *(wire("ann", number) for number in range(3))], "bob": [BOB], "eve": [wire("eve", 7)]},
            ["1 operations arrived that nobody sent"],
        ),
        (
            {"ann": [IDENTIFY, wire("ann", 0, name="m"), wire("ann", 1), wire("ann", 2)], "bob": [BOB]},
            ["1 operations never arrived", "1 operations arrived that nobody sent"],
        ),
    ],
)
def test_a_ledger_finds_what_is_broken(arrived: dict[str, list[dict[str, Any]]], said: list[str]) -> None:
    """A missing, a misplaced, an invented and a changed operation."""
    assert ledger().compare(arrived).broken == said


def test_an_excused_operation_may_be_there_or_not() -> None:
    """What was rejected or failed is no longer expected, and no surprise either."""
    book = ledger()
    book.excuse(BOB)
    ann = [IDENTIFY, *(wire("ann", number) for number in range(3))]

    assert book.compare({"ann": ann}).broken == []
    assert book.compare({"ann": ann, "bob": [BOB]}).broken == []
