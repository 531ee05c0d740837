"""The command ``cio-batch``: a demo, a sender of files, dead letters, a local Customer.io, a taxonomy, a tuner.

====================  =================================================================================
``demo``              events through a tracker and every fault; its producers are stopped half-way
``send``              operations from an NDJSON file to Customer.io, or to a simulator
``simulate``          a local Customer.io until Ctrl-C
``dead_letters``      what was refused or given up: a list, one of them, an export
``replay``            dead letters, sent again
``purge``             a person, removed from a spool or from dead letters
``taxonomy``          typed events → JSON Schema → typed events
``tune``              which batch size, concurrency and flush interval are right, by measuring
``_producer``         the process that the demo stops
``plan``              which events the demo makes                                             (pure)
``record``            what a producer says about its events, and how it is read back
``evidence``          what was said against what the service has: the demo's verdict          (pure)
``ledger``            what was sent from a file against what the service has                  (pure)
``complaints``        what is wrong with the lines, each fault said a few times                (pure)
``lines``             one line of NDJSON → one operation                                      (pure)
``letters``           where dead letters are kept, a database or files, as one thing
``reading``           a file or a pipe → numbered lines, without holding up the loop
``shipping``          operations through a tracker: fed, watched, drained, cut short
``weather``           the faults of a simulated run
``sweep``             the points of a tuning run, and the numbers that a run of one comes to  (pure)
``advice``            measurements → which settings, and why                                  (pure)
``load``              one run of one point
``_sink``             the local service that a tuning run measures against
``chart``             the only module that knows matplotlib
``stopping``          Ctrl-C and SIGTERM as an event
``screen``            the only module that knows rich
====================  =================================================================================

Rules:

1. Standard output holds the result, as a table or as JSON; progress, notes and errors go to standard error.
2. A command returns its exit code: 0 when everything went well, 1 when something did not, 2 when it could not
   begin (usage, settings that are missing or malformed, a missing package), otherwise 128 and the number of the
   signal that stopped it.
3. No key and no content is printed: line numbers, ids, sizes, reasons. (Whoever asks for a dead letter gets it whole.)
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import importlib.util
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs

from cio_batch._version import __version__

if TYPE_CHECKING:
    from cio_batch.cli.letters import Wanted

T = TypeVar("T")

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)([smhdw])")
MIN_EVENTS: Final = 1_000
"""The demo's fewest events: below that, there are too few calls for every fault to meet one."""

LATENCY: Final = 0.1
"""Seconds that tune's local service takes: what a service on the same continent does."""

_LONGEST: Final = 60.0
_FASTEST: Final = 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments after the program's name; those of this process when ``None``.

    Returns:
        The exit code; see Rule 2.
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:  # while a command was being imported, or before it listened
        return 130


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return 2
        if arguments.command == "send":
            _check_combination(arguments)
        elif arguments.command == "tune":
            _check_tune(arguments)
        elif arguments.command == "purge" and not any(
            each is not None for each in (arguments.person, arguments.email, arguments.phone, arguments.cio_id)
        ):
            arguments.parser.error("say whom: PERSON, --email, --phone or --cio-id")
    except SystemExit as error:  # --help, --version, a wrong argument: argparse has printed already
        return error.code if isinstance(error.code, int) else 2
    if arguments.command == "taxonomy":
        from cio_batch.cli import taxonomy

        run = taxonomy.export if arguments.action == "export" else taxonomy.generate
        return run(arguments.source, arguments.out)
    if importlib.util.find_spec("rich") is None:
        print("cio-batch: the command line needs rich: pip install 'cio-batch[cli]'", file=sys.stderr)
        return 2
    # Imported here: --help and the message about rich must not need rich, nor the child the other commands.
    match arguments.command:
        case "demo":
            from cio_batch.cli import demo

            return asyncio.run(demo.run(_options(demo.Options, arguments)))
        case "send":
            from cio_batch.cli import send

            return send.run(_options(send.Options, arguments))
        case "dead-letters":
            from cio_batch.cli import dead_letters

            return dead_letters.run(_options(dead_letters.Options, arguments, wanted=_wanted(arguments)))
        case "replay":
            from cio_batch.cli import replay

            return replay.run(_options(replay.Options, arguments, wanted=_wanted(arguments)))
        case "purge":
            from cio_batch.cli import purge

            return purge.run(_options(purge.Options, arguments))
        case "tune":
            from cio_batch.cli import tune

            latency = LATENCY if arguments.latency is None else arguments.latency
            return tune.run(_options(tune.Options, arguments, latency=latency))
        case _:
            from cio_batch.cli import simulate

            return asyncio.run(simulate.run(_options(simulate.Options, arguments)))


