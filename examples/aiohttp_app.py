"""A tracker in the ``cleanup_ctx`` of an aiohttp application.

Run it with the variables of ``quickstart.py``: ``python examples/aiohttp_app.py``. Then, in another shell:

    curl -X POST http://127.0.0.1:8080/signup/user-1
"""

from collections.abc import AsyncIterator

from aiohttp import web

from cio_batch import CioBatchTracker, Settings

TRACKER = web.AppKey("tracker", CioBatchTracker)


async def signup(request: web.Request) -> web.Response:
    """Answer as soon as the event is accepted; it is sent later."""
    await request.app[TRACKER].enqueue(request.match_info["user"], "signed_up")
    return web.Response(text="welcome")


def make_app(settings: Settings) -> web.Application:
    """Make the application; the tracker runs from its startup to its cleanup."""

    async def tracking(app: web.Application) -> AsyncIterator[None]:
        async with CioBatchTracker(settings) as app[TRACKER]:
            yield

    app = web.Application()
    app.router.add_post("/signup/{user}", signup)
    app.cleanup_ctx.append(tracking)
    return app


if __name__ == "__main__":
    web.run_app(make_app(Settings.from_env()), host="127.0.0.1")
