"""Task events: the state of a task as server-sent events, for as long as somebody listens; under ASGI only.

Polling is the default. A stream costs its process no thread, but a place: ``CELERY_STREAMS_TASK_EVENTS`` says how many
there are (0: none), and nobody gets more than a few of them. A process looks at all tasks that somebody listens to once
a second, one after the other in one thread. A stream ends after a minute, and when the state is a last one; a browser
asks again by itself, so that who may see it is asked again, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest

from celery_streams import BrokerError
from celery_streams.states import TrackedTask, look

from .project import project_app

__all__ = (
    "AGAIN_MS",
    "LAST",
    "OF_ONE",
    "EventStream",
    "Places",
    "Said",
    "TaskLook",
    "most_streams",
    "places",
    "said_of",
    "wants_events",
)

logger = logging.getLogger(__name__)

#: What is told of a task: the tag of its state, and the state as JSON takes it.
Said = tuple[str, Mapping[str, Any]]

#: Streams that one user may have open in a process.
OF_ONE = 6

#: Seconds between two looks; after which a silent stream says a word, for proxies; for which a stream is open; and
#: milliseconds after which a browser asks again.
EVERY, COMMENT, LIFETIME, AGAIN_MS = 1.0, 15.0, 55.0, 2_000

#: States after which nothing comes. A dead letter may be replayed.
LAST = ("succeeded", "failed", "revoked", "expired")


def most_streams() -> int:
    """Return how many streams a process may have open (``CELERY_STREAMS_TASK_EVENTS``).

    Raises:
        ImproperlyConfigured: the setting is not a whole number, or below zero.
    """
    found = getattr(settings, "CELERY_STREAMS_TASK_EVENTS", 0)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise ImproperlyConfigured(f"CELERY_STREAMS_TASK_EVENTS must be a whole number from 0 on, got {found!r}.")
    return found


def wants_events(request: HttpRequest) -> bool:
    """Return whether ``request`` asks for a stream where there are any.

    Raises:
        ImproperlyConfigured: the setting is wrong.
    """
    most = most_streams()
    asked = request.method == "GET" and "text/event-stream" in request.headers.get("Accept", "")
    return asked and most > 0 and isinstance(request, ASGIRequest)


class Places:
    """The streams that are open in this process, by user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[Any] = Counter()

    def take(self, user: Any, *, most: int) -> bool:
        """Take a place, if there is one; None is everybody whom Django's authentication does not know."""
        with self._lock:
            free = self._taken.total() < most and (user is None or self._taken[user] < OF_ONE)
            if free:
                self._taken[user] += 1
            return free

    def give_back(self, user: Any) -> None:
        """Give a place back."""
        with self._lock:
            self._taken[user] -= 1
            self._taken += Counter()  # forgets who has none

    @property
    def taken(self) -> int:
        """How many are taken."""
        with self._lock:
            return self._taken.total()


#: Those of this process.
places = Places()


@dataclass(frozen=True)
class TaskLook:
    """A look at the state of a task; equal for equal tasks, so that one serves all who listen."""

    task_id: str

    def __call__(self) -> Said | None:
        """Return what there is to say; None when nobody knows the task (any more).

        Raises:
            BrokerError: Redis is away, or refuses.
        """
        found = look(project_app(), self.task_id)
        return None if found.state.state == "unknown" else said_of(found)


def said_of(found: TrackedTask) -> Said:
    """Return the state of a task as it is told, with its tag."""
    said = {"task_id": found.task_id, **asdict(found.state)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32], said


class Watch:
    """Looks at the tasks that streams of one event loop listen to."""

    def __init__(self) -> None:
        self._listeners: dict[TaskLook, set[asyncio.Queue[Said | None]]] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def listen(self, look: TaskLook) -> Iterator[asyncio.Queue[Said | None]]:
        """Yield a queue of one place, in which the newest answer of ``look`` stands."""
        heard: asyncio.Queue[Said | None] = asyncio.Queue(1)
        self._listeners.setdefault(look, set()).add(heard)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield heard
        finally:
            self._listeners[look].discard(heard)
            if not self._listeners[look]:
                del self._listeners[look]

    async def _run(self) -> None:
        try:
            while self._listeners:
                await asyncio.sleep(EVERY)
                found = await sync_to_async(_look_at, thread_sensitive=False)(list(self._listeners))
                for look, said in found.items():
                    for heard in self._listeners.get(look, ()):
                        if heard.full():
                            heard.get_nowait()
                        heard.put_nowait(said)
        finally:
            self._task = None


def _look_at(looks: Sequence[TaskLook]) -> dict[TaskLook, Said | None]:
    found = {}
    for one in looks:
        try:
            found[one] = one()
        except BrokerError as exc:
            # What was said stands; it is looked at again.
            logger.debug("Cannot tell the state of task %s at the moment: %s", one.task_id, exc)
        except Exception:
            # The boundary of the thread: all others listen on.
            logger.exception("Cannot tell the state of task %s.", one.task_id)
    return found


_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Watch] = weakref.WeakKeyDictionary()


def watch() -> Watch:
    """Return the one that looks for the streams of the running event loop."""
    loop = asyncio.get_running_loop()
    return _watches.setdefault(loop, Watch())


class EventStream:
    """The events of one task; the content of a response, which gives its place back when it ends, however it does.

    Args:
        said: the state as it is now.
        look: returns it again.
        give_back: called once.
        known: the tag of the state that the browser has.
    """

    def __init__(
        self,
        said: Said,
        look: TaskLook,
        *,
        give_back: Callable[[], None],
        known: str = "",
        lifetime: float = LIFETIME,
        comment: float = COMMENT,
    ) -> None:
        # Also when nobody ever asks for the first part, and when nobody closes it.
        self._give_back = weakref.finalize(self, give_back)
        self._events = _with_end(_events(said, look, known, lifetime, comment), self._give_back)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    def close(self) -> None:
        """Give the place back; Django calls it at the end of a response."""
        self._give_back()


async def _with_end(events: AsyncGenerator[bytes, None], end: Callable[[], object]) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for part in events:
                yield part
    finally:
        end()


async def _events(
    said: Said, look: TaskLook, known: str, lifetime: float, comment: float
) -> AsyncGenerator[bytes, None]:
    yield f"retry: {AGAIN_MS}\n\n".encode()
    loop = asyncio.get_running_loop()
    ends, word_at = loop.time() + lifetime, loop.time() + comment
    with watch().listen(look) as heard:
        found: Said | None = said
        while found is not None:
            if found[0] != known:
                known = found[0]
                yield f"id: {known}\nevent: state\ndata: {json.dumps(found[1])}\n\n".encode()
                word_at = loop.time() + comment
            if found[1]["state"] in LAST or loop.time() >= ends:
                return
            if loop.time() >= word_at:
                word_at += comment
                yield b":\n\n"
            with suppress(asyncio.TimeoutError):
                found = await asyncio.wait_for(heard.get(), min(ends, word_at) - loop.time())
