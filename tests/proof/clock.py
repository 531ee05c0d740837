"""A clock that jumps: a real event loop whose time passes only while nothing else is left to do.

Rules:

1. ``loop.time()`` creeps (0.1 µs for each step of the loop: who waits for it to pass in small steps gets there) while
   anything is ready to run, and jumps to the next timer when nothing is.
2. It does not jump while a thread owes the loop something: who starts work elsewhere says so with ``loop.owed``.
3. Where nothing is ready, no timer is set and nothing is owed, nothing will ever happen: that raises ``Deadlock``
   instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_CREEP = 1e-7
_PATIENCE = 20.0  # real seconds that a thread may take


class DeadlockError(AssertionError):
    """Everything waits for everything else."""


class _JumpingSelector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self.loop
        found = super().select(0)
        if found or timeout == 0:
            return found
        if loop.owed:
            found = super().select(_PATIENCE)
            if not found:
                raise DeadlockError("a thread does not answer")
        elif timeout is None:
            raise DeadlockError("nothing will ever happen")
        else:
            loop.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop.

    Attributes:
        now: Its time, in seconds.
        owed: How many things threads owe it.
        between: Called before each step of the loop, if set.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.owed = 0
        self.between: Callable[[], None] | None = None
        self._created: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()
        self._count = 0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        self.now += _CREEP
        if self.between is not None:
            self.between()
        super()._run_once()  # type: ignore[misc] - there is no public place between two steps

    def create_task(self, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:  # type: ignore[override]
        task = super().create_task(coro, **options)
        self._count += 1
        self._created[task] = self._count
        return task

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What ``asyncio.all_tasks`` gives, in the order in which they were made: a set has another one every time."""
        return sorted(asyncio.all_tasks(self), key=self._created.__getitem__)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self.owed += 1
        future.add_done_callback(lambda _: setattr(self, "owed", self.owed - 1))
        return future

    async def shutdown_default_executor(self, *timeout: float | None) -> None:
        await self.owing(super().shutdown_default_executor(*timeout))

    async def owing(self, work: Awaitable[T]) -> T:
        """Await what a thread does; meanwhile time stands still."""
        self.owed += 1
        try:
            return await work
        finally:
            self.owed -= 1


def run(program: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on such a loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(program)
