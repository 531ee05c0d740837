"""What the transports put on the wire, against Customer.io's published document: paths, methods, headers, bodies.

The document is not part of this repository; where it is not there, the tests that read it are skipped.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import attrs
import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from referencing.jsonschema import DRAFT202012

from cio_batch import (
    AnonymousId,
    CioBatchTracker,
    CioId,
    CioObjectId,
    Draft,
    Email,
    InvalidOperationError,
    ObjectId,
    Phone,
    Relationship,
    Settings,
    operations,
)
from cio_batch.settings import TRACK_HOSTS
from cio_batch.transports import TrackV1Transport, TrackV2Transport, Transport
from cio_batch.transports.http import basic_credentials
from cio_batch.transports.track_v1 import _cut_event, translate

from .conftest import assert_conserved

# These have no complete types; so they are Any to every type checker.
jsonschema = pytest.importorskip("jsonschema")
referencing = pytest.importorskip("referencing")

SPEC = Path(__file__).resolve().parents[1].parent / "shared" / "spec" / "track-openapi.json"

needs_document = pytest.mark.skipif(not SPEC.exists(), reason="the published track-openapi.json is not here")

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WIRES: Final[Mapping[str, Callable[[Settings], Transport]]] = {"v1": TrackV1Transport, "v2": TrackV2Transport}


# ----------------------------------------------------------------------------------------------------- the document


@attrs.frozen
class Repair:
    """A place where the document contradicts itself or the service, and what is to be read there instead."""

    name: str
    reason: str
    make: Callable[[Any], None]


def _demand_what_each_branch_names(one_of: list[Any]) -> None:
    for branch in one_of:
        branch["required"] = list(branch["properties"])


def _repair_merge(document: Any) -> None:
    schema = _body_schema(document, "/api/v1/merge_customers", "post")
    for person in ("primary", "secondary"):
        _demand_what_each_branch_names(schema["properties"][person]["oneOf"])


def _repair_related_people(document: Any) -> None:
    items = document["components"]["schemas"]["v2_cio_relationships"]["items"]
    _demand_what_each_branch_names(items["properties"]["identifiers"]["oneOf"])


def _repair_metrics(document: Any) -> None:
    schema = _body_schema(document, "/api/v1/metrics", "post")
    schema["anyOf"] = schema.pop("oneOf")


def _repair_attribute_values(document: Any) -> None:
    schema = _body_schema(document, "/api/v1/customers/{identifier}", "put")
    schema["additionalProperties"] = True


def _repair_screen(document: Any) -> None:
    document["components"]["schemas"]["eventsRequest"]["oneOf"][2]["required"].remove("anonymous_id")


def _repair_anonymous(document: Any) -> None:
    event = document["components"]["schemas"]["anonymousEventsRequest"]["oneOf"][0]
    event["properties"]["type"]["enum"] = ["event"]


REPAIRS = [
    Repair(
        "v1 merge",
        "the branches of its oneOf for id, email and cio_id demand nothing, so that any person fits all three",
        _repair_merge,
    ),
    Repair(
        "relationships of an object",
        "the same in v2_cio_relationships",
        _repair_related_people,
    ),
    Repair(
        "v1 metrics",
        "an 'opened' with a recipient fits email, in-app and push alike; oneOf would forbid what each allows",
        _repair_metrics,
    ),
    Repair(
        "v1 attribute values",
        "says string, integer or boolean; the same attributes are free on v2, and its own text speaks of numbers and "
        "nested objects elsewhere",
        _repair_attribute_values,
    ),
    Repair(
        "v1 screen",
        "demands anonymous_id of a person who is named in the path",
        _repair_screen,
    ),
    Repair(
        "v1 anonymous events",
        "the branch for events allows page and screen too, which then fit two branches of a oneOf",
        _repair_anonymous,
    ),
]


def _body_schema(document: Any, template: str, method: str) -> Any:
    return document["paths"][template][method]["requestBody"]["content"]["application/json"]["schema"]


@cache
def published() -> Any:
    """The document as published."""
    return json.loads(SPEC.read_text())


def repaired(without: Repair | None = None) -> Any:
    """The document with its repairs, and closed: what it does not name is refused, so that a typo cannot pass."""
    document = copy.deepcopy(published())
    for repair in REPAIRS:
        if repair is not without:
            repair.make(document)
    _body_schema(document, "/api/v2/batch", "post")["properties"]["batch"]["items"]["unevaluatedProperties"] = False
    for template, methods in document["paths"].items():
        for method, described in methods.items():
            if isinstance(described, dict) and "requestBody" in described:
                _body_schema(document, template, method)["unevaluatedProperties"] = False
    return document


def is_ulid(value: object) -> bool:
    """Crockford's base 32, 128 bits."""
    return not isinstance(value, str) or re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", value) is not None


