"""How operations change the workspace, without HTTP."""

from hypothesis import given
from hypothesis import strategies as st

from cio_batch.simulator import Workspace
from cio_batch.simulator.workspace import SeenIds

from .wire import event, merge, person, thing, ulid


def workspace_after(*operations: dict[str, object], keep: bool = True) -> Workspace:
    """Return a workspace to which these operations were applied."""
    workspace = Workspace(keep=keep)
    for operation in operations:
        workspace.apply(operation)
    return workspace


def test_an_event_is_stored_with_its_name_trimmed() -> None:
    """An event keeps id, timestamp and attributes, and loses the space around its name."""
    stored = workspace_after(event(name="  purchase ")).person("id", "42").events
    assert stored == [
        {
            "action": "event",
            "name": "purchase",
            "id": ulid(1),
            "timestamp": 1_764_000_000,
            "attributes": {"n": 1},
        }
    ]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_a_repeated_ulid_is_ignored_and_the_first_order_kept(numbers: list[int]) -> None:
    """However often events come again, each is stored once, in order of first arrival, and repeats are counted."""
    workspace = workspace_after(*(event(number=number) for number in numbers))
    firsts = list(dict.fromkeys(numbers))
    stored = workspace.person("id", "42")
    assert [each["attributes"]["n"] for each in stored.events] == firsts
    assert [each["attributes"]["n"] for each in stored.operations] == firsts
    assert [each["attributes"]["n"] for each in stored.first_arrivals] == firsts
    assert workspace.applied["person.event"] + workspace.duplicates_ignored == len(numbers)


def test_a_ulid_is_unique_over_the_workspace_and_in_either_case() -> None:
    """The same ULID for another person, or in lower case, is a repeat."""
    lower = ulid(11).lower()
    assert lower != ulid(11)
    workspace = workspace_after(event("a", 11), event("b", 11), event("a", id=lower))
    assert workspace.duplicates_ignored == 2
    assert not workspace.person("id", "b").exists


def test_an_event_without_an_id_is_stored_each_time() -> None:
    """Nothing makes a repeat harmless where there is no ULID."""
    page = person("page", name="/")
    assert len(workspace_after(page, page).person("id", "42").events) == 2


def test_first_arrivals_lists_a_repeated_identify_once() -> None:
    """A retry of an identify is applied again, and does not hide the order in which a client began."""
    first, second = person("identify", attributes={"plan": "a"}), person("identify", attributes={"plan": "b"})
    reordered = {name: first[name] for name in reversed(first)}
    workspace = workspace_after(first, second, reordered)
    found = workspace.person("id", "42")
    assert found.operations == [first, second, first]
    assert found.first_arrivals == [first, second]
    assert found.attributes == {"plan": "a"}
    assert workspace.applied == {"person.identify": 3}


def test_an_older_timestamp_does_not_overwrite_a_newer_one() -> None:
    """The timestamp of an identify orders the updates of each attribute."""
    workspace = workspace_after(
        person("identify", timestamp=200, attributes={"plan": "new"}),
        person("identify", timestamp=100, attributes={"plan": "old", "city": "Ulm"}),
    )
    assert workspace.person("id", "42").attributes == {"plan": "new", "city": "Ulm"}


def test_update_only_creates_no_one() -> None:
    """An identify with _update changes an existing person and ignores any other."""
    update = person("identify", attributes={"_update": True, "plan": "a"})
    workspace = workspace_after(update)
    assert not workspace.person("id", "42").exists
    assert workspace.ignored == {"update_only": 1}
    workspace.apply(person("identify"))
    workspace.apply(update)
    assert workspace.person("id", "42").attributes == {"plan": "a"}


def test_delete_clears_the_state_and_keeps_the_log() -> None:
    """A deleted person has no state, and the operations still tell what happened."""
    device = {"token": "t", "platform": "ios"}
    operations = [
        person("identify", attributes={"a": 1}),
        event(),
        person("add_device", device=device),
        person("delete"),
    ]
    found = workspace_after(*operations).person("id", "42")
    assert (found.exists, found.deleted) == (False, 1)
    assert (found.attributes, found.events, found.devices) == ({}, [], {})
    assert found.operations == operations


def test_devices_are_keyed_by_token() -> None:
    """The same token replaces, another adds, delete removes."""
    workspace = workspace_after(
        person("add_device", device={"token": "a", "platform": "ios"}),
        person("add_device", device={"token": "a", "platform": "android"}),
        person("add_device", device={"token": "b", "platform": "ios"}),
        person("delete_device", device={"token": "b"}),
    )
    assert workspace.person("id", "42").devices == {"a": {"token": "a", "platform": "android"}}


def test_a_suppressed_person_ignores_everything_until_unsuppressed() -> None:
    """Suppression empties the person and ignores what follows; unsuppress brings nothing back."""
    workspace = workspace_after(
        person("identify", attributes={"a": 1}),
        person("suppress"),
        person("identify", attributes={"b": 2}),
        event(number=1),
        merge("42", "43"),
    )
    found = workspace.person("id", "42")
    assert (found.exists, found.suppressed, found.attributes) == (False, True, {})
    assert workspace.ignored == {"suppressed": 3}
    assert [each["action"] for each in found.first_arrivals] == ["identify", "suppress", "identify", "event", "merge"]

    workspace.apply(person("unsuppress"))
    assert (found.exists, found.suppressed) == (False, False)
    workspace.apply(event(number=1))
    assert len(found.events) == 1


