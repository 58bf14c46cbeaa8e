"""Redis URLs: what they mean, without connecting: which place, how to show them, and how connections are made.

kombu's rules for schemes, databases and options hold; what a URL cannot say comes from Celery's broker settings.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

import redis
import redis.sentinel
from kombu.utils.imports import symbol_by_name
from redis.backoff import NoBackoff
from redis.retry import Retry

from .exceptions import ConfigurationError

__all__ = (
    "SOCKET_TIMEOUT",
    "ConnectionOptions",
    "make_pool",
    "place",
    "safe_url",
    "wait",
    "with_login",
    "without_login",
)

#: Seconds that a command other than a blocking read may take. redis-py 8 has 5 by default; older ones wait for ever.
SOCKET_TIMEOUT = 5.0

#: redis-py's own largest number of connections of a pool.
_NO_BOUND = 2**31

#: The password of a URL: from the first colon behind the scheme to the last ``@`` (also where the password was not
#: percent-encoded as it should be), or an argument of the query.
_PASSWORD = re.compile(r"(//[^:/?#@]*:).*(?=@)")
_PASSWORD_ARGUMENT = re.compile(r"([?&][a-z_]*password=)[^&#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """What Celery's broker settings say about connections."""

    #: ``broker_transport_options``
    transport: Mapping[str, Any] = field(default_factory=dict)
    #: ``broker_use_ssl``: False, True or a mapping of ssl_* options
    ssl: Any = False
    #: ``broker_connection_timeout`` in seconds
    connect_timeout: float | None = 4.0
    #: ``broker_user``, ``broker_password``, ``broker_port`` and ``broker_vhost``, for what a URL leaves open.
    username: str | None = None
    password: str | None = None
    port: int | None = None
    database: str | int | None = None
    #: A database that is meant whatever the URL says.
    other_database: int | None = None
    #: ``streams_max_connection_age`` in seconds
    max_age: float | None = None
    #: A node of a Redis Cluster that did not answer in time is not asked again for a while.
    rests: bool = False


def safe_url(url: str) -> str:
    """Return the URL with its password hidden, for logs and errors."""
    # By pattern and not by parsing: this is asked for URLs that cannot be parsed, too.
    return ";".join(
        _PASSWORD_ARGUMENT.sub(
            r"\1**", _PASSWORD.sub(r"\1**", part if "://" in part else f"//{part}").removeprefix("//")
        )
        for part in url.split(";")
    )


#: The user and password of a URL, before its host; and as arguments of its query.
_LOGIN = re.compile(r"(?<=://)([^/?#;]*)@")
_LOGIN_ARGUMENT = re.compile(r"(?<=[?&])(username|password)=([^&#;]*)(?:&|$|(?=[#;]))")


def without_login(url: str) -> tuple[str, str | None, str | None]:
    """Return a URL without user and password, and both, as far as it names them."""
    said = _LOGIN.search(url)
    user, _, password = said[1].partition(":") if said else ("", "", "")
    arguments = {name: unquote(value) for name, value in _LOGIN_ARGUMENT.findall(url)}
    rest = _LOGIN_ARGUMENT.sub("", _LOGIN.sub("", url))
    rest = re.sub(r"[?&](?=$|[#;])", "", rest)
    user, password = arguments.get("username") or unquote(user), arguments.get("password") or unquote(password)
    return rest, user or None, password or None


def with_login(url: str, user: str | None, password: str | None) -> str:
    """Return a URL with this user and password before its first host."""
    scheme, _, rest = url.partition("://")
    secret = "" if password is None else f":{quote(password, safe='*')}"
    login = f"{quote(user or '', safe='')}{secret}"
    return f"{scheme}://{login}@{rest}" if login else url


def place(url: str, *, default_database: int | str = 0) -> tuple[str, int, str]:
    """Return what tells Redis databases apart: host or socket, port, number; of several Sentinels, by the first.

    Never raises: a URL that cannot be parsed is a place of its own.
    """
    first = url.partition(";")[0]
    try:
        parts = urlsplit(first)
        port = parts.port or (26379 if parts.scheme.startswith("sentinel") else 6379)
    except ValueError:
        return first, 0, ""
    query = parse_qs(parts.query)
    fallback = str(default_database)
    if not parts.hostname:
        number = query.get("db", query.get("virtual_host", [fallback]))[0]
        return unquote(parts.path), 0, number.strip("/")
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    number = parts.path.strip("/") or ("0" if parts.path.startswith("//") else fallback)
    return host, port, query.get("db", [number])[0]


