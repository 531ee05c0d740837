"""``cio-batch tune``: which batch size, concurrency and flush interval are right for a service, by measuring.

What happens: one event shows whether anything arrives at all. Then each batch size is measured with each concurrency
at full load; with the best of these each flush interval, at the rate of events that the service really has.

Rules:

1. The service under test is a process of its own, so that its CPU is not counted; with ``--url`` it is the user's, and
   gets nothing before the user has said that real events may be sent.
2. Measurements near the best are made twice, and the better one counts: on a machine that does other things as well,
   one run may be disturbed, and the recommendation with it.
3. A signal ends the measurement that runs; what was measured before is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from cio_batch.cli import chart
from cio_batch.cli.advice import Advice, at_full_load, better, by_flush_interval, knee, recommend, worth_repeating
from cio_batch.cli.load import EVENT, PERSON, Load
from cio_batch.cli.screen import Bar, Screen
from cio_batch.cli.stopping import Stop
from cio_batch.cli.sweep import Measurement, Point, full_load_points
from cio_batch.errors import ConfigurationError
from cio_batch.settings import Settings

# Calls in flight share no person, but a call may hold many events of one: with a thousand people, 20 calls of 1,000
# events reach 85 % of what they reach with a hundred thousand.
_PEOPLE: Final = 100_000
_REAL_PEOPLE: Final = 1_000
_REAL_EVENTS: Final = 20_000
_COLUMNS: Final = (
    "batch\nsize",
    "concur-\nrency",
    "load",
    "flush\ns",
    "events/s",
    "p50\nage s",
    "p99\nage s",
    "CPU µs\n/event",
    "events\n/call",
)
_SINK_END: Final = 2.0  # seconds that it gets to say what it counted


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    url: str | None
    send_real_events: bool
    dotenv: bool
    batch_sizes: Sequence[int]
    concurrencies: Sequence[int]
    flush_intervals: Sequence[float]
    event_rate: float
    max_age: float
    event_bytes: int
    people: int | None
    latency: float
    rate_limit: float
    duration: float
    events: int | None
    chart: Path | None
    as_json: bool

    @property
    def most_people(self) -> int:
        """How many people the events have."""
        return self.people or (_PEOPLE if self.url is None else _REAL_PEOPLE)

    @property
    def most_events(self) -> int | None:
        """The most events of one measurement."""
        return self.events or (None if self.url is None else _REAL_EVENTS)


class _CannotBeginError(Exception):
    """Its text says why."""


def run(options: Options) -> int:
    """Measure; return the exit code."""
    screen = Screen(as_json=options.as_json)
    try:
        _check_chart(options.chart)
        with screen.library_log(muted=options.url is None):
            return asyncio.run(_Tuning(options, screen).run())
    except (_CannotBeginError, ConfigurationError) as error:
        screen.note(f"cio-batch: {error}", "bold red")
        return 2


def _check_chart(path: Path | None) -> None:
    # All of it before the first measurement: nobody wants to hear of it a minute later.
    if path is None:
        return
    if path.suffix.lower() not in chart.SUFFIXES:
        message = f"--chart {path}: the name must end in {' or '.join(chart.SUFFIXES)}"
        raise _CannotBeginError(message)
    if not path.absolute().parent.is_dir():
        message = f"--chart {path}: there is no folder {path.parent}"
        raise _CannotBeginError(message)
    if not chart.is_possible():
        message = "--chart needs matplotlib: pip install 'cio-batch[tune]'"
        raise _CannotBeginError(message)


class _Tuning:
    """One run."""

    def __init__(self, options: Options, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._measurements: list[Measurement] = []
        self._points, self._left_out = full_load_points(options.batch_sizes, options.concurrencies, options.most_events)
        self._total = len(self._points) + len(options.flush_intervals)
        self._counts: dict[str, Any] = {}
        self._began = time.monotonic()

    async def run(self) -> int:
        if not self._points:
            message = (
                "no combination can be measured: concurrency times batch size must be at most half of --events "
                f"({self._options.most_events:,}): allow more, or smaller sizes"
            )
            raise _CannotBeginError(message)
        with Stop() as stop:
            async with self._service() as settings:
                load = Load(
                    settings,
                    people=self._options.most_people,
                    event_bytes=self._options.event_bytes,
                    rate_limit=self._options.rate_limit,
                    duration=self._options.duration,
                    events=self._options.most_events,
                )
                with self._screen.bar("measuring", self._total) as bar:
                    sweeping = asyncio.create_task(self._sweep(load, bar))
                    stopping = asyncio.create_task(stop.wait())
                    await asyncio.wait([sweeping, stopping], return_when=asyncio.FIRST_COMPLETED)
                    for task in (sweeping, stopping):
                        task.cancel()
                    await asyncio.wait([sweeping, stopping])
                if not sweeping.cancelled():
                    sweeping.result()
            return self._conclude(stop)

    def _service(self) -> contextlib.AbstractAsyncContextManager[Settings]:
        return self._own_service() if self._options.url is None else contextlib.nullcontext(self._real_service())

    def _real_service(self) -> Settings:
        options = self._options
        settings = Settings.from_env(dotenv=options.dotenv, needs=("track",))
        settings = attrs.evolve(settings, track_url=options.url)
        if settings.disabled:
            message = "CUSTOMERIO_DISABLED is set: nothing would be sent, and nothing measured"
            raise _CannotBeginError(message)
        if not options.send_real_events:
            runs = self._total + len(self._points)  # some are made twice
            message = (
                f"this would send up to {runs * (options.most_events or 0):,} real events named {EVENT} of up "
                f"to {options.most_people:,} people named {PERSON.format(1)} and so on to {options.url}, to the "
                "workspace of CUSTOMERIO_SITE_ID: take one for tests, and say --send-real-events (fewer by --events, "
                "--people)"
            )
            raise _CannotBeginError(message)
        return settings

    @contextlib.asynccontextmanager
    async def _own_service(self) -> AsyncGenerator[Settings]:
        options = self._options
        sink = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cio_batch.cli._sink"),
            *("--latency", str(options.latency), "--rate-limit", str(options.rate_limit)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,  # Ctrl-C is for this process, which ends that one
        )
        try:
            assert sink.stdout is not None
            port = (await sink.stdout.readline()).decode().strip()
            yield Settings(site_id="site", track_api_key="key", track_url=f"http://127.0.0.1:{port}", disabled=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SINK_END):
                    self._counts = json.loads((await sink.communicate(b""))[0])
        finally:
            if sink.returncode is None:
                sink.kill()
                await sink.wait()

    async def _sweep(self, load: Load, bar: Bar) -> None:
        fault = await load.probe()
        if fault is not None:
            where = self._options.url or "the local service"
            message = f"a first event did not get through to {where} ({fault}): check the URL and the credentials"
            raise _CannotBeginError(message)
        for point in self._points:
            await self._measure(load, point, bar)
        for first in worth_repeating(self._measurements):
            self._show(bar, f"{_words(first.point)}, again")
            again = await load.measure(first.point)
            self._measurements[self._measurements.index(first)] = better(first, again)
        chosen = knee(self._measurements)
        if chosen is not None:
            for interval in sorted(set(self._options.flush_intervals)):
                point = attrs.evolve(chosen.point, flush_interval=interval, event_rate=self._options.event_rate)
                await self._measure(load, point, bar)

    async def _measure(self, load: Load, point: Point, bar: Bar) -> None:
        self._show(bar, _words(point))
        self._measurements.append(await load.measure(point))
        self._show(bar, _words(point))

    def _show(self, bar: Bar, note: str) -> None:
        done = len(self._measurements)
        bar.show(done, f"{done}/{self._total}", note)

    def _conclude(self, stop: Stop) -> int:
        options, measurements = self._options, self._measurements
        advice = recommend(measurements, options.max_age, options.event_rate, options.rate_limit)
        amiss = self._amiss(stop, advice)
        seconds = time.monotonic() - self._began
        self._screen.table(
            self._title(),
            _COLUMNS,
            [[_row(each) for each in part] for part in (at_full_load(measurements), by_flush_interval(measurements))],
            marked=[_row(each) for each in measurements if _is_advised(each.point, advice)],
            content=self._content(advice, amiss, seconds),
            notes=() if advice is None else (*advice.reasons, advice.code),
            amiss=amiss,
        )
        if options.chart is not None and measurements:
            try:
                chart.draw(options.chart, measurements, advice, options.max_age, self._title())
            except OSError as error:
                self._screen.note(f"cio-batch: cannot write {options.chart}: {error.strerror}", "bold red")
                return 1
            self._screen.note(f"the chart is in {options.chart}")
        if stop.signum:
            return stop.exit_code
        return 0 if advice is not None else 1

    def _title(self) -> str:
        options = self._options
        where = options.url or f"a local service that takes {options.latency:g} s"
        return f"{where}, {options.rate_limit:g} calls/s at most"

    def _amiss(self, stop: Stop, advice: Advice | None) -> list[str]:
        """What did not go well, a sentence each."""
        sentences: list[str] = []
        done = len(self._measurements)
        if stop.signum:
            sentences.append(
                f"stopped by {stop.cause} after {done} of {self._total} measurements; what is said is of these"
            )
        if advice is None:
            sentences.append("there is nothing to recommend: no measurement went well")
        if self._left_out:
            largest = max(point.concurrency * point.batch_size for point in self._left_out)
            sentences.append(
                f"{len(self._left_out)} combinations were left out: they have up to {largest:,} events in flight, and "
                "--events must be at least twice as many"
            )
        undelivered = sum(each.undelivered for each in self._measurements)
        if undelivered:
            sentences.append(f"{undelivered:,} events were rejected or given up; their measurements are no candidates")
        retried = sum(each.retried_calls for each in self._measurements)
        if retried:
            sentences.append(f"{retried:,} calls had to be repeated; measure again when the service is well")
        return sentences

    def _content(self, advice: Advice | None, amiss: Sequence[str], seconds: float) -> dict[str, Any]:
        options = self._options
        asked = attrs.asdict(options, filter=lambda attribute, _: attribute.name not in ("as_json", "chart", "dotenv"))
        return {
            "options": asked | {"people": options.most_people, "events": options.most_events},
            "complete": len(self._measurements) == self._total,
            "measurements": [
                attrs.asdict(each.point)
                | attrs.asdict(each, filter=lambda attribute, _: attribute.name != "point")
                | {"events_per_call": each.events_per_call}
                for each in self._measurements
            ],
            "recommendation": None if advice is None else attrs.asdict(advice) | {"code": advice.code},
            "local_service": self._counts,
            "amiss": list(amiss),
            "seconds": round(seconds, 2),
        }


def _words(point: Point) -> str:
    said = f"batch size {point.batch_size:,}, concurrency {point.concurrency}"
    if point.event_rate is None:
        return said
    return f"{said}, flush interval {point.flush_interval:g} s at {point.event_rate:,g} events/s"


def _is_advised(point: Point, advice: Advice | None) -> bool:
    if advice is None or (point.batch_size, point.concurrency) != (advice.batch_size, advice.concurrency):
        return False
    return point.event_rate is None or point.flush_interval == advice.flush_interval


def _row(measurement: Measurement) -> tuple[str, ...]:
    point = measurement.point
    return (
        f"{point.batch_size:,}",
        f"{point.concurrency}",
        "full" if point.event_rate is None else f"{point.event_rate:,g}/s",
        "" if point.event_rate is None else f"{point.flush_interval:g}",
        f"{measurement.events_per_second:,.0f}",
        f"{measurement.p50_age:.3f}",
        f"{measurement.p99_age:.3f}",
        f"{measurement.cpu_us_per_event:.2f}",
        f"{measurement.events_per_call:,.0f}",
    )
