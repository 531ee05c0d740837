"""What a user can set: credentials and hosts, HTTP options, retries; checked once, frozen afterwards.

Rules:

1. Values are checked when an object is made, and every fault is named in one error.
2. A key never shows: not in a ``repr``, not in an error.
3. A client demands only what it uses: ``Settings`` may lack credentials, ``require_track()`` and ``require_app()``
   may not.

Must not know: asyncio, aiohttp, the clock.
"""

from __future__ import annotations

import inspect
import math
import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast
from urllib.parse import urlsplit

import attrs

from cio_batch.errors import ConfigurationError

if TYPE_CHECKING:
    import aiohttp

Region = Literal["us", "eu"]
Need = Literal["track", "app"]

TRACK_HOSTS: Final[Mapping[str, str]] = {
    "us": "https://track.customer.io",
    "eu": "https://track-eu.customer.io",
}
APP_HOSTS: Final[Mapping[str, str]] = {"us": "https://api.customer.io", "eu": "https://api-eu.customer.io"}

# Settings fields and the environment variables that fill them.
_VARIABLES: Final[Mapping[str, str]] = {
    "site_id": "CUSTOMERIO_SITE_ID",
    "track_api_key": "CUSTOMERIO_TRACK_API_KEY",
    "app_api_key": "CUSTOMERIO_APP_API_KEY",
    "region": "CUSTOMERIO_REGION",
    "track_url": "CUSTOMERIO_TRACK_URL",
    "app_url": "CUSTOMERIO_APP_URL",
    "disabled": "CUSTOMERIO_DISABLED",
}
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "track": ("site_id", "track_api_key"),
    "app": ("app_api_key",),
}
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})
_REMEDY: Final = "set these in your environment or .env file"


def _seconds_faults(options: object, *names: str) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    for name in names:
        value = getattr(options, name)
        if not _is_number(value) or not value > 0 or math.isinf(value):
            faults.append((name, f"must be a number of seconds above 0, got {value!r}"))
    return faults


def _raise_for_options(options: object, faults: list[tuple[str, str]]) -> None:
    if faults:
        owner = type(options).__name__
        msg = "; ".join(f"{owner}.{name} {fault}" for name, fault in faults)
        raise ConfigurationError(msg, tuple(name for name, _ in faults))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


@attrs.frozen(kw_only=True)
class HttpOptions:
    """How calls are made.

    Args:
        total_timeout: Seconds for a whole call, connecting and reading included. A 500 KB body on a slow
            uplink (200 KB/s) takes 2.5 s; 30 s leaves room for a slow answer.
        connect_timeout: Seconds to make a TCP connection.
        read_timeout: Seconds to wait for the next bytes of an answer; ``None`` leaves that to ``total_timeout``. To
            watch each answer takes two timers, which is a twentieth of what a call of Track v1 costs.
        proxy: URL of an HTTP proxy.
        ca_bundle: Path of a PEM file with the certificate authorities to trust, instead of the system's.
        trust_env: Whether to take proxies from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY`` and ``~/.netrc``.
        session: An ``aiohttp.ClientSession`` of your own. It is used as it is and never closed; it must
            belong to the loop in which the tracker runs, and ``ca_bundle`` and ``trust_env`` are then its own affair.

    Raises:
        ConfigurationError: A value is not usable.
    """

    total_timeout: float = 30.0
    connect_timeout: float = 5.0
    read_timeout: float | None = None
    proxy: str | None = attrs.field(default=None, repr=False)  # may hold credentials
    ca_bundle: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    trust_env: bool = False
    session: aiohttp.ClientSession | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        faults = _seconds_faults(self, "total_timeout", "connect_timeout")
        if self.read_timeout is not None:
            faults += _seconds_faults(self, "read_timeout")
        if self.proxy is not None and not _has_host(self.proxy):
            faults.append(("proxy", "must be a URL such as http://host:port"))
        if self.ca_bundle is not None and not _holds_certificates(self.ca_bundle):
            faults.append(("ca_bundle", f"must be a PEM file with certificates, which {self.ca_bundle} is not"))
        _raise_for_options(self, faults)


