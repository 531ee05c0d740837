"""The types that users see: a program that uses all of them is clean in strict mode, and mistakes are found."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cio_batch
from cio_batch import operations, simulator, spools, transports

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "typing"
USER_FILE = FOLDER / "ok" / "user_file.py"
FILES = sorted(FOLDER.glob("*/*.py"))
MARK = re.compile(r"# error$")

Line = tuple[str, int]


def marked_lines() -> set[Line]:
    """The lines that say of themselves that they are wrong."""
    return {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MARK.search(line)
    }


def run(*arguments: str) -> str:
    """Run a module of this interpreter, and return what it printed; a type checker ends with 1 when it found errors."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def mypy_errors(cache: Path) -> dict[Line, str]:
    """What mypy says in strict mode, without the settings of this repository, by file and line."""
    output = run(
        "mypy",
        "--strict",
        "--config-file",
        os.devnull,
        "--cache-dir",
        str(cache),
        "--no-error-summary",
        "--no-pretty",
        "--hide-error-context",
        *map(str, FILES),
    )
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE)
    assert found, output
    return {(Path(path).name, int(line)): text for path, line, text in found if Path(path).name in NAMES}


def basedpyright_errors(folder: Path) -> dict[Line, str]:
    """What basedpyright says in strict mode, likewise."""
    config = {"include": list(map(str, FILES)), "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    project = folder / "pyrightconfig.json"
    project.write_text(json.dumps(config))
    output = run("basedpyright", "--project", str(project), "--pythonpath", sys.executable, "--outputjson")
    report: dict[str, Any] = json.loads(output)
    assert report["summary"]["filesAnalyzed"] >= len(FILES), output
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    }


NAMES = {path.name for path in FILES}


@pytest.mark.parametrize("checker", [mypy_errors, basedpyright_errors])
def test_exactly_the_marked_lines_are_wrong(checker: Any, tmp_path: Path) -> None:
    """The user's program has no error in strict mode, and each marked line of the wrong ones has one."""
    found: dict[Line, str] = checker(tmp_path)
    marked = marked_lines()
    assert len(marked) > 60
    assert not [name for name, _ in marked if name == USER_FILE.name]
    assert {line: text for line, text in found.items() if line not in marked} == {}
    assert sorted(marked - set(found)) == []


async def test_the_users_program_runs() -> None:
    """What type checks works, too: the program runs against the simulator to its end."""
    spec = importlib.util.spec_from_file_location("user_file", USER_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_file"] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        async with asyncio.timeout(30):
            await module.main()
    finally:
        del sys.modules["user_file"]


def test_the_package_says_that_it_is_typed() -> None:
    """Without the marker file no type checker would look at an installed package (PEP 561)."""
    marker = resources.files("cio_batch") / "py.typed"
    assert marker.is_file()
    assert marker.read_text() == ""


# ------------------------------------------------------------------------------------------------ every name is used


def used_names(source: str) -> set[str]:
    """The dotted names that a program uses; to import a name is not to use it."""
    tree = ast.parse(source)
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                origin[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return origin.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := dotted(node.value)) is not None:
            return f"{owner}.{node.attr}"
        return None

    used = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}
    return {name for name in used if name is not None}


def public_names(module: ModuleType) -> set[str]:
    """What a module offers: its ``__all__``, or what it defines without an underscore."""
    listed: list[str] | None = getattr(module, "__all__", None)
    if listed is None:
        tree = ast.parse(inspect.getsource(module))
        defined: list[str] = []
        for node in tree.body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    defined.append(name)
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    defined.append(name)
                case _:
                    pass
        listed = [name for name in defined if not name.startswith("_")]
    return {f"{module.__name__}.{name}" for name in listed}


@pytest.mark.parametrize(
    "module", [cio_batch, operations, transports, spools, simulator], ids=lambda module: module.__name__
)
def test_the_users_programs_use_every_public_name(module: ModuleType) -> None:
    """A name that is made public gets its place in one of the programs, and with it a check of its types."""
    public = public_names(module)
    assert len(public) >= 5
    used = {name for program in sorted((FOLDER / "ok").glob("*.py")) for name in used_names(program.read_text())}
    unused = {name for name in public - used if not reached_elsewhere(name, used)}
    assert sorted(unused) == []


def reached_elsewhere(name: str, used: set[str]) -> bool:
    """Whether the program uses the very object under its name in ``cio_batch`` itself."""
    owner, _, attribute = name.rpartition(".")
    shorter = f"cio_batch.{attribute}"
    if shorter not in used or attribute not in cio_batch.__all__:
        return False
    return getattr(cio_batch, attribute) is getattr(importlib.import_module(owner), attribute)


def test_an_unused_name_would_be_found() -> None:
    """An import alone is no use; a use through a module or another name is one."""
    source = """
import cio_batch
import cio_batch.transports as wires
from cio_batch import Email, Phone, operations as ops
from cio_batch.simulator import KINDS
print(Phone, cio_batch.__version__, ops.event("u", "e"), wires.Call.__name__)
"""
    used = used_names(source)
    assert used >= {
        "cio_batch.Phone",
        "cio_batch.__version__",
        "cio_batch.operations",
        "cio_batch.operations.event",
        "cio_batch.transports.Call",
    }
    assert not used & {"cio_batch.Email", "cio_batch.simulator.KINDS", "cio_batch.operations.page"}
    assert "cio_batch.operations.MAX_ID_BYTES" in public_names(operations)
    assert "cio_batch.operations.event" in public_names(operations)
    assert "cio_batch.operations.attrs" not in public_names(operations)


def test_every_public_name_exists() -> None:
    """Each name in an ``__all__`` is there."""
    for module in (cio_batch, transports, spools, simulator):
        for name in public_names(module):
            owner, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(owner), attribute), name
