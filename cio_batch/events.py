"""Typed events and typed attributes of people: a taxonomy that the editor, the type checker and the run time know.

    class PlanChanged(CioEvent, name="plan_changed"):
        from_: str                      # "from" on the wire: one trailing underscore is dropped
        to: str
        mrr: float
        coupon: str | None = None       # stays off the wire unless it is set

    PlanChanged(from_="free", to="pro", mrr=49.0)

Rules:

1. What can be known when a class is made is checked then: its name, the names of its fields, their types and defaults.
   A fault there is a ``TypeError`` that names class and field.
2. An instance that exists is right: types are checked when it is made, and it is frozen. A fault there is an
   :class:`~cio_batch.errors.EventSchemaError`.
3. A field that is ``None`` stays off the wire.
4. No ``repr`` shows a value.

The types that a field may have stand in :mod:`cio_batch.values`. Underneath is attrs: defaults, validators,
``attrs.field(factory=list)``, equality. Fields are given by name only, so that a subclass may add required ones.
Classes keep their ``__dict__``: with slots an event would cost 5 % less, but two mix-ins could not be combined, and
attrs would have to make each class a second time.

Must not know: the clock, asyncio, aiohttp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal, cast, dataclass_transform

import attrs

from cio_batch.annotations import Scope, definer_namespace, read_fields
from cio_batch.compiled import compile_check, compile_write
from cio_batch.errors import EventSchemaError
from cio_batch.values import Field, type_name

MAX_NAME_BYTES: Final = 100


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(attrs.field,))
class Declared:
    """What :class:`CioEvent` and :class:`UserAttributes` have in common."""

    declared_fields: ClassVar[tuple[Field, ...]] = ()
    """The fields, in their order: those of base classes first."""

    def wire_data(self) -> dict[str, Any]:
        """Return what stands on the wire: the set fields by their names there.

        The dict is the caller's. Lists and dicts in it may be those that were given; datetimes and the like are
        turned into JSON by the encoder.
        """
        raise NotImplementedError  # each class gets its own, made for its fields

    def __attrs_post_init__(self) -> None:
        """Check the values; likewise made for each class."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Name the fields that are set, without their values."""
        fields = (field.attribute for field in self.declared_fields)
        given = ", ".join(f"{name}=..." for name in fields if getattr(self, name, None) is not None)
        return f"{type(self).__qualname__}({given})"


class CioEvent(Declared):
    """The base of typed events: ``class SignedUp(CioEvent, name="signed_up"): ...``.

    A class without ``name=`` is abstract: a base or a mix-in whose fields the events below it share.

    Three fields are more than data, because Customer.io lets an event override the settings of the campaign that it
    triggers: ``recipient`` (to whom the message goes), ``from_address`` and ``reply_to``. Declare them as ``str`` or
    ``str | None`` like any other field where an event is meant to do that.

    Raises:
        TypeError: The class cannot be: its name is blank or longer than 100 bytes, or a field cannot be declared.
        EventSchemaError: A value does not fit its field. Nothing was made.

    Source: Track API v2, schema ``person_event``.
    """

    event_name: ClassVar[str] = ""
    """The name on the wire; ``""`` of an abstract class."""

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            check_name(cls.__qualname__, name)
        cls.event_name = "" if name is None else name
        _make(cls, cls.event_name)


def check_name(where: str, name: object) -> None:
    """Check the name of an event.

    Raises:
        TypeError: It is no text, blank, longer than 100 bytes, or has space around it, which the service removes.
    """
    fault = None
    if not isinstance(name, str):
        fault = f"must be text, got {type(name).__name__}"
    elif not name or name.isspace():
        fault = "must not be empty"
    elif name != name.strip():
        fault = "must not begin or end with space: the service removes it"
    else:
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            fault = "holds a lone surrogate, which is not valid text"
        else:
            if size > MAX_NAME_BYTES:
                fault = f"is {size} bytes, at most {MAX_NAME_BYTES} are allowed"
    if fault is not None:
        msg = f"{where}: the event's name {fault}"
        raise TypeError(msg)


