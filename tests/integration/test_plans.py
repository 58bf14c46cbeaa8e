"""Plans: a plain publish is faster, and not one byte of its message, and nothing around it, is another."""

from __future__ import annotations

import datetime as dt
import gc
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from celery import Celery, Task, signals
from celery.app.trace import build_tracer
from celery.backends.base import DisabledBackend
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import AsyncResult
from celery.utils.saferepr import saferepr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import messaging, serialization

from celery_streams import BrokerUnavailable, streams_of
from celery_streams.broker import StreamBroker
from celery_streams.plans import plain_repr, recording

MakeApp = Callable[..., Celery]


def with_task(app: Celery, **options: Any) -> Any:
    @app.task(name="t", shared=False, typing=False, **options)
    def t(*args: Any, **kwargs: Any) -> str:
        return "ran"

    return app.tasks["t"]


def take(broker: StreamBroker, *queues: str) -> list[Any]:
    """Return the fields of all entries, and delete them."""
    found = []
    for queue in queues or ("celery",):
        for step, key in enumerate(broker.queue_keys(queue).streams):
            found += [(queue, step, fields) for _, fields in broker.client.call("XRANGE", key, "-", "+")]
            broker.client.call("DEL", key)
    return found


@contextmanager
def celerys_way() -> Iterator[None]:
    """A receiver of a publish signal: each publish goes through all of Celery's code."""

    def receive(**kwargs: Any) -> None:
        pass

    signals.before_task_publish.connect(receive)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(receive)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Say which publishes went through kombu's producer: that serializes their bodies."""
    seen: list[str] = []
    plain = messaging.dumps  # type: ignore[attr-defined]

    def dumps(*args: Any, **kwargs: Any) -> Any:
        seen.append("serialized")
        return plain(*args, **kwargs)

    messaging.dumps = dumps  # type: ignore[attr-defined]
    try:
        yield seen
    finally:
        messaging.dumps = plain  # type: ignore[attr-defined]


def test_second_publish_goes_by_the_plan_of_the_first(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())

    with watched() as seen:
        ids = [t.delay(number).id for number in range(3)]

    assert len(seen) == 1
    assert len(take(broker)) == len(set(ids)) == 3


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=60))
values = st.recursive(
    st.one_of(plain, st.uuids(), st.datetimes(), st.dates(), st.decimals(allow_nan=False), st.text(min_size=900)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4), st.tuples(inner, inner)
    ),
    max_leaves=8,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["celery", "other"]),
        "priority": st.sampled_from([None, 0, 3, 9, True]),
        "serializer": st.sampled_from([None, "json", "pickle", "yaml"]),
        "compression": st.sampled_from([None, "zlib"]),
        "time_limit": st.one_of(st.none(), st.integers(5, 9), st.just(5.5)),
        "soft_time_limit": st.one_of(st.none(), st.integers(1, 4)),
        "ignore_result": st.booleans(),
        "delivery_mode": st.sampled_from([None, 1, 2, "transient"]),
        "expires": st.sampled_from([None, dt.datetime(2099, 1, 1, tzinfo=dt.timezone.utc)]),
        "eta": st.sampled_from([None, "2001-01-01T00:00:00+00:00"]),
        "headers": st.sampled_from([None, {"mine": 1}]),
        "shadow": st.sampled_from([None, "other-name"]),
        "root_id": st.sampled_from([None, "root"]),
        "reply_to": st.sampled_from([None, "me"]),
    },
)


