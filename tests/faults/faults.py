"""The faults of a load run, one class each; a fault hits at once and may undo itself later.

:meth:`Fault.strike` does the harm and returns the records of it; what must be undone after a while (a stopped process
continued, a server started again) is handed to :meth:`Scene.later`, so that the load goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import redis

from celery_streams.embedded import EmbeddedRedis
from tests.faults.verdict import FaultRecord
from tests.faults.workers import FaultWorker, Fleet, signal_process


@dataclass
class Scene:
    """What the faults act upon, and what they leave to be undone."""

    server: EmbeddedRedis
    fleet: Fleet
    chance: random.Random
    visibility_timeout: float
    records: list[FaultRecord] = field(default_factory=list)
    #: Workers and servers that a fault is busy with.
    occupied: set[object] = field(default_factory=set)
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def record(
        self, kind: str, *pids: int, at: float | None = None, until: float | None = None, hard: bool = True
    ) -> None:
        at = time.time() if at is None else at
        self.records.append(FaultRecord(kind, at, at if until is None else until, frozenset(pids), hard))

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), work))

    def run_due(self, *, everything: bool = False) -> None:
        """Undo what is due."""
        while self._later and (everything or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()

    def free_worker(self) -> FaultWorker | None:
        """Return a living worker that no fault is busy with."""
        free = [worker for worker in self.fleet.alive if worker not in self.occupied]
        return self.chance.choice(free) if free else None

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url, socket_timeout=5)


class Fault:
    """One kind of harm."""

    #: Its number in the list of faults, and what it does.
    kind: ClassVar[str]
    #: How often it is drawn, beside the others.
    weight: ClassVar[int] = 1

    def strike(self, scene: Scene) -> bool:
        """Do it; returns whether there was anything to be hit."""
        raise NotImplementedError


class F1KillParent(Fault):
    """The parent dies; its children must not outlive it."""

    kind = "F1 kill -9 parent"
    weight = 2

    def strike(self, scene: Scene) -> bool:
        worker = scene.free_worker()
        if worker is None:
            return False
        children = worker.children()
        scene.fleet.expect_end(worker)
        scene.record(self.kind, worker.pid, *children)
        worker.kill_parent()
        return True


class F1KillWorker(Fault):
    """All processes of a worker die at once, as when its host does."""

    kind = "F1 kill -9 worker"
    weight = 2

    def strike(self, scene: Scene) -> bool:
        worker = scene.free_worker()
        if worker is None:
            return False
        pids = worker.group()
        scene.fleet.expect_end(worker)
        scene.record(self.kind, *pids)
        worker.kill()
        return True


class F2KillChild(Fault):
    kind = "F2 kill -9 child"
    weight = 5

    def strike(self, scene: Scene) -> bool:
        worker = scene.free_worker()
        children = worker.children() if worker is not None else []
        if not children:
            return False
        victim = scene.chance.choice(children)
        scene.record(self.kind, victim)
        signal_process(victim, signal.SIGKILL)
        return True


class F8Stop(Fault):
    """A worker stands still for longer than the visibility timeout, as a suspended machine does."""

    kind = "F8 stop, continue"
    weight = 1

    def strike(self, scene: Scene) -> bool:
        alive = scene.fleet.alive
        worker = scene.free_worker()
        if worker is None or len(alive) < 2 or scene.occupied.intersection(alive):
            return False  # somebody must be there to claim what it holds
        pids = worker.group()
        seconds = scene.visibility_timeout * 1.5
        scene.occupied.add(worker)
        at = time.time()
        worker.signal_all(signal.SIGSTOP)

        def go_on() -> None:
            worker.signal_all(signal.SIGCONT)
            scene.occupied.discard(worker)
            scene.record(self.kind, *pids, at=at, until=time.time())

        scene.later(seconds, go_on)
        return True


class F9Terminate(Fault):
    """A deploy: SIGTERM, and a successor."""

    kind = "F9 SIGTERM"
    weight = 2

    def strike(self, scene: Scene) -> bool:
        worker = scene.free_worker()
        if worker is None:
            return False
        scene.fleet.expect_end(worker)
        scene.record(self.kind, worker.pid, hard=False)
        worker.signal(signal.SIGTERM)
        return True


class _Command:
    """Redis commands that must be carried out, although the server may be loading or drop clients just now."""

    @staticmethod
    def send(scene: Scene, commands: Sequence[tuple[object, ...]], *, patience: float = 20.0) -> None:
        deadline = time.monotonic() + patience
        for command in commands:
            while True:
                try:
                    with contextlib.closing(scene.client) as client:
                        client.execute_command(*command)
                    break
                except redis.RedisError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)  # until it takes the command again, or the deadline


class F10KillRedis(Fault):
    kind = "F10 kill -9 Redis"
    weight = 2

    def strike(self, scene: Scene) -> bool:
        if scene.server in scene.occupied:
            return False
        scene.occupied.add(scene.server)
        at = time.time()
        scene.server.kill()

        def start() -> None:
            scene.server.start()
            _Command.send(scene, [("PING",)])
            scene.occupied.discard(scene.server)
            scene.record(self.kind, at=at, until=time.time())

        scene.later(scene.chance.uniform(0.1, 1.5), start)
        return True


class _ClientFault(Fault):
    """Something that one Redis command does."""

    commands: ClassVar[Sequence[tuple[object, ...]]]
    undo: ClassVar[Sequence[tuple[object, ...]]] = ()
    seconds: ClassVar[float] = 0.0

    def strike(self, scene: Scene) -> bool:
        if scene.server in scene.occupied:
            return False
        at = time.time()
        _Command.send(scene, self.commands)
        if not self.undo:
            scene.record(self.kind, at=at, until=at + self.seconds, hard=False)
            return True
        scene.occupied.add(scene.server)

        def undo() -> None:
            _Command.send(scene, self.undo)
            scene.occupied.discard(scene.server)
            scene.record(self.kind, at=at, until=time.time(), hard=False)

        scene.later(self.seconds, undo)
        return True


class F12KillClients(_ClientFault):
    kind = "F12 CLIENT KILL"
    weight = 3
    commands = (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),)


class F12PauseClients(_ClientFault):
    kind = "F12 CLIENT PAUSE"
    commands = (("CLIENT", "PAUSE", 800, "ALL"),)
    seconds = 0.8


class F12ReadOnly(_ClientFault):
    kind = "F12 READONLY"
    commands = (("REPLICAOF", "127.0.0.1", "1"),)
    undo = (("REPLICAOF", "NO", "ONE"),)
    seconds = 0.7


#: What a load run draws from.
ALL: tuple[type[Fault], ...] = (
    F1KillParent,
    F1KillWorker,
    F2KillChild,
    F8Stop,
    F9Terminate,
    F10KillRedis,
    F12KillClients,
    F12PauseClients,
    F12ReadOnly,
)


class Scheduler:
    """Draws faults as from a deck of cards: each comes as often as its weight says, in an order that the seed gives."""

    def __init__(self, kinds: Sequence[type[Fault]], *, chance: random.Random, pause: tuple[float, float]) -> None:
        self.kinds = list(kinds)
        self._chance = chance
        self._pause = pause
        self._deck: list[Fault] = []
        self._next = time.monotonic() + chance.uniform(*pause)

    def run_once(self, scene: Scene) -> Fault | None:
        """Strike if it is time; returns what struck."""
        if time.monotonic() < self._next:
            return None
        if not self._deck:
            self._deck = [kind() for kind in self.kinds for _ in range(kind.weight)]
            self._chance.shuffle(self._deck)
        fault = self._deck.pop()
        if not fault.strike(scene):
            # It waits for its turn at the other end of the deck.
            self._deck.insert(0, fault)
            self._next = time.monotonic() + 0.1
            return None
        self._next = time.monotonic() + self._chance.uniform(*self._pause)
        return fault
