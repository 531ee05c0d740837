"""``CioAppClient``: transactional messages and broadcasts; each call is made once.

Rules:

1. A call that may have reached the service is never repeated, whatever came of it: the service cannot tell a repeat
   from a second message. Only a connection that was never made, and a 429, are tried again.
2. Where nobody can say whether it was taken (no answer, 408, 5xx, an answer that cannot be read), that is an error of
   its own, which nothing retries: :class:`~cio_batch.SendOutcomeUnknownError`.
3. What is sent is encoded before the first ``await``; only attachments are read after it.

Source: App API, ``POST /v1/send/…`` and ``POST /v1/campaigns/{broadcast_id}/triggers``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, cast

import attrs
import orjson

from cio_batch.clients.base import CONCURRENCY, DirectClient, Lane, PerLoop, api_error, check_arguments, limiter
from cio_batch.clients.calls import Request
from cio_batch.clients.messages import (
    EmailRequest,
    InAppRequest,
    InboxMessageRequest,
    MessageReceipt,
    MessageRequest,
    PushRequest,
    SmsRequest,
    WhatsAppRequest,
    read_attachments,
)
from cio_batch.errors import InvalidOperationError, SendOutcomeUnknownError, UnreachableError
from cio_batch.operations import check_id, encode_json
from cio_batch.settings import AppRateLimits, RetryOptions, Settings
from cio_batch.transports.http import HttpClient
from cio_batch.verdicts import Answer, read_details

T = TypeVar("T")

_AUDIENCES: Final = ("recipients", "ids", "emails", "per_user_data", "data_file_url")


@attrs.frozen
class BroadcastReceipt:
    """What the service says of a broadcast that it triggered.

    Attributes:
        id: By which the state of this trigger can be asked for; 0 where nothing is sent.
    """

    id: int


@attrs.frozen
class _Lanes:
    """One for each kind of call, so that neither waits for the other's rate; of one loop."""

    send: Lane
    broadcast: Lane


