"""Every example runs against the simulator, and what it says arrives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import aiohttp
import attrs
import pytest
from aiohttp.test_utils import TestClient, TestServer

from cio_batch import CioClientFactory, Taxonomy
from cio_batch.simulator import Simulator

from .conftest import settings_for
from .hosts.harness import Host

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TESTED = {
    "aiohttp_app.py",
    "dead_letters.py",
    "direct_client.py",
    "durable.py",
    "factory.py",
    "own_retry.py",
    "quickstart.py",
    "redaction.py",
    "script_with_flush.py",
    "send_email.py",
    "settled_hook.py",
    "starlette_app.py",
    "taxonomy.py",
    "threads.py",
}


def load(name: str) -> ModuleType:
    """Import an example from its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seen(sim: Simulator, person: str) -> list[tuple[str, dict[str, object]]]:
    """Names and data of a person's events, in order."""
    return [(event["name"], event["attributes"]) for event in sim.workspace.person("id", person).events]


def test_every_example_is_tested_and_short() -> None:
    """No example is left out, and each fits on a screen; the taxonomy is as long as it has events."""
    files = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert set(files) == TESTED
    assert max(text.count("\n") for name, text in files.items() if name != "taxonomy.py") < 40
    assert files["taxonomy.py"].count("\n") < 80


@pytest.mark.parametrize(("name", "port"), [("aiohttp_app.py", 8080), ("starlette_app.py", 8000)])
def test_an_application_says_how_to_call_it(name: str, port: int) -> None:
    """The docstring has a line for the shell; the port is the host's own default."""
    docstring = load(name.removesuffix(".py")).__doc__ or ""
    assert f"\n    curl -X POST http://127.0.0.1:{port}/signup/user-1\n" in docstring


async def test_quickstart(sim: Simulator) -> None:
    """The identify and the events arrive, in one call."""
    await load("quickstart").main(settings_for(sim))
    person = sim.workspace.person("id", "user-1")
    assert person.attributes == {"email": "ada@example.com", "plan": "pro"}
    assert seen(sim, "user-1") == [("page_viewed", {"url": url}) for url in ("/", "/pricing", "/signup")]
    assert sim.traffic.calls == 1


async def test_quickstart_as_a_script(sim: Simulator) -> None:
    """With nothing but the environment variables that ``cio-batch simulate`` prints it runs as it stands."""
    async with Host(sim, str(EXAMPLES / "quickstart.py")) as host:
        await host.line("delivered=4")
        assert await host.exit_code() == 0
    assert len(seen(sim, "user-1")) == 3