def is_unix_timestamp(value: object) -> bool:
    """Seconds, no milliseconds."""
    return not isinstance(value, int) or 0 <= value < 100_000_000_000


FORMATS = jsonschema.FormatChecker(formats=())
FORMATS.checks("ULID")(is_ulid)
FORMATS.checks("ulid")(is_ulid)
FORMATS.checks("unix timestamp")(is_unix_timestamp)


class Contract:
    """Checks requests against a document."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._registry = referencing.Registry().with_resource("urn:track", DRAFT202012.create_resource(document))
        self._patterns = {
            template: re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)))
            for template in document["paths"]
        }
        self._validators: dict[tuple[str, str], Any] = {}

    def find(self, method: str, raw_path: str) -> tuple[str, dict[str, str]]:
        """The template of the document that a request line is for, and its parts, decoded once."""
        assert re.fullmatch(r"[A-Za-z0-9._~%/-]+", raw_path), f"not encoded completely: {raw_path}"
        tried = [(template, pattern.fullmatch(raw_path)) for template, pattern in self._patterns.items()]
        matches = [(template, found) for template, found in tried if found is not None]
        assert len(matches) == 1, raw_path
        [(template, found)] = matches
        assert method.lower() in self._document["paths"][template], (method, template)
        return template, {name: unquote(part, errors="strict") for name, part in found.groupdict().items()}

    def check(self, request: Request) -> tuple[str, dict[str, str]]:
        """Check everything that the document says of a request; return its template and its decoded parts."""
        template, parts = self.find(request.method, request.raw_path)
        described = self._document["paths"][template][request.method.lower()]
        if described.get("security", self._document.get("security")):
            assert request.headers.get("Authorization") == basic_credentials("site", "key")
        if "requestBody" not in described:
            assert request.body == b""
            return template, parts
        assert request.headers.get("Content-Type") == "application/json"
        self._validator(template, request.method.lower()).validate(orjson.loads(request.body))
        return template, parts

    def _validator(self, template: str, method: str) -> Any:
        key = template, method
        if key not in self._validators:
            escaped = template.replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
            reference = f"urn:track#/paths/{escaped}/{method}/requestBody/content/application~1json/schema"
            self._validators[key] = jsonschema.Draft202012Validator(
                {"$ref": reference}, registry=self._registry, format_checker=FORMATS
            )
        return self._validators[key]


@cache
def contract() -> Contract:
    """The repaired document."""
    return Contract(repaired())


# ----------------------------------------------------------------------------------------------------- the recorder


@attrs.frozen
class Request:
    """A request as it came over the wire."""

    method: str
    raw_path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def batch(self) -> list[Any]:
        """The operations of a v2 batch."""
        batch: list[Any] = orjson.loads(self.body)["batch"]
        return batch


class Recorder:
    """A server that writes down every request and answers ``{}``."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._runner: web.ServerRunner | None = None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        body = await request.content.read()
        self.requests.append(Request(request.method, request.raw_path, request.headers, body))
        return web.json_response({})

    async def start(self) -> None:
        # No Application: its router decodes a path, and ours are to be looked at as they came.
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def settings(self) -> Settings:
        """Settings that lead here."""
        assert self._runner is not None
        port = self._runner.addresses[0][1]
        return Settings(site_id="site", track_api_key="key", track_url=f"http://127.0.0.1:{port}")

    async def hear(self, wire: str, drafts: Iterable[Draft], **options: Any) -> list[Request]:
        """Send operations through a tracker of their own, and return the requests that it made."""
        before = len(self.requests)
        settings = self.settings
        async with CioBatchTracker(settings, transport=WIRES[wire](settings), rate_limit=None, **options) as tracker:
            count = 0
            for draft in drafts:
                await tracker.submit(draft)
                count += 1
        assert assert_conserved(tracker).delivered == count
        return self.requests[before:]


