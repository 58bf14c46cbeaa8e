"""Aliases: the result of a message that was held, and was a duplicate when it was sent, answers for the first.

The publisher learns that after it has given the id away: whoever asks for it later, in whatever process, gets what is
known of the first message. Only apps with unique tasks ask Redis for aliases, and only for results that are not there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery.states import PENDING

from . import celery_private
from .app import Streams
from .exceptions import BrokerError

__all__ = ("answer_for_duplicates",)

logger = logging.getLogger(__name__)


def answer_for_duplicates(app: Any, streams: Streams) -> None:
    """Have the result backends of ``app`` answer for the first message where they are asked for a duplicate."""

    def first_of(task_id: Any) -> str | None:
        if not streams.marks.knows_unique:
            return None
        try:
            return streams.alias_of(str(task_id))
        except BrokerError as exc:
            logger.warning("Cannot tell whether task %s is a duplicate: %s", task_id, exc)
            return None

    def answer(backend: Any) -> None:
        get_task_meta: Callable[..., Any] = backend.get_task_meta
        add_pending_result: Callable[..., Any] = backend.add_pending_result

        @wraps(get_task_meta)
        def meta_of_first(task_id: Any, *args: Any, **kwargs: Any) -> Any:
            meta = get_task_meta(task_id, *args, **kwargs)
            if meta.get("status") != PENDING:
                return meta
            first = first_of(task_id)
            return meta if first is None else get_task_meta(first, *args, **kwargs)

        @wraps(add_pending_result)
        def wait_for_first(result: Any, *args: Any, **kwargs: Any) -> Any:
            # A result of this process has changed its id already, and costs nothing more.
            if not result.__dict__.get(streams.OWN):
                first = first_of(result.id)
                if first is not None:
                    result.id = first
            return add_pending_result(result, *args, **kwargs)

        backend.get_task_meta = meta_of_first
        backend.add_pending_result = wait_for_first

    celery_private.change_backends(app, answer)
