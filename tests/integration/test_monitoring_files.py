"""The Grafana dashboard, the alert rules, and the pages about metrics, alerts and scaling: they name what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery

from celery_streams.app import streams_of
from celery_streams.broker import StreamBroker
from celery_streams.lanes import HELD_REASONS
from celery_streams.message import Message
from celery_streams.monitoring.prometheus import StreamsCollector
from celery_streams.redis_errors import ERROR_KINDS
from celery_streams.worker.metrics import CHILD_EXITS, WorkerMetrics
from celery_streams.worker.metrics_server import MetricsServer
from celery_streams.worker.outcome import Event, Reason
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
PAGES = [DOCS / "metrics.md", DOCS / "alerts.md", DOCS / "scaling.md", ROOT / "MIGRATION.md", ROOT / "README.md"]
RULES = [
    rule for group in yaml.safe_load((DOCS / "monitoring/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((DOCS / "monitoring/grafana.json").read_text())

#: What names a metric, wherever it stands; modules of the package look alike.
NAME = re.compile(r"\bcelery_(?:streams_[a-z_]+|queue_length)\b")
#: Labels that Prometheus gives to whatever it scrapes.
OF_TARGET = {"job", "instance"}


class Crew:
    """Nobody: what a worker without children has to say."""

    def holders(self) -> list[Any]:
        return []

    def living(self) -> int:
        return 0

    def last_read(self) -> float:
        return 1.0


@pytest.fixture
def exported(redis_url: str, broker: StreamBroker) -> Iterator[dict[str, set[str]]]:
    """The samples that are exported, each with its labels: what a worker says, and what is said of a queue."""
    app = Celery("metrics", broker=redis_url, set_as_current=False)
    app.conf.streams_celery_queue_length = True
    broker.ensure_groups(["q"])
    broker.delay("q", Message(b"{}", b"{}", b""), due_ms=2_000_000_000_000, member="m")
    worker = WorkerMetrics(MetricsServer("127.0.0.1", 0), version="1")
    worker.start(Crew(), lambda: ["q"])  # type: ignore[arg-type]
    worker.own.ended("q", "t", Event.SUCCEEDED, 1.0)
    worker.own.started("q", "t", 1.0)
    found: dict[str, set[str]] = {}
    for collector in (worker, StreamsCollector(streams_of(app))):
        for family in collector.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    # Redis 6.2 does not count it.
    found.setdefault("celery_streams_queue_entries_added_total", {"queue"})
    yield found
    worker.close()
    streams_of(app).reload()
    app.close()


def expressions() -> Iterator[str]:
    """Yield every query of the rules and the dashboard."""
    for rule in RULES:
        yield rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for one in DASHBOARD["annotations"]["list"]:
        yield one["expr"]
    for one in DASHBOARD["templating"]["list"]:
        if one["type"] == "query":
            yield one["query"]["query"]


def test_every_metric_that_rules_dashboard_and_pages_name_is_exported(exported: dict[str, set[str]]) -> None:
    # On a page a histogram is named without what is behind the name of its samples.
    said = {name.removesuffix("_count") for name in exported if name.endswith("_count")}
    for query in expressions():
        for name in NAME.findall(query):
            assert name in exported, query
    for page in PAGES:
        for name in re.findall(r"`(celery_[a-z_]+)[`{]", page.read_text()):
            if NAME.fullmatch(name) and not (ROOT / "celery_streams" / name).exists():
                assert name in exported or name in said, (page, name)


def test_every_metric_that_is_exported_is_on_the_page_of_metrics(exported: dict[str, set[str]]) -> None:
    page = (DOCS / "metrics.md").read_text()

    for name in exported:
        plain = re.sub(r"_(bucket|sum|count)$", "", name)
        assert f"`{plain}`" in page or f"`{plain}{{" in page, name
    for value in (*Event, *Reason):
        if value is not Event.KEPT:
            assert f"`{value.value}`" in page
    for reason in (*CHILD_EXITS, *ERROR_KINDS, *HELD_REASONS):
        assert f"`{reason}`" in page


def test_queries_select_and_group_by_labels_that_there_are(exported: dict[str, set[str]]) -> None:
    for query in expressions():
        names = [name for name in NAME.findall(query) if name in exported]
        for name, selected in re.findall(r"(celery_[a-z_]+)\{([^}]*)\}", query):
            wanted = set(re.findall(r'([a-z_]+)(?:=~|!~|!=|=)"', selected))
            assert wanted <= exported[name] | OF_TARGET, query
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            labels = {label.strip() for label in grouped.split(",")}
            assert any(labels <= exported[name] | OF_TARGET for name in names), query
        assert query.count("(") == query.count(")")


def test_every_rule_has_a_section_that_says_what_to_do() -> None:
    sections = re.findall(r"^## (\w+)$", (DOCS / "alerts.md").read_text(), re.MULTILINE)

    assert [rule["alert"] for rule in RULES] == sections
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[0-9]+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        said = rule["annotations"]
        assert set(said) == {"summary", "description", "runbook_url"}
        page, _, anchor = said["runbook_url"].partition("#")
        assert page.endswith("/blob/main/docs/alerts.md")
        # As GitHub makes it of a heading of one word.
        assert anchor == rule["alert"].lower()


def test_texts_of_rules_name_labels_that_their_query_leaves(exported: dict[str, set[str]]) -> None:
    for rule in RULES:
        first = NAME.findall(rule["expr"])[0]
        outer = re.match(r"\(?(?:[a-z_]+\([0-9.]+, )?sum by \(([^)]*)\)", rule["expr"])
        left = exported[first] | OF_TARGET
        if outer is not None:
            left = {label.strip() for label in outer[1].split(",")} - {"le"}
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= left, rule["alert"]


def test_dashboard_can_be_imported_as_it_is() -> None:
    assert DASHBOARD["uid"] == "celery-streams"
    assert "id" not in DASHBOARD
    assert DASHBOARD["__inputs"] == []
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "job", "queue", "task"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_links_between_pages_lead_somewhere() -> None:
    for page in (DOCS / "metrics.md", DOCS / "alerts.md", DOCS / "scaling.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            if path.startswith("http"):
                continue
            found = (page.parent / path) if path else page
            assert found.exists(), (page, target)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", Path(found).read_text(), re.MULTILINE)
                assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, (page, target)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", (DOCS / "scaling.md").read_text(), re.DOTALL))
def test_examples_of_scaling_are_yaml_and_ask_what_there_is(exported: dict[str, set[str]], block: str) -> None:
    documents = list(yaml.safe_load_all(block))

    assert all(documents)
    for name in NAME.findall(block):
        assert name in exported, name
    for document in documents:
        if document.get("kind") == "ScaledObject":
            triggers = {one["type"]: one["metadata"] for one in document["spec"]["triggers"]}
            assert triggers["metrics-api"]["valueLocation"] == "queues.0.scale.backlog"
            assert triggers["prometheus"]["ignoreNullValues"] == "false"
            # With either of these KEDA asks for the lag, or for what is pending.
            assert not triggers["redis-streams"].keys() & {"consumerGroup", "lagCount"}
            assert all(isinstance(value, str) for one in triggers.values() for value in one.values())
