"""Rate limits: whether a message of a limited task may run now; the tokens are counted in Redis, for all workers.

Celery's own limit is kept by each worker for itself. Here every worker asks the same key (``broker.take_token``), or
one of its own with ``streams_rate_limit_scope = "node"``. A message that has to wait goes to the delayed set, with the
token of that moment reserved where one was near; how that is settled is the matter of ``executor``.
"""

from __future__ import annotations

from celery.worker import state as worker_state

from .execution import Execution, Report, Surroundings
from .outcome import Event

__all__ = ("over_rate_limit",)


def over_rate_limit(execution: Execution, around: Surroundings) -> Report | None:
    """Return LIMITED, with the seconds to wait, or None when the task may run now.

    A token that an earlier delivery reserved (``granted`` in the history) is used up. Revoked tasks need none.
    """
    options = execution.options
    if options is None or not options.interval_ms:
        return None
    if execution.history.pop("granted", None) or execution.task_id in worker_state.revoked:
        return None
    node = "" if around.streams.conf.rate_limit_scope == "global" else around.hostname
    answer, _ = around.settler.insist(
        lambda: around.settler.broker.take_token(
            execution.delivery.stream.queue, options.task.name, node=node, interval_ms=options.interval_ms
        ),
        "ask for a token",
    )
    wait_ms, reserved = answer or (0, True)
    if not wait_ms:
        return None
    if reserved:
        execution.history["granted"] = 1
    return Report(Event.LIMITED, early_by=wait_ms / 1000)
