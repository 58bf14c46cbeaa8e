"""The verdict on unique tasks: what publishes were told, against what really ran; pure functions.

=====  ================================================================================================================
check  holds when
=====  ================================================================================================================
U      no message of a key was stored before the one that was stored before it had run to its end
S      nobody was told of a message that was gone, but for a moment
=====  ================================================================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.verdict import Check, Run

__all__ = ("Offer", "judge_uniqueness")


@dataclass(frozen=True)
class Offer:
    """A publish of a unique task: by which id it called its own message, and of which it was told."""

    key: str
    own: str
    id: str
    began: float
    at: float

    @property
    def stored(self) -> bool:
        return self.id == self.own


def judge_uniqueness(offers: Sequence[Offer], runs: Sequence[Run], *, moment: float) -> list[Check]:
    """Judge a run that was drained.

    Args:
        moment: seconds that the end of a task may take to reach Redis.
    """
    ends: dict[str, float | None] = {}
    by_id: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.id].append(run)
    for task_id, its in by_id.items():
        ended = [run.end for run in its if run.end is not None]
        ends[task_id] = max(ended, default=None)
    twice, stale = [], []
    before: dict[str, Offer] = {}
    for offer in sorted(offers, key=lambda one: one.at):
        if not offer.stored:
            end = ends.get(offer.id)
            if end is not None and offer.began > end + moment:
                stale.append(f"{offer.id} ended {offer.began - end:.2f} s before {offer.key} was told of it")
            continue
        first = before.get(offer.key)
        if first is not None:
            end = ends.get(first.id)
            if end is None or offer.at < end:
                twice.append(f"{offer.id} was stored while {first.id} was there")
        before[offer.key] = offer
    told = sum(not offer.stored for offer in offers)
    return [
        Check("U", not twice, f"{len(offers) - told} stored, {len(twice)} too many {twice[:3]}"),
        Check("S", not stale, f"{told} told of another, {len(stale)} of one that was gone {stale[:3]}"),
    ]
