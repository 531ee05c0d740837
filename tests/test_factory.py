"""``CioClientFactory``: one object of each kind per process, made from settings that are read once."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cio_batch import (
    CioAppClient,
    CioBatchTracker,
    CioClientFactory,
    CioEvent,
    ConfigurationError,
    EmailRequest,
    Settings,
    TrackerClosedError,
    TypedCioClient,
    UserAttributes,
)
from cio_batch.simulator import Simulator
from cio_batch.transports import TrackV1Transport

TRACK = {"CUSTOMERIO_SITE_ID": "site", "CUSTOMERIO_TRACK_API_KEY": "key"}
APP = {"CUSTOMERIO_APP_API_KEY": "app-key"}
GETTERS: list[Callable[[], Any]] = [
    CioClientFactory.get_track_client,
    CioClientFactory.get_app_client,
    CioClientFactory.get_tracker,
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without variables, and a factory that made nothing yet."""
    for name in list(os.environ):
        if name.startswith("CUSTOMERIO_"):
            monkeypatch.delenv(name)
    CioClientFactory.reset()
    yield
    CioClientFactory.reset()


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """All variables that there are to miss."""
    for name, value in (TRACK | APP).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def pointed(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """An environment that leads to a simulator."""
    for name, value in sim.environment.items():
        monkeypatch.setenv(name, value)
    return sim


# ------------------------------------------------------------------------------------------------------- one


@pytest.mark.usefixtures("complete")
def test_each_getter_gives_the_same_object_again() -> None:
    """Plain calls, before any loop, and always the same three objects."""
    assert isinstance(CioClientFactory.get_track_client(), TypedCioClient)
    assert isinstance(CioClientFactory.get_app_client(), CioAppClient)
    assert isinstance(CioClientFactory.get_tracker(), CioBatchTracker)
    for get in GETTERS:
        assert get() is get()
    assert len({id(get()) for get in GETTERS}) == 3


@pytest.mark.usefixtures("complete")
def test_a_module_gets_it_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that ask at their top have the same object."""
    for name in ("one", "two"):
        source = "from cio_batch import CioClientFactory\ncio = CioClientFactory.get_track_client()\n"
        (tmp_path / f"factory_user_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    import factory_user_one  # type: ignore[import-not-found]
    import factory_user_two  # type: ignore[import-not-found]

    assert factory_user_one.cio is factory_user_two.cio is CioClientFactory.get_track_client()


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize("get", GETTERS)
def test_threads_that_ask_first_at_the_same_time_get_the_same(
    get: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask at once, one object is made, from settings that are read once."""
    reads: list[int] = []
    from_env = Settings.from_env

    def slow(*args: Any, **named: Any) -> Settings:
        reads.append(1)
        time.sleep(0.02)
        return from_env(*args, **named)

    monkeypatch.setattr(Settings, "from_env", slow)
    start = threading.Barrier(16)
    found: list[object] = []

    def ask() -> None:
        start.wait()
        found.append(get())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 16
    assert len(set(map(id, found))) == 1
    assert len(reads) == 1


@pytest.mark.usefixtures("complete")
def test_settings_are_read_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes in the environment after the first getter changes nothing."""
    tracker = CioClientFactory.get_tracker()
    monkeypatch.setenv("CUSTOMERIO_REGION", "mars")
    monkeypatch.delenv("CUSTOMERIO_APP_API_KEY")
    assert CioClientFactory.get_track_client() is not None
    assert CioClientFactory.get_app_client() is not None
    assert CioClientFactory.get_tracker() is tracker


def test_nobody_makes_a_factory() -> None:
    """The class is the one object."""
    with pytest.raises(TypeError, match="get_track_client"):
        CioClientFactory()


# --------------------------------------------------------------------------------------------- what is demanded


@pytest.mark.parametrize(
    ("get", "missing"),
    [
        (CioClientFactory.get_track_client, tuple(TRACK)),
        (CioClientFactory.get_app_client, tuple(APP)),
        (CioClientFactory.get_tracker, tuple(TRACK)),
    ],
)
def test_a_getter_demands_its_own_variables(
    get: Callable[[], Any], missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error names all that are missing and the remedy; with these, and only these, the getter works."""
    with pytest.raises(ConfigurationError) as caught:
        get()
    assert caught.value.variables == missing
    assert all(name in str(caught.value) for name in missing)
    assert "set these in your environment or .env file" in str(caught.value)
    for name in missing:
        monkeypatch.setenv(name, "s3cr3t")
    assert get() is get()


@pytest.mark.usefixtures("complete")
def test_a_malformed_variable_is_named_by_every_getter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are checked as a whole."""
    monkeypatch.setenv("CUSTOMERIO_REGION", "mars")
    for get in GETTERS:
        with pytest.raises(ConfigurationError) as caught:
            get()
        assert caught.value.variables == ("CUSTOMERIO_REGION",)


def test_what_is_malformed_and_what_is_missing_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody repairs one variable after the other."""
    monkeypatch.setenv("CUSTOMERIO_REGION", "mars")
    for get, missing in zip(GETTERS, (TRACK, APP, TRACK), strict=True):
        with pytest.raises(ConfigurationError) as caught:
            get()
        assert set(caught.value.variables) == {"CUSTOMERIO_REGION", *missing}


def test_disabled_clients_need_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``CUSTOMERIO_DISABLED=1`` a program starts without any."""
    monkeypatch.setenv("CUSTOMERIO_DISABLED", "1")
    for get in GETTERS:
        assert get() is get()


async def test_a_tracker_with_a_transport_of_its_own_needs_no_credentials(sim: Simulator) -> None:
    """A getter demands what its client needs, and a maker decides what that is."""
    transport = TrackV1Transport(Settings(site_id="site", track_api_key="key", track_url=sim.url))
    CioClientFactory.configure(tracker=functools.partial(CioBatchTracker, transport=transport))
    await CioClientFactory.get_tracker().enqueue("u", "e")
    with pytest.raises(ConfigurationError) as caught:
        CioClientFactory.get_track_client()
    assert caught.value.variables == tuple(TRACK)
    await CioClientFactory.aclose()
    assert len(sim.workspace.person("id", "u").events) == 1
    CioClientFactory.reset()
    CioClientFactory.configure(tracker=functools.partial(CioBatchTracker, enabled=False))
    assert CioClientFactory.get_tracker() is CioClientFactory.get_tracker()


def test_a_dotenv_file_is_read_where_that_is_said(tmp_path: Path) -> None:
    """``configure(dotenv=path)`` reads the file beneath the environment."""
    path = tmp_path / ".env"
    path.write_text("CUSTOMERIO_SITE_ID=site\nCUSTOMERIO_TRACK_API_KEY=key\n")
    CioClientFactory.configure(dotenv=path)
    assert CioClientFactory.get_track_client() is CioClientFactory.get_track_client()


# ------------------------------------------------------------------------------------------------- configure


def test_clients_are_made_as_was_said() -> None:
    """Settings and makers hold for every getter."""
    settings = Settings(site_id="s", track_api_key="k", app_api_key="a", region="eu")
    seen: list[Settings] = []

    def make_tracker(given: Settings) -> CioBatchTracker:
        seen.append(given)
        return CioBatchTracker(given, batch_size=7)

    CioClientFactory.configure(
        settings, tracker=make_tracker, track_client=functools.partial(TypedCioClient, tracked_at=False)
    )
    assert CioClientFactory.get_tracker()._batch_size == 7
    assert CioClientFactory.get_track_client()._adds_tracked_at is False
    assert CioClientFactory.get_track_client()._settings is settings
    assert str(CioClientFactory.get_app_client()._http._origin) == "https://api-eu.customer.io"  # type: ignore[union-attr]
    assert seen == [settings]


@pytest.mark.usefixtures("complete")
def test_a_configuration_that_comes_too_late_is_an_error() -> None:
    """A client that was handed out would not change, so the mistake is told."""
    CioClientFactory.configure()
    CioClientFactory.get_track_client()
    with pytest.raises(ConfigurationError, match="too late"):
        CioClientFactory.configure(Settings(region="eu"))
    CioClientFactory.reset()
    CioClientFactory.configure(Settings(region="eu", disabled=True))


@pytest.mark.parametrize("name", ["settings", "track_client", "app_client", "tracker"])
def test_a_wrong_configuration_is_named_at_once(name: str) -> None:
    """The error comes where the mistake is made, not at the first getter, and nothing is changed."""
    wrong: dict[str, Any] = {name: "s3cr3t"}
    with pytest.raises(ConfigurationError, match=f"^{name} must be .*got str$") as caught:
        CioClientFactory.configure(**wrong)
    assert caught.value.variables == (name,)
    with pytest.raises(ConfigurationError, match="in your environment"):
        CioClientFactory.get_track_client()


def test_a_maker_may_ask_the_factory() -> None:
    """A tracker whose making needs the track client does not wait for itself."""
    made: list[TypedCioClient] = []

    def make_tracker(given: Settings) -> CioBatchTracker:
        made.append(CioClientFactory.get_track_client())
        return CioBatchTracker(given)

    CioClientFactory.configure(Settings(site_id="s", track_api_key="k"), tracker=make_tracker)
    CioClientFactory.get_tracker()
    assert made == [CioClientFactory.get_track_client()]


class Sold(CioEvent, name="sold"):
    total: int


class Customer(UserAttributes):
    seats: int


@pytest.mark.usefixtures("complete")
def test_clients_may_be_annotated_for_a_taxonomy() -> None:
    """A client of all events serves as one of some: no cast is needed."""
    cio: TypedCioClient[Sold, Customer] = CioClientFactory.get_track_client()
    tracker: CioBatchTracker[Sold] = CioClientFactory.get_tracker()
    assert cio is CioClientFactory.get_track_client()
    assert tracker is CioClientFactory.get_tracker()


# ------------------------------------------------------------------------------------------------------- life


async def use_all() -> None:
    await CioClientFactory.get_track_client().identify("u", {"plan": "pro"})
    await CioClientFactory.get_tracker().enqueue("u", "e")
    await CioClientFactory.get_app_client().send_email(
        EmailRequest(to="a@b.c", transactional_message_id=1, identifiers="u")
    )


async def test_aclose_drains_and_closes(pointed: Simulator) -> None:
    """After it everything is delivered and nothing is open; the clients stay, and a new tracker takes over."""
    await use_all()
    track, app, tracker = (get() for get in GETTERS)
    await CioClientFactory.aclose()
    assert [each["name"] for each in pointed.workspace.person("id", "u").events] == ["e"]
    assert pointed.workspace.message_count == 1
    assert not track.is_open
    assert not app.is_open
    assert tracker.is_closed
    with pytest.raises(TrackerClosedError):
        await tracker.enqueue("u", "e")
    assert CioClientFactory.get_track_client() is track
    assert CioClientFactory.get_app_client() is app
    assert CioClientFactory.get_tracker() is not tracker
    await use_all()
    await CioClientFactory.aclose()
    await CioClientFactory.aclose()
    assert len(pointed.workspace.person("id", "u").events) == 2


async def test_a_tracker_that_its_user_closed_makes_room_for_another(pointed: Simulator) -> None:
    """``async with get_tracker()`` in a lifespan works each time that the application starts."""
    for _ in range(2):
        async with CioClientFactory.get_tracker() as tracker:
            assert CioClientFactory.get_tracker() is tracker
            await tracker.enqueue("u", "e")
    assert len(pointed.workspace.person("id", "u").events) == 2


def test_one_loop_after_the_other() -> None:
    """A program that runs several loops has the same clients in each."""
    found: list[tuple[object, object]] = []
    port = 0

    async def use() -> int:
        nonlocal port
        async with Simulator(port=port) as sim:
            port = sim.port
            if not found:
                CioClientFactory.configure(
                    Settings(
                        site_id="site", track_api_key="key", app_api_key="app-key", track_url=sim.url, app_url=sim.url
                    )
                )
            await use_all()
            found.append((CioClientFactory.get_track_client(), CioClientFactory.get_app_client()))
            await CioClientFactory.aclose()
            return len(sim.workspace.person("id", "u").events)

    assert [asyncio.run(use()) for _ in range(3)] == [1, 1, 1]
    assert found[0] == found[1] == found[2]


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")  # aiohttp's own
@pytest.mark.parametrize("kind", ["track", "app", "tracker"])
async def test_reset_complains_of_what_is_open(pointed: Simulator, kind: str) -> None:
    """One warning that names ``aclose()`` for an open client; none for a closed or unused one."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # aiohttp tells the loop, too
    for get in GETTERS:
        get()
    if kind == "track":
        await CioClientFactory.get_track_client().track("u", "e")
    elif kind == "app":
        await CioClientFactory.get_app_client().send_email(
            EmailRequest(to="a@b.c", transactional_message_id=1, identifiers="u")
        )
    else:
        await CioClientFactory.get_tracker().enqueue("u", "e")
    before = [get() for get in GETTERS]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CioClientFactory.reset()
    assert [str(each.message) for each in caught if "aclose()" in str(each.message)] == [
        str(each.message) for each in caught
    ]
    assert [each.category for each in caught] == [ResourceWarning]
    assert [get() for get in GETTERS] != before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CioClientFactory.reset()
    await before[2].close()
    for client in before[:2]:
        await client.aclose()
    del before
    gc.collect()


# ------------------------------------------------------------------------------------------------------- fork


def in_child(work: Callable[[], Any]) -> Any:
    """Run ``work`` in a forked child and return what it returned."""
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; there are none that matter
        pid = os.fork()
    if pid == 0:
        try:
            os.write(send, pickle.dumps(work()))
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(send, pickle.dumps(f"{type(error).__name__}: {error}"))
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.usefixtures("complete")
def test_a_child_gets_objects_of_its_own() -> None:
    """After a fork each getter makes a new one, with the parent's configuration, and it stays the same."""
    CioClientFactory.configure(tracker=functools.partial(CioBatchTracker, batch_size=7))
    parents = [get() for get in GETTERS]

    def look() -> list[Any]:
        mine = [get() for get in GETTERS]
        again = [get() for get in GETTERS]
        fresh = [one is not parent for one, parent in zip(mine, parents, strict=True)]
        return [fresh, mine == again, CioClientFactory.get_tracker()._batch_size]

    assert in_child(look) == [[True] * 3, True, 7]
    assert [get() for get in GETTERS] == parents


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.usefixtures("complete")
def test_a_fork_while_a_thread_makes_a_client_does_not_hang_the_child() -> None:
    """The lock that a thread of the parent holds is not the child's."""
    entered, leave = threading.Event(), threading.Event()

    def slow(settings: Settings) -> TypedCioClient:
        if not entered.is_set():
            entered.set()
            leave.wait(10)
        return TypedCioClient(settings)

    CioClientFactory.configure(track_client=slow)
    thread = threading.Thread(target=CioClientFactory.get_track_client)
    thread.start()
    entered.wait(10)
    assert in_child(lambda: type(CioClientFactory.get_track_client()).__name__) == "TypedCioClient"
    leave.set()
    thread.join(10)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
async def test_a_child_of_a_connected_parent_calls_by_itself(pointed: Simulator) -> None:
    """Parent and child each use connections of their own, also by the very object that the parent had."""
    cio = CioClientFactory.get_track_client()
    await cio.track("parent", "e")

    def call() -> list[bool]:
        # The loop that was running when the process forked is the parent's.
        asyncio._set_running_loop(None)

        async def track() -> list[bool]:
            was_open = cio.is_open
            await cio.track("child", "inherited")
            await CioClientFactory.get_track_client().track("child", "fresh")
            await cio.aclose()
            await CioClientFactory.aclose()
            return [was_open, cio.is_open]

        return asyncio.run(track())

    assert await asyncio.to_thread(in_child, call) == [False, False]
    await cio.track("parent", "e")
    await CioClientFactory.aclose()
    workspace = pointed.workspace
    assert [each["name"] for each in workspace.person("id", "child").events] == ["inherited", "fresh"]
    assert len(workspace.person("id", "parent").events) == 2
