"""Every script, called again and again while Redis refuses one of its steps: it doubles, loses and strands nothing."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from celery_streams import keys, scripts
from celery_streams.block_store import MessageBlock, QueuedMessage, publish_blocks
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.consumers import forget_idle_consumers, touch_consumers
from celery_streams.database_transfer import ARRIVE, DEPART, FORGET_TAGS, PEEK
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.delayed_messages import cancel, run_now
from celery_streams.exceptions import BrokerError
from celery_streams.foreign_streams import TAKE_OVER
from celery_streams.handovers import hand_over, receiver, take_over
from celery_streams.history import record
from celery_streams.inspect import purge
from celery_streams.lanes import Lane, admit, keeping_place, let_go, release, vacating
from celery_streams.locks import Lock, disown, holders, publish_unique, replace_unique, start, sweep, unlocking
from celery_streams.message import Message, pack
from celery_streams.migration import ADOPT, RECALL, SURRENDER, UNDELAY
from celery_streams.notes import mark_of, note, stand_alone
from celery_streams.pages import STEP_BYTES, preview, scan
from celery_streams.pauses import pause_queue
from celery_streams.recovery import busy_queues, clock_was_set, gather, recover
from celery_streams.removal import REMOVE
from celery_streams.tallies import add, mark
from celery_streams.turns import take_turns
from celery_streams.worker.outcome import crash_pauses_ms
from tests.support.redis_state import StreamState, delivered, make_idle, message, redis_state

LUA = Path(scripts.__file__).parent / "lua"
VERBS = sorted(path.stem for path in LUA.glob("*.lua"))

QUEUE = "q"
STREAM = "celery-streams:{q}"
ONE = Lane("t", '{"task":"t","rate":"t","interval":0,"limit":1}', lasting=True)
SLOW = Lane("t", '{"task":"t","rate":"t","interval":200}', lasting=False)

#: Calls while the command is denied, and afterwards.
TIMES = 3


@dataclass(frozen=True)
class Use:
    """A typical use of a script: what is there before, and the call, which gets what ``seed`` returned."""

    seed: Callable[[StreamBroker], Any]
    act: Callable[[StreamBroker, Any], Any]
    #: The ids of messages that are there when all is done; by default what was there before.
    kept: tuple[int, ...] | None = None


def held(*numbers: int, history: bytes = b"", consumer: str = "me") -> Callable[[StreamBroker], list[Any]]:
    return lambda broker: delivered(broker, QUEUE, consumer, *(message(one, history=history) for one in numbers))


def abandoned(history: bytes = b"") -> Callable[[StreamBroker], None]:
    def seed(broker: StreamBroker) -> None:
        for one in held(7001, 7002, history=history, consumer="dead")(broker):
            make_idle(broker, one.stream, "dead", one.entry_id, idle_ms=60_000)

    return seed


def taken_by_hand(broker: StreamBroker) -> None:
    held(7001, 7002)(broker)
    broker.client.call("XGROUP", "DELCONSUMER", STREAM, keys.GROUP, "me")


def again(broker: StreamBroker, _: Any) -> None:
    recover(broker, QUEUE, "claimer", idle_ms=10_000, turn_ms=1, pauses_ms=crash_pauses_ms(5))


def waiting(*numbers: int) -> Callable[[StreamBroker], None]:
    def seed(broker: StreamBroker) -> None:
        broker.ensure_groups([QUEUE])
        for number in numbers:
            broker.publish(QUEUE, message(number))

    return seed


def delayed(*numbers: int, due_ms: int = 1) -> Callable[[StreamBroker], None]:
    def seed(broker: StreamBroker) -> None:
        broker.ensure_groups([QUEUE])
        for number in numbers:
            broker.delay(QUEUE, message(number), due_ms=due_ms, member=str(number))

    return seed


def on_a_list(broker: StreamBroker) -> None:
    broker.client.call("RPUSH", "list", *(message(number).headers for number in (7002, 7001)))


def adopt(due_ms: int) -> Callable[[StreamBroker, Any], None]:
    def act(broker: StreamBroker, _: Any) -> None:
        args = [
            part
            for number in (7001, 7002)
            for part in (message(number).headers, due_ms, str(number), pack(message(number)))
        ]
        names = broker.queue_keys(QUEUE)
        broker.client.run(ADOPT, ["list", names.delayed, names.delayed_messages, names.wake, *names.streams], args)

    return act


def buried(broker: StreamBroker) -> Any:
    for one in held(7001, 7002)(broker):
        broker.reject("me", one.entry, death=b"{}", max_length=None, ttl=None)
    return dead_letters(broker, QUEUE)


def on_hold(lane: Lane) -> Callable[[StreamBroker], Any]:
    """The first message has the place, and two wait for it, or for their time."""

    def seed(broker: StreamBroker) -> Any:
        first, *others = held(7001, 7002, 7003)(broker)
        assert admit(broker, "me", first.entry, lane).admitted
        for one in others:
            assert not admit(broker, "me", one.entry, lane).admitted
        return first

    return seed


def admit_all(penalty_ms: int | None = None) -> Callable[[StreamBroker, Any], None]:
    def act(broker: StreamBroker, found: Any) -> None:
        for one in found:
            with contextlib.suppress(BrokerError):
                admit(broker, "me", one.entry, ONE, penalty_ms=penalty_ms)

    return act


def ended(broker: StreamBroker, first: Any) -> None:
    vacating(broker, [first.entry], {}).ack("me", [first.entry])


def acknowledged_early(broker: StreamBroker, first: Any) -> None:
    keeping_place(broker, first.entry, "me").ack("me", [first.entry])


def retried(broker: StreamBroker, first: Any) -> None:
    vacating(broker, [first.entry], {}).retry("me", first.entry, message(7009), queue=QUEUE)


def running(*, crashes: int = 0) -> Callable[[StreamBroker], Any]:
    """What a dead worker held had the place for which two others wait."""

    def seed(broker: StreamBroker) -> Any:
        first, *others = held(7001, 7002, 7003, history=b'{"crashes":%d}' % crashes)(broker)
        for one in (first, *others):
            admit(broker, "me", one.entry, ONE)
        make_idle(broker, first.stream, "me", first.entry_id, idle_ms=60_000)
        return first

    return seed


def released(broker: StreamBroker) -> Any:
    """A message waits on its stream with its place, and another one for that."""
    ended(broker, on_hold(ONE)(broker))
    return scan(broker.client, STREAM, count=9)


def ready(broker: StreamBroker) -> None:
    on_hold(SLOW)(broker)
    shelf = broker.queue_keys(QUEUE).shelf
    for lane in broker.client.call("ZRANGEBYSCORE", shelf[2], "-inf", "(9e15"):
        broker.client.call("ZADD", shelf[2], 1, lane)
    broker.client.call("DEL", shelf[4])


def surrender(*, idle: bool, placed: bool = False) -> Use:
    def seed(broker: StreamBroker) -> Any:
        if placed:
            return released(broker)
        if idle:
            abandoned()(broker)
        else:
            waiting(7001, 7002)(broker)
        return scan(broker.client, STREAM, count=9)

    def act(broker: StreamBroker, found: Any) -> None:
        args = [part for entry_id, flat in found for part in (entry_id, 1, flat[1])]
        names = [*broker.queue_keys(QUEUE).shelf_and_streams, "list"]
        broker.client.run(SURRENDER, names, [keys.GROUP, len(broker.steps), 0, 1_000 if idle else "", *args])

    return Use(seed, act)


def foreign(broker: StreamBroker) -> bytes:
    broker.ensure_groups([QUEUE])
    entry: bytes = broker.client.call("XADD", "foreign", "*", *message(7001).as_fields())
    broker.client.call("XGROUP", "CREATE", "foreign", "theirs", "0")
    broker.client.call("XREADGROUP", "GROUP", "theirs", "w", "STREAMS", "foreign", ">")
    return entry


def take_foreign(*, here: bool) -> Callable[[StreamBroker, Any], None]:
    def act(broker: StreamBroker, entry: bytes) -> None:
        broker.client.run(
            TAKE_OVER,
            ["tags", STREAM, *(["foreign"] if here else [])],
            ["t", "theirs", entry, *message(7001).as_fields()],
        )

    return act


def two() -> dict[str, list[int]]:
    return {"block": [7001, 7002]}


def block(*, by_ids: bool, due_ms: int = 0, bound: int | None = None) -> Callable[[StreamBroker, Any], None]:
    """Publish as a client does: an unknown outcome is asked for again, what was refused is a new block."""

    def act(broker: StreamBroker, left: dict[str, list[int]]) -> None:
        for name, numbers in list(left.items()):
            messages = [QueuedMessage(str(n), message(n), due_ms, str(n)) for n in numbers]
            one = MessageBlock(QUEUE, name, messages, by_ids=by_ids, max_length=bound)
            (outcome,) = publish_blocks(broker, [one])
            if not isinstance(outcome, BrokerError):
                del left[name]
                if outcome:
                    left[name + "+"] = [numbers[position] for position, _ in outcome]

    return act


def undelay(broker: StreamBroker, _: Any) -> None:
    names = broker.queue_keys(QUEUE)
    args = [part for n in (7001, 7002) for part in (str(n), pack(message(n)), 1, message(n).headers)]
    broker.client.run(UNDELAY, [names.delayed, names.delayed_messages, "list"], args)


def arrive(broker: StreamBroker, _: Any) -> None:
    broker.client.run(ARRIVE, ["tags", "list"], ["a", 1, message(7001).headers, "b", 1, message(7002).headers])


def recall(broker: StreamBroker, _: Any) -> None:
    broker.client.run(RECALL, ["unacked", "index", "list"], ["tag", message(7001).headers])


def fetched(broker: StreamBroker) -> None:
    broker.client.call("HSET", "unacked", "tag", message(7001).headers)
    broker.client.call("ZADD", "index", 1, "tag")


def handed(broker: StreamBroker) -> None:
    for one in held(7001, 7002)(broker):
        hand_over(broker, "me", receiver("you"), [one.entry])


def remove(broker: StreamBroker, _: Any) -> None:
    names = broker.queue_keys(QUEUE)
    kept = keys.migration_keys(broker.prefix, QUEUE)
    streams = [*names.streams, *names.fronts, names.dead]
    others = [names.delayed, names.delayed_messages, kept.outgoing, kept.incoming, *names.shelf]
    broker.client.run(REMOVE, [*streams, *others], [len(streams), ""])


def nothing(broker: StreamBroker) -> None:
    pass


def of_each(verb: Callable[..., Any]) -> Callable[[StreamBroker, Any], None]:
    """Call ``verb(broker, one)`` for each that ``seed`` returned."""

    def act(broker: StreamBroker, found: Any) -> None:
        for one in found:
            with contextlib.suppress(BrokerError):
                verb(broker, one)

    return act


def entries(found: Any) -> list[Any]:
    return [one.entry for one in found]


def requeue(**how: Any) -> Callable[[StreamBroker, Any], None]:
    return of_each(lambda broker, one: broker.requeue("me", one.entry, **{"history": {}, **how}))


def retry(**how: Any) -> Callable[[StreamBroker, Any], None]:
    return of_each(lambda broker, one: broker.retry("me", one.entry, message(7001), queue=QUEUE, **how))


def reject(broker: StreamBroker, one: Any) -> None:
    broker.reject("me", one.entry, death=b"{}", max_length=9, ttl=9e3, max_memory=10**9)


def before_others(broker: StreamBroker) -> Any:
    found = held(7001, 7002)(broker)
    broker.publish(QUEUE, message(7003))
    return found


def due_before_others(broker: StreamBroker) -> None:
    waiting(7003)(broker)
    delayed(7001, 7002)(broker)


def all_limits(broker: StreamBroker, _: Any) -> None:
    release(broker, [QUEUE], {"t": {"interval": 0}}, everything=True)


UNIQUE = Lock("ab")


def unique(number: int) -> Message:
    headers = b'{"id":"%d","task":"t","streams_unique":"%s"}' % (number, str(UNIQUE).encode())
    return message(number)._replace(headers=headers)


def publish_once(**how: Any) -> Callable[[StreamBroker, Any], None]:
    def act(broker: StreamBroker, state: dict[str, bool]) -> None:
        if state["left"]:
            publish_unique(broker, QUEUE, unique(7001), UNIQUE, task_id="7001", token="t", **how)
            state["left"] = False

    return act


def locked(*, left: bool = False, **how: Any) -> Callable[[StreamBroker], dict[str, bool]]:
    """A message with its lock; ``left``: the lock alone."""

    def seed(broker: StreamBroker) -> dict[str, bool]:
        broker.ensure_groups([QUEUE])
        publish_once(**how)(broker, {"left": True})
        if left:
            broker.client.call("DEL", STREAM)
        return {"left": True}

    return seed


def replace_once(broker: StreamBroker, state: dict[str, bool]) -> None:
    if state["left"]:
        assert replace_unique(broker, QUEUE, unique(7002), UNIQUE, first="7001")
        state["left"] = False


def admitted_lock(broker: StreamBroker) -> dict[str, bool]:
    found = held_lock(broker)
    assert admit(broker, "me", found.entry, ONE).admitted
    return {"left": True}


def held_lock(broker: StreamBroker) -> Any:
    locked()(broker)
    (found,) = broker.read(broker.streams([QUEUE]), "me", count=1)
    return found


def ack_unique(broker: StreamBroker, found: Any) -> None:
    unlocking(broker, found.entry, found.message).ack("me", [found.entry])


def retry_unique(broker: StreamBroker, found: Any) -> None:
    broker.retry("me", found.entry, unique(7001), queue=QUEUE)


def postponed(broker: StreamBroker, due_ms: int) -> None:
    broker.delay(QUEUE, message(7001), due_ms=due_ms, member="7001")


TRACKED = b'{"id":"7001","task":"t","streams_track":[60,null]}'


def publish_tracked(broker: StreamBroker, state: dict[str, bool]) -> None:
    if state["left"]:
        broker.publish(QUEUE, message(7001)._replace(headers=TRACKED))
        state["left"] = False


def look_at_note(broker: StreamBroker, _: Any) -> None:
    mark = mark_of(message(7001)._replace(headers=TRACKED))
    assert mark is not None
    broker.client.note(stand_alone([note(broker.prefix, mark, "queued", QUEUE)]))


USES: dict[str, dict[str, Use]] = {
    "ack": {
        "": Use(held(7001, 7002), lambda broker, found: broker.ack("me", entries(found)), ()),
        "with free": Use(on_hold(ONE), ended, (7002, 7003)),
    },
    "admit": {
        "": Use(held(7001, 7002, 7003), admit_all()),
        "penalty": Use(held(7001, 7002, 7003), admit_all(60_000)),
    },
    "advance": {
        "": Use(
            delayed(7001, due_ms=2**45),
            lambda broker, _: broker.client.run(
                scripts.ADVANCE,
                [broker.queue_keys(QUEUE).delayed, broker.queue_keys(QUEUE).wake],
                ["7001", str(2**45), 2**45 - 1],
            ),
        )
    },
    "adopt": {"": Use(on_a_list, adopt(0)), "later": Use(on_a_list, adopt(2**45))},
    "append": {"": Use(lambda broker: {"left": True}, publish_tracked, (7001,))},
    "arrive": {"": Use(nothing, arrive, (7001, 7002))},
    "beat": {"": Use(waiting(7001), lambda broker, _: broker.client.run(scripts.BEAT, ["w"], ["me", "{}", 60_000]))},
    "busy": {"": Use(held(7001), lambda broker, _: busy_queues(broker, [QUEUE]))},
    "cancel": {"": Use(delayed(7001, 7002), lambda broker, _: cancel(broker, QUEUE, ["7001"]), (7002,))},
    "clock_was_set": {"": Use(delayed(7001, due_ms=2**45), lambda broker, _: clock_was_set(broker, QUEUE))},
    "delay": {
        "": Use(nothing, lambda broker, _: postponed(broker, 2**45), (7001,)),
        "again": Use(delayed(7001, due_ms=2**45), lambda broker, _: postponed(broker, 2**45 + 1)),
    },
    "depart": {
        "": Use(
            on_a_list,
            lambda broker, _: broker.client.run(DEPART, ["list", "out"], [STEP_BYTES, "a" * 32, "b" * 32]),
        )
    },
    "extend": {"": Use(held(7001), lambda broker, found: broker.extend([("me", one) for one in entries(found)]))},
    "forget": {"": Use(held(7001), lambda broker, _: forget_idle_consumers(broker, [QUEUE], idle_ms=0))},
    "forget_tags": {
        "": Use(
            lambda broker: arrive(broker, None),
            lambda broker, _: broker.client.run(FORGET_TAGS, ["tags"], [9, "a"]),
        )
    },
    "free": {
        "": Use(on_hold(ONE), ended, (7002, 7003)),
        "with retry": Use(on_hold(ONE), retried, (7002, 7003, 7009)),
    },
    "keep_place": {"": Use(on_hold(ONE), acknowledged_early, (7002, 7003))},
    "let_go": {
        "at the start": Use(held_lock, lambda broker, found: start(broker, "me", found)),
        "at the end": Use(held_lock, ack_unique, ()),
    },
    "publish_unique": {
        "": Use(lambda broker: {"left": True}, publish_once(), (7001,)),
        "later": Use(lambda broker: {"left": True}, publish_once(due_ms=2**45, member="m"), (7001,)),
    },
    "replace_unique": {
        "": Use(locked(), replace_once, (7002,)),
        "later": Use(locked(due_ms=2**45, member="m"), replace_once, (7002,)),
        "with a place": Use(admitted_lock, replace_once, (7002,)),
    },
    "holder": {"": Use(locked(), lambda broker, _: holders(broker, QUEUE, [UNIQUE]))},
    "disown": {
        "": Use(locked(due_ms=2**45, member="m"), lambda broker, _: disown(broker, QUEUE, UNIQUE, "7001"), (7001,)),
    },
    "gather": {
        "": Use(taken_by_hand, lambda broker, _: gather(broker, [QUEUE])),
        "behind what is held": Use(held(7001, 7002), lambda broker, _: gather(broker, [QUEUE])),
    },
    "hurry": {"": Use(delayed(7001, 7002, due_ms=2**45), lambda broker, _: run_now(broker, QUEUE, ["7001"]))},
    "hand_over": {
        "": Use(held(7001, 7002), lambda broker, found: hand_over(broker, "me", receiver("you"), entries(found)))
    },
    "note": {"": Use(waiting(7001), look_at_note)},
    "pause": {"": Use(waiting(7001), lambda broker, _: pause_queue(broker, QUEUE, reason="why"))},
    "peek": {"": Use(on_a_list, lambda broker, _: broker.client.run(PEEK, ["list"], [9, STEP_BYTES]))},
    "preview": {"": Use(delayed(7001), lambda broker, _: preview(broker.client, broker.queue_keys(QUEUE)))},
    "promote": {
        "": Use(delayed(7001, 7002), lambda broker, _: broker.promote([QUEUE])),
        "before others": Use(due_before_others, lambda broker, _: broker.promote([QUEUE])),
    },
    "publish": {"": Use(nothing, lambda broker, _: broker.publish(QUEUE, message(7001), max_length=1), (7001,))},
    "publish_block": {
        "attempt": Use(lambda broker: two(), block(by_ids=False), (7001, 7002)),
        "attempt later": Use(lambda broker: two(), block(by_ids=False, due_ms=2**45), (7001, 7002)),
        "attempt within bounds": Use(lambda broker: two(), block(by_ids=False, bound=2), (7001, 7002)),
        "ids": Use(lambda broker: two(), block(by_ids=True), (7001, 7002)),
        "ids later": Use(lambda broker: two(), block(by_ids=True, due_ms=2**45), (7001, 7002)),
    },
    "purge": {
        "": Use(waiting(7001, 7002), lambda broker, _: purge(broker, QUEUE), ()),
        "with a place": Use(released, lambda broker, _: purge(broker, QUEUE), ()),
    },
    "put_back": {
        "": Use(held(7001, 7002), lambda broker, found: broker.put_back("me", entries(found))),
        "all": Use(held(7001, 7002), lambda broker, _: broker.put_back_all(broker.streams([QUEUE]), "me")),
        "before others": Use(before_others, lambda broker, found: broker.put_back("me", entries(found))),
        "with a place": Use(on_hold(ONE), lambda broker, first: broker.put_back("me", [first.entry])),
    },
    "read": {"": Use(waiting(7001), lambda broker, _: broker.read(broker.streams([QUEUE]), "me", count=1))},
    "recall": {"": Use(fetched, recall)},
    "receive": {
        "": Use(handed, lambda broker, _: take_over(broker, receiver("you"), "you", broker.streams([QUEUE]), count=9))
    },
    "recover": {
        "": Use(abandoned(), again),
        "later": Use(abandoned(b'{"crashes":2}'), again),
        "exhausted": Use(abandoned(b'{"crashes":9}'), again),
        "with a place": Use(running(), again),
        "later, with a place": Use(running(crashes=2), again),
        "exhausted, with a place": Use(running(crashes=9), again),
    },
    "reject": {"": Use(held(7001, 7002), of_each(reject))},
    "release": {"": Use(ready, lambda broker, _: release(broker, [QUEUE], {})), "all": Use(ready, all_limits)},
    "remove": {"": Use(waiting(7001), remove)},
    "replay": {"": Use(buried, of_each(replay))},
    "requeue": {
        "": Use(held(7001, 7002), requeue(history={"crashes": 1})),
        "behind": Use(held(7001), requeue(behind=True)),
        "later": Use(held(7001, 7002), requeue(delay_ms=60_000)),
    },
    "retry": {
        "": Use(held(7001), retry()),
        "unique": Use(held_lock, retry_unique),
        "later": Use(held(7001), retry(due_ms=2**45, member="m")),
    },
    "mark": {"": Use(held(7001), lambda broker, _: mark(broker, [QUEUE], worker="w", version="1"))},
    "sample": {"": Use(held(7001), lambda broker, _: record(broker, [QUEUE]))},
    "tally": {"": Use(held(7001), lambda broker, _: add(broker, {QUEUE: {"done": 1}}))},
    "scan": {"": Use(waiting(7001), lambda broker, _: scan(broker.client, STREAM, count=9))},
    "surrender": {
        "waiting": surrender(idle=False),
        "held by the dead": surrender(idle=True),
        "with a place": surrender(idle=False, placed=True),
    },
    "take_over": {
        "from here": Use(foreign, take_foreign(here=True)),
        "from elsewhere": Use(nothing, lambda broker, _: take_foreign(here=False)(broker, b"1-1"), (7001,)),
    },
    "take_turns": {
        "": Use(delayed(7001), lambda broker, _: take_turns(broker, [QUEUE], "me", length_ms=9_000, overdue_ms=9_000))
    },
    "touch": {"": Use(held(7001), lambda broker, _: touch_consumers(broker, [QUEUE], ["me", "other"]))},
    "undelay": {"": Use(delayed(7001, 7002), undelay)},
    "unlock": {"": Use(locked(left=True), lambda broker, _: sweep(broker, QUEUE), ())},
    "unhold": {"": Use(on_hold(ONE), lambda broker, _: let_go(broker, QUEUE))},
}


def commands(verb: str) -> list[str]:
    """Return the commands that a script sends."""
    more = scripts.load("free").text if verb in ("ack", "free") else ""
    return sorted(set(re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", scripts.load(verb).text + more)))


CASES = [
    pytest.param(verb, use, command, id="-".join(filter(None, (verb, use, command))))
    for verb in VERBS
    for use in USES[verb]
    for command in commands(verb)
]


@pytest.fixture
def users(client: RedisClient, redis_url: str) -> Iterator[Callable[..., StreamBroker]]:
    made: list[RedisClient] = []

    def make(*rules: str) -> StreamBroker:
        client.call("ACL", "SETUSER", "chat", "reset", "on", ">pw", "~*", "&*", "+@all", *rules)
        made.append(RedisClient(redis_url.replace("://", "://chat:pw@")))
        return StreamBroker(made[-1])

    yield make
    for one in made:
        one.close()
    client.call("ACL", "DELUSER", "chat")


def copies(client: RedisClient) -> Counter[int]:
    """Count each message over everything in the database."""
    found: Counter[int] = Counter()
    for key, value in redis_state(client).items():
        if key.endswith(":unique") or ":state:" in key:
            continue  # locks and states name the task that they are about
        if isinstance(value, StreamState):
            texts = [text for fields in value.entries.values() for text in fields.values()]
        elif isinstance(value, dict):
            texts = [text for text in value.values() if isinstance(text, bytes)]
        elif isinstance(value, list):
            texts = value
        else:
            texts = []
        found.update(int(number) for text in texts for number in re.findall(rb'"id":"(7\d\d\d)"', text))
    return found


def stuck(broker: StreamBroker) -> list[str]:
    """Name what is stored where nobody would find it."""
    names, state = broker.queue_keys(QUEUE), redis_state(broker.client)
    found = []
    for key in (*names.streams, *names.fronts):
        if key not in state or keys.GROUP not in state[key].pending:
            continue
        flat = broker.client.call("XINFO", "GROUPS", key)[0]
        last = dict(zip(flat[::2], flat[1::2], strict=True))[b"last-delivered-id"].decode()
        for entry in state[key].entries:
            read = tuple(map(int, entry.split("-"))) <= tuple(map(int, last.split("-")))
            if read and entry not in state[key].pending[keys.GROUP]:
                found.append(f"{key} {entry} was read and is nobody's")
    if set(state.get(names.delayed, ())) != set(state.get(names.delayed_messages, ())):
        found.append("delayed set and messages differ")
    held_back, lanes, waits, ring = (state.get(key, {}) for key in names.shelf[:4])
    covered = set()
    for lane, said in lanes.items():
        if lane:
            known = json.loads(said)
            covered |= {f"{known['number']}:{at}" for at in range(known["first"], known["last"] + 1)}
            if lane not in waits and not any(turn.endswith("\0" + lane) for turn in ring):
                found.append(f"lane {lane} waits for nothing")
    if covered != set(held_back):
        found.append(f"held {sorted(held_back)}, lanes know of {sorted(covered)}")
    return found


def half_settled(broker: StreamBroker) -> list[str]:
    """Name what is deleted and still pending, as if somebody else had deleted it."""
    return [
        f"{key} {entry}"
        for key, value in redis_state(broker.client).items()
        if isinstance(value, StreamState)
        for entry in value.pending.get(keys.GROUP, {})
        if entry not in value.entries
    ]


def attempt(broker: StreamBroker, admin: RedisClient, use: Use, seed: Any) -> None:
    for _ in range(TIMES):
        admin.call("DEL", broker.queue_keys(QUEUE).claims)
        with contextlib.suppress(BrokerError):
            use.act(broker, seed)


def test_each_script_has_a_use_here() -> None:
    assert sorted(USES) == VERBS


@pytest.mark.parametrize(("verb", "use", "command"), CASES)
def test_no_message_is_doubled_or_lost_when_a_command_is_denied(
    broker: StreamBroker, users: Callable[..., StreamBroker], verb: str, use: str, command: str
) -> None:
    case = USES[verb][use]
    seed = case.seed(broker)
    before = copies(broker.client)
    kept = Counter(before if case.kept is None else case.kept)
    user = users(f"-{command.lower()}")

    attempt(user, broker.client, case, seed)

    during = copies(broker.client)
    assert max(during.values(), default=0) <= 1, "doubled"
    assert set(kept) & set(before) <= set(during), "lost"
    assert half_settled(broker) == []
    broker.client.call("ACL", "SETUSER", "chat", "+@all")
    attempt(user, broker.client, case, seed)
    assert copies(broker.client) == kept
    assert stuck(broker) == []


def odd_keys(broker: StreamBroker) -> list[str]:
    """Return the keys of the queue beside its streams, and those that moves need."""
    names = broker.queue_keys(QUEUE)
    beside = [names.streams[1], names.fronts[0], names.marks[0], names.delayed, names.delayed_messages, names.wake]
    return [*beside, names.dead, *names.shelf[:7], "list", "out", "tags", "unacked", "index"]


@pytest.mark.parametrize(("verb", "use"), [(verb, use) for verb in VERBS for use in USES[verb]])
def test_no_message_is_doubled_or_lost_when_a_key_is_of_another_type(broker: StreamBroker, verb: str, use: str) -> None:
    case, client = USES[verb][use], broker.client
    tried = 0

    for key in odd_keys(broker):
        client.call("FLUSHDB")
        seed = case.seed(broker)
        before = copies(client)
        kept = Counter(before if case.kept is None else case.kept)
        if client.call("EXISTS", key):
            continue  # what it holds would be lost by the test itself
        tried += 1
        client.call("SET", key, "of another type")

        attempt(broker, client, case, seed)

        during = copies(client)
        assert max(during.values(), default=0) <= 1, f"doubled for {key}"
        assert set(kept) & set(before) <= set(during), f"lost for {key}"
        client.call("DEL", key)
        attempt(broker, client, case, seed)
        assert copies(client) == kept, key
        assert stuck(broker) == [], key

    assert tried
