"""RedisClient: how bytes get to Redis and back, and what its errors mean; it knows no key and no message.

A thin layer over redis-py's connections (TCP, TLS, Unix sockets, Sentinel), without its client object: replies are
raw RESP2, pipelines do not become transactions, scripts go as EVALSHA with one fallback. Each driver error becomes
one of ours here and nowhere else. Nothing is retried: whether a command may be sent twice is the caller's knowledge.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from .exceptions import BrokerError, BrokerFull, BrokerUnavailable, ConfigurationError
from .scripts import Script

__all__ = ("ConnectionOptions", "RedisClient", "pairs", "safe_url")

#: Seconds that a command other than a blocking read may take. redis-py 8 has 5 by default; older ones wait for ever.
SOCKET_TIMEOUT = 5.0

#: Seconds after which an unused connection is looked at before it is used again.
_STALE_AFTER = 1.0

#: redis-py's own largest number of connections of a pool.
_NO_BOUND = 2**31

#: The password of a URL: from the first colon behind the scheme to the last ``@`` (also where the password was not
#: percent-encoded as it should be), or an argument of the query.
_PASSWORD = re.compile(r"(//[^:/?#@]*:).*(?=@)")
_PASSWORD_ARGUMENT = re.compile(r"([?&][a-z_]*password=)[^&#]*", re.IGNORECASE)

#: Error replies that pass by themselves (start-up, failover, a full disk, a long script).
_PASSING = re.compile(
    r"(?:^|: -?|-)(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|BUSY|NOREPLICAS|UNBLOCKED) "
)

#: Error replies that name keys, which may hold any word.
_ABOUT_A_KEY = re.compile(r"(?:^|: -?|-)(?:NOGROUP|WRONGTYPE) ")

#: The same, where redis-py has a class for the reply: then it cuts the word off the text.
_PASSING_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)


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


def pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    """Return a reply of names and values in turn (``XINFO``, entries, hashes in RESP2) as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=False))


