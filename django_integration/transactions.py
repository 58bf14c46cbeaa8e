"""Publishing on commit: holds what a Django transaction publishes until it commits, and sends it in few pipelines.

Django decides what is committed: for each message it gets a callback (``connection.on_commit``), and drops that when
the transaction, or the savepoint that the message was published in, is rolled back. Messages with the same savepoints
share their fate, and are a *unit*: the first of their callbacks sends them all. Between them nothing else was
registered, so that the hooks of others keep their place among the messages.

What is sent, and what happens to what cannot be, is the matter of ``celery_streams.after_commit``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DEFAULT_DB_ALIAS, connections, transaction

import celery_streams
from celery_streams.after_commit import send_after_commit
from celery_streams.app import Streams, streams_of
from celery_streams.blocks import Held, Holder
from celery_streams.holding import guard_results

__all__ = ("TRANSACTIONS", "Transactions", "hold_delay_on_commit")


class _Item:
    """A message, or a call that publishes, and the databases that have to commit before it is sent."""

    __slots__ = ("sent", "streams", "waits", "what")

    def __init__(self, streams: Streams, what: Held | Callable[[], Any], waits: Iterable[Any]) -> None:
        self.streams = streams
        self.what = what
        self.waits = set(waits)
        self.sent = False


class _Unit:
    """Messages that one database commits or rolls back together; their callbacks stand side by side."""

    __slots__ = ("first", "first_at", "items", "last_at", "part_of", "robust", "sids")

    def __init__(self, sids: frozenset[str], at: int, *, robust: bool) -> None:
        self.sids = sids
        self.items: list[_Item] = []
        self.first: Any = None
        self.first_at = self.last_at = at
        self.robust = robust
        #: The unit that it has become a part of.
        self.part_of: _Unit | None = None

    def is_live(self, hooks: list[Any]) -> bool:
        """Return whether Django still has its callbacks; finds them again when others in front of them were dropped."""
        if not (self.first_at < len(hooks) and hooks[self.first_at][1] is self.first):
            at = next((at for at, hook in enumerate(hooks) if hook[1] is self.first), None)
            if at is None:
                return False
            self.first_at, self.last_at = at, self.last_at + at - self.first_at
        return True

    def whole(self) -> _Unit:
        """Return the unit that it is a part of by now."""
        unit = self
        while unit.part_of is not None:
            unit = unit.part_of
        return unit


class _Waiting:
    """What waits for the commit of one database connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._units: list[_Unit] = []

    def add(self, item: _Item, *, robust: bool) -> None:
        """Have Django send ``item`` when the transaction commits."""
        unit = self._unit(robust=robust)

        def publish_on_commit() -> None:
            self._committed(unit, item)

        self._connection.on_commit(publish_on_commit, robust=robust)
        if unit.first is None:
            unit.first = publish_on_commit
        unit.last_at = len(self._connection.run_on_commit) - 1
        unit.items.append(item)

    def is_held(self, streams: Streams, task_id: str) -> bool:
        """Return whether the message of a task waits here."""
        self._settle()
        return any(
            item.streams is streams and not item.sent and isinstance(item.what, Held) and item.what.queued.id == task_id
            for unit in self._units
            for item in unit.items
        )

    def _open_savepoints(self) -> frozenset[str]:
        return frozenset(sid for sid in self._connection.savepoint_ids if sid is not None)

    def _unit(self, *, robust: bool) -> _Unit:
        """Return the unit of what is published now: the last one, if it shares its fate and nothing came between."""
        sids = self._open_savepoints()
        hooks = self._connection.run_on_commit
        last = self._units[-1] if self._units else None
        if last is None or last.sids != sids or not last.is_live(hooks):
            self._settle()
            last = self._units[-1] if self._units else None
        if last is None or last.sids != sids or last.last_at != len(hooks) - 1 or last.robust != robust:
            last = _Unit(sids, len(hooks), robust=robust)
            self._units.append(last)
        return last

    def _settle(self) -> None:
        """Forget what was rolled back, and put together what shares its fate from now on.

        A savepoint that was released cannot be rolled back any more without those around it.
        """
        hooks, sids = self._connection.run_on_commit, self._open_savepoints()
        kept: list[_Unit] = []
        for unit in self._units:
            if not unit.is_live(hooks):
                continue
            unit.sids &= sids
            last = kept[-1] if kept else None
            if (
                last is not None
                and last.sids == unit.sids
                and last.robust == unit.robust
                and last.last_at + 1 == unit.first_at
            ):
                last.items += unit.items
                last.last_at = unit.last_at
                unit.items, unit.part_of = [], last
            else:
                kept.append(unit)
        self._units = kept

    def _committed(self, unit: _Unit, item: _Item) -> None:
        # Within a transaction it is a test that runs callbacks (captureOnCommitCallbacks), and not all of them, maybe.
        items = [item] if self._connection.in_atomic_block else unit.whole().items
        ready = []
        for one in items:
            one.waits.discard(self._connection.alias)
            if not one.waits and not one.sent:
                one.sent = True
                ready.append(one)
        while ready:
            streams = ready[0].streams
            ours = [one.what for one in ready if one.streams is streams]
            ready = [one for one in ready if one.streams is not streams]
            send_after_commit(streams, ours)


