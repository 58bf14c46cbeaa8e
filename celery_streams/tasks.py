"""shared_task: Celery's decorator, with the options that only mean something on streams, checked and documented."""

from __future__ import annotations

from typing import Any

from celery import shared_task as celery_shared_task

from .async_tasks import as_function
from .exceptions import ConfigurationError
from .spelling import nearest

__all__ = ("TASK_OPTIONS", "shared_task")

#: Options of a task that streams workers read; Celery keeps them as plain attributes, and list workers ignore them.
TASK_OPTIONS: dict[str, str] = {
    "streams_acks_late": "True or False: overrides the setting of the same name for this task",
    "streams_delivery_limit": "overrides the setting of the same name for this task",
    "streams_dead_letter_failures": "overrides the setting of the same name for this task",
    "streams_rate_limit_key": "an argument, or a callable (task, args, kwargs): each key has its own rate limit",
    "streams_concurrency": "how many may run at once, over all workers",
    "streams_concurrency_key": "an argument, or a callable (task, args, kwargs), for streams_concurrency_per_key",
    "streams_unique": "True, or seconds: a message that is there already is not stored again",
    "streams_unique_key": "an argument, or a callable (task, args, kwargs): what tells which are the same",
    "streams_unique_until": '"end" (of the message, by default) or "start" (of the task)',
    "streams_unique_on_duplicate": '"return" the result of the first (by default), or "raise" DuplicateTask',
    "streams_unique_replace": 'True, with streams_unique_until="start": the newest arguments replace the first',
    "streams_concurrency_per_key": "how many of each key may run at once, over all workers",
}


def shared_task(*args: Any, **options: Any) -> Any:
    """Declare a task exactly as ``celery.shared_task`` does, with more options.

    ``streams_acks_late``
        True: acknowledge after the task ran (at least once). False: as Celery does by the task's ``acks_late``, which
        is before it runs unless that is set (at most once).
    ``streams_delivery_limit``
        Deliveries that may end in a crash before the message is dead-lettered.
    ``streams_dead_letter_failures``
        Whether a task that failed for good is dead-lettered.
    ``streams_rate_limit_key``
        The name of an argument, or a callable ``(task, args, kwargs)``: each key has the rate of ``rate_limit`` for
        itself, over all workers.
    ``streams_concurrency``, ``streams_concurrency_key``, ``streams_concurrency_per_key``
        How many may run at once, over all workers: in all, and of each key.

    ``streams_unique``
        True, or a number of seconds: while a message of the task is there, on this queue and with the same arguments,
        another one is not stored, and ``.delay()`` returns the result of the first.
    ``streams_unique_key``
        The name of an argument, or a callable ``(task, args, kwargs)``: what tells which messages are the same.
    ``streams_unique_until``
        ``"end"``: until the message is gone, retries included; ``"start"``: until the task starts.
    ``streams_unique_on_duplicate``
        ``"return"`` the result of the first, or ``"raise"`` :exc:`celery_streams.DuplicateTask`.
    ``streams_unique_replace``
        With ``streams_unique_until="start"``: the first message gets the newest arguments, and keeps its id.

    On list queues they are ignored. An ``async def`` function becomes a task that every pool can run, a stock Celery
    worker's too; called directly it returns its result, not a coroutine.

    Raises:
        ConfigurationError: an option beginning with ``streams_`` is not known.
    """
    for name in options:
        if name.startswith("streams_") and name not in TASK_OPTIONS:
            raise ConfigurationError(f"shared_task has no option {name!r}{nearest(name, TASK_OPTIONS)}")
    if len(args) == 1 and callable(args[0]):
        return celery_shared_task(as_function(args[0]), **options)
    declare = celery_shared_task(*args, **options)
    return lambda fun: declare(as_function(fun))
