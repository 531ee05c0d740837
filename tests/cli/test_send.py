"""``cio-batch send``: files, pipes, faults, signals."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

import cio_batch
from cio_batch.cli import main, send
from cio_batch.cli.screen import Bar, Screen

from .commands import COMMAND, faults, numbers, run, surroundings, track, wait_until, write_lines
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
    assert len(faults(finished.stdout)) == 10
    assert min(faults(finished.stdout).values()) > 0
    assert "✓ Every accepted operation arrived exactly once" in finished.stdout
    assert finished.stderr == ""


def test_json(tmp_path: Path) -> None:
    """--json puts the same numbers on standard output, and nothing else."""
    file = write_lines(tmp_path / "file", [track(f"person-{number % 7}", number) for number in range(100)])
    arguments = ("--simulate", "--json", "--batch-size", "10", "--concurrency", "3", "--faults", "0.1")
    finished = run("send", str(file), *arguments)

    assert finished.returncode == 0, finished.stderr
    content = orjson.loads(finished.stdout)
    assert content["delivered"] == content["expected"] == 100
    assert content["calls"] >= 10
    assert len(content["faults"]) == 10
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
    table = numbers(finished.stdout)
    assert (table["lines"], table["blank lines"], table["delivered"]) == ("13", "6", "7")
    assert "✓ Every line was delivered." in finished.stdout
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


def test_the_same_complaint_is_not_printed_for_ever(tmp_path: Path) -> None:
    """The others are counted; the last line does not pretend that all went well."""
    finished = run("send", str(write_lines(tmp_path / "file", [b"{"] * 53)), "--simulate")

    complaints = finished.stderr.splitlines()
    assert len(complaints) == 6
    assert complaints[4].startswith("line 5: ")
    assert complaints[5] == "is not valid JSON (column 2): 48 more lines (6-53)"
    assert numbers(finished.stdout)["bad lines"] == "53"
    assert finished.stdout.splitlines()[-1] == "53 of 53 lines were not sent"
    assert "✓" not in finished.stdout
    assert finished.returncode == 1


def test_an_empty_file_is_no_success_story(tmp_path: Path) -> None:
    """Nothing is wrong with it, and nothing was sent."""
    finished = run("send", str(write_lines(tmp_path / "file", [b"", b" "])), "--simulate")

    assert finished.returncode == 0
    assert numbers(finished.stdout)["blank lines"] == "2"
    assert finished.stdout.splitlines()[-1].startswith("nothing was sent")
    assert "✓" not in finished.stdout


@pytest.mark.parametrize("bad", [[], [b"{"]])
def test_check_sends_nothing(bad: list[bytes], service: Service, tmp_path: Path) -> None:
    """--check needs no credentials, names the bad lines, and claims no delivery."""
    file = write_lines(tmp_path / "file", [track("a", 1), *bad, track("a", 2)])
    finished = run("send", str(file), "--check", cwd=tmp_path)
    table = numbers(finished.stdout)

    assert finished.returncode == len(bad)
    assert finished.stderr.startswith("line 2: " if bad else "")
    assert table["checked (not sent)"] == "2"
    assert "delivered" not in table
    last = "1 of 3 lines cannot be sent" if bad else "✓ Every line can be sent; nothing was."
    assert finished.stdout.splitlines()[-1] == last
    assert run("send", str(file), "--check", env=service.environment).returncode == len(bad)
    assert service.get("state")["calls"] == 0


def test_a_disabled_service_delivers_nothing(tmp_path: Path) -> None:
    """With CUSTOMERIO_DISABLED=1 nobody is told of a delivery."""
    file = str(write_lines(tmp_path / "file", [track("a", 1), track("a", 2)]))
    finished = run("send", file, env={"CUSTOMERIO_DISABLED": "1"})
    content = orjson.loads(run("send", file, "--json", env={"CUSTOMERIO_DISABLED": "1"}).stdout)

    assert finished.returncode == 0
    assert numbers(finished.stdout)["checked (not sent)"] == "2"
    assert "delivered" not in finished.stdout
    assert (content["checked"], content["delivered"], content["calls"]) == (2, 0, 0)


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
        ({"CUSTOMERIO_REGION": "mars"}, ["CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY", "CUSTOMERIO_REGION"]),
        ({"CUSTOMERIO_SITE_ID": "site", "CUSTOMERIO_TRACK_API_KEY": "top-secret\x01key"}, ["CUSTOMERIO_TRACK_API_KEY"]),
    ],
)
def test_missing_credentials_are_named(given: dict[str, str], missing: list[str], tmp_path: Path) -> None:
    """The exit code is 2, each variable is named, and no key is shown."""
    finished = run("send", str(write_lines(tmp_path / "file", [track("a", 1)])), env=given, cwd=tmp_path)

    assert finished.returncode == 2
    for variable in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY", "CUSTOMERIO_REGION"):
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
    """It does not wait for ever: 1, the variables (once), how many were not sent, and no key."""
    file = write_lines(tmp_path / "file", [track("a", number) for number in range(50)])
    environment = service.environment | {"CUSTOMERIO_TRACK_API_KEY": "top-secret-key"}
    finished = run("send", str(file), env=environment)

    assert finished.returncode == 1
    assert "Customer.io refuses the credentials (status 401)" in finished.stderr
    assert finished.stderr.count("CUSTOMERIO_SITE_ID") == 1
    assert "gave up" in finished.stderr
    assert "line 1:" not in finished.stderr
    assert "50 lines" not in finished.stderr
    assert "may have arrived" not in finished.stdout
    assert finished.stdout.splitlines()[-1] == "50 of 50 lines were not sent: the credentials were refused"
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


def start_toward_nobody(file: Path, *arguments: str, command: str = "send") -> subprocess.Popen[str]:
    """Start a sending to a host that hangs up and is gone; return when it has hung up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = {"SITE_ID": "site", "TRACK_API_KEY": "key", "TRACK_URL": url}
        process = subprocess.Popen(
            [*COMMAND, command, str(file), *arguments],
            env=surroundings({f"CUSTOMERIO_{name}": text for name, text in environment.items()}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        connection.close()
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(signum: signal.Signals, tmp_path: Path) -> None:
    """The drain of ten seconds is cut short; all that was accepted is counted, in one line, with the last error."""
    file = write_lines(tmp_path / "file", [track(f"person-{number % 50}", number) for number in range(1_500)])
    process = start_toward_nobody(file)
    assert process.stderr is not None
    process.send_signal(signum)
    while not process.stderr.readline().startswith("stopping"):  # on a slow machine, after a warning of the outage
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signum)
    out, err = process.communicate(timeout=10)

    assert time.monotonic() - began < 1.5  # half a second of it for a slow machine
    assert process.returncode == 1, err
    said = [line for line in err.splitlines() if not line.startswith("warning: ")]  # of the outage, in its own time
    assert said[0] == "failed: quit at once: 1,500 lines (1-1500)"
    assert said[1].startswith("the last error: ")
    table = numbers(out)
    assert (table["accepted"], table["delivered"], table["failed"]) == ("1,500", "0", "1,500")
    assert "last error" in table
    assert "got no verdict" not in out
    assert out.splitlines()[-1] == "1,500 of 1,500 lines were not delivered: 1,500 failed"


def test_a_second_signal_in_the_same_instant(tmp_path: Path) -> None:
    """Before the drain has begun, everything is counted all the same."""
    file = write_lines(tmp_path / "file", [track(f"person-{number % 50}", number) for number in range(30_000)])
    process = start_toward_nobody(file, "--json")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)

    assert process.returncode == 1, err
    content = orjson.loads(out)
    assert content["accepted"] == content["failed"] == content["not_sent_from_line"] - 1 == content["lines"]
    assert content["broken"] == []


