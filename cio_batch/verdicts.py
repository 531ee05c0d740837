"""What an answer means for each operation of a call, and what to do next.

Rules:

1. *Delivered* is said only of operations that the service accepted: a success whose body can be read (or is empty),
   or a 207 that names only others. Everything unreadable is undecided.
2. A 207 whose errors cannot all be placed (an index is missing, no integer, or out of range) leaves everything that
   it does not name undecided; the call is split to find out, and a single operation is rejected.
3. 400 and 422 refuse the whole call: split it until the culprit stands alone. 413: split. Alone, it is rejected.
4. 408, 429 and 5xx say nothing about the operations, whatever their body: try again.
5. 401 and 403 say nothing about them either: pause, and never give them up for it.
6. Any other 4xx rejects all operations of the call.
7. What is not decided is repeated with the same bytes; nothing that is decided is ever sent again.

Must not know: asyncio, aiohttp, the clock (``now`` is an argument).

Source: Track API v2, ``POST /api/v2/batch``, answers 200, 207, 400, 401; RFC 9110 (10.2.3 ``Retry-After``, 15).
"""

from __future__ import annotations

import datetime as dt
import email.utils
import enum
import math
import re
from typing import Any, Final, cast

import attrs
import orjson

from cio_batch.errors import ErrorDetail


class Verdict(enum.StrEnum):
    """What became of an operation. Every accepted operation gets exactly one."""

    DELIVERED = "delivered"
    """The service accepted it."""
    REJECTED = "rejected"
    """The service said no to this one."""
    FAILED = "failed"
    """Retries ran out, or the deadline passed."""
    DROPPED = "dropped"
    """The overflow policy or ``before_enqueue`` let it go."""


class Next(enum.Enum):
    """What to do with the operations of a call that are not decided."""

    NOTHING = enum.auto()
    """All are decided."""
    RETRY = enum.auto()
    """Send them again, after a wait."""
    SPLIT = enum.auto()
    """Send them again in halves."""
    PAUSE = enum.auto()
    """The credentials are refused: send nothing until a probe gets through."""


@attrs.frozen
class Answer:
    """An HTTP answer, read to its end, or the reason why there is none.

    Attributes:
        status: The HTTP status; 0 when no usable answer came.
        body: The body, cut off at the transport's limit.
        retry_after: The text of that header.
        complete: Whether the body was read to its end.
        reason: When ``status`` is 0: what went wrong, without content.
        sent: Whether the request may have reached the service.
    """

    status: int
    body: bytes = attrs.field(default=b"", repr=lambda body: f"<{len(body)} bytes>")
    retry_after: str | None = None
    complete: bool = True
    reason: str = ""
    sent: bool = True


@attrs.frozen
class Rejection:
    """Why the service said no to an operation.

    Attributes:
        reason: A word for it, the service's own where it gave one (``"invalid"``).
        field: The field that it named, or ``""``.
        message: Its explanation. It may quote content, so it stays out of logs and ``repr``.
        status: The HTTP status.
    """

    reason: str
    field: str = ""
    message: str = attrs.field(default="", repr=False)
    status: int = 0


@attrs.frozen
class Judgement:
    """What an answer means for the operations of a call, by their index.

    Attributes:
        decided: How many operations, from the head, have a verdict; those of them that are not in ``rejected`` are
            delivered.
        rejected: Rejections by index. An index at or behind ``decided`` is decided as well.
        next: What to do with the others.
        reason: Why they are undecided, without content: ``"status 503"``, ``"timed out"``.
        status: The HTTP status behind it, 0 for none.
        retry_after: Seconds that the service asked to wait, or ``None``.
        refuses_call: Whether the service refused the call as a whole (400, 422), with however many operations in it.
        misplaced: Whether a 207 named an operation that was not in the call.
        blames: Whether the failure may lie in the operations themselves. A rate limit never does.
    """

    decided: int
    rejected: dict[int, Rejection] = attrs.field(factory=dict[int, Rejection])
    next: Next = Next.NOTHING
    reason: str = ""
    status: int = 0
    retry_after: float | None = None
    refuses_call: bool = False
    misplaced: bool = False
    blames: bool = True

    def bounded(self, count: int) -> Judgement:
        """The same about ``count`` operations: what a transport says of others is left out."""
        if 0 <= self.decided <= count and all(0 <= index < count for index in self.rejected):
            return self
        rejected = {index: why for index, why in self.rejected.items() if 0 <= index < count}
        return attrs.evolve(self, decided=max(0, min(self.decided, count)), rejected=rejected)


