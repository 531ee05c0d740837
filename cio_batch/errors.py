"""Every exception that cio_batch raises, in one tree whose branches say what the caller can do.

    CioBatchError
    ├── ConfigurationError      (ValueError)    fix the settings; nothing was started
    ├── InvalidOperationError   (ValueError)    fix the call; nothing was queued
    ├── QueueFullError          (RuntimeError)  slow down, or call again later; nothing was queued
    ├── TrackerClosedError      (RuntimeError)  too late; nothing was queued
    ├── WrongLoopError          (RuntimeError)  call from the loop (or start in the loop) that owns the tracker
    └── DeliveryError                           a direct call did not succeed
        ├── ApiError                            the service answered, and the answer was no
        └── UnreachableError                    no usable answer came

Rules:

1. A text holds sizes, limits, names of fields and settings, statuses: never a key, never content.
2. What a program may want to branch on is an attribute, not a text.
3. An error raised by ``enqueue`` and its like means that the operation was not accepted.
"""

from __future__ import annotations


class CioBatchError(Exception):
    """The base of all errors of this library."""


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


class QueueFullError(CioBatchError, RuntimeError):
    """The tracker holds as much as it may, and the overflow policy says to refuse.

    Attributes:
        pending: Operations held (queued and in flight) at that moment.
        pending_bytes: Their encoded size in bytes.
    """

    def __init__(self, message: str, *, pending: int, pending_bytes: int) -> None:
        super().__init__(message)
        self.pending = pending
        self.pending_bytes = pending_bytes


class TrackerClosedError(CioBatchError, RuntimeError):
    """The tracker is closed or closing and takes no more operations."""


class WrongLoopError(CioBatchError, RuntimeError):
    """The tracker belongs to an event loop that is still running elsewhere, or to none yet."""


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


class ApiError(DeliveryError):
    """The service answered with a status that is not a success.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, *, status: int, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.status = status


class UnreachableError(DeliveryError):
    """No usable answer came: no connection, a connection that broke, a timeout, a refused redirect.

    Attributes:
        sent: Whether the request may have reached the service. ``False`` only where the connection was
            never made.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message, retryable=True)
        self.sent = sent


def whereabouts(error: BaseException) -> str:
    """Name an error by its type and the line that raised it, for a log: its text may hold content."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None:
        return type(error).__name__
    code = frames.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_qualname}, {code.co_filename}:{frames.tb_lineno}"
