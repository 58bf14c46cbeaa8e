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
from collections.abc import Sequence
from typing import Any

import redis

from .exceptions import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ClusterNode,
    ConfigurationError,
    GroupExists,
    GroupMissing,
    KeyMissing,
    KeyOfOtherType,
    LoginRefused,
    NotPermitted,
)
from .master_watch import MasterWatch
from .redis_url import SOCKET_TIMEOUT, ConnectionOptions, make_pool, safe_url
from .scripts import Script

__all__ = ("BlockingConnection", "RedisClient", "explained", "pairs")

#: Seconds after which an unused connection is looked at before it is used again.
_STALE_AFTER = 1.0

#: Error replies that pass by themselves (start-up, failover, a full disk, a long script).
_PASSING = re.compile(
    r"(?:^|: -?|-)(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|BUSY|NOREPLICAS|UNBLOCKED) "
)

#: Error replies that name keys, which may hold any word.
_ABOUT_A_KEY = re.compile(r"(?:^|: -?|-)(NOGROUP|WRONGTYPE) ")

#: The same, where redis-py has a class for the reply: then it cuts the word off the text.
_PASSING_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)

#: What only a node of a Cluster says: that another one has the key, or that keys lie apart. redis-py has classes for
#: the first three, and cuts the word off the text.
_CLUSTER_WORDS: dict[type[Exception], str] = {
    redis.exceptions.MovedError: "MOVED ",
    redis.exceptions.AskError: "ASK ",
    redis.exceptions.ClusterCrossSlotError: "CROSSSLOT ",
}
_CLUSTER = re.compile(r"(?:^|: -?|-)(?:MOVED|ASK|CROSSSLOT) |non local key in a cluster node")

#: How Redis 6.2 and 7.0 say that a script may not send a command, which they do not name; and where it stands.
_SCRIPT_DENIED = "The user executing the script can't"
_SCRIPT_LINE = re.compile(r"user_script: ?([0-9]+)")
_SCRIPT_CALL = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?")

#: What to do about a certificate that nobody known has signed.
_UNVERIFIED = " (name who signed it with ?ssl_ca_certs=FILE, or check nothing with ?ssl_cert_reqs=CERT_NONE)"

