"""Preparation: what executors know before a message comes: the options of all tasks, with their tracers in place.

Made once for all executors of a process, which may be a thousand, and again when options changed. It does not change:
whoever runs a message goes on with what it began with.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.app import trace
from celery.backends.redis import RedisBackend
from celery.worker.strategy import logger as strategy_logger
from kombu.serialization import prepare_accept_content

from .. import celery_private
from ..app import Streams
from ..awaited_tasks import make_callable
from .contexts import keep_contexts
from .task_options import TaskOptions, options_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Preparation", "prepare")

_JSON = "application/json"

#: Connections of a result backend where nothing is said, as before redis-py 8.
_NO_BOUND = 2**31


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is known before a message comes."""

    #: By the task's name.
    options: dict[str, TaskOptions]
    #: Content types that may be decoded, as kombu wants them.
    accept: Any
    #: Those of them that this package decodes as kombu would, and faster.
    json_types: frozenset[str]
    #: ``worker_deduplicate_successful_tasks``
    deduplicates: bool
    #: "Task ... received" is wanted in the log.
    logs_receipt: bool


def prepare(app: Celery, hostname: str, streams: Streams) -> Preparation:
    """Read the options of all tasks, make them callable, and build their tracers.

    Raises:
        ConfigurationError: an option of a task means nothing.
    """
    accept = prepare_accept_content(app.conf.accept_content)
    plain_json = accept is not None and _JSON in accept and celery_private.decodes_json(_JSON)
    celery_private.remember_custom_headers()
    keep_contexts(app)
    found: dict[str, TaskOptions] = {}
    for name, task in list(app.tasks.items()):
        options = options_of(task, streams)
        if options.acks_late:
            task.acks_late = True
        make_callable(task)
        _let_all_store_results(task.backend)
        found[name] = options
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, app=app)
    return Preparation(
        found,
        accept=accept,
        json_types=frozenset([_JSON] if plain_json else []),
        deduplicates=app.conf.worker_deduplicate_successful_tasks,
        logs_receipt=strategy_logger.isEnabledFor(logging.INFO),
    )


def _let_all_store_results(backend: Any) -> None:
    """Let as many tasks as run at once store their results at once.

    redis-py 8 allows a pool 100 connections where nothing is said, and the backend is one for all threads: a task whose
    result found none would be stored as failed although it ran. What ``redis_max_connections`` or the URL says is kept.
    """
    if isinstance(backend, RedisBackend) and backend.connparams.get("max_connections") is None:
        backend.connparams["max_connections"] = _NO_BOUND
        made = backend.__dict__.get("client")
        pool = getattr(made, "connection_pool", None)
        if pool is not None:
            pool.max_connections = _NO_BOUND