@asynccontextmanager
async def recording() -> AsyncGenerator[Recorder]:
    """A recorder that listens."""
    recorder = Recorder()
    await recorder.start()
    try:
        yield recorder
    finally:
        await recorder.stop()


# ------------------------------------------------------------------------------------------------ everything sayable

HOSTILE_IDS = [
    "42",
    "a/b",
    "/",
    "//",
    "a?b=c",
    "?",
    "a#b",
    "#",
    "100%",
    "%",
    "%2F",
    "%252F",
    "%2e%2e",
    "../..",
    "...",
    ". .",
    "a+b",
    "a@b.example",
    "a b",
    " padded ",
    "tab\tand\nnewline",
    "null\x00byte",
    "a&b=c;d",
    'quote"and\\backslash',
    "<script>",
    "~user",
    "http://evil.example/",
    "cio_03000001",
    "naïve",
    "Ωμέγα",
    "顧客",
    "🔑",
    "e\u0301",
    "\u202egnirts",
    "x" * 150,
    "é" * 75,
    "🔑" * 37,
]

DATA = {"plan": "pro", "mrr": 12.5, "items": [{"n": 1}, None, True], "ключ": "🔑"}


def everything(identifier: str) -> list[tuple[Callable[..., Draft], Draft]]:
    """Each constructor of ``operations`` with all that it takes, for one identifier, and each way to name somebody."""
    ops = operations
    thing, cio_thing = ObjectId(identifier, identifier), CioObjectId(identifier)
    email = Email(identifier if "@" in identifier else "a@b.example")
    other = identifier[:-1] + ("y" if identifier[-1] != "y" else "z")
    said: list[tuple[Callable[..., Draft], Draft]] = []

    def say(constructor: Callable[..., Draft], *args: Any, **named: Any) -> None:
        said.append((constructor, constructor(*args, **named)))

    for person in (identifier, email, CioId(identifier), Phone("+15551234567")):
        for constructor in (ops.event, ops.page, ops.screen):
            say(constructor, person, "name")
            say(constructor, person, "näme", DATA, timestamp=1_700_000_000, id=ULID)
        say(ops.identify, person)
        say(ops.identify, person, DATA, timestamp=1_700_000_000, relationships=[thing, Relationship(cio_thing, DATA)])
        say(ops.delete, person)
        say(ops.suppress, person)
        say(ops.unsuppress, person)
        say(ops.add_device, person, identifier, "ios")
        say(ops.add_device, person, identifier, "android", last_used=1_700_000_000, attributes={"own": "text"})
        say(ops.delete_device, person, identifier)
        say(ops.add_relationships, person, [thing, cio_thing, Relationship(thing, DATA)])
        say(ops.delete_relationships, person, [thing])
    say(ops.merge, identifier, other)
    say(ops.merge, email, CioId(identifier))
    people = [identifier, email, CioId(identifier), Relationship(identifier, {"role": "admin"})]
    for reference in (thing, cio_thing):
        say(ops.identify_object, reference)
        say(ops.identify_object, reference, DATA, relationships=people)
        say(ops.identify_anonymous_object, reference, DATA, relationships=[AnonymousId(identifier)])
        say(ops.delete_object, reference)
        say(ops.add_object_relationships, reference, people)
        say(ops.delete_object_relationships, reference, people)
    for metric in ("opened", "converted", "delivered"):
        say(ops.delivery_event, identifier, metric, identifier)
    for action in ("event", "page", "screen"):
        say(ops.anonymous_event, identifier, "name", action=action)
        say(ops.anonymous_event, identifier, "näme", DATA, timestamp=1_700_000_000, id=ULID, action=action)
    return said


def drafts_of(identifier: str) -> list[Draft]:
    """The same, drafts alone."""
    return [draft for _, draft in everything(identifier)]


def on_v1(draft: Draft) -> bool:
    """Whether v1 can say it: it has no calls for objects, and no phones in its paths."""
    return not draft.kind.startswith("object.") and not isinstance(draft.subject, Phone)


def test_nothing_sayable_is_left_out() -> None:
    """The operations of these tests use every constructor, every kind and every way to name somebody."""
    constructors = {
        member
        for name, member in inspect.getmembers(operations, inspect.isfunction)
        if not name.startswith("_") and member.__annotations__.get("return") == "Draft"
    }
    said = everything("42")
    assert {constructor for constructor, _ in said} == constructors
    assert {draft.kind for _, draft in said} == operations.KINDS
    kinds_of_subject = {type(draft.subject) for _, draft in said} - {type(None)}
    assert kinds_of_subject == {str, Email, CioId, Phone, AnonymousId, ObjectId, CioObjectId, operations.DeliveryId}


