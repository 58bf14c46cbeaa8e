"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """What one look at a port said: samples by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Return one sample; None when there is none."""
        return self.samples.get((name, frozenset(labels.items())))

    def having(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield the samples that have these labels among theirs."""
        for (found, pairs), value in self.samples.items():
            if found == name and labels.items() <= dict(pairs).items():
                yield dict(pairs), value

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels among theirs."""
        return sum(value for _, value in self.having(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return what is not zero of a metric, by one of its labels."""
        found: dict[str, float] = {}
        for pairs, value in self.having(name, **labels):
            if value:
                found[pairs[label]] = found.get(pairs[label], 0.0) + value
        return found


def metrics_url(worker: Any) -> str:
    """Return where a worker of ``--metrics-port 0`` serves its metrics, as its log says."""
    found = re.search(r"Metrics are at (http://\S+)", worker.log)
    assert found, worker.log
    return found[1]


def scrape(worker: Any) -> Scrape:
    """Read the metrics of a worker."""
    with urllib.request.urlopen(metrics_url(worker), timeout=10) as reply:
        return Scrape(reply.read().decode())
