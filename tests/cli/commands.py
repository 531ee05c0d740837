"""How the tests run a command: as a user does, without any credentials of the surroundings."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

COMMAND = (sys.executable, "-m", "cio_batch")


def surroundings(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without Customer.io's variables, and with ``extra``."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CUSTOMERIO_")}
    return kept | {"COLUMNS": "120", "PYTHONIOENCODING": "utf-8"} | dict(extra or {})


def run(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run ``cio-batch`` to its end."""
    finished = subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        cwd=cwd,
        env=surroundings(env),
        input=stdin,
        timeout=timeout,
    )
    out, err = finished.stdout.decode(), finished.stderr.decode()
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(finished.args, finished.returncode, out, err)


def numbers(output: str) -> dict[str, str]:
    """Read the table: what → how many."""
    rows = [[cell.strip() for cell in line.split("│")] for line in output.splitlines() if line.startswith("│")]
    return {row[1]: row[2] for row in rows}


def faults(output: str) -> dict[str, int]:
    """Read the row of faults, which may go over several lines: kind → how many."""
    remark = ""
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) == 5 and (cells[1] == "faults" or (remark and not cells[1])):
            remark += f" {cells[3]}"
        elif remark:
            break
    return {kind: int(count.replace(",", "")) for kind, count in map(str.split, remark.split("·"))}


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    """Write NDJSON; bytes are written as they are."""
    path.write_bytes(b"".join((line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines))
    return path


def track(user_id: str, number: int, **fields: object) -> dict[str, object]:
    """Return a line of type track."""
    return {
        "user_id": user_id,
        "type": "track",
        "name": "viewed",
        "timestamp": 1_764_000_000,
        "data": {"n": number},
    } | (fields)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
