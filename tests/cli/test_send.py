"""``cio-batch send``: files, pipes, faults, signals."""

import signal
import subprocess
from pathlib import Path

import orjson
import pytest

import cio_batch
from cio_batch.cli import main

from .commands import COMMAND, numbers, run, surroundings, track, wait_until, write_lines
from .conftest import Service

COMMITS = Path(cio_batch.__file__).parent.parent.parent / "shared" / "data" / "commits.ndjson"


@pytest.mark.skipif(
    not COMMITS.exists(),
    reason="shared/data/commits.ndjson is not beside this repository",
)
def test_real_operations_arrive_once_and_in_order_through_every_fault() -> None:
    """14,947 operations of 886 people, very skewed, at a fault rate of 30 %."""
    finished = run("send", str(COMMITS), "--simulate", "--faults", "0.3")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    table = numbers(finished.stdout)
    assert table["lines"] == table["accepted"] == table["delivered"] == "14,947"
    assert table["people"] == "886"
    assert [table[name] for name in ("missing", "unexpected", "out of order", "person overlaps")] == ["0"] * 4
    faults = {name: int(number) for name, number in table.items() if name.startswith("fault ")}
    assert len(faults) == 10
    assert min(faults.values()) > 0
    assert "Every accepted operation arrived exactly once" in finished.stdout
    assert finished.stderr == ""


def test_json(tmp_path: Path) -> None:
    """--json puts the same numbers on standard output, and nothing else."""
    file = write_lines(tmp_path / "file", [track(f"person-{number % 7}", number) for number in range(100)])
    finished = run("send", str(file), "--simulate", "--json", "--batch-size", "10", "--concurrency", "3")

    assert finished.returncode == 0, finished.stderr
    content = orjson.loads(finished.stdout)
    assert content["delivered"] == content["expected"] == 100
    assert content["calls"] >= 10
    assert content["broken"] == []


def test_every_type_arrives_from_standard_input(service: Service) -> None:
    """- reads standard input; empty lines do not matter, a missing end of line neither."""
    lines = [
        {"user_id": "a/b", "type": "identify", "timestamp": 1_764_000_000, "attributes": {"plan": "pro"}},
        track("a/b", 1),
        {"user_id": "a/b", "type": "page", "name": "/pricing"},
        {"user_id": "a/b", "type": "screen", "name": "Home"},
        {"user_id": "b", "type": "suppress"},
        {"user_id": "b", "type": "unsuppress"},
        {"user_id": "c", "type": "delete"},
    ]
    text = b"\n\n".join(map(orjson.dumps, lines))
    finished = run("send", "-", env=service.environment, stdin=text)

    assert finished.returncode == 0, finished.stderr
    assert numbers(finished.stdout)["delivered"] == "7"
    assert service.get("state")["operations"] == {
        f"person.{action}": 1 for action in ("identify", "event", "page", "screen", "suppress", "unsuppress", "delete")
    }
    person = service.get("people/id/a%2Fb")
    assert [event["name"] for event in person["events"]] == ["viewed", "/pricing", "Home"]
    assert person["events"][0]["attributes"] == {"n": 1}


def test_bad_lines_are_named_and_the_others_sent(tmp_path: Path) -> None:
    """Each bad line is told by its number and never by its content; the exit code is 1."""
    file = write_lines(
        tmp_path / "file",
        [
            track("a", 1),
            b'{"user_id": "a", "secret":',
            {"user_id": "a", "type": "track", "data": {"secret": 1}},
            b"",
            track("a", 2, name="x" * 120),
            track("a", 3, properties={"secret": 1}),
            {"user_id": "a", "type": "identify", "attributes": {"name": "secret" * 200}},
            track("a", 4),
        ],
    )
    finished = run("send", str(file), "--simulate")

    assert finished.returncode == 1
    assert finished.stderr.splitlines() == [
        "line 2: is not valid JSON (column 27)",
        "line 3: name: is missing",
        "line 5: name: is 120 bytes, at most 100 are allowed",
        "line 6: properties: is no field of track; it has data, id, name, timestamp",
        "line 7: attributes.name: is 1200 bytes, at most 1000 are allowed",
    ]
    table = numbers(finished.stdout)
    assert (table["bad lines"], table["delivered"]) == ("5", "2")
    assert "secret" not in finished.stdout


def test_at_most_twenty_complaints_are_printed(tmp_path: Path) -> None:
    """The others are counted."""
    finished = run("send", str(write_lines(tmp_path / "file", [b"{"] * 53)), "--simulate")

    complaints = finished.stderr.splitlines()
    assert len(complaints) == 21
    assert complaints[19].startswith("line 20: ")
    assert complaints[20] == "… and 33 more"
    assert numbers(finished.stdout)["bad lines"] == "53"
    assert finished.returncode == 1


