"""Blocks: what is published inside is stored together, in its order, once, and each message's fate is known."""

from __future__ import annotations

import asyncio
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import kombu
import pytest
from celery import Celery, chain, chord, group, signals
from kombu.exceptions import OperationalError

from celery_streams import BulkError, NotPublished, bulk, streams_of
from celery_streams.blocks import TaskIds
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerFull, BrokerUnavailable, QueueFull
from celery_streams.message import Message
from tests.faults.proxy import Proxy
from tests.support.eventually import eventually
from tests.support.redis_state import redis_state
from tests.support.versions import CELERY, needs_kombu

MakeApp = Callable[..., Celery]


def with_task(app: Celery, **options: Any) -> Any:
    @app.task(name="t", shared=False, **{"ignore_result": True, **options})
    def t(*args: Any, **kwargs: Any) -> str:
        return "ran"

    return t


def stored(broker: StreamBroker, queue: str = "celery", *, step: int = 0) -> list[str]:
    """Return the ids of the tasks on a stream, in order."""
    found = broker.client.call("XRANGE", broker.queue_keys(queue).streams[step], "-", "+")
    return [str(Message.from_fields(flat).decode_headers()["id"]) for _, flat in found]


def delayed(broker: StreamBroker, queue: str = "celery") -> list[str]:
    return [
        member.decode().partition(":")[0]
        for member in broker.client.call("ZRANGE", broker.queue_keys(queue).delayed, 0, -1)
    ]


def told(caught: pytest.ExceptionInfo[Any]) -> BulkError:
    """Return the error that was caught, which is of two classes."""
    assert isinstance(caught.value, BulkError)
    return caught.value


def scripts_run(client: RedisClient) -> int:
    """Return how many scripts the server ran so far."""
    lines = client.call("INFO", "commandstats").decode().splitlines()
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for line in lines
        if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:"))
    )


@pytest.fixture
def after() -> Iterator[list[str]]:
    """The ids that after_task_publish was sent for, in order."""
    seen: list[str] = []

    def receive(headers: Any = None, **kwargs: Any) -> None:
        seen.append(headers["id"])

    signals.after_task_publish.connect(receive)
    yield seen
    signals.after_task_publish.disconnect(receive)


@pytest.fixture
def proxy(redis_server: EmbeddedRedis) -> Iterator[Proxy]:
    with Proxy(int(redis_server.url.rpartition(":")[2].partition("/")[0])) as made:
        yield made


@pytest.fixture
def far(app: MakeApp, proxy: Proxy) -> Celery:
    """An app that publishes through the proxy, and soon gives up waiting."""
    return app(streams_url=proxy.url + "?socket_timeout=0.3&socket_connect_timeout=0.3")


# -- held, and stored -------------------------------------------------------------------------------------------------