#: Commands whose second word is a command of its own.
_CONTAINERS = frozenset(("CLIENT", "CONFIG", "MEMORY", "XGROUP", "XINFO"))


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
        self._pool = make_pool(url, options or ConnectionOptions())
        self._idle: deque[tuple[Any, float]] = deque()
        self._pid = os.getpid()
        self._behind_sentinels = hasattr(self._pool, "sentinel_manager")
        self._watch: MasterWatch | None = None
        self._generation = 0

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
            raise self._translate(exc, commands[0][0]) from exc
        except BaseException:
            self._drop(connection)
            raise
        found = [
            self._translate(reply, commands[index][0]) if isinstance(reply, Exception) else reply
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
                if not missing_is_none or not isinstance(reply, (KeyMissing, GroupMissing)):
                    raise reply
                replies[index] = None
        return replies

    def greet(self) -> None:
        """Make a first contact, and check that the server is one that can hold streams.

        ``HELLO`` says what it is, and needs no permission; a proxy that does not know it is taken as it is.

        Raises:
            ClusterNode: it is a node of a Redis Cluster.
            ConfigurationError: it is a Sentinel.
            BrokerError: it is away, or refuses the user.
        """
        try:
            said = pairs(self.call("HELLO"))
        except (BrokerUnavailable, LoginRefused):
            raise
        except BrokerError:
            self.call("PING")
            return
        mode = said.get(b"mode", b"")
        if mode == b"cluster":
            raise ClusterNode(self._no_cluster("cluster_enabled"))
        if mode == b"sentinel":
            raise ConfigurationError(
                f"The server at {self.shown} is a Sentinel: use sentinel:// and name the master with ?master_name=..."
            )

    def _no_cluster(self, said: str) -> str:
        return (
            f"Redis at {self.shown} is a node of a Redis Cluster ({said}), which is not supported yet; use a single "
            "server or Sentinel"
        )

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
            self._forget_parent()
        if self._behind_sentinels:
            self.follow_master()
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

    def _forget_parent(self) -> None:
        """Leave connections, and the threads that listen, to the process that this one was forked from."""
        self._idle, self._pid, self._watch = deque(), os.getpid(), None

    def follow_master(self) -> int:
        """Wait while a failover is under way, and leave the connections to a master of before; returns which it is.

        Raises:
            BrokerUnavailable: it takes too long.
        """
        if not self._behind_sentinels:
            return 0
        if self._pid != os.getpid():
            self._forget_parent()
        if self._watch is None:
            self._watch = MasterWatch(self._pool.sentinel_manager, self._pool.service_name)
            self._generation = 0
        if not self._watch.wait(timeout=SOCKET_TIMEOUT):
            raise BrokerUnavailable(f"Redis at {self.shown} is not ready: a failover is under way")
        if self._generation != self._watch.generation:
            self._generation = self._watch.generation
            self.close()
        return self._generation

    def _take_back(self, connection: Any, replies: Sequence[Any]) -> None:
        """Keep a connection, unless its server says that it does not serve: after a failover it never will again."""
        if any(isinstance(reply, BrokerUnavailable) for reply in replies):
            self._drop(connection)
            self.close()
        else:
            self._give(connection)

    def _give(self, connection: Any) -> None:
        if self._watch is not None and self._watch.generation != self._generation:
            self._drop(connection)  # the master has changed meanwhile
        else:
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

    def _translate(self, exc: Exception, sent: str | Script) -> BrokerError:
        """Return our error for the driver's: the one place where the text of a reply decides anything."""
        text = str(exc) or type(exc).__name__
        command = f"{sent.name}.lua" if isinstance(sent, Script) else sent
        failed = f"Redis at {self.shown} failed {command}: {text}"
        if isinstance(exc, redis.exceptions.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
            return LoginRefused(f"Redis at {self.shown} refused the login: {text}")
        if _SCRIPT_DENIED in text and isinstance(sent, Script):
            return NotPermitted(f"Redis at {self.shown} does not permit {_denied_call(sent, text)} ({command}): {text}")
        if isinstance(exc, redis.exceptions.NoPermissionError) or "NOPERM" in text:
            return NotPermitted(f"Redis at {self.shown} does not permit {command}: {text}")
        if isinstance(exc, tuple(_CLUSTER_WORDS)) or _CLUSTER.search(text):
            said = _CLUSTER_WORDS.get(type(exc), "")
            return ClusterNode(self._no_cluster(f"{said}{text}"))
        if isinstance(exc, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)):
            hint = _UNVERIFIED if "CERTIFICATE_VERIFY_FAILED" in text else ""
            return BrokerUnavailable(f"Redis at {self.shown} cannot be reached: {text}{hint}")
        about_key = _ABOUT_A_KEY.search(text)
        if about_key:
            return GroupMissing(failed) if about_key[1] == "NOGROUP" else KeyOfOtherType(failed)
        if isinstance(exc, _PASSING_ERRORS) or _PASSING.search(text):
            return BrokerUnavailable(f"Redis at {self.shown} is not ready: {text}")
        if isinstance(exc, redis.exceptions.OutOfMemoryError) or "OOM command" in text:
            return BrokerFull(f"Redis at {self.shown} is full: {text}")
        if text.startswith("BUSYGROUP"):
            return GroupExists(failed)
        if text.startswith(("no such key", "ERR no such key")):
            return KeyMissing(failed)
        return BrokerError(failed)


class BlockingConnection:
    """One connection for a blocking read that can be watched with ``select`` and given up."""

    def __init__(self, client: RedisClient, connection: Any) -> None:
        self._client = client
        self._connection = connection
        self._master = 0

    def send(self, *command: Any) -> None:
        """Send a command; its reply is taken with :meth:`receive`."""
        master = self._client.follow_master()
        if master != self._master:
            self._master = master
            self.close()
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


def explained(script: Script, text: str) -> str:
    """Return what a script reports of a refusal, with the command that it was not permitted to send."""
    return f"not permitted: {_denied_call(script, text)} ({text})" if _SCRIPT_DENIED in text else text


def _denied_call(script: Script, text: str) -> str:
    """Return the command that a script was not permitted to send: what stands in the line that the server names."""
    lines = script.text.splitlines()
    place = _SCRIPT_LINE.search(text)
    number = int(place[1]) if place else 0
    called = _calls(lines[number - 1]) if 0 < number <= len(lines) else []
    return " or ".join(called or _calls(script.text))


def _calls(text: str) -> list[str]:
    found = _SCRIPT_CALL.findall(text)
    return list(dict.fromkeys(f"{one} {two}" if one in _CONTAINERS and two else one for one, two in found))