# ------------------------------------------------------------------------------------------------------- the contract

V1_CALLS: Final[Mapping[str, tuple[str, str]]] = {
    "person.event": ("POST", "/api/v1/customers/{identifier}/events"),
    "person.page": ("POST", "/api/v1/customers/{identifier}/events"),
    "person.screen": ("POST", "/api/v1/customers/{identifier}/events"),
    "person.identify": ("PUT", "/api/v1/customers/{identifier}"),
    "person.delete": ("DELETE", "/api/v1/customers/{identifier}"),
    "person.suppress": ("POST", "/api/v1/customers/{identifier}/suppress"),
    "person.unsuppress": ("POST", "/api/v1/customers/{identifier}/unsuppress"),
    "person.add_device": ("PUT", "/api/v1/customers/{identifier}/devices"),
    "person.delete_device": ("DELETE", "/api/v1/customers/{identifier}/devices/{device_id}"),
    "person.add_relationships": ("PUT", "/api/v1/customers/{identifier}"),
    "person.delete_relationships": ("PUT", "/api/v1/customers/{identifier}"),
    "person.merge": ("POST", "/api/v1/merge_customers"),
    "delivery.event": ("POST", "/api/v1/metrics"),
    "anonymous.event": ("POST", "/api/v1/events"),
    "anonymous.page": ("POST", "/api/v1/events"),
    "anonymous.screen": ("POST", "/api/v1/events"),
}


def parts_of(draft: Draft) -> dict[str, str]:
    """What the path of a v1 call must decode to."""
    if not draft.kind.startswith("person.") or draft.kind == "person.merge":
        return {}
    subject = draft.subject
    if isinstance(subject, CioId):
        parts = {"identifier": f"cio_{subject.value.removeprefix('cio_')}"}
    else:
        parts = {"identifier": subject.value if isinstance(subject, Email) else str(subject)}
    if draft.kind == "person.delete_device" and draft.device is not None:
        parts["device_id"] = draft.device["token"]
    return parts


@needs_document
@pytest.mark.parametrize("identifier", HOSTILE_IDS)
async def test_v1_calls_are_those_of_the_document(identifier: str) -> None:
    """Each operation is one documented call whose path decodes once to exactly the ids that were said."""
    async with recording() as recorder:
        for draft in filter(on_v1, drafts_of(identifier)):
            [request] = await recorder.hear("v1", [draft])
            template, parts = contract().check(request)
            assert (request.method, template) == V1_CALLS[draft.kind]
            assert parts == parts_of(draft)


@needs_document
@pytest.mark.parametrize("identifier", HOSTILE_IDS)
async def test_v2_calls_are_those_of_the_document(identifier: str) -> None:
    """Everything goes by documented batches, but anonymous events, which go by the call of v1 that can say them."""
    drafts = drafts_of(identifier)
    async with recording() as recorder:
        requests = await recorder.hear("v2", drafts)
    batched: list[str] = []
    for request in requests:
        template, _ = contract().check(request)
        if template == "/api/v1/events":
            assert orjson.loads(request.body)["anonymous_id"] == identifier
            batched.append("anonymous")
        else:
            assert (request.method, template) == ("POST", "/api/v2/batch")
            batched += [f"{operation['type']}.{operation['action']}" for operation in request.batch]
    said = [draft.kind if not draft.kind.startswith("anonymous.") else "anonymous" for draft in drafts]
    assert sorted(batched) == sorted(said)


def test_the_table_of_v1_calls_is_complete() -> None:
    """Every kind has its v1 call, except objects, which v1 cannot say."""
    assert set(V1_CALLS) == {kind for kind in operations.KINDS if not kind.startswith("object.")}


