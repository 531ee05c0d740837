"""The house rules that only a look at all imports can keep."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import cio_batch

PACKAGE = Path(__file__).resolve().parents[1] / "cio_batch"
PURE = [
    "errors",
    "settings",
    "values",
    "compiled",
    "annotations",
    "events",
    "speedups",
    "operations",
    "taxonomy",
    "generation",
    "chunks",
    "verdicts",
    "stats",
    "dead_letters",
]
IMPURE = {"asyncio", "aiohttp", "backoff", "logging", "time", "random"}


@attrs.frozen
class Import:
    """An imported module, and whether the import exists for type checkers alone."""

    module: str
    typing_only: bool
    line: int

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]


def imports_in(source: str, package: tuple[str, ...] = ()) -> list[Import]:
    """Every import, wherever it stands; ``from a import b`` counts as ``a`` and as ``a.b``."""

    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = typing_only
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                for part in child.body:
                    yield from walk(ast.Module([part], []), True)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), typing_only)
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, inside, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(part for part in (base, child.module or "") if part)
                yield Import(module, inside, child.lineno)
                for alias in child.names:
                    yield Import(f"{module}.{alias.name}", inside, child.lineno)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                yield Import(ast.unparse(child.args[0]).strip("'"), inside, child.lineno)
            yield from walk(child, inside)

    return list(walk(ast.parse(source), False))


def name_of(path: Path) -> str:
    """``"transports.http"`` for ``cio_batch/transports/http.py``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> list[Import]:
    path = MODULES[name]
    package = ("cio_batch", *path.relative_to(PACKAGE).parent.parts)
    return imports_in(path.read_text(), package)


def room_of(name: str) -> str:
    """The room of the house: the module, or the folder."""
    return name.partition(".")[0]


def rooms() -> list[str]:
    """The order that the map in the package's docstring gives."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    return re.findall(r"^ {4}(\w+)(?:\.py|/) ", docstring, re.MULTILINE)


ORDER = rooms()


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import a.b", ["a.b"]),
        ("def f():\n    from a import b", ["a", "a.b"]),
        ("from . import x", ["cio_batch.deep", "cio_batch.deep.x"]),
        ("from ..y import x", ["cio_batch.y", "cio_batch.y.x"]),
        ("import importlib\nimportlib.import_module('z')", ["importlib", "z"]),
        ("try:\n    import a\nexcept ImportError:\n    import b", ["a", "b"]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, modules: list[str]) -> None:
    """The reader of imports that all other tests here rely on sees nested, relative and dynamic ones."""
    assert [each.module for each in imports_in(source, ("cio_batch", "deep"))] == modules


def test_imports_for_type_checkers_are_told_apart() -> None:
    """Only the body of ``if TYPE_CHECKING`` is for type checkers."""
    found = imports_in("import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c")
    assert [(each.module, each.typing_only) for each in found] == [("a", False), ("b", True), ("c", False)]


def test_the_map_names_every_room() -> None:
    """The map in the package's docstring and the folder agree: no room is missing or left over."""
    there = {room_of(name) for name in MODULES} - {"__init__", "__main__", "_version"}
    assert there == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_imports_nothing_that_acts(name: str) -> None:
    """Pure modules take the clock, randomness and everything that happens as arguments."""
    found = {each.root for each in imports_of(name) if not (name == "settings" and each.typing_only)}
    assert found & IMPURE == set()
    typing_only = {each.root for each in imports_of(name) if each.typing_only}
    assert typing_only & IMPURE <= ({"aiohttp"} if name == "settings" else set())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_stands_above_it(name: str) -> None:
    """The order of the map is the order of imports, so that the house has no circles."""
    room = room_of(name)
    if room in ("__init__", "__main__"):
        return  # the front door sees everything
    above = {"_version", "__version__", *(ORDER[: ORDER.index(room) + 1] if room in ORDER else [])}
    if name == "speedups":
        above.add("_speedups")  # the extension, which nobody else may ask for
    for each in imports_of(name):
        if each.root == "cio_batch" and each.module != "cio_batch":
            target = room_of(each.module.removeprefix("cio_batch."))
            # Anything else is a name of the front door, which stands below every room but the cli.
            assert target in above or (room == "cli" and target not in MODULES), (
                f"{name}:{each.line} imports {target}, which stands below it"
            )


