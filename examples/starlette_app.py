"""A tracker in the lifespan of a Starlette (or FastAPI) application.

Run it with the variables of ``quickstart.py``: ``uvicorn --app-dir examples --factory starlette_app:make_app``.
Then, in another shell:

    curl -X POST http://127.0.0.1:8000/signup/user-1
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cio_batch import CioBatchTracker


def make_app() -> Starlette:
    """Make the application; nothing of the tracker runs before its lifespan begins."""
    tracker = CioBatchTracker()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with tracker:  # on shutdown it delivers what is queued, for at most `drain_timeout` seconds
            yield

    async def signup(request: Request) -> PlainTextResponse:
        await tracker.enqueue(request.path_params["user"], "signed_up")
        return PlainTextResponse("welcome")

    return Starlette(routes=[Route("/signup/{user}", signup, methods=["POST"])], lifespan=lifespan)
