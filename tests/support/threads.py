"""Threads of ours in this process."""

from __future__ import annotations

import threading

#: They live as long as their process: they send again what a commit could not, and listen to the Sentinels.
_LASTING = ("celery-streams-resend", "celery-streams-sentinel")


def own_threads() -> set[threading.Thread]:
    """Return the threads that a worker, a pool or a dispatcher began and should end."""
    return {one for one in threading.enumerate() if one.name.startswith("celery-streams") and one.name not in _LASTING}
