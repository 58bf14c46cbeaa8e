"""Signals of celery-streams; Celery's own are sent by Celery's code, where Celery sends them.

=========================  ===================================================  =====================================
signal                     when, in which process                               arguments
=========================  ===================================================  =====================================
``entry_lost``             a worker found that an entry it was running is no    ``queue``, ``entry_id``,
                           longer its own; in the child, or the parent          ``consumer``
``message_dead_lettered``  a message became a dead letter; in the child, or     ``queue``, ``entry_id``, ``reason``,
                           the parent when the child died                       ``task_id``, ``task`` (its name)
``publish_failed``         messages that a committed transaction held could     ``failed`` (id -> error),
                           not be sent; in the process that published          ``uncertain`` (ids), ``error``,
                                                                                ``final`` (False: it tries again)
``alerts_seen``            ``celery-streams alerts`` looked at all queues       ``alerts``
=========================  ===================================================  =====================================
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ("alerts_seen", "entry_lost", "message_dead_lettered", "publish_failed")

entry_lost = Signal(name="entry_lost", providing_args={"queue", "entry_id", "consumer"})
message_dead_lettered = Signal(
    name="message_dead_lettered", providing_args={"queue", "entry_id", "reason", "task_id", "task"}
)
publish_failed = Signal(name="publish_failed", providing_args={"failed", "uncertain", "error", "final"})
alerts_seen = Signal(name="alerts_seen", providing_args={"alerts"})
