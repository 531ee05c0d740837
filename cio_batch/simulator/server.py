"""The simulator over HTTP: the only module here that knows aiohttp and the loop.

Rules:

1. A call goes one way: headers, fault drawn, body read, checked, held, fault, credentials, rate, poison, applied,
   answered. Nothing is applied before the whole body was read and checked, and one call is applied in one go.
2. Whoever waits (latency, black hole) waits for ``stop`` at the same time; so ``stop`` is prompt in every state.
3. Nothing that belongs to a loop is made in the constructor. After ``stop`` the simulator may be started
   again: it comes back at the same address with the same workspace, as a service does after an outage.
4. Calls below ``/simulator/`` are answered beside all this: no fault meets them and nothing counts them.

Source: track-openapi.json, paths; for the App API docs.customer.io/integrations/api/app.
"""

import asyncio
import base64
import binascii
import contextlib
import http
import math
import operator
import re
import secrets
import select
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import orjson
from aiohttp import web

from cio_batch.simulator.app import answer_to_message
from cio_batch.simulator.calls import Call, batch_error, read_call
from cio_batch.simulator.checks import Problem
from cio_batch.simulator.control import answer_control
from cio_batch.simulator.faults import Fault, Faults
from cio_batch.simulator.keys import Operation, objects_of, people_of
from cio_batch.simulator.rates import AppRates, Turnstile
from cio_batch.simulator.routes import Target, find_target
from cio_batch.simulator.traffic import Traffic
from cio_batch.simulator.workspace import Workspace

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""Far above every limit of Customer.io, so that it is their answer which the client gets."""

_SUCCESS: Final = b"{}\n"
_HTML: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    b"<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_REFUSED: Final = Problem("invalid", "identifiers", "identifiers were refused by the simulator")


class Simulator:
    """A local Customer.io: real HTTP, the answers of the Track API and the App API, faults on order.

    Use it as an async context manager, or call ``start`` and, whatever happens, ``stop``::

        async with Simulator() as sim:
            sim.faults.order("rate_limit", retry_after="0")
            ...  # point a client at sim.url
            assert sim.workspace.person("id", "42").events

    Args:
        site_id: The user name of the credentials that its Track API accepts.
        track_api_key: Their password.
        app_api_key: The bearer token that its App API accepts.
        host: Where to listen.
        port: The port; 0 lets the system choose one.
        latency: Seconds that every answer takes after what the call says was applied.
        faults: What goes wrong; nothing, unless given.
        keep: Keep every operation, so that tests can look at it; without, millions of events fit into memory.
        too_large_status: 400 as the published document says of the Track API, or 413 as a proxy in front would answer.
        app_rates: The rates above which the App API answers 429; none, unless given. The published ones are
            ``AppRates()``.

    Attributes:
        latency: As above; may be set at any time.
        workspace: What the workspace holds now.
        traffic: What came over the wire.
        faults: What goes wrong; may be replaced at any time.
    """

    def __init__(
        self,
        *,
        site_id: str = "site",
        track_api_key: str = "key",
        app_api_key: str = "app-key",
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0.0,
        faults: Faults | None = None,
        keep: bool = True,
        too_large_status: int = 400,
        app_rates: AppRates | None = None,
    ) -> None:
        if too_large_status not in (400, 413):
            message = f"too_large_status is 400 or 413, not {too_large_status}"
            raise ValueError(message)
        self.latency = latency
        self.faults = faults or Faults()
        self.traffic = Traffic()
        self.workspace = Workspace(keep=keep)
        self._site_id = site_id
        self._track_api_key = track_api_key
        self._app_api_key = app_api_key
        self._host = host
        self._port = port
        self._too_large_status = too_large_status
        self._turnstile = Turnstile(app_rates)
        self._runner: web.AppRunner | None = None
        self._stopping: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._runner is None else self.url
        return f"<Simulator {state} calls={self.traffic.calls} people={len(self.workspace.people)}>"

    @property
    def port(self) -> int:
        """The port; the one given, until ``start`` has found the real one."""
        return self._port

    @property
    def url(self) -> str:
        """The origin to send calls to, without a trailing slash; known once it has been started.

        Raises:
            RuntimeError: It was never started, and the port is the system's to choose.
        """
        if self._port == 0:
            message = "the simulator has no address before it is started"
            raise RuntimeError(message)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that point another process at this simulator."""
        return {
            "CUSTOMERIO_SITE_ID": self._site_id,
            "CUSTOMERIO_TRACK_API_KEY": self._track_api_key,
            "CUSTOMERIO_TRACK_URL": self.url,
            "CUSTOMERIO_APP_API_KEY": self._app_api_key,
            "CUSTOMERIO_APP_URL": self.url,
        }

    async def start(self) -> None:
        """Listen; on return, calls are answered. ``stop`` must follow.

        Raises:
            RuntimeError: It is running already.
            OSError: The address cannot be had.
        """
        if self._runner is not None:
            message = "the simulator is running already"
            raise RuntimeError(message)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", r"/{path:(?s:.*)}", self._answer)
        # Handlers end with their client, so that a black hole does not outlive whoever fell into it.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        self._runner = runner
        self._stopping = asyncio.Event()
        try:
            await runner.setup()
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            self._runner = None
            await runner.cleanup()
            raise
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection and stop listening, well within a second; doing so twice is harmless.

        A late answer is given at once, a black-holed or unread call is cut off. State and counts stay.
        """
        runner, self._runner = self._runner, None
        if runner is None:
            return
        if self._stopping is not None:
            self._stopping.set()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def reset(self) -> None:
        """Begin anew: an empty workspace, no counts, no faults. The address stays."""
        self.workspace = Workspace(keep=self.workspace.keep)
        self.traffic = Traffic()
        self.faults = Faults()
        self._turnstile = Turnstile(self._turnstile.rates)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.raw_path.startswith("/simulator/"):
            status, body = answer_control(self, request.method, request.raw_path, await request.read())
            return web.Response(status=status, body=body, content_type="application/json")

        traffic = self.traffic
        headers = request.headers
        traffic.begin(headers.get("User-Agent", ""), headers.get("X-Retry-Count", ""))
        try:
            response = await self._take(request, traffic)
        except web.HTTPException as error:
            traffic.statuses[error.status] += 1
            raise
        finally:
            traffic.end()
        if response is None:
            # The connection is closed already; aiohttp only needs something that it cannot send.
            return web.Response()
        traffic.statuses[response.status] += 1
        return response

    async def _take(self, request: web.Request, traffic: Traffic) -> web.Response | None:
        # Returns None where the client gets no answer.
        target = find_target(request.method, request.raw_path)
        if isinstance(target, int):
            traffic.unknown_calls += 1
            reason = http.HTTPStatus(target).phrase.lower()
            return _json({"meta": {"error": reason}}, target)
        traffic.calls_by_path[target.route.template] += 1

        fault = self.faults.draw()
        if fault is not None and fault.kind == "drop_before":
            self.faults.count(fault.kind)
            _cut_off(request)
            return None

        body = await request.read()
        traffic.largest_body_bytes = max(traffic.largest_body_bytes, len(body))
        call = Call()
        for _ in read_call(call, target, request.query, body, time.time()):
            await asyncio.sleep(0)
        if target.route.name == "batch":
            traffic.batch_sizes.append(call.size)
        async with self._holding(request, traffic, call):
            return await self._carry_out(request, target, call, fault)

    @contextlib.asynccontextmanager
    async def _holding(self, request: web.Request, traffic: Traffic, call: Call) -> AsyncGenerator[None]:
        people: set[Hashable] = set()
        objects: set[Hashable] = set()
        for _, operation, _ in call.accepted:
            people.update(people_of(operation))
            objects.update(objects_of(operation))

        def is_gone() -> bool:
            transport = request.transport
            return transport is None or transport.is_closing() or _has_hung_up(transport)

        holds = (
            traffic.hold_people(frozenset(people), is_gone),
            traffic.hold_objects(frozenset(objects), is_gone),
        )
        try:
            yield
        finally:
            traffic.release(*holds)

    async def _carry_out(
        self, request: web.Request, target: Target, call: Call, fault: Fault | None
    ) -> web.Response | None:
        faults = self.faults
        if fault is not None:
            match fault.kind:
                case "latency" | "partial" | "drop_after" | "drop_before":
                    pass  # these come after, or around, an answer that is otherwise right
                case "black_hole":
                    faults.count(fault.kind)
                    await self._pause(None)
                    _cut_off(request)
                    return None
                case "raw":
                    faults.count(fault.kind)
                    self.traffic.statuses[fault.status] += 1
                    _send_raw(request, fault)
                    return None
                case _:
                    faults.count(fault.kind)
                    if fault.kind == "refuse":
                        faults.note_refused_call([each.operation for each in call.accepted], call.size)
                    return _fault_response(target, fault)

        if target.route.needs_auth and not self._is_authorized(request, target):
            return _unauthorized(target)
        wait = self._wait_for_turn(target)
        if wait > 0:
            return _too_early(target, wait)
        if faults.poison is not None and faults.has_poison([each.operation for each in call.accepted]):
            faults.count("poison")
            return _refusal(target, [_POISONED], faults.poison_status)

        if fault is not None and fault.kind == "partial":
            self._refuse_some(target, call, fault)
        response = self._apply(request, target, call)
        if fault is not None and fault.kind == "drop_after":
            faults.count(fault.kind)
            _cut_off(request)
            return None
        latency = self.latency
        if fault is not None and fault.kind == "latency":
            faults.count(fault.kind)
            latency += fault.latency
        if latency > 0:
            await self._pause(latency)
        return response

    def _refuse_some(self, target: Target, call: Call, fault: Fault) -> None:
        chosen = self.faults.choose(fault, [each.position for each in call.accepted])
        if not chosen:
            return
        self.faults.count(fault.kind)
        refused = [each for each in call.accepted if each.position in chosen]
        self.faults.note_named([each.operation for each in refused])
        if target.route.name == "batch":
            call.accepted = [each for each in call.accepted if each.position not in chosen]
            call.refused += [batch_error(each.position, _REFUSED) for each in refused]
            call.refused.sort(key=operator.itemgetter("batch_index"))
        else:
            call.accepted = []
            call.refusal = [_REFUSED]

    def _apply(self, request: web.Request, target: Target, call: Call) -> web.Response:
        # No await in here: a call is applied in one go, in the order of its array.
        if call.refusal:
            status = self._too_large_status if call.is_too_large else call.status
            return _refusal(target, call.refusal, status)
        name = target.route.name
        # "This endpoint requires a Content-type: application/json header."
        if name == "unsubscribe" and request.content_type != "application/json":
            problem = Problem("invalid", "", "Content-Type must be application/json")
            return _refusal(target, [problem], 400)
        if target.route.api == "app":
            ((_, operation, _),) = call.accepted
            return self._apply_app(name, operation)
        for _, operation, raw in call.accepted:
            self.workspace.apply(operation, raw)
        if call.refused:
            return _json({"errors": call.refused}, 207)
        if name == "submit_form":
            return web.Response(status=204)
        if name == "region":
            return _json({"url": "https://track.customer.io", "region": "us", "environment_id": 1}, 200)
        return web.Response(body=_SUCCESS, content_type="application/json")

    def _apply_app(self, name: str, operation: Operation) -> web.Response:
        now = int(time.time())
        if name == "trigger_broadcast":
            return _json({"id": self.workspace.trigger(operation, now).trigger_id}, 200)
        message = self.workspace.send(operation, now)
        return _json(answer_to_message(message.delivery_id, message.queued_at, message.request), 200)

    def _wait_for_turn(self, target: Target) -> float:
        if target.route.api != "app":
            return 0.0
        now = time.monotonic()
        if target.route.name == "trigger_broadcast":
            return self._turnstile.admit_broadcast(now)
        return self._turnstile.admit_message(now)

    def _is_authorized(self, request: web.Request, target: Target) -> bool:
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        if target.route.api == "app":
            token = encoded.encode(errors="surrogateescape")
            return scheme.lower() == "bearer" and secrets.compare_digest(token, self._app_api_key.encode())
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        return secrets.compare_digest(given, f"{self._site_id}:{self._track_api_key}".encode())

    async def _pause(self, seconds: float | None) -> None:
        # Ends early when the simulator stops; for ever where no seconds are given.
        if self._stopping is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()


_TOO_MANY: Final = Problem("rate_limit", "", "rate limit exceeded")
_POISONED: Final = Problem("invalid", "batch", "request could not be processed")


def _json(content: Any, status: int) -> web.Response:
    body = orjson.dumps(content) + b"\n"
    return web.Response(status=status, body=body, content_type="application/json")


def _unauthorized(target: Target) -> web.Response:
    if target.route.api == "app":
        return _refusal(target, [Problem("unauthorized", "", "unauthorized")], 401)
    return web.Response(status=401, text="Unauthorized request\n")


def _too_early(target: Target, wait: float) -> web.Response:
    response = _refusal(target, [_TOO_MANY], 429)
    response.headers["Retry-After"] = str(math.ceil(wait))
    return response


def _refusal(target: Target, problems: Sequence[Problem], status: int) -> web.Response:
    if target.route.api == "app":
        # The door of the App API and its broadcasts list errors; its messages have one text.
        if target.route.name == "trigger_broadcast" or status in (401, 429):
            return _json({"errors": [_detail_of(problem, status) for problem in problems]}, status)
        return _json({"meta": {"error": problems[0].message}}, status)
    if target.route.version == 2:
        return _json({"errors": [problem._asdict() for problem in problems]}, status)
    if target.route.name == "merge":
        return _json({"meta": {"error": problems[0].message}}, status)
    return _json({"meta": {"errors": [problem.message for problem in problems]}}, status)


def _detail_of(problem: Problem, status: int) -> dict[str, Any]:
    detail: dict[str, Any] = {"detail": problem.message, "status": str(status)}
    if status == 422 and problem.field:
        # "Points to the key in your payload": the first part of what we call the field.
        key = re.split(r"[.\[]", problem.field, maxsplit=1)[0]
        detail["source"] = {"pointer": f"/data/attributes/{key}"}
    return detail


def _fault_response(target: Target, fault: Fault) -> web.Response:
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    match fault.kind:
        case "rate_limit":
            response = _refusal(target, [_TOO_MANY], fault.status)
        case "server_error":
            response = _refusal(target, [Problem("internal", "", "internal server error")], fault.status)
        case "html_error":
            return web.Response(status=fault.status, body=_HTML, content_type="text/html")
        case "unavailable":
            response = web.Response(status=fault.status, text="Service Unavailable\n")
        case "unauthorized":
            return _unauthorized(target)
        case "redirect":
            return web.Response(status=fault.status, headers={"Location": fault.location})
        case _:
            return _refusal(target, [Problem("invalid", "batch", "request was refused")], fault.status)
    response.headers.update(headers)
    return response


def _send_raw(request: web.Request, fault: Fault) -> None:
    # Past aiohttp, which would correct what is wrong on purpose.
    headers = dict(fault.headers)
    names = {name.lower() for name in headers}
    if "content-length" not in names and "transfer-encoding" not in names:
        headers["Content-Length"] = str(len(fault.body))
    lines = [f"HTTP/1.1 {fault.status} Simulated", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    if request.transport is not None:
        request.transport.write(head + fault.body)
        request.transport.close()


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _has_hung_up(transport: asyncio.Transport) -> bool:
    """Ask the socket itself whether the client has closed its side.

    The loop learns of it in its own time: a client that gave a call up and repeats it on another connection may be
    served there first.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return True
    poll = select.poll()
    half_closed: int = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere the loop has to notice
    poll.register(connection.fileno(), half_closed | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