def _options(kind: type[T], arguments: argparse.Namespace, **others: object) -> T:
    """The options of a command: the arguments of the same names."""
    names = {field.name for field in attrs.fields(cast("Any", kind))}
    return kind(**{name: value for name, value in vars(arguments).items() if name in names} | others)


def _check_combination(arguments: argparse.Namespace) -> None:
    parser: argparse.ArgumentParser = arguments.parser
    if not arguments.simulate and arguments.fault_rate:
        parser.error("--faults needs --simulate: Customer.io has faults of its own")
    if arguments.simulate and arguments.dotenv:
        parser.error("--simulate needs no credentials, so --dotenv means nothing with it")
    if arguments.check and (arguments.simulate or arguments.dotenv):
        parser.error("--check sends nothing, so neither --simulate nor --dotenv means anything with it")


def _check_tune(arguments: argparse.Namespace) -> None:
    parser: argparse.ArgumentParser = arguments.parser
    if arguments.url is None and (arguments.send_real_events or arguments.dotenv):
        parser.error("--send-real-events and --dotenv need --url: the local service takes no real events")
    if arguments.url is not None and arguments.latency is not None:
        parser.error("--latency is that of the local service; with --url the service has one of its own")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cio-batch", description="Customer.io from the command line.")
    parser.add_argument("--version", action="version", version=f"cio-batch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="watch a tracker keep its promises; needs neither credentials nor a network",
        description="Ship events through every fault to a simulator, stop the producer by SIGTERM half-way, ship the "
        "rest, and compare what was said with what the service has. Exit code 1 when a promise broke.",
    )
    demo.add_argument(
        "--events",
        type=_events,
        default=100_000,
        metavar="N",
        help=f"how many, at least {MIN_EVENTS:,} (%(default)s)",
    )
    demo.add_argument("--people", type=_count, default=5_000, metavar="N", help="of how many people (%(default)s)")
    demo.add_argument(
        "--fault-rate",
        "--faults",
        type=_share,
        default=0.3,
        metavar="R",
        help="faults per call, from 0 to 1 (%(default)s)",
    )
    _add_seed(demo)
    _add_output(demo)

    send = commands.add_parser(
        "send",
        help="send operations from an NDJSON file",
        description="Send operations from an NDJSON file, one object a line: user_id, type (identify, track, page, "
        "screen, delete, suppress, unsuppress), timestamp (unix seconds), attributes (identify) or name, data and id "
        "(track, page, screen). If a file may be sent twice, its lines should carry an id (a ULID): by it Customer.io "
        "knows what it has already; without one, each time makes new events. Credentials come from CUSTOMERIO_SITE_ID "
        "and CUSTOMERIO_TRACK_API_KEY. Exit code 1 when a line was bad or an operation was rejected or failed, or the "
        "credentials were refused, 2 when it could not begin, otherwise 130 or 143 when stopped by Ctrl-C or SIGTERM.",
    )
    send.set_defaults(parser=send)
    send.add_argument("file", metavar="FILE", help="the file; - for standard input")
    send.add_argument("--dotenv", action="store_true", help="read a .env file beneath the environment")
    send.add_argument("--check", action="store_true", help="check every line, and send nothing")
    send.add_argument("--simulate", action="store_true", help="send to a simulator of its own, and verify the arrival")
    send.add_argument(
        "--faults",
        dest="fault_rate",
        type=_share,
        default=0.0,
        metavar="R",
        help="faults per call, from 0 to 1 (with --simulate)",
    )
    send.add_argument("--batch-size", type=_count, metavar="N", help="operations in a call at most")
    send.add_argument("--concurrency", type=_count, default=10, metavar="N", help="calls at a time (%(default)s)")
    _add_seed(send)
    _add_output(send)

    simulate = commands.add_parser(
        "simulate",
        help="run a local Customer.io",
        description="Run a local Customer.io until Ctrl-C or SIGTERM. Look at GET /simulator/state and "
        "/simulator/people; order faults by POST /simulator/faults.",
    )
    simulate.add_argument(
        "--port", type=_port, default=8765, metavar="N", help="%(default)s by default; 0 lets the system choose"
    )
    simulate.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    simulate.add_argument("--latency", type=_seconds, default=0.0, metavar="S", help="seconds that an answer takes")
    simulate.add_argument(
        "--faults",
        dest="fault_rate",
        type=_share,
        default=0.0,
        metavar="R",
        help="faults per call, from 0 to 1 (none)",
    )
    _add_seed(simulate)

    _add_dead_letters(commands)

    taxonomy = commands.add_parser(
        "taxonomy",
        help="write typed events as JSON Schema, and JSON Schema as typed events",
        description="Write typed events as JSON Schema, and JSON Schema as typed events. Exit code 1 when the events "
        "or the schema cannot be written so, 2 when they cannot be read.",
    )
    actions = taxonomy.add_subparsers(dest="action", metavar="export | generate", required=True)
    export = actions.add_parser(
        "export",
        help="typed events → JSON Schema",
        description="Import MODULE, also from the current folder, and write what NAME is there (a Taxonomy, a union of "
        "events or one event) as JSON Schema.",
    )
    export.add_argument("source", metavar="MODULE:NAME", help="for example shop.events:AppEvent")
    generate = actions.add_parser(
        "generate",
        help="JSON Schema → Python source",
        description="Write Python source of the typed events that a JSON Schema describes.",
    )
    generate.add_argument("source", metavar="SCHEMA.json", help="the file; - for standard input")
    for action in (export, generate):
        action.add_argument("--out", metavar="FILE", help="where to write to, instead of standard output")
    tune = commands.add_parser(
        "tune",
        help="find the batch size, concurrency and flush interval for a service, by measuring",
        description="Measure each batch size with each concurrency at full load, then each flush interval at the rate "
        "of events that you have, and recommend: the fewest calls at a time, and the smallest batch, within 5 % of "
        "the best, and the longest flush interval that keeps events young enough. It takes about a minute. Without "
        "--url it measures against a local service with a latency and a rate limit. Exit code 1 when there was nothing "
        "to recommend, 2 when it could not begin, otherwise 130 or 143 when stopped by Ctrl-C or SIGTERM, after it has "
        "shown what it has.",
    )
    _add_tune(tune)
    return parser


