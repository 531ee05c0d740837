"""The simulator against Customer.io's published document: its calls, its statuses, its bodies.

The document is not part of this repository; where it is not there, these tests are skipped.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from cio_batch.simulator import Simulator
from cio_batch.simulator.app import check_broadcast, check_message
from cio_batch.simulator.checks import check_operation
from cio_batch.simulator.routes import ROUTES, find_target

from .test_app import BROADCASTS, MESSAGES
from .test_checks import VALID
from .wire import basic, event, merge, person

SPEC = Path(__file__).resolve().parents[2].parent / "shared" / "spec" / "track-openapi.json"

pytestmark = pytest.mark.skipif(not SPEC.exists(), reason="the published track-openapi.json is not here")

# Statuses that the document leaves out where the call can meet them: it lists 400 for some calls of v1 only,
# though every call has limits, and no 401 for a form, though it asks for credentials.
UNDOCUMENTED = {
    ("identify", 400),
    ("report_metric", 400),
    ("report_push", 400),
    ("suppress", 400),
    ("unsuppress", 400),
    ("delete", 400),
    ("submit_form", 401),
}

LONG = "i" * 151

# The document has the App API's schemas, not its paths; it has none for WhatsApp.
TRACK_ROUTES = [route for route in ROUTES if route.api == "track"]
SCHEMAS = {
    "email": "sendemail",
    "push": "sendpush",
    "sms": "sendsms",
    "inbox_message": "sendinbox",
    "in_app": "sendinapp",
}

# name, path, a body that is right, and a path and body that are wrong
CALLS: list[tuple[str, str, Any, str | None, Any]] = [
    ("batch", "/api/v2/batch", {"batch": [event()]}, "/api/v2/batch", {"batch": 1}),
    ("entity", "/api/v2/entity", event(), "/api/v2/entity", event(name="")),
    ("track", "/api/v1/customers/42/events", {"name": "n"}, "/api/v1/customers/42/events", {}),
    ("identify", "/api/v1/customers/42", {"a": 1}, f"/api/v1/customers/{LONG}", {}),
    ("delete", "/api/v1/customers/42", {}, f"/api/v1/customers/{LONG}", {}),
    (
        "add_device",
        "/api/v1/customers/42/devices",
        {"device": {"id": "t", "platform": "ios"}},
        "/api/v1/customers/42/devices",
        {"device": {"token": "t", "platform": "ios"}},
    ),
    ("delete_device", "/api/v1/customers/42/devices/t", {}, f"/api/v1/customers/{LONG}/devices/t", {}),
    ("suppress", "/api/v1/customers/42/suppress", {}, f"/api/v1/customers/{LONG}/suppress", {}),
    ("unsuppress", "/api/v1/customers/42/unsuppress", {}, f"/api/v1/customers/{LONG}/unsuppress", {}),
    ("track_anonymous", "/api/v1/events", {"name": "n", "anonymous_id": "x"}, "/api/v1/events", {"name": 1}),
    (
        "merge",
        "/api/v1/merge_customers",
        {"primary": {"id": "1"}, "secondary": {"id": "2"}},
        "/api/v1/merge_customers",
        {"primary": {"id": "1", "email": "a@b.c"}, "secondary": {"id": "2"}},
    ),
    ("add_customers", "/api/v1/segments/7/add_customers", {"ids": ["a"]}, "/api/v1/segments/x/add_customers", {}),
    (
        "remove_customers",
        "/api/v1/segments/7/remove_customers",
        {"ids": ["a"]},
        "/api/v1/segments/7/remove_customers",
        {},
    ),
    ("submit_form", "/api/v1/forms/f/submit", {"data": {"id": "1"}}, "/api/v1/forms/f/submit", {"data": {}}),
    ("report_metric", "/api/v1/metrics", {"delivery_id": "d", "metric": "opened"}, "/api/v1/metrics", {}),
    (
        "report_push",
        "/api/v1/push/events",
        {"delivery_id": "d", "event": "opened", "device_id": "t"},
        "/api/v1/push/events",
        {},
    ),
    ("unsubscribe", "/unsubscribe/d", {"unsubscribe": True}, "/unsubscribe/d", {"unsubscribe": 1}),
    ("region", "/api/v1/accounts/region", None, None, None),
]


@cache
def document() -> Any:
    """Return the published document."""
    return json.loads(SPEC.read_text())


@cache
def registry() -> Registry[Any]:
    """Return a registry in which the document's references can be followed."""
    resource = DRAFT202012.create_resource(document())
    return Registry().with_resource("urn:track", resource)


