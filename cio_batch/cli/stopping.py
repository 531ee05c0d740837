"""Ctrl-C and SIGTERM as events, so that a command can end in its own way.

Rules:

1. The first signal sets one event (``wait``), the second another one (``wait_again``); from the third on it is as if
   nobody had ever listened.
2. Handlers are set by ``signal.signal`` and put back afterwards. A command that uses this owns its signals: its
   trackers are made with ``handle_sigterm=False``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Listens for signals between ``__enter__`` and ``__exit__``, in the running loop.

    Attributes:
        signum: The signal that came first, 0 for none.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._event = asyncio.Event()
        self._again = asyncio.Event()
        self._previous: dict[int, Any] = {}

    @property
    def came(self) -> bool:
        """Whether it is time to stop."""
        return self._event.is_set()

    @property
    def exit_code(self) -> int:
        """The exit code that says which signal it was."""
        return 128 + self.signum

    @property
    def cause(self) -> str:
        """What stopped it, in words: ``"Ctrl-C"`` or the signal's name."""
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name

    async def wait(self) -> None:
        """Wait until it is time to stop."""
        await self._event.wait()

    async def wait_again(self) -> None:
        """Wait until somebody insists, by a second signal."""
        await self._again.wait()

    def now(self) -> None:
        """Stop without a signal."""
        self._event.set()

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._put_back()

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        event = self._event
        if self.signum:
            event = self._again
            self._put_back()
        self.signum = self.signum or signum
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(event.set)

    def _put_back(self) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        self._previous.clear()
