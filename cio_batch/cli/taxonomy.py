"""``cio-batch taxonomy``: typed events → JSON Schema, and JSON Schema → typed events."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, cast

from cio_batch.errors import EventSchemaError
from cio_batch.generation import generate_source
from cio_batch.taxonomy import Taxonomy


def export(source: str, out: str | None) -> int:
    """Write the taxonomy that ``module:name`` names as JSON Schema."""
    module_name, _, name = source.partition(":")
    if not module_name or not name:
        return _fail(f"expected MODULE:NAME, got {source}")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as ``python -m`` does
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - a user's module raises what it likes
        return _fail(f"cannot import {module_name}: {type(error).__name__}: {error}")
    finally:
        del sys.path[0]
    try:
        found: object = getattr(module, name)
        taxonomy = found if isinstance(found, Taxonomy) else Taxonomy(cast("Any", found))
    except AttributeError:
        return _fail(f"{module_name} has no {name}")
    except TypeError as error:
        return _fail(str(error), code=1)
    return _write(json.dumps(taxonomy.json_schema(), indent=2, ensure_ascii=False) + "\n", out)


def generate(source: str, out: str | None) -> int:
    """Write the source of the typed events that a file of JSON Schema describes."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        return _fail(f"cannot read {source}: {error.strerror}")
    except UnicodeDecodeError:
        return _fail(f"cannot read {source}: it is not UTF-8")
    try:
        schema: Any = json.loads(text)
    except json.JSONDecodeError as error:
        return _fail(f"{source} is not JSON: {error.msg} at line {error.lineno}")
    except RecursionError:
        return _fail(f"{source} is nested too deeply")
    try:
        return _write(generate_source(schema), out)
    except EventSchemaError as error:
        return _fail(f"{source}: {error}", code=1)


def _write(text: str, out: str | None) -> int:
    text = text.encode(errors="backslashreplace").decode()  # a lone surrogate: JSON and Python both write it so
    if out is None:
        sys.stdout.write(text)
        return 0
    try:
        Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        return _fail(f"cannot write {out}: {error.strerror}")
    return 0


def _fail(message: str, code: int = 2) -> int:
    print(f"cio-batch taxonomy: {message}", file=sys.stderr)
    return code
