"""Installation: how a Celery app comes to publish the messages of chosen queues to streams.

:func:`install` touches ``app.amqp``, ``app.control`` and ``app.conf``, never ``app.tasks``, and connects to nothing. It
also teaches kombu the URLs of a Redis Cluster, and so do the commands.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from celery import current_app
from kombu.utils.imports import symbol_by_name

from . import celery_private
from .aliases import answer_for_duplicates
from .amqp import OUR_AMQP, STOCK_AMQP, adopt
from .app import streams_of
from .awaited_tasks import make_all_callable
from .cluster import CLUSTER_SCHEMES, is_cluster_url
from .exceptions import ConfigurationError
from .hints import command
from .holding import publish_groups_in_bulk
from .pausing import OUR_CONTROL, STOCK_CONTROL, adopt_control
from .plans import publish_by_plans
from .redis_url import without_login

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("connect_to_clusters", "install", "is_installed")

logger = logging.getLogger(__name__)


def is_installed(app: Celery) -> bool:
    """Return whether :func:`install` was called for ``app`` (or for the app it was pickled from)."""
    return bool(app.amqp_cls == OUR_AMQP)


def install(app: Celery | None = None, *, queues: Any = None, enabled: Any = None) -> Celery:
    """Put the chosen queues of a Celery app on Redis Streams; call it once, anywhere, again does no harm.

    Args:
        app: the app; the current one by default.
        queues: overrides ``streams_queues``: names, shell patterns, or a mapping of name to share (0.0 to 1.0).
        enabled: overrides ``streams_enabled``: a boolean, a callable, or its dotted path.

    The environment variables ``CELERY_STREAMS_QUEUES`` and ``CELERY_STREAMS_ENABLED`` override both. Works before and
    after the app is configured and ``app.amqp`` is built, with a user's own AMQP class, and for apps that are pickled
    or spawned. Opens no connection; wrong settings are reported at the first publish or when a worker starts.

    Returns the app.
    """
    connect_to_clusters()
    if app is None:
        app = celery_private.real_app(current_app)
    changes: dict[str, Any] = {}
    if queues is not None:
        changes["streams_queues"] = queues
    if enabled is not None:
        changes["streams_enabled"] = enabled
    if not is_installed(app):
        if app.amqp_cls != STOCK_AMQP:
            changes["streams_amqp_cls"] = app.amqp_cls
        app.amqp_cls = OUR_AMQP
        built = app.__dict__.get("amqp")
        if built is not None:
            adopt(built)
        if app.control_cls != STOCK_CONTROL:
            changes["streams_control_cls"] = app.control_cls
        app.control_cls = OUR_CONTROL
        control = app.__dict__.get("control")
        if control is not None:
            adopt_control(control)
        _receive_workers(app)
        app.on_after_finalize.connect(_check_tasks, weak=False, dispatch_uid=f"celery-streams-tasks-{id(app)}")
        publish_groups_in_bulk()
        publish_by_plans(app, streams_of(app))
        celery_private.choose_backends(app, _backend_for)
        answer_for_duplicates(app, streams_of(app))
        make_all_callable(app)
    # An app that was pickled for a spawned process has all that its classes and settings say, and not this.
    celery_private.choose_backends(app, _backend_for)
    if changes:
        app.conf.update(changes)
        streams_of(app).reload()
    return app


def connect_to_clusters() -> None:
    """Have kombu's connections of this process, of any app, take ``redis+cluster://`` for our transport.

    It is imported when the first of them connects.
    """
    path = "celery_streams.cluster_transport:Transport"
    celery_private.take_broker_urls(dict.fromkeys(CLUSTER_SCHEMES, path), without_login)


def _backend_for(url: str) -> Any:
    """Return our class for results on a Redis Cluster, which is imported only then; None for all other results."""
    return symbol_by_name("celery_streams.cluster_results:ClusterBackend") if is_cluster_url(url) else None


def _check_tasks(sender: Any = None, **kwargs: Any) -> None:
    """Say what is wrong with the options of tasks as soon as all tasks are known; publishing one raises it."""
    streams = streams_of(sender)
    try:
        conf = streams.conf
    except ConfigurationError:
        return  # the first publish, or the worker, says what is wrong with the settings
    for task in list(celery_private.registered_tasks(sender).values()):
        try:
            streams.marks.options_of(task, conf)
            streams.check_partitions(task)
        except ConfigurationError as exc:
            logger.error("%s. Publishing this task fails until it is fixed.", str(exc).rstrip(".?"))


def _receive_workers(app: Celery) -> None:
    """Put workers that code starts for ``app`` on streams, and warn of those of ``celery worker``, which stay stock.

    ``celery worker`` is how a queue's list is emptied while the queue moves, so it goes on reading lists.
    """
    from celery.signals import celeryd_after_setup, worker_init

    def receive(sender: Any = None, **kwargs: Any) -> None:
        streams = streams_of(app)
        if sender is None or sender.app is not app or not streams.enabled():
            return
        if _is_ours(sender) or (_is_command() and not streams.started_by_code):
            return
        chosen = [streams.on_streams(name) for name in app.amqp.queues.consume_from]
        # A program that also reads lists goes on doing so, with the warning below; an embedded one says what to do.
        if all(chosen) if hasattr(sender, "startup_info") else any(chosen):
            symbol_by_name("celery_streams.worker.program:put_on_streams")(sender)

    def warn(sender: Any = None, instance: Any = None, **kwargs: Any) -> None:
        if instance is None or instance.app is not app or not streams_of(app).enabled() or _is_ours(instance):
            return
        choice = streams_of(app).conf.queues
        # Of a queue that moves by and by, the list goes on getting its share.
        idle = [name for name in app.amqp.queues.consume_from if choice.share(name) >= 1.0]
        if idle:
            logger.warning(
                "Queue %s is on Redis Streams (pid %s): this worker reads Celery's list, which gets no new messages. "
                "Start its worker with: %s",
                ", ".join(idle),
                os.getpid(),
                command("worker", "-Q", ",".join(idle)),
            )

    worker_init.connect(receive, weak=False, dispatch_uid=f"celery-streams-init-{id(app)}")
    celeryd_after_setup.connect(warn, weak=False, dispatch_uid=f"celery-streams-{id(app)}")

    start = app.start

    def start_by_code(argv: Any = None) -> Any:
        """Run Celery's command line, as ``app.start`` and ``app.worker_main`` do; a worker of it reads streams."""
        streams = streams_of(app)
        streams.started_by_code = True
        try:
            return start(argv)
        finally:
            streams.started_by_code = False

    app.start = start_by_code


def _is_ours(worker: Any) -> bool:
    return any(cls.__module__.startswith("celery_streams.") for cls in type(worker).__mro__)


def _is_command() -> bool:
    """Return whether this is the ``worker`` command of Celery's command line at work."""
    if "celery.bin.worker" not in sys.modules:
        return False
    import click
    from celery.bin.worker import worker

    context = click.get_current_context(silent=True)
    return context is not None and context.command is worker
