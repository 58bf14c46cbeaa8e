"""Names: queues that ``streams_queues`` chooses and that nothing else knows: most likely misspelt."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..app import Streams
from ..inspect import has_held_messages, known_queues
from ..spelling import misspelt

__all__ = ("declared_queues", "misspelt_queues", "queues_in_use", "unknown_names", "unknown_partitioned")

#: A pattern up to its first wildcard.
_LITERAL = re.compile(r"[^*?\[]*")

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
    """Return the names and patterns of ``streams_queues`` that nothing else knows, with the nearest that is known.

    A name that resembles no other is not taken for a mistake: a queue need not be declared before its first message.
    ``used`` are the queues that have held messages; patterns are returned only with one that is near.
    """
    choice = streams.conf.queues
    known = (declared_queues(streams) | set(used)) - {""}
    # Not a queue that is chosen by a name of its own: emails beside email is no mistake.
    others = sorted(other for other in known if other not in choice.names)
    found: dict[str, str | None] = {}
    for name in choice.patterns:
        if name in choice.names and name not in known:
            found[name] = _nearest(name, others)
        elif name not in choice.names and not any(fnmatchcase(queue, name) for queue in known):
            begin = _LITERAL.match(name)
            literal = begin[0] if begin else ""
            near = _nearest(literal, [queue[: len(literal)] for queue in others]) if len(literal) > 2 else None
            if near is not None:
                found[name] = near + name[len(literal) :]
    return found


def unknown_partitioned(streams: Streams, *, used: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the names of ``streams_partitions`` that are no queue's on streams, with the nearest that is one."""
    known = {*filter(streams.on_streams, (*declared_queues(streams), *used)), *streams.conf.queues.names}
    return {name: _nearest(name, known) for name in streams.conf.partitions if name not in known}


def misspelt_queues(streams: Streams, asked: Iterable[str]) -> dict[str, str]:
    """Return those of the names ``asked`` that nothing else knows and that are nearly another one: name -> that one.

    Names that differ in their numbers are meant to: shard-2 beside shard-1.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    declared = declared_queues(streams)
    broker, named = streams.broker, {*streams.conf.queues.names}
    # Which a worker that was started with a wrong name has made known, too.
    suspects = [name for name in asked if name not in declared - named and not has_held_messages(broker, name)]
    if not suspects:
        return {}
    known = {*declared, *named, *known_queues(broker)} - {*suspects}
    found = {name: misspelt(name, known) for name in suspects if name not in named}
    return {name: near for name, near in found.items() if near and _without_digits(name) != _without_digits(near)}


def _without_digits(name: str) -> str:
    return re.sub(r"[0-9]+", "", name)


def queues_in_use(streams: Streams) -> set[str]:
    """Return the queues that Redis knows, without the names of ``streams_queues`` that never held a message.

    A worker makes each queue that it reads known, also one whose name is misspelt.

    Raises:
        BrokerError: Redis is away, or refuses.
    """
    declared = declared_queues(streams)
    suspects = {name for name in streams.conf.queues.names if name not in declared}
    return {
        name for name in known_queues(streams.broker) if name not in suspects or has_held_messages(streams.broker, name)
    }


def _nearest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=_NEARLY)), None)


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
