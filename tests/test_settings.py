"""What can be set, how it is read from the environment, and that no key ever shows."""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from cio_batch import CioBatchError, ConfigurationError, HttpOptions, RetryOptions, Settings
from cio_batch.settings import QUEUE_RETRY

REMEDY = "set these in your environment or .env file"
SECRET = "s3cr3t\x07key"  # not printable, hence malformed
GOOD = {
    "CUSTOMERIO_SITE_ID": "site-1",
    "CUSTOMERIO_TRACK_API_KEY": "track-key-1",
    "CUSTOMERIO_APP_API_KEY": "app-key-1",
    "CUSTOMERIO_REGION": "eu",
    "CUSTOMERIO_TRACK_URL": "http://127.0.0.1:8080",
    "CUSTOMERIO_APP_URL": "http://localhost:8081/",
    "CUSTOMERIO_DISABLED": "1",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in GOOD:
        monkeypatch.delenv(variable, raising=False)


def refused(make: Callable[[], object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return caught.value


# -------------------------------------------------------------------------------------------------- environment


def test_every_variable_is_read() -> None:
    """Each variable fills its field."""
    settings = Settings.from_env(environ=GOOD)
    assert attrs.asdict(settings, recurse=False) == {
        "site_id": "site-1",
        "track_api_key": "track-key-1",
        "app_api_key": "app-key-1",
        "region": "eu",
        "track_url": "http://127.0.0.1:8080",
        "app_url": "http://localhost:8081/",
        "track_credentials": None,
        "app_credentials": None,
        "disabled": True,
        "http": HttpOptions(),
    }
    assert settings.require_track() == ("site-1", "track-key-1")
    assert (settings.track_origin, settings.app_origin) == ("http://127.0.0.1:8080", "http://localhost:8081")


def test_the_process_environment_is_the_default_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping ``os.environ`` is read."""
    monkeypatch.setenv("CUSTOMERIO_SITE_ID", "from-the-process")
    assert Settings.from_env().site_id == "from-the-process"


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing is demanded before somebody needs it; blank counts as missing."""
    assert Settings.from_env(environ={}) == Settings()
    assert Settings.from_env(environ=dict.fromkeys(GOOD, "  ")) == Settings()


def test_space_around_a_value_is_ignored() -> None:
    """A trailing newline, as secrets in files have it, is no part of a key."""
    settings = Settings.from_env(environ={name: f" {text}\n" for name, text in GOOD.items()})
    assert settings == Settings.from_env(environ=GOOD)


def test_http_options_are_passed_through() -> None:
    """Options without a variable are given in code."""
    http = HttpOptions(total_timeout=1.0)
    assert Settings.from_env(http=http, environ={}).http is http


MALFORMED = {
    "CUSTOMERIO_SITE_ID": SECRET,
    "CUSTOMERIO_TRACK_API_KEY": "a" + SECRET,
    "CUSTOMERIO_APP_API_KEY": "b" + SECRET,
    "CUSTOMERIO_REGION": "mars",
    "CUSTOMERIO_TRACK_URL": "track.customer.io",
    "CUSTOMERIO_APP_URL": "https://user:pw@api.customer.io",
    "CUSTOMERIO_DISABLED": "maybe",
}


@pytest.mark.parametrize("variable", MALFORMED)
def test_each_malformed_variable_is_named(variable: str) -> None:
    """The error names the variable at fault, no other, and what to do."""
    error = refused(lambda: Settings.from_env(environ={**GOOD, variable: MALFORMED[variable]}))
    assert error.variables == (variable,)
    assert variable in str(error)
    assert REMEDY in str(error)
    assert isinstance(error, CioBatchError)
    assert isinstance(error, ValueError)


def test_all_malformed_variables_are_named_in_one_error() -> None:
    """Nobody has to repair one variable after the other, and no value of a key shows."""
    error = refused(lambda: Settings.from_env(environ=MALFORMED))
    assert set(error.variables) == set(MALFORMED)
    shown = str(error) + repr(error) + "".join(traceback.format_exception(error))
    assert all(variable in str(error) for variable in MALFORMED)
    for secret in ("s3cr3t", "user:pw", "mars", "maybe"):
        assert secret not in shown
    assert str(error).count(REMEDY) == 1


def test_all_malformed_fields_are_named_in_one_error() -> None:
    """Settings made in code are checked alike, by the names of their fields."""
    error = refused(
        lambda: Settings(
            site_id="",
            track_api_key="s3cr3t\nkey",
            app_api_key=7,  # type: ignore[arg-type]
            region="US",  # type: ignore[arg-type]
            track_url="ftp://x",
            app_url="",
            track_credentials=("s", "k"),  # type: ignore[arg-type]
            app_credentials="k",  # type: ignore[arg-type]
            disabled="no",  # type: ignore[arg-type]
        )
    )
    assert error.variables == tuple(field.name for field in attrs.fields(Settings) if field.name != "http")
    assert "s3cr3t" not in str(error)


def test_credentials_come_from_a_plain_function() -> None:
    """One that is asynchronous would be asked in a thread that has no loop, and never be awaited."""

    async def fetch() -> tuple[str, str]:
        return "site", "key"

    for name in ("track_credentials", "app_credentials"):
        wrong: dict[str, Any] = {name: fetch}
        error = refused(functools.partial(Settings, **wrong))
        assert error.variables == (name,)
        assert "must be a plain function" in str(error)


@pytest.mark.parametrize(
    ("text", "disabled"),
    [
        *[(text, True) for text in ("1", "true", "TRUE", "yes", "On")],
        *[(text, False) for text in ("0", "false", "No", "OFF", "", " ")],
    ],
)
def test_disabled_is_read_from_the_usual_words(text: str, disabled: bool) -> None:
    """The usual words for yes and no are understood in any case."""
    assert Settings.from_env(environ={"CUSTOMERIO_DISABLED": text}).disabled is disabled


@pytest.mark.parametrize("region", ["us", "eu", "US", " Eu "])
def test_a_region_in_the_environment_may_be_in_any_case(region: str) -> None:
    """Case is no fault in the environment."""
    assert Settings.from_env(environ={"CUSTOMERIO_REGION": region}).region == region.strip().lower()


# ------------------------------------------------------------------------------------------------------ hosts


@pytest.mark.parametrize(
    ("region", "track", "app"),
    [
        ("us", "https://track.customer.io", "https://api.customer.io"),
        ("eu", "https://track-eu.customer.io", "https://api-eu.customer.io"),
    ],
)
def test_a_region_has_its_hosts(region: Any, track: str, app: str) -> None:
    """Each region's data stays with its own hosts."""
    settings = Settings(region=region)
    assert (settings.track_origin, settings.app_origin) == (track, app)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://[::1]:8080", "https://proxy.example/", "HTTPS://x"])
def test_an_origin_replaces_the_host(url: str) -> None:
    """Any origin can stand in for the region's, without its slash."""
    settings = Settings(region="eu", track_url=url, app_url=url)
    assert settings.track_origin == settings.app_origin == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "track.customer.io",
        "//track.customer.io",
        "https://",
        "https://:443",
        "ftp://x",
        "https://x/api",
        "https://x?a=b",
        "https://x?",
        "https://x#f",
        "https://x#",
        "https://user@x",
        "https://x:99999",
        "https://x:0",
        "https://x:port",
        "https://[::1",
        "https://x y",
        "https://x\n",
        "https://x\t.y",
        "",
        7,
    ],
)
def test_what_is_no_origin_is_refused(url: Any) -> None:
    """A path, a query, a user, an impossible port and the like are refused before anything is sent there."""
    error = refused(lambda: Settings(track_url=url, app_url=url))
    assert error.variables == ("track_url", "app_url")


# ----------------------------------------------------------------------------------------------------- .env files


def test_a_dotenv_file_lies_beneath_the_environment(tmp_path: Path) -> None:
    """What the file has is used, and the environment wins."""
    path = tmp_path / "settings.env"
    path.write_text(
        "# credentials\n"
        "export CUSTOMERIO_SITE_ID='from-file'\n"
        'CUSTOMERIO_TRACK_API_KEY="key from file"\n'
        "CUSTOMERIO_REGION=eu\n"
        "CUSTOMERIO_APP_API_KEY\n"
    )
    settings = Settings.from_env(path, environ={"CUSTOMERIO_SITE_ID": "from-environment"})
    assert settings.require_track() == ("from-environment", "key from file")
    assert settings.region == "eu"
    assert settings.app_api_key is None
    assert Settings.from_env(str(path), environ={}).site_id == "from-file"


def test_a_dotenv_file_is_found_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dotenv=True`` finds the ``.env`` of the project from within it, and nothing else is changed by reading it."""
    (tmp_path / ".env").write_text("CUSTOMERIO_SITE_ID=from-file\nOTHER=1\n")
    inner = tmp_path / "deep" / "inside"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Settings.from_env(dotenv=True, environ={}).site_id == "from-file"
    assert Settings.from_env(dotenv=True).site_id == "from-file"
    assert Settings.from_env(environ={}).site_id is None
    assert Settings.from_env().site_id is None, "reading a file must not write the process environment"


def test_a_dotenv_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A path that was given is meant."""
    assert "does not exist" in str(refused(lambda: Settings.from_env(tmp_path / "none.env", environ={})))


def test_a_malformed_value_in_a_dotenv_file_is_named(tmp_path: Path) -> None:
    """A fault in the file is reported like one in the environment."""
    path = tmp_path / ".env"
    path.write_text("CUSTOMERIO_REGION=mars\n")
    assert refused(lambda: Settings.from_env(path, environ={})).variables == ("CUSTOMERIO_REGION",)


# ------------------------------------------------------------------------------------------------- what is demanded


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY")),
        ({"site_id": "s"}, ("CUSTOMERIO_TRACK_API_KEY",)),
        ({"track_api_key": "s3cr3t"}, ("CUSTOMERIO_SITE_ID",)),
        ({"app_api_key": "s3cr3t"}, ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY")),
    ],
)
def test_only_what_is_missing_is_demanded(given: dict[str, str], missing: tuple[str, ...]) -> None:
    """A client names exactly the variables that it needs and has not, and what to do."""
    error = refused(Settings(**given).require_track)  # type: ignore[arg-type]
    assert error.variables == missing
    assert all(variable in str(error) for variable in missing)
    assert "CUSTOMERIO_APP_API_KEY" not in str(error)
    assert REMEDY in str(error)
    assert "s3cr3t" not in str(error)


