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

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


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


class _Sigterm:
    """The state of the one handler of this process."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []
        self._previous: _Handler = None
        self._installed = False
        self._undrained: list[Watch] = []
        self._raising = False

    def watch(self, watch: Watch) -> bool:
        """Tell ``watch`` about SIGTERM from now on; ``False`` where that is impossible."""
        if threading.current_thread() is not threading.main_thread():
            _logger.debug("SIGTERM is not watched: signal handlers can be set in the main thread only")
            return False
        current = signal.getsignal(signal.SIGTERM)
        if current != self._on_signal:
            # Either ours was never set, or somebody set another one over it without calling ours: chain to that.
            if current in (signal.SIG_IGN, None):
                return False
            self._previous = current
            signal.signal(signal.SIGTERM, self._on_signal)
            self._installed = True
        self._watches.append(watch)
        return True

    def unwatch(self, watch: Watch) -> None:
        """Forget ``watch``; the last one to go puts the handler from before back."""
        if watch in self._watches:
            self._watches.remove(watch)
        if self._watches or not self._installed or self._raising:
            return
        if threading.current_thread() is not threading.main_thread():
            return  # nobody is left to tell, so the handler only passes the signal on
        self._restore()

    def forget(self) -> None:
        """After a fork: the child has no tracker that runs."""
        self._watches.clear()
        self._undrained.clear()
        self._raising = False
        if self._installed:
            self._restore()

    def _restore(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, self._previous)
        self._installed = False
        self._previous = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        alive = [watch for watch in self._watches if not watch.loop.is_closed()]
        if callable(self._previous):
            for watch in alive:
                self._call(watch, watch.hasten)
            self._previous(signum, frame)
        elif not self._raising:
            self._raising = True
            self._undrained = alive
            if not alive:
                self._raise_again()
            for watch in alive:
                self._call(watch, functools.partial(watch.drain, functools.partial(self._drained, watch)))

    def _call(self, watch: Watch, callback: Callable[[], None]) -> None:
        try:
            watch.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop was closed in this very moment
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
