"""What `/metrics` tells, in Prometheus's text form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from varifocal.serving.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """Counts of requests, and the engine's own figures.

    Args:
        engine: whose figures are told.

    Attributes:
        registry: for `generate_latest`.
        requests: by `status`.
        seconds: from a request's arrival to its last byte.
    """

    def __init__(self, engine: Engine) -> None:
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
        self.registry.register(_EngineFigures(engine))


class _EngineFigures(Collector):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self.engine.stats()
        for name, text, value in (
            ("running", "Requests that are being answered", stats.running),
            ("waiting", "Requests in the queue", stats.waiting),
            (
                "prefix_cache_bytes",
                "Keys and values kept for further turns",
                stats.prefix_cache_bytes,
            ),
        ):
            yield GaugeMetricFamily(f"varifocal_{name}", text, value=value)
        for name, text, value in (
            ("prompt_tokens", "Tokens of prompts", stats.prompt_tokens),
            ("completion_tokens", "Tokens that were written", stats.completion_tokens),
            ("cached_tokens", "Tokens of prompts that were not read again", stats.cached_tokens),
        ):
            yield CounterMetricFamily(f"varifocal_{name}", text, value=value)
        outcomes = CounterMetricFamily(
            "varifocal_requests_finished", "Requests by how they ended", labels=["reason"]
        )
        for reason, count in stats.requests.items():
            outcomes.add_metric([reason], count)
        yield outcomes
