"""The OpenTelemetry instrumentation for Celery and the Sentry SDK, as they are, around tasks on streams."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.processes import ROOT

ACT = "tests.proj.actions.act"


def publish(project, module, *arguments):
    """Run a publisher and return what it prints last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=project.environment(enabled=True),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_opentelemetry_sees_one_trace_from_the_publisher_to_every_task(project, app, worker, tmp_path, monkeypatch):
    path = tmp_path / "spans.jsonl"
    monkeypatch.setenv("PROJECT_SPANS", str(path))
    one = worker(imports=["tests.proj.traced"], concurrency=1)

    ids = json.loads(publish(project, "tests.proj.traced"))
    for name, starts in (("ok", 1), ("error", 1), ("nested", 1), ("retry", 2), ("delayed", 1)):
        project.starts(ids[name], starts)
    nested = app.AsyncResult(ids["nested"]).get(timeout=10)
    app.AsyncResult(nested).get(timeout=10)
    app.AsyncResult(ids["delayed"]).get(timeout=10)
    app.AsyncResult(ids["retry"]).get(timeout=10)
    one.stop()

    spans = [json.loads(line) for line in path.read_text().splitlines()]
    published = {
        span["context"]["span_id"]: span
        for span in spans
        if span["name"] == f"apply_async/{ACT}" and span["kind"] == "SpanKind.PRODUCER"
    }
    ran = {}
    for span in spans:
        if span["name"] == f"run/{ACT}" and span["kind"] == "SpanKind.CONSUMER":
            ran.setdefault(span["attributes"]["messaging.message.id"], []).append(span)
    (request,) = [span for span in spans if span["name"] == "request"]
    assert {span["context"]["trace_id"] for span in spans} == {request["context"]["trace_id"]}
    assert set(ran) == {*ids.values(), nested}
    for task_id, executions in ran.items():
        for execution in executions:
            parent = published[execution["parent_id"]]
            assert parent["attributes"]["messaging.message.id"] == task_id
    for name in ("ok", "error", "nested", "delayed"):
        (execution,) = ran[ids[name]]
        assert published[execution["parent_id"]]["parent_id"] == request["context"]["span_id"]
    first, again = ran[ids["retry"]]
    assert published[again["parent_id"]]["parent_id"] == first["context"]["span_id"]
    (inner,) = ran[nested]
    assert published[inner["parent_id"]]["parent_id"] == ran[ids["nested"]][0]["context"]["span_id"]
    (failed,) = ran[ids["error"]]
    assert failed["status"]["status_code"] == "ERROR"
    assert failed["events"][0]["attributes"]["exception.message"] == "boom"
    assert ran[ids["ok"]][0]["attributes"]["celery.state"] == "SUCCESS"


class Sentry:
    """The part of a Sentry server that takes envelopes, a little slowly."""

    #: Seconds that it takes for an envelope.
    pace = 0.05

    def __init__(self) -> None:
        #: Items of envelopes: their type and what they hold.
        self.items: list[tuple[str, dict[str, Any]]] = []
        sentry = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sentry.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def dsn(self) -> str:
        return f"http://public@127.0.0.1:{self.server.server_port}/1"

    def take(self, body: bytes) -> None:
        """Note the items of an envelope: lines of headers, each with a payload of the length that it says."""
        # What a server far away takes, so that envelopes are still on their way when a worker ends.
        time.sleep(self.pace)
        _, _, rest = body.partition(b"\n")
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            length = header.get("length", rest.find(b"\n") if b"\n" in rest else len(rest))
            if header["type"] in ("event", "transaction"):
                self.items.append((header["type"], json.loads(rest[:length])))
            rest = rest[length:].removeprefix(b"\n")

    def of(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Return the events or transactions of one transaction's name."""
        return [item for found, item in list(self.items) if found == kind and item.get("transaction") == name]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sentry]:
    """A local Sentry that every process of the project reports to."""
    made = Sentry()
    monkeypatch.setenv("SENTRY_DSN", made.dsn)
    yield made
    made.close()


def test_sentry_gets_errors_and_linked_transactions_also_of_a_child_that_ends(project, app, worker, sentry):
    count = 12
    one = worker(imports=["tests.proj.reported"], concurrency=1)

    trace_id = publish(project, "tests.proj.reported", str(count))
    eventually(lambda: len(project.ledger.runs()) == count + 1)
    one.signal(signal.SIGTERM)
    code = one.wait()

    errors, transactions = sentry.of("event", ACT), sentry.of("transaction", ACT)
    (request,) = sentry.of("transaction", "request")
    assert code == 0
    assert sorted(error["exception"]["values"][-1]["value"] for error in errors) == sorted(map(str, range(count)))
    assert {error["exception"]["values"][-1]["type"] for error in errors} == {"ActionError"}
    assert {error["extra"]["celery-job"]["task_name"] for error in errors} == {ACT}
    assert {error["contexts"]["trace"]["trace_id"] for error in errors} == {trace_id}
    assert len(transactions) == count + 1
    assert {one["contexts"]["trace"]["trace_id"] for one in transactions} == {trace_id}
    assert {one["contexts"]["trace"]["op"] for one in transactions} == {"queue.task.celery"}
    assert sorted({one["contexts"]["trace"]["status"] for one in transactions}) == ["internal_error", "ok"]
    published = [span for span in request["spans"] if span["op"] == "queue.publish"]
    assert len(published) == count + 1
    assert {span["data"]["messaging.destination.name"] for span in published} == {"celery"}
    # Whatever it is called: a dead letter must not be a second event of the same failure.
    assert len([kind for kind, _ in sentry.items if kind == "event"]) == count
