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


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["send"], ["simulate"], ["dead-letters"], ["dead-letters", "list"], ["replay"], ["purge"], ["tune"]],
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--help of each command succeeds and goes to standard output."""
    assert main([*command, "--help"]) == 0
    assert "usage: cio-batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("demo", ["at least 1,000", "--faults"]),
        ("send", ["may be sent twice", "an id (a ULID)", "--check"]),
        ("simulate", ["8765 by default"]),
        ("tune", ["within 5 % of the best", "cio-batch-tune-1", "--send-real-events", "about a minute"]),
        ("replay", ["with the same bytes and ids", "What is delivered is removed", "2026-01-31T12:00", "--dry-run"]),
        ("purge", ["await spool.purge(person)", "--cio-id"]),
    ],
)
def test_help_says_what_matters(command: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Bounds, defaults, and what makes a second sending harmless."""
    main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert [part for part in said if part not in text] == []


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help goes to standard error."""
    assert main([]) == 2
    assert "usage: cio-batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["send"], "FILE"),
        (["nonsense"], "invalid choice"),
        (["demo", "--events", "10"], "--events: must be at least 1,000"),
        (["demo", "--events", "0"], "--events: must be at least 1,000"),
        (["demo", "--people", "0"], "must be at least 1"),
        (["demo", "--events", "many"], "invalid whole number"),
        (["demo", "--fault-rate", "1.5"], "between 0 and 1"),
        (["send", "file", "--faults", "nan"], "between 0 and 1"),
        (["send", "file", "--faults", "0.1"], "--faults needs --simulate"),
        (["send", "file", "--simulate", "--dotenv"], "--dotenv"),
        (["demo", "--faults", "2"], "between 0 and 1"),
        (["send", "file", "--check", "--simulate"], "--check sends nothing"),
        (["dead-letters"], "list | show | export"),
        (["dead-letters", "list", "file", "--limit", "0"], "at least 1"),
        (["dead-letters", "show", "file"], "NUMBER|ID"),
        (["replay", "file", "--since", "then"], "invalid date, time or age"),
        (["purge", "file"], "say whom"),
        (["simulate", "--port", "70000"], "between 0 and 65535"),
        (["simulate", "--port", "0", "--latency", "-1"], "at least 0"),
        (["tune", "--batch-sizes", "50,x"], "invalid list of whole numbers value"),
        (["tune", "--batch-sizes", "50,0"], "--batch-sizes: must be at least 1"),
        (["tune", "--flush-intervals", "0"], "must be seconds above 0, at most 60"),
        (["tune", "--rate-limit", "0"], "must be a number per second above 0"),
        (["tune", "--send-real-events"], "need --url"),
        (["tune", "--url", "http://127.0.0.1:9", "--latency", "1"], "--latency is that of the local service"),
    ],
)
def test_usage_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is named after the usage of its command, and the exit code is 2."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("usage: cio-batch")


@pytest.mark.parametrize(
    "arguments", [["demo"], ["send", "-", "--simulate"], ["simulate", "--port", "0"], ["tune"], ["replay", "file"]]
)
def test_without_rich_it_says_what_to_install(arguments: list[str]) -> None:
    """A missing rich is no traceback but a remedy."""
    program = "import sys; sys.modules['rich'] = None; from cio_batch.cli import main; sys.exit(main(sys.argv[1:]))"
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, env=surroundings(), text=True
    )

    assert finished.returncode == 2
    assert finished.stderr == "cio-batch: the command line needs rich: pip install 'cio-batch[cli]'\n"


@pytest.mark.parametrize("module", ["rich", "cio_batch.cli.send", "cio_batch.tracker"])
def test_an_early_ctrl_c_is_no_traceback(module: str) -> None:
    """While the command is still being imported it ends with 130, and silently."""
    program = f"""
import signal, sys
from cio_batch.cli import main
for name in [name for name in sys.modules if name.startswith("rich") or name == {module!r}]:
    del sys.modules[name]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.exit(main(["send", "-", "--simulate"]))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, env=surroundings(), text=True, input=""
    )

    assert (finished.returncode, finished.stderr) == (130, "")