def _add_dead_letters(commands: Any) -> None:
    kept = "a spool's database, or a file of dead letters (with those that it was before: PATH.1, PATH.2, …)"
    dead_letters = commands.add_parser(
        "dead-letters",
        help="look at what was refused or given up",
        description="Look at what was refused or given up. A service may run meanwhile. Exit code 1 when some cannot "
        "be read, 2 when none can.",
    )
    actions = dead_letters.add_subparsers(dest="action", metavar="list | show | export", required=True)
    listing = actions.add_parser("list", help="a table of the newest, and how many there are by reason")
    listing.add_argument("path", metavar="PATH", help=kept)
    listing.add_argument("--limit", type=_count, default=50, metavar="N", help="how many are shown (%(default)s)")
    show = actions.add_parser("show", help="one of them whole, with its history")
    show.add_argument("path", metavar="PATH", help=kept)
    show.add_argument("which", metavar="NUMBER|ID", help="its number in the list, or the id of its event")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", dest="as_json", help="print it as JSON")
    export = actions.add_parser(
        "export", help="all of them as NDJSON", description="Write them as NDJSON, each whole, with its history."
    )
    export.add_argument("path", metavar="PATH", help=kept)
    export.add_argument("--out", metavar="FILE", help="a new file to write to, instead of standard output")

    replay = commands.add_parser(
        "replay",
        help="send dead letters again",
        description="Send dead letters again, with the same bytes and ids, in order per person. What is delivered is "
        "removed; what is refused again is kept with its history; what is not tried stays as it is. A service may run "
        "meanwhile. Credentials come from CUSTOMERIO_SITE_ID and CUSTOMERIO_TRACK_API_KEY. Exit code 1 when something "
        "was refused again or the credentials were, 2 when it could not begin, otherwise 130 or 143 when stopped by "
        "Ctrl-C or SIGTERM.",
    )
    replay.add_argument("path", metavar="PATH", help=kept)
    replay.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    replay.add_argument("--dotenv", action="store_true", help="read a .env file beneath the environment")
    replay.add_argument("--batch-size", type=_count, metavar="N", help="operations in a call at most")
    replay.add_argument("--concurrency", type=_count, default=10, metavar="N", help="calls at a time (%(default)s)")
    replay.add_argument("--json", action="store_true", dest="as_json", help="print the result as JSON")
    for action in (listing, export, replay):
        action.add_argument(
            "--name", metavar="NAME", help="only events of that name, or operations of that kind (person.identify)"
        )
        action.add_argument("--reason", metavar="REASON", help="only those refused for that reason the last time")
        action.add_argument(
            "--since",
            type=_moment,
            metavar="WHEN",
            help="only those refused since then: 2026-01-31, 2026-01-31T12:00 (in UTC, unless it says otherwise), or "
            "an age: 90s, 30m, 2h, 7d",
        )

    purge = commands.add_parser(
        "purge",
        help="remove a person from a spool or from dead letters",
        description="Remove a person's operations and dead letters, as a request for deletion demands. A spool is "
        "purged while no service owns it; a running one does it by `await spool.purge(person)`. Someone who was "
        "tracked under an id and under an email is two persons here: say both. Exit code 1 when something could not "
        "be looked into, 2 when nothing was removed.",
    )
    purge.set_defaults(parser=purge)
    purge.add_argument("path", metavar="PATH", help=kept)
    purge.add_argument("person", metavar="PERSON", nargs="?", help="the person's id")
    purge.add_argument("--email", metavar="EMAIL", help="the email address by which the person was tracked")
    purge.add_argument("--phone", metavar="PHONE", help="the phone number, as +15551234567")
    purge.add_argument("--cio-id", metavar="ID", help="the id that Customer.io gave")
    purge.add_argument("--json", action="store_true", dest="as_json", help="print the result as JSON")


