"""App API calls, checked and said as operations: a message to one person, or the trigger of a broadcast.

Rules:

1. The published schemas decide which fields there are and which are required. Where a schema and its own example
   disagree (an id that is a string and is written 12345, headers that are a JSON string and are written as an
   object), both are accepted.
2. A field that no schema knows is refused, for the reason that ``checks`` gives.
3. What only the service could know is not asked: whether the template, the sender, the broadcast or the person exists.
4. A broadcast has at most one audience; without one it goes to the audience that was set in the UI.

This module must not know HTTP, the workspace or the faults.

Source: track-openapi.json, components.schemas.sendemail, sendpush, sendsms, sendinbox, sendinapp, campaignRequest; for
WhatsApp and for the texts of the errors, the reference of the App API (docs.customer.io/integrations/api/app).
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from cio_batch.simulator.checks import (
    MERGE_KINDS,
    PHONE,
    PLATFORMS,
    Problem,
    check_person,
    check_text,
    check_timestamp,
    invalid,
    required,
)
from cio_batch.simulator.keys import Operation, is_array, is_object

MAX_MESSAGE_BYTES: Final = 2_048_000
"""The whole request of a message: "JSON encoded and not exceed 2048 KB"."""
MAX_ATTACHMENTS_BYTES: Final = 2_000_000
"""All attachments of an email must be *smaller* than this together: as sent, in base64, the stricter reading."""
MAX_RECIPIENTS: Final = 15
"""Of one email, in ``to``, ``cc`` and ``bcc`` together."""
MAX_SEND_AHEAD: Final = 90 * 86_400
"""Seconds that ``send_at`` may lie in the future."""
MAX_AUDIENCE: Final = 10_000
"""Entries of ``ids`` and of ``per_user_data``."""

AUDIENCES: Final = ("recipients", "ids", "emails", "per_user_data", "data_file_url")

TOO_LARGE: Final = "too_large"
"""The reason of a message whose attachments are too large, which has a status of its own (413)."""

Check = Callable[[object, str], Sequence[Problem]]
"""Checks the value of the field of that name."""

_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_LIQUID: Final = re.compile(r"\{\{|\{%")


def message_of(kind: str, request: Operation) -> Operation:
    """Say a checked request to send a message as an operation."""
    return {"type": "message", "action": kind, "request": request}


def trigger_of(broadcast_id: int, request: Operation) -> Operation:
    """Say a checked request to trigger a broadcast as an operation."""
    return {"type": "broadcast", "action": "trigger", "broadcast_id": broadcast_id, "request": request}


def check_message(kind: str, request: object, now: float) -> list[Problem]:
    """Check a request to send a message.

    Args:
        kind: The last part of the call's path, such as ``email``.
        request: The parsed JSON, whatever it is.
        now: Unix seconds.

    Returns:
        Every problem found; empty when the request is valid.
    """
    if not is_object(request):
        return [Problem("invalid", "", "request body must be a JSON object")]
    fields = _MESSAGE_FIELDS[kind]
    needed = _NEEDED[kind]
    if kind == "email" and "transactional_message_id" not in request:
        # There is no template then whose content these could override.
        needed = (*needed, "body", "subject", "from")
    problems = [required(field) for field in needed if field not in request]
    problems += _check_fields(request, fields)
    if not problems:
        problems += _check_send_at(request.get("send_at", 0), now)
        problems += _check_recipients(request) if kind == "email" else []
    if not problems and kind in ("sms", "whatsapp") and not _is_phone(request["to"]):
        message = "Invalid phone number format. Phone numbers must be in E.164 format."
        problems.append(Problem("invalid", "to", message))
    return problems


def check_broadcast(request: object) -> list[Problem]:
    """Check a request to trigger a broadcast; the result is that of ``check_message``."""
    if not is_object(request):
        return [Problem("invalid", "", "request body must be a JSON object")]
    audiences = [name for name in AUDIENCES if name in request]
    problems = [invalid(name, f"cannot be combined with {audiences[0]}") for name in audiences[1:]]
    return problems + _check_fields(request, _BROADCAST_FIELDS)


def _check_fields(content: Operation, fields: Mapping[str, Check]) -> list[Problem]:
    problems: list[Problem] = []
    for name, value in content.items():
        check = fields.get(name)
        if check is None:
            problems.append(Problem("unknown", name, f"{name} is not a field of this request"))
        else:
            problems += check(value, name)
    return problems


def _check_send_at(send_at: int, now: float) -> list[Problem]:
    return [invalid("send_at", "must be within 90 days")] if send_at > now + MAX_SEND_AHEAD else []


def _check_recipients(request: Operation) -> list[Problem]:
    # A quoted display name may hold a comma.
    lists = [_QUOTED.sub("", request[field]) for field in ("to", "cc", "bcc") if field in request]
    count = sum(bool(address.strip()) for text in lists for address in text.split(","))
    return [invalid("to", f"must be {MAX_RECIPIENTS} or fewer, with cc and bcc")] if count > MAX_RECIPIENTS else []


def _is_phone(text: str) -> bool:
    return PHONE.fullmatch(text) is not None or _LIQUID.search(text) is not None


def _check_string(value: object, field: str) -> list[Problem]:
    return [] if isinstance(value, str) else [invalid(field, "must be a string")]


def _check_flag(value: object, field: str) -> list[Problem]:
    return [] if isinstance(value, bool) else [invalid(field, "must be a boolean")]


def _check_is_object(value: object, field: str) -> list[Problem]:
    return [] if is_object(value) else [invalid(field, "must be an object")]


def _check_template(value: object, field: str) -> list[Problem]:
    return [] if type(value) is int else check_text(value, field)


def _check_sound(value: object, field: str) -> list[Problem]:
    return [] if value in ("default", "none") else [invalid(field, "must be one of default, none")]


def _check_who(value: object, field: str, kinds: frozenset[str] = MERGE_KINDS) -> list[Problem]:
    if is_object(value):
        value = {
            kind: str(identifier) if type(identifier) is int and kind != "email" else identifier
            for kind, identifier in value.items()
        }
    return check_person(value, field, kinds)


def _check_headers(value: object, field: str) -> list[Problem]:
    headers: object = value
    if isinstance(value, str):
        try:
            headers = orjson.loads(value)
        except orjson.JSONDecodeError:
            return [invalid(field, "must be valid JSON")]
    if is_object(headers):
        pairs = list(headers.items())
    elif is_array(headers) and all(is_object(each) and each.keys() == {"name", "value"} for each in headers):
        pairs = [(each["name"], each["value"]) for each in headers]
    else:
        return [invalid(field, "must be header objects with name and value")]
    if not all(isinstance(text, str) and text.isascii() for pair in pairs for text in pair):
        return [invalid(field, "must have names and values that are ASCII strings")]
    return []


def _check_attachments(value: object, field: str) -> list[Problem]:
    if not is_object(value):
        return [invalid(field, "must be an object")]
    problems: list[Problem] = []
    for name, content in value.items():
        if "." not in name.strip("."):
            problems.append(invalid(field, f'must have names with an extension: "{name}"'))
        if not _is_base64(content):
            problems.append(Problem("invalid", field, f'Attachment must be base64 encoded: "{name}"'))
    if not problems and sum(map(len, value.values())) >= MAX_ATTACHMENTS_BYTES:
        problems.append(Problem(TOO_LARGE, field, "Total attachment size exceeds the limit"))
    return problems


def _is_base64(content: object) -> bool:
    if not isinstance(content, str):
        return False
    try:
        base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _check_device(value: object, field: str) -> list[Problem]:
    if not is_object(value):
        return [invalid(field, "must be an object")]
    problems = check_text(value.get("token"), f"{field}.token")
    platform = value.get("platform")
    if platform is None:
        problems.append(required(f"{field}.platform"))
    elif not isinstance(platform, str) or platform not in PLATFORMS:
        problems.append(invalid(f"{field}.platform", "must be one of ios, android"))
    if "last_used" in value:
        problems += check_timestamp(value["last_used"], f"{field}.last_used")
    if "attributes" in value:
        problems += _check_is_object(value["attributes"], f"{field}.attributes")
    return problems


def _check_filter(value: object, field: str) -> list[Problem]:
    # Without recursion: JSON may be nested more deeply than Python's calls.
    waiting: list[object] = [value]
    while waiting:
        each = waiting.pop()
        if not is_object(each) or len(each) != 1:
            return [invalid(field, "must be filters of exactly one of and, or, not, segment, attribute")]
        ((name, content),) = each.items()
        if name in ("and", "or") and is_array(content):
            waiting += content
        elif name == "not":
            waiting.append(content)
        elif not _is_condition(name, content):
            return [invalid(field, "must be made of and, or, not, segment and attribute")]
    return []


def _is_condition(name: str, content: object) -> bool:
    if not is_object(content):
        return False
    if name == "segment":
        return type(content.get("id")) is int
    operator = content.get("operator")
    has_value = operator == "exists" or (operator == "eq" and "value" in content)
    return name == "attribute" and isinstance(content.get("field"), str) and has_value


def _check_each(value: object, field: str, check: Check, limit: int | None = None) -> Sequence[Problem]:
    if not is_array(value):
        return [invalid(field, "must be an array")]
    if limit is not None and len(value) > limit:
        return [invalid(field, f"must have {limit} entries or fewer")]
    for index, each in enumerate(value):
        problems = check(each, f"{field}[{index}]")
        if problems:
            return problems  # one of ten thousand says enough
    return ()


def _check_id(value: object, field: str) -> Sequence[Problem]:
    return _check_who({"id": value}, field)


def _check_email(value: object, field: str) -> Sequence[Problem]:
    if isinstance(value, str) and "@" not in value:
        return [invalid(field, "must be an email address")]
    return _check_who({"email": value}, field)


def _check_ids(value: object, field: str) -> Sequence[Problem]:
    return _check_each(value, field, _check_id, MAX_AUDIENCE)


def _check_emails(value: object, field: str) -> Sequence[Problem]:
    return _check_each(value, field, _check_email)


def _check_user(value: object, field: str) -> Sequence[Problem]:
    if not is_object(value):
        return [invalid(field, "must be an object")]
    problems = _check_who({name: each for name, each in value.items() if name != "data"}, field, _USER_KINDS)
    return problems or _check_is_object(value.get("data", {}), f"{field}.data")


def _check_users(value: object, field: str) -> Sequence[Problem]:
    return _check_each(value, field, _check_user, MAX_AUDIENCE)


def _check_url(value: object, field: str) -> list[Problem]:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
    except ValueError:  # such as a bracket that is never closed
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
        return [invalid(field, "must be a URL")]
    return []


_USER_KINDS: Final = frozenset({"id", "email"})

# The schemas of in-app and inbox messages leave retention out, but the official clients send it for every kind.
_FOR_ALL: Final[Mapping[str, Check]] = {
    "transactional_message_id": _check_template,
    "identifiers": _check_who,
    "message_data": _check_is_object,
    "send_at": check_timestamp,
    "queue_draft": _check_flag,
    "language": _check_string,
    "auto_create": _check_flag,
    "disable_message_retention": _check_flag,
}
_FOR_CHANNELS: Final[Mapping[str, Check]] = {**_FOR_ALL, "to": check_text, "send_to_unsubscribed": _check_flag}
_FOR_PHONES: Final[Mapping[str, Check]] = {**_FOR_CHANNELS, "from": _check_string, "tracked": _check_flag}

_MESSAGE_FIELDS: Final[Mapping[str, Mapping[str, Check]]] = {
    "email": {
        **_FOR_CHANNELS,
        **dict.fromkeys(("cc", "bcc", "reply_to", "from", "subject", "preheader"), _check_string),
        **dict.fromkeys(("body", "body_plain", "body_amp"), _check_string),
        **dict.fromkeys(("fake_bcc", "tracked", "disable_css_preprocessing"), _check_flag),
        "headers": _check_headers,
        "attachments": _check_attachments,
    },
    "push": {
        **_FOR_CHANNELS,
        **dict.fromkeys(("title", "message", "image_url", "link"), _check_string),
        **dict.fromkeys(("custom_data", "custom_payload"), _check_is_object),
        "sound": _check_sound,
        "custom_device": _check_device,
    },
    "sms": _FOR_PHONES,
    "whatsapp": _FOR_PHONES,
    "inbox_message": {**_FOR_ALL, "to": _check_string},
    "in_app": _FOR_ALL,
}
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "email": ("to",),
    "push": ("transactional_message_id", "identifiers"),
    "sms": ("transactional_message_id", "identifiers", "to"),
    "whatsapp": ("transactional_message_id", "identifiers", "to"),
    "inbox_message": ("transactional_message_id", "identifiers"),
    "in_app": ("transactional_message_id", "identifiers"),
}
_BROADCAST_FIELDS: Final[Mapping[str, Check]] = {
    "data": _check_is_object,
    **dict.fromkeys(("email_add_duplicates", "email_ignore_missing", "id_ignore_missing"), _check_flag),
    "recipients": _check_filter,
    "ids": _check_ids,
    "emails": _check_emails,
    "per_user_data": _check_users,
    "data_file_url": _check_url,
}


def answer_to_message(delivery_id: str, queued_at: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that answers a message; ``send_at`` only where it lies in the future."""
    answer: dict[str, Any] = {"delivery_id": delivery_id, "queued_at": queued_at}
    send_at = request.get("send_at", 0)
    return answer | {"send_at": send_at} if send_at > queued_at else answer
