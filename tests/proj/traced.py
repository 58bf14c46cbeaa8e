"""The sample project under OpenTelemetry, set up as its documentation tells Celery's users.

Finished spans are appended to the file that ``PROJECT_SPANS`` names, a JSON line each. A worker gets this module with
the setting ``imports``; as a program it is a publisher: ``python -m tests.proj.traced`` publishes inside one span and
prints the ids of its tasks.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter


def instrument() -> TracerProvider:
    """Trace this process."""
    provider = TracerProvider()
    out = open(os.environ["PROJECT_SPANS"], "a", encoding="utf-8")  # noqa: SIM115  (open as long as the process)
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()
    return provider


@worker_process_init.connect(weak=False)
def begin(**_: Any) -> None:
    provider = instrument()
    # Spans wait in the child; what is not written when it ends is lost.
    worker_process_shutdown.connect(lambda **_: provider.shutdown(), weak=False)


def main() -> None:
    from .actions import act
    from .celery import app

    app.set_default()
    provider = instrument()
    with trace.get_tracer("tests.proj").start_as_current_span("request"):
        results = {
            "ok": act.delay("ok", 1),
            "error": act.delay("error", "boom"),
            "nested": act.delay("publish", "from inside"),
            "retry": act.delay("retry", until=1, countdown=0),
            "delayed": act.apply_async(("ok", "later"), countdown=0.2),
        }
    provider.shutdown()
    print(json.dumps({name: result.id for name, result in results.items()}))


if __name__ == "__main__":
    main()