def _wanted(arguments: argparse.Namespace) -> Wanted:
    from cio_batch.cli.letters import Wanted

    if getattr(arguments, "action", "") == "show":
        return Wanted()
    return Wanted(name=arguments.name, reason=arguments.reason, since=arguments.since)


def _add_tune(tune: argparse.ArgumentParser) -> None:
    tune.set_defaults(parser=tune)
    real = tune.add_argument_group("against your own endpoint")
    real.add_argument(
        "--url",
        metavar="URL",
        help="its origin, such as https://track.customer.io; credentials come from CUSTOMERIO_SITE_ID and "
        "CUSTOMERIO_TRACK_API_KEY",
    )
    real.add_argument(
        "--send-real-events",
        action="store_true",
        help="yes, send events to it: named cio_batch_tune, of people named cio-batch-tune-1 and so on",
    )
    real.add_argument("--dotenv", action="store_true", help="read a .env file beneath the environment")
    local = tune.add_argument_group("against a local service")
    local.add_argument("--latency", type=_seconds, metavar="S", help=f"seconds that an answer takes ({LATENCY})")
    tune.add_argument(
        "--rate-limit", type=_rate, default=1_000.0, metavar="N", help="calls per second, kept to (%(default)g)"
    )
    tune.add_argument(
        "--batch-sizes", type=_counts, default="50,200,500,1000,2000", metavar="N,…", help="to try (%(default)s)"
    )
    tune.add_argument(
        "--concurrencies", type=_counts, default="1,2,5,10,20,50", metavar="N,…", help="to try (%(default)s)"
    )
    tune.add_argument(
        "--flush-intervals", type=_intervals, default="0.1,0.25,0.5,1,2", metavar="S,…", help="to try (%(default)s)"
    )
    tune.add_argument(
        "--event-rate", type=_rate, default=500.0, metavar="N", help="events per second that you have (%(default)g)"
    )
    tune.add_argument(
        "--max-age",
        type=_positive_seconds,
        default=1.0,
        metavar="S",
        help="seconds from enqueue to delivery that you want for 99 of 100 events (%(default)g)",
    )
    tune.add_argument(
        "--event-bytes", type=_count, default=200, metavar="N", help="length of each event's data (%(default)s)"
    )
    tune.add_argument(
        "--duration", type=_positive_seconds, default=1.0, metavar="S", help="seconds of a measurement (%(default)g)"
    )
    tune.add_argument(
        "--events", type=_count, metavar="N", help="the most events of a measurement (with --url 20000, else no bound)"
    )
    tune.add_argument(
        "--people", type=_count, metavar="N", help="of how many people, in turn (with --url 1000, else 100000)"
    )
    tune.add_argument("--chart", type=Path, metavar="FILE", help="write a heat map: .png or .svg (needs matplotlib)")
    tune.add_argument("--json", action="store_true", dest="as_json", help="print the result as JSON")


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="a row for each kind of fault")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print the result as JSON")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        message = "must be at least 1"
        raise argparse.ArgumentTypeError(message)
    return value