def test_no_key_shows_in_a_repr() -> None:
    """Neither keys nor a proxy, which may hold a password, are printed."""
    settings = Settings(
        site_id="s3cr3t-1",
        track_api_key="s3cr3t-2",
        app_api_key="s3cr3t-3",
        http=HttpOptions(proxy="http://user:s3cr3t-4@proxy:8080"),
    )
    assert "s3cr3t" not in repr(settings) + str(settings) + f"{settings.http}"
    assert "region='us'" in repr(settings)


@pytest.mark.parametrize("group", [Settings(), HttpOptions(), RetryOptions(), QUEUE_RETRY])
def test_settings_are_frozen(group: Any) -> None:
    """Checked once, nothing changes afterwards."""
    for field in attrs.fields(type(group)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(group, field.name, None)


# ------------------------------------------------------------------------------------------------- options

NO_SECONDS = [0, -1, 0.0, -0.5, math.nan, math.inf, "1", True, [1]]


@pytest.mark.parametrize("value", [*NO_SECONDS, None], ids=repr)
@pytest.mark.parametrize("name", ["total_timeout", "connect_timeout", "read_timeout"])
def test_a_timeout_is_seconds_above_0(name: str, value: Any) -> None:
    """Zero, negative, endless and non-numbers are refused by name; only ``read_timeout`` may be ``None``."""
    if name == "read_timeout" and value is None:
        assert HttpOptions(read_timeout=None).read_timeout is None
        return
    error = refused(lambda: HttpOptions(**{name: value}))
    assert error.variables == (name,)
    assert f"HttpOptions.{name}" in str(error)


@pytest.mark.parametrize("value", [*NO_SECONDS, None], ids=repr)
@pytest.mark.parametrize("name", ["base_delay", "max_delay", "max_retry_after", "max_elapsed"])
def test_a_delay_is_seconds_above_0(name: str, value: Any) -> None:
    """The same for the waits; only ``max_elapsed`` may be ``None``."""
    if name == "max_elapsed" and value is None:
        assert RetryOptions(max_elapsed=None).max_elapsed is None
        return
    error = refused(lambda: RetryOptions(**{name: value}))
    assert error.variables == (name,)
    assert f"RetryOptions.{name}" in str(error)


@pytest.mark.parametrize("value", [-1, 1.0, True, "3", None, math.inf])
def test_retries_are_a_whole_number(value: Any) -> None:
    """Half a retry, fewer than none and endless ones are refused."""
    assert refused(lambda: RetryOptions(max_retries=value)).variables == ("max_retries",)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, True, "half", None])
