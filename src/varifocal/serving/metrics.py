"""What `/metrics` tells, in Prometheus's text form."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from varifocal.serving.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """Counts of requests, and the engines' own figures.

    Args:
        engines: whose figures are added up.

    Attributes:
        registry: for `generate_latest`.
        requests: by `status`.
        seconds: from a request's arrival to its last byte.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "varifocal_http_requests", "Chat requests by status", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "varifocal_request_seconds",
            "From a chat request's arrival to its last byte",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.registry.register(_EngineFigures(engines))


_GAUGES = {
    "running": "Requests that are being answered",
    "waiting": "Requests in the queue",
    "prefix_cache_bytes": "Keys and values kept for further turns",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts",
    "completion_tokens": "Tokens that were written",
    "cached_tokens": "Tokens of prompts that were not read again",
}


class _EngineFigures(Collector):
    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines

    def collect(self) -> Iterator[Metric]:
        stats = [engine.stats() for engine in self.engines]
        for kind, figures in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, text in figures.items():
                total = sum(getattr(each, name) for each in stats)
                yield kind(f"varifocal_{name}", text, value=total)
        outcomes = CounterMetricFamily(
            "varifocal_requests_finished", "Requests by how they ended", labels=["reason"]
        )
        ended: Counts[str] = Counts()
        for each in stats:
            ended.update(each.requests)
        for reason, count in ended.items():
            outcomes.add_metric([reason], count)
        yield outcomes
