"""The worker's app, ``-A celery_suite.worker_app:app``: what Celery's fixtures build in the test process, once more.

It mirrors ``celery.contrib.testing.app.TestApp`` with the settings of ``t/integration/conftest.py``, has the tasks of
``t/integration/tasks.py``, and tells the test process what happens here (see ``bridge``).
"""

from __future__ import annotations

import os

from celery import Celery

from .bridge import install_worker_side
from .installation import maybe_install

app = Celery("celery.tests")
app.add_defaults(
    {
        "broker_url": os.environ["TEST_BROKER"],
        "result_backend": os.environ["TEST_BACKEND"],
        "result_extended": True,
        "worker_hijack_root_logger": False,
        "worker_log_color": False,
        "accept_content": ["json"],
        "enable_utc": True,
        "timezone": "UTC",
        "broker_heartbeat": 0,
        "task_create_missing_queues": False,
    }
)
maybe_install(app)
app.set_current()
app.set_default()

import celery.contrib.testing.tasks  # noqa: E402, F401  (registers celery.ping)
import t.integration.tasks as integration_tasks  # noqa: E402

app.register_task(integration_tasks.ClassBasedAutoRetryTask())
install_worker_side()
