"""Names: queues that ``streams_queues`` chooses and that nothing else knows: most likely misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ..app import Streams

__all__ = ("declared_queues", "unknown_names")

#: How alike two names must be for one to be taken for the other, misspelt (``difflib``).
_NEARLY = 0.75


def declared_queues(streams: Streams) -> set[str]:
    """Return the queues that the project's configuration and tasks name: as queues, in routes, on tasks."""
    app = streams.app
    found = {str(app.conf.task_default_queue), *map(str, app.amqp.queues)}
    found.update(_routed(app.conf.task_routes))
    # A monitor must not be what finalizes the app; and a copy, for another thread may register a task.
    tasks = list(app.tasks.values()) if app.finalized else []
    found.update(str(task.queue) for task in tasks if getattr(task, "queue", None))
    return found


def unknown_names(streams: Streams, *, used: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the names and patterns of ``streams_queues`` that nothing else knows, with the nearest name that is known.

    A name that is like no other is no mistake, as far as can be told: a queue need not be declared before its first
    message. ``used`` are the queues that have held messages.
    """
    choice = streams.conf.queues
    known = (declared_queues(streams) | set(used)) - {""}
    found: dict[str, str | None] = {}
    for name in choice.names:
        if name not in known:
            # Not a queue that is chosen by a name of its own: emails beside email is no mistake.
            others = sorted(other for other in known if other not in choice.names)
            found[name] = next(iter(difflib.get_close_matches(name, others, n=1, cutoff=_NEARLY)), None)
    return found


def _routed(routes: Any) -> Iterable[str]:
    """Yield the queues that ``task_routes`` names, in all forms that Celery takes; a function keeps its own counsel."""
    if isinstance(routes, Mapping):
        for options in routes.values():
            if isinstance(options, str):
                yield options
            elif isinstance(options, Mapping) and options.get("queue"):
                yield str(getattr(options["queue"], "name", options["queue"]))
    elif isinstance(routes, (list, tuple)):
        for one in routes:
            if isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[1], (str, Mapping)):
                yield from _routed({one[0]: one[1]})
            else:
                yield from _routed(one)