async def test_what_v1_cannot_say_is_refused_at_the_door() -> None:
    """Objects and phones raise on v1, nothing is queued, and no call is made."""
    unsayable = [draft for draft in drafts_of("42") if not on_v1(draft)]
    assert len(unsayable) > 20
    async with recording() as recorder:
        settings = recorder.settings
        async with CioBatchTracker(settings, transport=TrackV1Transport(settings)) as tracker:
            for draft in unsayable:
                with pytest.raises(InvalidOperationError, match="TrackV2Transport"):
                    await tracker.submit(draft)
            assert assert_conserved(tracker).accepted == 0
    assert recorder.requests == []


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("identifier", ["", " ", "\n", ".", "..", "x" * 151, "é" * 76, "\ud800"])
async def test_an_id_that_would_climb_a_path_or_break_a_limit_never_leaves(wire: str, identifier: str) -> None:
    """Such an id is refused at the door on either wire, in every place where one can stand."""
    async with recording() as recorder:
        settings = recorder.settings
        async with CioBatchTracker(settings, transport=WIRES[wire](settings)) as tracker:
            for draft in (
                operations.event(identifier, "e"),
                operations.identify(CioId(identifier)),
                operations.delete(identifier),
                operations.merge("42", identifier),
                operations.anonymous_event(identifier, "e"),
                operations.add_relationships("42", [ObjectId("1", identifier)]),
                operations.delivery_event(identifier, "opened", "t"),
            ):
                with pytest.raises(InvalidOperationError):
                    await tracker.submit(draft)
    assert recorder.requests == []


V1_BODIES: list[tuple[Draft, Any]] = [
    (
        operations.event("u", "bought", {"n": 1}, timestamp=1_700_000_000, id=ULID),
        {"name": "bought", "id": ULID, "timestamp": 1_700_000_000, "data": {"n": 1}},
    ),
    (
        operations.page("u", "/p", timestamp=1, id=ULID),
        {"name": "/p", "id": ULID, "timestamp": 1, "type": "page"},
    ),
    (
        operations.screen("u", "Home", {}, timestamp=1, id=ULID),
        {"name": "Home", "id": ULID, "timestamp": 1, "type": "screen", "data": {}},
    ),
    (
        operations.anonymous_event("cookie", "looked", {"n": 1}, timestamp=1, id=ULID, action="page"),
        {"name": "looked", "id": ULID, "timestamp": 1, "type": "page", "data": {"n": 1}, "anonymous_id": "cookie"},
    ),
    (
        operations.identify("u", {"plan": "pro"}, timestamp=1, relationships=[ObjectId("1", "acme")]),
        {
            "plan": "pro",
            "_timestamp": 1,
            "cio_relationships": {
                "action": "add_relationships",
                "relationships": [{"identifiers": {"object_type_id": "1", "object_id": "acme"}}],
            },
        },
    ),
    (
        operations.delete_relationships("u", [Relationship(CioObjectId("ob1"), {"role": "admin"})]),
        {
            "cio_relationships": {
                "action": "delete_relationships",
                "relationships": [
                    {"identifiers": {"cio_object_id": "ob1"}, "relationship_attributes": {"role": "admin"}}
                ],
            },
        },
    ),
    (
        operations.add_device("u", "t", "ios", last_used=1, attributes={"app_version": "1"}),
        {"device": {"id": "t", "platform": "ios", "last_used": 1, "attributes": {"app_version": "1"}}},
    ),
    (
        operations.merge(Email("a@b.example"), CioId("cio_03")),
        {"primary": {"email": "a@b.example"}, "secondary": {"cio_id": "03"}},
    ),
    (
        operations.delivery_event("d", "converted", "t"),
        {"delivery_id": "d", "metric": "converted", "recipient": "t"},
    ),
]


@pytest.mark.parametrize(("draft", "body"), V1_BODIES, ids=[draft.kind for draft, _ in V1_BODIES])
async def test_a_v1_body_says_what_the_operation_says(draft: Draft, body: Any) -> None:
    """The translation to v1 loses nothing and invents nothing."""
    async with recording() as recorder:
        [request] = await recorder.hear("v1", [draft])
    assert orjson.loads(request.body) == body