_DELIVERED: Final = Judgement(1, status=200)
_MAX_TEXT: Final = 500  # characters of a service's message that are kept
_MAX_DETAILS: Final = 2_000  # as many as a batch has operations
_TITLE: Final = re.compile(r"<title[^>]*>([^<]*)</title>", re.IGNORECASE)


def judge_batch(answer: Answer, count: int, now: float) -> Judgement:
    """Judge the answer to a batch of ``count`` operations.

    Args:
        answer: The answer.
        count: Operations in the call, at least 1.
        now: Unix seconds, for a ``Retry-After`` that is a date.
    """
    status = answer.status
    if 200 <= status < 300:
        return _judge_success(answer, count)
    undecided = _undecided(answer, now)
    if undecided is not None:
        return undecided
    if status in (400, 413, 422):
        refuses_call = status != 413
        reason = f"status {status}"
        if count > 1:
            return Judgement(0, next=Next.SPLIT, reason=reason, status=status, refuses_call=refuses_call)
        rejected = {0: _read_rejection(answer)}
        return Judgement(0, rejected=rejected, reason=reason, status=status, refuses_call=refuses_call)
    rejection = _read_rejection(answer)
    return Judgement(0, rejected=dict.fromkeys(range(count), rejection), reason=f"status {status}", status=status)


def judge_call(answer: Answer, now: float) -> Judgement:
    """Judge the answer to a call with a single operation, as Track v1 takes them.

    Args:
        answer: The answer.
        now: Unix seconds, for a ``Retry-After`` that is a date.
    """
    if answer.status == 200 and answer.body == b"{}" and answer.complete:
        return _DELIVERED  # what the service says nearly always
    if 200 <= answer.status < 300:
        return _judge_success(answer, 1)
    undecided = _undecided(answer, now)
    if undecided is not None:
        return undecided
    rejection = _read_rejection(answer)
    return Judgement(0, rejected={0: rejection}, reason=f"status {answer.status}", status=answer.status)


def _judge_success(answer: Answer, count: int) -> Judgement:
    body = _success_body(answer)
    if body is None:
        return _unreadable(answer)
    listed: Any = body.get("errors")
    if "error" in body or (isinstance(body.get("meta"), dict) and body["meta"].keys() & {"error", "errors"}):
        return _unreadable(answer)  # a success that speaks of an error is not Customer.io's
    if answer.status != 207 and not listed:
        return Judgement(count, status=answer.status)
    if not isinstance(listed, list) or not listed:
        return _unreadable(answer)
    rejected: dict[int, Rejection] = {}
    placed = True
    for entry in cast("Any", listed):
        error = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        index = error.get("batch_index")
        if type(index) is int and 0 <= index < count:
            rejected.setdefault(index, _rejection_from(error, answer.status))
        else:
            placed = False
    if placed:
        return Judgement(count, rejected=rejected, status=answer.status)
    reason = "a 207 names operations that were not in the call"
    if count == 1:
        rejected.setdefault(0, Rejection("misplaced error", status=answer.status))
    following = Next.NOTHING if len(rejected) == count else Next.SPLIT
    return Judgement(0, rejected=rejected, next=following, reason=reason, status=answer.status, misplaced=True)


def _undecided(answer: Answer, now: float) -> Judgement | None:
    """The judgement of an answer that says nothing about the operations, else ``None``."""
    status = answer.status
    if status == 0:
        return Judgement(0, next=Next.RETRY, reason=answer.reason or "no answer", blames=answer.sent)
    wait = parse_retry_after(answer.retry_after, now)
    if status in (401, 403):
        return Judgement(0, next=Next.PAUSE, reason=f"status {status}", status=status, retry_after=wait, blames=False)
    if is_retryable(status):
        blames = status != 429
        return Judgement(0, next=Next.RETRY, reason=f"status {status}", status=status, retry_after=wait, blames=blames)
    return None


