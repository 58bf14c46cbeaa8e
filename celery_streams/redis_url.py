"""Redis URLs: what they mean, without connecting: which place, how to show them, and how connections are made.

kombu's rules for schemes, databases and options hold; what a URL cannot say comes from Celery's broker settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from .exceptions import ConfigurationError

__all__ = ("SOCKET_TIMEOUT", "ConnectionOptions", "make_pool", "place", "safe_url")

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


def safe_url(url: str) -> str:
    """Return the URL with its password hidden, for logs and errors."""
    # By pattern and not by parsing: this is asked for URLs that cannot be parsed, too.
    return ";".join(
        _PASSWORD_ARGUMENT.sub(
            r"\1**", _PASSWORD.sub(r"\1**", part if "://" in part else f"//{part}").removeprefix("//")
        )
        for part in url.split(";")
    )


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
    return host, port, query.get("db", [parts.path.strip("/") or fallback])[0]


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
    extra = _common_options(options)
    if scheme == "sentinel":
        return _sentinel_pool(url, options, extra)
    if scheme in ("redis+cluster", "rediss+cluster"):
        raise ConfigurationError(
            f"{safe_url(url)}: Redis Cluster is not supported yet; use a single server, Sentinel or a Unix socket"
        )
    if scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{safe_url(url)}: streams need a Redis or Valkey URL (redis://, rediss://, unix://, sentinel://, "
            "valkey://), not the transport of another broker; set streams_url"
        )
    normal = _SCHEMES[scheme] + url[len(scheme) :]
    if normal.startswith("unix://"):
        normal = normal.replace("virtual_host=", "db=")
    if options.ssl and normal.startswith("redis://"):
        normal = "rediss://" + normal[len("redis://") :]
    if isinstance(options.ssl, Mapping):
        extra.update(options.ssl)
    if not normal.startswith("rediss://"):
        extra = {key: value for key, value in extra.items() if not key.startswith("ssl_")}
    try:
        if not normal.startswith("unix://"):
            _check_database(urlsplit(normal).path)
        pool = redis.ConnectionPool.from_url(normal, **extra)
    except ValueError as exc:
        raise _not_a_url(url, exc) from exc
    return _checked(pool, url)


def _check_database(path: str) -> None:
    # redis-py takes database 0 for a path that is no number.
    name = unquote(path).strip("/")
    if name and not name.isdigit():
        raise ValueError(f"the database must be a number, not {name!r}")


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


def _common_options(options: ConnectionOptions) -> dict[str, Any]:
    transport = options.transport
    extra: dict[str, Any] = {
        "protocol": 2,
        # The pool only makes connections here, and never hears of the ones that were closed: redis-py 8's default of
        # 100 would end this process' access to Redis at its hundredth reconnect.
        "max_connections": _NO_BOUND,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "socket_timeout": transport.get("socket_timeout") or SOCKET_TIMEOUT,
        "socket_connect_timeout": transport.get("socket_connect_timeout") or options.connect_timeout,
    }
    for name in ("socket_keepalive", "socket_keepalive_options", "client_name", "credential_provider"):
        if transport.get(name) is not None:
            extra[name] = transport[name]
    return extra


def _sentinel_pool(url: str, options: ConnectionOptions, extra: dict[str, Any]) -> Any:
    transport = options.transport
    name = transport.get("master_name")
    sentinels: list[tuple[str, int]] = []
    database, password, username = 0, None, None
    for part in url.split(";"):
        try:
            parsed = urlsplit(part if "://" in part else f"sentinel://{part}")
            sentinels.append((parsed.hostname or "localhost", parsed.port or 26379))
            _check_database(parsed.path)
        except ValueError as exc:
            raise _not_a_url(url, exc) from exc
        database = int(parsed.path.strip("/") or database)
        if parsed.password:
            password = unquote(parsed.password)
        if parsed.username:
            username = unquote(parsed.username)
        query = parse_qs(parsed.query)
        name = query["master_name"][0] if "master_name" in query else name
    if not name:
        raise ConfigurationError(
            f"{safe_url(url)}: a Sentinel URL needs broker_transport_options = {{'master_name': ...}} "
            "or ?master_name=..."
        )
    if isinstance(options.ssl, Mapping):
        extra.update(options.ssl)
    if options.ssl:
        extra["ssl"] = True
    sentinel = redis.sentinel.Sentinel(
        sentinels,
        sentinel_kwargs=dict(transport.get("sentinel_kwargs") or {}),
        **{**extra, "db": database, "password": password, "username": username},
    )
    return _checked(sentinel.master_for(name).connection_pool, url)