_CUT_MARKS: Final = [',"identifiers":{"id":', '},"id":"', '","attributes":', '"}', "},", '"', "\\", "\u00fc"]
_tricky = st.lists(st.sampled_from([*_CUT_MARKS, "a", "id"]), min_size=1, max_size=5).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    _tricky,
    _tricky.filter(lambda name: len(name.encode()) <= operations.MAX_NAME_BYTES),  # five of the longest mark are 105
    st.none() | st.dictionaries(_tricky, _tricky | st.none() | st.dictionaries(_tricky, _tricky)),
)
def test_an_event_cut_out_of_its_bytes_says_what_a_read_one_says(user_id: str, name: str, data: Any) -> None:
    """No text is taken for the names between which the body of an event is cut; other orders of the parts are read."""
    operation = operations.encode(operations.event(f"u{user_id}", name, data), now=1_700_000_000.0, new_id=lambda: ULID)
    body = operation.body
    read = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    assert _cut_event(body) is not None
    assert _cut_event(read) is None
    method, path, cut = translate(operation)
    reordered = translate(operations.Operation(read, operation.key, operation.kind))
    assert (method, path) == reordered[:2]
    assert cut is not None
    assert orjson.loads(cut) == {
        "name": name,
        "timestamp": 1_700_000_000,
        "id": ULID,
        **({} if data is None else {"data": data}),
    }
    assert orjson.loads(cut) == orjson.loads(reordered[2] or b"")


@needs_document
def test_hosts_are_those_of_the_document() -> None:
    """Each region's host is a server that the document names, and each server has its region."""
    assert sorted(TRACK_HOSTS.values()) == sorted(server["url"] for server in published()["servers"])


# --------------------------------------------------------------------------------------------------- can these fail?


@needs_document
@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.name)
async def test_each_repair_is_needed(repair: Repair) -> None:
    """Without any one of the repairs some request that the service takes does not validate."""
    unrepaired = Contract(repaired(without=repair))
    drafts = [draft for draft in drafts_of("42") if on_v1(draft)]
    async with recording() as recorder:
        requests = [*await recorder.hear("v1", drafts), *await recorder.hear("v2", drafts_of("42"))]
    refused: list[Request] = []
    for request in requests:
        contract().check(request)
        try:
            unrepaired.check(request)
        except jsonschema.ValidationError:
            refused.append(request)
    assert refused


PERSON = {"type": "person", "identifiers": {"id": "42"}}
HEADERS = {"Authorization": basic_credentials("site", "key"), "Content-Type": "application/json"}


def request_of(body: Any, method: str = "POST", path: str = "/api/v2/batch", **headers: str) -> Request:
    """A request made by hand."""
    return Request(method, path, HEADERS | headers, b"" if body is None else orjson.dumps(body))


@needs_document
@pytest.mark.parametrize(
    "request_",
    [
        request_of({"batch": [PERSON | {"action": "event", "name": "e", "data": {}}]}),
        request_of({"batch": [PERSON | {"action": "event"}]}),
        request_of({"batch": [PERSON | {"action": "event", "name": "e", "id": "no ULID"}]}),
        request_of({"batch": [PERSON | {"action": "event", "name": "e", "timestamp": "1"}]}),
        request_of({"batch": [PERSON | {"action": "add_device", "device": {"id": "t", "platform": "ios"}}]}),
        request_of({"batch": [PERSON | {"action": "add_device", "device": {"token": "t", "platform": "palm"}}]}),
        request_of({"batch": [{"type": "person", "action": "delete", "identifiers": {"id": "1", "email": "a@b.c"}}]}),
        request_of({"batch": [{"type": "person", "action": "delete"}]}),
        request_of({"batches": []}),
        request_of({"name": "e", "timestamp": 1.5}, path="/api/v1/customers/1/events"),
        request_of({"name": "e", "attributes": {}}, path="/api/v1/customers/1/events"),
        request_of({"name": "e"}, path="/api/v1/customers/a/b/events"),
        request_of({"name": "e"}, path="/api/v1/customers/a b/events"),
        request_of({"name": "e"}, path="/api/v1/customers/1/events?x=1"),
        request_of({"name": "e"}, method="PUT", path="/api/v1/customers/1/events"),
        request_of({"primary": {"phone": "+1"}, "secondary": {"id": "1"}}, path="/api/v1/merge_customers"),
        request_of({"device": {"token": "t", "platform": "ios"}}, method="PUT", path="/api/v1/customers/1/devices"),
        request_of({"delivery_id": "d", "metric": "read", "recipient": "t"}, path="/api/v1/metrics"),
        request_of({}, method="DELETE", path="/api/v1/customers/1"),
        request_of({"batch": []}, Authorization="Basic x"),
        request_of({"batch": []}, **{"Content-Type": "text/plain"}),
    ],
)
def test_a_request_that_breaks_the_contract_is_found(request_: Request) -> None:
    """The check fails for typical mistakes: a v1 field on v2, a wrong type, method or path, no credentials."""
    with pytest.raises((jsonschema.ValidationError, AssertionError)):
        contract().check(request_)


