"""What an answer means: a table of statuses and bodies, and hostile bodies without end."""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cio_batch.retries import delay
from cio_batch.settings import RetryOptions
from cio_batch.verdicts import Answer, Judgement, Next, Rejection, judge_batch, judge_call, parse_retry_after

NOW = 1_700_000_000.0
SECRET = "s3cr3t-content"


def delivered(judgement: Judgement, count: int) -> set[int]:
    """The indexes that count as delivered, by the meaning that ``Judgement`` gives its fields."""
    return {index for index in range(min(judgement.decided, count)) if index not in judgement.rejected}


def undecided(judgement: Judgement, count: int) -> set[int]:
    return {index for index in range(judgement.decided, count) if index not in judgement.rejected}


def errors(*indexes: Any) -> bytes:
    return json.dumps(
        {"errors": [{"batch_index": index, "reason": "invalid", "field": "f", "message": "m"} for index in indexes]}
    ).encode()


OK_BODIES = [b"{}", b"{}\n", b"", b" \n", b'{"unknown":[1]}', b'{"errors":[]}', b'{"errors":null}']
BROKEN_BODIES = [
    b"{",
    b'{"errors":[{"batch_index":1',
    b"<html><body>Bad Gateway</body></html>",
    b"null",
    b"[]",
    b"7",
    b'"ok"',
    b"\xff\xfe",
    b"\x00",
    b"ok",
    b'{"a":"\xff"}',
    b"[" * 100_000,
    b"x" * 1_000_000,
    b'{"errors":"many"}',
    b'{"errors":{"batch_index":0}}',
    b'{"errors":7}',
    b'{"errors":true}',
]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
@pytest.mark.parametrize("body", OK_BODIES)
def test_a_success_that_can_be_read_delivers_all(status: int, body: bytes) -> None:
    """A success with an object without errors, or with nothing, decides every operation as delivered."""
    judgement = judge_batch(Answer(status, body), 3, NOW)
    assert (judgement.decided, judgement.rejected, judgement.next) == (3, {}, Next.NOTHING)
    judgement = judge_call(Answer(status, body), NOW)
    assert (judgement.decided, judgement.rejected, judgement.next) == (1, {}, Next.NOTHING)


@pytest.mark.parametrize("status", [200, 202, 207])
@pytest.mark.parametrize("body", BROKEN_BODIES)
def test_a_success_that_cannot_be_read_decides_nothing(status: int, body: bytes) -> None:
    """Truncated JSON, HTML and wrong types say nothing: all is sent again, and nothing of the body is in the reason."""
    for judgement in (judge_batch(Answer(status, body), 3, NOW), judge_call(Answer(status, body), NOW)):
        assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.RETRY)
        assert len(judgement.reason) < 60
        assert judgement.status == status


@pytest.mark.parametrize("status", [200, 207])
def test_a_success_that_was_cut_off_decides_nothing(status: int) -> None:
    """A body that was not read to its end is not believed, even where what came is valid."""
    for body in (b"{}", b"", errors(1)):
        judgement = judge_batch(Answer(status, body, complete=False), 3, NOW)
        assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.RETRY)
        judgement = judge_call(Answer(status, body, complete=False), NOW)
        assert (judgement.decided, judgement.next) == (0, Next.RETRY)


@pytest.mark.parametrize("body", OK_BODIES)
def test_a_207_without_errors_decides_nothing(body: bytes) -> None:
    """A 207 promises errors; where none came they were lost, and success is not assumed."""
    for judgement in (judge_batch(Answer(207, body), 3, NOW), judge_call(Answer(207, body), NOW)):
        assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.RETRY)


@pytest.mark.parametrize("status", [200, 207])
@pytest.mark.parametrize(
    ("indexes", "rejected"), [([0], {0}), ([2], {2}), ([2, 0], {0, 2}), ([1, 1, 1], {1}), ([0, 1, 2], {0, 1, 2})]
)
def test_errors_that_can_be_placed_reject_theirs_and_deliver_the_others(
    status: int, indexes: list[int], rejected: set[int]
) -> None:
    """The named operations are rejected, a repeated index once, and all others are delivered."""
    judgement = judge_batch(Answer(status, errors(*indexes)), 3, NOW)
    assert set(judgement.rejected) == rejected
    assert delivered(judgement, 3) == {0, 1, 2} - rejected
    assert undecided(judgement, 3) == set()
    assert judgement.next is Next.NOTHING


