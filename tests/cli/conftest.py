"""A simulator in a process of its own, started by the command under test."""

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from .commands import COMMAND, surroundings


@attrs.frozen
class Service:
    """A running ``cio-batch simulate``."""

    process: subprocess.Popen[str]
    url: str
    environment: dict[str, str]

    def get(self, path: str) -> Any:
        """Ask it about itself."""
        with urllib.request.urlopen(f"{self.url}/simulator/{path}") as answer:
            return json.load(answer)

    def post(self, path: str, content: object) -> Any:
        """Tell it what to do."""
        request = urllib.request.Request(f"{self.url}/simulator/{path}", json.dumps(content).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """Yield a simulator; a marker-like parameter holds further arguments."""
    arguments = getattr(request, "param", ())
    process = subprocess.Popen(
        [*COMMAND, "simulate", "--port", "0", *arguments],
        env=surroundings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = process.stdout.readline().split()[3]
        environment: dict[str, str] = {}
        while (line := process.stdout.readline()).startswith("export "):
            name, _, value = line.removeprefix("export ").strip().partition("=")
            environment[name] = value
        yield Service(process, url, environment)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
