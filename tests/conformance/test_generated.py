"""Generated calls: what stock Celery accepts and runs, streams accept and run, with the same arguments and request."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from celery import signals
from celery.worker import state as worker_state
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from celery_streams.connection import RedisClient
from tests.support.bench import Bench
from tests.support.calls import OnLists, OnStreams

#: Examples of each test; the seed is fixed, and what fails is printed with its blob.
EXAMPLES = 60

# -- what is generated

_NOW = datetime.now(timezone.utc).replace(microsecond=0)
_LATER, _BEFORE = _NOW + timedelta(hours=1), _NOW - timedelta(hours=1)
_TEXTS = st.sampled_from(["", "a", "import-5", "ä ß 语", "x" * 300, "with space", "{curly}:colon"])
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_SPECIAL = st.sampled_from([uuid.UUID(int=7), _NOW, Decimal("1.5"), b"bytes", _NOW.date(), _NOW.time()])
_IDS = st.sampled_from(["import-5", "ä", "a b", "x" * 300, uuid.UUID(int=9), 5, "5", "{a}:b"])
_TIMES = st.sampled_from(
    [_LATER, _BEFORE, _LATER.replace(tzinfo=None), _BEFORE.replace(tzinfo=None), _LATER.isoformat(),
     _BEFORE.isoformat(), _LATER.astimezone(timezone(timedelta(hours=5))), _LATER.strftime("%Y-%m-%dT%H:%M:%SZ"), ""]
)  # fmt: skip
_SECONDS = st.sampled_from([0, 0.0, 3600, 3600.5, -3600, Decimal(3600), timedelta(hours=1), "3600", True, False])
_LIMITS = st.sampled_from([30, 30.5, "30", "30.5", 0, None, Decimal(30)])

_OPTIONS = st.fixed_dictionaries(
    # Left out, reply_to would name the app.
    {"task_id": _IDS, "reply_to": st.sampled_from(["answers", "ä ß"])},
    optional={
        "priority": st.sampled_from([0, 3, 9, "5", 5.0, 10, 255, -1, True, None]),
        "countdown": _SECONDS,
        "eta": _TIMES,
        "expires": _SECONDS | _TIMES,
        "time_limit": _LIMITS,
        "soft_time_limit": _LIMITS,
        "headers": st.dictionaries(st.sampled_from(["tenant", "x-a", "retries", "lang", "shadow"]), _JSON, max_size=2),
        "shadow": _TEXTS,
        "argsrepr": _TEXTS,
        "kwargsrepr": _TEXTS,
        "ignore_result": st.sampled_from([True, False, None]),
        "serializer": st.sampled_from(["json", "pickle", "yaml", "msgpack"]),
        "compression": st.sampled_from(["zlib", "bzip2", "gzip", None]),
        "retries": st.sampled_from([0, 1, 5]),
        "correlation_id": _TEXTS,
        "group_id": _TEXTS,
        "group_index": st.integers(0, 5),
        "root_id": _TEXTS,
        "parent_id": _TEXTS,
        "replaced_task_nesting": st.integers(0, 3),
        "queue": st.sampled_from(["celery", None]),
        "delivery_mode": st.sampled_from([1, 2, None]),
        "app_id": _TEXTS,
        "add_to_parent": st.booleans(),
        "retry": st.booleans(),
        "stamped": st.sampled_from([{}, {"tenant": "acme"}, {"n": 1}]),
    },
)


@pytest.fixture(params=[2, 1], ids=["protocol 2", "protocol 1"])
def sides(request: pytest.FixtureRequest, app: Any, broker: Any) -> Any:
    shared = {
        "result_backend": "cache+memory://",
        "task_protocol": request.param,
        "accept_content": ["json", "pickle", "yaml", "msgpack"],
        "worker_hijack_root_logger": False,
    }
    stock = OnLists(app(installed=False, **shared))
    installed = app(**shared)
    yield stock, OnStreams(installed, Bench(installed, broker))
    stock.close()
    worker_state.reset_state()


@pytest.fixture(autouse=True)
def _same_examples_in_any_order_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate from the seed alone: Hypothesis mixes in constants of the modules that tests before have imported."""
    none = Constants()
    monkeypatch.setattr(providers, "_get_local_constants", lambda: none)


#: Calls that went wrong once.
_SEEN: list[dict[str, Any]] = [
    {"headers": {"retries": [None]}},
    {"headers": {"retries": {"a": 1}}},
    {"headers": {"retries": "five"}},
    {"headers": {"shadow": [None]}, "eta": _BEFORE},
    {"task_id": b"import-5"},
]


def _seen(number: int) -> dict[str, Any]:
    return {"task_id": "import-5", "reply_to": "answers", **_SEEN[number]}


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")  # a result under a number
@pytest.mark.parametrize("watched", [False, True], ids=["fast", "slow"])
def test_whatever_stock_runs_runs_on_streams_with_the_same_request(
    sides: Any, client: RedisClient, watched: bool
) -> None:
    def receiver(**_: Any) -> None:
        """Only be there: it leads to the slow path."""

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, print_blob=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        args=st.lists(_JSON | _SPECIAL, max_size=3),
        kwargs=st.dictionaries(st.sampled_from("abc"), _JSON),
        options=_OPTIONS,
    )
    @example(args=[], kwargs={}, options=_seen(0))
    @example(args=[], kwargs={}, options=_seen(1))
    @example(args=[], kwargs={}, options=_seen(2))
    @example(args=[], kwargs={}, options=_seen(3))
    @example(args=[], kwargs={}, options=_seen(4))
    def compare(args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]) -> None:
        options = dict(options)
        stamps = options.pop("stamped", {})
        if stamps:
            options.update(stamps, stamped_headers=list(stamps))
        stock, ours = sides

        def publish(task: Any) -> None:
            task.apply_async(tuple(args), dict(kwargs), **options)

        expected = stock.outcome(publish)
        client.call("DEL", "celery", "unacked", "unacked_index")
        if expected.get("ran") or expected.get("waits") or "refused by the publisher" in expected:
            found = ours.outcome(publish)
            assert found == expected
        client.call("FLUSHDB")
        ours.bench.broker.ensure_groups(["celery"])

    if watched:
        signals.task_received.connect(receiver, weak=False)
    try:
        compare()
    finally:
        signals.task_received.disconnect(receiver)
