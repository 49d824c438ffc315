"""What Prometheus reads: counts and times of requests, and the state of the batchers."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from runtime.batcher.metrics import BatcherMetrics
from runtime.serve.models import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in a process do not share counts.

    requests: by model ('' where a request names none that is served) and status.
    seconds: by model and stage. decode: from bytes to the network's input, without the wait for a thread. queue: until
        the batch starts. inference: of the whole batch. whole: of a request, from its head to its answer.
    """

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("isodet_requests", "Answered requests.", ("model", "status"), registry=self.registry)
        self.seconds = Histogram(
            "isodet_stage_seconds", "Time of a stage of a request.", ("model", "stage"), registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.pictures = Counter("isodet_pictures", "Pictures with an answer.", ("model",), registry=self.registry)
        self.registry.register(_ModelCollector(models))
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _ModelCollector:
    """Asks the models and their batchers at each scrape. After a reload, the counts of a batcher begin at 0 again."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("isodet_queue_pictures", "Pictures that wait for a batch.", labels=["model"])
        running = GaugeMetricFamily("isodet_running_pictures", "Pictures in a batch that runs.", labels=["model"])
        sizes = HistogramMetricFamily("isodet_batch_size", "Pictures in a batch.", labels=["model"])
        info = GaugeMetricFamily("isodet_model_info", "1 for the graph that is served.", labels=["model", "graph"])
        reloads = GaugeMetricFamily("isodet_model_reloads", "Changed files that were loaded.", labels=["model"])
        failed = GaugeMetricFamily(
            "isodet_model_reload_failed", "1 where the file that is there now could not be loaded.", labels=["model"]
        )
        for name, model in self._models.items():
            batcher = model.current.batcher.metrics()
            waiting.add_metric([name], batcher.waiting)
            running.add_metric([name], batcher.running)
            sizes.add_metric([name], *_histogram(batcher))
            info.add_metric([name, model.current.graph], 1)
            reloads.add_metric([name], model.reloads)
            failed.add_metric([name], 1 if model.reload_error else 0)
        yield from (waiting, running, sizes, info, reloads, failed)


def _histogram(batcher: BatcherMetrics) -> tuple[list[tuple[str, float]], float]:
    """The sizes of batches as cumulative buckets, and the sum of the sizes."""
    sizes = batcher.batch_sizes
    buckets = [(f"{most:.1f}", float(sum(n for size, n in sizes.items() if size <= most))) for most in _BATCH_SIZES]
    return [*buckets, ("+Inf", float(sum(sizes.values())))], float(sum(size * n for size, n in sizes.items()))