def is_retryable(status: int) -> bool:
    """Whether a call with this status may succeed later: 408, 429, 5xx, and what no final answer should have."""
    return status in (408, 429) or status >= 500 or status < 200 or 300 <= status < 400


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds to wait that a ``Retry-After`` asks for, at least 0, or ``None`` if it says nothing usable.

    Args:
        text: Seconds, or an HTTP date.
        now: Unix seconds.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError):
            return None
        if when.tzinfo is None:  # the zone "-0000"; HTTP dates are in GMT
            when = when.replace(tzinfo=dt.UTC)
        seconds = when.timestamp() - now
    if math.isnan(seconds):
        return None
    return max(0.0, seconds)


def _success_body(answer: Answer) -> dict[str, Any] | None:
    """The JSON object of a success, an empty one for an empty body, ``None`` for anything else."""
    if not answer.complete:
        return None
    if not answer.body.strip():
        # No body on a 207 means that errors were lost.
        return None if answer.status == 207 else {}
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, Any]", body) if isinstance(body, dict) else None


def _unreadable(answer: Answer) -> Judgement:
    return Judgement(0, next=Next.RETRY, reason=f"status {answer.status} with an unreadable body", status=answer.status)


def read_details(answer: Answer) -> tuple[ErrorDetail, ...]:
    """Read what the service found wrong, in whatever envelope it came; never raises.

    ``errors`` of v2 and of the App API, ``meta.error`` and ``meta.errors`` of v1, plain text, the title of an HTML
    page; nothing where there is nothing to read.
    """
    try:
        body: Any = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return _read_text(answer.body)
    if not isinstance(body, dict):
        return (ErrorDetail(message=_text(body)),) if isinstance(body, str) and body else ()
    envelope = cast("dict[str, Any]", body)
    meta: Any = envelope.get("meta")
    found: list[Any] = []
    if isinstance(meta, dict):
        found += [*_listed(cast("Any", meta).get("errors")), cast("Any", meta).get("error")]
    found += [*_listed(envelope.get("errors")), envelope.get("error")]
    return tuple(detail for each in found[:_MAX_DETAILS] if (detail := _detail_from(each)) is not None)


def _listed(value: object) -> list[Any]:
    items: list[Any] = cast("Any", value) if isinstance(value, list) else [value]
    return items


def _detail_from(error: object) -> ErrorDetail | None:
    if isinstance(error, str):
        return ErrorDetail(message=_text(error)) if error else None
    if not isinstance(error, dict):
        return None
    named = cast("dict[str, Any]", error)
    source: Any = named.get("source")  # of the App API: a name, or {"pointer": "/data/…"}
    if isinstance(source, dict):
        source = cast("Any", source).get("pointer") or cast("Any", source).get("parameter")
    status: Any = named.get("status")
    if isinstance(status, str) and status.isascii() and status.isdigit():
        status = int(status[:3])
    return ErrorDetail(
        reason=_text(named.get("reason")),
        field=_text(named.get("field")) or _text(source),
        message=_text(named.get("message")) or _text(named.get("detail")),
        status=status if type(status) is int else 0,
    )


def _read_text(body: bytes) -> tuple[ErrorDetail, ...]:
    text = body[: 4 * _MAX_TEXT].decode(errors="replace").strip()
    if text.startswith(("{", "[")):
        return ()  # JSON that was cut off
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = title[1].strip() if title is not None else ""
    return (ErrorDetail(message=text[:_MAX_TEXT]),) if text else ()


def _read_rejection(answer: Answer) -> Rejection:
    """Read the first of the reasons."""
    details = read_details(answer)
    if not details:
        return Rejection(f"status {answer.status}", status=answer.status)
    first = details[0]
    return Rejection(first.reason or f"status {answer.status}", first.field, first.message, answer.status)


def _rejection_from(error: dict[str, Any], status: int) -> Rejection:
    return Rejection(
        reason=_text(error.get("reason")) or f"status {status}",
        field=_text(error.get("field")),
        message=_text(error.get("message")),
        status=status,
    )


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""
