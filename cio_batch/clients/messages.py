"""What a transactional message may say, one class for each channel, and the bytes that say it.

Rules:

1. What is not set (``None``) is left out: an explicit ``False`` overrides a setting of the template.
2. A request is checked when it is made, as far as the document goes; whether a template or a person exists is the
   service's to say.
3. No ``repr`` shows content.

Must not know: asyncio, aiohttp, the clock. It reads attachments from the disk, and only in ``read_attachments``.

Source: App API, ``POST /v1/send/{email,push,sms,whatsapp,inbox_message,in_app}``, schemas ``sendemail``, ``sendpush``,
``sendsms``, ``sendinbox``, ``sendinapp``.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, cast

import attrs
import orjson

from cio_batch.errors import InvalidOperationError
from cio_batch.operations import CioId, Email, check_id, encode_json, unix_seconds

Identifiers: TypeAlias = Mapping[str, str] | str | Email | CioId
"""Whom a message is to: a string (the person's ``id``), :class:`Email`, :class:`CioId`, or the mapping of the wire."""

Attachments: TypeAlias = Mapping[str, bytes | os.PathLike[str]] | Sequence[os.PathLike[str]]
"""Files by the names that the reader sees, as bytes or paths; or paths alone, which keep their names."""

_KINDS: Final = frozenset({"id", "email", "cio_id"})


@attrs.frozen
class MessageReceipt:
    """What the service says of a message that it took.

    Attributes:
        delivery_id: By which it can be found, and what became of it; ``""`` where nothing is sent.
        queued_at: When it was taken: unix seconds.
    """

    delivery_id: str
    queued_at: int


def _read_identifiers(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        check_id("identifiers", value)
        return {"id": value}
    if isinstance(value, (Email, CioId)):
        return value.identifiers()
    if not isinstance(value, Mapping):
        reason = f"must be text, Email, CioId or a mapping, got {type(value).__name__}"
        raise InvalidOperationError("identifiers", reason)
    named = dict(cast("Mapping[str, str]", value))
    if len(named) != 1 or not _KINDS.issuperset(named):
        raise InvalidOperationError("identifiers", "must have exactly one of id, email and cio_id")
    [(kind, identifier)] = named.items()
    check_id(f"identifiers.{kind}", identifier)
    return named


def _read_send_at(value: float | dt.datetime | None) -> int | None:
    return None if value is None else unix_seconds("send_at", value)


def _read_files(value: object) -> tuple[tuple[str, bytes | Path], ...]:
    pairs: list[tuple[object, object]]
    if isinstance(value, Mapping):
        pairs = list(cast("Mapping[object, object]", value).items())
    elif isinstance(value, (list, tuple)):
        pairs = [(_name_of(file), file) for file in cast("Sequence[object]", value)]
    else:
        reason = f"must be a mapping of names to bytes or paths, or a list of paths, got {type(value).__name__}"
        raise InvalidOperationError("attachments", reason)
    files: list[tuple[str, bytes | Path]] = []
    for index, (name, content) in enumerate(pairs):
        where = f"attachments[{index}]"
        if not isinstance(content, (bytes, os.PathLike)):
            reason = f"must be bytes or a path, such as Path('report.pdf'), got {type(content).__name__}"
            raise InvalidOperationError(where, reason)
        if not isinstance(name, str) or not name or any(name == other for other, _ in files):
            raise InvalidOperationError(where, "must have a name, and one of its own")
        files.append((name, content if isinstance(content, bytes) else Path(cast("os.PathLike[str]", content))))
    return tuple(files)


def _name_of(file: object) -> str | None:
    return Path(cast("os.PathLike[str]", file)).name if isinstance(file, os.PathLike) else None


@attrs.frozen(kw_only=True, repr=False)
class MessageRequest:
    """What all channels have in common; use the class of a channel.

    Args:
        transactional_message_id: The template: its number, or the name of its trigger.
        identifiers: To whom it is.
        message_data: What the template refers to. JSON, by the rules of :mod:`cio_batch.operations`.
        send_at: When to send it, at most 90 days ahead: unix seconds or an aware datetime.
        language: The code of the template's language variant.
        queue_draft: Hold the message as a draft.
        disable_message_retention: Do not keep its body.
        auto_create: Make a template that the service does not know.

    Raises:
        InvalidOperationError: A part cannot be sent.
    """

    channel: ClassVar[str] = ""

    transactional_message_id: int | str | None = None
    identifiers: Identifiers | None = attrs.field(default=None, converter=_read_identifiers)
    message_data: Mapping[str, Any] | None = None
    send_at: float | dt.datetime | None = attrs.field(default=None, converter=_read_send_at)
    language: str | None = None
    queue_draft: bool | None = None
    disable_message_retention: bool | None = None
    auto_create: bool | None = None

    def __repr__(self) -> str:
        """Name the template alone."""
        return f"<{type(self).__name__} transactional_message_id={self.transactional_message_id!r}>"

    def __attrs_post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise for what is missing."""
        self._demand("transactional_message_id", "identifiers")

    def _demand(self, *names: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise InvalidOperationError(missing[0], f"is missing: {type(self).__name__} needs {', '.join(names)}")

    def encode(self) -> bytes:
        """Return the JSON of the request, without attachments.

        Raises:
            InvalidOperationError: Names the part that cannot be sent.
        """
        wire: dict[str, Any] = {}
        for attribute in attrs.fields(type(self)):
            value = getattr(self, attribute.name)
            if value is not None and attribute.name != "attachments":
                wire[attribute.name.removesuffix("_")] = self._write(attribute.name, value)
        return encode_json(self.channel, wire)

    def _write(self, name: str, value: Any) -> Any:
        return value


@attrs.frozen(kw_only=True, repr=False)
class EmailRequest(MessageRequest):
    """A transactional email: from a template, or with a ``body``, a ``subject`` and ``from_`` of its own.

    Args:
        to: The recipients, separated by commas; with ``cc`` and ``bcc`` 15 at most.
        from_: The sender, which must be verified.
        reply_to: Where replies go.
        cc: Copies.
        bcc: Blind copies.
        fake_bcc: Send copies with the recipients in the subject, instead of true ones.
        subject: The subject.
        preheader: The preview.
        body: The HTML.
        body_plain: The plain text.
        body_amp: The AMP.
        headers: Further headers; ASCII.
        attachments: Files: ``{"report.pdf": Path("/tmp/r.pdf"), "data.csv": b"..."}`` or ``[Path("report.pdf")]``; less
            than 2 MB together. They are read when the request is sent.
        tracked: Track opens and clicks.
        send_to_unsubscribed: Send it to people who unsubscribed, too.
        disable_css_preprocessing: Leave the CSS as it is.

    The others are those of :class:`MessageRequest`.
    """

    channel: ClassVar[str] = "email"

    to: str
    from_: str | None = None
    reply_to: str | None = None
    cc: str | None = None
    bcc: str | None = None
    fake_bcc: bool | None = None
    subject: str | None = None
    preheader: str | None = None
    body: str | None = None
    body_plain: str | None = None
    body_amp: str | None = None
    headers: Mapping[str, str] | None = None
    attachments: Attachments | None = None
    tracked: bool | None = None
    send_to_unsubscribed: bool | None = None
    disable_css_preprocessing: bool | None = None

    def check(self) -> None:
        """Raise for what is missing. An email may go to an address that is no person's."""
        self._demand("to")
        if self.transactional_message_id is None:
            self._demand("body", "subject", "from_")
        _ = self.files  # raises for what cannot be one

    @property
    def files(self) -> tuple[tuple[str, bytes | Path], ...]:
        """The attachments, by name."""
        return () if self.attachments is None else _read_files(self.attachments)

    def _write(self, name: str, value: Any) -> Any:
        if name != "headers":
            return value
        # "A JSON string containing header objects with `name` and `value`."
        pairs = [{"name": header, "value": text} for header, text in cast("Mapping[str, str]", value).items()]
        return encode_json("headers", pairs).decode()


@attrs.frozen(kw_only=True, repr=False)
class PushRequest(MessageRequest):
    """A transactional push notification.

    Args:
        to: ``"all"`` (the default), ``"last_used"``, or the token of one device.
        title: The title.
        message: The text.
        image_url: A picture.
        link: What opens when it is tapped.
        sound: iOS alone.
        custom_data: Goes along with the payload.
        custom_payload: Takes the place of the payload.
        custom_device: A device to add to the person first: ``{"token", "platform", …}``.
        send_to_unsubscribed: Send it to people who unsubscribed, too.

    The others are those of :class:`MessageRequest`.
    """

    channel: ClassVar[str] = "push"

    to: str | None = None
    title: str | None = None
    message: str | None = None
    image_url: str | None = None
    link: str | None = None
    sound: Literal["default", "none"] | None = None
    custom_data: Mapping[str, Any] | None = None
    custom_payload: Mapping[str, Any] | None = None
    custom_device: Mapping[str, Any] | None = None
    send_to_unsubscribed: bool | None = None


@attrs.frozen(kw_only=True, repr=False)
class SmsRequest(MessageRequest):
    """A transactional text message.

    Args:
        to: The number in E.164 form, or Liquid.
        from_: The sender.
        tracked: Track clicks.
        send_to_unsubscribed: Send it to people who unsubscribed, too.

    The others are those of :class:`MessageRequest`.
    """

    channel: ClassVar[str] = "sms"

    to: str
    from_: str | None = None
    tracked: bool | None = None
    send_to_unsubscribed: bool | None = None

    def check(self) -> None:
        """Raise for what is missing."""
        self._demand("transactional_message_id", "identifiers", "to")


@attrs.frozen(kw_only=True, repr=False)
class WhatsAppRequest(MessageRequest):
    """A transactional WhatsApp message; see :class:`SmsRequest`."""

    channel: ClassVar[str] = "whatsapp"

    to: str
    from_: str | None = None
    tracked: bool | None = None
    send_to_unsubscribed: bool | None = None

    def check(self) -> None:
        """Raise for what is missing."""
        self._demand("transactional_message_id", "identifiers", "to")


@attrs.frozen(kw_only=True, repr=False)
class InboxMessageRequest(MessageRequest):
    """A transactional message for the inbox of an app.

    Args:
        to: Another recipient than the person; rarely needed.

    The others are those of :class:`MessageRequest`.
    """

    channel: ClassVar[str] = "inbox_message"

    to: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class InAppRequest(MessageRequest):
    """A transactional in-app message; the arguments are those of :class:`MessageRequest`."""

    channel: ClassVar[str] = "in_app"


def read_attachments(files: Iterable[tuple[str, bytes | Path]]) -> bytes:
    """Return the JSON of attachments, in base64; blocks where they are read from the disk.

    Raises:
        InvalidOperationError: A file cannot be read.
    """
    encoded: dict[str, str] = {}
    for index, (name, content) in enumerate(files):
        try:
            data = content if isinstance(content, bytes) else content.read_bytes()
        except OSError as error:
            where = f"attachments[{index}]"
            raise InvalidOperationError(where, f"cannot be read ({error.strerror or type(error).__name__})") from None
        encoded[name] = base64.b64encode(data).decode()
    return orjson.dumps(encoded)
