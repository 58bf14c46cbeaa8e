"""The producer: a process of its own that publishes a mix of tasks and writes each id down after the publish returned.

``python -m tests.faults.producer --seconds 30 --rate 100 --seed 7``; Redis and ledger come from the environment. It
publishes without retries: a publish that raises is noted as uncertain, and the next one has a new id. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tests.faults.app import app, ledger, quiet


@dataclass(frozen=True)
class Order:
    """One publish: what the task does and what must become of it."""

    action: str
    options: dict[str, Any] = field(default_factory=dict)
    countdown: float | None = None
    retries: int = 0
    dead: str | None = None
    priority: int | None = None


def _mix(chance: random.Random, long: float) -> list[tuple[float, Any]]:
    """Return weight and maker of each kind of task; those that end their process come last."""
    return [
        (60.0, lambda: Order("ok")),
        (10.0, lambda: Order("ok", priority=chance.choice((3, 6, 9)))),
        (12.0, lambda: Order("nap", {"seconds": chance.uniform(0.005, 0.06)})),
        (0.5, lambda: Order("nap", {"seconds": chance.uniform(0.3, 1.0)})),
        (0.05, lambda: Order("nap", {"seconds": long})),
        (7.0, lambda: Order("ok", countdown=chance.uniform(0.2, 3.0))),
        (8.0, lambda: Order("flaky", {"until": 1, "seconds": 0.01}, retries=1)),
        (2.0, lambda: Order("flaky", {"until": 2, "countdown": chance.uniform(0.1, 0.5)}, retries=2)),
        (0.4, lambda: Order("fail", dead="failed")),
        (0.15, lambda: Order("crash", {"how": chance.choice(("exit", "segfault", "kill"))})),
        (0.03, lambda: Order("poison", dead="crashed")),
    ]


def orders(
    seed: int, *, long: float, stop_flaky: bool = False, calm: bool = False, harmless: bool = False
) -> Iterator[Order]:
    """Yield orders for ever, the same ones for the same seed.

    Args:
        long: seconds of the rare long task, beyond the visibility timeout.
        stop_flaky: only tasks that sleep and retry.
        calm: no task that ends its process.
        harmless: none that does so each time, which a stock worker would run for ever.
    """
    chance = random.Random(seed)
    mix = _mix(chance, long)
    if calm or harmless:
        mix = mix[: -2 if calm else -1]
    if stop_flaky:
        mix = [(1.0, lambda: Order("flaky", {"until": 1, "seconds": chance.uniform(0.1, 0.4)}, retries=1))]
    weights, makers = [weight for weight, _ in mix], [maker for _, maker in mix]
    # The rare kinds are met in every run, however short.
    for maker in makers[-6:]:
        yield maker()
    while True:
        yield chance.choices(makers, weights)[0]()


def publish(order: Order) -> None:
    """Publish one order and write it down."""
    task_id = uuid.uuid4().hex
    options: dict[str, Any] = {"task_id": task_id, "retry": False}
    eta = None
    if order.countdown is not None:
        eta = time.time() + order.countdown
        options["countdown"] = order.countdown
    if order.priority is not None:
        options["priority"] = order.priority
    try:
        quiet.apply_async((order.action,), order.options, **options)
    except (OperationalError, RedisError, OSError) as exc:
        ledger().append("uncertain", id=task_id, error=repr(exc), at=time.time())
        time.sleep(0.02)  # no busy loop while Redis refuses
    else:
        ledger().append(
            "submitted",
            id=task_id,
            action=order.action,
            at=time.time(),
            eta=eta,
            retries=order.retries,
            dead=order.dead,
            priority=order.priority,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--long", type=float, required=True)
    parser.add_argument("--only-flaky", action="store_true")
    parser.add_argument("--calm", action="store_true")
    parser.add_argument("--harmless", action="store_true")
    given = parser.parse_args()
    app.set_current()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    began = time.monotonic()
    for count, order in enumerate(
        orders(given.seed, long=given.long, stop_flaky=given.only_flaky, calm=given.calm, harmless=given.harmless)
    ):
        ahead = began + count / given.rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)  # the rate that was asked for
        if stopped or time.monotonic() - began > given.seconds:
            break
        publish(order)


if __name__ == "__main__":
    main()