@attrs.frozen(kw_only=True)
class RetryOptions:
    """How often and how patiently a call is repeated.

    The wait before repeat *n* (from 0) is ``min(base_delay * 2**n, max_delay) * (1 + jitter * random())``
    with ``random()`` in [0, 1). With ``jitter="full"`` it is ``min(base_delay * 2**n, max_delay) * random()``.
    A ``Retry-After`` is a floor: jitter comes on top of it, never off.

    Args:
        max_retries: Repeats after the first attempt. 3 is right where somebody waits
            for the answer; a tracker's default is :data:`QUEUE_RETRY`.
        base_delay: Seconds before the first repeat.
        max_delay: Seconds that the exponential part never exceeds.
        jitter: A share of the delay between 0 and 1 that is added at random, or ``"full"``.
        max_elapsed: Seconds after which no repeat is begun, counted from the first attempt; ``None`` for no limit.
        max_retry_after: Seconds to which a ``Retry-After`` is capped.

    Raises:
        ConfigurationError: A value is out of range.
    """

    max_retries: int = 3
    base_delay: float = 1.0
    max_delay: float = 30.0
    jitter: float | Literal["full"] = 0.3
    max_elapsed: float | None = None
    max_retry_after: float = 300.0

    def __attrs_post_init__(self) -> None:
        faults = _seconds_faults(self, "base_delay", "max_delay", "max_retry_after")
        if self.max_elapsed is not None:
            faults += _seconds_faults(self, "max_elapsed")
        if type(self.max_retries) is not int or self.max_retries < 0:
            faults.append(("max_retries", f"must be a whole number of at least 0, got {self.max_retries!r}"))
        if self.jitter != "full" and not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            faults.append(("jitter", f"must be between 0 and 1, or 'full', got {self.jitter!r}"))
        _raise_for_options(self, faults)


QUEUE_RETRY: Final = RetryOptions(max_retries=9)
"""The tracker's patience: 1 + 2 + 4 + 8 + 16 + 30 * 4 s and half of the jitter, about three minutes. Nobody
waits for a queued operation, and a deploy or a short outage of the service lasts that long."""


@attrs.frozen(kw_only=True)
class AppRateLimits:
    """How many calls of each kind the App client makes in a second; ``None`` for no limit.

    The service allows so many to a whole workspace: give each of several processes its share.

    Args:
        sends: Transactional messages.
        broadcasts: Triggered broadcasts; 0.1 is one in ten seconds.
        calls: All calls but sends.

    Raises:
        ConfigurationError: A rate is not usable.

    Source: https://customer.io/docs/api/app/ (rate limits).
    """

    sends: float | None = 100.0
    broadcasts: float | None = 0.1
    calls: float | None = 10.0

    def __attrs_post_init__(self) -> None:
        faults = [
            (name, f"must be a number of calls per second above 0, or None, got {value!r}")
            for name, value in attrs.asdict(self).items()
            if value is not None and (not _is_number(value) or not 0 < value < math.inf)
        ]
        _raise_for_options(self, faults)


