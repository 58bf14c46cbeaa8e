"""Header marks: what headers of a task's message say besides: its keys in limits, its lock, that its states are kept.

It reads the options of tasks, also for the partition of its queue that a message belongs to; what the marks do is the
matter of ``limits``, ``unique`` and ``notes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from . import celery_private
from .conf import StreamsConf
from .limits import KEYS_HEADER, Limits, keys_of, limits_of
from .locks import HEADER
from .partitions import place, queue_of
from .placing import Decider, decider
from .running_task import retrying
from .unique import Unique, lock_of, unique_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("HeaderMarks",)

#: Seconds for which the state of a task that is done is kept where results never expire: one day.
_TRACKED = 86_400


class HeaderMarks:
    """The marks of one app's tasks."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        #: Some task that was published here is unique.
        self.knows_unique = False
        #: Limits with keys, and what is unique, by task, as far as messages were published.
        self._marked: dict[Any, tuple[Limits | None, Unique | None] | None] = {}
        #: What tells the partition of a message, by task and queue; None: its id.
        self._deciders: dict[tuple[str, str], Decider | None] = {}

    def clear(self) -> None:
        """Forget the options of tasks, so that the next message reads them again."""
        self._marked.clear()
        self._deciders.clear()

    def headers_of(self, headers: Mapping[str, Any], body: Any, conf: StreamsConf) -> dict[str, Any] | None:
        """Return what the headers of a message say besides: its keys and its lock; None where its task needs none.

        Args:
            body: what Celery makes of the arguments: a tuple of them, in protocol 2.

        Raises:
            LimitKeyError: a key cannot be told; the message must not be stored.
            ConfigurationError: an option of the task means nothing.
        """
        name = headers.get("task")
        if name not in self._marked:
            task = celery_private.registered_task(self._app, name)
            if task is None:
                return None  # of another project, or not known yet: a worker tells its keys
            self._marked[name] = self.options_of(task, conf)
        marked = self._marked[name]
        if marked is None or not isinstance(body, tuple) or len(body) != 3:
            return None
        limits, unique = marked
        task, args, kwargs = celery_private.registered_task(self._app, name), body[0], body[1]
        found: dict[str, Any] = {}
        if limits is not None:
            found[KEYS_HEADER] = keys_of(task, limits, args, kwargs)
        if unique is not None:
            running = retrying(headers)
            # A retry is the same holder, whatever its arguments are.
            lock = str(lock_of(task, unique, args, kwargs)) if running is None else running.lock()
            if lock is not None:
                found[HEADER] = lock
        return {**headers, **found}

    def options_of(self, task: Any, conf: StreamsConf) -> tuple[Limits | None, Unique | None] | None:
        """Return the limits of a task, if they have keys, and how it is unique; None when it is neither.

        Raises:
            ConfigurationError: an option of the task means nothing.
        """
        setting = conf.limits.get(task.name, {})
        limits, unique = limits_of(task, setting), unique_of(task, setting)
        self.knows_unique = self.knows_unique or unique is not None
        keyed = limits if limits.rate_key or limits.concurrency_key else None
        return None if keyed is None and unique is None else (keyed, unique)

    def place(self, queue: str, headers: Mapping[str, Any], body: Any, conf: StreamsConf) -> str:
        """Return the partition of ``queue`` in which a message belongs; without partitions, the queue itself.

        A retry stays where its task's own message is: behind it, and in one script with its acknowledgement.

        Raises:
            LimitKeyError: a key cannot be told; the message must not be stored.
            ConfigurationError: its task cannot be on a queue with partitions.
        """
        running = retrying(headers)
        if running is not None and queue_of(running.queue) == queue:
            return running.queue
        count = conf.partitions.get(queue)
        if count is None:
            return queue
        name, args, kwargs = headers.get("task"), (), {}
        if isinstance(body, tuple) and len(body) == 3:
            args, kwargs = body[0], body[1]
        elif "task" not in headers:
            return place(queue, str(body.get("id")), count)  # protocol 1
        return self.place_of(queue, count, str(name), str(headers.get("id")), args, kwargs, conf)

    def place_of(
        self, queue: str, count: int, task: str, task_id: str, args: Any, kwargs: Any, conf: StreamsConf
    ) -> str:
        """Return the partition of ``queue``, of so many, in which a message of a task belongs.

        Raises:
            LimitKeyError, ConfigurationError: as for :meth:`place`.
        """
        found = self.decider(task, queue, count, conf)
        return place(queue, task_id if found is None else found(args, kwargs), count)

    def decider(self, name: str, queue: str, count: int, conf: StreamsConf) -> Decider | None:
        """Return what tells the partition of a message of a task; None: its id does, or the task is not known here.

        Raises:
            ConfigurationError: the task cannot be on a queue with partitions.
        """
        if (name, queue) not in self._deciders:
            task = celery_private.registered_task(self._app, name)
            if task is None:
                return None
            setting = conf.limits.get(name, {})
            found = decider(task, limits_of(task, setting), unique_of(task, setting), queue, count)
            self._deciders[name, queue] = found
        return self._deciders[name, queue]

    def track_mark(self, name: Any, conf: StreamsConf) -> list[Any] | None:
        """Return what the header of a message says when the states of its task are kept; None when they are not.

        That is for how many seconds the state of a task that is done is kept, and how many attempts it may have.
        """
        task = celery_private.registered_task(self._app, name)
        own = getattr(task, "streams_track", None)
        if not (conf.tracks(str(name)) if own is None else own):
            return None
        seconds = conf.track_ttl
        if seconds is None:
            seconds = _seconds(self._app.conf.result_expires)
        most = getattr(task, "override_max_retries", None) or getattr(task, "max_retries", None)
        return [seconds or _TRACKED, most + 1 if isinstance(most, int) and most >= 0 else None]

    def unique(self, name: Any) -> Unique | None:
        """Return how a task is unique that was published here; None when it is not."""
        marked = self._marked.get(name)
        return marked[1] if marked else None


def _seconds(expires: Any) -> float | None:
    """Return Celery's ``result_expires``, which takes text as well; backends say what is wrong with it."""
    if isinstance(expires, timedelta):
        return expires.total_seconds()
    try:
        return float(expires) if isinstance(expires, (str, Decimal)) else expires
    except ValueError:
        return None
