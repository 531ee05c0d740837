"""An ASGI application with a tracker in its lifespan; every server of the matrix runs it."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from cio_batch import CioBatchTracker

# So long an interval that only the drain can have delivered anything.
tracker = CioBatchTracker(flush_interval=60, drain_timeout=6)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    # BARE measures what the server does without the tracker.
    async with nullcontext() if os.environ.get("BARE") else tracker:
        yield


async def track(request: Request) -> PlainTextResponse:
    if not os.environ.get("BARE"):
        await tracker.enqueue(request.query_params["person"], "called", {"n": int(request.query_params["n"])})
    return PlainTextResponse("ok")


async def stream(_: Request) -> StreamingResponse:
    """Answer line by line: the first at once, the next ones as lines come in on standard input."""

    async def lines() -> AsyncIterator[str]:
        for n, line in enumerate(("open", "more", "end")):
            if n > 0:
                await asyncio.to_thread(sys.stdin.readline)
            await tracker.enqueue("streamer", line, {"n": n})
            yield f"{line}\n"

    return StreamingResponse(lines())


app = Starlette(routes=[Route("/track", track, methods=["POST"]), Route("/stream", stream)], lifespan=lifespan)
