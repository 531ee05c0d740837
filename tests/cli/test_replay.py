"""``cio-batch replay``: dead letters sent again, removed as they are delivered, and never twice without need."""

import asyncio
import contextlib
import signal
import subprocess
from pathlib import Path

import attrs
import orjson
import pytest

from cio_batch import DeadLetterFile, Refusal
from cio_batch.letter_files import names

from .commands import COMMAND, numbers, run, surroundings, wait_until
from .conftest import Service
from .kept import PLACES, Place, keep, kept, letter, owned, told
from .test_send import start_toward_nobody


def arrived(service: Service, person: str) -> list[int]:
    """The numbers of a person's events, in the order of their arrival."""
    return [event["attributes"]["n"] for event in service.get(f"people/id/{person}")["events"]]


@pytest.mark.parametrize("place", PLACES)
def test_what_is_delivered_is_removed(place: Place, service: Service, tmp_path: Path) -> None:
    """All of it, in order per person, with the ids that it had."""
    letters = [letter(number, "ab"[number % 2]) for number in range(1, 61)]
    path = keep(tmp_path, place, letters)
    finished = run("replay", str(path), "--batch-size", "7", env=service.environment)

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert numbers(finished.stdout)["delivered"] == "60"
    assert "✓ Every dead letter was delivered." in finished.stdout
    assert arrived(service, "a") == list(range(2, 61, 2))
    assert arrived(service, "b") == list(range(1, 61, 2))
    assert service.get("people/id/b")["events"][0]["id"] == letters[0].id
    assert kept(path) == []
    if place != "spool":
        assert names(path) == [path]
    again = run("replay", str(path), env=service.environment)
    assert again.returncode == 0
    assert "There was no dead letter to send." in again.stdout


def test_files_are_sent_in_the_order_of_acceptance(service: Service, tmp_path: Path) -> None:
    """Not in the order in which letters were given up: a later one may have been refused earlier."""
    path = keep(tmp_path, "files", [letter(number) for number in (3, 1, 9, 2, 8, 4, 7, 6, 5)])
    assert run("replay", str(path), env=service.environment).returncode == 0
    assert arrived(service, "a") == list(range(1, 10))


@pytest.mark.parametrize("place", ["files", "spool"])
def test_what_is_refused_again_keeps_its_history(place: Place, service: Service, tmp_path: Path) -> None:
    """The new refusal is its newest; the others are gone."""
    path = keep(tmp_path, place, [letter(number) for number in range(1, 6)])
    for index in (1, 0):
        service.post("faults", {"order": [{"kind": "partial", "indexes": [index]}]})
        finished = run("replay", str(path), env=service.environment)
        assert finished.returncode == 1
        assert "rejected again: invalid, field identifiers" in finished.stderr
        (left,) = kept(path)
        assert told([left]) == [2]

    assert [each.reason for each in left.refusals] == ["invalid"] * 3
    assert [each.field for each in left.refusals] == ["name", "identifiers", "identifiers"]
    assert left.refusals[0] == letter(2).last
    assert left.refusals[1].status == 207
    assert left.refusals[0].at < left.refusals[1].at < left.refusals[2].at
    assert left.accepted_at is not None
    assert numbers(finished.stdout)["rejected again"] == "1"
    assert run("replay", str(path), env=service.environment).returncode == 0
    assert kept(path) == []


