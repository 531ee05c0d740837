"""SIGTERM, shared by all trackers of a process and chained to whoever had it before.

Rules:

1. Handlers are set with ``signal.signal``, in the main thread only. ``loop.add_signal_handler`` is never called: it
   would replace the handler that a host such as uvicorn set, and make the server unkillable.
2. The handler itself only schedules: nothing of a tracker runs inside it.
3. The host owns the exit if it had a handler: the trackers hasten, its handler runs, its exit code stands.
4. Nobody owns it if the action was the default one: the trackers drain to their deadlines; when the last is done,
   the default action is restored and the signal raised again.
5. An ignored SIGTERM stays ignored.
6. Trackers come and go in any order; when the last one goes, the handler from before is put back, unless somebody
   else has put a new one in between.
7. Somebody may set a handler over ours, call ours from it, or put ours back later (uvicorn does, and raises the signal
   again). So each handler of ours remembers for good what it was set over. One that is called by a handler above it
   does not own the exit, whatever it was set over.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeAlias

import attrs

_logger = logging.getLogger(__name__)

_Found: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


@attrs.frozen(eq=False)
class Watch:
    """A tracker's interest in SIGTERM.

    Attributes:
        loop: Where its callbacks run.
        hasten: Called when the host owns the exit: stop lingering, take what still comes.
        drain: Called when nobody does: refuse new operations, drain, then call what it was given.
    """

    loop: asyncio.AbstractEventLoop
    hasten: Callable[[], None]
    drain: Callable[[Callable[[], None]], None]


@attrs.frozen(eq=False)
class _Handler:
    """A handler that was set, and what it was set over. Usually there is one; see rule 7."""

    found: _Found
    tell: Callable[[_Handler, int, FrameType | None], None]

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.tell(self, signum, frame)


class _Sigterm:
    """What the handlers of this process share."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []
        self._undrained: list[Watch] = []
        self._raising = False

    def watch(self, watch: Watch) -> bool:
        """Tell ``watch`` about SIGTERM from now on; ``False`` where that is impossible."""
        if threading.current_thread() is not threading.main_thread():
            _logger.debug("SIGTERM is not watched: signal handlers can be set in the main thread only")
            return False
        current = signal.getsignal(signal.SIGTERM)
        if not isinstance(current, _Handler):
            # Either ours was never set, or somebody set another one over it.
            if current in (signal.SIG_IGN, None):
                return False
            signal.signal(signal.SIGTERM, _Handler(current, self._on_signal))
        self._watches.append(watch)
        return True

    def unwatch(self, watch: Watch) -> None:
        """Forget ``watch``; the last one to go puts the handler from before back."""
        if watch in self._watches:
            self._watches.remove(watch)
        if self._watches or self._raising:
            return
        if threading.current_thread() is not threading.main_thread():
            return  # nobody is left to tell, so the handler only passes the signal on
        self._restore()

    def forget(self) -> None:
        """After a fork: the child has no tracker that runs."""
        self._watches.clear()
        self._undrained.clear()
        self._raising = False
        self._restore()

    @staticmethod
    def _restore() -> None:
        current = signal.getsignal(signal.SIGTERM)
        if isinstance(current, _Handler):
            signal.signal(signal.SIGTERM, current.found)

    def _on_signal(self, handler: _Handler, signum: int, frame: FrameType | None) -> None:
        if callable(handler.found):
            self._hasten()
            handler.found(signum, frame)
        elif signal.getsignal(signal.SIGTERM) is not handler:
            self._hasten()
        elif not self._raising:
            self._raising = True
            # In a loop that stands still nobody would drain, and the process would never end.
            self._undrained = [watch for watch in self._watches if watch.loop.is_running()]
            if not self._undrained:
                self._raise_again()
            for watch in list(self._undrained):
                self._call(watch, functools.partial(watch.drain, functools.partial(self._drained, watch)))

    def _hasten(self) -> None:
        for watch in self._watches:
            self._call(watch, watch.hasten)

    def _call(self, watch: Watch, callback: Callable[[], None]) -> None:
        try:
            watch.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed
            self._drained(watch)

    def _drained(self, watch: Watch) -> None:
        if watch in self._undrained:
            self._undrained.remove(watch)
            if not self._undrained:
                self._raise_again()

    def _raise_again(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


_sigterm: Final = _Sigterm()

watch: Final = _sigterm.watch
unwatch: Final = _sigterm.unwatch

os.register_at_fork(after_in_child=_sigterm.forget)
