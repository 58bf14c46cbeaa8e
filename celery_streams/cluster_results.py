"""Cluster results: Celery's result backend for Redis on a Redis Cluster, ``redis+cluster://``; chosen by that URL.

All that Celery's own backend does goes through our cluster client, which follows slots, with these differences:

* a result is stored and told in one script, since a pipeline may be split where a slot moves;
* the keys of a group, which the chord's scripts name together, have a hash tag in common;
* the node that is listened at hears of results over the cluster's bus, which may lose them while a node fails: whoever
  waits asks for them now and then as well;
* what may be repeated is, by the backend's retry policy: a failover, or a slot that is being moved, takes seconds.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from celery.backends import redis as celery_backend
from kombu.utils.objects import cached_property
from redis.client import PubSub
from redis.commands.core import CoreCommands

from .cluster import ClusterClient
from .exceptions import BrokerError, BrokerUnavailable, SlotElsewhere
from .redis_url import ConnectionOptions, safe_url
from .scripts import Script

__all__ = ("ClusterBackend",)

logger = logging.getLogger(__name__)

#: Seconds after which those who wait for results ask for them.
ASK_AGAIN = 5.0

#: Celery's default for ``redis_socket_timeout``: nobody's wish, and too long for a node that is gone.
_STOCK_TIMEOUT = 120.0

#: Stores a result and tells it. KEYS: the result. ARGV: its text, seconds that it is kept (0 is for ever).
_STORE = """
if tonumber(ARGV[2]) > 0 then
    redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1])
end
return redis.call('PUBLISH', KEYS[1], ARGV[1])
"""

#: In Celery's script that counts the parts of a chord: who takes the dispatch. A second try, after the reply to the
#: first was lost, has it already.
_TAKES = "if redis.call('SET', ckey, claim_token, 'NX', 'EX', claim_expires) then"
_HAS_OR_TAKES = f"if done_marker == claim_token or{_TAKES[2:]}"


def _script(text: str) -> Script:
    return Script("result", text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_STORED = _script(_STORE)


class _Commands(CoreCommands):  # type: ignore[type-arg, unused-ignore]
    """redis-py's commands, abstract: the client sends one at once, the pipeline keeps it. Replies are raw."""

    #: redis-py 8 tells those who listen of what it does; here nobody listens.
    _event_dispatcher: Any = None

    def execute_command(self, *words: Any, **options: Any) -> Any:
        raise NotImplementedError


