"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hyparflow.serving.requests.served_request import ServedRequest
from hyparflow.serving.server import Server

__all__ = ["HttpMetrics"]

_TO_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class HttpMetrics:
    """Counts what a server does. Nothing of it is shared with other servers of the process.

    Args:
        server: that makes completions.
    """

    def __init__(self, server: Server) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ServerCollector(server))
        self._to_first = Histogram(
            "hyparflow_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            registry=self._registry,
            buckets=_TO_FIRST,
        )
        self._per_token = Histogram(
            "hyparflow_time_per_token_seconds",
            "Between the tokens of a request, the mean of each request.",
            registry=self._registry,
            buckets=_PER_TOKEN,
        )

    def note(self, served: ServedRequest) -> None:
        """Count a request that is over."""
        times, count = served.times, served.num_tokens
        if times.first is None or times.last is None:
            return
        self._to_first.observe(times.first - times.submitted)
        if count > 1:
            self._per_token.observe((times.last - times.first) / (count - 1))

    def text(self) -> bytes:
        """All numbers, in the format of Prometheus."""
        return generate_latest(self._registry)


class _ServerCollector(Collector):
    """Asks a server for its numbers when they are wanted."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def describe(self) -> list[Metric]:
        return []  # so that registering asks for nothing

    def collect(self) -> Iterator[Metric]:
        found = self._server.stats()
        yield GaugeMetricFamily(
            "hyparflow_requests_running", "Completions that have a row.", found.running
        )
        yield GaugeMetricFamily(
            "hyparflow_requests_waiting", "Completions that wait for a row.", found.waiting
        )
        ended = CounterMetricFamily(
            "hyparflow_requests_ended", "Completions that have ended.", labels=["reason"]
        )
        for reason, count in found.ended.items():
            ended.add_metric([reason.name.lower()], count)
        yield ended
        yield CounterMetricFamily("hyparflow_tokens", "Tokens that were given out.", found.tokens)
        for name, words in _COUNTS.items():
            family = CounterMetricFamily(f"hyparflow_{name}", words, labels=["replica"])
            for replica, counts in enumerate(found.counts):
                family.add_metric([str(replica)], getattr(counts, name.removeprefix("rows_")))
            yield family
        sizes = GaugeMetricFamily(
            "hyparflow_bytes", "Of memory and messages, by kind.", labels=["kind"]
        )
        for kind, size in found.bytes.items():
            sizes.add_metric([kind], size)
        yield sizes


_COUNTS = {
    "windows": "Windows that ran.",
    "iterations": "Iterations that ran.",
    "rows_useful": "Rows that gave a token to a request.",
    "rows_issued": "Rows that were computed.",
    "rebuilds": "Copies of caches into others of another size.",
    "preemptions": "Requests that lost their rows for want of memory.",
}
