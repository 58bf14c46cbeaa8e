"""program: Celery's worker on streams: which queues it reads, what it checks at its start, and what its banner says.

``celery-streams worker`` runs :class:`Worker`. Workers that code starts (``app.Worker``, ``app.worker_main()``,
Celery's ``start_worker`` for tests) are put on streams by :func:`put_on_streams`, which ``installation`` calls.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from celery import platforms
from celery.app.defaults import DEFAULTS
from celery.apps.worker import Worker as CeleryWorker
from celery.apps.worker import safe_say
from celery.exceptions import ImproperlyConfigured
from celery.platforms import EX_OK
from celery.utils.nodenames import worker_direct
from celery.worker import WorkController
from celery.worker import state as worker_state
from kombu.utils.imports import symbol_by_name

from .. import __file__ as package
from .. import __version__, celery_private
from ..app import Streams, streams_of
from ..conf import misspelt_settings, settings_in_force
from ..exceptions import BrokerError, NotPermitted
from ..limits import without_task
from ..partitions import is_partition, queue_of
from ..probes import CLOCK_WARNING, clock_skew, denied_to_readers
from ..redis_url import safe_url
from .broker_bounds import bound_connections
from .option_values import count, misunderstood, seconds
from .patterns import QueuePatterns, existing_queues, is_pattern

__all__ = ("NO_EFFECT", "Worker", "ineffective_settings", "put_on_streams")

logger = logging.getLogger(__name__)

#: What takes the place of Celery's Consumer and Autoscaler.
CONSUMER = "celery_streams.worker.consumer:Consumer"
AUTOSCALER = "celery_streams.worker.autoscale:Autoscaler"

_STOCK_AUTOSCALER = "celery.worker.autoscale:Autoscaler"

#: Celery settings that mean nothing where children read streams themselves, and why; MIGRATION.md names the same.
NO_EFFECT: dict[str, str] = {
    "broker_heartbeat": "AMQP only",
    "broker_heartbeat_checkrate": "AMQP only",
    "broker_login_method": "AMQP only",
    "broker_native_delayed_delivery_queue_type": "RabbitMQ only",
    "task_create_missing_queue_type": "RabbitMQ only",
    "task_default_delivery_mode": "Redis has no delivery modes",
    "task_default_queue_type": "RabbitMQ only",
    "task_queue_max_priority": "RabbitMQ only",
    "worker_cancel_long_running_tasks_on_connection_loss": "a worker that loses its connection keeps its entries",
    "worker_detect_quorum_queues": "RabbitMQ only",
    "worker_direct": "a list queue for each worker; start a stock worker for it",
    "worker_enable_prefetch_count_reduction": "there is no prefetch count",
    "worker_eta_task_limit": "delayed messages wait in Redis, not in the worker",
    "worker_lost_wait": "the parent knows at once what a dead child had finished",
    "worker_pool_putlocks": "the parent hands no tasks to its children",
    "worker_proc_alive_timeout": "a child that does not start is replaced, with growing pauses",
}


#: Why a prefetch multiplier other than 1 means nothing.
_MULTIPLIER = "children fetch only what they start soon; 1, one at a time, is the only value with an effect"

#: Why the one optimization profile that is not the default means nothing.
_FAIR = "each child takes its own next message, which is what fair means"


def ineffective_settings(conf: Any) -> dict[str, str]:
    """Return the settings that the project sets and that do nothing, and why."""
    found = {name: why for name, why in NO_EFFECT.items() if conf.get(name) != DEFAULTS.get(name)}
    if count(conf.get("worker_prefetch_multiplier")) not in (1, DEFAULTS["worker_prefetch_multiplier"]):
        found["worker_prefetch_multiplier"] = _MULTIPLIER
    return found


class StreamsWork(WorkController):  # type: ignore[misc]
    """What a worker on streams does other than Celery's, in front of Celery's own class."""

    pool_cls: Any
    autoscaler_cls: Any

    def on_before_init(self, **kwargs: Any) -> None:
        """Check what Celery turns into a number without an error message of its own.

        Raises:
            ImproperlyConfigured: it is none.
        """
        multiplier = kwargs.get("prefetch_multiplier") or self.app.conf.worker_prefetch_multiplier
        self._refuse(misunderstood({"worker_prefetch_multiplier (--prefetch-multiplier)": (multiplier, "amount")}, ()))
        super().on_before_init(**kwargs)

    def on_init_blueprint(self) -> None:
        """Check time limits and counts, and take the place of Celery's consumer and pool.

        Raises:
            ImproperlyConfigured: a setting, an option or a task's option cannot be understood.
        """
        super().on_init_blueprint()
        bound_connections(self.app)
        if not hasattr(self, "queue_patterns"):
            self._select_streams()
        conf = self.app.conf
        values = {
            "task_time_limit (--time-limit)": (self.time_limit, "seconds"),
            "task_soft_time_limit (--soft-time-limit)": (self.soft_time_limit, "seconds"),
            "worker_max_tasks_per_child (--max-tasks-per-child)": (self.max_tasks_per_child, "count"),
            "worker_max_memory_per_child (--max-memory-per-child)": (self.max_memory_per_child, "amount"),
            "worker_soft_shutdown_timeout": (conf.get("worker_soft_shutdown_timeout"), "seconds"),
            "worker_concurrency (-c)": (self.concurrency, "count"),
            "--heartbeat-interval": (self.options.get("heartbeat_interval"), "amount"),
        }
        self._refuse(misunderstood(values, list(self.app.tasks.values())))
        # By name, for pools stand above the worker: they are made of its parts.
        self.pool_cls = symbol_by_name("celery_streams.concurrency:pool_for")(self.pool_cls)
        self.consumer_cls = CONSUMER
        if self.autoscaler_cls == _STOCK_AUTOSCALER:
            self.autoscaler_cls = AUTOSCALER

    def _select_streams(self) -> None:
        """Replace the selection of queues that Celery made for a worker of lists.

        Raises:
            ConfigurationError: the URL is not one of a Redis; the thread of an embedded worker would tell nobody.
            ImproperlyConfigured: some of its queues are on lists.
        """
        streams, queues = streams_of(self.app), self.app.amqp.queues
        streams.new_broker().client.close()
        selected = list(queues.consume_from)
        elsewhere = [name for name in selected if not streams.on_streams(name)]
        if elsewhere:
            raise ImproperlyConfigured(
                f"A worker reads either streams or lists, and of its queues {', '.join(selected)} these are on lists "
                f"(streams_queues): {', '.join(elsewhere)}. Name its queues (queues=[...]), or put all on streams"
            )
        self.setup_queues(selected if celery_private.consumes_from_chosen(queues) else None)

    @staticmethod
    def _refuse(wrong: Iterable[str]) -> None:
        found = "; ".join(wrong)
        if found:
            raise ImproperlyConfigured(found)

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """Select the queues to read; of a shell pattern, the known queues that match it.

        Raises:
            ImproperlyConfigured: none of the project's queues is on streams, and none was named.
        """
        for name in include or ():
            if is_partition(name):
                raise ImproperlyConfigured(
                    f"{name!r} is a partition of queue {queue_of(name)!r}: a worker reads all partitions of its queues"
                )
        patterns = self._patterns(include or ())
        self.queue_patterns = QueuePatterns(self.app, patterns, excluded=exclude or ())
        if patterns:
            include = [name for name in include if name not in patterns] + self.queue_patterns.find()
            if not include:
                self.app.amqp.queues.select(())
                for name in list(self.app.amqp.queues.consume_from):
                    self.app.amqp.queues.deselect(name)
                return
        if not include:
            include = self._chosen_queues(excluded=exclude or ())
        super().setup_queues(include, exclude)
        if self.app.conf.worker_direct:
            self.app.amqp.queues.deselect(worker_direct(self.hostname).name)
        self._refuse_denied()

    def _refuse_denied(self) -> None:
        """Refuse to start when Redis forbids all queues; of some ``worker.access`` leaves out those.

        Raises:
            NotPermitted: it forbids all of them.
        """
        names = list(self.app.amqp.queues.consume_from)
        broker = streams_of(self.app).new_broker()
        try:
            denied = denied_to_readers(broker, names)
        except BrokerError as exc:
            logger.debug("Permissions are not known yet: %s", exc)
            return
        finally:
            broker.client.close()
        for name, found in denied.items():
            if len(denied) == len(names):
                raise NotPermitted(
                    f"Queue {name} cannot be read: the Redis user lacks {', '.join(one.command for one in found)}. "
                    f"{found[0].text}. MIGRATION.md lists the permissions a worker needs; celery-streams doctor checks "
                    "them"
                )

    def _patterns(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that are patterns: a queue that has such a name is meant itself."""
        streams = streams_of(self.app)
        found = [name for name in names if is_pattern(name) and name not in streams.literal_queues]
        if found:
            existing = {*self.app.amqp.queues, *existing_queues(self.app)}
            found = [name for name in found if name not in existing]
        return found

    def _chosen_queues(self, *, excluded: Sequence[str]) -> list[str]:
        """Return what a worker without -Q reads: stock would read ``selected``, and streams_queues may name more."""
        streams = streams_of(self.app)
        selected = [name for name in self.app.amqp.queues.consume_from if name not in excluded]
        named = [name for name in streams.conf.queues.names if name not in excluded]
        chosen = list(dict.fromkeys([*filter(streams.on_streams, selected), *named]))
        if not chosen and excluded:
            raise ImproperlyConfigured(f"-X {','.join(excluded)} leaves this worker no queue on streams to read")
        if not chosen:
            raise ImproperlyConfigured(
                f"None of the queues {', '.join(selected) or '(none)'} is on streams: name one with -Q, "
                "or set streams_queues"
            )
        return chosen

    def on_consumer_ready(self, consumer: Any) -> None:
        """Say that the worker is ready, and warn about odd settings."""
        super().on_consumer_ready(consumer)
        streams = streams_of(self.app)
        _say_clock_skew(streams)
        for name, near in streams.odd_queues.items():
            logger.warning(
                "No route, setting or message knows queue %s, which -Q or -X names; did you mean %s?", name, near
            )
        for name in self.app.amqp.queues.consume_from:
            if not streams.on_streams(name):
                logger.warning(
                    "Queue %s is not on streams (streams_queues): publishers write to Celery's list; this worker only "
                    "runs what is left on its stream.",
                    name,
                )
        soft, hard = seconds(self.soft_time_limit), seconds(self.time_limit)
        if soft and hard and soft > hard:
            logger.warning(
                "The soft time limit (%g s) lies above the hard one (%g s): tasks are killed before they are told. "
                "Celery refuses to publish a task with such limits of its own, or from the settings.",
                soft,
                hard,
            )
        misspelt = misspelt_settings(self.app.conf).values()
        for sentence in (*misspelt, *without_task(streams.conf.limits, self.app.tasks)):
            logger.warning("%s", sentence)
        if not streams.enabled():
            logger.warning(
                "streams_enabled is off: publishers write to Celery's lists; this worker only runs what is left on "
                "the streams."
            )

    def wait_for_soft_shutdown(self) -> None:
        """Wait for running tasks as Celery does, by what the children say they are doing."""
        timeout = seconds(self.app.conf.worker_soft_shutdown_timeout)
        if not timeout or timeout <= 0:
            return
        if not self._running() and not self.app.conf.worker_enable_soft_shutdown_on_idle:
            return
        logger.warning("Initiating Soft Shutdown, terminating in %s seconds", timeout)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and (self._running() or self.app.conf.worker_enable_soft_shutdown_on_idle):
            # What children run stands in shared memory, which wakes nobody. (Celery sleeps through the whole time.)
            time.sleep(0.05)

    def _running(self) -> Sequence[Any]:
        return [holder for holder in self.pool.holders() if holder.snapshot().running is not None]

    def info(self) -> dict[str, Any]:
        """Return what ``inspect stats`` shows of the process."""
        info = super().info()
        info["total"] = dict(worker_state.total_count)
        return dict(info)