def validator(pointer: str) -> Draft202012Validator:
    """Return a validator for the schema at a JSON pointer into the document."""
    return Draft202012Validator({"$ref": f"urn:track#{pointer}"}, registry=registry())


def response_pointer(name: str, status: int) -> str | None:
    """Return where the document describes this answer, or None where it does not."""
    route = next(route for route in ROUTES if route.name == name)
    response = document()["paths"][route.template][route.method.lower()]["responses"].get(str(status))
    if response is None:
        return None
    if "$ref" in response:
        return str(response["$ref"]).removeprefix("#")
    path = route.template.replace("~", "~0").replace("/", "~1")
    return f"/paths/{path}/{route.method.lower()}/responses/{status}"


def look_up(pointer: str) -> Any:
    """Return what stands at a JSON pointer into the document."""
    found = document()
    for part in pointer.split("/")[1:]:
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


async def check_answer(name: str, response: aiohttp.ClientResponse) -> None:
    """Check the status and the body of an answer against the document."""
    pointer = response_pointer(name, response.status)
    if pointer is None:
        assert (name, response.status) in UNDOCUMENTED
        return
    content = look_up(pointer).get("content", {})
    if "application/json" in content:
        assert response.content_type == "application/json"
        # A reference is a URI: the braces of a path in the pointer must be escaped.
        schema = f"{pointer}/content/application~1json/schema".replace("{", "%7B").replace("}", "%7D")
        validator(schema).validate(await response.json())
    elif response.status == 200:
        assert await response.json() == {}
    elif response.status == 204:
        assert await response.read() == b""


def test_every_call_of_the_document_is_there() -> None:
    """The simulator has each path and method of the published Track API, and no other."""
    methods = {"get", "put", "post", "delete", "patch"}
    published = {
        (method.upper(), template)
        for template, operations in document()["paths"].items()
        for method in operations
        if method in methods
    }
    assert {(route.method, route.template) for route in TRACK_ROUTES} == published
    assert {name for name, *_ in CALLS} == {route.name for route in TRACK_ROUTES}


@pytest.mark.parametrize("route", TRACK_ROUTES, ids=lambda route: route.name)
def test_credentials_are_asked_where_the_document_asks(route: Any) -> None:
    """A call asks for credentials exactly where it has a security requirement."""
    operation = document()["paths"][route.template][route.method.lower()]
    assert route.needs_auth == bool(operation.get("security", document().get("security")))


@pytest.mark.parametrize(("name", "path", "body", "wrong_path", "wrong_body"), CALLS, ids=[call[0] for call in CALLS])
async def test_answers_are_those_of_the_document(
    sim: Simulator,
    client: aiohttp.ClientSession,
    name: str,
    path: str,
    body: Any,
    wrong_path: str | None,
    wrong_body: Any,
) -> None:
    """Right, wrong and unauthorized calls get documented statuses with bodies of the documented form."""
    method = next(route.method for route in ROUTES if route.name == name)
    target = find_target(method, path)
    assert not isinstance(target, int)
    assert target.route.name == name
    async with client.request(method, path, json=body) as response:
        assert response.status == (204 if name == "submit_form" else 200), await response.text()
        await check_answer(name, response)
    if wrong_path is not None:
        async with client.request(method, wrong_path, json=wrong_body) as response:
            assert response.status == 400
            await check_answer(name, response)
    if target.route.needs_auth:
        async with client.request(method, path, json=body, headers=basic("site", "no")) as response:
            assert response.status == 401
            await check_answer(name, response)


