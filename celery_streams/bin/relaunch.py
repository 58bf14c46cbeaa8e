"""Relaunch: the command line of this process, with options left out, to start the same program once more.

``sys.orig_argv`` tells how the process was really started: as ``celery-streams``, ``python -m celery_streams``,
``celery streams`` or ``python manage.py celery_streams``; ``sys.argv`` does not.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence

__all__ = ("command_line", "environment", "without")

#: A cluster of short options: the flags of ``worker`` and of the program in front, then one that may take a value.
_SHORT_FLAGS = re.compile("-([BCDEq]+)(.*)")


def command_line(*, flags: Collection[str] = (), valued: Collection[str] = ()) -> list[str]:
    """Return the interpreter and its arguments, without the options ``flags`` and ``valued`` (those with a value)."""
    return [sys.executable, *without(sys.orig_argv[1:], flags=flags, valued=valued)]


def without(words: Sequence[str], *, flags: Collection[str] = (), valued: Collection[str] = ()) -> list[str]:
    """Return ``words`` without some options; ``-DE`` loses a flag ``-D`` and keeps the other, ``-Dl INFO`` too."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if word == "--":
            return [*kept, word, *rest]
        if word in flags:
            continue
        if name in valued:
            if not equals and rest:
                rest.pop(0)
            continue
        cluster = _SHORT_FLAGS.fullmatch(word)
        if cluster is not None:
            word = "-" + "".join(letter for letter in cluster[1] if f"-{letter}" not in flags) + cluster[2]
        if word != "-":
            kept.append(word)
    return kept


def environment(*options: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without the variables that set these options of ``worker`` (``CELERY_WORKER_RELOAD``)."""
    left_out = {f"CELERY_WORKER_{name.upper()}" for name in options}
    return {name: value for name, value in environ.items() if name not in left_out}
