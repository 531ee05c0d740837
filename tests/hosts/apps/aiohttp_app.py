"""An aiohttp application with a tracker in ``cleanup_ctx``, under ``web.run_app``."""

import os
import socket
from collections.abc import AsyncIterator

from aiohttp import web

from cio_batch import CioBatchTracker

tracker = CioBatchTracker(flush_interval=60, drain_timeout=6)


async def tracking(_: web.Application) -> AsyncIterator[None]:
    async with tracker:
        yield


async def track(request: web.Request) -> web.Response:
    if not os.environ.get("BARE"):
        await tracker.enqueue(request.query["person"], "called", {"n": int(request.query["n"])})
    return web.Response(text="ok")


app = web.Application()
app.router.add_post("/track", track)
if not os.environ.get("BARE"):
    app.cleanup_ctx.append(tracking)

listener = socket.create_server(("127.0.0.1", 0))
web.run_app(app, sock=listener, shutdown_timeout=2)