class ResultsClient(_Commands):
    """What Celery's backend takes for redis-py's client, on our client of a cluster.

    Args:
        patiently: calls a function again, by the retry policy, as long as the cluster is not ready.
    """

    def __init__(self, nodes: ClusterClient, patiently: Callable[[Callable[[], Any]], Any]) -> None:
        self.nodes = nodes
        self.patiently = patiently

    def execute_command(self, *words: Any, **options: Any) -> Any:
        return self.nodes.call(*words)

    def mget(self, keys: Any, *more: Any) -> Any:
        """Return the values of keys that may lie anywhere."""
        names = [*([keys] if isinstance(keys, (str, bytes)) else keys), *more]
        return self.nodes.call_all([("GET", name) for name in names]) if names else []

    def delete(self, *names: Any) -> Any:
        """Delete keys that may lie anywhere; returns how many there were."""
        return sum(self.nodes.call_all([("DEL", name) for name in names])) if names else 0

    def run(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script whose keys lie together."""
        return self.nodes.run(script, keys, args)

    def register_script(self, script: Any) -> Any:
        """Return what runs a script; it is run again if the reply was lost."""
        loaded = _script(script)

        def run(keys: Sequence[Any] = (), args: Sequence[Any] = (), client: Any = None) -> Any:
            return self.patiently(lambda: self.run(loaded, keys, args))

        return run

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """Return a transaction of commands whose keys lie together."""
        return _Transaction(self)

    def pubsub(self, **options: Any) -> Any:
        """Return what listens at one node, which hears what is published at any of them."""
        return PubSub(self.nodes.pool_of_a_node(), **options)

    @property
    def connection_pool(self) -> _Connections:
        """The connections, for who wants to drop them."""
        return _Connections(self.nodes)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.nodes.close()


class _Connections:
    """What Celery's backend does to a connection pool."""

    def __init__(self, nodes: ClusterClient) -> None:
        self._nodes = nodes

    def reset(self) -> None:
        """Leave connections behind that another process may use: our client sees that itself."""

    def disconnect(self) -> None:
        """Close the connections that are not in use."""
        self._nodes.close()


class _Transaction(_Commands):
    """Commands that are carried out together, at the node that has their keys."""

    def __init__(self, client: ResultsClient) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *words: Any, **options: Any) -> Any:
        self._commands.append(words)
        return self

    def __enter__(self) -> _Transaction:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._commands = []

    def execute(self) -> list[Any]:
        """Carry out the commands and return their replies."""
        commands, self._commands = self._commands, []
        return list(self._client.patiently(lambda: self._carry_out(commands)))

    def _carry_out(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        try:
            replies = self._client.nodes.pipeline([("MULTI",), *commands, ("EXEC",)])
        except BrokerUnavailable as exc:
            # It may have been carried out: no passing error, which would be tried again.
            raise BrokerError(str(exc)) from exc
        refused = next((one for one in replies[:-1] if isinstance(one, BrokerError)), replies[-1])
        if isinstance(refused, SlotElsewhere):
            # Nothing was carried out. A plain command finds out who has the slot.
            self._client.nodes.call("EXISTS", commands[0][1])
            raise BrokerUnavailable(str(refused)) from refused
        if isinstance(refused, BrokerError):
            raise refused
        for one in replies[-1]:
            if isinstance(one, Exception):
                raise BrokerError(str(one)) from one
        return list(replies[-1])


class ClusterResultConsumer(celery_backend.ResultConsumer):  # type: ignore[misc]
    """Waits for results as Celery does, and asks for those whose news was lost on its way."""

    _connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection_errors = (*self._connection_errors, BrokerUnavailable)
        #: Seconds between two looks at results whose news has not come.
        self.ask_again = ASK_AGAIN
        self._asked_at = time.monotonic()

    def drain_events(self, timeout: Any = None) -> None:
        """Wait for news of a result for at most ``timeout`` seconds."""
        super().drain_events(timeout)
        now = time.monotonic()
        if now >= self._asked_at + self.ask_again:
            self._asked_at = now
            self._ask()

    def _ask(self) -> None:
        waiting = list(self.subscribed_to)
        if not waiting:
            return
        try:
            found = [meta for meta in self.backend.client.mget(waiting) if meta]
        except BrokerError as exc:
            logger.debug("Results were not asked for: %s", exc)
            return
        # Celery 5.7 takes in news under a lock; before it had none.
        with getattr(self, "_locked", nullcontext)():
            for meta in found:
                self.on_state_change(self._decode_result(meta), None)


class ClusterBackend(celery_backend.RedisBackend):  # type: ignore[misc]
    """Celery's result backend for Redis, on a Redis Cluster."""

    ResultConsumer = ClusterResultConsumer

    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_errors = (*self.connection_errors, BrokerUnavailable)

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        # The URL may name several nodes, and is read by the cluster client.
        return defaults

    def as_uri(self, include_password: bool = False) -> str:
        """Return the URL, with its password hidden unless asked for."""
        return str(self.url) if include_password else safe_url(self.url)

    def _create_client(self, **params: Any) -> ResultsClient:
        timeout = params.get("socket_timeout")
        given = {
            name: params.get(name)
            for name in ("socket_connect_timeout", "socket_keepalive", "client_name", "credential_provider")
        }
        options = ConnectionOptions(
            transport={**given, "socket_timeout": None if timeout == _STOCK_TIMEOUT else timeout},
            ssl=self.app.conf.redis_backend_use_ssl or False,
            username=params.get("username"),
            password=params.get("password"),
        )
        return ResultsClient(ClusterClient(self.url, options), lambda call: self.ensure(call, ()))

    def get_key_for_group(self, group_id: Any, key: Any = "") -> Any:
        """Return a key of a group; all of them lie together."""
        return super().get_key_for_group(group_id and f"{{{group_id}}}", key)

    def _set(self, key: Any, value: Any, expires: Any = None) -> None:
        seconds = self.expires if expires is None else expires
        self.client.run(_STORED, [key], [value, int(seconds or 0)])

    def get(self, key: Any) -> Any:
        """Return a value."""
        return self.ensure(self.client.get, (key,))

    def mget(self, keys: Iterable[Any]) -> Any:
        """Return values of keys that may lie anywhere."""
        return self.ensure(self.client.mget, (list(keys),))

    def delete(self, key: Any) -> None:
        """Delete a key."""
        self.ensure(self.client.delete, (key,))

    def expire(self, key: Any, value: Any) -> Any:
        """Have a key kept for so many seconds from now on."""
        return self.ensure(self.client.expire, (key, value))

    @cached_property
    def _chord_part_return_script(self) -> Any:
        text = celery_backend.CHORD_PART_RETURN_LUA
        return self.client.register_script(text.replace(_TAKES, _HAS_OR_TAKES))