@pytest.mark.parametrize("compact", [True, False])
def test_any_message_has_the_same_bytes_by_plan_as_by_celery(app: MakeApp, broker: StreamBroker, compact: bool) -> None:
    made = app(streams_compact_messages=compact, accept_content=["json", "pickle", "yaml"])
    t = with_task(made)
    planned = 0

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        args=st.one_of(st.none(), st.lists(values, max_size=3), st.tuples(values)),
        kwargs=st.one_of(st.none(), st.dictionaries(st.text(max_size=8), values, max_size=3)),
        given_options=st.one_of(st.just({}), options),
        task_id=st.one_of(st.just("the-id"), st.text(min_size=1, max_size=9)),
    )
    def compare(args: Any, kwargs: Any, given_options: dict[str, Any], task_id: str) -> None:
        nonlocal planned

        def publish() -> Any:
            try:
                t.apply_async(args, kwargs, task_id=task_id, **given_options)
            except Exception as exc:
                return type(exc), str(exc)
            found = take(broker, "celery", "other")
            return [(queue, step, without_remaining(fields)) for queue, step, fields in found]

        publish()  # makes the plan, when there is to be one
        with watched() as seen:
            by_plan = publish()
        planned += not seen
        with celerys_way():
            by_celery = publish()
        assert by_plan == by_celery

    compare()
    assert planned > 20


def without_remaining(fields: list[bytes]) -> list[bytes]:
    """Leave out the milliseconds until a message expires, which are reckoned at each publish."""
    return [re.sub(rb'"expiration":"[0-9]+"', b"", field) for field in fields]


@given(
    value=st.one_of(
        st.lists(values, max_size=4), st.lists(plain, max_size=4).map(tuple), st.dictionaries(st.text(), plain)
    )
)
@settings(max_examples=400, deadline=None)
def test_plain_repr_is_celerys(value: Any) -> None:
    for most in (1024, 30):
        found = plain_repr(value, most)
        assert found is None or found == saferepr(value, most)


def test_plain_repr_is_for_exactly_the_plain_types() -> None:
    class Text(str):
        __slots__ = ()

    assert plain_repr(("it's", 1, 2.5, True, None), 1024) == "('it\\'s', 1, 2.5, True, None)"
    assert plain_repr((), 1024) == "()"
    assert plain_repr({}, 1024) == "{}"
    assert plain_repr((Text("x"),), 1024) is None
    assert plain_repr((Decimal(1),), 1024) is None
    assert plain_repr(([],), 1024) is None
    assert plain_repr({1: 2}, 1024) is None
    assert plain_repr("text", 1024) is None


# -- what changes meanwhile -------------------------------------------------------------------------------------------


def settings_changes(made: Celery) -> dict[str, Callable[[], Any]]:
    return {
        "protocol": lambda: made.conf.update(task_protocol=1),
        "repr": lambda: made.conf.update(task_repr_maxlevels=1),
        "routes": lambda: made.conf.update(task_routes={"t": {"queue": "other", "priority": 3}}),
        "default queue": lambda: made.conf.update(task_default_queue="other"),
        "attribute": lambda: setattr(made.conf, "task_routes", {"t": "other"}),
        "router": lambda: made.amqp.flush_routes() or setattr(made.amqp.router, "routes", [lambda *a, **k: "other"]),
        "sizes": lambda: setattr(made.amqp, "argsrepr_maxsize", 5),
    }


@pytest.mark.parametrize("change", list(settings_changes(Celery(set_as_current=False))))
def test_settings_that_change_take_effect_as_without_plans(app: MakeApp, broker: StreamBroker, change: str) -> None:
    found = []
    for way in (celerys_way, None):
        made = app()
        t = with_task(made)
        with way() if way else watched():
            for _ in range(2):
                t.apply_async(([["deep"]],), task_id="id")
            settings_changes(made)[change]()
            t.apply_async(([["deep"]],), task_id="id")
        entries = take(broker, "celery", "other")
        found.append([(queue, step, anonymous(made, fields)) for queue, step, fields in entries])

    assert found[0] == found[1]


def anonymous(made: Celery, fields: list[bytes]) -> list[bytes]:
    return [field.replace(made.thread_oid.encode(), b"oid") for field in fields]


