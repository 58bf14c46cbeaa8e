"""RedisClient: how bytes get to Redis and back; it knows no key and no message.

A thin layer over redis-py's connections (TCP, TLS, Unix sockets, Sentinel), without its client object: replies are
raw RESP2, pipelines do not become transactions, scripts go as EVALSHA with one fallback. Each driver error becomes
one of ours (``redis_errors``). Nothing is retried: only the caller knows whether a command may be sent twice.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis

from .cluster_map import key_of
from .exceptions import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ClusterNode,
    ConfigurationError,
    GroupMissing,
    KeyMissing,
    LoginRefused,
    NotPermitted,
    ReplyLost,
    ScriptsRefused,
    ServerIsReplica,
)
from .master_watch import MasterWatch
from .redis_errors import count, no_cluster, no_scripts, translated
from .redis_url import SOCKET_TIMEOUT, ConnectionOptions, make_pool, safe_url
from .renewal import UNUSED_AT_MOST, connect, greatest_age, has_tokens, is_old, read_at_most
from .said import say
from .scripts import Command, Script

__all__ = (
    "BlockingConnection",
    "RedisClient",
    "hasten",
    "in_full",
    "pairs",
)

T = TypeVar("T")

#: Seconds after which an unused connection is looked at before it is used again.
_STALE_AFTER = 1.0

#: Seconds after which a connection is closed that only a rush of threads had needed.
_SPARE_AFTER = 30.0

#: URLs with a credential provider whose servers have let in this process, or the one that it was forked from.
_LET_IN: set[str] = set()


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
        self._options = options or ConnectionOptions()
        self._pool = self._new_pool()
        self._has_tokens = has_tokens(self._pool)
        #: Seconds after which a connection is replaced.
        self._age = greatest_age(self._pool, self._options.max_age)
        self._idle: deque[tuple[Any, float]] = deque()
        self._pid = os.getpid()
        self._behind_sentinels = hasattr(self._pool, "sentinel_manager")
        self._watch: MasterWatch | None = None
        self._generation = 0
        self._master_patience: float = SOCKET_TIMEOUT

    def call(self, *command: Any) -> Any:
        """Send one command and return its raw reply."""
        connection = self._take()
        try:
            self._connect(connection)
            connection.send_command(*command)
            reply = connection.read_response()
        except redis.ResponseError as exc:
            error = self._translate(exc, command[0], _key_of(command))
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
                    replies[index] = self._exchange(connection, [in_full(commands[index])])[0]
        except (redis.RedisError, OSError) as exc:
            self._drop(connection)
            raise self._translate(exc, commands[0][0]) from exc
        except BaseException:
            self._drop(connection)
            raise
        found = [
            self._translate(reply, commands[index][0], _key_of(commands[index]))
            if isinstance(reply, Exception)
            else reply
            for index, reply in enumerate(replies)
        ]
        self._take_back(connection, found)
        return found

    def attempt(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together as :meth:`pipeline` does; what was lost with the connection is a reply, too.

        For each command there is its reply, the error that Redis said, a :class:`ReplyLost` where it may have been
        carried out, or a :class:`BrokerUnavailable` where it was surely not sent.
        """
        replies: list[Any] = []
        connection: Any = None
        try:
            connection = self._take()
            self._connect(connection)
        except (redis.RedisError, OSError, BrokerError) as exc:
            if connection is not None:
                self._drop(connection)
            error = exc if isinstance(exc, BrokerError) else self._translate(exc, commands[0][0])
            return [error] * len(commands)
        except BaseException:
            if connection is not None:
                self._drop(connection)
            raise
        unknown: list[int] = []
        try:
            connection.send_packed_command(connection.pack_commands([_words(command) for command in commands]))
            for index, command in enumerate(commands):
                try:
                    replies.append(connection.read_response())
                except redis.exceptions.NoScriptError as exc:
                    unknown.append(index)
                    replies.append(self._translate(exc, command[0]))
                except redis.ResponseError as exc:
                    replies.append(self._translate(exc, command[0], _key_of(command)))
        except (redis.RedisError, OSError) as exc:
            self._drop(connection)
            lost = ReplyLost(str(self._translate(exc, commands[len(replies) % len(commands)][0])))
            return [*replies, *([lost] * (len(commands) - len(replies)))]
        except BaseException:
            self._drop(connection)
            raise
        self._take_back(connection, replies)
        if unknown:
            # In order: one script behind the other, as the commands stand.
            again = self.attempt([in_full(commands[index]) for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return replies

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

    def note(self, commands: Sequence[Command]) -> None:
        """Carry out commands that note states of tasks, each with one key.

        Raises:
            BrokerError: Redis is away, or refused; on a Redis Cluster what a node does not take is noted later.
        """
        self.call_all(commands)

    # -- where keys lie

    def by_slot(self, items: Sequence[T], key: Callable[[T], Any]) -> Sequence[Sequence[T]]:
        """Return ``items`` in parts, each in its order, whose keys one command may name together: here all of them.

        On a Redis Cluster (``cluster``) each slot is a part. None of nothing.
        """
        return (items,) if items else ()

    def slot_of(self, key: str) -> int:
        """Return what is the same for keys that one command may name together: here always 0."""
        return 0

    def exist(self, keys: Sequence[str]) -> int:
        """Return how many of ``keys`` are there. One round trip."""
        parts = self.by_slot(keys, str)
        return sum(self.call_all([("EXISTS", *part) for part in parts])) if parts else 0

    @property
    def nodes(self) -> Sequence[RedisClient]:
        """Clients of the servers that keys lie on: here one, itself."""
        return (self,)

    def greet(self) -> None:
        """Make a first contact, and check that the server is one that can hold streams.

        ``HELLO`` says what it is, and needs no permission; a proxy that does not know it is taken as it is.

        Raises:
            ClusterNode: it is a node of a Redis Cluster.
            DatabaseRefused: it has only database 0.
            ScriptsRefused: it runs no Lua scripts.
            ConfigurationError: it is a Sentinel.
            ServerIsReplica: it is one.
            BrokerError: it is away, or refuses the user.
        """
        said: dict[bytes, Any] = {}
        try:
            said = pairs(self.call("HELLO"))
        except (BrokerUnavailable, LoginRefused, ConfigurationError):
            raise
        except BrokerError:
            self.call("PING")
        mode = said.get(b"mode", b"")
        if mode == b"cluster":
            raise ClusterNode(no_cluster(self.shown, "cluster_enabled"))
        if mode == b"sentinel":
            raise ConfigurationError(
                f"The server at {self.shown} is a Sentinel: use sentinel:// and name the master with ?master_name=..."
            )
        if said.get(b"role") in (b"replica", b"slave"):
            # A failover may make a primary of it: whoever is patient asks again.
            raise ServerIsReplica(
                say(
                    "The server at %(server)s is a replica and takes no writes: use the address of the primary, "
                    "or sentinel://",
                    server=self.shown,
                )
            )
        self._run_a_script()

    def _run_a_script(self) -> None:
        """Find out whether the server runs Lua scripts.

        Raises:
            ScriptsRefused: it does not.
            BrokerUnavailable: it is away.
        """
        try:
            self.call("EVAL", "return 1", 0)
        except (BrokerUnavailable, ScriptsRefused):
            raise
        except (BrokerFull, NotPermitted):
            pass  # it has the command; who lacks the permission is told with all others that are missing
        except BrokerError as exc:
            raise ScriptsRefused(no_scripts(self.shown, str(exc))) from exc

    def open(self) -> BlockingConnection:
        """Return a connection of its own, for reads that block."""
        return BlockingConnection(self, self._pool.make_connection())

    def block_at_most(self, block_ms: int) -> int:
        """Return how many of ``block_ms`` milliseconds a read may block, for its connection must not get too old."""
        return read_at_most(block_ms, self._age)

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._drop(self._idle.pop()[0])

    def hasten(self, seconds: float) -> None:
        """Wait at most ``seconds`` for a connection and for each reply from now on: the process is about to end.

        What is being waited for by another thread at this moment keeps the time-out it has; so do blocking reads.
        """
        kwargs = self._pool.connection_kwargs
        for name in ("socket_timeout", "socket_connect_timeout"):
            kwargs[name] = min(kwargs.get(name) or seconds, seconds)
        self._master_patience = min(self._master_patience, seconds)
        if self._pid == os.getpid():
            for connection, _ in list(self._idle):
                hasten(connection, seconds)

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
            unused = time.monotonic() - since
            if is_old(connection) or unused > UNUSED_AT_MOST:
                self._drop(connection)
                continue
            if unused < _STALE_AFTER:
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
        if self._has_tokens:
            # A provider may have a thread that renews its token: this process does not have it.
            self._pool = self._new_pool()

    def _new_pool(self) -> Any:
        """Return redis-py's pool: it only makes connections here, and holds none."""
        return make_pool(self.url, self._options)

    def _connect(self, connection: Any) -> None:
        """Connect first: what sends on a closed connection opens it past the Sentinels, from redis-py 6 on."""
        if connection._sock is None:
            connect(connection, self._age)
            if self._has_tokens:
                _LET_IN.add(self.url)

    def follow_master(self) -> int:
        """Wait while a failover is under way, and drop the connections to an earlier master; returns which it is.

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
        if not self._watch.wait(timeout=self._master_patience):
            raise BrokerUnavailable(say("Redis at %(server)s is not ready: a failover is under way", server=self.shown))
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
            now = time.monotonic()
            self._idle.append((connection, now))
            self._close_spare(now)

    def _close_spare(self, now: float) -> None:
        """Close connections that were not needed for a while, but for the one just used."""
        while len(self._idle) > 1 and now - self._idle[0][1] >= _SPARE_AFTER:
            try:
                spare, since = self._idle.popleft()
            except IndexError:
                return  # another thread took it
            if now - since < _SPARE_AFTER:
                self._idle.appendleft((spare, since))
                return
            self._drop(spare)

    @staticmethod
    def _drop(connection: Any) -> None:
        connection.disconnect()

    def _exchange(self, connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        self._connect(connection)
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as exc:
                replies.append(exc)
        return replies

    def _translate(self, exc: Exception, sent: str | Script, key: str = "") -> BrokerError:
        """Return our error for the driver's, and count it; ``key`` is the one that the command names."""
        error = translated(
            exc,
            sent,
            shown=self.shown,
            database=bool(self._pool.connection_kwargs.get("db")),
            let_in=self._has_tokens and self.url in _LET_IN,
            key=key,
        )
        count(exc, error)
        return error


class BlockingConnection:
    """One connection for a blocking read that can be watched with ``select`` and given up."""

    def __init__(self, client: RedisClient, connection: Any) -> None:
        self._client = client
        self._connection = connection
        self._master = 0
        # Whoever forgets it leaves no open socket behind. (In a process that was forked redis-py only closes its copy.)
        weakref.finalize(self, connection.disconnect).atexit = False

    def connect(self, *, lasting: float = 0.0) -> None:
        """Connect, where it is closed, leads to an earlier master, or will be too old within ``lasting`` seconds."""
        master = self._client.follow_master()
        if master != self._master or is_old(self._connection, lasting=lasting):
            self._master = master
            self.close()
        try:
            self._client._connect(self._connection)
        except (redis.RedisError, OSError) as exc:
            self.close()
            raise self._client._translate(exc, "the login") from exc

    def send(self, *command: Any, lasting: float = 0.0) -> None:
        """Send a command that takes ``lasting`` seconds; its reply is taken with :meth:`receive`."""
        self.connect(lasting=lasting)
        try:
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

    #: Whether :meth:`call_back` ends what waits here early; else ``unblocking`` knows ways to do so.
    calls_back = False

    def call_back(self) -> bool:
        """End the reads that wait here early; returns whether they will end. Their replies must still be received."""
        return False

    def end_by(self, names: Sequence[str]) -> None:
        """Say by which stream, one in each slot, reads are called back where Redis knows no other way."""

    @property
    def descriptors(self) -> list[int]:
        """The descriptors to watch: one of them becomes readable when there is something to receive."""
        return [self.fileno()]

    @property
    def link(self) -> object:
        """What tells this very link from the one after it was opened again; None while it is closed."""
        return self._connection._sock

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select``."""
        sock = self._connection._sock
        return -1 if sock is None else int(sock.fileno())

    def never_ping(self) -> None:
        """Send no PING before a command (``health_check_interval``): a subscription has no answer of its own to it."""
        self._connection.health_check_interval = 0

    def hasten(self, seconds: float) -> None:
        """Wait at most ``seconds`` for a connection and for each reply from now on."""
        hasten(self._connection, seconds)

    def close(self) -> None:
        """Close the connection; the next :meth:`send` opens it again."""
        self._connection.disconnect()


def hasten(connection: Any, seconds: float) -> None:
    """Wait at most ``seconds`` for replies on one of redis-py's connections, open or not."""
    connection.socket_timeout = min(connection.socket_timeout or seconds, seconds)
    connection.socket_connect_timeout = min(connection.socket_connect_timeout or seconds, seconds)
    if connection._sock is not None:
        connection._sock.settimeout(connection.socket_timeout)


def _key_of(command: tuple[Any, ...]) -> str:
    """Return the key of a command that names one; '' of a script that has several."""
    return "" if isinstance(command[0], Script) and len(command[1]) > 1 else str(key_of(command) or "")


def _words(command: tuple[Any, ...]) -> tuple[Any, ...]:
    script = command[0]
    if not isinstance(script, Script):
        return command
    _, keys, args = command
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def in_full(command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the words of a command; of a script with its text, which Redis then need not know."""
    script = command[0]
    if not isinstance(script, Script):
        return command
    _, keys, args = command
    return ("EVAL", script.text, len(keys), *keys, *args)