_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "socket": "unix",
}


def make_pool(url: str, options: ConnectionOptions) -> Any:
    """Return redis-py's pool for ``url``; it only makes connections here, and holds none.

    Raises:
        ConfigurationError: it is no URL of a Redis, or an option is wrong.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("redis+cluster", "rediss+cluster"):
        raise ConfigurationError(
            f"{safe_url(url)} is the URL of a Redis Cluster, as broker_url, streams_url and result_backend can be; "
            "use a single server, Sentinel or a Unix socket here"
        )
    if scheme != "sentinel" and scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{safe_url(url)}: streams need a Redis or Valkey URL (redis://, rediss://, unix://, sentinel://, "
            "valkey://), not the transport of another broker; set streams_url"
        )
    try:
        if scheme == "sentinel":
            return _sentinel_pool(url, options)
        return _pool(url, options, encrypted=_SCHEMES[scheme] == "rediss", local=_SCHEMES[scheme] == "unix")
    except ConfigurationError:
        raise
    except ValueError as exc:
        raise _not_a_url(url, exc) from exc
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(f"{safe_url(url)}: bad connection options: {exc}") from exc


def _pool(url: str, options: ConnectionOptions, *, encrypted: bool, local: bool) -> Any:
    parts = _Parts.of(url)
    extra = _common_options(options, parts)
    extra["db"] = _database(parts, options)
    if local:
        extra["path"] = parts.path
        extra["connection_class"] = redis.UnixDomainSocketConnection
        for name in ("socket_keepalive", "socket_keepalive_options"):
            extra.pop(name, None)  # what TCP has, and kombu leaves out as well
        return _checked(redis.ConnectionPool(**extra), url)
    extra["host"] = parts.host or "localhost"
    extra["port"] = parts.port or options.port or 6379
    tls = _tls(options, parts)
    if encrypted or tls is not None:
        extra["connection_class"] = redis.SSLConnection
        extra.update(_with_checked_name(tls or {}))
    return _checked(redis.ConnectionPool(**extra), url)


def _not_a_url(url: str, exc: ValueError) -> ConfigurationError:
    if "@" in url:
        # The reason may quote a part of a password that was not percent-encoded.
        return ConfigurationError(
            f"{safe_url(url)} is not a Redis URL: check host, port and database, and percent-encode the password"
        )
    return ConfigurationError(f"{safe_url(url)} is not a Redis URL: {exc}")


def _checked(pool: Any, url: str) -> Any:
    try:
        pool.make_connection()
    except (TypeError, ValueError, redis.RedisError) as exc:
        raise ConfigurationError(f"{safe_url(url)}: bad connection options: {exc}") from exc
    return pool


@dataclass(slots=True)
class _Parts:
    """What one URL says, with the words of its query turned into values."""

    host: str
    port: int | None
    path: str
    username: str | None
    password: str | None
    database: int | None
    master_name: str | None
    options: dict[str, Any]
    tls: dict[str, Any]

    @classmethod
    def of(cls, url: str) -> _Parts:
        """Take a URL apart.

        Raises:
            ValueError: it is none, or a value means nothing.
        """
        parts = urlsplit(url)
        local = not parts.netloc.rpartition("@")[2] and _SCHEMES.get(parts.scheme) == "unix"
        query = dict(parse_qsl(parts.query))
        database = query.pop("db", query.pop("virtual_host", None))
        if database is None and not local:
            # A path of a socket is the socket. Elsewhere redis-py takes database 0 for a path that is no number.
            database = unquote(parts.path)
        username = query.pop("username", None) or unquote(parts.username or "")
        password = query.pop("password", None) or unquote(parts.password or "")
        return cls(
            host=unquote(parts.hostname or ""),
            port=parts.port,
            path=unquote(parts.path),
            username=username or None,
            password=password or None,
            database=_number(database),
            master_name=query.pop("master_name", None),
            options={name: _option(name, value) for name, value in query.items() if not name.startswith("ssl_")},
            tls=_tls_values({name: value for name, value in query.items() if name.startswith("ssl_")}),
        )


def _number(database: Any) -> int | None:
    text = str(database or "").strip("/")
    if text and not text.isdigit():
        raise ValueError(f"the database must be a number, not {text!r}")
    if text:
        return int(text)
    return 0 if str(database or "").startswith("//") else None  # kombu's way to write "the default"


#: Options of a URL that mean nothing for Redis, and are taken as kombu takes them.
_WITHOUT_EFFECT = frozenset(("heartbeat", "insist", "login_method"))

#: Options of redis-py's URLs that are settled here: replies are read as raw RESP2, nothing is retried, and the pool has
#: no bound, because it never hears of the connections that were closed.
_OURS = frozenset(
    ("decode_responses", "legacy_responses", "max_connections", "protocol", "retry_on_error", "retry_on_timeout")
)

_FALSE = frozenset(("", "0", "f", "false", "n", "no", "off"))


def _flag(value: Any) -> bool:
    return str(value).lower() not in _FALSE


def _wait(value: Any) -> float:
    """Return a time that a socket can wait; 0 is the default.

    Raises:
        ValueError: it is none; the socket would say so at the first command.
    """
    found = float(value)
    if not 0 <= found < _LONGEST_WAIT:
        raise ValueError(f"{value!r} is no time to wait")
    return found


#: Seconds, ten days: far below what the system takes.
_LONGEST_WAIT = 864_000.0


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "socket_timeout": _wait,
    "socket_connect_timeout": _wait,
    "connect_timeout": _wait,
    "socket_read_size": int,
    "socket_keepalive": _flag,
    "health_check_interval": int,
}


def wait(name: str, value: Any) -> float:
    """Return a time-out that a setting says, in seconds; in the environment it is text.

    Raises:
        ConfigurationError: no socket can wait so long.
    """
    try:
        return _wait(value)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"bad connection options: {name} cannot be {value!r}") from exc


def _option(name: str, value: Any) -> Any:
    try:
        return _OPTIONS[name](value) if name in _OPTIONS else value
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{name} cannot be {value!r}") from exc


_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TLS_FLAGS = frozenset(("ssl_check_hostname", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled"))


def _tls_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return TLS options with their words as values: Celery's ``CERT_REQUIRED``, redis-py's ``required``."""
    return {name: _tls_value(name, value) if isinstance(value, str) else value for name, value in given.items()}


