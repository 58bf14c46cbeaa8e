"""Spelling: the known name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ("misspelt", "nearest")

#: How alike two names must be to be compared letter by letter (``difflib``), and by how many letters they may differ.
_NEARLY, _LETTERS = 0.8, 2


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return a question with the known name that is nearest to ``word``; nothing when none is as near as ``cutoff``."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]!r}?" if found else ""


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """Return the known name of which ``name`` is a misspelling; None when it is none, but a name of somebody else's."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEARLY)
    # Somebody's CELERY_STREAMING_URL is as near as a misspelt CELERY_STREAM_URL: the word decides, and what follows.
    return near[0] if near and _is_misspelt(name.replace("_", ""), near[0].replace("_", "")) else None


def _is_misspelt(name: str, known: str) -> bool:
    """Return whether at most two letters were left out, added or exchanged."""
    changes = difflib.SequenceMatcher(None, name, known, autojunk=False).get_opcodes()
    return sum(max(to - start, other - at) for tag, start, to, at, other in changes if tag != "equal") <= _LETTERS
