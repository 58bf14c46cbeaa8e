"""chords: how long the body of a chord may still be somebody's to dispatch; Celery counts, claims and dispatches.

From Celery 5.7 on the Redis backend lets the process that counts the last part claim the dispatch of the body for some
seconds. When that process dies before it has published the body, its part runs, or is counted, again within a second:
long before the claim ends, so that Celery would leave the body to the dead. Such a part has to wait for the end of the
claim; counted then, it dispatches the body.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .. import celery_private

__all__ = ("claim_left", "dispatch_awaited")

logger = logging.getLogger(__name__)

#: What stands in place of a claim once the body is dispatched (celery.backends.redis.CHORD_CLEANUP_LUA).
_DISPATCHED = b"done"


def claim_left(backend: Any, group_id: str) -> float:
    """Return the seconds for which the dispatch of a chord's body is claimed; 0.0 when it is done, or not claimed.

    Raises:
        redis.exceptions.RedisError: the result backend is away or refuses.
    """
    if not celery_private.chord_claims_are_known(backend):
        return 0.0  # a backend, or a Celery, that knows no claims
    key = backend.get_key_for_group(group_id, ".c")
    claim = backend.client.get(key)
    if claim is None or claim in (_DISPATCHED, _DISPATCHED.decode()):
        return 0.0
    return float(max(backend.client.pttl(key), 0)) / 1000


def dispatch_awaited(task: Any, headers: Mapping[str, Any]) -> float:
    """Return the seconds for which a part of a chord that ran before has to wait, and say so; 0.0 is not at all."""
    left = 0.0
    try:
        left = claim_left(task.backend, headers.get("group") or "")
    except Exception:
        # Any result backend's own errors; to run it now is what Celery would do.
        logger.exception(
            "Cannot ask the result backend whether the chord of task %s was dispatched; the task runs now.",
            headers.get("id"),
        )
    if left:
        logger.warning(
            "Task %s[%s] runs again in %.1f s: a process that may be dead has claimed the body of its chord.",
            task.name,
            headers.get("id"),
            left,
        )
    return left