async def test_script_with_flush(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file's rows are delivered before the next one begins."""
    await load("script_with_flush").main(settings_for(sim))
    assert capsys.readouterr().out.splitlines() == [
        "monday.csv: by now 300 delivered, 0 rejected, 0 undecided",
        "tuesday.csv: by now 500 delivered, 0 rejected, 0 undecided",
    ]
    assert [data["row"] for _, data in seen(sim, "user-7")] == [*range(7, 300, 50), *range(7, 200, 50)]


async def test_threads(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Each thread's events arrive in its order."""
    await load("threads").main(settings_for(sim))
    assert capsys.readouterr().out == "40 events delivered from 4 threads\n"
    for worker in range(4):
        assert seen(sim, f"worker-{worker}") == [("image_resized", {"image": image}) for image in range(10)]


async def test_redaction(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The card number never reaches the wire, and neither does the test user."""
    await load("redaction").main(settings_for(sim))
    assert seen(sim, "user-1") == [("paid", {"amount": 12, "card_number": "***"})]
    assert seen(sim, "test-7") == []
    assert capsys.readouterr().out == "1 dropped\n"


async def test_settled_hook(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """What the service rejects is kept; the rest is delivered."""
    sim.faults.order("partial", indexes=[3])
    [dead_letter] = await load("settled_hook").main(settings_for(sim))
    assert dead_letter.payload["attributes"] == {"n": 3}
    assert [dead_letter.id] == sim.faults.rejected_ids
    summary, line = capsys.readouterr().out.splitlines()
    assert summary == "9 delivered, 1 kept:"
    assert line.startswith(f"{dead_letter.id} rejected")
    assert [data["n"] for _, data in seen(sim, "user-1")] == [0, 1, 2, 4, 5, 6, 7, 8, 9]


async def test_taxonomy(sim: Simulator) -> None:
    """The five events arrive, whether typed or plain, and so do the typed attributes."""
    example = load("taxonomy")
    await example.main(settings_for(sim))
    assert sim.workspace.person("id", "user-1").attributes == {"email": "ada@example.com", "plan": "pro"}
    assert seen(sim, "user-1") == [
        ("signed_up", {"method": "email"}),
        ("plan_changed", {"from": "free", "to": "pro", "mrr": 49.0}),
        ("feature_used", {"feature": "export", "duration_ms": 120}),
        ("checkout_completed", {"order_id": "A-7", "total": 12.5, "items": 3}),
        ("subscription_cancelled", {"reason": "moved"}),
    ]
    assert [event.event_name for event in Taxonomy(example.AppEvent)] == [name for name, _ in seen(sim, "user-1")]


async def test_taxonomy_as_a_script(sim: Simulator) -> None:
    """Types that are resolved in ``__main__``, and the environment alone."""
    async with Host(sim, str(EXAMPLES / "taxonomy.py")) as host:
        assert await host.exit_code() == 0
    assert len(seen(sim, "user-1")) == 5


async def test_own_retry(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The call is repeated until the service answers, and not at all with wrong credentials."""
    sim.faults.order("server_error", times=2)
    await load("own_retry").main(settings_for(sim))
    assert sim.traffic.calls == 3
    assert "region" in capsys.readouterr().out
    sim.faults.order("unauthorized")
    with pytest.raises(aiohttp.ClientResponseError):
        await load("own_retry").main(settings_for(sim))
    assert sim.traffic.calls == 4


async def test_aiohttp_app(sim: Simulator) -> None:
    """What a handler enqueued arrives by the end of the application."""
    server = TestServer(load("aiohttp_app").make_app(settings_for(sim)))
    async with TestClient(server) as client, client.post("/signup/user-1") as response:
        assert await response.text() == "welcome"
    assert seen(sim, "user-1") == [("signed_up", {})]


async def test_starlette_app(sim: Simulator) -> None:
    """Under uvicorn what a handler enqueued arrives by the end of the process, which is uvicorn's own."""
    arguments = ("-m", "uvicorn", "--port", "0", "--app-dir", str(EXAMPLES), "--factory", "starlette_app:make_app")
    async with Host(sim, *arguments) as host:
        async with aiohttp.ClientSession(await host.url()) as session, session.post("/signup/user-1") as response:
            assert await response.text() == "welcome"
        host.terminate()
        assert await host.exit_code() == -15
    assert seen(sim, "user-1") == [("signed_up", {})]


async def test_direct_client(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Every call arrives, stamped, and a refusal is told with the service's words."""
    module = load("direct_client")
    await module.main(settings_for(sim))
    person = sim.workspace.person("id", "user-1")
    assert person.attributes["seats"] == 5
    [(name, data)] = seen(sim, "user-1")
    assert (name, data["method"]) == ("signed_up", "email")
    assert sim.workspace.segments == {3: {("id", "user-1")}}
    assert [form["form_id"] for form in sim.workspace.forms] == ["contact"]
    assert capsys.readouterr().out == "the account lives in us\n"


async def test_send_email(sim: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """The email is sent once, also where its answer is lost, and then the program says so."""
    settings = attrs.evolve(settings_for(sim), app_api_key="app-key", app_url=sim.url)
    await load("send_email").main(settings)
    sim.faults.order("drop_after")
    await load("send_email").main(settings)
    sim.faults.order("unauthorized")
    await load("send_email").main(settings)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"sent as {sim.workspace.messages[0].delivery_id}"
    assert second.startswith("look before you send it again: no answer")
    assert third.startswith("not sent: Customer.io answered 401")
    assert [message.request["attachments"] for message in sim.workspace.messages] == [
        {"invoice.txt": "QS03OiAxMi41MA=="}
    ] * 2


async def test_factory(sim: Simulator) -> None:
    """Both modules use the same clients, and the end of the program drains them."""
    CioClientFactory.reset()
    try:
        await load("factory").main(settings_for(sim))
    finally:
        CioClientFactory.reset()
    assert [name for name, _ in seen(sim, "user-1")] == ["signed_up", "/pricing"]


async def test_durable(sim: Simulator, tmp_path: Path) -> None:
    """What a refused call leaves is sent by the next run, after which nothing is left."""
    sim.faults.order("partial", indexes=[1])
    async with Host(sim, str(EXAMPLES / "durable.py"), str(tmp_path / "events.db")) as host:
        await host.line("^0 events of an earlier run$")
        await host.line("^refused: person.event page_viewed, ")
        await host.line("^2 delivered 0 left$")
        assert await host.exit_code() == 0


async def test_dead_letters(sim: Simulator, tmp_path: Path) -> None:
    """The refused one stands in the file."""
    sim.faults.order("partial", indexes=[0])
    async with Host(sim, str(EXAMPLES / "dead_letters.py"), str(tmp_path / "dead.ndjson")) as host:
        await host.line("^1 refused; they are kept in dead.ndjson$")
        assert await host.exit_code() == 0
    [line] = (tmp_path / "dead.ndjson").read_text(encoding="utf-8").splitlines()
    assert '"order_id":"A-7"' in line
