"""Revoked stamps: those whose tasks are revoked, as pairs of header and stamp, told to children and kept in Redis.

Celery keeps them by header (``celery.worker.state.revoked_stamps``) and asks there; nothing here decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery.worker import state as worker_state
from kombu.utils.functional import maybe_list

__all__ = ("add", "known", "pairs_of")


def pairs_of(headers: dict[str, Any] | list[str]) -> list[tuple[str, Any]]:
    """Return the pairs that an argument of ``revoke_by_stamped_headers`` means, in either of the forms it may have."""
    if isinstance(headers, list):  # of the command line: HEADER=STAMP
        headers = dict(header.split("=")[:2] for header in headers)
    return [(header, stamp) for header, stamps in headers.items() for stamp in maybe_list(stamps) or []]


def known() -> list[tuple[str, Any]]:
    """Return every pair that is revoked in this process."""
    return pairs_of(worker_state.revoked_stamps)


def add(pairs: Iterable[tuple[str, Any]]) -> None:
    """Revoke these pairs in this process too."""
    for header, stamp in pairs:
        stamps = worker_state.revoked_stamps.setdefault(header, [])
        if stamp not in stamps:
            stamps.append(stamp)
