"""queue_names: the words of ``-Q``: names of queues, shell patterns, and children per queue; it starts nothing.

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

__all__ = ("QueueWords", "read_queue_words")

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