def test_block_stores_at_its_end_in_the_order_of_the_calls(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with bulk(made):
        ids = [t.delay(number).id for number in range(1_200)]
        held = stored(broker)

    assert held == ids[:1_000]  # two pipelines were full
    assert stored(broker) == ids


def test_a_thousand_messages_take_two_scripts(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)
    with bulk(made):
        t.delay()
    before = scripts_run(broker.client)

    with bulk(made):
        for number in range(1_000):
            t.delay(number)

    assert scripts_run(broker.client) - before == 2


def test_entries_are_those_of_separate_publishes(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)
    calls: list[dict[str, Any]] = [
        {"task_id": "1", "args": (1, "ü")},
        {"task_id": "2", "priority": 6, "headers": {"mine": 1}},
        {"task_id": "3", "serializer": "pickle", "compression": "zlib"},
        {"task_id": "4", "eta": "2099-01-01T00:00:00+00:00"},
    ]

    def publish() -> dict[str, Any]:
        for call in calls:
            t.apply_async(**call)
        return {}

    publish()
    apart = contents(broker)
    broker.client.call("FLUSHALL")
    streams_of(made).reload()
    with bulk(made):
        publish()

    assert contents(broker) == apart


def contents(broker: StreamBroker) -> Any:
    names = broker.queue_keys("celery")
    waiting = [[flat for _, flat in broker.client.call("XRANGE", key, "-", "+")] for key in names.streams]
    later = broker.client.call("HGETALL", names.delayed_messages)
    due = list(broker.client.call("ZRANGE", names.delayed, 0, -1, "WITHSCORES")[1::2])
    return waiting, later[1::2], due


def test_messages_for_later_wait_with_the_others(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with bulk(made):
        later = [t.apply_async(countdown=seconds).id for seconds in (60, 30)]
        now = t.delay().id
        assert (stored(broker), delayed(broker)) == ([], [])

    assert stored(broker) == [now]
    assert delayed(broker) == later[::-1]
    assert broker.client.call("XLEN", broker.queue_keys("celery").wake) == 1


def test_list_queues_go_out_at_the_call(app: MakeApp, broker: StreamBroker) -> None:
    made = app(streams_queues=["fast"])
    t = with_task(made)

    with bulk(made):
        t.apply_async(queue="plain")
        t.apply_async(queue="fast")
        assert broker.client.call("LLEN", "plain") == 1
        assert stored(broker, "fast") == []

    assert len(stored(broker, "fast")) == 1


def test_after_publish_follows_when_the_message_is_stored(app: MakeApp, after: list[str]) -> None:
    made = app()
    t = with_task(made)
    before: list[str] = []

    def receive(headers: Any = None, **kwargs: Any) -> None:
        before.append(headers["id"])

    signals.before_task_publish.connect(receive)
    try:
        with bulk(made):
            ids = [t.delay().id for _ in range(3)]
            assert (before, after) == (ids, [])
    finally:
        signals.before_task_publish.disconnect(receive)

    assert after == ids


def test_sent_event_follows_when_the_message_is_stored(app: MakeApp, redis_url: str) -> None:
    made = app(task_send_sent_event=True)
    t = with_task(made)
    events: list[Any] = []
    with made.connection_for_read() as connection:
        receiver = made.events.Receiver(connection, handlers={"task-sent": events.append})
        with receiver.consumer_context(wakeup=False) as (own_connection, _, _):

            def listen() -> None:
                with suppress(TimeoutError):
                    for _ in range(3):  # subscriptions are events of the connection, too
                        own_connection.drain_events(timeout=0.3)

            with bulk(made):
                result = t.delay()
                listen()
                assert events == []
            listen()

    assert [event["uuid"] for event in events] == [result.id]


def test_receiver_that_publishes_is_a_part_of_the_block(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    def receive(body: Any = None, **kwargs: Any) -> None:
        if body[0] == ("first",):
            t.delay("second")

    signals.after_task_publish.connect(receive)
    try:
        with bulk(made):
            t.delay("first")
    finally:
        signals.after_task_publish.disconnect(receive)

    assert len(stored(broker)) == 2


def test_block_inside_a_block_is_a_part_of_it(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with bulk(made):
        first = t.delay().id
        with bulk(made):
            second = t.delay().id
        assert stored(broker) == []

    assert stored(broker) == [first, second]


def test_flush_stores_at_once(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with bulk(made) as block:
        t.delay()
        block.flush()
        assert len(stored(broker)) == 1


def test_apps_have_blocks_of_their_own(app: MakeApp, broker: StreamBroker) -> None:
    one, other = app(), app()

    with bulk(one):
        with_task(other).apply_async(task_id="other")
        with_task(one).apply_async(task_id="one")
        assert stored(broker) == ["other"]

    assert stored(broker) == ["other", "one"]


# -- whose block ------------------------------------------------------------------------------------------------------


def test_other_threads_publish_at_once(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with bulk(made):
        t.delay()
        thread = threading.Thread(target=t.delay)
        thread.start()
        thread.join(10)
        assert len(stored(broker)) == 1


def test_other_coroutines_publish_at_once_and_threads_of_this_one_too(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    async def child() -> str:
        return str(t.delay().id)

    async def main() -> None:
        with bulk(made):
            own = t.delay().id
            others = [await asyncio.create_task(child()), (await asyncio.to_thread(t.delay)).id]
            assert stored(broker) == others
        assert stored(broker) == [*others, own]

    asyncio.run(main())


def test_block_that_ended_holds_nothing(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    async def main() -> None:
        async def late() -> None:
            await ended.wait()
            t.delay()

        ended = asyncio.Event()
        with bulk(made):
            task = asyncio.create_task(late())
        ended.set()
        await task

    asyncio.run(main())

    assert len(stored(broker)) == 1


# -- errors -----------------------------------------------------------------------------------------------------------


def test_error_in_the_block_sends_what_was_called_before_it(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with pytest.raises(ZeroDivisionError), bulk(made):
        first = t.delay().id
        raise ZeroDivisionError

    assert stored(broker) == [first]


def test_full_queue_says_which_messages_it_took(app: MakeApp, broker: StreamBroker, after: list[str]) -> None:
    made = app(streams_max_length=3)
    t = with_task(made)

    with pytest.raises(QueueFull) as caught, bulk(made):
        ids = [t.delay().id for _ in range(4)]
        other = t.apply_async(queue="other").id
        later = t.apply_async(countdown=60).id

    error = caught.value
    assert isinstance(error, BulkError)
    assert sorted(error.stored) == sorted([*ids[:3], other])
    assert list(error.failed) == [ids[3], later]
    assert error.uncertain == ()
    assert stored(broker) == ids[:3]
    assert sorted(after) == sorted(error.stored)

    broker.client.call("XTRIM", broker.queue_keys("celery").streams[0], "MAXLEN", 1)
    error.repeat()
    assert stored(broker) == [ids[2], ids[3]]
    assert delayed(broker) == [later]


def test_redis_that_is_away_fails_the_block(app: MakeApp) -> None:
    made = app(streams_url="redis://127.0.0.1:1/0", task_publish_retry=False)
    t = with_task(made)

    with pytest.raises(BrokerUnavailable) as caught, bulk(made):
        ids = [t.delay().id for _ in range(3)]

    assert isinstance(caught.value, OperationalError)
    assert (told(caught).stored, list(told(caught).failed), told(caught).uncertain) == ((), ids, ())


def test_call_that_fills_a_pipeline_says_that_it_failed(app: MakeApp) -> None:
    made = app(streams_url="redis://127.0.0.1:1/0", task_publish_retry=False)
    t = with_task(made)
    calls = 0

    with pytest.raises(BulkError) as caught, bulk(made, max_count=10):
        for _ in range(100):
            calls += 1
            t.delay()

    assert calls == 10
    assert len(caught.value.failed) == 10


def test_full_redis_takes_nothing_of_a_block(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)
    t.delay()
    before = redis_state(broker.client)
    broker.client.call("CONFIG", "SET", "maxmemory", 500_000)

    try:
        with pytest.raises(BrokerFull) as caught, bulk(made):
            ids = [t.delay().id, t.apply_async(countdown=9).id]
        assert redis_state(broker.client) == before
    finally:
        broker.client.call("CONFIG", "SET", "maxmemory", 0)

    assert list(told(caught).failed) == ids
    told(caught).repeat()
    assert (len(stored(broker)), delayed(broker)) == (2, [ids[1]])


def test_key_of_another_type_fails_its_messages_alone(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)
    broker.client.call("SET", broker.queue_keys("celery").streams[1], "somebody's")

    with pytest.raises(BulkError, match="1 messages were not stored") as caught, bulk(made):
        ids = [t.apply_async(priority=priority).id for priority in (0, 3, 0)]

    assert (list(caught.value.failed), stored(broker)) == ([ids[1]], [ids[0], ids[2]])
    assert "WRONGTYPE" in str(caught.value)


def test_lost_reply_leaves_a_block_uncertain_and_its_repetition_stores_nothing_twice(
    far: Celery, proxy: Proxy, broker: StreamBroker, after: list[str]
) -> None:
    t = with_task(far)
    with bulk(far):  # connects, and loads the script
        t.delay()
    first = stored(broker)
    proxy.drop_replies = True

    with pytest.raises(BulkError) as caught, bulk(far, retry=False):
        ids = [t.delay().id for _ in range(3)]
        later = t.apply_async(countdown=60).id

    assert caught.value.uncertain == (*ids, later)
    assert (caught.value.stored, caught.value.failed) == ((), {})
    assert stored(broker) == [*first, *ids]
    assert after == first

    proxy.drop_replies = False
    broker.client.call(
        "ZREM",
        broker.queue_keys("celery").delayed,
        broker.client.call("ZRANGE", broker.queue_keys("celery").delayed, 0, 0)[0],
    )  # as if it had become due, and run
    caught.value.repeat()

    assert stored(broker) == [*first, *ids]
    assert delayed(broker) == []
    assert after == [*first, *ids, later]


def test_retries_by_themselves_store_nothing_twice(far: Celery, proxy: Proxy, broker: StreamBroker) -> None:
    t = with_task(far)
    with bulk(far):  # a server that does not know the script yet says so, which would be swallowed, too
        t.delay()
    proxy.drop_replies = True

    def mend() -> None:
        eventually(lambda: len(stored(broker)) == 4)
        proxy.drop_replies = False

    mending = threading.Thread(target=mend)
    mending.start()
    with bulk(far, retry_policy={"max_retries": 50, "interval_start": 0.1}):
        for _ in range(3):
            t.delay()
    mending.join(10)

    assert len(stored(broker)) == 4


def test_block_with_a_key_that_runs_again_stores_what_is_missing(app: MakeApp, broker: StreamBroker) -> None:
    made = app(streams_max_length=3)
    t = with_task(made)

    def run() -> None:
        with bulk(made, key="import-42", max_count=2):
            for number in range(5):
                t.apply_async(task_id=f"row-{number}")

    with pytest.raises(QueueFull):
        run()
    made.conf.streams_max_length = None
    streams_of(made).reload()
    run()
    run()

    assert stored(broker) == [f"row-{number}" for number in range(5)]
    assert 0 < broker.client.call("PTTL", "celery-streams:{celery}:block:import-42") <= 600_000


def test_error_survives_pickling(app: MakeApp) -> None:
    made = app(streams_max_length=1)
    t = with_task(made)
    with pytest.raises(QueueFull) as caught, bulk(made):
        ids = [t.delay().id for _ in range(2)]

    again = pickle.loads(pickle.dumps(caught.value))

    assert isinstance(again, QueueFull)
    assert isinstance(again, BulkError)
    assert (again.stored, list(again.failed), again.uncertain) == ((ids[0],), [ids[1]], ())


def test_marks_of_blocks_expire(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    with bulk(made):
        with_task(made).delay()

    (mark,) = broker.client.call("KEYS", "*:block:*")
    assert 0 < broker.client.call("PTTL", mark) <= 600_000


def test_block_needs_little_memory(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)
    padding = "x" * 2_000

    def publish(count: int) -> int:
        tracemalloc.reset_peak()
        with bulk(made):
            for _ in range(count):
                t.delay(padding)
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        publish(500)
        few = publish(500)
        many = publish(2_000)
    finally:
        tracemalloc.stop()

    assert many - few < 1_500_000, (few, many)  # 1,500 more messages are 4 MB
    assert len(stored(broker)) == 3_000


def test_ids_are_kept_whatever_they_look_like() -> None:
    kept = TaskIds()
    uuids = ("0b2c1a1e-0a5c-4a3e-9a53-5a2a3d0c7f10", "ffffffff-ffff-ffff-ffff-ffffffffffff")
    odd = ("0B2C1A1E-0a5c-4a3e-9a53-5a2a3d0c7f10", "row-1", "", "0b2c1a1e0a5c4a3e9a535a2a3d0c7f10")

    together = (uuids[0] + uuids[1][:1], uuids[1][1:])

    kept.add(uuids)
    kept.add(odd)
    kept.add(together)
    kept.add(uuids)

    assert tuple(kept) == (*uuids, *odd, *together, *uuids)
    assert (len(kept), kept[2]) == (10, odd[0])


# -- results ----------------------------------------------------------------------------------------------------------


def test_result_of_a_held_task_says_so_at_once(app: MakeApp) -> None:
    made = app()
    t = with_task(made, ignore_result=False)

    with bulk(made):
        result = t.delay()
        with pytest.raises(NotPublished, match=result.id):
            result.get(timeout=20)
        with pytest.raises(NotPublished):
            made.GroupResult("g", [result]).get(timeout=20)
        with pytest.raises(NotPublished):
            made.AsyncResult(result.id).get(timeout=20)

    with pytest.raises(Exception, match="timed out"):
        result.get(timeout=0.2)


def times_sent(client: RedisClient, command: str) -> int:
    """Return how often a command reached the server so far."""
    lines = client.call("INFO", "commandstats").decode().splitlines()
    return sum(
        int(line.partition("calls=")[2].partition(",")[0]) for line in lines if line.startswith(f"cmdstat_{command}:")
    )


def test_only_results_that_somebody_keeps_are_listened_for(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made, ignore_result=False)
    t.delay()  # which makes a plan
    before = times_sent(broker.client, "subscribe"), times_sent(broker.client, "unsubscribe")

    with bulk(made):
        for number in range(9):
            t.delay(number)
        kept = [t.delay(number) for number in range(3)]

    assert times_sent(broker.client, "subscribe") == before[0] + 3
    if CELERY >= (5, 7):  # an older one ends what it has not begun, too
        assert times_sent(broker.client, "unsubscribe") == before[1]
    assert arrive(made, kept)


@pytest.mark.parametrize("bounds", [{"max_count": 2}, {"max_bytes": 1}])
def test_results_are_listened_for_before_each_pipeline_of_a_block_is_sent(app: MakeApp, bounds: dict[str, Any]) -> None:
    made = app()
    t = with_task(made, ignore_result=False)
    t.delay()

    with bulk(made, **bounds):
        kept = [t.delay(number) for number in range(5)]

    assert arrive(made, kept)


def arrive(app: Celery, results: list[Any]) -> bool:
    """Return whether each result is heard of without asking for it."""
    keys = {app.backend.get_key_for_task(one.id) for one in results}
    heard: bool = keys <= app.backend.result_consumer.subscribed_to
    for number, one in enumerate(results):
        app.backend.store_result(one.id, number, "SUCCESS")
    return heard and [one.get(timeout=20) for one in results] == list(range(len(results)))


def test_messages_of_a_block_are_stored_though_the_results_are_away(
    app: MakeApp, broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    no_patience = {"retry_policy": {"max_retries": 0, "interval_start": 0}}
    with EmbeddedRedis() as results:
        made = app(result_backend=results.url, result_backend_transport_options=no_patience)
        t = with_task(made, ignore_result=False)
        t.delay()

    with bulk(made):
        kept = [t.delay(number) for number in range(3)]

    assert stored(broker)[-3:] == [one.id for one in kept]
    assert "Nobody listens yet" in caplog.text
    made.backend.result_consumer.stop()


# -- canvas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["group", "chunks", "chord", "chain"])
def test_groups_are_stored_in_a_few_scripts(app: MakeApp, broker: StreamBroker, how: str) -> None:
    made = app()
    t = with_task(made, ignore_result=False)
    with bulk(made):
        t.delay()
    broker.client.call("DEL", broker.queue_keys("celery").streams[0])
    made.tasks  # noqa: B018  (finalizes)
    before = scripts_run(broker.client)

    if how == "group":
        group(t.s(number) for number in range(40)).apply_async()
    elif how == "chunks":
        t.chunks([(number,) for number in range(80)], 2).apply_async()
    elif how == "chord":
        chord((t.s(number) for number in range(40)), t.s()).apply_async()
    else:
        chain(group(t.s(number) for number in range(40)), t.s()).apply_async()

    assert len(stored(broker)) == 40
    # The first of those that a generator makes, and the rest; unless the machine stood still, for half a second each.
    assert scripts_run(broker.client) - before <= 4


def test_group_of_an_app_that_is_switched_off_goes_to_lists(app: MakeApp, broker: StreamBroker) -> None:
    made = app(streams_enabled=False)

    t = with_task(made)

    group(t.s(number) for number in range(4)).apply_async()

    assert broker.client.call("LLEN", "celery") == 4


# -- kombu's batch ----------------------------------------------------------------------------------------------------

needs_batch = needs_kombu((5, 7), "before, producers have no batch")


@needs_batch
@pytest.mark.parametrize("whose", ["the app's", "the user's"])
def test_batch_of_a_producer_holds_what_goes_through_it(app: MakeApp, broker: StreamBroker, whose: str) -> None:
    made = app(streams_queues=["celery"])
    t = with_task(made)

    with made.connection_for_write() as connection:
        producer: Any = made.amqp.Producer(connection) if whose == "the app's" else kombu.Producer(connection)
        with producer.batch(max_size=3):
            t.apply_async(queue="plain", producer=producer)
            ids = [t.apply_async(producer=producer).id for _ in range(4)]
            other = t.delay().id
            assert stored(broker) == [*ids[:3], other]
            assert broker.client.call("LLEN", "plain") == 0

    assert stored(broker) == [*ids[:3], other, ids[3]]
    assert broker.client.call("LLEN", "plain") == 1


@needs_batch
def test_error_in_a_batch_drops_what_it_held_as_kombu_does(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    with made.producer_pool.acquire() as producer:
        with pytest.raises(ZeroDivisionError), producer.batch():
            t.apply_async(producer=producer)
            raise ZeroDivisionError
        t.apply_async(producer=producer, task_id="after")

    assert stored(broker) == ["after"]
