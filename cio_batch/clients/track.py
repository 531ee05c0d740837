"""``TypedCioClient``: direct calls of the Track API, v1; one HTTP call each, whose answer the caller waits for.

Rules:

1. What can be said in v2's form is: the same checks, the same bytes, the same translation as on the tracker's way.
2. Id and timestamp of an event are fixed before the first attempt, so that the service ignores a repeat.
3. The caller's objects are never changed.

Source: Track API, paths under ``/api/v1`` and ``/unsubscribe``.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Generic, overload

import attrs
import orjson

from cio_batch import ids
from cio_batch import operations as ops
from cio_batch.clients import calls
from cio_batch.clients.base import CONCURRENCY, DirectClient, check_arguments, raise_for
from cio_batch.errors import InvalidOperationError, UnreachableError
from cio_batch.events import CioEvent, UserAttributes
from cio_batch.operations import Draft, ObjectRef, PersonId, Platform, Relationship
from cio_batch.settings import RetryOptions, Settings
from cio_batch.taxonomy import EventValidator, Taxonomy
from cio_batch.transports.track_v1 import open_track_client
from cio_batch.verdicts import Answer

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

_logger = logging.getLogger(__name__)

# Contravariant: a client that takes every event may stand for one that takes those of a taxonomy.
E = TypeVar("E", bound=CioEvent, default=CioEvent, contravariant=True)
A = TypeVar("A", bound=UserAttributes, default=UserAttributes, contravariant=True)


@attrs.frozen
class AccountRegion:
    """Where the account of the credentials lives.

    Attributes:
        region: ``"us"`` or ``"eu"``.
        url: The origin for calls of the Track API.
        environment_id: The workspace that the credentials are for.
    """

    region: str
    url: str
    environment_id: int


class TypedCioClient(DirectClient, Generic[E, A]):
    """Makes direct calls of the Track API: each one is awaited, and what it raises is what became of it.

        AppEvent = SignedUp | PlanChanged
        client: TypedCioClient[AppEvent, Customer] = TypedCioClient()
        await client.track("user-1", PlanChanged(from_="free", to="pro", mrr=49.0))

    For many events use :class:`~cio_batch.CioBatchTracker`, which needs a thousandth of the calls. A person is a string
    (the person's ``id``), :class:`~cio_batch.Email` or :class:`~cio_batch.CioId`; the service infers from the shape
    of a string whether it is an email address or a ``cio_`` id. A phone cannot be said on Track v1.

    Every method raises:

    - ``InvalidOperationError``: the call cannot be sent; nothing was. ``EventSchemaError`` is one.
    - ``ApiError``: the service said no, or no again after the last retry.
    - ``UnreachableError``: no usable answer came. With ``sent`` the service may have taken the call.

    A call whose answer was lost is repeated, too. A repeat of an event is ignored by the service, because its id is the
    same, and most others say the same again; but a form, a metric and an unsubscribe have no id: one whose answer was
    lost may be counted twice. ``retry=None`` rules that out; ``UnreachableError.sent`` then says that it may have
    arrived.

    A ``Retry-After`` delays the call that got it; the others go on, and meet their own.

    Cancellation: the call is abandoned; the service may have taken it.

    Args:
        settings: Credentials and host; :meth:`Settings.from_env` when ``None``.
        retry: Waits and number of repeats, three by default; ``None`` for none, where ``with_retry`` is around it.
        tracked_at: Whether ``track`` and ``track_anonymous`` add ``tracked_at`` (unix seconds) to the data.
        last_seen_at: Whether ``identify`` sets ``last_seen_at`` (unix seconds), in place of one that is given.
        concurrency: Calls at a time at most; the others wait.
        taxonomy: The events that there are: what ``track`` and ``track_anonymous`` say as a name and data is checked
            against it, too, before the stamp is added.
        strict: ``True`` to refuse an event that contradicts the taxonomy; ``False`` to send it, with one warning for
            each name.

    Raises:
        ConfigurationError: The credentials are missing, or an argument is out of range.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        retry: RetryOptions | None = RetryOptions(),  # noqa: B008 - frozen
        tracked_at: bool = True,
        last_seen_at: bool = True,
        concurrency: int = CONCURRENCY,
        taxonomy: Taxonomy | None = None,
        strict: bool = True,
    ) -> None:
        check_arguments(settings, retry, concurrency, {"strict": (strict, bool, "True or False")})
        self._validator = None if taxonomy is None else EventValidator(taxonomy, strict=strict)
        chosen = Settings.from_env(needs=("track",)) if settings is None else settings
        super().__init__(None if chosen.disabled else open_track_client(chosen), retry, concurrency)
        self._adds_tracked_at = tracked_at
        self._sets_last_seen_at = last_seen_at
        self._settings = chosen

    # -------------------------------------------------------------------------------------------------- people

    async def identify(
        self,
        user_id: PersonId,
        attributes: A | Mapping[str, Any] | None = None,
        *,
        timestamp: float | dt.datetime | None = None,
        relationships: Iterable[ObjectRef | Relationship] | None = None,
    ) -> None:
        """Make or change a person.

        Args:
            user_id: The person.
            attributes: Typed attributes, or a mapping.
            timestamp: Orders updates of the same attribute: unix seconds or an aware datetime.
            relationships: Objects to relate the person to.

        Source: Track API, ``PUT /api/v1/customers/{identifier}``.
        """
        draft = ops.identify(user_id, attributes, timestamp=timestamp, relationships=relationships)
        if self._sets_last_seen_at:
            draft.attributes = _with("attributes", draft.attributes, "last_seen_at")
        await self._say(draft)

    async def destroy(self, user_id: PersonId) -> None:
        """Delete a person. Source: Track API, ``DELETE /api/v1/customers/{identifier}``."""
        await self._say(ops.delete(user_id))

    async def suppress(self, user_id: PersonId) -> None:
        """Delete a person and refuse the identifier from now on.

        Source: Track API, ``POST /api/v1/customers/{identifier}/suppress``.
        """
        await self._say(ops.suppress(user_id))

    async def unsuppress(self, user_id: PersonId) -> None:
        """Let a suppressed identifier be used again.

        Source: Track API, ``POST /api/v1/customers/{identifier}/unsuppress``.
        """
        await self._say(ops.unsuppress(user_id))

    async def merge(self, primary: PersonId, secondary: PersonId) -> None:
        """Merge ``secondary`` into ``primary``, who must exist; ``secondary`` is deleted.

        Source: Track API, ``POST /api/v1/merge_customers``.
        """
        await self._say(ops.merge(primary, secondary))

    async def add_device(
        self,
        user_id: PersonId,
        token: str,
        platform: Platform,
        *,
        last_used: float | dt.datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a person a device. Source: Track API, ``PUT /api/v1/customers/{identifier}/devices``."""
        await self._say(ops.add_device(user_id, token, platform, last_used=last_used, attributes=attributes))

    async def delete_device(self, user_id: PersonId, token: str) -> None:
        """Take a device from a person.

        Source: Track API, ``DELETE /api/v1/customers/{identifier}/devices/{device_id}``.
        """
        await self._say(ops.delete_device(user_id, token))

    # -------------------------------------------------------------------------------------------------- events

    @overload
    async def track(
        self,
        user_id: PersonId,
        event: E,
        /,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...
    @overload
    async def track(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...
    async def track(
        self,
        user_id: PersonId,
        name: E | str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Say what a person did: a typed event, or a name and its data.

        Args:
            user_id: The person.
            name: A typed event, or the name of one, at most 100 bytes.
            data: What a message may refer to, with a name: a dict, dataclass or attrs object.
            timestamp: When it happened: unix seconds or an aware datetime; now by default.
            id: A ULID by which the service ignores repeats; a fresh one by default.

        Source: Track API, ``POST /api/v1/customers/{identifier}/events``.
        """
        called, said = self._read_event(name, data)
        await self._say(ops.event(user_id, called, said, timestamp=timestamp, id=id))

    @overload
    async def track_anonymous(
        self,
        anonymous_id: str,
        event: E,
        /,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...
    @overload
    async def track_anonymous(
        self,
        anonymous_id: str,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None: ...
    async def track_anonymous(
        self,
        anonymous_id: str,
        name: E | str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Say what somebody unknown did. Source: Track API, ``POST /api/v1/events``."""
        called, said = self._read_event(name, data)
        await self._say(ops.anonymous_event(anonymous_id, called, said, timestamp=timestamp, id=id))

    async def page(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Say which page a person viewed. Source: Track API, ``POST /api/v1/customers/{identifier}/events``."""
        await self._say(ops.page(user_id, name, data, timestamp=timestamp, id=id))

    async def screen(
        self,
        user_id: PersonId,
        name: str,
        data: Any = None,
        *,
        timestamp: float | dt.datetime | None = None,
        id: str | None = None,
    ) -> None:
        """Say which screen a person viewed. Source: Track API, ``POST /api/v1/customers/{identifier}/events``."""
        await self._say(ops.screen(user_id, name, data, timestamp=timestamp, id=id))

    # ---------------------------------------------------------------------------- segments, forms, deliveries

    async def add_to_segment(self, segment_id: int, ids: Iterable[str], *, id_type: calls.IdType = "id") -> None:
        """Add 1 to 1,000 people to a manual segment, which must exist.

        Args:
            segment_id: The segment.
            ids: The people, all by the same kind of identifier.
            id_type: Which kind that is.

        Source: Track API, ``POST /api/v1/segments/{segment_id}/add_customers``.
        """
        await self._make(calls.change_segment("add_customers", segment_id, ids, id_type), raise_for, None)

    async def remove_from_segment(self, segment_id: int, ids: Iterable[str], *, id_type: calls.IdType = "id") -> None:
        """Remove 1 to 1,000 people from a manual segment.

        Source: Track API, ``POST /api/v1/segments/{segment_id}/remove_customers``.
        """
        await self._make(calls.change_segment("remove_customers", segment_id, ids, id_type), raise_for, None)

    async def submit_form(self, form_id: str, data: Mapping[str, str]) -> None:
        """Submit a form. One whose answer was lost is repeated, and may be counted twice; see the class.

        Args:
            form_id: The form; the service makes one that it does not know.
            data: Its fields: exactly one of ``id`` and ``email``, and whatever else was asked. All values are text.

        Source: Track API, ``POST /api/v1/forms/{form_id}/submit``.
        """
        await self._make(calls.submit_form(form_id, data), raise_for, None)

    async def report_metric(
        self,
        delivery_id: str,
        metric: calls.Metric,
        *,
        timestamp: float | dt.datetime | None = None,
        recipient: str | None = None,
        reason: str | None = None,
        href: str | None = None,
    ) -> None:
        """Report what became of a message. It goes without credentials: the service asks for none.

        A report whose answer was lost is repeated, and may be counted twice; see the class.

        Args:
            delivery_id: The message.
            metric: What became of it; which of them a message can have depends on its channel.
            timestamp: When: unix seconds or an aware datetime.
            recipient: To whom it went: an address, or the token of a device.
            reason: Why it failed.
            href: The link that was clicked.

        Source: Track API, ``POST /api/v1/metrics``.
        """
        request = calls.report_metric(
            delivery_id, metric, timestamp=timestamp, recipient=recipient, reason=reason, href=href
        )
        await self._make(request, raise_for, None)

    async def unsubscribe(self, delivery_id: str) -> None:
        """Unsubscribe the person to whom a message went. It goes without credentials: the service asks for none.

        One whose answer was lost is repeated, and may be counted twice for its message; see the class.

        Source: Track API, ``POST /unsubscribe/{delivery_id}``.
        """
        await self._make(calls.unsubscribe(delivery_id), raise_for, None)

    # ------------------------------------------------------------------------------------------------- account

    async def region(self) -> AccountRegion:
        """Ask where the account lives; the cheapest way to find out whether the credentials are good.

        Returns:
            The region; that of the settings, where nothing is sent.

        Source: Track API, ``GET /api/v1/accounts/region``.
        """
        instead = AccountRegion(self._settings.region, self._settings.track_origin, 0)
        return await self._make(calls.REGION, _read_region, instead)

    # -------------------------------------------------------------------------------------------------- inside

    async def _say(self, draft: Draft) -> None:
        operation = ops.encode(draft, now=time.time(), new_id=ids.new_id)
        await self._make(calls.request_of(operation), raise_for, None)

    def _read_event(self, name: E | str, data: Any) -> tuple[str, Any]:
        """Return name and data of an event, typed or not, checked against the taxonomy, and stamp the data."""
        if isinstance(name, CioEvent):
            if data is not None:
                raise InvalidOperationError("data", "must not be given beside a typed event, which has its own")
            called, data = name.event_name, name.wire_data()
        else:
            called = name
        if self._validator is not None and (told := self._validator.check(called, data)) is not None:
            _logger.warning("an event contradicts the taxonomy and is sent all the same: %s", told)
        return called, _with("data", data, "tracked_at") if self._adds_tracked_at else data


def _with(field: str, value: Any, stamp: str) -> dict[str, Any]:
    """A copy of an object's fields, with the time."""
    return {**({} if value is None else ops.fields_of(field, value)), stamp: int(time.time())}


def _read_region(answer: Answer) -> AccountRegion:
    raise_for(answer)
    try:
        match orjson.loads(answer.body):
            case {"region": str(region), "url": str(url), "environment_id": int(environment_id)}:
                return AccountRegion(region, url, environment_id)
            case _:
                pass
    except orjson.JSONDecodeError:
        pass
    msg = f"status {answer.status} with an unreadable body"
    raise UnreachableError(msg, sent=True)
