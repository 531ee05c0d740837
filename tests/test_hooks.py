"""What hooks get, and that one that fails hurts nobody and shows nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import attrs
import pytest

from cio_batch import SettledChunk, SettledOperation, Verdict
from cio_batch import operations as ops
from cio_batch.hooks import SettledHook, redact
from cio_batch.operations import Draft, Operation, encode
from cio_batch.verdicts import Rejection

SECRET = "s3cr3t-content"
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def encoded(draft: Draft) -> Operation:
    return encode(draft, now=5.0, new_id=lambda: ULID)


EVENT = encoded(ops.event("u", "n", {"a": SECRET}))
DELETE = encoded(ops.delete("u"))


# ------------------------------------------------------------------------------------------------- what they get


def test_a_settled_operation_has_its_payload_and_id() -> None:
    """The payload is the parsed body, and the id the ULID of kinds that have one."""
    event = SettledOperation(Verdict.DELIVERED, EVENT.kind, EVENT.body)
    assert event.payload == {
        "type": "person",
        "action": "event",
        "identifiers": {"id": "u"},
        "name": "n",
        "timestamp": 5,
        "id": ULID,
        "attributes": {"a": SECRET},
    }
    assert event.id == ULID
    assert SettledOperation(Verdict.REJECTED, DELETE.kind, DELETE.body).id is None


def test_a_settled_operation_shows_no_content() -> None:
    """Neither the body nor the service's message is in its repr, and it is frozen."""
    settled = SettledOperation(Verdict.REJECTED, EVENT.kind, EVENT.body, "invalid", "attributes", SECRET, 400, 2)
    assert SECRET not in repr(SettledChunk((settled,)))
    assert "invalid" in repr(settled)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settled.reason = "other"  # type: ignore[misc]


def test_a_hook_gets_the_operations_of_a_call_together() -> None:
    """One chunk with each operation, its verdict, the one reason of all, the status and the attempts."""
    got: list[SettledChunk] = []
    SettledHook(got.append).call([EVENT, DELETE], Verdict.FAILED, None, "deadline", 503, 4)
    assert got == [
        SettledChunk(
            (
                SettledOperation(Verdict.FAILED, "person.event", EVENT.body, "deadline", "", "", 503, 4),
                SettledOperation(Verdict.FAILED, "person.delete", DELETE.body, "deadline", "", "", 503, 4),
            )
        )
    ]


def test_a_hook_gets_each_rejection_with_its_operation() -> None:
    """Rejections come in the order of the operations."""
    got: list[SettledChunk] = []
    rejections = [Rejection("invalid", "name", "m", 207), Rejection("required", "id", "n", 207)]
    SettledHook(got.append).call([EVENT, DELETE], Verdict.REJECTED, rejections, "unused", 207, 1)
    assert [(each.reason, each.field, each.message, each.status) for each in got[0].operations] == [
        ("invalid", "name", "m", 207),
        ("required", "id", "n", 207),
    ]


# ------------------------------------------------------------------------------------------------ hooks that fail


def assert_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert [record.getMessage() for record in caplog.records] == [text]
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].name == "cio_batch.hooks"
    assert caplog.records[0].exc_info is None
    assert SECRET not in caplog.text


def test_a_hook_that_raises_is_logged_without_content(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a hook stays with the hook; only its type is logged."""

    def hook(chunk: SettledChunk) -> None:
        raise KeyError(SECRET, chunk.operations[0].body)

    SettledHook(hook).call([EVENT], Verdict.DELIVERED, None, "", 200, 1)
    assert_logged(caplog, "on_settled raised KeyError")


async def test_an_async_hook_that_raises_is_logged_without_content(caplog: pytest.LogCaptureFixture) -> None:
    """The same for one that fails later, in its own task, and the loop's exception handler hears nothing."""

    async def hook(chunk: SettledChunk) -> None:
        await asyncio.sleep(0)
        raise ValueError(SECRET, chunk.operations[0].body)

    settled = SettledHook(hook)
    settled.call([EVENT], Verdict.DELIVERED, None, "", 200, 1)
    await settled.wait(5)
    assert_logged(caplog, "on_settled raised ValueError")


async def test_an_async_hook_runs_by_itself_and_is_waited_for() -> None:
    """``call`` returns at once; ``wait`` lets what runs come to its end."""
    got: list[SettledChunk] = []
    gate = asyncio.Event()

    async def hook(chunk: SettledChunk) -> None:
        await gate.wait()
        got.append(chunk)

    settled = SettledHook(hook)
    for _ in range(3):
        settled.call([EVENT], Verdict.DELIVERED, None, "", 200, 1)
    assert len(settled._tasks) == 3
    asyncio.get_running_loop().call_soon(gate.set)
    await settled.wait(5)
    assert len(got) == 3
    await asyncio.sleep(0)
    assert not settled._tasks, "ended tasks are let go"


async def test_a_hook_may_return_any_awaitable() -> None:
    """A future is awaited like a coroutine."""
    future = asyncio.get_running_loop().create_future()

    def hook(_: SettledChunk) -> Awaitable[None]:
        return future

    settled = SettledHook(hook)
    settled.call([EVENT], Verdict.DELIVERED, None, "", 200, 1)
    future.set_result(None)
    await settled.wait(5)
    assert not settled._tasks


async def test_a_hook_without_end_is_cancelled_at_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """``wait`` keeps its time, says how many hooks it cut off, and has nothing to do the second time."""
    cancelled = asyncio.Event()

    async def hook(_: SettledChunk) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    settled = SettledHook(hook)
    settled.call([EVENT], Verdict.DELIVERED, None, "", 200, 1)
    await settled.wait(0.01)
    assert cancelled.is_set()
    assert [record.getMessage() for record in caplog.records] == ["1 on_settled hooks were cancelled at the deadline"]
    await settled.wait(-1)
    assert len(caplog.records) == 1


# ----------------------------------------------------------------------------------------------- before_enqueue


def test_a_draft_may_be_changed_or_replaced() -> None:
    """What ``before_enqueue`` returns is what goes on."""

    def change(draft: Draft) -> Draft:
        draft.attributes = {}
        return draft

    draft, replacement = ops.event("u", "n", {"a": SECRET}), ops.event("u", "other")
    changed = redact(change, draft)
    assert changed is draft
    assert draft.attributes == {}
    assert redact(lambda _: replacement, draft) is replacement


def test_none_drops_the_operation(caplog: pytest.LogCaptureFixture) -> None:
    """``None`` is a decision, not a fault, and is not logged."""
    assert redact(lambda _: None, ops.event("u", "n")) is None
    assert caplog.records == []


def test_a_redaction_that_fails_lets_nothing_out(caplog: pytest.LogCaptureFixture) -> None:
    """A redaction that raised may not have removed what it was to remove: the operation is dropped, without a trace."""

    def hook(draft: Draft) -> Draft:
        raise RuntimeError(SECRET, draft)

    assert redact(hook, ops.event("u", "n", {"a": SECRET})) is None
    assert_logged(caplog, "before_enqueue raised RuntimeError; the operation is dropped")


@pytest.mark.parametrize("returned", [{"a": SECRET}, True, "draft", SECRET, 0, ()], ids=repr)
def test_a_redaction_that_returns_no_draft_lets_nothing_out(returned: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever else comes back is taken for a failure, falsy or not."""
    assert redact(lambda _: returned, ops.event("u", "n", {"a": SECRET})) is None
    assert_logged(
        caplog, f"before_enqueue returned {type(returned).__name__} instead of a Draft; the operation is dropped"
    )
