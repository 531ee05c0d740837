"""Every exception that cio_batch raises, in one tree whose branches say what the caller can do.

    CioBatchError
    ├── ConfigurationError      (ValueError)    fix the settings; nothing was started
    ├── InvalidOperationError   (ValueError)    fix the call; nothing was queued
    │   └── EventSchemaError                    it contradicts what the taxonomy declares
    ├── QueueFullError          (RuntimeError)  slow down, or call again later; nothing was queued
    ├── TrackerClosedError      (RuntimeError)  too late; nothing was queued
    ├── WrongLoopError          (RuntimeError)  call from the loop (or start in the loop) that owns the tracker
    ├── SpoolError              (RuntimeError)  mend the disk, or the file; nothing was queued
    │   └── SpoolLockedError                    another process (or tracker) owns the file
    └── DeliveryError                           a direct call did not succeed
        ├── ApiError                            the service answered, and the answer was no
        ├── UnreachableError                    no usable answer came; the call may be made again
        └── SendOutcomeUnknownError             a message may have gone out or not; look before you send it again

Rules:

1. A text holds sizes, limits, names of fields and settings, statuses: never a key, never content.
2. What a program may want to branch on is an attribute, not a text.
3. An error raised by ``enqueue`` and its like means that the operation was not accepted.
4. An error can be pickled and copied, with all that it says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import attrs


class CioBatchError(Exception):
    """The base of all errors of this library.

    Attributes:
        retryable: Whether the same call may succeed later; ``with_retry`` goes by it.
    """

    retryable: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the text alone, and a worker's error would break the pool it came from.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[CioBatchError], arguments: tuple[object, ...], attributes: dict[str, object]) -> CioBatchError:
    """Make an error that was pickled or copied again."""
    error = cls.__new__(cls, *arguments)
    error.__dict__.update(attributes)
    return error


class ConfigurationError(CioBatchError, ValueError):
    """Settings are missing or malformed.

    Attributes:
        variables: The names of every offending setting or environment variable.
    """

    def __init__(self, message: str, variables: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.variables = variables


class InvalidOperationError(CioBatchError, ValueError):
    """An operation cannot be sent: it breaks a limit or cannot be encoded.

    Attributes:
        field: The part of the operation that is at fault, for example ``user_id`` or ``data.total``.
        reason: What was wrong and what was expected, without content.
        limit: The limit that was broken, in the unit that the reason names; ``None`` where there is none.
        actual: The size that was found, in the same unit; ``None`` where there is none.
    """

    def __init__(self, field: str, reason: str, *, limit: int | None = None, actual: int | None = None) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.limit = limit
        self.actual = actual


class EventSchemaError(InvalidOperationError):
    """An event, or attributes of a person, or a schema contradict what was declared.

    Attributes:
        event: The name of the event, or of the class of attributes.
        field: The field at fault, for example ``mrr`` or ``items[2].price``; ``""`` where it is the event itself.
        expected: What was declared.
        got: The type that came instead, never the value.
    """

    def __init__(self, event: str, field: str, expected: str, got: str) -> None:
        where = f"{event}.{field}" if event and field else event or field
        super().__init__(where, f"expected {expected}, got {got}")
        self.event = event
        self.field = field
        self.expected = expected
        self.got = got


class QueueFullError(CioBatchError, RuntimeError):
    """The tracker holds as much as it may, and the overflow policy says to refuse.

    Attributes:
        pending: Operations held (queued and in flight) at that moment.
        pending_bytes: Their encoded size in bytes.
    """

    retryable: bool = True

    def __init__(self, message: str, *, pending: int, pending_bytes: int) -> None:
        super().__init__(message)
        self.pending = pending
        self.pending_bytes = pending_bytes


class TrackerClosedError(CioBatchError, RuntimeError):
    """The tracker is closed or closing and takes no more operations."""


class WrongLoopError(CioBatchError, RuntimeError):
    """The tracker belongs to an event loop that is still running elsewhere, or to none yet."""


class SpoolError(CioBatchError, RuntimeError):
    """The spool, or a file of dead letters, cannot be read or written."""

    retryable: bool = True


class SpoolLockedError(SpoolError):
    """The spool belongs to somebody else as long as that process lives.

    Attributes:
        pid: The process that owns it, ``None`` when it did not say.
    """

    def __init__(self, message: str, *, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class DeliveryError(CioBatchError):
    """A call to the service did not succeed.

    Attributes:
        retryable: Whether the same call may succeed later.
        retry_after: Seconds that the service asked to wait, or ``None``.
    """

    def __init__(self, message: str, *, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


@attrs.frozen
class ErrorDetail:
    """One of the things that the service found wrong.

    Attributes:
        reason: The service's word for it (``"invalid"``), or ``""``.
        field: The field that it named, or ``""``.
        message: Its explanation. It may quote content, so it stays out of every text and ``repr``.
        status: The status that it gave to this one, 0 for none.
    """

    reason: str = ""
    field: str = ""
    message: str = attrs.field(default="", repr=False)
    status: int = 0


_WORD: Final = re.compile(r"[\w.\[\]/-]{1,100}")  # a reason or a field, and no sentence that may quote content
_MAX_NAMED: Final = 5


def _named(details: Sequence[ErrorDetail]) -> str:
    """The reasons and fields of an error, for its text."""
    named = [
        word if not field else f"{word} ({field})"
        for detail in details
        if (word := detail.reason) and _WORD.fullmatch(word)
        for field in [detail.field if _WORD.fullmatch(detail.field) else ""]
    ]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return ", ".join(named[:_MAX_NAMED]) + more


class ApiError(DeliveryError):
    """The service answered with a status that is not a success.

    Attributes:
        status: The HTTP status.
        details: What the service found wrong, in its order; empty where it did not say.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int,
        retryable: bool,
        retry_after: float | None = None,
        details: Sequence[ErrorDetail] = (),
    ) -> None:
        if not message:
            named = _named(details)
            message = f"Customer.io answered {status}" + (f": {named}" if named else "")
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.status = status
        self.details = tuple(details)


class UnreachableError(DeliveryError):
    """No usable answer came: no connection, a connection that broke, a timeout, a refused redirect.

    Attributes:
        sent: Whether the request may have reached the service. ``False`` only where the connection was
            never made.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message, retryable=True)
        self.sent = sent


class SendOutcomeUnknownError(DeliveryError):
    """A message may have been sent, or not: the call was made, and no answer says what became of it.

    Nothing repeated it, since the service has no way to tell a repeat from a second message. Whether it went out
    shows in the message's deliveries in Customer.io.

    Attributes:
        reason: Why it is not known, without content: ``"no answer (timed out)"``, ``"status 502"``.
        status: The HTTP status, 0 where no answer came.
        details: What the service said, where it said something.
    """

    def __init__(self, reason: str, *, status: int = 0, details: Sequence[ErrorDetail] = ()) -> None:
        super().__init__(
            f"{reason}: the message may have been sent or not, and it was not repeated; "
            "look up its delivery before you send it again",
            retryable=False,
        )
        self.reason = reason
        self.status = status
        self.details = tuple(details)


def whereabouts(error: BaseException) -> str:
    """Name an error by its type and the line that raised it, for a log: its text may hold content."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None:
        return type(error).__name__
    code = frames.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_qualname}, {code.co_filename}:{frames.tb_lineno}"
