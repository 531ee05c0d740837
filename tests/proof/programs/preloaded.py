"""An ASGI application whose tracker is made when the module is loaded: with ``gunicorn --preload`` before the fork."""

# ruff: noqa: T201 - what it prints is how the tests hear of it

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cio_batch import CioBatchTracker
from cio_batch.errors import SpoolLockedError
from cio_batch.spools import SqliteSpool

spool = os.environ.get("SPOOL")
tracker = CioBatchTracker(flush_interval=60, drain_timeout=6, spool=SqliteSpool(spool) if spool else None)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    app.state.tracks = True
    try:
        await tracker.start()
    except SpoolLockedError as error:
        print(f"worker {os.getpid()} has no spool: {error}, owner {error.pid}", flush=True)
        app.state.tracks = False
    else:
        if spool:
            print(f"worker {os.getpid()} has the spool", flush=True)
    yield
    await tracker.close()


async def track(request: Request) -> PlainTextResponse:
    if not request.app.state.tracks:
        return PlainTextResponse("no spool", status_code=503)
    await tracker.enqueue(f"worker-{os.getpid()}", "called", {"n": int(request.query_params["n"])})
    return PlainTextResponse(str(os.getpid()))


app = Starlette(routes=[Route("/track", track, methods=["POST"])], lifespan=lifespan)