async def test_a_207_is_that_of_the_document(client: aiohttp.ClientSession) -> None:
    """A batch with an invalid operation answers with the documented list of errors."""
    async with client.post("/api/v2/batch", json={"batch": [event(), event(name="")]}) as response:
        assert response.status == 207
        await check_answer("batch", response)
        assert set((await response.json())["errors"][0]) == {"batch_index", "reason", "field", "message"}


def operation_schemas() -> list[str]:
    """Return the names of the schemas of all operations."""
    schemas = document()["components"]["schemas"]
    groups = [schemas["person_operations"]["oneOf"], schemas["object_operations"]["oneOf"]]
    references = [str(each["$ref"]) for group in groups for each in group]
    return [*(reference.rpartition("/")[2] for reference in references), "delivery_operations"]


def test_the_documents_own_examples_pass() -> None:
    """Each operation's example in the document is valid here."""
    schemas = document()["components"]["schemas"]
    names = operation_schemas()
    assert len(names) == 18
    for name in names:
        example = dict(schemas[name]["example"])
        if name == "person_merge":
            # The document leaves two required fields out of its example.
            example |= {"type": "person", "action": "merge"}
        assert list(check_operation(example)) == [], name


@pytest.mark.parametrize("operation", VALID)
def test_what_passes_here_fits_the_document(operation: dict[str, Any]) -> None:
    """No operation is accepted that the schema of its kind and action would refuse."""
    schemas = document()["components"]["schemas"]
    for name in operation_schemas():
        example = {"type": "person", "action": "merge"} | schemas[name]["example"]
        if (example["type"], example["action"]) == (operation["type"], operation["action"]):
            operation = without_loose_parts(operation)
            validator(f"/components/schemas/{name}").validate(operation)
            return
    pytest.fail("no schema has this type and action")