class UserAttributes(Declared):
    """The base of typed attributes of people, for ``identify``. Use it as it is, or subclass it to add your own.

        class Customer(UserAttributes):
            seats: int

        await tracker.identify("user-1", Customer(email="ada@example.com", plan="pro", seats=5))

    Attributes:
        email: The address that messages go to.
        first_name: The given name.
        last_name: The family name.
        plan: The plan.
        company: The company.
        created_at: When the person signed up: unix seconds.
        last_seen_at: When the person was last seen: unix seconds.
        extra: Further attributes, by name; they stand beside the others on the wire, also those that are ``None``. One
            that has the name of a declared field is an error.

    Raises:
        EventSchemaError: A value does not fit its field. Nothing was made.
    """

    email: str
    first_name: str | None = None
    last_name: str | None = None
    plan: Literal["free", "starter", "pro", "enterprise"] | None = None
    company: str | None = None
    created_at: int | None = None
    last_seen_at: int | None = None
    extra: Mapping[str, object] = attrs.field(factory=dict[str, object])

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _make(cls, cls.__qualname__)


# ------------------------------------------------------------------------------------------- how a class is made


def _make(cls: type[Declared], called: str) -> None:
    """Apply attrs to a class that was just declared, and give it its own check and its own ``wire_data``.

    Args:
        cls: The class; it is changed in place.
        called: What errors call an instance; ``""`` for a class that has none.
    """
    for ours, instead in {"__attrs_post_init__": "validators of attrs", "wire_data": "fields"}.items():
        if ours in vars(cls) and cls is not UserAttributes:
            msg = f"{cls.__qualname__}: {ours} is made for each class by its fields; use {instead} instead"
            raise TypeError(msg)
    attrs.frozen(cls, slots=False, kw_only=True, auto_attribs=True, repr=False)
    beyond = frozenset({"extra"}) if issubclass(cls, UserAttributes) else frozenset[str]()
    taken = {*dir(Declared), "event_name"} | (beyond if cls is not UserAttributes else set[str]())
    for attribute in attrs.fields(cast("Any", cls)):
        if attribute.inherited:
            continue
        name = attribute.name
        if not attribute.init:
            msg = (
                f"{cls.__qualname__}.{name}: every field is given when an instance is made; init=False is not possible"
            )
            raise TypeError(msg)
        if name in taken:
            msg = f"{cls.__qualname__}.{name}: the name is taken; write {name}_, which is {name!r} on the wire"
            raise TypeError(msg)
    fields = read_fields(cls, Scope(definer_namespace()), beyond=beyond)
    cls.declared_fields = fields
    own: Any = cls
    own.wire_data = compile_write(called, fields)
    own.__attrs_post_init__ = compile_check(called, fields, _refuse) if called else _refuse_abstract
    if beyond:
        own.wire_data = _with_extra(own.wire_data)
        own.__attrs_post_init__ = _also_extra(own.__attrs_post_init__)


def _refuse(self: Declared) -> None:
    """Find out what is wrong with an instance of which the quick check was not sure."""
    for field in self.declared_fields:
        fault = field.type.fault(field.wire, getattr(self, field.attribute))
        if fault is not None:
            called = self.event_name if isinstance(self, CioEvent) else type(self).__qualname__
            raise EventSchemaError(called, fault.path, fault.expected, fault.got)


def _refuse_abstract(self: Declared) -> None:
    name = type(self).__qualname__
    msg = f"{name} is abstract: it has no name on the wire; declare `class {name}(..., name=...)` or a subclass"
    raise TypeError(msg)


def _with_extra(write: Callable[[Any], dict[str, Any]]) -> Callable[[UserAttributes], dict[str, Any]]:
    def wire_data(self: UserAttributes) -> dict[str, Any]:
        return {**write(self), **self.extra}

    return wire_data


def _also_extra(check: Callable[[Any], None]) -> Callable[[UserAttributes], None]:
    def check_all(self: UserAttributes) -> None:
        check(self)
        _check_extra(self)

    return check_all


def _check_extra(self: UserAttributes) -> None:
    called = type(self).__qualname__
    extra = cast("object", self.extra)
    if not isinstance(extra, Mapping):
        raise EventSchemaError(called, "extra", "a mapping", type_name(extra))
    declared = {field.wire for field in self.declared_fields}
    for name in cast("Mapping[object, object]", extra):
        if type(name) is not str:
            raise EventSchemaError(called, "extra (a key)", "str", type_name(name))
        if name in declared:
            raise EventSchemaError(called, f"extra.{name}", "a name that is not a declared field", "a declared one")


_make(UserAttributes, UserAttributes.__qualname__)