@attrs.frozen(kw_only=True)
class Settings:
    """Where to send, and as whom.

    Args:
        site_id: Site ID of the Track API (*Settings > API credentials > Track*).
        track_api_key: Its key. Any non-empty printable text is taken as well-formed.
        app_api_key: Key of the App API; only the App client needs it.
        region: ``"us"`` or ``"eu"``: the data centre of the account.
        track_url: Another origin instead of the region's, for example of a simulator: ``http://127.0.0.1:8080``.
        app_url: The same for the App API.
        track_credentials: A plain function that returns ``(site_id, track_api_key)``, for credentials that change while
            the program runs; it takes the place of the two above. It is asked when a client is made, and again, in a
            thread of its own, when the service answers 401; with other credentials the call is repeated at once.
        app_credentials: The same for the App API: it returns the key.
        disabled: Validate and count everything, send nothing. By default ``CUSTOMERIO_DISABLED=1`` decides, also where
            the credentials do not come from the environment.
        http: Timeouts, proxy, certificates.

    Raises:
        ConfigurationError: Names every malformed value at once; never shows one of a key.

    Source: https://customer.io/docs/api/track/ (servers, authentication).
    """

    site_id: str | None = attrs.field(default=None, repr=False)
    track_api_key: str | None = attrs.field(default=None, repr=False)
    app_api_key: str | None = attrs.field(default=None, repr=False)
    region: Region = "us"
    track_url: str | None = None
    app_url: str | None = None
    track_credentials: Callable[[], tuple[str, str]] | None = attrs.field(default=None, repr=False)
    app_credentials: Callable[[], str] | None = attrs.field(default=None, repr=False)
    disabled: bool = attrs.field(factory=lambda: _switch(os.environ.get(_VARIABLES["disabled"], "")))
    http: HttpOptions = attrs.field(factory=HttpOptions)

    def __attrs_post_init__(self) -> None:
        _raise_for(_faults(attrs.asdict(self, recurse=False), label=lambda name: name))

    @classmethod
    def from_env(
        cls,
        dotenv: bool | str | Path = False,
        *,
        http: HttpOptions | None = None,
        environ: Mapping[str, str] | None = None,
        needs: Sequence[Need] = (),
    ) -> Settings:
        """Read the settings from the environment.

        ``CUSTOMERIO_SITE_ID``, ``CUSTOMERIO_TRACK_API_KEY``, ``CUSTOMERIO_APP_API_KEY``, ``CUSTOMERIO_REGION``
        (``us`` by default), ``CUSTOMERIO_TRACK_URL``, ``CUSTOMERIO_APP_URL``, ``CUSTOMERIO_DISABLED``. What is
        missing is demanded by the client that needs it. Space around a value is ignored.

        Args:
            dotenv: ``True`` to read a ``.env`` file (searched upwards from the working directory) beneath the
                environment, or the path of one. Needs the extra ``cio-batch[dotenv]``.
            http: HTTP options; these have no variables.
            environ: A mapping to read instead of ``os.environ``.
            needs: ``"track"`` or ``"app"`` to demand the credentials of that API at once (unless sending is disabled).

        Raises:
            ConfigurationError: Names every variable that is malformed, or needed and missing, at once.
        """
        source: dict[str, str] = {}
        if dotenv is not False:
            source.update(_read_dotenv(None if dotenv is True else Path(dotenv)))
        source.update(os.environ if environ is None else environ)
        values: dict[str, Any] = {
            field: text for field, variable in _VARIABLES.items() if (text := source.get(variable, "").strip())
        }
        if "region" in values:
            values["region"] = values["region"].lower()
        values["disabled"] = _switch(values.get("disabled", ""))
        faults = _faults(values, label=_VARIABLES.__getitem__)
        if values["disabled"] is not True:
            needed = [name for need in needs for name in _NEEDED[need]]
            faults += [(_VARIABLES[name], "is missing") for name in needed if name not in values]
        _raise_for(faults)
        return cls(**values) if http is None else cls(**values, http=http)

    @property
    def track_origin(self) -> str:
        """The origin of the Track API: ``track_url``, or the region's host; no slash at the end."""
        return (self.track_url or TRACK_HOSTS[self.region]).rstrip("/")

    @property
    def app_origin(self) -> str:
        """The origin of the App API, likewise."""
        return (self.app_url or APP_HOSTS[self.region]).rstrip("/")

    def require_track(self) -> tuple[str, str]:
        """Return site ID and Track key, or say which are missing.

        Raises:
            ConfigurationError: Names each missing variable, or ``track_credentials`` where it returned something else.
            Exception: What ``track_credentials`` raised.
        """
        if self.track_credentials is not None:
            pair = cast("object", self.track_credentials())
            match pair:
                case (str(site_id), str(key)) if _well_formed_key(site_id) and _well_formed_key(key):
                    return site_id, key
                case _:
                    _raise_for_credentials("track_credentials", "(site_id, track_api_key)")
        self._demand("track")
        return str(self.site_id), str(self.track_api_key)

    def require_app(self) -> str:
        """Return the App key, or say that it is missing.

        Raises:
            ConfigurationError: Names the missing variable, or ``app_credentials`` where it returned something else.
            Exception: What ``app_credentials`` raised.
        """
        if self.app_credentials is not None:
            key: Any = self.app_credentials()
            if not _well_formed_key(key):
                _raise_for_credentials("app_credentials", "the App API key")
            return str(key)
        self._demand("app")
        return str(self.app_api_key)

    def _demand(self, need: Need) -> None:
        _raise_for([(_VARIABLES[name], "is missing") for name in _NEEDED[need] if not getattr(self, name)])


