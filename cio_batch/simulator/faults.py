"""Which fault the next call meets.

Rules:

1. What was ordered comes first, in the order of the orders; only then does chance decide.
2. A call draws once, so it meets one fault at most. Chance is a ``random.Random`` of our own: the same seed,
   rates and sequence of calls give the same faults.
3. ``injected`` counts a fault when it takes effect, not when it is drawn: a "partial" that meets a batch
   without a valid operation has done nothing, and an ordered fault is used up all the same.
4. What a "partial" or a "refuse" refused although it was valid is noted, so that it can be compared with what a client
   reports. What a "refuse" refused together with the rest of its batch may come again and be applied.
5. ``poison`` belongs to an operation, not to a call: it fires each time that operation comes, until it is cleared.

The kinds, and what the client sees:

==============  ==================================================  ========
kind            the answer                                          applied
==============  ==================================================  ========
latency         the right answer, ``latency`` seconds late          yes
rate_limit      429, with ``Retry-After`` (``"1"``)                 no
server_error    500, JSON                                           no
html_error      502, HTML                                           no
unavailable     503, plain text, ``Retry-After`` where given       no
partial         some valid operations refused: 207 (batch), 400     the rest
                or, for a broadcast, 422
refuse          400 for the whole call                              no
unauthorized    401, plain text; JSON from the App API              no
redirect        307 to ``location``                                 no
raw             exactly the bytes given, then the end               no
drop_before     connection closed before the body was read          no
drop_after      body read, connection closed without an answer      yes
black_hole      body read, no answer until the client goes away     no
==============  ==================================================  ========

This module must not know HTTP, asyncio or the workspace.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypedDict, Unpack, get_args

import attrs

from cio_batch.simulator.keys import Operation

Kind = Literal[
    "latency",
    "rate_limit",
    "server_error",
    "html_error",
    "unavailable",
    "partial",
    "refuse",
    "unauthorized",
    "redirect",
    "raw",
    "drop_before",
    "drop_after",
    "black_hole",
]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
ORDERED_ONLY: Final = frozenset[str]({"redirect", "raw"})
"""Kinds that mean nothing without options of their own, so that chance cannot draw them."""


class Options(TypedDict, total=False):
    """What can be said about a fault; each kind reads the options that concern it.

    Attributes:
        latency: Seconds by which "latency" delays the answer (0.2).
        retry_after: The ``Retry-After`` of "rate_limit" ("1") and "unavailable" (none): seconds or an HTTP
            date, or None for no header.
        partial_share: The chance of each valid operation to be refused by "partial" (0.1); one always is.
        indexes: The indexes that "partial" refuses, in place of chance.
        status: Another status than the kind's own.
        location: Where "redirect" points.
        headers: The headers of "raw"; ``Content-Length`` is added unless it is among them.
        body: The body of "raw".
    """

    latency: float
    retry_after: str | None
    partial_share: float
    indexes: Sequence[int]
    status: int
    location: str
    headers: Mapping[str, str]
    body: bytes


_STATUSES: Final[Mapping[str, int]] = {
    "rate_limit": 429,
    "server_error": 500,
    "html_error": 502,
    "unavailable": 503,
    "refuse": 400,
    "unauthorized": 401,
    "redirect": 307,
    "raw": 200,
}


def _check_share(_fault: "Fault", _attribute: object, value: float) -> None:
    if not 0 <= value <= 1:
        message = f"partial_share is a chance from 0 to 1, not {value}"
        raise ValueError(message)


def _check_kind(_fault: "Fault", _attribute: object, value: str) -> None:
    if value not in KINDS:
        message = f"no such fault: {value!r}; the kinds are {', '.join(KINDS)}"
        raise ValueError(message)


def _of(*types: type) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    # attrs' own instance_of, whose text shows the value; what comes over HTTP deserves a short answer.
    def check(_fault: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, types):
            message = f"{attribute.name} cannot be {type(value).__name__}"
            raise TypeError(message)

    return check


@attrs.frozen(kw_only=True)
class Fault:
    """One fault, with the options that it was ordered or configured with; see ``Options``."""

    kind: Kind = attrs.field(validator=_check_kind)
    latency: float = attrs.field(default=0.2, validator=attrs.validators.ge(0))
    retry_after: str | None = attrs.field(default=None, validator=_of(str, type(None)))
    partial_share: float = attrs.field(default=0.1, validator=_check_share)
    indexes: Sequence[int] = attrs.field(default=(), validator=_of(Sequence))
    status: int = attrs.field(default=0, validator=_of(int))
    location: str = attrs.field(default="", validator=_of(str))
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str], validator=_of(Mapping))
    body: bytes = attrs.field(default=b"", validator=_of(bytes))


class Faults:
    """Faults by order and by chance, and the count of those that took effect.

    Args:
        rates: The chance of each kind per call; together at most 1.
        seed: Of the random numbers.
        **options: What holds for every fault by chance, and for an ordered one that does not say otherwise.

    Attributes:
        injected: Faults that took effect, by kind; "poison" is among the kinds here.
        refused_operations: The operations that "partial" and "refuse" refused although they were valid, in order; more
            than once where they were refused more than once.
        poison: Says of an operation that a call which contains it is to be answered with ``poison_status``,
            nothing applied.
        poison_status: 500 unless set.

    Raises:
        ValueError: A kind is unknown or cannot be left to chance, a rate is negative, or all are over 1.
        TypeError: An option is unknown.
    """

    def __init__(self, rates: Mapping[Kind, float] | None = None, seed: int = 0, **options: Unpack[Options]) -> None:
        self.injected: Counter[str] = Counter()
        self.refused_operations: list[Operation] = []
        self._refused_alone: list[Operation] = []
        self.poison: Callable[[Operation], bool] | None = None
        self.poison_status = 500
        self._ordered: deque[Fault] = deque()
        self._rates: dict[Kind, float] = {}
        self._options: Options = {}
        self._random = random.Random(seed)
        self.mix(rates or {}, seed, **options)

    @property
    def rates(self) -> Mapping[Kind, float]:
        """The chance of each kind per call."""
        return dict(self._rates)

    @property
    def waiting(self) -> int:
        """How many ordered faults have not met their call yet."""
        return len(self._ordered)

    @property
    def rejected_ids(self) -> list[str]:
        """The ids of the events, pages and screens that were refused by themselves, in order.

        That is: those that "partial" named, and those that "refuse" refused in a call that held nothing else.
        """
        return [operation["id"] for operation in self._refused_alone if "id" in operation]

    def mix(self, rates: Mapping[Kind, float], seed: int = 0, **options: Unpack[Options]) -> None:
        """Set anew what chance does from the next call on; orders and counts stay.

        Args:
            rates: The chance of each kind per call; together at most 1.
            seed: Of the random numbers.
            **options: As for the constructor; those not given get their defaults.

        Raises:
            ValueError: As for the constructor; then nothing has changed.
            TypeError: As for the constructor.
        """
        for kind, rate in rates.items():
            self._fault(kind, options)
            if kind in ORDERED_ONLY:
                message = f"{kind} needs options of its own: order it"
                raise ValueError(message)
            if rate < 0:
                message = f"the rate of {kind} is negative: {rate}"
                raise ValueError(message)
        if sum(rates.values()) > 1 + 1e-9:
            message = f"the rates add up to more than 1: {sum(rates.values())}"
            raise ValueError(message)
        self._fault("latency", options)
        self._rates = dict(rates)
        self._options = options
        self._random = random.Random(seed)

    def order(self, kind: Kind, times: int = 1, **options: Unpack[Options]) -> None:
        """Let the next ``times`` calls meet this fault, after those ordered before.

        Args:
            kind: One of ``KINDS``.
            times: How many calls.
            **options: What differs from the options set for all.

        Raises:
            ValueError: The kind is unknown, or a redirect has no location.
            TypeError: An option is unknown.
        """
        fault = self._fault(kind, self._options | options)
        if kind == "redirect" and not fault.location:
            message = "a redirect needs a location"
            raise ValueError(message)
        self._ordered.extend([fault] * times)

    def clear(self) -> None:
        """Drop orders, rates and poison; the counts stay."""
        self._ordered.clear()
        self._rates = {}
        self.poison = None

    def draw(self) -> Fault | None:
        """Return the fault of the next call, or None."""
        if self._ordered:
            return self._ordered.popleft()
        if not self._rates:
            return None
        point = self._random.random()
        for kind, rate in self._rates.items():
            point -= rate
            if point < 0:
                return self._fault(kind, self._options)
        return None

    def count(self, kind: str) -> None:
        """Count a fault that took effect."""
        self.injected[kind] += 1

    def choose(self, fault: Fault, indexes: Sequence[int]) -> frozenset[int]:
        """Choose which of the valid operations a "partial" refuses; at least one where chance decides."""
        if fault.indexes:
            return frozenset(fault.indexes).intersection(indexes)
        chosen = [index for index in indexes if self._random.random() < fault.partial_share]
        if not chosen and indexes:
            chosen = [self._random.choice(indexes)]
        return frozenset(chosen)

    def note_named(self, operations: Sequence[Operation]) -> None:
        """Note valid operations that were refused by name."""
        self.refused_operations += operations
        self._refused_alone += operations

    def note_refused_call(self, operations: Sequence[Operation], size: int) -> None:
        """Note the valid operations of a call that was refused whole; ``size`` counts the invalid ones too."""
        self.refused_operations += operations
        if size == 1:
            self._refused_alone += operations

    def has_poison(self, operations: Sequence[Operation]) -> bool:
        """Say whether ``poison`` is true for one of the operations."""
        return self.poison is not None and any(map(self.poison, operations))

    @staticmethod
    def _fault(kind: Kind, options: Options) -> Fault:
        complete: Options = {"status": _STATUSES.get(kind, 0)}
        if kind == "rate_limit":
            complete["retry_after"] = "1"
        return Fault(kind=kind, **(complete | options))
