"""The verdict: from what the ledger and Redis say after a run to PASS or FAIL; it starts and touches nothing.

A second execution belongs to a fault when the fault hit the process (or the Redis) while the first one ran or waited
for its acknowledgement. One whose first never reached its end is a re-run, which nobody can avoid; one whose first did
is a duplicate, and there must be fewer of them than hard kills.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_streams.conf import StreamsConf

#: Seconds by which a start may lie before its eta: the clocks are one, the rounding is not.
ETA_TOLERANCE = 0.06

#: Seconds after the end of a body within which its acknowledgement is on its way.
ACK_WINDOW = 1.0

#: Starts that ended in a crash after which a message is dead, where no setting says otherwise.
DELIVERY_LIMIT = StreamsConf().delivery_limit


@dataclass(frozen=True)
class Submission:
    """A publish that returned."""

    id: str
    action: str
    #: Seconds since the epoch, after the publish returned.
    at: float
    eta: float | None = None
    #: How often the task retries before it is done.
    retries: int = 0
    #: Why it becomes a dead letter; None when it is done in the end.
    dead: str | None = None
    priority: int | None = None


@dataclass
class Run:
    """One execution."""

    id: str
    retries: int
    redelivered: bool
    worker: str
    pid: int
    start: float
    end: float | None = None


@dataclass(frozen=True)
class FaultRecord:
    """A fault as it happened."""

    #: The number in the list of faults and what was done, e.g. ``F1 kill -9 parent``.
    kind: str
    at: float
    until: float
    #: The processes it hit; empty when it hit Redis or the network, and so everybody.
    pids: frozenset[int] = frozenset()
    #: Whether work may be lost in the middle by it (killed or stopped).
    hard: bool = True

    @property
    def number(self) -> str:
        return self.kind.split()[0]


#: The figures of a queue that are exported, as :class:`FinalState` calls them.
FIGURES = ("waiting", "pending", "delayed", "dead")


@dataclass(frozen=True)
class FinalState:
    """What Redis holds after the drain, counted in Redis itself, and what is exported of it."""

    waiting: int = 0
    pending: int = 0
    delayed: int = 0
    dead: int = 0
    #: (task id, reason) of each dead letter.
    letters: tuple[tuple[str | None, str], ...] = ()
    #: What each export (the status, Prometheus ...) says, by its name; a figure that it does not tell is missing.
    shown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bounds:
    """What R allows, in seconds."""

    visibility_timeout: float
    #: A child of a living worker dies.
    child: float = 1.0
    #: Redis is back.
    redis: float = 5.0
    #: What a loaded machine and a backlog may add. As many seconds because the load keeps every child busy while killed
    #: workers are started anew, several processes at a time, and because the wait of others is known only of those who
    #: were published in the same moments. The bounds alone hold where nothing else runs: see test_processes.
    slack: float = 4.0


@dataclass(frozen=True)
class Check:
    letter: str
    ok: bool
    text: str


@dataclass
class Verdict:
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def check(self, letter: str) -> Check:
        return next(check for check in self.checks if check.letter == letter)


def judge(
    submissions: Sequence[Submission],
    runs: Sequence[Run],
    faults: Sequence[FaultRecord],
    state: FinalState,
    *,
    bounds: Bounds,
    delivery_limit: int = DELIVERY_LIMIT,
    uncertain: Iterable[str] = (),
    hangs: Sequence[str] = (),
) -> Verdict:
    """Judge a run that was drained. ``hangs`` are sentences about processes that did not do what they should."""
    verdict = Verdict()
    by_id: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.id].append(run)
    unsure = set(uncertain)
    lost = _lost(submissions, by_id, state)
    verdict.checks.append(_check("L", not lost, f"{len(lost)} lost", lost))
    second = _Second(by_id, faults)
    verdict.checks.append(second.check())
    early = _early(submissions, by_id)
    verdict.checks.append(_check("E", not early, f"{len(early)} before their eta", early))
    left = f"waiting {state.waiting}, pending {state.pending}, delayed {state.delayed}"
    verdict.checks.append(Check("P", not (state.waiting or state.pending or state.delayed), left))
    starts = {task_id: _most_starts(task_runs) for task_id, task_runs in by_id.items()}
    crashed = {task_id for task_id, reason in state.letters if reason == "crashed" and task_id is not None}
    killed = {task_id for task_id in crashed if starts.get(task_id, 0) >= delivery_limit}
    verdict.checks.append(_dead(submissions, state, unsure | killed, starts))
    verdict.checks.append(_shown(submissions, state, unsure | killed))
    recovery = _Recovery(submissions, by_id, runs, faults, bounds)
    verdict.checks.append(recovery.check())
    verdict.checks.append(_check("H", not hangs, f"{len(hangs)} hanging", hangs))
    hard = [fault for fault in faults if fault.hard]
    latency = _latency(submissions, by_id)
    seconds = max((run.start for run in runs), default=0.0) - min((s.at for s in submissions), default=0.0)
    verdict.figures = {
        "submitted": len(submissions),
        "uncertain": len(unsure),
        "executed": len(runs),
        "faults": dict(sorted(Counter(fault.kind for fault in faults).items())),
        "hard_kills": len(hard),
        "redis_restarts": sum(fault.number == "F10" for fault in faults),
        "lost": len(lost),
        "reruns": len(second.reruns),
        "duplicates": len(second.duplicates),
        "duplicates_per_hard_kill": round(len(second.duplicates) / len(hard), 3) if hard else 0.0,
        "duplicates_by_fault": dict(sorted(second.by_fault.items())),
        "dead_letters": state.dead,
        "killed_to_the_limit": len(killed),
        "recovery": _summary(recovery.seconds),
        "recovery_by_fault": {kind: _summary(values) for kind, values in sorted(recovery.by_fault.items())},
        "redis_back": _summary(recovery.redis),
        "latency": _summary(latency),
        "rate": round(len(runs) / seconds, 1) if seconds > 0 else 0.0,
    }
    return verdict


def _check(letter: str, ok: bool, text: str, examples: Sequence[Any] = ()) -> Check:
    shown = "; ".join(str(example) for example in examples[:3])
    return Check(letter, ok, f"{text}: {shown}" if shown else text)


def _lost(submissions: Sequence[Submission], by_id: dict[str, list[Run]], state: FinalState) -> list[str]:
    dead = {task_id for task_id, _ in state.letters}
    lost = []
    for one in submissions:
        ended = {run.retries for run in by_id.get(one.id, ()) if run.end is not None}
        if one.dead is not None:
            if one.id not in dead:
                lost.append(f"{one.action} {one.id} is no dead letter")
        elif not set(range(one.retries + 1)) <= ended and one.id not in dead:
            lost.append(f"{one.action} {one.id} ended for retries {sorted(ended)} of {one.retries}")
    return lost


class _Second:
    """Second executions of the same id and retry."""

    def __init__(self, by_id: dict[str, list[Run]], faults: Sequence[FaultRecord]) -> None:
        self.faults = sorted(faults, key=lambda fault: fault.at)
        self.reruns: list[tuple[Run, Run]] = []
        self.duplicates: list[tuple[Run, Run]] = []
        #: Duplicates by the fault they belong to.
        self.by_fault: Counter[str] = Counter()
        self.unexplained: list[str] = []
        self.unmarked: list[str] = []
        for task_runs in by_id.values():
            if len(task_runs) < 2:
                continue
            grouped: dict[int, list[Run]] = defaultdict(list)
            for run in task_runs:
                grouped[run.retries].append(run)
            for same in grouped.values():
                same.sort(key=lambda run: run.start)
                for first, again in itertools.pairwise(same):
                    self._take(first, again)

    def _take(self, first: Run, again: Run) -> None:
        (self.reruns if first.end is None else self.duplicates).append((first, again))
        fault = next((fault for fault in self.faults if _concerns(fault, first, again)), None)
        if first.end is not None:
            self.by_fault[fault.kind if fault is not None else "none"] += 1
        if fault is None:
            self.unexplained.append(
                f"{first.id} (retry {first.retries}) ran in {first.worker}/{first.pid} from {first.start:.3f} to "
                f"{first.end or 0:.3f} and in {again.worker}/{again.pid} from {again.start:.3f}"
            )
        if not again.redelivered:
            self.unmarked.append(f"{again.id} (retry {again.retries}) ran again at {again.start:.3f}, not marked")

    def check(self) -> Check:
        hard = sum(fault.hard for fault in self.faults)
        many = len(self.duplicates) >= max(hard, 1)
        text = f"{len(self.reruns)} re-runs, {len(self.duplicates)} duplicates in {hard} hard kills"
        if self.unexplained:
            text += f", {len(self.unexplained)} belong to no fault"
        if self.unmarked:
            text += f", {len(self.unmarked)} not marked redelivered"
        ok = not (many or self.unexplained or self.unmarked)
        return _check("D", ok, text, [*self.unexplained, *self.unmarked])


def _concerns(fault: FaultRecord, first: Run, again: Run) -> bool:
    """Return whether ``fault`` hit ``first`` before its acknowledgement, and before the second execution."""
    if not fault.hard or fault.at > again.start:
        return False
    if fault.pids:
        if first.pid not in fault.pids:
            return False
    ends = again.start if first.end is None else first.end + ACK_WINDOW
    return fault.at <= ends and fault.until >= first.start - ACK_WINDOW


def _early(submissions: Sequence[Submission], by_id: dict[str, list[Run]]) -> list[str]:
    found = []
    for one in submissions:
        if one.eta is None:
            continue
        found += [
            f"{one.id} started {one.eta - run.start:.3f} s before its eta"
            for run in by_id.get(one.id, ())
            if run.start < one.eta - ETA_TOLERANCE
        ]
    return found


def _most_starts(task_runs: Sequence[Run]) -> int:
    """Return how often one message was started: a retry is a message of its own, whose crashes are counted anew."""
    return max(Counter(run.retries for run in task_runs).values())


def _dead(submissions: Sequence[Submission], state: FinalState, excused: set[str], starts: Mapping[str, int]) -> Check:
    """Compare the dead letters with those that there must be, but for tasks that may be dead or not.

    Args:
        excused: the publish was not confirmed, or the faults killed it as often as the delivery limit allows: the
            longer a task runs, the more of them meet it.
        starts: how often each task's message was started.
    """
    wanted = {(one.id, one.dead) for one in submissions if one.dead is not None and one.id not in excused}
    found = {letter for letter in state.letters if letter[0] not in excused}
    missing, extra = sorted(wanted - found, key=str), sorted(found - wanted, key=str)
    twice = len(state.letters) - len(set(state.letters))
    text = f"{len(found)} dead letters, {len(missing)} missing, {len(extra)} unexpected, {twice} twice"
    if excused & {letter[0] for letter in state.letters}:
        text += f", {len(state.letters) - len(found)} of tasks that may be dead"
    examples = [
        f"{task_id} {reason}, started {starts.get(task_id or '', 0)} times" for task_id, reason in (*missing, *extra)
    ]
    return _check("Q", not (missing or extra or twice), text, examples)


def _shown(submissions: Sequence[Submission], state: FinalState, excused: set[str]) -> Check:
    """Compare the dead letters with the ledger, which knows how many there must be, and each export with Redis."""
    wanted = sum(one.dead is not None for one in submissions if one.id not in excused)
    wanted += sum(task_id in excused for task_id, _ in set(state.letters))
    wrong = [f"there are {state.dead} dead letters, the ledger says {wanted}"] if state.dead != wanted else []
    for source, figures in state.shown.items():
        for name in FIGURES:
            held, said = getattr(state, name), figures.get(name)
            if said != held:
                wrong.append(f"{source} says {'nothing' if said is None else format(said, 'g')} of {held} {name}")
    exports = ", ".join(state.shown) or "no export was asked"
    return _check("M", not wrong, f"{wanted} dead letters in the ledger; {exports}; {len(wrong)} differ", wrong)


class _Recovery:
    """How long what a fault interrupted took to run again."""

    def __init__(
        self,
        submissions: Sequence[Submission],
        by_id: dict[str, list[Run]],
        runs: Sequence[Run],
        faults: Sequence[FaultRecord],
        bounds: Bounds,
    ) -> None:
        self.bounds = bounds
        self._priorities = {one.id: one.priority for one in submissions}
        self._waits: dict[int | None, list[tuple[float, float]]] = defaultdict(list)
        for one in sorted(submissions, key=lambda one: one.at):
            if one.eta is None and one.id in by_id:
                started = min(run.start for run in by_id[one.id])
                self._waits[one.priority].append((one.at, max(started - one.at, 0.0)))
        self.seconds: list[float] = []
        self.by_fault: dict[str, list[float]] = defaultdict(list)
        self.redis: list[float] = []
        self.late: list[str] = []
        outages = [fault for fault in faults if not fault.pids]
        self.faults = faults
        killed: dict[int, FaultRecord] = {}
        for fault in faults:
            if fault.hard and fault.until == fault.at:
                killed.update(dict.fromkeys(fault.pids, fault))
        for task_runs in by_id.values():
            interrupted = 0
            ordered = sorted(task_runs, key=lambda run: run.start)
            for first, again in itertools.pairwise(ordered):
                if first.end is not None or first.retries != again.retries:
                    continue
                interrupted += 1
                killer = killed.get(first.pid)
                # From the second crash on a message waits on purpose.
                if killer is None or interrupted > 1 or killer.at < first.start:
                    continue
                self._take(killer, again)
        starts = sorted(run.start for run in runs)
        for fault in outages:
            if fault.number != "F10":
                continue
            at = bisect.bisect_left(starts, fault.until)
            if at < len(starts):
                took = starts[at] - fault.until
                self.redis.append(took)
                if took > bounds.redis:
                    self.late.append(f"nothing ran for {took:.1f} s after Redis was back")

    def _take(self, fault: FaultRecord, again: Run) -> None:
        took = again.start - fault.at
        self.seconds.append(took)
        self.by_fault[fault.kind].append(took)
        # What else happened meanwhile: the parent of a dead child may have died or stood still, Redis been away.
        others = [
            other
            for other in self.faults
            if other is not fault and other.hard and other.at <= again.start and other.until >= fault.at - ACK_WINDOW
        ]
        away = sum(max(min(other.until, again.start) - max(other.at, fault.at), 0.0) for other in others)
        own = self.bounds.visibility_timeout
        if fault.number in ("F2", "F16") and not others:
            own = self.bounds.child
        # It is put back behind what waits: whoever is published meanwhile waits as long.
        waits = self._waits[self._priorities.get(again.id)]
        begin = bisect.bisect_left(waits, (fault.at - ACK_WINDOW, 0.0))
        end = bisect.bisect_left(waits, (fault.at + own + away + ACK_WINDOW, 0.0))
        queued = max((wait for _, wait in waits[begin:end]), default=0.0)
        bound = own + queued + self.bounds.slack + (away * 2 + self.bounds.redis if away else 0.0)
        if took > bound:
            self.late.append(f"{again.id} ran again {took:.1f} s after {fault.kind} (bound {bound:.1f} s)")

    def check(self) -> Check:
        longest = max(self.seconds, default=0.0)
        return _check("R", not self.late, f"{len(self.seconds)} recoveries, longest {longest:.2f} s", self.late)


def _latency(submissions: Sequence[Submission], by_id: dict[str, list[Run]]) -> list[float]:
    found = []
    for one in submissions:
        task_runs = by_id.get(one.id)
        if task_runs:
            found.append(min(run.start for run in task_runs) - max(one.at, one.eta or 0.0))
    return found


def _summary(values: Sequence[float]) -> dict[str, float | int]:
    if not values:
        return {"count": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 3)

    return {"count": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": round(ordered[-1], 3)}