def _tls_value(name: str, value: str) -> Any:
    if name == "ssl_cert_reqs":
        found = _CERT_REQS.get(value.lower().removeprefix("cert_"))
        if found is None:
            raise ValueError(f"ssl_cert_reqs must be CERT_NONE, CERT_OPTIONAL or CERT_REQUIRED, not {value!r}")
        return found
    if name in _TLS_FLAGS:
        return _flag(value)
    try:
        if name == "ssl_min_version":
            return int(value) if value.isdigit() else ssl.TLSVersion[value]
        if name in ("ssl_include_verify_flags", "ssl_exclude_verify_flags"):
            return [ssl.VerifyFlags[flag.strip()] for flag in value.strip("[]").split(",") if flag.strip()]
    except KeyError as exc:
        raise ValueError(f"{name} cannot be {value!r}") from exc
    return value


def _tls(options: ConnectionOptions, parts: _Parts) -> dict[str, Any] | None:
    """Return the TLS options, None for no TLS; those of a URL replace ``broker_use_ssl``, as kombu has it."""
    if parts.tls:
        return parts.tls
    if isinstance(options.ssl, Mapping) and options.ssl:
        return _tls_values(options.ssl)
    return {} if options.ssl else None


def _database(parts: _Parts, options: ConnectionOptions) -> int:
    if options.other_database is not None:
        return options.other_database
    return parts.database if parts.database is not None else _number(options.database) or 0


def _with_checked_name(tls: Mapping[str, Any]) -> dict[str, Any]:
    """Have a verified certificate be that of the host, unless the options say otherwise: redis-py does so since 6.0."""
    verified = tls.get("ssl_cert_reqs", ssl.CERT_REQUIRED) not in (None, ssl.CERT_NONE)
    return {"ssl_check_hostname": verified, **tls}