def test_bad_lines_outweigh_a_signal(service: Service) -> None:
    """Stopped, but not well: the exit code is 1."""
    process = subprocess.Popen(
        [*COMMAND, "send", "-"],
        env=surroundings(service.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"{\n" + orjson.dumps(track("a", 1)) + b"\n")
    process.stdin.flush()
    wait_until(lambda: service.get("state")["operations"] == {"person.event": 1})
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)

    assert process.returncode == 1
    assert out.decode().splitlines()[-2:] == [
        "stopped by SIGTERM; it was not read from line 3 on",
        "1 of 2 lines were not sent",
    ]


class _WatchedBar(Bar):
    """A bar that remembers what it showed."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, str, str]] = []

    def show(self, completed: int, count: str, note: str = "") -> None:
        """Remember it."""
        self.shown.append((completed, count, note))


class _WatchedScreen(Screen):
    """A screen with such a bar."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = _WatchedBar()

    @contextlib.contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Bar]:
        """Yield it."""
        yield self.watched


def ship(file: Path, **changes: Any) -> list[tuple[int, str, str]]:
    """Send a file in this process; return what the bar showed."""
    options = send.Options(
        file=str(file),
        check=False,
        simulate=True,
        fault_rate=0.0,
        seed=0,
        batch_size=100,
        concurrency=1,
        dotenv=False,
        as_json=False,
        verbose=False,
    )
    screen = _WatchedScreen()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        shipment = send._Shipment(attrs.evolve(options, **changes), screen)
        asyncio.run(shipment.run(descriptor, file.stat().st_size))
    finally:
        os.close(descriptor)
    return screen.watched.shown


def test_the_bar_shows_what_is_settled(tmp_path: Path) -> None:
    """Reading is done long before sending; the bar is full when all is settled, and not before."""
    file = write_lines(tmp_path / "file", [*(track("a", number) for number in range(4_000)), b"", b"{"])
    size = file.stat().st_size
    shown = ship(file, fault_rate=0.3)

    assert shown[-1] == (size, "4,000 of 4,000 delivered", "")
    for completed, count, _ in shown:
        delivered, accepted = (int(word.replace(",", "")) for word in count.split() if word[0].isdigit())
        assert completed < size or delivered == accepted == 4_000
        assert not accepted or completed <= size * delivered / accepted + 1


def test_the_bar_says_why_nothing_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead host is named while it is waited for, and the bar stays where it is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for name, text in {"SITE_ID": "site", "TRACK_API_KEY": "key", "TRACK_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(f"CUSTOMERIO_{name}", text)
    file = write_lines(tmp_path / "file", [track("a", number) for number in range(300)])
    for seconds in (1.3, 1.5):
        threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGINT)).start()
    shown = ship(file, simulate=False)

    assert shown[0][2] == ""
    assert any(note.startswith("nothing gets through: no connection") for _, _, note in shown)
    assert shown[-1][:2] == (0, "0 of 300 delivered")


def test_it_runs_in_this_process_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """main() puts back the signal handlers and leaves nothing open."""
    file = write_lines(tmp_path / "file", [track("a", number) for number in range(20)])
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]

    assert main(["send", str(file), "--simulate", "--faults", "0.2"]) == 0
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    assert "delivered" in capsys.readouterr().out
