"""Slow path: runs a message through Celery's own strategy and Request, for everything out of the ordinary.

Task events, revokes, expiry, stamps, custom Requests, protocol 1, acknowledgement before the task: all of that is
Celery's code, which believes that it hands a task to a pool. It returns what happened, for one message at a time, and
settles nothing but the early acknowledgement that Celery's Request asks for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, NotRegistered, TaskRevokedError
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.exceptions import ContentDisallowed, DecodeError

from .. import celery_private, presence
from ..chance import chance
from ..exceptions import BrokerError, MessageError
from ..partitions import queue_of
from ..presence import WorkerPresence
from ..running_task import current
from .burial import Death
from .chords import dispatch_awaited
from .execution import Execution, OwnedTask, Report, Surroundings, check_kwargs, is_plain_value, recognise_revoked
from .inline_request import InlineConsumer, Run
from .outcome import Event
from .requests import received_message
from .task_errors import class_of, event_of, shown

__all__ = ("SlowPath",)

logger = logging.getLogger(__name__)


class SlowPath:
    """The way of a message through Celery's strategy and Request, in the thread that calls it."""

    def __init__(self, around: Surroundings, *, later: Callable[[Execution, Report], None]) -> None:
        #: What Celery's strategies and signals take for the worker's consumer.
        self.consumer = InlineConsumer(around)
        self._around = around
        #: Settles what a strategy kept and has now done with.
        self._later = later
        self._strategies: dict[str, Callable[..., Any]] = {}
        #: Who lives, and when to ask again.
        self._workers: Sequence[WorkerPresence] = ()
        self._workers_due = 0.0

    def run(self, execution: Execution) -> Report:
        """Run the message and return what happened; as ``Executor.execute`` for what passes by and what is raised."""
        delivery, headers = execution.delivery, execution.headers
        message = received_message(
            delivery, headers, execution.properties, execution.history, accept=self._around.accept
        )
        try:
            if message.errors:
                celery_private.raise_decoding_error(message)
            decoded = message.payload
        except ContentDisallowed as exc:
            return Report(Event.NOT_ACCEPTED, error=exc)
        except Exception as exc:  # noqa: BLE001
            # Any serializer, compressor or user codec may raise anything; what it was is in the dead letter.
            return Report(Event.MALFORMED, error=exc)
        payload = None if "task" in headers else decoded
        said = headers if payload is None else payload
        try:
            name, task_id = said["task"], said.get("id")
        except (TypeError, KeyError, AttributeError) as exc:
            return Report(Event.NAMELESS, error=MessageError(f"no task name: {exc}"))
        if not is_plain_value(name):
            return Report(Event.MALFORMED, error=MessageError(f"task {name!r} must be one plain value"))
        options = self._around.options.get(name)
        if options is None:
            return self._unknown(execution, message, name, task_id)
        if payload is not None:
            recognise_revoked(task_id)
        if payload is None:
            try:
                _, kwargs, _ = decoded
                check_kwargs(kwargs)
            except (TypeError, ValueError, MessageError) as exc:
                return Report(Event.MALFORMED, error=exc, options=options)
        name, task_id = str(name), str(task_id)
        if execution.history.get("redelivered") and payload is None and (decoded[2] or {}).get("chord"):
            left = dispatch_awaited(options.task, headers)
            if left:
                return Report(Event.EARLY, early_by=left, options=options)
        running = OwnedTask(delivery, self._around, task_id, said.get("retries"))
        run = self.consumer.run = Run(execution, options, name, str(said.get("shadow") or name), task_id, running)
        expires = self._expiry(said)
        if expires is not None:
            run.expires, said["expires"] = said["expires"], expires
        token = current.set(running)
        try:
            self._strategy(name)(message, payload, partial(self._on_ack, run), partial(self._on_reject, run), [])
        except TaskRevokedError:
            logger.debug("Task %s[%s] was revoked before it started.", name, task_id)
        except _Disowned:
            logger.warning("Task %s[%s] does not run here: this worker no longer holds its message.", name, task_id)
            return Report(Event.DISOWNED, options=options)
        except InvalidTaskError as exc:
            return Report(Event.INVALID, error=exc, options=options)
        except ContentDisallowed as exc:
            return Report(Event.NOT_ACCEPTED, error=exc, options=options)
        except (DecodeError, ValueError, TypeError) as exc:
            if run.started:
                raise
            return Report(Event.MALFORMED, error=exc, options=options)
        finally:
            current.reset(token)
        if run.verdict == "ack" and run.traced is None and self._has_expired(run.expires or said.get("expires")):
            return Report(Event.EXPIRED, Death(name, task_id), options=options)
        silent = not run.verdict and run.traced is None and run.due is None
        if silent and options.custom_strategy:
            self._around.kept.keep(run)
            return Report(Event.KEPT, options=options)
        return self._report(run)

    def _has_expired(self, expires: Any) -> bool:
        if not expires:
            return False
        timezone = self._around.app.timezone
        return bool(maybe_make_aware(maybe_iso8601(expires), timezone).timestamp() <= self._around.clock.guess())

    def _expiry(self, said: dict[str, Any]) -> str | None:
        """Return the expiry that Celery's Request must be told to decide as Redis' clock does; None for what it says.

        The Request compares with this host's clock, which may be off.
        """
        if not said.get("expires"):
            return None
        try:
            at = maybe_make_aware(maybe_iso8601(said["expires"]), self._around.app.timezone)
            ahead = time.time() - self._around.clock.guess()
            if (at.timestamp() <= time.time()) == (at.timestamp() <= time.time() - ahead):
                return None
            ahead = time.time() - self._around.clock.now()
            return str((at + timedelta(seconds=ahead)).isoformat())
        except (ValueError, TypeError, AttributeError, OverflowError):
            return None  # Celery's Request says what is wrong with it

    def forget_strategies(self) -> None:
        """Build them again when they are needed: they keep options and the dispatcher of events."""
        self._strategies.clear()

    def _strategy(self, name: str) -> Callable[..., Any]:
        strategy = self._strategies.get(name)
        if strategy is None:
            app = self._around.app
            strategy = self._strategies[name] = app.tasks[name].start_strategy(app, self.consumer)
        return strategy

    def _report(self, run: Run) -> Report:
        settled = run.early or run.task.retried
        death = Death(run.name, run.task_id)
        if run.due is not None:
            early_by = max(run.due - self._around.clock.guess(), 0.0)
            return Report(Event.EARLY, death, early_by=early_by, settled=settled, options=run.options)
        if run.traced is None:
            # A strategy of its own acknowledges what it ran in its own way.
            acked = Event.SUCCEEDED if run.options.custom_strategy else Event.REVOKED
            told = {"ack": acked, "requeue": Event.REQUEUED, "reject": Event.REJECTED}
            return Report(told.get(run.verdict, Event.INVALID), death, settled=settled, options=run.options)
        failed, retval, _ = run.traced
        if not failed:
            return Report(Event.SUCCEEDED, death, settled=settled, options=run.options)
        event, exc = event_of(retval.exception, run.options.task)
        death = Death(run.name, run.task_id, shown(exc), retval.traceback, class_of(exc))
        return Report(event, death, settled=settled, options=run.options, error=exc)

    # Of one run and not of the one that runs now: remote control acknowledges what it terminates, maybe a little late.

    def _on_ack(self, run: Run, logger: Any = None, errors: Any = None) -> None:
        run.verdict = "ack"
        if run.kept:
            self._settle_kept(run)
        elif run.started and run.traced is None and not run.options.acks_late and not run.early:
            assert run.delivery.message is not None
            self._around.progress.keep(run.delivery.message)
            if not self._around.settler.ack_now(run.delivery):
                raise _Disowned
            run.early = run.task.early = True

    def _on_reject(self, run: Run, logger: Any = None, errors: Any = None, requeue: bool = False) -> None:
        run.verdict = "requeue" if requeue else "reject"
        if run.kept:
            self._settle_kept(run)

    def _settle_kept(self, run: Run) -> None:
        self._later(run.execution, self._report(run))
        run.early = run.task.early = True  # settled: at most a dead letter can follow
        self._around.kept.release(run)

    def _knowing(self, queue: str, name: str) -> list[WorkerPresence]:
        """Return the living workers that read the queue and know the task; asked every two seconds at most."""
        if time.monotonic() >= self._workers_due:
            try:
                self._workers = presence.workers(self._around.settler.broker)
            except BrokerError as exc:
                logger.debug("Cannot ask other workers whether they know task %s: %s", name, exc)
            self._workers_due = time.monotonic() + 2.0
        return [one for one in self._workers if one.is_alive and queue_of(queue) in one.queues and one.knows(name)]

    def _unknown(self, execution: Execution, message: Any, name: Any, task_id: Any) -> Report:
        now_ms = int(self._around.clock.now() * 1000)
        since = int(execution.history.setdefault("unknown", now_ms))
        unknown_for = (now_ms - since) / 1000
        knowing = self._knowing(execution.delivery.stream.queue, str(name))
        # What was handed over already shows that its taker knew less than it said.
        takers = [] if execution.delivery.handed else [one.worker for one in knowing if one.takes]
        if knowing:
            # Soon again, until it comes to whoever knows it; it is not given up while there is such a worker.
            unknown_for = min(unknown_for, self._around.streams.conf.unknown_task_ttl - 1.0, 1.0)
        if not isinstance(name, str):
            takers, unknown_for = [], math.inf  # no worker to come will know it
        exc = NotRegistered(name)

        def announce() -> None:
            around = self._around
            request = Context(message.headers, properties=message.properties, chord=None, errbacks=None, name=name)
            around.tell(lambda: around.app.backend.mark_as_failure(task_id, exc, request=request))
            if around.sends_events():
                around.dispatcher.send("task-failed", uuid=task_id, exception=repr(exc))
            signals.task_unknown.send(sender=self.consumer, message=message, exc=exc, name=name, id=task_id)

        return Report(
            Event.UNKNOWN,
            Death(str(name), str(task_id), repr(exc)),
            unknown_for=unknown_for,
            taker=chance.choice(takers) if takers else "",
            announce=announce,
        )


class _Disowned(Exception):
    """The message could not be acknowledged before its task, which must not start here."""
