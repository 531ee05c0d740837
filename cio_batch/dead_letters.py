"""Dead letters: operations that were refused or given up, with the reason, as they are kept and read again.

Rules:

1. A dead letter holds the bytes of its operation exactly as they were sent, so that sending it again is a repeat (the
   service ignores it if the first one arrived after all).
2. It keeps its history: each time that it was refused or given up, the newest last.
3. As text it is one line of JSON, its operation last, so that those bytes can be cut out of it unchanged.

Must not know: files, asyncio, the clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeAlias

import attrs
import orjson

from cio_batch.operations import Key, decode

_OPERATION: Final = b',"operation":'
_TEXT: Final = attrs.validators.instance_of(str)  # a file of dead letters may have been edited by hand
_WHOLE: Final = attrs.validators.instance_of(int)


@attrs.frozen
class Refusal:
    """Why an operation was not delivered, one time.

    Attributes:
        verdict: ``"rejected"`` by the service, or ``"failed"``: given up.
        reason: A word for it: the service's own, ``"status 503"``, ``"deadline"``, ``"max_age"``.
        field: The field that the service named, or ``""``.
        message: The service's explanation. It may quote content, so it stays out of logs and ``repr``.
        status: The HTTP status behind it, 0 for none.
        attempts: How many calls in a row it was part of at the end.
        at: When, in unix seconds.
    """

    verdict: str = attrs.field(validator=_TEXT)
    reason: str = attrs.field(validator=_TEXT)
    field: str = attrs.field(default="", validator=_TEXT)
    message: str = attrs.field(default="", repr=False, validator=_TEXT)
    status: int = attrs.field(default=0, validator=_WHOLE)
    attempts: int = attrs.field(default=0, validator=_WHOLE)
    at: float = attrs.field(default=0.0, validator=attrs.validators.instance_of((int, float)))


@attrs.frozen
class DeadLetter:
    """An operation that was not delivered, and why.

    Attributes:
        body: Its final JSON bytes.
        refusals: Each time that it was refused or given up, the newest last; at least one.
        accepted_at: When the tracker took it, in unix seconds; ``None`` when that is not known.
        number: Its number where it is kept; 0 where it has none.
    """

    body: bytes = attrs.field(repr=False)
    refusals: tuple[Refusal, ...]
    accepted_at: float | None = None
    number: int = 0

    @property
    def last(self) -> Refusal:
        """The newest refusal."""
        return self.refusals[-1]

    @property
    def kind(self) -> str:
        """``"type.action"``, for example ``"person.event"``."""
        return decode(self.body).kind

    @property
    def payload(self) -> dict[str, Any]:
        """The operation as parsed JSON."""
        parsed: dict[str, Any] = orjson.loads(self.body)
        return parsed

    @property
    def name(self) -> str:
        """The name of an event, a page or a screen; ``""`` for everything else."""
        name = self.payload.get("name")
        return name if isinstance(name, str) else ""

    @property
    def id(self) -> str | None:
        """Its ULID, if its kind has one."""
        found = self.payload.get("id")
        return found if isinstance(found, str) else None

    def is_about(self, keys: frozenset[Key]) -> bool:
        """Whether its operation is about one of these, or names one."""
        key = decode(self.body).key
        return not keys.isdisjoint(key if isinstance(key, tuple) else (key,))

    def to_line(self) -> bytes:
        """It as a line of JSON, newline included."""
        *history, last = self.refusals
        head = orjson.dumps(
            {
                **attrs.asdict(last),
                "accepted_at": self.accepted_at,
                "history": [attrs.asdict(refusal) for refusal in history],
            }
        )
        return head[:-1] + _OPERATION + self.body + b"}\n"

    @classmethod
    def from_line(cls, line: bytes, number: int = 0) -> Self:
        """Read what :meth:`to_line` wrote.

        Raises:
            ValueError: It is something else (``InvalidOperationError`` where only the operation is at fault).
        """
        msg = "a dead letter must be a line of JSON as cio_batch writes it"
        body = body_of(line)
        if not body:
            raise ValueError(msg)
        decode(body)
        refusals: tuple[Refusal, ...] = ()
        accepted_at: Any = None
        try:
            said: dict[str, Any] = orjson.loads(line.partition(_OPERATION)[0] + b"}")
            accepted_at = said.pop("accepted_at")
            if accepted_at is None or type(accepted_at) in (int, float):
                refusals = (*(Refusal(**each) for each in said.pop("history")), Refusal(**said))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            pass
        if not refusals:
            raise ValueError(msg)
        return cls(body, refusals, accepted_at, number)


def body_of(line: bytes) -> bytes:
    """Cut the bytes of the operation out of what :meth:`DeadLetter.to_line` wrote; anything else gives anything."""
    return line.rstrip().partition(_OPERATION)[2][:-1]


OnDeadLetter: TypeAlias = Callable[[DeadLetter], Awaitable[None] | None]