def test_a_suppressed_person_joins_neither_an_object_nor_a_segment() -> None:
    """What names a suppressed person among others has its effect on the others alone."""
    others: list[dict[str, object]] = [{"identifiers": {"id": name}} for name in ("42", "43")]
    people = [{"id": name} for name in ("42", "43")]
    workspace = workspace_after(
        person("suppress"),
        thing("add_relationships", cio_relationships=others),
        {"type": "segment", "action": "add_customers", "identifiers": {"id": 7}, "people": people},
    )
    assert list(workspace.object("1", "acme").relationships) == [("id", "43")]
    assert workspace.segments == {7: {("id", "43")}}
    assert not workspace.person("id", "42").exists


def test_merge_moves_the_secondary_into_the_primary() -> None:
    """The primary keeps what it has, gains the rest, and the secondary is gone."""
    related = [{"identifiers": {"object_type_id": "1", "object_id": "acme"}, "relationship_attributes": {"r": 1}}]
    workspace = workspace_after(
        person("identify", "a", attributes={"plan": "pro", "city": ""}),
        person("identify", "b", attributes={"plan": "free", "city": "Ulm"}, cio_relationships=related),
        event("a", 1),
        event("b", 2),
        person("add_device", "b", device={"token": "t", "platform": "ios"}),
        {"type": "segment", "action": "add_customers", "identifiers": {"id": 7}, "people": [{"id": "b"}]},
        merge("a", "b"),
    )
    primary, secondary = workspace.person("id", "a"), workspace.person("id", "b")
    assert primary.attributes == {"plan": "pro", "city": "Ulm"}
    assert [each["attributes"]["n"] for each in primary.events] == [1, 2]
    assert list(primary.devices) == ["t"]
    assert primary.relationships == {("1", "acme"): {"r": 1}}
    assert workspace.object("1", "acme").relationships == {("id", "a"): {"r": 1}}
    assert workspace.segments == {7: {("id", "a")}}
    assert (secondary.exists, secondary.events, secondary.merged_into) == (False, [], ("id", "a"))
    assert primary.operations[-1] == secondary.operations[-1] == merge("a", "b")


def test_relationships_are_the_same_from_both_sides() -> None:
    """A relationship said of the person or of the object is one thing; null removes its attribute."""
    target = {"object_type_id": "1", "object_id": "acme"}
    workspace = workspace_after(
        person(
            "add_relationships",
            cio_relationships=[{"identifiers": target, "relationship_attributes": {"role": "admin", "x": 1}}],
        ),
        thing(
            "add_relationships",
            cio_relationships=[{"identifiers": {"id": "42"}, "relationship_attributes": {"x": None}}],
        ),
    )
    assert workspace.person("id", "42").relationships == {("1", "acme"): {"role": "admin"}}
    assert workspace.object("1", "acme").relationships == {("id", "42"): {"role": "admin"}}
    assert len(workspace.object("1", "acme").operations) == len(workspace.person("id", "42").operations) == 2
    workspace.apply(thing("delete"))
    assert workspace.person("id", "42").relationships == {}
    assert not workspace.object("1", "acme").exists


def test_object_attributes_are_removed_by_null_and_by_an_empty_string() -> None:
    """An object keeps what is not removed."""
    workspace = workspace_after(
        thing("identify", attributes={"a": 1, "b": 2, "c": 3}),
        thing("identify", attributes={"a": None, "b": ""}),
    )
    assert workspace.object("1", "acme").attributes == {"c": 3}


def test_an_anonymous_relationship_belongs_to_the_anonymous_person() -> None:
    """identify_anonymous relates an object to an anonymous_id."""
    workspace = workspace_after(
        thing("identify_anonymous", cio_relationships=[{"identifiers": {"anonymous_id": "x"}}], anonymous_id="y")
    )
    assert set(workspace.object("1", "acme").relationships) == {("anonymous", "x"), ("anonymous", "y")}


def test_without_keep_only_counts_and_state_remain() -> None:
    """keep=False forgets each event and still counts it, and repeats, exactly."""
    operations = [event(number=number % 50) for number in range(80)]
    workspace = workspace_after(*operations, person("identify", attributes={"a": 1}), keep=False)
    found = workspace.person("id", "42")
    assert (found.events, found.operations, found.first_arrivals) == ([], [], [])
    assert (found.operation_count, found.attributes) == (51, {"a": 1})
    assert workspace.duplicates_ignored == 30


@given(st.integers(1, 20), st.lists(st.integers(0, 60), max_size=200))
def test_seen_ids_never_forgets_the_latest(limit: int, numbers: list[int]) -> None:
    """A bounded set of ids calls nothing new that is among the latest ``limit`` new ones, and stays bounded."""
    seen = SeenIds(limit)
    order: list[int] = []
    for number in numbers:
        is_new = seen.add(ulid(number))
        assert not (is_new and number in order[-limit:])
        if is_new:
            order.append(number)
        assert len(seen._young) + len(seen._old) <= 2 * limit