@pytest.mark.parametrize("how", ["setting", "environment", "callable"])
def test_switch_takes_effect_at_the_next_publish(
    app: MakeApp, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    answers = {"on": True}
    made = app(**({"streams_enabled": lambda: answers["on"]} if how == "callable" else {}))
    t = with_task(made)
    for _ in range(2):
        t.delay()

    if how == "setting":
        made.conf.streams_enabled = False
    elif how == "environment":
        monkeypatch.setenv("CELERY_STREAMS_ENABLED", "0")
    answers["on"] = False
    t.delay()

    assert len(take(broker)) == 2
    assert broker.client.call("LLEN", "celery") == 1


def test_queues_of_settings_are_drawn_for_each_message(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app(streams_queues={"celery": 0.5}))

    for _ in range(60):
        t.delay()

    on_stream = len(take(broker))
    assert 0 < on_stream < 60
    assert on_stream + broker.client.call("LLEN", "celery") == 60


# -- who else takes part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["before_task_publish", "after_task_publish"])
def test_receivers_that_come_later_are_told(app: MakeApp, broker: StreamBroker, signal: str) -> None:
    # Before 5.7, Celery misses receivers that come after a publish when receivers from before that publish are gone.
    gc.collect()
    getattr(signals, signal).has_listeners()
    t = with_task(app())
    for _ in range(2):
        t.delay()
    told: list[str] = []

    def receive(headers: Any = None, **kwargs: Any) -> None:
        told.append(headers["id"])

    getattr(signals, signal).connect(receive)
    try:
        result = t.delay()
    finally:
        getattr(signals, signal).disconnect(receive)

    assert told == [result.id]


@pytest.mark.parametrize("where", ["Celery.send_task", "Producer.publish", "app.amqp.Producer.publish"])
def test_libraries_that_replace_what_publishes_are_called(
    app: MakeApp, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    made = app()
    t = with_task(made)
    for _ in range(2):
        t.delay()
    owner: Any = {
        "Celery.send_task": Celery,
        "Producer.publish": messaging.Producer,
        "app.amqp.Producer.publish": made.amqp.Producer,
    }[where]
    name = where.rpartition(".")[2]
    replaced, called = getattr(owner, name), []

    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(where)
        return replaced(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, traced)
    for _ in range(2):
        t.delay()

    assert called == [where, where]


class OwnApp(Celery):  # type: ignore[misc]
    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return super().send_task(*args, **kwargs)


def test_send_task_of_a_users_app_is_called_each_time(app: MakeApp, broker: StreamBroker) -> None:
    made: Any = app(cls=OwnApp)
    t = with_task(made)

    for _ in range(3):
        t.delay()

    assert made.calls == 3
    assert len(take(broker)) == 3


def test_json_of_the_users_own_is_used(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())
    for _ in range(2):
        t.delay()
    registry = serialization.registry
    kept, decoder = registry._encoders["json"], registry._decoders["application/json"]
    serialization.register("json", lambda data: '"mine"', lambda data: data, "application/json", "utf-8")
    try:
        t.delay()
    finally:
        registry._encoders["json"], registry._decoders["application/json"] = kept, decoder

    assert [fields[5] for *_, fields in take(broker)][-1] == b'"mine"'


def test_ids_of_plans_are_random_uuids_as_those_of_celery(app: MakeApp, broker: StreamBroker) -> None:
    t = with_task(app())

    ids = [UUID(t.delay().id) for _ in range(200)]

    assert [str(one) for one in ids] == [fields[1].split(b'"id":"')[1][:36].decode() for *_, fields in take(broker)]
    assert len(set(ids)) == 200
    assert {(one.version, one.variant) for one in ids} == {(4, RFC_4122)}
    assert {str(one)[19] for one in ids} == set("89ab")


@pytest.mark.parametrize("deep", [False, True])
def test_arguments_that_json_cannot_hold_are_refused_as_by_celery(
    app: MakeApp, broker: StreamBroker, deep: bool
) -> None:
    t = with_task(app())
    for _ in range(2):
        t.delay([])
    odd: list[Any] = []
    odd.append(odd)
    if deep:
        odd = []
        for _ in range(200_000):
            odd = [odd]

    def refusal() -> tuple[Any, str]:
        with pytest.raises(Exception) as caught:
            t.delay(odd)
        return type(caught.value), str(caught.value)[:40]

    by_plan = refusal()
    with celerys_way():
        assert refusal() == by_plan
    t.delay("after")

    assert len(take(broker)) == 3


def test_publish_in_a_task_has_its_parent_and_root(app: MakeApp, broker: StreamBroker) -> None:
    made = app()
    t = with_task(made)

    @made.task(name="parent", shared=False, bind=True)
    def parent(self: Any) -> Any:
        return [t.apply_async(task_id="child") for _ in range(2)]

    def run() -> list[Any]:
        tracer = build_tracer("parent", made.tasks["parent"], app=made, eager=True)
        tracer(
            "parent-id", (), {}, {"id": "parent-id", "root_id": "root-id", "is_eager": False, "called_directly": False}
        )
        return take(broker)

    run()
    by_plan = run()
    with celerys_way():
        by_celery = run()

    assert by_plan == by_celery
    assert b'"root_id":"root-id","parent_id":"parent-id"' in by_plan[0][2][1]


def test_result_is_celerys(app: MakeApp) -> None:
    t = with_task(app())

    results = [t.delay() for _ in range(2)]

    assert type(results[0]) is type(results[1])
    assert (results[1].ignored, results[1].task_id) == (False, results[1].id)
    with pytest.raises(ResultTimeoutError):
        results[1].get(timeout=0.1)


def _own_backend(app: Celery) -> dict[str, Any]:
    return {"backend": DisabledBackend(app=app)}


def _own_results(app: Celery) -> dict[str, Any]:
    class OwnResult(AsyncResult):
        pass

    class WithResults(Task):
        def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:  # noqa: N802  (Celery's name)
            return OwnResult(task_id, backend=self.backend, **kwargs)

    return {"base": WithResults}


def _backend_of_a_class(app: Celery) -> dict[str, Any]:
    found = DisabledBackend(app=app)

    class WithBackend(Task):
        backend = property(lambda self: found)

    return {"base": WithBackend}


def _results_of_the_app(app: Celery) -> dict[str, Any]:
    class AppsResult(AsyncResult):
        pass

    app.AsyncResult = AppsResult
    return {}


@pytest.mark.parametrize("options", [_own_backend, _own_results, _backend_of_a_class, _results_of_the_app, dict])
def test_result_is_of_the_class_and_backend_that_the_task_says(
    app: MakeApp, options: Callable[[Celery], dict[str, Any]]
) -> None:
    made = app()
    t = with_task(made, **({} if options is dict else options(made)))

    def look() -> tuple[Any, ...]:
        result = t.delay()
        return type(result), result.backend, result.app, result.ignored, result.parent

    with celerys_way():
        by_celery = look()
    look()
    by_plan = look()

    assert by_plan == by_celery


def test_publish_by_plan_is_tried_again_as_the_policy_says(app: MakeApp, broker: StreamBroker) -> None:
    made = app(task_publish_retry_policy={"max_retries": 30, "interval_start": 0.1, "interval_step": 0})
    t = with_task(made)
    for _ in range(2):
        t.delay()
    streams = streams_of(made)
    streams.broker.client.close()

    pool = streams.broker.client._pool
    port = pool.connection_kwargs["port"]
    pool.connection_kwargs["port"] = 1
    threading.Timer(0.5, lambda: pool.connection_kwargs.update(port=port)).start()
    t.delay()
    assert len(take(broker)) == 3

    pool.connection_kwargs["port"] = 1
    streams.broker.client.close()
    with pytest.raises(BrokerUnavailable):
        t.apply_async(retry=False)
    pool.connection_kwargs["port"] = port


def test_nothing_is_recorded_outside_of_a_first_publish(app: MakeApp) -> None:
    t = with_task(app())
    t.delay()

    assert recording.get() is None
