"""What the direct clients put on the wire, against Customer.io's published document.

The document is not part of this repository; where it is not there, the tests that read it are skipped.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
import pytest

from cio_batch import (
    AppRateLimits,
    CioAppClient,
    CioId,
    Email,
    ObjectId,
    Relationship,
    SendOutcomeUnknownError,
    Settings,
    TypedCioClient,
    UnreachableError,
)
from cio_batch.clients import base

from .test_app_client import AUDIENCES, COMMON, EVERYTHING, SENDS
from .test_contract import (
    DATA,
    FORMATS,
    HOSTILE_IDS,
    ULID,
    Recorder,
    Request,
    contract,
    needs_document,
    published,
    recording,
)

# These have no complete types; so they are Any to every type checker.
jsonschema = pytest.importorskip("jsonschema")
referencing = pytest.importorskip("referencing")
jsonschema_specifications = pytest.importorskip("referencing.jsonschema")

Said = tuple[str, str, dict[str, str], Callable[[TypedCioClient], Awaitable[object]]]
CUSTOMER: Final = "/api/v1/customers/{identifier}"
SEGMENT: Final = "/api/v1/segments/{segment_id}"


def everything(one: str) -> dict[str, list[Said]]:
    """Each method with all that it takes, and the call of the document that it must be, for one identifier."""
    email = one if "@" in one else "a@b.example"
    person = {"identifier": one}
    return {
        "identify": [
            ("PUT", CUSTOMER, person, lambda client: client.identify(one)),
            (
                "PUT",
                CUSTOMER,
                {"identifier": email},
                lambda client: client.identify(
                    Email(email), DATA, timestamp=1_700_000_000, relationships=[Relationship(ObjectId(one, one), DATA)]
                ),
            ),
        ],
        "destroy": [("DELETE", CUSTOMER, person, lambda client: client.destroy(one))],
        "suppress": [("POST", f"{CUSTOMER}/suppress", person, lambda client: client.suppress(one))],
        "unsuppress": [("POST", f"{CUSTOMER}/unsuppress", person, lambda client: client.unsuppress(one))],
        "merge": [("POST", "/api/v1/merge_customers", {}, lambda client: client.merge(one, CioId("03")))],
        "add_device": [
            ("PUT", f"{CUSTOMER}/devices", person, lambda client: client.add_device(one, one, "ios")),
            (
                "PUT",
                f"{CUSTOMER}/devices",
                person,
                lambda client: client.add_device(
                    one, one, "android", last_used=1_700_000_000, attributes={"own": "text"}
                ),
            ),
        ],
        "delete_device": [
            (
                "DELETE",
                f"{CUSTOMER}/devices/{{device_id}}",
                {"identifier": one, "device_id": one},
                lambda client: client.delete_device(one, one),
            )
        ],
        "track": [
            ("POST", f"{CUSTOMER}/events", person, lambda client: client.track(one, "e")),
            (
                "POST",
                f"{CUSTOMER}/events",
                person,
                lambda client: client.track(one, "näme", DATA, timestamp=1_700_000_000, id=ULID),
            ),
        ],
        "track_anonymous": [("POST", "/api/v1/events", {}, lambda client: client.track_anonymous(one, "e", DATA))],
        "page": [("POST", f"{CUSTOMER}/events", person, lambda client: client.page(one, "https://x.example/", DATA))],
        "screen": [("POST", f"{CUSTOMER}/events", person, lambda client: client.screen(one, "Home", DATA))],
        "add_to_segment": [
            ("POST", f"{SEGMENT}/add_customers", {"segment_id": "3"}, lambda client: client.add_to_segment(3, [one])),
            (
                "POST",
                f"{SEGMENT}/add_customers",
                {"segment_id": "2147483647"},
                lambda client: client.add_to_segment(2**31 - 1, [email] * 1_000, id_type="email"),
            ),
        ],
        "remove_from_segment": [
            (
                "POST",
                f"{SEGMENT}/remove_customers",
                {"segment_id": "3"},
                lambda client: client.remove_from_segment(3, ["cio_03"], id_type="cio_id"),
            )
        ],
        "submit_form": [
            (
                "POST",
                "/api/v1/forms/{form_id}/submit",
                {"form_id": one},
                lambda client: client.submit_form(one, {"id": one, "first_name": "Ada"}),
            ),
            (
                "POST",
                "/api/v1/forms/{form_id}/submit",
                {"form_id": one},
                lambda client: client.submit_form(one, {"email": email}),
            ),
        ],
        "report_metric": [
            (
                "POST",
                "/api/v1/metrics",
                {},
                lambda client: client.report_metric(
                    one, "clicked", timestamp=1_700_000_000, recipient=one, reason=one, href=one
                ),
            ),
            ("POST", "/api/v1/metrics", {}, lambda client: client.report_metric(one, "spammed")),
        ],
        "unsubscribe": [
            ("POST", "/unsubscribe/{delivery_id}", {"delivery_id": one}, lambda client: client.unsubscribe(one))
        ],
        "region": [("GET", "/api/v1/accounts/region", {}, lambda client: client.region())],
    }


def test_no_call_is_left_out() -> None:
    """Every method of the client that makes a call is tried here."""
    own = {
        name
        for name, member in inspect.getmembers(TypedCioClient, inspect.iscoroutinefunction)
        if not name.startswith("_") and not hasattr(base.DirectClient, name)
    }
    assert own == set(everything("u"))


def without_query(request: Request) -> tuple[Request, str]:
    """The request as the contract's paths have it, and its query."""
    path, _, query = request.raw_path.partition("?")
    return Request(request.method, path, request.headers, request.body), query


