"""Each integration test that could run on a Redis Cluster does so, or says why it cannot."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.on_cluster import HOLDS, LEFT_OUT

MODULES = sorted((Path(__file__).parents[1] / "integration").glob("test_*.py"))

#: What leads to a cluster with ``--on-cluster``.
_ASKS = re.compile(r"\b(client|broker|app|streams_url): (RedisClient|StreamBroker|Callable|MakeApp|Celery|str|Any)\b")


def test_each_module_that_asks_for_a_broker_runs_on_a_cluster_or_says_why_not() -> None:
    asks = {path.stem for path in MODULES if _ASKS.search(path.read_text())}

    assert asks <= HOLDS | LEFT_OUT.keys()
    assert not HOLDS & LEFT_OUT.keys()


def test_all_that_is_named_is_there() -> None:
    texts = {path.stem: path.read_text() for path in MODULES}

    assert texts.keys() >= HOLDS
    for name in LEFT_OUT:
        module, _, test = name.partition("::")
        assert f"def {test}(" in texts[module] if test else module in texts, name