@pytest.mark.parametrize("name", MODULES)
def test_foreign_libraries_stay_in_their_rooms(name: str) -> None:
    """``backoff`` is known to retries alone, ``aiohttp`` to the edges, ``dotenv`` to settings, the rest to the cli."""
    room = room_of(name)
    found = {each.root for each in imports_of(name) if not each.typing_only}
    assert "backoff" not in found or name == "retries"
    assert "aiohttp" not in found or room in ("transports", "simulator", "cli")
    assert "dotenv" not in found or name == "settings"
    assert "rich" not in found or room == "cli"
    assert "matplotlib" not in found or name == "cli.chart"


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) == "simulator"])
def test_the_simulator_knows_nothing_of_what_it_tests(name: str) -> None:
    """A simulator that shared code with the library would share its mistakes."""
    for each in imports_of(name):
        if each.root == "cio_batch" and each.module != "cio_batch":
            assert each.module.startswith(("cio_batch.simulator", "cio_batch._version")), f"{name}:{each.line}"


def calls_of(source: str, method: str) -> list[int]:
    return [
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == method
    ]


@pytest.mark.parametrize("name", MODULES)
def test_no_signal_handler_is_given_to_the_loop(name: str) -> None:
    """``loop.add_signal_handler`` would make a server that hosts the tracker unkillable."""
    assert calls_of("loop.add_signal_handler(15, f)", "add_signal_handler") == [1]
    assert calls_of(MODULES[name].read_text(), "add_signal_handler") == []


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    """``import cio_batch`` costs next to nothing: no room is entered and no dependency imported."""
    there = run("import sys, cio_batch; print(*sorted(m.partition('.')[0] for m in sys.modules))").split()
    assert {"aiohttp", "asyncio", "attrs", "orjson", "backoff", "aiolimiter"}.isdisjoint(there)
    assert run("import sys, cio_batch; print(*[m for m in sys.modules if m.startswith('cio_batch.')])") == (
        "cio_batch._version"
    )


def test_a_tracker_imports_what_it_needs_and_no_more() -> None:
    """Who sends events pays neither for the direct clients nor for the command line or the simulator."""
    there = run("import sys; from cio_batch import CioBatchTracker; print(*sys.modules)").split()
    for room in ("clients", "factory", "generation", "simulator", "cli"):
        assert f"cio_batch.{room}" not in there
    assert {"rich", "dotenv"}.isdisjoint(there)


def test_every_public_name_has_its_home() -> None:
    """What type checkers read, what Python looks up and what ``__all__`` promises are one and the same."""
    path = PACKAGE / "__init__.py"
    typed = {
        (alias.name, (node.module or "").removeprefix("cio_batch."))
        for block in ast.parse(path.read_text()).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {(name, room) for room, names in cio_batch._ROOMS.items() for name in names}
    assert typed == found | {("operations", "cio_batch")}
    assert set(cio_batch.__all__) == {name for name, _ in typed} | {"__version__"}
    assert set(cio_batch.__all__) <= set(dir(cio_batch))
    for name, room in found:
        module = importlib.import_module(f"cio_batch.{room}")
        assert getattr(cio_batch, name) is getattr(module, name)


@pytest.mark.parametrize("name", ["Typo", "_private", "__wrapped__"])
def test_a_name_that_is_none_is_an_attribute_error(name: str) -> None:
    """A typo is told as any other module tells it."""
    with pytest.raises(AttributeError, match=f"module 'cio_batch' has no attribute '{name}'"):
        getattr(cio_batch, name)
