"""``cio-batch taxonomy``: typed events to JSON Schema and back, and what a user may get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cio_batch.cli import main

from .commands import run, surroundings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

EVENTS = """
from cio_batch import CioEvent, Taxonomy

class Opened(CioEvent, name="opened"):
    "\\u00dcber alles."
    where: str | None = None

class Closed(CioEvent, name="closed"):
    pass

Both = Opened | Closed
all_events = Taxonomy(Both)
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a user's module of events, and a module that cannot be imported."""
    (tmp_path / "shop_events.py").write_text(EVENTS, encoding="utf-8")
    (tmp_path / "broken_events.py").write_text("raise RuntimeError('no database')", encoding="utf-8")
    return tmp_path


def test_there_and_back(tmp_path: Path) -> None:
    """The example's events become a schema, the schema becomes a module, the module has the same schema."""
    first = run("taxonomy", "export", "taxonomy:AppEvent", "--out", str(tmp_path / "schema.json"), cwd=EXAMPLES)
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    made = run("taxonomy", "generate", "schema.json", "--out", "made_events.py", cwd=tmp_path)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    again = run("taxonomy", "export", "made_events:AppEvent", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout == (tmp_path / "schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Both", "all_events", "Opened"])
def test_a_union_a_taxonomy_or_an_event(name: str, folder: Path) -> None:
    """Each can be exported; text stays readable."""
    done = run("taxonomy", "export", f"shop_events:{name}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["$defs"]["Opened"]["description"] == "Über alles."
    assert "Über" in done.stdout


def test_the_schema_may_come_from_a_pipe(folder: Path) -> None:
    """Standard input is read for ``-``, and the source goes to standard output."""
    schema = run("taxonomy", "export", "shop_events:Both", cwd=folder).stdout
    done = run("taxonomy", "generate", "-", stdin=schema.encode())
    assert done.returncode == 0
    assert 'class Closed(CioEvent, name="closed"):\n    pass\n' in done.stdout


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("shop_events", 2, "expected MODULE:NAME, got shop_events"),
        (":Both", 2, "expected MODULE:NAME"),
        ("missing_events:Both", 2, "cannot import missing_events: ModuleNotFoundError"),
        ("broken_events:Both", 2, "cannot import broken_events: RuntimeError: no database"),
        ("shop_events:Missing", 2, "shop_events has no Missing"),
        ("shop_events:number", 1, "a taxonomy is made of subclasses of CioEvent, got int"),
    ],
)
def test_what_cannot_be_exported_is_named(source: str, code: int, said: str, folder: Path) -> None:
    """On standard error, with the exit code of the manual."""
    done = run("taxonomy", "export", source, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"cio-batch taxonomy: {said}")


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, 2, "cannot read {file}: No such file"),
        (b"\xff", 2, "cannot read {file}: it is not UTF-8"),
        (b"{", 2, "{file} is not JSON: "),
        (b"[" * 100_000, 2, "{file} is nested too deeply"),
        (b"[]", 1, "{file}: #: expected an object, got list"),
        (
            b'{"oneOf": [{"properties": {"name": {"const": 5}}}]}',
            1,
            "{file}: #/oneOf/0/properties/name/const: expected",
        ),
    ],
)
def test_what_cannot_be_generated_is_named(
    content: bytes | None, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with the exit code of the manual; nothing is written."""
    file = tmp_path / "schema.json"
    if content is not None:
        file.write_bytes(content)
    assert main(["taxonomy", "generate", str(file), "--out", str(tmp_path / "made.py")]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"cio-batch taxonomy: {said.format(file=file)}")
    assert not (tmp_path / "made.py").exists()


def test_a_file_that_cannot_be_written_is_named(folder: Path) -> None:
    """The exit code is that of a command that could not begin."""
    done = run("taxonomy", "export", "shop_events:Both", "--out", str(folder), cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"cio-batch taxonomy: cannot write {folder}: ")


@pytest.mark.parametrize("arguments", [[], ["export"], ["generate"], ["nonsense"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or wrong argument is named."""
    assert main(["taxonomy", *arguments]) == 2
    assert "usage: cio-batch taxonomy" in capsys.readouterr().err


def test_it_needs_no_rich(folder: Path) -> None:
    """A build that only checks a taxonomy installs the library alone."""
    program = "import sys; sys.modules['rich'] = None; from cio_batch.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "taxonomy", "export", "shop_events:Both"]
    done = subprocess.run(command, check=False, capture_output=True, env=surroundings(), cwd=folder)
    assert done.returncode == 0, done.stderr
