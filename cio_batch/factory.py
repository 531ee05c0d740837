"""``CioClientFactory``: one client of each kind per process, made from settings that are read and checked once.

    cio = CioClientFactory.get_track_client()          # at module level, in any module: the same object

Rules:

1. There is one object of each kind in a process, also where threads ask for the first one at the same time.
2. A getter demands only what its client needs.
3. What belongs to a loop is made within the clients, later: a getter is a plain call, before any loop too.
4. A child process gets objects of its own; what the parent held is the parent's.
5. Settings that did not serve to make anything are read again.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

from cio_batch.clients import CioAppClient, TypedCioClient
from cio_batch.errors import ConfigurationError
from cio_batch.settings import Need, Settings
from cio_batch.tracker import CioBatchTracker

T = TypeVar("T")


class CioClientFactory:
    """Gives out one track client, one app client and one tracker per process.

    Annotate for your own taxonomy::

        cio: TypedCioClient[AppEvent, Customer] = CioClientFactory.get_track_client()

    End them all with ``await CioClientFactory.aclose()``. Nobody makes an object of this class.
    """

    _lock: ClassVar[threading.RLock] = threading.RLock()
    _made: ClassVar[dict[type, Any]] = {}
    _makers: ClassVar[dict[type, Callable[[Settings], Any]]] = {}
    _configured: ClassVar[Settings | None] = None
    _dotenv: ClassVar[bool | str | Path] = False
    _settings: ClassVar[Settings | None] = None

    def __new__(cls) -> CioClientFactory:
        """Refuse: the class is the one object."""
        msg = "CioClientFactory is used as it is: CioClientFactory.get_track_client()"
        raise TypeError(msg)

    @classmethod
    def configure(
        cls,
        settings: Settings | None = None,
        *,
        dotenv: bool | str | Path = False,
        track_client: Callable[[Settings], TypedCioClient] = TypedCioClient,
        app_client: Callable[[Settings], CioAppClient] = CioAppClient,
        tracker: Callable[[Settings], CioBatchTracker] = CioBatchTracker,
    ) -> None:
        """Say how the clients are to be made, before the first one is; without this, as the environment says.

        Args:
            settings: What they are made with; :meth:`Settings.from_env` when ``None``.
            dotenv: Whether that reads a ``.env`` file too, or which; needs the extra ``cio-batch[dotenv]``.
            track_client: Makes the track client: ``functools.partial(TypedCioClient, retry=None)``.
            app_client: Makes the app client.
            tracker: Makes the tracker: ``functools.partial(CioBatchTracker, flush_interval=1.0)``. With a ``transport``
                of its own it needs no credentials of the Track API.

        Raises:
            ConfigurationError: An argument is of a wrong kind; or a client was made already, and would not change.
        """
        if settings is not None and not isinstance(cast("object", settings), Settings):
            msg = f"settings must be Settings(...), got {type(settings).__name__}"
            raise ConfigurationError(msg, ("settings",))
        makers: dict[str, object] = {"track_client": track_client, "app_client": app_client, "tracker": tracker}
        for name, maker in makers.items():
            if not callable(maker):
                msg = (
                    f"{name} must be a function of the settings, such as functools.partial, got {type(maker).__name__}"
                )
                raise ConfigurationError(msg, (name,))
        with cls._lock:
            if cls._made:
                msg = "CioClientFactory.configure() comes too late: a client was made already"
                raise ConfigurationError(msg)
            cls._configured, cls._dotenv, cls._settings = settings, dotenv, None
            cls._makers = {TypedCioClient: track_client, CioAppClient: app_client, CioBatchTracker: tracker}

    @classmethod
    def get_track_client(cls) -> TypedCioClient:
        """Return the client for direct calls of the Track API.

        Raises:
            ConfigurationError: Names every variable that is missing (``CUSTOMERIO_SITE_ID``,
                ``CUSTOMERIO_TRACK_API_KEY``) or malformed.
        """
        return cls._get(TypedCioClient)

    @classmethod
    def get_app_client(cls) -> CioAppClient:
        """Return the client for transactional messages and broadcasts.

        Raises:
            ConfigurationError: ``CUSTOMERIO_APP_API_KEY`` is missing, or a variable is malformed.
        """
        return cls._get(CioAppClient)

    @classmethod
    def get_tracker(cls) -> CioBatchTracker:
        """Return the tracker. After it was closed there is another one.

        Raises:
            ConfigurationError: As for :meth:`get_track_client`.
        """
        return cls._get(CioBatchTracker)

    @classmethod
    async def aclose(cls) -> None:
        """Drain the tracker and close the connections of this loop.

        The clients stay what they are, and connect anew with their next call; a closed tracker makes room for another.
        Idempotent.

        Raises:
            WrongLoopError: The tracker runs in another loop; the rest was closed.
        """
        made = dict(cls._made)
        tracker = cast("CioBatchTracker | None", made.pop(CioBatchTracker, None))
        try:
            if tracker is not None:
                await tracker.close()
        finally:
            for client in made.values():
                await client.aclose()

    @classmethod
    def reset(cls) -> None:
        """Forget the clients and the settings; for tests.

        One that is open gives a ``ResourceWarning``: ``await CioClientFactory.aclose()`` comes first.
        """
        with cls._lock:
            made = cls._made
            cls._made, cls._makers = {}, {}
            cls._configured = cls._settings = None
            cls._dotenv = False
        tracker = cast("CioBatchTracker | None", made.pop(CioBatchTracker, None))
        if tracker is not None and tracker.is_open:
            warnings.warn(_OPEN_TRACKER, ResourceWarning, stacklevel=2, source=tracker)
        for client in made.values():
            client.warn_if_open()

    @classmethod
    def _get(cls, kind: type[T]) -> T:
        found = cls._made.get(kind)
        if found is None or (isinstance(found, CioBatchTracker) and found.is_closed):
            with cls._lock:
                found = cls._made.get(kind)
                if found is None or (isinstance(found, CioBatchTracker) and found.is_closed):
                    settings = cls._settings or cls._configured
                    if settings is None:
                        settings = cls._read_settings(kind)
                    make = cls._makers.get(kind, kind)
                    found = cls._made[kind] = make(settings)
                    cls._settings = settings
        return cast("T", found)

    @classmethod
    def _read_settings(cls, kind: type) -> Settings:
        """Read the environment. What is missing is the client's to say: one may go by another transport."""
        try:
            return Settings.from_env(cls._dotenv)
        except ConfigurationError:
            return Settings.from_env(cls._dotenv, needs=_NEEDS[kind])  # names what is malformed and what is missing

    @classmethod
    def forget_parent(cls) -> None:
        """Begin anew in a child process, with the same configuration; called by itself after a fork."""
        cls._lock = threading.RLock()  # a thread of the parent's may have held it
        _inherited.append(cls._made)
        cls._made = {}


# Nobody repairs one variable after the other: an error of the environment names what the getter would miss next, too.
_NEEDS: Final[Mapping[type, tuple[Need, ...]]] = {
    TypedCioClient: ("track",),
    CioAppClient: ("app",),
    CioBatchTracker: ("track",),
}
_OPEN_TRACKER: Final = (
    "a CioBatchTracker was let go while it was open: `await CioClientFactory.aclose()` before reset()"
)
# What a parent process held; kept, so that nothing of it is finalized in a child.
_inherited: Final[list[dict[type, Any]]] = []

os.register_at_fork(after_in_child=CioClientFactory.forget_parent)