MISPLACED = [-1, 3, 10**9, 10**30, True, False, 1.0, 0.0, "1", None, [1], {"a": 1}]


@pytest.mark.parametrize("index", MISPLACED, ids=repr)
def test_an_error_that_cannot_be_placed_is_never_a_success(index: Any) -> None:
    """What is not named stays undecided and is split; what is named beside it stays rejected; one alone is rejected."""
    judgement = judge_batch(Answer(207, errors(index)), 3, NOW)
    assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.SPLIT)
    assert judgement.reason

    judgement = judge_batch(Answer(207, errors(1, index)), 3, NOW)
    assert set(judgement.rejected) == {1}
    assert undecided(judgement, 3) == {0, 2}
    assert judgement.next is Next.SPLIT

    judgement = judge_batch(Answer(207, errors(index)), 1, NOW)
    assert set(judgement.rejected) == {0}
    assert judgement.next is Next.NOTHING
    assert delivered(judgement, 1) == set()


@pytest.mark.parametrize("entry", ["{}", "7", "null", "[]", '"x"', '{"reason":"invalid"}'])
def test_an_entry_without_an_index_is_never_a_success(entry: str) -> None:
    """A missing index is treated like one that is out of range."""
    judgement = judge_batch(Answer(207, b'{"errors":[%s]}' % entry.encode()), 2, NOW)
    assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.SPLIT)


def test_misplaced_errors_beside_all_the_others_leave_nothing_to_split() -> None:
    """Where every operation is named anyway, all are decided."""
    judgement = judge_batch(Answer(207, errors(0, 1, 9)), 2, NOW)
    assert set(judgement.rejected) == {0, 1}
    assert judgement.next is Next.NOTHING


def test_a_call_of_one_operation_that_names_it_is_no_success() -> None:
    """A 207 or a 200 with errors rejects the single operation of a call."""
    for status in (200, 207):
        judgement = judge_call(Answer(status, errors(0)), NOW)
        assert (set(judgement.rejected), judgement.next) == ({0}, Next.NOTHING)
        assert delivered(judgement, 1) == set()


# ---------------------------------------------------------------------------------------------- other statuses

ANY_BODY = [b"", b"{}", b"<html>", b"[" * 1_000, errors(0), b'{"errors":[{"reason":"required"}]}', b"\xff"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 599, 301, 302, 307, 308, 304, 100, 101])
@pytest.mark.parametrize("body", ANY_BODY)
def test_statuses_that_say_nothing_are_tried_again(status: int, body: bytes) -> None:
    """408, 429, 5xx and what is no final answer leave all undecided, whatever their body."""
    answer = Answer(status, body, retry_after="7")
    for judgement in (judge_batch(answer, 3, NOW), judge_call(answer, NOW)):
        assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.RETRY)
        assert judgement.retry_after == 7.0
        assert judgement.reason == f"status {status}"
        assert judgement.blames is (status != 429)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", ANY_BODY)
@pytest.mark.parametrize("count", [1, 3])
def test_refused_credentials_pause_and_reject_nothing(status: int, body: bytes, count: int) -> None:
    """401 and 403 say nothing about the operations, and never blame them."""
    for judgement in (judge_batch(Answer(status, body), count, NOW), judge_call(Answer(status, body), NOW)):
        assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.PAUSE)
        assert not judgement.blames


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("body", ANY_BODY)
def test_a_refused_batch_is_split_until_the_culprit_stands_alone(status: int, body: bytes) -> None:
    """Several operations are split, one is rejected."""
    judgement = judge_batch(Answer(status, body), 2, NOW)
    assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.SPLIT)
    for judgement in (judge_batch(Answer(status, body), 1, NOW), judge_call(Answer(status, body), NOW)):
        assert set(judgement.rejected) == {0}
        assert (judgement.next, judgement.rejected[0].status) == (Next.NOTHING, status)