@needs_document
@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("identifier", HOSTILE_IDS)
async def test_track_calls_are_those_of_the_document(identifier: str, stamped: bool) -> None:
    """Each method is one documented call whose path decodes once to exactly the ids that were said."""
    async with recording() as recorder:
        client = TypedCioClient(recorder.settings, retry=None, tracked_at=stamped, last_seen_at=stamped)
        async with client:
            for said in everything(identifier).values():
                for method, template, parts, call in said:
                    recorder.requests.clear()
                    with contextlib.suppress(UnreachableError):  # the recorder's {} is no region
                        await call(client)
                    [request] = recorder.requests
                    request, query = without_query(request)
                    assert contract().check(request) == (template, parts)
                    assert request.method == method
                    assert query in ("", "id_type=email", "id_type=cio_id")


@needs_document
def test_every_v1_path_of_the_document_has_its_call() -> None:
    """What the document has under v1, the client can say; only the old way to report a push is left out."""
    documented = {
        (method.upper(), template)
        for template, methods in published()["paths"].items()
        for method in methods
        if method in ("get", "put", "post", "delete") and not template.startswith("/api/v2/")
    }
    sayable = {(method, template) for said in everything("u").values() for method, template, _, _ in said}
    assert documented - sayable == {("POST", "/api/v1/push/events")}


# ------------------------------------------------------------------------------------------------------- App API

SCHEMAS: Final = {
    "email": "sendemail",
    "push": "sendpush",
    "sms": "sendsms",
    "whatsapp": "sendsms",  # the document has none of its own; its fields are the same
    "inbox_message": "sendinbox",
    "in_app": "sendinapp",
    "broadcast": "campaignRequest",
}
# Fields that the official clients send and the schema of their channel does not have.
BEYOND: Final = {
    "inbox_message": {"disable_message_retention"},
    "in_app": {"disable_message_retention"},
}


def names_in(schema: Any) -> set[str]:
    """The names of the fields that a schema has, wherever in it they stand."""
    if "$ref" in schema:
        found: Any = published()
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return names_in(found)
    inner = [*schema.get("allOf", []), *schema.get("oneOf", []), *schema.get("anyOf", [])]
    return set(schema.get("properties", {})).union(*map(names_in, inner))


def app_client(recorder: Recorder) -> CioAppClient:
    settings = Settings(app_api_key="app-key", app_url=recorder.settings.track_url)
    rates = AppRateLimits(sends=None, broadcasts=None, calls=None)
    return CioAppClient(settings, retry=None, rates=rates)


async def heard(recorder: Recorder, call: Awaitable[object]) -> Request:
    recorder.requests.clear()
    with contextlib.suppress(SendOutcomeUnknownError):  # the recorder's {} is no receipt
        await call
    [request] = recorder.requests
    assert request.headers["Authorization"] == "Bearer app-key"
    assert request.headers["Content-Type"] == "application/json"
    return request


def check_app(kind: str, body: Any, branch: str = "") -> None:
    """Validate a body against its schema, which is closed here: a typo cannot pass."""
    schema = {"$ref": f"urn:track#/components/schemas/{SCHEMAS[kind]}{branch}"}
    resource = jsonschema_specifications.DRAFT202012.create_resource(published())
    registry = referencing.Registry().with_resource("urn:track", resource)
    jsonschema.Draft202012Validator(schema, registry=registry, format_checker=FORMATS).validate(body)
    known = names_in(published()["components"]["schemas"][SCHEMAS[kind]])
    assert set(body) - known <= BEYOND.get(kind, set())


@needs_document
@pytest.mark.parametrize("kind", SENDS)
async def test_messages_are_those_of_the_document(kind: str) -> None:
    """Each send, with all fields and with the least, is what the schema of its channel says, at its path."""
    method, make, needed = SENDS[kind]
    async with recording() as recorder, app_client(recorder) as client:
        for given in ({**COMMON, **EVERYTHING[kind]}, {"transactional_message_id": 1, "identifiers": "u", **needed}):
            request = await heard(recorder, getattr(client, method)(make(**given)))
            assert (request.method, request.raw_path) == ("POST", f"/v1/send/{kind}")
            body = orjson.loads(request.body)
            if kind == "push" and "to" in body:
                assert body.pop("to") in ("all", "last_used")
            check_app(kind, body)


@needs_document
@pytest.mark.parametrize("kind", SENDS)
def test_every_field_of_the_document_can_be_said(kind: str) -> None:
    """A request class lacks no field that the schema of its channel has."""
    fields = {name.removesuffix("_") for name in {**COMMON, **EVERYTHING[kind]}}
    assert names_in(published()["components"]["schemas"][SCHEMAS[kind]]) <= fields


@needs_document
@pytest.mark.parametrize("audience", AUDIENCES)
async def test_broadcasts_are_those_of_the_document(audience: str) -> None:
    """A trigger with its data, audience and switches is what the schema says."""
    async with recording() as recorder, app_client(recorder) as client:
        request = await heard(
            recorder,
            client.trigger_broadcast(
                12,
                {"headline": "h"},
                email_add_duplicates=True,
                email_ignore_missing=True,
                id_ignore_missing=False,
                **{audience: AUDIENCES[audience]},
            ),
        )
    assert (request.method, request.raw_path) == ("POST", "/v1/campaigns/12/triggers")
    # The first branch of its oneOf, which names no audience, fits every request: look at that of this audience.
    branches = published()["components"]["schemas"]["campaignRequest"]["oneOf"]
    [number] = [n for n, branch in enumerate(branches) if audience in names_in(branch)]
    body = orjson.loads(request.body)
    assert body[audience] == AUDIENCES[audience]
    if audience == "recipients":
        # The branches of a filter demand nothing, so that each fits all of them: its form is not to be had from here.
        assert set(body) <= names_in(branches[number])
    else:
        check_app("broadcast", body, f"/oneOf/{number}")
