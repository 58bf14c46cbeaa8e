"""Cluster: RedisClient for a Redis Cluster, ``redis+cluster://``: which command goes to which node, and if it moved.

A node is a RedisClient of its own. Pipelines are split by node, and their replies are in order. What a node refused
because the slot is elsewhere (MOVED, ASK) was not carried out, and is sent there; nothing else is sent again, for only
the caller knows whether that may be. TRYAGAIN and CLUSTERDOWN pass by themselves, and are BrokerUnavailable.

One command, and one script, may name keys of one slot only. Whoever names several queues asks :meth:`by_slot` for the
parts; blocking reads do so in ``cluster_reads``. A script that notes something about a task behind a verb is run in two
steps: that key lies elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .chance import chance
from .cluster_listener import CHECK_EVERY, ListWait, Subscription
from .cluster_map import Address, key_of, slot_of
from .cluster_nodes import ClusterNodes, NodeClient, not_ready
from .cluster_reads import ClusterReads
from .connection import BlockingConnection, RedisClient, in_full, pairs
from .exceptions import BrokerError, BrokerUnavailable, ConfigurationError, LoginRefused, SlotElsewhere
from .late_notes import LateNotes
from .redis_url import ConnectionOptions, make_pool, safe_url
from .scripts import Behind, Command, Script

__all__ = ("CLUSTER_SCHEMES", "ClusterClient", "connect", "is_cluster_url")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Sends commands to one node, and returns their replies; errors among them.
_Exchange = Callable[[NodeClient, Sequence[Any]], list[Any]]

CLUSTER_SCHEMES = {
    "redis+cluster": "redis",
    "rediss+cluster": "rediss",
    "valkey+cluster": "redis",
    "valkeys+cluster": "rediss",
}

#: Times that a command is sent on before the cluster counts as not ready.
_MOST_REDIRECTS = 5


def is_cluster_url(url: str) -> bool:
    """Return whether a URL is one of a Redis Cluster."""
    return url.partition("://")[0].lower() in CLUSTER_SCHEMES


def connect(url: str, options: ConnectionOptions | None = None) -> RedisClient:
    """Return the client for ``url``, without connecting.

    Raises:
        ConfigurationError: it is no URL of a Redis, or an option is wrong.
    """
    return ClusterClient(url, options) if is_cluster_url(url) else RedisClient(url, options)


class ClusterClient(RedisClient):
    """A set of connections to the masters of a Redis Cluster; safe for threads, greenlets and forks."""

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        super().__init__(url, options)
        starts, _ = _start_nodes(url, self._options)
        self._cluster = ClusterNodes(starts, self._new_pool, self._options, shown=self.shown)
        self._late = LateNotes(self._cluster, self._tried)

    def _new_pool(self) -> Any:
        return _start_nodes(self.url, self._options)[1]

    # -- where keys lie

    def by_slot(self, items: Sequence[T], key: Callable[[T], Any]) -> Sequence[Sequence[T]]:
        """Return ``items`` in parts whose keys lie in one slot, each in its order."""
        parts: dict[int, list[T]] = {}
        for item in items:
            parts.setdefault(slot_of(key(item)), []).append(item)
        return list(parts.values())

    def slot_of(self, key: str) -> int:
        """Return the slot of a key."""
        return slot_of(key)

    @property
    def nodes(self) -> Sequence[RedisClient]:
        """Clients of all masters.

        Raises:
            BrokerUnavailable: no node of the cluster can be reached.
        """
        return self._cluster.masters()

    def unserved_slots(self) -> int:
        """Return how many slots no node serves.

        Raises:
            BrokerUnavailable: no node of the cluster can be reached.
        """
        return self._cluster.unserved()

    def pool_of_a_node(self) -> Any:
        """Return redis-py's pool of a master that answers: for subscriptions, which any node serves.

        Raises:
            BrokerUnavailable: none answers.
        """
        error: BrokerUnavailable | None = None
        masters = list(self._cluster.masters())
        for node in chance.sample(masters, len(masters)):
            try:
                node.call("PING")
            except BrokerUnavailable as exc:
                self._cluster.doubt(node)
                error = exc
                continue
            return node.pool()
        raise error or BrokerUnavailable(not_ready(self.shown))

    # -- commands

    def call(self, *command: Any) -> Any:
        """Send one command to the node that has its key, and return its raw reply."""
        key = key_of(command)
        node = self._cluster.of(None if key is None else slot_of(key))
        try:
            return node.call(*command)
        except SlotElsewhere as exc:
            self._cluster.learn(exc)
        except BrokerUnavailable:
            self._cluster.doubt(node)
            raise
        # It was not carried out.
        reply = self.pipeline([command])[0]
        if isinstance(reply, BrokerError):
            raise reply
        return reply

    def pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together and return their replies in order; an error reply is returned, not raised.

        So is what one node failed, as long as another one answered. What names no key goes where the first key lies.

        Raises:
            BrokerError: none answered.
        """
        if commands[0][0] == "MULTI":
            return self._cluster.of(_common_slot(commands)).pipeline(commands)
        raised: set[int] = set()

        def exchange(node: NodeClient, some: Sequence[tuple[Any, ...]]) -> list[Any]:
            try:
                return node.pipeline(some)
            except BrokerError as exc:
                raised.add(id(exc))
                return [exc] * len(some)

        replies = self._in_steps(commands, exchange)
        if all(isinstance(reply, BrokerError) and id(reply) in raised for reply in replies):
            raise replies[0]
        return replies

    def attempt(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together as :meth:`pipeline` does; what was lost with a connection is a reply, too."""
        return self._in_steps(commands, lambda node, some: node.attempt(some))

    def _in_steps(self, commands: Sequence[tuple[Any, ...]], exchange: _Exchange) -> list[Any]:
        """Send commands, and behind them what scripts do whose keys lie apart from those of their verb."""
        apart: dict[int, Behind] = {}
        plain = list(commands)
        for index, command in enumerate(commands):
            script = command[0]
            if isinstance(script, Script) and script.apart is not None and len(set(map(slot_of, command[1]))) > 1:
                plain[index], apart[index] = script.apart(command[1], command[2])
        replies = self._send(plain, exchange)
        if not apart:
            return replies
        behind = [
            command
            for index, told in apart.items()
            if not isinstance(replies[index], BrokerError)
            for command in told(replies[index])
        ]
        try:
            self.note(behind)
        except BrokerError as exc:
            logger.debug("Cannot note the state of a tracked task: %s", exc)
        return replies

    def note(self, commands: Sequence[Command]) -> None:
        """Note states, each for itself; what a node that is away does not take is noted when it is back.

        Raises:
            BrokerError: one was refused; all were sent.
        """
        began = time.monotonic()
        behind = [command for command in commands if self._late.takes(command[1][0])]
        now = [command for command in commands if command not in behind] if behind else commands
        replies = self._tried(now) if now else []
        away = [command for command, said in zip(now, replies, strict=True) if isinstance(said, BrokerUnavailable)]
        if behind:
            self._late.keep(behind, since=began)
        if away:
            self._late.keep(away, since=began, away=True)
        for said in replies:
            if isinstance(said, BrokerError) and not isinstance(said, BrokerUnavailable):
                raise said

    def _tried(self, commands: Sequence[Command]) -> list[Any]:
        return self._send(commands, lambda node, some: node.attempt(some))

    def _send(self, commands: Sequence[tuple[Any, ...]], exchange: _Exchange) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        keys = [key_of(command) for command in commands]
        common = next((slot_of(key) for key in keys if key is not None), None)
        slots = [common if key is None else slot_of(key) for key in keys]
        for _ in range(_MOST_REDIRECTS):
            groups: dict[NodeClient, list[int]] = {}
            for index in left:
                try:
                    groups.setdefault(self._cluster.of(slots[index]), []).append(index)
                except BrokerError as exc:
                    replies[index] = exc
            left = []
            for node, indices in groups.items():
                found = exchange(node, [commands[index] for index in indices])
                for index, reply in zip(indices, found, strict=True):
                    replies[index] = reply
                    if isinstance(reply, BrokerError):
                        replies[index] = self._heard(node, reply, commands[index], exchange)
                        if isinstance(replies[index], SlotElsewhere):
                            left.append(index)
            if not left:
                break
        for index in left:
            replies[index] = BrokerUnavailable(not_ready(self.shown, str(replies[index])))
        return replies

    def _heard(self, node: NodeClient, reply: BrokerError, command: tuple[Any, ...], exchange: _Exchange) -> Any:
        """Take an error for what it says of the cluster; returns it, or what the node said which the slot moves to."""
        if isinstance(reply, SlotElsewhere) and reply.only_once:
            node = self._cluster.at(reply.address)
            # In full: a second try without the script's text would need leave of its own.
            reply = exchange(node, [("ASKING",), in_full(command)])[1]
        if isinstance(reply, SlotElsewhere):
            self._cluster.learn(reply)
        elif isinstance(reply, BrokerUnavailable):
            self._cluster.doubt(node)
        return reply

    # -- connections

    def greet(self) -> None:
        """Make a first contact, and check that it is a cluster that can hold streams.

        Raises:
            ConfigurationError: it is no cluster.
            ScriptsRefused: it runs no Lua scripts.
            BrokerError: it is away, or refuses the user.
        """
        error: BrokerError | None = None
        for node in map(self._cluster.at, self._cluster.starts):
            try:
                mode = pairs(node.call("HELLO")).get(b"mode", b"cluster")
            except LoginRefused:
                raise
            except BrokerUnavailable as exc:
                error = error or exc
                continue
            except BrokerError as exc:
                logger.debug("The node does not say what it is: %s", exc)
                mode = b"cluster"
            if mode != b"cluster":
                scheme = "rediss" if self.url.startswith(("rediss", "valkeys")) else "redis"
                raise ConfigurationError(
                    f"The server at {node.shown} is no node of a Redis Cluster ({mode.decode()}): use {scheme}:// "
                    "instead of +cluster://, or sentinel://"
                )
            self._cluster.ask_anew()
            self._run_a_script()
            return
        assert error is not None
        raise error

    def open(self) -> BlockingConnection:
        """Return connections of their own, for reads that block: one for each slot that is read."""
        return ClusterReads(self._cluster)

    # -- what is told and heard

    def publish(self, channel: str, text: str | bytes) -> None:
        """Publish to whoever listens at any node; in its order, as far as it has the same channel or hash tag.

        Raises:
            ReplyLost: it may have been published.
            BrokerError: it was not.
        """
        self._cluster.publish(channel, text)

    def subscription(self, *, check_every: float = CHECK_EVERY) -> Subscription:
        """Return what hears what is published at any node, and looks every so many seconds whether it still does."""
        return Subscription(self._cluster, check_every=check_every)

    def wait_for(self, key: str) -> ListWait:
        """Return what waits for entries of a list."""
        return ListWait(self._cluster, key)

    def close(self) -> None:
        """Close the connections that are not in use."""
        for node in self._cluster.all():
            node.close()

    def hasten(self, seconds: float) -> None:
        """Wait at most ``seconds`` for a connection and for each reply from now on, at every node."""
        super().hasten(seconds)
        for node in self._cluster.all():
            node.hasten(seconds)


def _start_nodes(url: str, options: ConnectionOptions) -> tuple[list[Address], Any]:
    """Return the nodes that a URL names, and a pool that says how connections are made.

    Several nodes are parted by ``;``. What only the first one says (user, password, options) counts for all.

    Raises:
        ConfigurationError: it is no URL, an option is wrong, or it names a database.
    """
    first, *others = filter(None, url.split(";"))
    scheme, _, rest = first.partition("://")
    pool = make_pool(f"{CLUSTER_SCHEMES[scheme.lower()]}://{rest}", options)
    said = pool.connection_kwargs
    if said.get("db"):
        raise ConfigurationError(
            f"{safe_url(url)}: a Redis Cluster has no database but 0; leave the number out, and tell projects apart by "
            "streams_key_prefix"
        )
    said["db"] = 0
    starts = [(str(said["host"]), int(said["port"]))]
    for other in others:
        try:
            parts = urlsplit(other if "://" in other else f"redis://{other}")
            starts.append((parts.hostname or "localhost", parts.port or 6379))
        except ValueError as exc:
            raise ConfigurationError(f"{safe_url(url)} is not a Redis URL: {exc}") from exc
    return list(dict.fromkeys(starts)), pool


def _common_slot(commands: Sequence[tuple[Any, ...]]) -> int | None:
    """Return the slot of the first key that any of the commands names: where those go that name none."""
    key = next((key for key in map(key_of, commands) if key is not None), None)
    return None if key is None else slot_of(key)
