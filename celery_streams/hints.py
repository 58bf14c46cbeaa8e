"""Hints: commands in logs and findings, printed so that they can be copied: with the app, and quoted."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

__all__ = ("command",)


def command(*words: str, argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return ``celery-streams WORDS`` as whoever started this process would have to write it.

    Args:
        argv: the command line of the process; by default as it was really started.
    """
    return " ".join([_program(sys.orig_argv if argv is None else argv, environ), *map(shlex.quote, words)])


def _program(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    manage = next((word for word in argv if os.path.basename(word) == "manage.py"), None)
    if manage is not None:
        return f"python {shlex.quote(manage)} celery_streams"
    words = list(argv)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-A", "--app") and following:
            return f"celery-streams -A {shlex.quote(following)}"
        if word.startswith("--app="):
            return f"celery-streams -A {shlex.quote(word[6:])}"
        if word.startswith("-A") and len(word) > 2:
            return f"celery-streams -A {shlex.quote(word[2:])}"
    return "celery-streams" if environ.get("CELERY_APP") else "celery-streams -A APP"
