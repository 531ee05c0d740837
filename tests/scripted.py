"""A server that writes down every request and answers as it is told."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import attrs
import orjson
from aiohttp import web


@attrs.frozen
class Heard:
    """A request as it came over the wire."""

    method: str
    raw_path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@attrs.frozen
class Say:
    """An answer; ``None`` for ``status`` closes the connection without one."""

    status: int | None = 200
    body: bytes = b"{}\n"
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])


class Scripted:
    """Answers with each of ``answers`` in turn, and with the last one from then on."""

    def __init__(self, *answers: Say) -> None:
        self.answers = list(answers) or [Say()]
        self.heard: list[Heard] = []
        self._runner: web.ServerRunner | None = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        self.heard.append(Heard(request.method, request.raw_path, request.headers, body))
        say = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if say.status is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        return web.Response(status=say.status, body=say.body, headers=say.headers)

    async def __aenter__(self) -> Self:
        # No Application: its router decodes a path, and ours are to be looked at as they came.
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"