@pytest.mark.parametrize("status", [402, 404, 405, 409, 410, 415, 418, 431, 451, 499])
@pytest.mark.parametrize("body", ANY_BODY)
def test_any_other_4xx_rejects_the_whole_call(status: int, body: bytes) -> None:
    """A status that no repeat will change rejects every operation of the call."""
    judgement = judge_batch(Answer(status, body), 3, NOW)
    assert set(judgement.rejected) == {0, 1, 2}
    assert (judgement.next, delivered(judgement, 3)) == (Next.NOTHING, set())
    assert set(judge_call(Answer(status, body), NOW).rejected) == {0}


@pytest.mark.parametrize("sent", [True, False])
def test_no_answer_is_tried_again(sent: bool) -> None:
    """Without an answer all is undecided; only a request that may have arrived can have been to blame."""
    answer = Answer(0, reason="timed out", sent=sent, retry_after="7")
    for judgement in (judge_batch(answer, 2, NOW), judge_call(answer, NOW)):
        assert (judgement.decided, judgement.rejected, judgement.next) == (0, {}, Next.RETRY)
        assert (judgement.reason, judgement.blames, judgement.retry_after) == ("timed out", sent, None)
    assert judge_batch(Answer(0), 2, NOW).reason == "no answer"


# --------------------------------------------------------------------------------------------------- rejections


@pytest.mark.parametrize(
    ("body", "rejection"),
    [
        (b'{"errors":[{"reason":"required","field":"name","message":"m"}]}', Rejection("required", "name", "m", 400)),
        (b'{"errors":[{"reason":7,"field":null}]}', Rejection("status 400", status=400)),
        (b'{"meta":{"errors":["bad id"]}}', Rejection("status 400", "", "bad id", 400)),
        (b'{"meta":{"error":"bad id"}}', Rejection("status 400", "", "bad id", 400)),
        (b'{"meta":{"errors":[]}}', Rejection("status 400", status=400)),
        (b'{"meta":{"errors":{"a":1}}}', Rejection("status 400", status=400)),
        (b'{"meta":{"errors":[7]}}', Rejection("status 400", status=400)),
        (b'{"meta":7}', Rejection("status 400", status=400)),
        (b'{"errors":["text"]}', Rejection("status 400", "", "text", 400)),
        (b"Unauthorized", Rejection("status 400", "", "Unauthorized", 400)),
        (b"", Rejection("status 400", status=400)),
    ],
)
def test_the_reason_is_found_in_every_envelope(body: bytes, rejection: Rejection) -> None:
    """Track v2, Track v1, plain text and nothing each give a rejection with what they said."""
    assert judge_call(Answer(400, body), NOW).rejected == {0: rejection}
    assert judge_batch(Answer(400, body), 1, NOW).rejected == {0: rejection}


def test_a_service_s_text_is_kept_short_and_out_of_sight() -> None:
    """A message may quote content: it is cut and never shown by a repr; a body shows its size alone."""
    body = json.dumps({"errors": [{"reason": "invalid", "message": SECRET * 1_000}]}).encode()
    judgement = judge_batch(Answer(400, body), 1, NOW)
    assert len(judgement.rejected[0].message) == 500
    assert SECRET not in repr(judgement)
    assert SECRET not in repr(Answer(400, body))
    assert f"<{len(body)} bytes>" in repr(Answer(400, body))


# --------------------------------------------------------------------------------------- whatever the service says

entries = st.one_of(
    st.integers(-2, 6).map(lambda index: {"batch_index": index}),
    st.fixed_dictionaries({"batch_index": st.one_of(st.integers(), st.booleans(), st.floats(), st.text(), st.none())}),
    st.dictionaries(
        st.sampled_from(["batch_index", "reason", "field", "message"]), st.one_of(st.text(), st.integers())
    ),
    st.integers(),
    st.none(),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["errors", "meta", "x"]), inner),
    max_leaves=8,
)
bodies = st.one_of(
    st.binary(max_size=40),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(entries, max_size=6).map(lambda listed: json.dumps({"errors": listed}).encode()),
    st.lists(entries, min_size=1, max_size=3).map(lambda listed: json.dumps({"errors": listed}).encode()[:-3]),
    st.sampled_from([*OK_BODIES, *BROKEN_BODIES]),
)
answers = st.builds(
    Answer,
    st.one_of(st.sampled_from([0, 200, 204, 207, 400, 401, 413, 422, 429, 500, 503]), st.integers(0, 999)),
    bodies,
    st.none() | st.text(max_size=30),
    st.booleans(),
)


