"""bulk: a block of code whose publishes are stored together; groups do so by themselves.

It opens and closes blocks; what they hold, and how they store it, is the matter of ``blocks``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery import current_app
from celery.canvas import group

from . import blocks, celery_private
from .app import Streams, streams_of
from .blocks import MAX_BYTES, MAX_COUNT, Block, BulkError, NotPublished

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("bulk", "guard_results", "publish_groups_in_bulk")

logger = logging.getLogger(__name__)

#: Seconds for which the messages of a group are held at most while its next ones are being made.
_GROUP_SECONDS = 0.5


@contextmanager
def bulk(
    app: Celery | None = None,
    *,
    using: Any = None,
    key: str | None = None,
    retry: bool | None = None,
    retry_policy: Mapping[str, Any] | None = None,
    max_count: int = MAX_COUNT,
    max_bytes: int = MAX_BYTES,
    max_seconds: float | None = None,
) -> Iterator[Block]:
    """Store what the block publishes to streams in pipelines, in its order for each queue.

    What ``.delay()``, ``apply_async``, ``send_task`` and canvas publish inside, from any depth, in this thread and
    coroutine only, is held until there are ``max_count`` messages or ``max_bytes`` of them, or the block ends;
    ``block.flush()`` stores them at once. Ids and results are there at the call, and so are ``before_task_publish``,
    headers and spans; ``after_task_publish`` follows when the message is stored. Messages for lists go out at the call.
    A retry (``self.retry()``) is stored at the call, too. An exception that leaves the block sends what was called
    before it, as separate calls would have. A block inside another one is a part of it.

    Args:
        app: the app; the current one by default.
        using: hold messages until the transaction of this Django database commits: an alias, several, or True for all
            databases in a transaction. False: do not wait for one, whatever ``streams_publish_on_commit`` says.
        key: names the block, for code that may run again: a task id that a block of this name stored within the last
            ten minutes, in whatever process, is not stored again. Give the tasks ids that are the same each time.
        retry: send again when Redis is away, as ``task_publish_retry`` says by default; nothing is stored twice.
        retry_policy: overrides parts of ``task_publish_retry_policy``.
        max_count, max_bytes: bounds of one pipeline; at most that much is held.
        max_seconds: a call that comes later than that after the last pipeline, or the beginning, sends what is held.

    Raises:
        BulkError: at the end, or at the call that filled a pipeline: some messages were not stored, or nobody knows. It
            tells them apart by id; ``error.repeat()`` sends them again.
    """
    if app is None:
        app = celery_private.real_app(current_app)
    if max_count < 1 or max_bytes < 1:
        raise ValueError("max_count and max_bytes must be at least 1")
    streams = streams_of(app)
    outer = blocks.find(streams)
    if outer is not None and key is None and (using is None or using == outer.using):
        yield outer
        return
    if outer is not None:
        outer.flush()  # what was called before goes first
    guard_results(streams)
    block = streams.new_block(
        retry=retry,
        retry_policy=retry_policy,
        key=key,
        max_count=max_count,
        max_bytes=max_bytes,
        max_seconds=max_seconds,
    )
    block.using = outer.using if outer is not None and using is None else using
    token = blocks.opened.set(((streams, block), *blocks.opened.get()))
    try:
        try:
            yield block
        except BaseException as exc:
            _send_before(block, exc)
            raise
        _send(block)
    finally:
        block.closed = True
        with suppress(ValueError):  # the block of a generator that somebody else closes
            blocks.opened.reset(token)


def _send(block: Block) -> None:
    block.flush()
    if not block.is_complete:
        raise block.account()  # the call that said so was not let through


def _send_before(block: Block, exc: BaseException) -> None:
    """Send what was called before ``exc``; a block of which something is lost says so, unless the process is to end."""
    try:
        _send(block)
    except BulkError as error:
        if error is exc:
            return  # its account is up to date now
        if isinstance(exc, Exception):
            raise error from exc
        logger.error(
            "%s; tasks %s", error, ", ".join([*error.failed, *error.uncertain]), exc_info=(type(error), error, None)
        )


# -- groups -----------------------------------------------------------------------------------------------------------


def publish_groups_in_bulk() -> None:
    """Have groups, and with them chunks and the headers of chords, of installed apps publish in bulk."""
    plain: Any = group.apply_async
    if hasattr(plain, "plain"):
        return

    @wraps(plain)
    def apply_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        known = self.app.__dict__.get("_celery_streams")
        if known is None or self.app.conf.task_always_eager or not known.enabled() or not known.is_installed():
            return plain(self, *args, **kwargs)
        # A generator may take its time for them: those that are made start meanwhile, the first one at once.
        made_later = celery_private.makes_tasks_later(self)
        with bulk(self.app, max_seconds=_GROUP_SECONDS) as block:
            if made_later:
                block.sent_at = -math.inf
            return plain(self, *args, **kwargs)

    apply_async.plain = plain  # type: ignore[attr-defined]
    group.apply_async = apply_async


# -- results ----------------------------------------------------------------------------------------------------------


def guard_results(streams: Streams) -> None:
    """Have ``get()`` of a result say at once that its task is held back in this very thread, instead of waiting."""
    backend = streams.app.backend
    for name in ("wait_for_pending", "iter_native"):
        plain = getattr(backend, name, None)
        if plain is not None and name not in backend.__dict__:
            setattr(backend, name, _guarded(streams, plain))


def _guarded(streams: Streams, plain: Any) -> Any:
    @wraps(plain)
    def wait(result: Any, *args: Any, **kwargs: Any) -> Any:
        for one in getattr(result, "results", None) or (result,):
            if streams.is_held(str(one.id)):
                raise NotPublished(
                    f"Task {one.id} is not published yet: it is held until its bulk block ends, or its transaction "
                    "commits. Ask for its result after that."
                )
        return plain(result, *args, **kwargs)

    return wait