class CioAppClient(DirectClient):
    """Sends transactional messages and triggers broadcasts, each at most once.

        client = CioAppClient()
        receipt = await client.send_email(
            EmailRequest(
                to="ada@example.com",
                transactional_message_id="welcome",
                identifiers="user-1",
                message_data={"name": "Ada"},
            )
        )

    Every method raises:

    - ``InvalidOperationError``: the call cannot be sent; nothing was.
    - ``ApiError``: the service said no; nothing was sent.
    - ``UnreachableError``: no connection could be made; nothing was sent.
    - ``SendOutcomeUnknownError``: the message may have been sent or not, and was not repeated.

    Cancellation: the call is abandoned, and whether the message went out is not known either.

    Args:
        settings: The App key and host; :meth:`Settings.from_env` when ``None``.
        retry: Waits and number of repeats, three by default, of calls that certainly did not reach the service, and of
            those that it answered with 429; ``None`` for none. A ``Retry-After`` delays the call that got it.
        rates: Calls per second of each kind, bursts smoothed.
        concurrency: Messages at a time at most, and broadcasts at a time; the others wait.

    Raises:
        ConfigurationError: The key is missing, or an argument is out of range.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        retry: RetryOptions | None = RetryOptions(),  # noqa: B008 - frozen
        rates: AppRateLimits = AppRateLimits(),  # noqa: B008 - frozen
        concurrency: int = CONCURRENCY,
    ) -> None:
        check_arguments(settings, retry, concurrency, {"rates": (rates, AppRateLimits, "AppRateLimits(...)")})
        chosen = Settings.from_env(needs=("app",)) if settings is None else settings
        super().__init__(None if chosen.disabled else _open_app_client(chosen), retry, concurrency)
        self._lanes = PerLoop(lambda: _make_lanes(rates, concurrency))

    async def send_email(self, request: EmailRequest) -> MessageReceipt:
        """Send an email, once. Source: App API, ``POST /v1/send/email``."""
        return await self._send(EmailRequest, request)

    async def send_push(self, request: PushRequest) -> MessageReceipt:
        """Send a push notification, once. Source: App API, ``POST /v1/send/push``."""
        return await self._send(PushRequest, request)

    async def send_sms(self, request: SmsRequest) -> MessageReceipt:
        """Send a text message, once. Source: App API, ``POST /v1/send/sms``."""
        return await self._send(SmsRequest, request)

    async def send_whatsapp(self, request: WhatsAppRequest) -> MessageReceipt:
        """Send a WhatsApp message, once. Source: App API, ``POST /v1/send/whatsapp``."""
        return await self._send(WhatsAppRequest, request)

    async def send_inbox_message(self, request: InboxMessageRequest) -> MessageReceipt:
        """Send a message to the inbox of an app, once. Source: App API, ``POST /v1/send/inbox_message``."""
        return await self._send(InboxMessageRequest, request)

    async def send_in_app(self, request: InAppRequest) -> MessageReceipt:
        """Send an in-app message, once. Source: App API, ``POST /v1/send/in_app``."""
        return await self._send(InAppRequest, request)

    async def trigger_broadcast(
        self,
        id: int,
        data: Mapping[str, Any] | None = None,
        *,
        recipients: Mapping[str, Any] | None = None,
        ids: Iterable[str] | None = None,
        emails: Iterable[str] | None = None,
        per_user_data: Iterable[Mapping[str, Any]] | None = None,
        data_file_url: str | None = None,
        email_add_duplicates: bool | None = None,
        email_ignore_missing: bool | None = None,
        id_ignore_missing: bool | None = None,
    ) -> BroadcastReceipt:
        """Trigger a broadcast, once.

        Exactly one audience must be given. The service would take a call without one, and send the broadcast to
        everybody whom its settings name: nothing that should happen because a list was forgotten.

        Args:
            id: The broadcast.
            data: What its messages refer to.
            recipients: An audience by segments and attributes: ``{"segment": {"id": 3}}``.
            ids: An audience by the people's ids.
            emails: An audience by addresses.
            per_user_data: An audience with data for each: ``[{"id": "user-1", "data": {…}}, …]``.
            data_file_url: The URL of a file with such lines.
            email_add_duplicates: Send to every person who has an address of the list.
            email_ignore_missing: Skip addresses that nobody has, instead of failing.
            id_ignore_missing: Skip ids that nobody has, instead of failing.

        Source: App API, ``POST /v1/campaigns/{broadcast_id}/triggers``, schema ``campaignRequest``.
        """
        if type(id) is not int or id < 1:
            raise InvalidOperationError("id", f"must be a whole number above 0, got {type(id).__name__}")
        body: dict[str, Any] = {
            "data": data,
            "recipients": recipients,
            "ids": _listed("ids", ids, check_id),
            "emails": _listed("emails", emails, check_id),
            "per_user_data": _listed("per_user_data", per_user_data, _check_user),
            "data_file_url": data_file_url,
            "email_add_duplicates": email_add_duplicates,
            "email_ignore_missing": email_ignore_missing,
            "id_ignore_missing": id_ignore_missing,
        }
        body = {name: value for name, value in body.items() if value is not None}
        named = [name for name in _AUDIENCES if name in body]
        if len(named) != 1:
            found = f"{' and '.join(named)} were given" if named else "none was given"
            raise InvalidOperationError("audience", f"must be exactly one of {', '.join(_AUDIENCES)}: {found}")
        request = Request("POST", f"/v1/campaigns/{id}/triggers", encode_json("broadcast", body))
        return await self._make(request, _read_broadcast, BroadcastReceipt(0), self._lanes.get().broadcast)

    async def _send(self, kind: type[MessageRequest], request: MessageRequest) -> MessageReceipt:
        if type(request) is not kind:
            raise InvalidOperationError("request", f"must be {kind.__name__}, got {type(request).__name__}")
        body = request.encode()
        if isinstance(request, EmailRequest) and request.files:
            files = request.files
            on_disk = any(not isinstance(content, bytes) for _, content in files)
            read = await asyncio.to_thread(read_attachments, files) if on_disk else read_attachments(files)
            body = b"".join((body[:-1], b',"attachments":', read, b"}"))
        call = Request("POST", f"/v1/send/{request.channel}", body)
        instead = MessageReceipt("", int(time.time()))
        return await self._make(call, _read_receipt, instead, self._lanes.get().send)


def _open_app_client(settings: Settings) -> HttpClient:
    def authorize() -> str:
        return f"Bearer {settings.require_app()}"

    renew = None if settings.app_credentials is None else authorize
    return HttpClient(settings.app_origin, authorize(), settings.http, renew=renew)


def _make_lanes(rates: AppRateLimits, concurrency: int) -> _Lanes:
    return _Lanes(
        send=Lane(asyncio.Semaphore(concurrency), (limiter(rates.sends),)),
        broadcast=Lane(asyncio.Semaphore(concurrency), (limiter(rates.calls), limiter(rates.broadcasts))),
    )


def _listed(field: str, value: object, check: Callable[[str, Any], None]) -> list[object] | None:
    if value is None:
        return None
    got = type(value).__name__
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidOperationError(field, f"must be a list or another iterable, got {got}")
    entries = list(cast("Iterable[object]", value))
    if not entries:
        raise InvalidOperationError(field, "must not be empty")
    for index, entry in enumerate(entries):
        check(f"{field}[{index}]", entry)
    return entries


def _check_user(field: str, user: object) -> None:
    named = cast("Mapping[str, object]", user).keys() & {"id", "email"} if isinstance(user, Mapping) else ()
    if len(named) != 1:
        raise InvalidOperationError(field, "must be a mapping with exactly one of id and email, and its data")


def _raise_unless_taken(answer: Answer) -> None:
    """Raise unless the service certainly took the call.

    Raises:
        UnreachableError: It certainly never got it.
        ApiError: It said no.
        SendOutcomeUnknownError: It may have taken it.
    """
    if not answer.sent:
        raise UnreachableError(answer.reason, sent=False)
    if 200 <= answer.status < 300:
        return
    if 400 <= answer.status < 500 and answer.status != 408:
        raise api_error(answer, retryable=answer.status == 429)
    reason = answer.reason or f"status {answer.status}"
    raise SendOutcomeUnknownError(reason, status=answer.status, details=read_details(answer))


def _read_taken(answer: Answer, name: str, kind: type[T]) -> tuple[T, dict[str, Any]]:
    """Return one field of the answer to a call that the service took, and the whole answer."""
    _raise_unless_taken(answer)
    try:
        body: Any = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = None
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    value: Any = fields.get(name)
    if type(value) is not kind:
        reason = f"status {answer.status} without a {name}"
        raise SendOutcomeUnknownError(reason, status=answer.status)
    return value, fields


def _read_receipt(answer: Answer) -> MessageReceipt:
    delivery_id, body = _read_taken(answer, "delivery_id", str)
    queued_at = body.get("queued_at")
    return MessageReceipt(delivery_id, queued_at if type(queued_at) is int else int(time.time()))


def _read_broadcast(answer: Answer) -> BroadcastReceipt:
    number, _ = _read_taken(answer, "id", int)
    return BroadcastReceipt(number)
