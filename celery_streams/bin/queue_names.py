"""queue_names: names of queues on the command line; of ``worker -Q`` shell patterns and numbers of children, too.

==================  ===================================================================
``send_message``    a queue
``send_message:3``  a queue, and the number of children that read it
``chat.*``          all queues that match
``tenant\\:42``     a backslash takes away the meaning of what follows
==================  ===================================================================

A word that is the name of a queue which exists means that queue, whatever it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import click

from ..app import Streams
from ..monitoring.names import misspelt_queues

__all__ = ("QueueWords", "check_no_patterns", "read_queue_names", "read_queue_words", "read_target")

_SPECIAL = ":*?["
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")


@dataclass(frozen=True, slots=True)
class QueueWords:
    """What the words of ``-Q`` mean."""

    #: Names and patterns, in the order of the words.
    names: tuple[str, ...] = ()
    #: Those of :attr:`names` that are a queue's name although they look like a pattern.
    literal: frozenset[str] = frozenset()
    #: Children per queue.
    counts: dict[str, int] = field(default_factory=dict)


def read_queue_words(words: Iterable[str] | None, existing: Callable[[], Collection[str]]) -> QueueWords:
    """Read the words of ``-Q``.

    Args:
        existing: returns the names of the queues that exist; asked only for words that may mean something else.

    Raises:
        click.UsageError: a word means nothing, or two of them contradict each other.
    """
    names: list[str] = []
    literal: set[str] = set()
    counts: dict[str, int] = {}
    for raw in words or ():
        word = raw.strip()
        if not word:
            raise click.UsageError("-Q has an empty name: is a shell variable not set?")
        if any(letter in word for letter in (*_SPECIAL, "\\")) and word in existing():
            name, count = word, None
            literal.add(name)
        else:
            written, count = _split(word)
            name, is_literal = _plain(written)
            if count is not None and name not in existing():
                _check_counted(word, written)
            if is_literal:
                literal.add(name)
            elif count is not None and any(letter in name for letter in "*?["):
                raise click.UsageError(f"-Q {word}: a pattern takes no number of children, only a queue does")
        if count is not None:
            if counts.setdefault(name, count) != count:
                raise click.UsageError(f"-Q gives queue {name} both {counts[name]} and {count} children")
        names.append(name)
    return QueueWords(tuple(dict.fromkeys(names)), frozenset(literal), counts)


def read_queue_names(option: str, words: Iterable[str] | None) -> list[str]:
    """Read the names of an option that takes names alone.

    Raises:
        click.UsageError: one is empty.
    """
    names = [word.strip() for word in words or ()]
    if not all(names):
        raise click.UsageError(f"{option} has an empty name: is a shell variable not set?")
    return list(dict.fromkeys(names))


def check_no_patterns(option: str, names: Iterable[str], existing: Callable[[], Collection[str]]) -> None:
    """Check that names are no patterns, which would silently mean no queue at all.

    Args:
        existing: returns the names of the queues that exist; asked only for what looks like a pattern.

    Raises:
        click.UsageError: one is a pattern, and no queue has that name.
    """
    for name in names:
        if any(letter in name for letter in "*?[") and name not in existing():
            raise click.UsageError(f"{option} {name}: no queue has that name, and {option} takes no patterns")


def read_target(option: str, word: str, streams: Streams) -> str:
    """Read the name of the queue where messages are to go; it may be a new one.

    Raises:
        click.UsageError: it is empty, or most likely a misspelt one, which no worker would read.
        BrokerError: Redis is away, or refuses.
    """
    name = word.strip()
    if not name:
        raise click.UsageError(f"{option} has an empty name: is a shell variable not set?")
    if name not in {*streams.known_queues(), *streams.app.amqp.queues}:
        for near in misspelt_queues(streams, [name]).values():
            raise click.UsageError(
                f"Queue {name!r} was never used, and the project does not define it; did you mean {near!r}?"
            )
    return name


def _split(word: str) -> tuple[str, int | None]:
    """Part ``name:count`` at its last colon that no backslash stands before."""
    at = next((at for at in range(len(word) - 1, -1, -1) if word[at] == ":" and not _escaped(word, at)), -1)
    if at < 0:
        return word, None
    name, number = word[:at].rstrip(), word[at + 1 :].lstrip()
    if not name:
        raise click.UsageError(f"-Q {word}: no queue name before the colon (write \\: for a colon in the name)")
    if not number:
        raise click.UsageError(f"-Q {word}: no number of children after the colon (write \\: for a colon in the name)")
    if not _NUMBER.fullmatch(number):
        return word, None
    if not number.isdecimal() or int(number) < 1:
        raise click.UsageError(
            f"-Q {word}: the number of children must be 1 or more (write \\: for a colon in the name)"
        )
    return name, int(number)


def _check_counted(word: str, name: str) -> None:
    """Check what a number of children was given to: a colon in it may be an escape that was forgotten, or a slip.

    Raises:
        click.UsageError: it begins or ends with a colon, or is itself a name with a number.
    """
    _, count = _split(name)
    if name.startswith(":"):
        raise click.UsageError(f"-Q {word}: no queue name before the colon (write \\: for a colon in the name)")
    if count is not None:
        raise click.UsageError(f"-Q {word}: two numbers of children for one queue (write \\: for a colon in the name)")


def _escaped(word: str, at: int) -> bool:
    before = word[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _plain(written: str) -> tuple[str, bool]:
    """Return a name without its backslashes, and whether they made one of it that looks like a pattern.

    In a pattern, what a backslash stands before is put as shell patterns have it: ``[*]``.
    """
    parts = re.findall(r"\\.|[^\\]|\\$", written, flags=re.DOTALL)
    escapes = [len(part) == 2 and (part[1] in _SPECIAL or part[1] in "\\]") for part in parts]
    is_pattern = any(part in "*?[" for part in parts)
    found = ""
    for part, escape in zip(parts, escapes, strict=True):
        if escape and is_pattern and part[1] in "*?[":
            found += f"[{part[1]}]"
        else:
            found += part[1:] if escape else part
    return found, any(escapes) and not is_pattern