def without_loose_parts(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the operation without what the schemas cannot tell apart: who is related to an object.

    Their ``oneOf`` there has no ``required``, so that every identifier fits all three of its branches.
    """
    if operation["type"] != "object" or "cio_relationships" not in operation:
        return operation
    return operation | {"cio_relationships": [{} for _ in operation["cio_relationships"]]}


@pytest.mark.parametrize(
    "operation",
    [
        person("identify", timestamp="1"),
        person("event"),
        person("add_device", device={"token": "t"}),
        person("add_device", device={"token": "t", "platform": "symbian"}),
        person("add_relationships"),
        {**merge("1", "2"), "secondary": {"phone": "+1"}},
        {"type": "person", "action": "delete"},
        {"type": "delivery", "action": "event", "identifiers": {"id": "d"}, "name": "clicked", "attributes": {}},
    ],
)
def test_what_the_document_refuses_is_refused_here(operation: dict[str, Any]) -> None:
    """An operation that fits no schema of the document does not pass."""
    everything = "/paths/~1api~1v2~1entity/post/requestBody/content/application~1json/schema"
    assert not validator(everything).is_valid(operation)
    assert check_operation(operation)


async def test_answers_of_the_app_api_fit_the_document(app: aiohttp.ClientSession) -> None:
    """The id of a delivery and the trigger of a broadcast have the documented types."""
    async with app.post("/v1/send/email", json={"transactional_message_id": 1, "to": "a@b.c"}) as response:
        answer = await response.json()
    assert answer.keys() == {"delivery_id", "queued_at"}
    validator("/components/schemas/delivery_id").validate(answer["delivery_id"])
    assert type(answer["queued_at"]) is int
    async with app.post("/v1/campaigns/3/triggers", json={"ids": ["1"]}) as response:
        answer = await response.json()
    assert answer.keys() == {"id"}
    validator("/components/schemas/broadcastTriggerObject").validate(answer)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_documents_own_messages_pass(kind: str) -> None:
    """The example of each kind is valid here."""
    example = document()["components"]["schemas"][SCHEMAS[kind]]["example"]
    assert check_message(kind, example, 1_764_000_000) == []


@pytest.mark.parametrize(("kind", "request_body"), MESSAGES)
def test_a_message_that_passes_here_fits_the_document(kind: str, request_body: dict[str, Any]) -> None:
    """No message is accepted that the schema of its kind would refuse."""
    if kind in SCHEMAS:
        validator(f"/components/schemas/{SCHEMAS[kind]}").validate(request_body)


@pytest.mark.parametrize(
    ("kind", "request_body"),
    [
        ("email", {"transactional_message_id": 1}),
        ("email", {"transactional_message_id": True, "to": "a@b.c"}),
        ("email", {"transactional_message_id": 1, "to": "a@b.c", "identifiers": {"phone": "+1"}}),
        ("email", {"transactional_message_id": 1, "to": "a@b.c", "identifiers": {"id": "1", "email": "a@b.c"}}),
        ("email", {"transactional_message_id": 1, "to": "a@b.c", "tracked": "yes"}),
        ("push", {"identifiers": {"id": "1"}}),
        ("push", {"transactional_message_id": 1}),
        ("push", {"transactional_message_id": 1, "identifiers": {"id": "1"}, "sound": "loud"}),
        ("push", {"transactional_message_id": 1, "identifiers": {"id": "1"}, "custom_device": {"token": "t"}}),
        ("sms", {"transactional_message_id": 1, "identifiers": {"id": "1"}}),
        ("inbox_message", {"transactional_message_id": 1}),
        ("in_app", {"identifiers": {"id": "1"}}),
        ("in_app", {"transactional_message_id": 1, "identifiers": {"id": "1"}, "send_at": "soon"}),
    ],
)
def test_a_message_that_the_document_refuses_is_refused_here(kind: str, request_body: dict[str, Any]) -> None:
    """A message that does not fit the schema of its kind does not pass."""
    assert not validator(f"/components/schemas/{SCHEMAS[kind]}").is_valid(request_body)
    assert check_message(kind, request_body, 1_764_000_000)


def broadcast_schemas() -> dict[str, Draft202012Validator]:
    """Return a validator for each form of a broadcast, by its title: the first form fits all the others as well."""
    pointer = "/components/schemas/campaignRequest/oneOf"
    titles = [form["title"] for form in look_up(pointer)]
    return {title: validator(f"{pointer}/{index}") for index, title in enumerate(titles)}


@pytest.mark.parametrize("request_body", BROADCASTS)
def test_a_broadcast_that_passes_here_fits_the_document(request_body: dict[str, Any]) -> None:
    """No trigger is accepted that the form with its audience would refuse."""
    titles = {
        "recipients": "Custom recipients",
        "emails": "Emails",
        "ids": "IDs",
        "per_user_data": "User Maps",
        "data_file_url": "Data file URL",
    }
    (title,) = [titles[name] for name in request_body if name in titles] or ["Default audience"]
    if "recipients" in request_body:
        # The forms of a filter have no required property, so that each fits all of them.
        assert any(
            validator(f"/components/schemas/{form}").is_valid(request_body["recipients"])
            for form in ("andAudienceFilter", "orAudienceFilter", "segmentAudienceFilter", "attributeAudienceFilter")
        )
        return
    broadcast_schemas()[title].validate(request_body)


@pytest.mark.parametrize(
    ("title", "request_body"),
    [
        ("Default audience", {"data": []}),
        ("Default audience", {"id_ignore_missing": 1}),
        ("IDs", {"ids": "1"}),
        ("IDs", {"ids": ["1"] * 10_001}),
        ("IDs", {"ids": [None]}),
        ("Emails", {"emails": {}}),
        ("User Maps", {"per_user_data": [{"data": {}}]}),
        ("User Maps", {"per_user_data": [{"id": "1", "email": "a@b.c"}]}),
        ("User Maps", {"per_user_data": [{"id": "1", "data": 1}]}),
        ("Data file URL", {"data_file_url": 1}),
    ],
)
def test_a_broadcast_that_the_document_refuses_is_refused_here(title: str, request_body: dict[str, Any]) -> None:
    """A trigger that does not fit the form with its audience does not pass."""
    assert not broadcast_schemas()[title].is_valid(request_body)
    assert check_broadcast(request_body)