class Worker(StreamsWork, CeleryWorker):  # type: ignore[misc]
    """Celery's worker program for streams."""

    def startup_info(self, artlines: bool = True) -> str:
        """Return the banner."""
        streams = streams_of(self.app)
        lines = [
            super().startup_info(artlines=artlines),
            " [streams]",
            f"  .> version:     celery-streams {__version__} ({Path(package).parent})",
            f"  .> switch:      {_switch(streams)}",
            f"  .> redis:       {safe_url(streams.url)}{_source(streams, 'streams_url')}",
            f"  .> queues:      {_choice(streams)}",
            f"  .> keys:        {streams.conf.key_prefix}:{{QUEUE}}",
            f"  .> claims:      after {streams.conf.visibility_timeout:g}s without a heartbeat",
        ]
        if streams.children:
            lines.append(f"  .> children:    {self._split(streams.children)}")
        no_effect = ineffective_settings(self.app.conf)
        if self.optimization == "fair":
            no_effect["-O fair"] = _FAIR
        lines += [f"  .> no effect:   {name} ({why})" for name, why in no_effect.items()]
        return "\n".join(lines) + "\n"

    def _split(self, counts: dict[str, int]) -> str:
        """Say how many children read which queue (``-Q name:count``)."""
        others = [name for name in self.app.amqp.queues.consume_from if name not in counts]
        rest = int(self.concurrency) - sum(counts.values())
        parts = [f"{count} for {name}" for name, count in counts.items()]
        if rest > 0:
            parts.append(f"{rest} for {', '.join(others) or 'the queues that match'}")
        return "; ".join(parts)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Install Celery's signal handlers; HUP starts the program again as it was really started.

        Celery's handler executes ``sys.argv``, which after ``python -m`` names a file that cannot be executed so.
        """
        super().install_platform_tweaks(worker)
        if not self._isatty and not self.app.IS_macOS:
            platforms.signals["SIGHUP"] = _restart


def _switch(streams: Streams) -> str:
    said = "on" if streams.enabled() else "off: publishers write to Celery's lists"
    return said + _source(streams, "streams_enabled")


def _choice(streams: Streams) -> str:
    queues = streams.conf.queues
    said = ", ".join(f"{name} {share * 100:.3g} %" for name, share in queues.shares.items())
    return (said or ", ".join(queues.patterns)) + _source(streams, "streams_queues")


def _source(streams: Streams, name: str) -> str:
    """Say where a setting comes from; nothing for a default."""
    source = next(one.source for one in settings_in_force(streams.app.conf) if one.name == name)
    return "" if source == "default" else f" ({source})"


def _say_clock_skew(streams: Streams) -> None:
    """Say that this host has another time than Redis."""
    client = streams.new_broker().client
    try:
        skew = clock_skew(client)
    except BrokerError as exc:
        logger.debug("Cannot compare the clocks: %s", exc)
        return
    finally:
        client.close()
    if abs(skew.ahead) - skew.uncertainty >= CLOCK_WARNING:
        logger.warning(
            "The clock of this host is %.1f s %s Redis'. Redis' decides when tasks are due and when they expire; eta "
            "and countdown of what is published here are off by it. Run NTP on both hosts (timedatectl set-ntp true).",
            abs(skew.ahead),
            "ahead of" if skew.ahead > 0 else "behind",
        )


def put_on_streams(worker: WorkController) -> None:
    """Let a worker that code started read the streams of its queues; called before it makes its parts.

    It keeps its class, which may be Celery's ``TestWorkController`` or a user's own, behind ours.
    """
    worker.__class__ = type(type(worker).__name__, (StreamsWork, type(worker)), {"__module__": type(worker).__module__})


def _restart(*args: Any) -> None:
    safe_say(f"Restarting celery worker ({' '.join(sys.orig_argv)})", sys.__stdout__)
    atexit.register(_execute_again)
    worker_state.should_stop = EX_OK


def _execute_again() -> None:
    platforms.close_open_fds([sys.__stdin__, sys.__stdout__, sys.__stderr__])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