# ------------------------------------------------------------------------------------------------- random operations

# Names whose values the document types; what a caller writes there is the caller's affair.
TYPED_NAMES: Final = frozenset(
    {
        *("id", "email", "anonymous_id", "created_at", "unsubscribed", "_timestamp", "_update"),
        *("cio_relationships", "cio_subscription_preferences", "recipient", "from_address", "reply_to"),
        *("path", "referrer", "search", "title", "url", "keywords"),
    }
)


def _short(text: str, limit: int) -> bool:
    return len(text.encode()) <= limit and not text.isspace()


ids = st.text(min_size=1, max_size=60).filter(lambda text: _short(text, 140) and text not in {".", ".."})
names = st.text(min_size=1, max_size=50).filter(lambda text: _short(text, 100))
keys = st.text(max_size=20).filter(lambda text: text not in TYPED_NAMES)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, json_values, max_size=6)
seconds = st.integers(0, 99_999_999_999)
ulids = st.from_regex(r"\A[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}\Z").filter(str.isascii)
people = st.one_of(
    ids,
    ids.map(lambda text: Email(f"{text}@b")),
    ids.filter(lambda text: text.removeprefix("cio_").strip() not in {"", ".", ".."}).map(CioId),
)
phones = st.from_regex(r"\A\+[1-9][0-9]{1,14}\Z").map(Phone)
things = st.one_of(st.builds(ObjectId, ids, ids), st.builds(CioObjectId, ids))
to_things = st.lists(st.one_of(things, st.builds(Relationship, things, st.none() | objects)), min_size=1, max_size=3)
to_people = st.lists(st.one_of(people, st.builds(Relationship, people, st.none() | objects)), min_size=1, max_size=3)
to_strangers = st.lists(st.builds(AnonymousId, ids), max_size=3)
tokens = ids
platforms = st.sampled_from(["ios", "android"])
texts = st.dictionaries(keys.filter(lambda key: key not in {"push_enabled", "_last_status"}), st.text(max_size=20))


def _moment(constructor: Callable[..., Draft], subject: st.SearchStrategy[Any], **more: Any) -> Any:
    return st.builds(
        constructor,
        subject,
        names,
        st.none() | objects,
        timestamp=st.none() | seconds,
        id=st.none() | ulids,
        **more,
    )


def anything_about(person: st.SearchStrategy[Any]) -> st.SearchStrategy[Draft]:
    """Any operation of a person."""
    return st.one_of(
        _moment(operations.event, person),
        _moment(operations.page, person),
        _moment(operations.screen, person),
        st.builds(
            operations.identify,
            person,
            st.none() | objects,
            timestamp=st.none() | seconds,
            relationships=st.none() | to_things,
        ),
        st.builds(operations.delete, person),
        st.builds(operations.suppress, person),
        st.builds(operations.unsuppress, person),
        st.builds(
            operations.add_device,
            person,
            tokens,
            platforms,
            last_used=st.none() | seconds,
            attributes=st.none() | texts,
        ),
        st.builds(operations.delete_device, person, tokens),
        st.builds(operations.add_relationships, person, to_things),
        st.builds(operations.delete_relationships, person, to_things),
    )


v1_drafts = st.one_of(
    anything_about(people),
    st.builds(operations.merge, people, people),
    st.builds(operations.delivery_event, ids, st.sampled_from(["opened", "converted", "delivered"]), tokens),
    _moment(operations.anonymous_event, ids, action=st.sampled_from(["event", "page", "screen"])),
)
v2_drafts = st.one_of(
    v1_drafts,
    anything_about(phones),
    st.builds(operations.identify_object, things, st.none() | objects, relationships=st.none() | to_people),
    st.builds(operations.identify_anonymous_object, things, st.none() | objects, relationships=to_strangers),
    st.builds(operations.delete_object, things),
    st.builds(operations.add_object_relationships, things, to_people),
    st.builds(operations.delete_object_relationships, things, to_people),
)


def _is_merge_with_oneself(draft: Draft) -> bool:
    if draft.kind != "person.merge":
        return False
    primary, secondary = draft.primary, draft.secondary
    if isinstance(primary, CioId) and isinstance(secondary, CioId):
        return primary.identifiers() == secondary.identifiers()
    return primary == secondary


