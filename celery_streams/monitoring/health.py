"""Health: is a worker's heart beating, and does it read? Judged from what workers say of themselves in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..presence import WorkerPresence

__all__ = ("Health", "judge_health")


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one node name."""

    node: str
    is_healthy: bool
    #: Completes "NODE ...".
    said: str


def judge_health(workers: Sequence[WorkerPresence], *, node: str | None, host: str) -> list[Health]:
    """Return the health of ``node``; of all workers of ``host`` when it is None.

    Of several workers of one name, one of which may have been killed a while ago, the healthiest counts.
    """
    names = [node] if node is not None else sorted({one.node for one in workers if one.node.partition("@")[2] == host})
    if not names:
        said = "has no worker that ever sent a heartbeat: not started yet, stopped, or under another host name (-n)"
        return [Health(f"*@{host}", False, said)]
    return [_judge(name, [one for one in workers if one.node == name]) for name in names]


def _judge(node: str, workers: Sequence[WorkerPresence]) -> Health:
    if not workers:
        return Health(node, False, "never sent a heartbeat: not started yet, or stopped")
    found = [_look(one) for one in workers]
    return next((one for one in found if one.is_healthy), min(found, key=lambda one: one.said))


def _look(worker: WorkerPresence) -> Health:
    age = f"last heartbeat {max(worker.silent, 0.0):.1f} s ago"
    if not worker.is_alive:
        return Health(worker.node, False, f"is dead: {age}, and one is due every {worker.visibility_timeout:g} s")
    if not worker.queues:
        return Health(worker.node, False, f"reads no queue, as it is starting or shutting down; {age}")
    unread = worker.unread_queues()
    if unread:
        return Health(worker.node, False, f"does not read {', '.join(unread)}; {age}")
    return Health(worker.node, True, f"reads {', '.join(worker.queues)}; {age}")