def readable(answer: Answer) -> dict[str, Any] | None:
    """What Rule 1 calls a body that can be read, or is empty."""
    if not answer.complete:
        return None
    if not answer.body.strip():
        return {}
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


@settings(max_examples=800, deadline=None)
@given(answers, st.integers(1, 5), st.booleans())
def test_no_answer_is_taken_for_more_than_it_says(answer: Answer, count: int, single: bool) -> None:
    """No body crashes a judgement, each index is decided once or not at all, and no success is made up."""
    count = 1 if single else count
    judgement = judge_call(answer, NOW) if single else judge_batch(answer, count, NOW)
    assert 0 <= judgement.decided <= count
    assert all(type(index) is int and 0 <= index < count for index in judgement.rejected)
    arrived, left = delivered(judgement, count), undecided(judgement, count)
    assert len(arrived) + len(judgement.rejected) + len(left) == count
    assert bool(left) is (judgement.next is not Next.NOTHING)
    if judgement.next is Next.SPLIT:
        assert count > 1
    if judgement.retry_after is not None:
        assert judgement.retry_after >= 0
    if arrived:
        body = readable(answer)
        assert 200 <= answer.status < 300
        assert body is not None
        listed = body.get("errors")
        if answer.status == 207:
            assert listed
        named = {error["batch_index"] for error in listed or []}
        assert named == set(judgement.rejected)
        assert arrived == set(range(count)) - named
    if answer.status in (401, 403, 408, 429) or answer.status >= 500:
        assert left == set(range(count))


# -------------------------------------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("3", 3.0),
        (" 3 ", 3.0),
        ("1.5", 1.5),
        ("-5", 0.0),
        ("1000000000", 1e9),
        ("1e9", 1e9),
        ("nan", None),
        ("-nan", None),
        ("-inf", 0.0),
        ("", None),
        ("soon", None),
        ("0x10", None),
        ("3 seconds", None),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:14:20 -0000", 60.0),
        ("Wed, 15 Nov 2023 00:14:20 +0200", 60.0),
        ("Tue, 14 Nov 2023 22:12:20 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Tue, 99 Nov 2023 22:14:20 GMT", None),
        ("Tue, 14 Nov 2023", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None) -> None:
    """Seconds and HTTP dates are read, never below 0; what says nothing usable is ``None``."""
    assert parse_retry_after(text, NOW) == seconds


@pytest.mark.parametrize("text", ["inf", "Infinity", "9" * 400, "1e9", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_retry_after_without_end_is_capped_where_it_is_waited(text: str) -> None:
    """However long the service asks for, the wait is finite and at most the cap."""
    wait = delay(RetryOptions(jitter=0.0, max_retry_after=300.0), 0, parse_retry_after(text, NOW), 0.5)
    assert wait == 300.0


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.floats().map(str),
        st.integers().map(str),
        st.text(alphabet="0123456789 :,+-GMTueNovWd", max_size=40),
        st.datetimes(timezones=st.just(dt.UTC)).map(email.utils.format_datetime),
    )
)
def test_no_retry_after_crashes(text: str) -> None:
    """Any text is read as a wait that can be slept, or as none."""
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or (seconds >= 0 and not math.isnan(seconds))


@settings(max_examples=100, deadline=None)
@given(st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC)))  # noqa: DTZ001
def test_a_date_means_the_seconds_until_it(when: dt.datetime) -> None:
    """A date in the future is waited for, one in the past is now."""
    when = when.replace(microsecond=0)
    text = email.utils.format_datetime(when, usegmt=True)
    assert parse_retry_after(text, NOW) == max(0.0, when.timestamp() - NOW)