def _common_options(options: ConnectionOptions, parts: _Parts) -> dict[str, Any]:
    transport = options.transport
    extra: dict[str, Any] = {
        "protocol": 2,
        # The pool only makes connections here, and never hears of the ones that were closed: redis-py 8's default of
        # 100 would end this process' access to Redis at its hundredth reconnect.
        "max_connections": _NO_BOUND,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "username": parts.username or options.username,
        "password": parts.password or options.password,
    }
    for name in ("socket_keepalive", "socket_keepalive_options", "client_name", "credential_provider"):
        if transport.get(name) is not None:
            extra[name] = transport[name]
    given = {name: value for name, value in parts.options.items() if name not in _WITHOUT_EFFECT | _OURS}
    connect_timeout = given.pop("connect_timeout", None)
    extra.update(given)
    said = {
        name: wait(name, value)
        for name, value in (
            ("socket_timeout", transport.get("socket_timeout")),
            ("socket_connect_timeout", transport.get("socket_connect_timeout")),
            ("broker_connection_timeout", options.connect_timeout),
        )
        if value
    }
    extra["socket_timeout"] = given.get("socket_timeout") or said.get("socket_timeout") or SOCKET_TIMEOUT
    extra["socket_connect_timeout"] = (
        given.get("socket_connect_timeout")
        or connect_timeout
        or said.get("socket_connect_timeout")
        or said.get("broker_connection_timeout")
    )
    provider = extra.get("credential_provider")
    if provider:
        # kombu's way: a dotted path of a class, and the user of the URL does not count.
        extra["credential_provider"] = _credential_provider(provider)
        extra["username"] = extra["password"] = None
    return extra


def _credential_provider(given: Any) -> Any:
    """Return the provider: what was given, or what the class or function of this dotted path makes without arguments.

    Raises:
        ConfigurationError: it cannot be made, or is none.
    """
    provider = given
    if isinstance(given, str):
        try:
            provider = symbol_by_name(given)()
        except Exception as exc:
            # The project's own code may raise anything, and would end the program with its traceback.
            raise ConfigurationError(f"bad connection options: credential_provider {given}: {exc}") from exc
    if not callable(getattr(provider, "get_credentials", None)):
        raise ConfigurationError(f"bad connection options: credential_provider {given} has no get_credentials()")
    return provider


def _sentinel_pool(url: str, options: ConnectionOptions) -> Any:
    transport = options.transport
    sentinels: list[tuple[str, int]] = []
    found: _Parts | None = None
    for part in filter(None, url.split(";")):
        parts = _Parts.of(part if "://" in part else f"sentinel://{part}")
        sentinels.append((parts.host or "localhost", parts.port or 26379))
        if found is None:
            found = parts
            continue
        for one in ("username", "password", "database", "master_name"):
            if getattr(parts, one) is not None:
                setattr(found, one, getattr(parts, one))
        found.options.update(parts.options)
        found.tls.update(parts.tls)
    assert found is not None
    name = found.master_name or transport.get("master_name")
    if not name:
        raise ConfigurationError(
            f"{safe_url(url)}: a Sentinel URL needs broker_transport_options = {{'master_name': ...}} "
            "or ?master_name=..."
        )
    extra = _common_options(options, found)
    extra["db"] = _database(found, options)
    tls = _tls(options, found)
    if tls is not None:
        # For the master; what the Sentinels themselves need stands in ``sentinel_kwargs``, as kombu has it.
        extra.update(_with_checked_name(tls), ssl=True)
    asked = {option: extra[option] for option in ("socket_timeout", "socket_connect_timeout") if extra[option]}
    asked.update(_tls_values(transport.get("sentinel_kwargs") or {}))
    try:
        sentinel = redis.sentinel.Sentinel(
            sentinels,
            min_other_sentinels=transport.get("min_other_sentinels") or 0,
            sentinel_kwargs=asked,
            **extra,
        )
        pool = sentinel.master_for(name).connection_pool
    except TypeError as exc:
        raise ConfigurationError(f"{safe_url(url)}: bad connection options: {exc}") from exc
    return _checked(pool, url)
