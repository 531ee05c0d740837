"""The parser, the exit codes of what cannot begin, and the ways in."""

import importlib.metadata
import subprocess
import sys

import pytest

from cio_batch import __version__
from cio_batch.cli import main

from .commands import surroundings


def test_the_console_script_is_main() -> None:
    """The installed command and ``python -m cio_batch`` are the same."""
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="cio-batch")

    assert script.load() is main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version names the library and succeeds."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cio-batch {__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["send"], ["simulate"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--help of each command succeeds and goes to standard output."""
    assert main([*command, "--help"]) == 0
    assert "usage: cio-batch" in capsys.readouterr().out


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help goes to standard error."""
    assert main([]) == 2
    assert "usage: cio-batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["send"], "FILE"),
        (["nonsense"], "invalid choice"),
        (["demo", "--events", "10"], "--events must be at least 1000"),
        (["demo", "--people", "0"], "must be at least 1"),
        (["demo", "--events", "many"], "invalid whole number"),
        (["demo", "--fault-rate", "1.5"], "between 0 and 1"),
        (["send", "file", "--faults", "nan"], "between 0 and 1"),
        (["send", "file", "--faults", "0.1"], "--faults needs --simulate"),
        (["send", "file", "--simulate", "--dotenv"], "--dotenv"),
        (["simulate"], "--port"),
        (["simulate", "--port", "70000"], "between 0 and 65535"),
        (["simulate", "--port", "0", "--latency", "-1"], "at least 0"),
    ],
)
def test_usage_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is named, and the exit code is 2."""
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo"], ["send", "-", "--simulate"], ["simulate", "--port", "0"]])
def test_without_rich_it_says_what_to_install(arguments: list[str]) -> None:
    """A missing rich is no traceback but a remedy."""
    program = "import sys; sys.modules['rich'] = None; from cio_batch.cli import main; sys.exit(main(sys.argv[1:]))"
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, env=surroundings(), text=True
    )

    assert finished.returncode == 2
    assert finished.stderr == "cio-batch: the command line needs rich: pip install 'cio-batch[cli]'\n"
