"""One call's body, read and checked: which operations it says, and which of them are refused.

Rules:

1. Reading changes nothing. The workspace is told afterwards, in the order of ``accepted``.
2. A refused operation takes no other with it in a batch; in every other call it refuses the call.
3. The size of an operation in a batch is that of its compact JSON: the document does not say whether white
   space counts, and a batch whose operations are longer only by white space would be refused by no one.

This module must not know HTTP, the workspace or the faults.

Source: track-openapi.json, paths./api/v2/batch, paths./api/v2/entity; for the statuses of the App API
docs.customer.io/integrations/api/app.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs
import orjson

from cio_batch.simulator.app import (
    MAX_MESSAGE_BYTES,
    TOO_LARGE,
    check_broadcast,
    check_message,
    message_of,
    trigger_of,
)
from cio_batch.simulator.checks import (
    MAX_BATCH_BYTES,
    MAX_OPERATION_BYTES,
    Problem,
    check_operation,
    invalid,
    required,
)
from cio_batch.simulator.keys import Operation, is_array, is_object
from cio_batch.simulator.routes import Target
from cio_batch.simulator.v1 import translate

STEP: Final = 1_000
"""Operations of a batch that are checked before the loop gets its turn."""


class Accepted(NamedTuple):
    """An operation that passed: its position in the call, its parsed form and its canonical bytes.

    What the App API takes has no canonical form, since no log compares it: there the bytes are those that came.
    """

    position: int
    operation: Operation
    raw: bytes


@attrs.define
class Call:
    """What one request says.

    Attributes:
        accepted: The valid operations, in the order in which they stand in the request.
        refused: The errors of the 207 answer, each with its ``batch_index``; only a batch has them.
        refusal: Why the whole call is refused; then ``accepted`` is empty.
        status: The status of the answer that refuses the whole call.
        is_too_large: The whole body is over the limit, which some services answer with 413.
        size: How many operations the request held, valid or not.
    """

    accepted: list[Accepted] = attrs.field(factory=list[Accepted])
    refused: list[dict[str, Any]] = attrs.field(factory=list[dict[str, Any]])
    refusal: Sequence[Problem] = ()
    status: int = 400
    is_too_large: bool = False
    size: int = 0


def canonical(operation: Operation) -> bytes:
    """Return the canonical JSON of an operation: compact, its fields sorted."""
    return orjson.dumps(operation, option=orjson.OPT_SORT_KEYS)


def batch_error(index: int, problem: Problem) -> dict[str, Any]:
    """Return a problem as the 207 answer names it."""
    reason, field, message = problem
    return {"batch_index": index, "reason": reason, "field": field, "message": message}


def read_call(call: Call, target: Target, query: Mapping[str, str], body: bytes, now: float) -> Iterator[None]:
    """Read a request into ``call``, giving way after each ``STEP`` operations.

    Args:
        call: An empty call; it is complete when the iterator ends.
        target: Which call the request line asks for.
        query: The query's parameters.
        body: The request's body, as it came.
        now: Unix seconds.

    Yields:
        Nothing; each time, the caller may let others run.
    """
    match target.route.name:
        case "batch":
            yield from _read_batch(call, body)
        case "entity":
            _read_entity(call, body)
        case "trigger_broadcast":
            _read_broadcast(call, target.parts["broadcast_id"], body)
        case kind if target.route.api == "app":
            _read_message(call, kind, body, now)
        case _:
            _read_v1(call, target, query, body)


def _read_batch(call: Call, body: bytes) -> Iterator[None]:
    if len(body) >= MAX_BATCH_BYTES:
        call.is_too_large = True
        call.refusal = [Problem("too_large", "batch", "request must be smaller than 500kb")]
        return
    content, refusal = _parse(body)
    if refusal:
        call.refusal = refusal
        return
    if not is_object(content):
        call.refusal = [Problem("invalid", "", "request body must be a JSON object")]
        return
    operations = content.get("batch")
    if operations is None:
        call.refusal = [required("batch")]
        return
    if not is_array(operations):
        call.refusal = [invalid("batch", "must be an array")]
        return

    call.size = len(operations)
    accept, refuse = call.accepted.append, call.refused.append
    for index, operation in enumerate(operations):
        if index % STEP == STEP - 1:
            yield
        problems = check_operation(operation)
        if problems:
            for problem in problems:
                refuse(batch_error(index, problem))
            continue
        raw = canonical(operation)
        if len(raw) > MAX_OPERATION_BYTES:
            refuse(batch_error(index, _OPERATION_TOO_LARGE))
        else:
            accept(Accepted(index, operation, raw))


def _read_entity(call: Call, body: bytes) -> None:
    call.size = 1
    # "Your request must be smaller than 32kb": stricter by one byte than an operation in a batch.
    if len(body) >= MAX_OPERATION_BYTES:
        call.is_too_large = True
        call.refusal = [_OPERATION_TOO_LARGE]
        return
    content, refusal = _parse(body)
    problems = refusal or check_operation(content)
    if problems:
        call.refusal = problems
    else:
        call.accepted.append(Accepted(0, content, canonical(content)))


def _read_v1(call: Call, target: Target, query: Mapping[str, str], body: bytes) -> None:
    if target.route.method == "GET":
        return
    if len(body) >= MAX_BATCH_BYTES:
        call.is_too_large = True
        call.refusal = [Problem("too_large", "", "request must be smaller than 500kb")]
        return
    content, refusal = _parse(body or b"{}")
    if refusal:
        call.refusal = refusal
        return
    operations, problems = translate(target.route.name, target.parts, query, content)
    call.size = len(operations)
    if problems:
        call.refusal = problems
    else:
        call.accepted.extend(
            Accepted(index, operation, canonical(operation)) for index, operation in enumerate(operations)
        )


def _read_message(call: Call, kind: str, body: bytes, now: float) -> None:
    call.size = 1
    content, refusal = _parse(body)
    call.refusal = refusal or check_message(kind, content, now)
    if any(problem.reason == TOO_LARGE for problem in call.refusal):
        call.status = 413
    elif len(body) > MAX_MESSAGE_BYTES or refusal:
        call.refusal = [Problem("invalid", "", "Request entity must be JSON encoded and not exceed 2048 KB.")]
    if not call.refusal:
        call.accepted.append(Accepted(0, message_of(kind, content), body))


def _read_broadcast(call: Call, broadcast_id: str, body: bytes) -> None:
    call.size = 1
    # No broadcast has more digits than a 64-bit number, and Python would refuse to read some of those.
    if not (broadcast_id.isascii() and broadcast_id.isdigit() and len(broadcast_id) < _MAX_DIGITS):
        call.status, call.refusal = 404, [Problem("not_found", "", "not found")]
        return
    content, refusal = _parse(body or b"{}")
    if refusal:
        call.refusal = [Problem("invalid", "", "bad request")]
        return
    call.status = 422
    call.refusal = check_broadcast(content)
    if not call.refusal:
        call.accepted.append(Accepted(0, trigger_of(int(broadcast_id), content), body))


def _parse(body: bytes) -> tuple[Operation, list[Problem]]:
    # Whether it is an object is for the reader to see; the type is what it will be then.
    try:
        return orjson.loads(body), []
    except orjson.JSONDecodeError:
        return {}, [Problem("invalid", "", "request body is not valid JSON")]


_MAX_DIGITS: Final = 20
_OPERATION_TOO_LARGE: Final = Problem("too_large", "", "operation must be 32kb or smaller")
