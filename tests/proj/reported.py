"""The sample project with Sentry, set up as its documentation tells Celery's users; ``SENTRY_DSN`` names the server.

A worker gets this module with the setting ``imports``; as a program it is a publisher: ``python -m tests.proj.reported
COUNT`` publishes one task that succeeds and COUNT that fail, inside one transaction, and prints its trace id.
"""

from __future__ import annotations

import sys

import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration

sentry_sdk.init(integrations=[CeleryIntegration()], traces_sample_rate=1.0, shutdown_timeout=10)


def main(count: int) -> None:
    from .actions import act
    from .celery import app

    app.set_default()
    with sentry_sdk.start_transaction(name="request", op="http.server") as transaction:
        act.delay("ok", 1)
        for number in range(count):
            act.delay("error", number)
    sentry_sdk.flush()
    print(transaction.trace_id)


if __name__ == "__main__":
    main(int(sys.argv[1]))