def _events(text: str) -> int:
    value = int(text)
    if value < MIN_EVENTS:
        message = f"must be at least {MIN_EVENTS:,}"
        raise argparse.ArgumentTypeError(message)
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65_535:
        message = "must be between 0 and 65535"
        raise argparse.ArgumentTypeError(message)
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        message = "must be between 0 and 1"
        raise argparse.ArgumentTypeError(message)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0 or math.isinf(value):
        message = "must be seconds, at least 0"
        raise argparse.ArgumentTypeError(message)
    return value


def _moment(text: str) -> float:
    """Read a date, a time, or an age; return unix seconds."""
    if age := _AGE.fullmatch(text):
        return time.time() - float(age[1]) * _UNITS[age[2]]
    when = dt.datetime.fromisoformat(text)
    return (when if when.tzinfo is not None else when.replace(tzinfo=dt.UTC)).timestamp()


def _positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _LONGEST:
        message = f"must be seconds above 0, at most {_LONGEST:g}"
        raise argparse.ArgumentTypeError(message)
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value <= _FASTEST:
        message = f"must be a number per second above 0, at most {_FASTEST:,}"
        raise argparse.ArgumentTypeError(message)
    return value


def _counts(text: str) -> list[int]:
    return sorted({_count(part) for part in text.split(",")})


def _intervals(text: str) -> list[float]:
    return sorted({_positive_seconds(part) for part in text.split(",")})


_moment.__name__ = "date, time or age"
_counts.__name__ = "list of whole numbers"
_intervals.__name__ = "list of seconds"
_positive_seconds.__name__ = _rate.__name__ = "number"
_count.__name__ = _events.__name__ = _port.__name__ = "whole number"  # argparse names the function in its error text
_share.__name__ = _seconds.__name__ = "number"