def test_jitter_is_a_share_or_full(value: Any) -> None:
    """Jitter is between 0 and 1, or ``"full"``."""
    assert refused(lambda: RetryOptions(jitter=value)).variables == ("jitter",)
    for good in (0, 1, 0.0, 0.3, 1.0, "full"):
        RetryOptions(jitter=good)  # type: ignore[arg-type]


def test_every_fault_of_a_group_is_named_in_one_error(tmp_path: Path) -> None:
    """Nobody repairs one option after the other."""
    error = refused(
        lambda: RetryOptions(
            max_retries=-1, base_delay=0, max_delay=-1, jitter=2, max_elapsed=0, max_retry_after=math.inf
        )
    )
    assert set(error.variables) == {field.name for field in attrs.fields(RetryOptions)}
    error = refused(
        lambda: HttpOptions(
            total_timeout=0, connect_timeout=0, read_timeout=0, proxy="no-url", ca_bundle=tmp_path / "none.pem"
        )
    )
    assert set(error.variables) == {"total_timeout", "connect_timeout", "read_timeout", "proxy", "ca_bundle"}


@pytest.mark.parametrize("proxy", ["", "proxy:8080", "http://", "http://[s3cr3t", 7])
def test_a_proxy_is_a_url(proxy: Any) -> None:
    """What is no URL is refused without being shown."""
    error = refused(lambda: HttpOptions(proxy=proxy))
    assert error.variables == ("proxy",)
    assert "s3cr3t" not in "".join(traceback.format_exception(error))


def test_a_ca_bundle_holds_certificates(tmp_path: Path) -> None:
    """A bundle that is not there, or holds none, is refused at once and not with the first call."""
    path = tmp_path / "ca.pem"
    assert refused(lambda: HttpOptions(ca_bundle=path)).variables == ("ca_bundle",)
    path.write_text("-----BEGIN CERTIFICATE-----")
    assert refused(lambda: HttpOptions(ca_bundle=path)).variables == ("ca_bundle",)
    assert refused(lambda: HttpOptions(ca_bundle=tmp_path)).variables == ("ca_bundle",)


@pytest.mark.parametrize("key", ["k", " k ", "a:b", "schlüssel", "\u4f60"])
def test_any_key_that_is_not_empty_and_printable_is_well_formed(key: str) -> None:
    """What Customer.io gives out is not ours to judge."""
    assert Settings(site_id="s", track_api_key=key).require_track() == ("s", key)