def test_what_the_service_refuses_is_named_by_line(service: Service, tmp_path: Path) -> None:
    """A 207 names its operations; the command finds the lines, equal ones too, and ends with 1."""
    same = {"user_id": "b", "type": "identify", "attributes": {"plan": "pro"}}
    file = write_lines(tmp_path / "file", [track("a", 1), b"", track("a", 2), same, same, track("c", 1)])
    service.post("faults", {"order": [{"kind": "partial", "indexes": [1, 2]}]})
    finished = run("send", str(file), env=service.environment)

    assert finished.returncode == 1
    first, second = finished.stderr.splitlines()
    assert first == "line 3: rejected: invalid, field identifiers (status 207)"
    assert second.removeprefix("line ").partition(":")[0] in ("4", "5")  # equal lines cannot be told apart
    table = numbers(finished.stdout)
    assert (table["accepted"], table["delivered"], table["rejected"]) == ("5", "3", "2")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY"]),
        ({"CUSTOMERIO_TRACK_API_KEY": "top-secret-key"}, ["CUSTOMERIO_SITE_ID"]),
        ({"CUSTOMERIO_SITE_ID": "site"}, ["CUSTOMERIO_TRACK_API_KEY"]),
        ({"CUSTOMERIO_SITE_ID": "site", "CUSTOMERIO_TRACK_API_KEY": "top-secret\x01key"}, ["CUSTOMERIO_TRACK_API_KEY"]),
    ],
)
def test_missing_credentials_are_named(given: dict[str, str], missing: list[str], tmp_path: Path) -> None:
    """The exit code is 2, each variable is named, and no key is shown."""
    finished = run("send", str(write_lines(tmp_path / "file", [track("a", 1)])), env=given, cwd=tmp_path)

    assert finished.returncode == 2
    for variable in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY"):
        assert (variable in finished.stderr) is (variable in missing)
    assert "top-secret" not in finished.stderr + finished.stdout
    assert finished.stdout == ""


def test_a_dotenv_file_gives_the_credentials(service: Service, tmp_path: Path) -> None:
    """--dotenv reads .env of the working directory."""
    pytest.importorskip("dotenv", reason="python-dotenv is an extra")
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in service.environment.items()))
    file = write_lines(tmp_path / "file", [track("a", 1)])

    assert run("send", str(file), cwd=tmp_path).returncode == 2
    assert run("send", str(file), "--dotenv", cwd=tmp_path).returncode == 0
    assert service.get("state")["operations"] == {"person.event": 1}


def test_wrong_credentials_end_it(service: Service, tmp_path: Path) -> None:
    """It does not wait for ever: 2, the variables, how many were not sent, and no key."""
    file = write_lines(tmp_path / "file", [track("a", number) for number in range(50)])
    environment = service.environment | {"CUSTOMERIO_TRACK_API_KEY": "top-secret-key"}
    finished = run("send", str(file), env=environment)

    assert finished.returncode == 2
    assert "Customer.io refuses these credentials (status 401): check CUSTOMERIO_SITE_ID" in finished.stderr
    assert "line 1:" not in finished.stderr
    assert "top-secret" not in finished.stderr + finished.stdout
    table = numbers(finished.stdout)
    assert (table["accepted"], table["delivered"], table["failed"]) == ("50", "0", "50")


@pytest.mark.parametrize("name", ["nothing-here", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    """The exit code is 2, before anything is sent."""
    finished = run("send", name, "--simulate", cwd=tmp_path)

    assert finished.returncode == 2
    assert finished.stderr.startswith(f"cio-batch: cannot read {name}: ")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_says_where_it_stopped(service: Service, signum: signal.Signals) -> None:
    """A pipe that never ends: what came is delivered, the summary is printed, the exit code names the signal."""
    process = subprocess.Popen(
        [*COMMAND, "send", "-"],
        env=surroundings(service.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    for number in range(3):
        process.stdin.write(orjson.dumps(track("a", number)) + b"\n")
    process.stdin.flush()
    wait_until(lambda: service.get("state")["operations"] == {"person.event": 3})  # a pipe is not read in blocks
    process.stdin.write(orjson.dumps(track("a", 3)) + b'\n{"user_id": "half a line')
    process.stdin.flush()
    wait_until(lambda: service.get("state")["operations"] == {"person.event": 4})
    process.send_signal(signum)
    try:
        process.wait(10)
    finally:
        process.kill()
    out, err = process.communicate()

    assert process.returncode == 128 + signum, err
    assert numbers(out.decode())["delivered"] == "4"
    assert numbers(out.decode())["not sent"] == "from line 5"
    assert b"stopping" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("service", [("--latency", "0.4")], indirect=True)
def test_a_signal_drains_what_waits(service: Service, tmp_path: Path) -> None:
    """What was accepted is sent before the end; what was not read is named, and nothing is counted twice."""
    total = 60_000
    file = write_lines(tmp_path / "file", [track(f"person-{number % 500}", number) for number in range(total)])
    process = subprocess.Popen(
        [*COMMAND, "send", str(file), "--json"],
        env=surroundings(service.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: service.get("state")["operations"].get("person.event", 0) > 1_000)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 143, err
    content = orjson.loads(out)
    assert content["accepted"] == content["delivered"] == content["not_sent_from_line"] - 1 < total
    assert service.get("state")["operations"] == {"person.event": content["delivered"]}
    assert content["broken"] == []


def test_it_runs_in_this_process_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """main() puts back the signal handlers and leaves nothing open."""
    file = write_lines(tmp_path / "file", [track("a", number) for number in range(20)])
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]

    assert main(["send", str(file), "--simulate", "--faults", "0.2"]) == 0
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    assert "delivered" in capsys.readouterr().out
