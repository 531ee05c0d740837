"""The exception tree: what a program can branch on stays with an error wherever it goes."""

from __future__ import annotations

import copy
import pickle

import pytest

import cio_batch
from cio_batch import (
    ApiError,
    CioBatchError,
    ConfigurationError,
    DeliveryError,
    ErrorDetail,
    EventSchemaError,
    InvalidOperationError,
    QueueFullError,
    SendOutcomeUnknownError,
    SpoolError,
    SpoolLockedError,
    TrackerClosedError,
    UnreachableError,
    WrongLoopError,
)

DETAIL = ErrorDetail("invalid", "to", "is unknown", 400)
ERRORS: list[CioBatchError] = [
    CioBatchError("text"),
    ConfigurationError("text", ("CUSTOMERIO_SITE_ID",)),
    InvalidOperationError("data.total", "is too long", limit=150, actual=151),
    EventSchemaError("plan_changed", "mrr", "float", "str"),
    QueueFullError("text", pending=1, pending_bytes=2),
    TrackerClosedError("text"),
    WrongLoopError("text"),
    SpoolError("text"),
    SpoolLockedError("text", pid=7),
    DeliveryError("text", retryable=True, retry_after=1.5),
    ApiError(status=429, retryable=True, retry_after=1.5, details=[DETAIL]),
    UnreachableError("text", sent=True),
    SendOutcomeUnknownError("status 502", status=502, details=[DETAIL]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled_and_copied(error: CioBatchError) -> None:
    """An error of a worker process reaches its parent, with its text and all of its attributes."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.retryable is error.retryable


def test_no_error_is_left_out() -> None:
    """Each public error is tried here, and all are of one tree."""
    public = {getattr(cio_batch, name) for name in cio_batch.__all__ if name.endswith("Error")}
    assert public == {type(error) for error in ERRORS}
    assert all(issubclass(kind, CioBatchError) for kind in public)