@pytest.mark.parametrize("place", ["file", "spool"])
def test_filters_and_a_dry_run(place: Place, service: Service, tmp_path: Path) -> None:
    """Only what is meant is sent, and nothing at all by --dry-run, which needs no credentials."""
    letters = [letter(1), letter(2, name="viewed"), letter(3, reason="deadline"), letter(4)]
    path = keep(tmp_path, place, letters)
    chosen = ("--name", "bought", "--reason", "invalid", "--since", "2025-11-24T16:01:42")

    dry = run("replay", str(path), "--dry-run", "--json", cwd=tmp_path)
    assert dry.returncode == 0
    assert orjson.loads(dry.stdout)["reasons"] == {"invalid": 3, "deadline": 1}
    dry = run("replay", str(path), "--dry-run", *chosen, env=service.environment)
    assert numbers(dry.stdout)["dead letters to send"] == "1"
    assert service.get("state")["calls"] == 0
    assert told(kept(path)) == [1, 2, 3, 4]

    content = orjson.loads(run("replay", str(path), "--json", *chosen, env=service.environment).stdout)
    assert (content["chosen"], content["delivered"], content["left"]) == (1, 1, 0)
    assert arrived(service, "a") == [4]
    assert told(kept(path)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "CUSTOMERIO_SITE_ID"),
        ({"CUSTOMERIO_DISABLED": "1"}, "CUSTOMERIO_DISABLED is set, so nothing would be sent"),
    ],
)
def test_without_sending_nothing_is_removed(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    """Missing credentials and a disabled service: 2, before anything is touched."""
    path = keep(tmp_path, "file", [letter(1)])
    before = path.read_bytes()
    finished = run("replay", str(path), env=environment, cwd=tmp_path)
    assert finished.returncode == 2
    assert said in finished.stderr
    assert finished.stdout == ""
    assert path.read_bytes() == before


def test_wrong_credentials_change_nothing(service: Service, tmp_path: Path) -> None:
    """They are no refusal of the letters."""
    path = keep(tmp_path, "file", [letter(number) for number in range(5)])
    before = path.read_bytes()
    finished = run("replay", str(path), env=service.environment | {"CUSTOMERIO_TRACK_API_KEY": "top-secret-key"})
    assert finished.returncode == 1
    assert "gave up" in finished.stderr
    assert numbers(finished.stdout)["left"] == "5"
    assert "the credentials were refused" in finished.stdout
    assert "top-secret" not in finished.stdout + finished.stderr
    assert path.read_bytes() == before


def test_letters_that_could_not_be_removed_are_not_sent(service: Service, tmp_path: Path) -> None:
    """It is found out before the first call."""
    path = keep(tmp_path, "file", [letter(1)])
    (tmp_path / "dead.ndjson.rewrite").mkdir()
    finished = run("replay", str(path), env=service.environment)
    assert finished.returncode == 2
    assert "so nothing was sent: Is a directory" in finished.stderr
    assert service.get("state")["calls"] == 0


def test_equal_letters_and_unreadable_lines(service: Service, tmp_path: Path) -> None:
    """Of equal ones each is a letter of its own; what cannot be read stays, and is said."""
    path = keep(tmp_path, "file", [letter(1), letter(1), letter(2), letter(1, reason="other")])
    path.write_bytes(b"noise\n" + path.read_bytes() + b'{"torn')
    finished = run("replay", str(path), "--reason", "invalid", env=service.environment)
    assert finished.returncode == 1
    assert numbers(finished.stdout)["delivered"] == "3"
    assert "2 dead letters cannot be read" in finished.stderr
    assert path.read_bytes() == b"noise\n" + letter(1, reason="other").to_line() + b'{"torn'
    assert arrived(service, "a") == [1, 2]  # the service knows the repeat by its id


def test_a_kind_that_cannot_be_sent_stays(service: Service, tmp_path: Path) -> None:
    """A line that is right but for its operation is unreadable, and holds up nobody."""
    path = keep(tmp_path, "file", [letter(1)])
    strange = letter(2).to_line().replace(b'"action":"event"', b'"action":"dance"')
    path.write_bytes(strange + path.read_bytes())
    assert run("replay", str(path), env=service.environment).returncode == 1
    assert path.read_bytes() == strange
    assert arrived(service, "a") == [1]


# ------------------------------------------------------------------------------------------- while it goes on


def start(service: Service, path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "replay", str(path), *arguments],
        env=surroundings(service.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SLOWLY = ("--batch-size", "1", "--concurrency", "1")


@pytest.mark.parametrize("service", [("--latency", "0.05")], indirect=True)
@pytest.mark.parametrize("place", ["files", "spool"])
def test_a_kill_repeats_little(place: Place, service: Service, tmp_path: Path) -> None:
    """What was delivered is removed as the verdicts come, not at the end."""
    path = keep(tmp_path, place, [letter(number) for number in range(1, 101)])
    process = start(service, path, *SLOWLY)
    wait_until(lambda: len(kept(path)) < 100)
    process.kill()
    process.communicate()
    left = told(kept(path))
    assert 0 < len(left) < 100

    finished = run("replay", str(path), env=service.environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert arrived(service, "a") == list(range(1, 101))
    assert numbers(finished.stdout)["dead letters"] == str(len(left))
    assert kept(path) == []


@pytest.mark.parametrize("service", [("--latency", "0.2")], indirect=True)
@pytest.mark.parametrize(("place", "signum"), [("file", signal.SIGINT), ("spool", signal.SIGTERM)])
def test_a_signal_stops_it_cleanly(place: Place, signum: signal.Signals, service: Service, tmp_path: Path) -> None:
    """What was accepted is sent; the figures and the file agree on the rest, which is as it was."""
    letters = [letter(number, f"p{number % 100}") for number in range(1, 25_001)]
    path = keep(tmp_path, place, letters)
    process = start(service, path, "--json", "--concurrency", "1")
    wait_until(lambda: service.get("state")["calls"] > 1)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 128 + signum, err
    assert "stopping" in err
    content = orjson.loads(out)
    left = kept(path)
    assert content["left"] == len(left) == 25_000 - content["delivered"] > 0
    assert content["delivered"] > 1_000
    assert service.get("state")["operations"] == {"person.event": content["delivered"]}
    assert [each.refusals for each in left] == [each.refusals for each in letters[content["delivered"] :]]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """What has no verdict then is as it was."""
    path = keep(tmp_path, "file", [letter(number) for number in range(50)])
    before = path.read_bytes()
    process = start_toward_nobody(path, command="replay")
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    while not process.stderr.readline().startswith("stopping"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=8)
    assert process.returncode == 130, err
    assert numbers(out)["left"] == "50"
    assert "some may have arrived" in " ".join(out.split())
    assert "Traceback" not in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("service", [("--latency", "0.05")], indirect=True)
def test_a_service_writes_meanwhile(service: Service, tmp_path: Path) -> None:
    """Letters that come during a replay are kept, each once, also when files become full."""
    path = keep(tmp_path, "file", [letter(number) for number in range(1, 41)])
    file = DeadLetterFile(path, max_bytes=3_000, backups=1_000)
    process = start(service, path, *SLOWLY)

    async def write() -> int:
        number = 1_000
        while process.poll() is None:
            file.put([letter(number)])
            assert await file.close()
            number += 1
        return number

    wait_until(lambda: len(kept(path)) < 40)  # what comes before it looks is sent, too
    last = asyncio.run(write())
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert arrived(service, "a") == list(range(1, 41))
    assert told(kept(path)) == list(range(1_000, last))
    assert last > 1_005
    assert file.lost == 0


def test_a_service_may_own_the_spool_meanwhile(service: Service, tmp_path: Path) -> None:
    """Dead letters are nobody's but the file's."""
    path = keep(tmp_path, "spool", [letter(number) for number in range(1, 6)])
    with owned(path):
        service.post("faults", {"order": [{"kind": "partial", "indexes": [1]}]})
        assert run("replay", str(path), env=service.environment).returncode == 1
        assert told(kept(path)) == [2]
        assert len(kept(path)[0].refusals) == 2


@pytest.mark.parametrize("service", [("--latency", "0.05")], indirect=True)
def test_what_could_not_be_recorded_is_said(service: Service, tmp_path: Path) -> None:
    """A disk that breaks during the replay: said once, and what would be sent a second time is counted."""
    path = keep(tmp_path, "file", [letter(number) for number in range(1, 41)])
    process = start(service, path, *SLOWLY)
    wait_until(lambda: len(kept(path)) < 40)
    obstacle = tmp_path / "dead.ndjson.rewrite"

    def put_in_the_way() -> bool:
        with contextlib.suppress(FileExistsError):
            obstacle.mkdir()
            return True
        return False

    wait_until(put_in_the_way)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert numbers(out)["delivered"] == "40"
    assert err.count("cannot be changed: Is a directory") == 1
    left = len(kept(path))
    assert f"{left} verdicts could not be recorded (Is a directory)" in out
    assert 0 < left < 40


def test_a_history_that_cannot_be_read_holds_up_nobody(service: Service, tmp_path: Path) -> None:
    """A letter in a database whose refusals are damaged begins a new history."""
    import sqlite3

    path = keep(tmp_path, "spool", [letter(1), letter(2)])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE dead_letters SET refusals = 'noise'")
    connection.commit()
    connection.close()
    service.post("faults", {"order": [{"kind": "partial", "indexes": [1]}]})
    assert run("replay", str(path), env=service.environment).returncode == 1
    (left,) = kept(path)
    assert [each.reason for each in left.refusals] == ["invalid"]


def test_many_pages(service: Service, tmp_path: Path) -> None:
    """More letters than are read at a time, with gaps that are not meant, and rows that cannot be read."""
    import sqlite3

    letters = [letter(n, f"p{n % 50}", reason="other" if 100 < n < 1_900 else "invalid") for n in range(1, 2_501)]
    path = keep(tmp_path, "spool", letters)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE dead_letters SET body = x'00' WHERE number BETWEEN 1900 AND 2450")
    connection.commit()
    connection.close()
    finished = run("replay", str(path), "--reason", "invalid", env=service.environment)
    assert finished.returncode == 1
    assert numbers(finished.stdout)["delivered"] == "150"
    assert "551 dead letters cannot be read" in finished.stderr
    assert told(kept(path)) == list(range(101, 1_900))


def test_a_letter_without_times(service: Service, tmp_path: Path) -> None:
    """One that somebody wrote by hand, without the time of its acceptance, is sent by the time of its refusal."""
    early = attrs.evolve(letter(1), accepted_at=None, refusals=(Refusal("failed", "deadline", at=5.0),))
    path = keep(tmp_path, "file", [letter(2), early])
    assert run("replay", str(path), env=service.environment).returncode == 0
    assert arrived(service, "a") == [1, 2]