class _CommitHolder:
    """Holds the messages of one publish call until the databases commit that are in a transaction now."""

    def __init__(self, streams: Streams, open_connections: list[Any]) -> None:
        self._streams = streams
        self._connections = open_connections

    def hold(self, held: Held) -> None:
        """Hold a message."""
        _add(self._streams, held, self._connections, robust=True)

    def call_ended(self) -> None:
        """Nothing is sent before the commit."""


class Transactions:
    """The transactions of this thread; ``celery_streams`` asks it at each publish that shall wait for one."""

    def __init__(self) -> None:
        self._waiting: WeakKeyDictionary[Any, _Waiting] = WeakKeyDictionary()

    def holder(self, streams: Streams, using: Any) -> Holder | None:
        """Return what holds messages until the databases ``using`` commit; None where none is in a transaction.

        ``using`` is an alias, several, or True for all. In manual transaction mode (``set_autocommit(False)``) Django
        runs no callbacks, and messages are sent at once.
        """
        found = [one for one in _connections(using) if one.in_atomic_block]
        if not found:
            return None
        guard_results(streams)
        return _CommitHolder(streams, found)

    def is_held(self, streams: Streams, task_id: str) -> bool:
        """Return whether the message of a task waits for a transaction of this thread."""
        return any(
            self._waiting[one].is_held(streams, task_id)
            for one in connections.all(initialized_only=True)
            if one in self._waiting
        )

    def of(self, connection: Any) -> _Waiting:
        """Return what waits for a connection."""
        if connection not in self._waiting:
            self._waiting[connection] = _Waiting(connection)
        return self._waiting[connection]


#: The one of this process; connections are each thread's own.
TRANSACTIONS = Transactions()


def _connections(using: Any) -> list[Any]:
    if using is True:
        return list(connections.all(initialized_only=True))
    return [connections[alias] for alias in ((using,) if isinstance(using, str) else using)]


def _add(streams: Streams, what: Held | Callable[[], Any], found: list[Any], *, robust: bool) -> None:
    item = _Item(streams, what, [one.alias for one in found])
    for one in found:
        TRANSACTIONS.of(one).add(item, robust=robust)


# -- delay_on_commit --------------------------------------------------------------------------------------------------


def hold_delay_on_commit() -> None:
    """Have ``delay_on_commit`` and ``apply_async_on_commit`` of Celery's Django tasks publish in pipelines.

    They call ``delay`` and ``apply_async`` after the commit, as Celery's own do; those that were called with the same
    savepoints do so in one bulk block. ``apply_async_on_commit`` also takes ``using``, another database's alias.
    """
    from celery.contrib.django.task import DjangoTask

    if hasattr(DjangoTask.delay_on_commit, "plain"):
        return
    plain_delay, plain_apply_async = DjangoTask.delay_on_commit, DjangoTask.apply_async_on_commit

    @wraps(plain_delay)
    def delay_on_commit(self: Any, *args: Any, **kwargs: Any) -> None:
        if celery_streams.is_installed(self.app):
            _call_on_commit(self.app, partial(self.delay, *args, **kwargs), DEFAULT_DB_ALIAS)
        else:
            plain_delay(self, *args, **kwargs)

    @wraps(plain_apply_async)
    def apply_async_on_commit(self: Any, *args: Any, **kwargs: Any) -> None:
        if celery_streams.is_installed(self.app):
            using = kwargs.pop("using", None) or DEFAULT_DB_ALIAS
            _call_on_commit(self.app, partial(self.apply_async, *args, **kwargs), using)
        else:
            plain_apply_async(self, *args, **kwargs)

    delay_on_commit.plain = plain_delay  # type: ignore[attr-defined]
    DjangoTask.delay_on_commit = delay_on_commit
    DjangoTask.apply_async_on_commit = apply_async_on_commit


def _call_on_commit(app: Any, call: Callable[[], Any], using: str) -> None:
    connection = transaction.get_connection(using)
    if connection.in_atomic_block:
        _add(streams_of(app), call, [connection], robust=False)
    else:
        connection.on_commit(call)  # at once, or what Django says of manual transaction mode
