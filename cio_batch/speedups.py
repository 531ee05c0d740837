"""The compiled half of the hot path, where it was built: ``_speedups.c``.

Rules:

1. Nothing but speed and memory depends on it: an event costs half the CPU with it, and less memory besides its
   bytes.
2. ``CIO_BATCH_NO_EXTENSIONS=1`` in the environment does without it, for example to tell whether a fault is in it.

Must not know: what an operation says; who uses it says that.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

_Encode = TypeVar("_Encode", bound=Callable[..., Any])
_Door = TypeVar("_Door")
_People = TypeVar("_People")


def _find() -> ModuleType | None:
    if os.environ.get("CIO_BATCH_NO_EXTENSIONS"):
        return None
    try:
        return importlib.import_module("cio_batch._speedups")
    except ImportError:
        return None


compiled = _find()
"""The extension; ``None`` where it was not built, or is not wanted."""


def event_encoder(
    in_python: _Encode,
    *,
    heads: dict[str, tuple[float, float, bytes, bytes]],
    dumps: Callable[..., bytes],
    default: Callable[[Any], Any],
    options: int,
    max_bytes: int,
    kind: str,
) -> _Encode:
    """Return ``in_python``, or what gives the usual event the same bytes sooner and leaves all others to it.

    Args:
        in_python: As ``operations._encode_event_in_python``.
        heads: By name: since when and until when (unix seconds) the bytes that follow are those before the person.
        dumps: ``orjson.dumps``, called with ``default`` and ``options``.
        default: See ``dumps``.
        options: See ``dumps``.
        max_bytes: Of an operation.
        kind: Of an event.
    """
    if compiled is None:
        return in_python
    encoder = compiled.event_encoder(in_python, heads, dumps, default, options, max_bytes, kind, compiled.Operation)
    return cast("_Encode", encoder)


def operation_and_bulk(*in_python: Any) -> tuple[Any, ...]:
    """Return ``in_python``, which is ``operations._IN_PYTHON``, or its compiled class and functions."""
    if compiled is None:
        return in_python
    return compiled.Operation, compiled.join, compiled.keys_of, compiled.kinds_of, compiled.running_bytes


def door(in_python: type[_Door]) -> type[_Door]:
    """Return ``in_python``, which is ``queues.DoorInPython``, or the compiled class that is the same."""
    return in_python if compiled is None else cast("type[_Door]", compiled.Door)


def people(in_python: type[_People]) -> type[_People]:
    """Return ``in_python``, which is ``people.PeopleInPython``, or the compiled class that is the same."""
    return in_python if compiled is None else cast("type[_People]", compiled.People)