def _holds_certificates(path: Path) -> bool:
    try:
        ssl.create_default_context(cafile=path)
    except OSError:  # no such file; or an SSLError, which is one too: nothing in it
        return False
    return True


def _switch(text: str) -> Any:
    """Read a switch; what is neither on nor off comes back as it is, to be named as a fault."""
    lowered = text.strip().lower()
    return True if lowered in _TRUE else False if lowered in _FALSE else text


def _read_dotenv(path: Path | None) -> dict[str, str]:
    try:
        import dotenv as python_dotenv
    except ImportError:
        msg = "reading a .env file needs python-dotenv: pip install 'cio-batch[dotenv]'"
        raise ConfigurationError(msg) from None
    if path is not None and not path.is_file():
        msg = f"the .env file {path} does not exist"
        raise ConfigurationError(msg)
    found = path if path is not None else python_dotenv.find_dotenv(usecwd=True)
    return {name: text for name, text in python_dotenv.dotenv_values(found).items() if text is not None}


def _faults(values: Mapping[str, Any], label: Callable[[str], str]) -> list[tuple[str, str]]:
    """Every malformed value as (name, what is wrong); a value of a key is never part of it."""
    faults: list[tuple[str, str]] = []
    for name in ("site_id", "track_api_key", "app_api_key"):
        value = values.get(name)
        if value is not None and not _well_formed_key(value):
            faults.append((label(name), "must be printable text that is not empty"))
    if "region" in values and values["region"] not in TRACK_HOSTS:
        faults.append((label("region"), "must be 'us' or 'eu'"))
    for name in ("track_url", "app_url"):
        value = values.get(name)
        if value is not None and (fault := _origin_fault(value)) is not None:
            faults.append((label(name), fault))
    for name in ("track_credentials", "app_credentials"):
        function = values.get(name) or str
        if not callable(function) or inspect.iscoroutinefunction(function):
            faults.append((label(name), "must be a plain function; after a 401 it is called in a thread"))
    if not isinstance(values.get("disabled", False), bool):
        faults.append((label("disabled"), "must be 1 or 0"))
    return faults


def _well_formed_key(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable() and not value.isspace()


def _has_host(url: object) -> bool:
    try:
        return isinstance(url, str) and bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _origin_fault(value: object) -> str | None:
    expected = "must be an origin such as https://track.customer.io, without path, query or user"
    if not isinstance(value, str) or not value.isprintable() or any(char in value for char in " ?#"):
        return expected
    try:
        parts = urlsplit(value)
        valid_port = parts.port is None or parts.port > 0
    except ValueError:
        return expected
    if parts.scheme not in ("http", "https") or not parts.hostname or not valid_port:
        return expected
    if parts.path not in ("", "/") or "@" in parts.netloc:
        return expected
    return None


def _raise_for_credentials(name: str, expected: str) -> NoReturn:
    msg = f"{name} must return {expected}: printable text without spaces around it"
    raise ConfigurationError(msg, (name,))


def _raise_for(faults: Iterable[tuple[str, str]]) -> None:
    listed = list(faults)
    if listed:
        text = "; ".join(f"{name} {fault}" for name, fault in listed)
        msg = f"{text}: {_REMEDY}"
        raise ConfigurationError(msg, tuple(name for name, _ in listed))
