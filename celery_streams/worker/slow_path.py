"""slow_path: runs a message through Celery's own strategy and Request, for everything out of the ordinary.

Task events, revokes, expiry, stamps, custom Requests, protocol 1, acknowledgement before the task: all of that is
Celery's code, which believes that it hands a task to a pool. What it asked for is collected in a :class:`Run`; the
executor decides and settles. ``executor`` calls this, for one message at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, NotRegistered, TaskRevokedError
from kombu.exceptions import ContentDisallowed, DecodeError

from ..broker import Delivery
from ..exceptions import MessageError
from ..running_task import RunningTask, current
from .inline_request import LocalConsumer, Run
from .outcome import Action, Circumstances, Event, decide
from .requests import received_message
from .settle import Death
from .task_errors import event_of, let_go

if TYPE_CHECKING:
    from .executor import Executor

__all__ = ("SlowPath",)

logger = logging.getLogger(__name__)


class SlowPath:
    """The way of a message through Celery's strategy and Request, in the thread that calls it."""

    run_now: Run

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.consumer = LocalConsumer(self, executor.hostname, executor.app)
        self._strategies: dict[str, Callable[..., Any]] = {}

    def execute(
        self, delivery: Delivery, headers: dict[str, Any], properties: dict[str, Any], history: dict[str, Any]
    ) -> None:
        """Run and settle ``delivery``; as :meth:`Executor.execute` for what passes by and what is raised."""
        kombu_message = received_message(delivery, headers, properties, history, accept=self.executor.accept)
        payload = None
        name, task_id = headers.get("task"), headers.get("id")
        try:
            if kombu_message.errors:
                kombu_message._reraise_error()
            decoded = kombu_message.payload
        except ContentDisallowed as exc:
            self.executor.malformed(delivery, Event.NOT_ACCEPTED, exc, headers)
            return
        except Exception as exc:  # noqa: BLE001
            # Any serializer, compressor or user codec may raise anything; what it was is in the dead letter.
            self.executor.malformed(delivery, Event.MALFORMED, exc, headers)
            return
        if name is None:
            payload = decoded
            try:
                name, task_id = payload["task"], payload["id"]
            except (TypeError, KeyError) as exc:
                wrong = MessageError(f"no task name: {exc}")
                self.executor.malformed(delivery, Event.MALFORMED, wrong, headers, nameless=True)
                return
        name, task_id = str(name), str(task_id)
        plan = self.executor.plans.get(name)
        if plan is None:
            self._unknown(delivery, kombu_message, name, task_id, history)
            return
        if (
            history.get("redelivered")
            and payload is None
            and (decoded[2] or {}).get("chord")
            and self.executor.waits_for_claim(delivery, plan, headers, history)
        ):
            return
        run = self.run_now = Run(delivery, plan, history)
        owned = self.executor.owner_check(delivery)
        # Acknowledged before it ran, the message is on no stream any more, and nobody else's.
        running = RunningTask(task_id, int((payload or headers).get("retries") or 0), lambda: run.early or owned())
        token = current.set(running)
        try:
            self._strategy(name)(kombu_message, payload, partial(self._on_ack, run), partial(self._on_reject, run), [])
        except TaskRevokedError:
            logger.debug("Task %s[%s] was revoked before it started.", name, task_id)
        except _Disowned:
            logger.warning("Task %s[%s] does not run here: its message is not ours any more.", name, task_id)
            return
        except (InvalidTaskError, ContentDisallowed) as exc:
            event = Event.NOT_ACCEPTED if isinstance(exc, ContentDisallowed) else Event.INVALID
            self.executor.malformed(delivery, event, exc, headers)
            return
        except (DecodeError, ValueError, TypeError) as exc:
            if run.started:
                raise
            self.executor.malformed(delivery, Event.MALFORMED, exc, headers)
            return
        finally:
            current.reset(token)
        event, death = self._event(run, name, task_id)
        self.executor.finish(
            delivery,
            plan,
            history,
            event,
            running=running,
            death=death,
            early_by=0.0 if run.due is None else run.due - time.time(),
            acked_early=run.early,
        )

    def forget_strategies(self) -> None:
        """Build them again when they are needed: they keep options and the dispatcher of events."""
        self._strategies.clear()

    def _strategy(self, name: str) -> Callable[..., Any]:
        strategy = self._strategies.get(name)
        if strategy is None:
            strategy = self._strategies[name] = self._counted(
                self.executor.app.tasks[name].start_strategy(self.executor.app, self.consumer), name
            )
        return strategy

    def _counted(self, strategy: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            result = strategy(*args)
            if self.run_now.started and not self.executor.in_parent:
                self.executor.count(name)
            return result

        return run

    def _event(self, run: Run, name: str, task_id: str) -> tuple[Event, Death]:
        if run.due is not None:
            return Event.EARLY, Death(name, task_id)
        if run.traced is None:
            told = {"ack": Event.REVOKED, "requeue": Event.REQUEUED}
            return told.get(run.verdict, Event.INVALID), Death(name, task_id)
        failed, retval, _ = run.traced
        if not failed:
            return Event.SUCCEEDED, Death(name, task_id)
        event, exc = event_of(retval.exception, run.plan.task)
        death = Death(name, task_id, repr(exc), retval.traceback)
        let_go(exc)
        return event, death

    # Of one run and not of the one that runs now: remote control acknowledges what it terminates, maybe a little late.

    def _on_ack(self, run: Run, logger: Any = None, errors: Any = None) -> None:
        run.verdict = "ack"
        if run.started and run.traced is None and not run.plan.acks_late and not run.early:
            assert run.delivery.message is not None
            self.executor.progress.keep(run.delivery.message)
            if not self.executor.settler.ack_now(run.delivery):
                raise _Disowned
            run.early = True

    def _on_reject(self, run: Run, logger: Any = None, errors: Any = None, requeue: bool = False) -> None:
        run.verdict = "requeue" if requeue else "reject"

    def _unknown(
        self, delivery: Delivery, kombu_message: Any, name: str, task_id: str, history: dict[str, Any]
    ) -> None:
        now_ms, ttl = int(time.time() * 1000), self.executor.streams.conf.unknown_task_ttl
        since = int(history.setdefault("unknown", now_ms))
        outcome = decide(
            Event.UNKNOWN,
            Circumstances(unknown_for=(now_ms - since) / 1000, unknown_task_ttl=ttl),
        )
        exc = NotRegistered(name)
        if outcome.action is Action.REQUEUE:
            logger.warning(
                "Task %s[%s] is not registered here; put back for newer workers, again in %.0fs.",
                name,
                task_id,
                outcome.delay,
            )
        else:
            logger.error("Received unregistered task of type %s[%s]; no worker knew it in time.", name, task_id)
            request = Context(
                kombu_message.headers, properties=kombu_message.properties, chord=None, errbacks=None, name=name
            )
            self.executor.tell(lambda: self.executor.app.backend.mark_as_failure(task_id, exc, request=request))
            if self.executor.sends_events():
                self.consumer.event_dispatcher.send("task-failed", uuid=task_id, exception=repr(exc))
            signals.task_unknown.send(sender=self.consumer, message=kombu_message, exc=exc, name=name, id=task_id)
        self.executor.settler.settle(delivery, outcome, death=Death(name, task_id, repr(exc)), history=history)


class _Disowned(Exception):
    """The message could not be acknowledged before its task, which must not start here."""