class RedisClient:
    """A set of connections to one Redis database; safe for threads, greenlets and forks.

    Raises (all methods):
        BrokerUnavailable: no connection, a time-out, or Redis is not ready.
        BrokerFull: maxmemory is reached.
        BrokerError: any other refusal; the text names the server and the command.
    """

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        self.url = url
        self.shown = safe_url(url)
        self._pool = _make_pool(url, options or ConnectionOptions())
        self._idle: deque[tuple[Any, float]] = deque()
        self._pid = os.getpid()

    def call(self, *command: Any) -> Any:
        """Send one command and return its raw reply."""
        connection = self._take()
        try:
            _connect(connection)
            connection.send_command(*command)
            reply = connection.read_response()
        except redis.ResponseError as exc:
            error = self._translate(exc, command[0])
            self._take_back(connection, [error])
            raise error from exc
        except (redis.RedisError, OSError) as exc:
            self._drop(connection)
            raise self._translate(exc, command[0]) from exc
        except BaseException:
            self._drop(connection)
            raise
        self._give(connection)
        return reply

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script; it is sent in full when Redis does not know it yet."""
        reply = self.pipeline([(script, keys, args)])[0]
        if isinstance(reply, BrokerError):
            raise reply
        return reply

    def pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together and return their replies in order; an error reply is returned, not raised.

        A command is a tuple of words, or ``(Script, keys, args)``. There is no transaction: other clients' commands
        may run in between.
        """
        connection = self._take()
        try:
            replies = self._exchange(connection, [_words(command) for command in commands])
            for index, reply in enumerate(replies):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    replies[index] = self._exchange(connection, [_words(commands[index], in_full=True)])[0]
        except (redis.RedisError, OSError) as exc:
            self._drop(connection)
            raise self._translate(exc, _name(commands[0])) from exc
        except BaseException:
            self._drop(connection)
            raise
        found = [
            self._translate(reply, _name(commands[index])) if isinstance(reply, Exception) else reply
            for index, reply in enumerate(replies)
        ]
        self._take_back(connection, found)
        return found

    def call_all(self, commands: Sequence[tuple[Any, ...]], *, missing_is_none: bool = False) -> list[Any]:
        """Send commands together, as :meth:`pipeline` does, and return their replies in order.

        Args:
            missing_is_none: the reply about a key or consumer group that does not exist is None, not an error.

        Raises:
            BrokerError: one of them was refused (the first that was); all of them were sent.
        """
        replies = self.pipeline(commands)
        for index, reply in enumerate(replies):
            if isinstance(reply, BrokerError):
                if not missing_is_none or not ("no such key" in str(reply) or "NOGROUP" in str(reply)):
                    raise reply
                replies[index] = None
        return replies

    def open(self) -> BlockingConnection:
        """Return a connection of its own, for reads that block."""
        return BlockingConnection(self, self._pool.make_connection())

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._drop(self._idle.pop()[0])

    # -- connections

    def _take(self) -> Any:
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return self._pool.make_connection()
            if time.monotonic() - since < _STALE_AFTER:
                return connection
            try:
                if not connection.can_read():
                    return connection
            except (redis.RedisError, OSError):
                pass  # closed by the server while idle: that is what the look was for
            self._drop(connection)

    def _take_back(self, connection: Any, replies: Sequence[Any]) -> None:
        """Keep a connection, unless its server says that it does not serve: after a failover it never will again."""
        if any(isinstance(reply, BrokerUnavailable) for reply in replies):
            self._drop(connection)
            self.close()
        else:
            self._give(connection)

    def _give(self, connection: Any) -> None:
        self._idle.append((connection, time.monotonic()))

    @staticmethod
    def _drop(connection: Any) -> None:
        connection.disconnect()

    @staticmethod
    def _exchange(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        _connect(connection)
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as exc:
                replies.append(exc)
        return replies

    def _translate(self, exc: Exception, command: str) -> BrokerError:
        text = str(exc) or type(exc).__name__
        if isinstance(exc, redis.exceptions.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
            return BrokerError(f"Redis at {self.shown} refused the login: {text}")
        if isinstance(exc, redis.exceptions.NoPermissionError) or "NOPERM" in text:
            return BrokerError(f"Redis at {self.shown} does not permit {command}: {text}")
        if isinstance(exc, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)):
            return BrokerUnavailable(f"Redis at {self.shown} cannot be reached: {text}")
        if _ABOUT_A_KEY.search(text):
            return BrokerError(f"Redis at {self.shown} failed {command}: {text}")
        if isinstance(exc, _PASSING_ERRORS) or _PASSING.search(text):
            return BrokerUnavailable(f"Redis at {self.shown} is not ready: {text}")
        if isinstance(exc, redis.exceptions.OutOfMemoryError) or "OOM command" in text:
            return BrokerFull(f"Redis at {self.shown} is full: {text}")
        return BrokerError(f"Redis at {self.shown} failed {command}: {text}")


class BlockingConnection:
    """One connection for a blocking read that can be watched with ``select`` and given up."""

    def __init__(self, client: RedisClient, connection: Any) -> None:
        self._client = client
        self._connection = connection

    def send(self, *command: Any) -> None:
        """Send a command; its reply is taken with :meth:`receive`."""
        try:
            _connect(self._connection)
            self._connection.send_command(*command)
        except (redis.RedisError, OSError) as exc:
            self.close()
            raise self._client._translate(exc, command[0]) from exc

    def receive(self, *, timeout: float | None = None) -> Any:
        """Take the reply; waits at most ``timeout`` seconds (the socket's time-out when None)."""
        try:
            if timeout is not None and not self._connection.can_read(timeout):
                raise redis.exceptions.TimeoutError("no reply in time")
            return self._connection.read_response()
        except redis.ResponseError as exc:
            raise self._client._translate(exc, "the read") from exc
        except (redis.RedisError, OSError) as exc:
            self.close()
            raise self._client._translate(exc, "the read") from exc

    def ready(self) -> bool:
        """Return whether (a part of) the reply has arrived."""
        try:
            return bool(self._connection.can_read(0))
        except (redis.RedisError, OSError):
            return True  # closed or broken: receive() tells why

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select``."""
        sock = self._connection._sock
        return -1 if sock is None else int(sock.fileno())

    def close(self) -> None:
        """Close the connection; the next :meth:`send` opens it again."""
        self._connection.disconnect()


def _connect(connection: Any) -> None:
    """Connect first: what sends on a closed connection opens it past the Sentinels, from redis-py 6 on."""
    if connection._sock is None:
        connection.connect()


def _words(command: tuple[Any, ...], *, in_full: bool = False) -> tuple[Any, ...]:
    script = command[0]
    if not isinstance(script, Script):
        return command
    _, keys, args = command
    if in_full:
        return ("EVAL", script.text, len(keys), *keys, *args)
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def _name(command: tuple[Any, ...]) -> str:
    return f"{command[0].name}.lua" if isinstance(command[0], Script) else str(command[0])


# -- URLs -------------------------------------------------------------------------------------------------------------

_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "socket": "unix",
}


def _make_pool(url: str, options: ConnectionOptions) -> Any:
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
