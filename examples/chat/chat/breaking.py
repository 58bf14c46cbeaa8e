"""Breaking: kills a child of the stream worker, or all of it, with SIGKILL. ``start.py`` starts a new one."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import current_app

__all__ = ("NODE", "NoWorker", "kill_child", "kill_worker")

#: The node name of the stream worker.
NODE = "streams@chat"


class NoWorker(Exception):
    """The worker does not answer; perhaps it is being started."""


def kill_child() -> str:
    """Kill one child, one that sends a message if there is any; returns what to tell the person.

    Raises:
        NoWorker: there is none, or it has no children yet.
    """
    running = {task["worker_pid"]: task["name"] for task in _ask("active") if task["worker_pid"]}
    children = _ask("stats")["pool"]["processes"]
    busy = [pid for pid in children if pid in running]
    if not children:
        raise NoWorker
    victim = (busy or children)[0]
    os.kill(victim, signal.SIGKILL)
    doing = running.get(victim, "").rpartition(".")[2]
    return f"Killed child {victim}, which was {f'in the middle of {doing}' if doing else 'idle'}."


def kill_worker() -> str:
    """Kill the worker with all of its children, as a host does that goes away; returns what to tell the person.

    Raises:
        NoWorker: there is none.
    """
    stats = _ask("stats")
    pid, children = int(stats["pid"]), len(stats["pool"]["processes"])
    if os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:  # somebody started it by hand
        os.kill(pid, signal.SIGKILL)
    return f"Killed worker {pid} and its {children} children; what they held runs again within some seconds."


def _ask(question: str) -> Any:
    told = getattr(current_app.control.inspect([NODE], timeout=3, limit=1), question)()
    if not told or NODE not in told:
        raise NoWorker
    return told[NODE]
