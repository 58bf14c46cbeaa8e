"""unit_plugin: Celery's unit tests with every test app installed on streams (``-p celery_suite.unit_plugin``).

The app has a stream queue that no test uses, so every test must give what it gives on an app as it is: our code must
not be seen where it was not asked for. Without ``SUITE_INSTALL`` nothing is installed, which is the reference.
"""

from __future__ import annotations

import os
from typing import Any

import celery.contrib.testing.app as testing_app

from .installation import maybe_install
from .results import Results

os.environ.setdefault("SUITE_QUEUES", "queue-that-no-test-uses")

_StockTestApp = testing_app.TestApp


def _test_app(*args: Any, **kwargs: Any) -> Any:
    return maybe_install(_StockTestApp(*args, **kwargs))


if os.environ.get("SUITE_INSTALL"):
    testing_app.TestApp = _test_app

RESULTS = Results()
pytest_runtest_logreport = RESULTS.pytest_runtest_logreport
pytest_sessionfinish = RESULTS.pytest_sessionfinish