@needs_document
@pytest.mark.parametrize("wire", WIRES)
def test_random_operations_are_those_of_the_document(wire: str) -> None:
    """Whatever valid names, data, attributes and ids hold, the requests validate, and a path decodes to its ids."""
    drafts = (v1_drafts if wire == "v1" else v2_drafts).filter(lambda draft: not _is_merge_with_oneself(draft))

    with asyncio.Runner() as runner:
        recorder = Recorder()
        runner.run(recorder.start())

        @settings(max_examples=120, deadline=None)
        @given(st.lists(drafts, min_size=1, max_size=5))
        def check(drafts: list[Draft]) -> None:
            requests = runner.run(recorder.hear(wire, drafts, concurrency=1))
            found = [contract().check(request) for request in requests]
            if wire == "v1":
                said = [(V1_CALLS[draft.kind], sorted(parts_of(draft).items())) for draft in drafts]
                heard = [
                    ((request.method, template), sorted(parts.items()))
                    for request, (template, parts) in zip(requests, found, strict=True)
                ]
                assert sorted(heard) == sorted(said)

        try:
            check()
        finally:
            runner.run(recorder.stop())


# ---------------------------------------------------------------------------------------------------------- sizes

_BASE: Final = len(operations.encode_event("u-0", "e", {"p": ""}, 1_700_000_000, ULID, 0.0, lambda: ULID))


def event_of_size(person: int, nbytes: int) -> Draft:
    """An event that takes exactly so many bytes."""
    return operations.event(f"u-{person}", "e", {"p": "x" * (nbytes - _BASE)}, timestamp=1_700_000_000, id=ULID)


sizes = st.one_of(st.integers(_BASE, 32_000), st.sampled_from([_BASE, 16_000, 31_999, 32_000]))


@st.composite
def mixes(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Persons and sizes: of every sort, or many of one size, whose sums come close to the limit."""
    if draw(st.booleans()):
        return draw(st.lists(st.tuples(st.integers(0, 9), sizes), min_size=1, max_size=80))
    return [(0, draw(sizes))] * draw(st.integers(1, 80)) + [(1, draw(sizes))]


def test_a_batch_is_never_too_large_and_never_empty() -> None:
    """Whatever sizes the operations have, every body is below 500,000 bytes and has an operation, and all arrive."""
    with asyncio.Runner() as runner:
        recorder = Recorder()
        runner.run(recorder.start())

        @settings(max_examples=60, deadline=None)
        @given(mixes(), st.sampled_from([None, 1, 7, 50]))
        def check(mix: list[tuple[int, int]], batch_size: int | None) -> None:
            recorder.requests.clear()
            drafts = [event_of_size(person, size) for person, size in mix]
            requests = runner.run(recorder.hear("v2", drafts, batch_size=batch_size))
            assert {request.raw_path for request in requests} == {"/api/v2/batch"}
            assert max(len(request.body) for request in requests) < 500_000
            batches = [request.batch for request in requests]
            assert all(batches)
            assert max(map(len, batches)) <= (batch_size or 2_000)
            every = [operation for batch in batches for operation in batch]
            sent = [(operation["identifiers"]["id"], len(orjson.dumps(operation))) for operation in every]
            assert sorted(sent) == sorted((f"u-{person}", size) for person, size in mix)

        try:
            check()
        finally:
            runner.run(recorder.stop())


async def test_a_body_is_filled_to_its_last_byte() -> None:
    """Operations that make a body of exactly 499,999 bytes go in one call, and with one byte more in two."""
    envelope = len(b'{"batch":[]}')
    room = 499_999 - envelope - 15 * 32_000 - 15
    async with recording() as recorder:
        for last, calls in ((room, 1), (room + 1, 2)):
            drafts = [event_of_size(1, 32_000)] * 15 + [event_of_size(2, last)]
            requests = await recorder.hear("v2", drafts, batch_size=100)
            assert len(requests) == calls
            assert (max(len(request.body) for request in requests) == 499_999) == (calls == 1)


def test_an_operation_over_32_kb_never_leaves() -> None:
    """One byte above the limit is refused when it is said."""
    operations.encode(event_of_size(1, 32_000), now=0.0, new_id=lambda: ULID)
    with pytest.raises(InvalidOperationError) as caught:
        operations.encode(event_of_size(1, 32_001), now=0.0, new_id=lambda: ULID)
    assert (caught.value.limit, caught.value.actual) == (32_000, 32_001)
