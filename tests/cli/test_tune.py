"""``cio-batch tune``: real runs of tiny grids."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cio_batch.cli import main

from .commands import COMMAND, run, surroundings, wait_until
from .conftest import Service

URL = "http://127.0.0.1:9"
QUICK = ("--duration", "0.1", "--latency", "0.01")
TINY = (*QUICK, "--batch-sizes", "20,200", "--concurrencies", "1,2", "--flush-intervals", "0.05")


def lines_of(finished: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Read the table: the cells of each row."""
    rows = [line for line in finished.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_it_measures_recommends_and_draws(tmp_path: Path) -> None:
    """A row for each point, a recommendation with its reasons, and the chart."""
    finished = run("tune", *TINY, "--chart", str(tmp_path / "chart.svg"))

    assert finished.returncode == 0, finished.stderr
    rows = lines_of(finished)
    assert [row[:4] for row in rows[:4]] == [
        [size, calls, "full", ""] for calls in ("1", "2") for size in ("20", "200")
    ]
    assert rows[4][2:4] == ["500/s", "0.05"]
    assert f"CioBatchTracker(batch_size={rows[4][0]}, concurrency={rows[4][1]}, flush_interval=0.05)" in finished.stdout
    assert "events/s" in finished.stdout
    assert "limits it" in finished.stdout
    assert (tmp_path / "chart.svg").read_text().startswith("<?xml")
    assert "chart.svg" in finished.stderr


def test_the_numbers_are_those_of_the_service(tmp_path: Path) -> None:
    """Events per second and ages follow from the latency, and every call was one of the service's."""
    grid = ("--batch-sizes", "50", "--concurrencies", "2", "--flush-intervals", "0.2", "--event-rate", "100")
    chart = tmp_path / "chart.png"
    finished = run("tune", "--latency", "0.05", "--duration", "0.3", *grid, "--json", "--chart", str(chart))

    assert finished.returncode == 0, finished.stderr
    content = json.loads(finished.stdout)
    assert content["complete"]
    full, paced = content["measurements"]
    assert 50 * 2 / 0.05 * 0.25 < full["events_per_second"] < 50 * 2 / 0.05 * 1.1
    assert full["p50_age"] >= 0.049
    assert full["p99_age"] >= full["p50_age"]
    assert full["cpu_us_per_event"] > 0
    assert paced["event_rate"] == 100
    assert 0.2 <= paced["p99_age"] < 2
    assert content["recommendation"]["batch_size"] == 50
    calls = sum(each["calls"] for each in content["measurements"])
    assert content["local_service"]["calls"] == calls + 1  # the first event
    assert content["local_service"]["refused"] == 0
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_it_keeps_to_the_rate_limit() -> None:
    """No call is refused, and the limit is named as the reason."""
    grid = ("--batch-sizes", "5", "--concurrencies", "4", "--flush-intervals", "0.1", "--event-rate", "100")
    finished = run("tune", "--rate-limit", "20", *QUICK, *grid, "--json")

    assert finished.returncode == 0, finished.stderr
    content = json.loads(finished.stdout)
    full = content["measurements"][0]
    assert full["events_per_second"] <= 5 * 20 * 1.1
    assert content["local_service"]["refused"] == full["retried_calls"] == 0
    assert "The rate limit of 20 calls/s is what limits it" in content["recommendation"]["reasons"][1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_it_has(signum: signal.Signals, service: Service) -> None:
    """What was measured before is shown, the running measurement is not, and the exit code says which signal it was."""
    # Of 45 events two batches of 20 are full; with a flush interval, the others wait for it.
    grid = ("--batch-sizes", "20", "--concurrencies", "1", "--flush-intervals", "30,60")
    process = subprocess.Popen(
        [*COMMAND, "tune", *grid, "--events", "45", "--url", service.url, "--send-real-events"],
        env=surroundings(service.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: sum(service.get("state")["operations"].values()) == 1 + 45 + 40)
        process.send_signal(signum)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()

    assert (process.returncode, err) == (128 + signum, "")
    cause = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
    assert f"stopped by {cause} after 1 of 3 measurements" in out
    assert "CioBatchTracker(batch_size=20, concurrency=1)" in out


def test_it_measures_a_users_endpoint(service: Service) -> None:
    """With credentials from the environment; the events and people have the names that were announced."""
    grid = ("--batch-sizes", "20,50", "--concurrencies", "1", "--flush-intervals", "0.05", "--duration", "0.1")
    bounds = ("--people", "30", "--events", "60")
    finished = run("tune", *grid, *bounds, "--url", service.url, "--send-real-events", env=service.environment)

    assert finished.returncode == 0, finished.stderr
    assert [row[0] for row in lines_of(finished)] == ["20", "20"]
    assert "1 combinations were left out" in finished.stdout
    people = {person["identifier"] for person in service.get("people")}
    assert people == {f"cio-batch-tune-{number}" for number in range(1, 31)}
    events = service.get("people/id/cio-batch-tune-1")["events"]
    assert {event["name"] for event in events} == {"cio_batch_tune"}


def test_credentials_that_are_refused(service: Service) -> None:
    """One event is enough to find out."""
    env = service.environment | {"CUSTOMERIO_TRACK_API_KEY": "another"}
    finished = run("tune", "--url", service.url, "--send-real-events", env=env)

    assert finished.returncode == 2
    assert f"a first event did not get through to {service.url} (status 401)" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--url", URL],
            "up to 1,060,000 real events named cio_batch_tune of up to 1,000 people named cio-batch-tune-1",
        ),
        (["--url", URL], f"to {URL}, to the workspace of CUSTOMERIO_SITE_ID: take one for tests, and say"),
        (["--events", "10"], "no combination can be measured: concurrency times batch size must be at most"),
        (["--chart", "chart.gif"], "--chart chart.gif: the name must end in .png or .svg"),
        (["--chart", "nowhere/chart.svg"], "--chart nowhere/chart.svg: there is no folder nowhere"),
    ],
)
def test_what_cannot_begin(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said at once, with what to do; above all, real events need a word of their own."""
    monkeypatch.setenv("CUSTOMERIO_SITE_ID", "site")
    monkeypatch.setenv("CUSTOMERIO_TRACK_API_KEY", "key")

    assert main(["tune", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True), err


def test_credentials_that_are_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named, before anything is sent."""
    monkeypatch.delenv("CUSTOMERIO_SITE_ID", raising=False)
    monkeypatch.delenv("CUSTOMERIO_TRACK_API_KEY", raising=False)

    assert main(["tune", "--url", URL, "--send-real-events"]) == 2
    assert "CUSTOMERIO_SITE_ID is missing; CUSTOMERIO_TRACK_API_KEY is missing" in capsys.readouterr().err


def test_a_chart_without_matplotlib_names_the_extra() -> None:
    """Before anything is measured."""
    program = (
        "import sys; sys.modules['matplotlib'] = None; from cio_batch.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, "tune", "--chart", "chart.png"],
        check=False,
        capture_output=True,
        env=surroundings(),
        text=True,
    )

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "cio-batch: --chart needs matplotlib: pip install 'cio-batch[tune]'\n"
