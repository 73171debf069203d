"""What a server process measures: its requests, what it refused, its polls, the room it sees."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Histogram

from cyclora_core.metrics import Instruments, Reading, TenantLabels
from cyclora_core.records import Submission, SubmitOutcome
from cyclora_server.capacity import Capacity, Resource
from cyclora_server.futures import FuturesHub

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What else a client may call its method is any text at all."""

_NO_ROUTE = "none"


class ServerMetrics:
    """The instruments of one server process."""

    def __init__(self, max_tenants: int) -> None:
        self.instruments = made = Instruments("server")
        self._tenants = TenantLabels(max_tenants)
        self._requests = made.counter(
            "requests", "Requests that were answered.", "route", "method", "status"
        )
        self._request_s = made.histogram(
            "request_seconds",
            "Seconds from a request's head to the end of its answer; polls are held.",
            "route",
            "method",
        )
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self.num_in_flight = 0
        """Requests that are being answered; a plain number, since it changes twice for each."""
        self._in_bytes = made.counter("request_bytes", "Bytes of request bodies, as received.")
        self._out_bytes = made.counter("response_bytes", "Bytes of answers' bodies, as sent.")
        self._refused = made.counter(
            "refused_requests", "Requests that were answered with an error, by its kind.", "reason"
        )
        self._tenant_refused = made.counter(
            "tenant_refused_requests",
            "The same of requests whose tenant is known, by tenant.",
            "tenant_id",
            "reason",
        )
        self._submitted = made.counter(
            "submitted_operations", "Operations handed to the store, by what it said.", "kind",
            "outcome",
        )  # fmt: skip
        self._submit_s = made.histogram(
            "submit_seconds", "Seconds that the store took to record an operation.", "kind"
        )
        self._wake_s = made.histogram(
            "poll_wake_seconds",
            "Seconds from the news that a future is final to its result being at hand for the poll "
            "that waited.",
        )
        self.num_connections: Callable[[], int] = lambda: 0
        """Whoever listens for clients puts in how to ask for it."""
        self._hub: FuturesHub | None = None
        self._capacity: Capacity | None = None
        made.read_gauge(
            "requests_in_flight", "Requests that are being answered.", lambda: self.num_in_flight
        )
        made.read_gauge(
            "open_connections", "Connections of clients.", lambda: self.num_connections()
        )
        made.read_gauge("held_polls", "Polls that wait for a future.", self._num_polls)
        made.read_gauge(
            "store_memory_bytes",
            "The store's memory: used, and its limit.",
            self._store_bytes,
            "state",
        )
        made.read_gauge(
            "storage_free_bytes", "Free bytes on the disk of checkpoints.", self._free_disk_bytes
        )
        made.read_gauge(
            "shortage",
            "1 for what is so low that new work is refused.",
            self._shortages,
            "resource",
        )

    def answered(
        self, route: str | None, method: str, status: int, duration_s: float, sizes: tuple[int, int]
    ) -> None:
        """Count a request that has ended.

        Args:
            route: its template: paths hold ids, of which there is no end.
            method: any text that a client sent.
            status: 0 when the client left before an answer.
            duration_s: seconds from its head to the end of the answer.
            sizes: bytes of the bodies received and sent.
        """
        labels = (
            route or _NO_ROUTE,
            method if method in METHODS else "other",
            str(status) if status else "none",
        )
        children = self._children.get(labels)
        if children is None:
            children = self._requests.labels(*labels), self._request_s.labels(*labels[:2])
            self._children[labels] = children
        children[0].inc()
        children[1].observe(duration_s)
        self._in_bytes.inc(sizes[0])
        self._out_bytes.inc(sizes[1])

    def refused(self, reason: str, tenant_id: str | None) -> None:
        """Count a request that was answered with an error."""
        self._refused.labels(reason).inc()
        if tenant_id is not None:
            self._tenant_refused.labels(self._tenants.of(tenant_id), reason).inc()

    def submitted(self, submission: Submission, outcome: SubmitOutcome, duration_s: float) -> None:
        """Count an operation that the store has answered for."""
        is_refused = submission.error is not None and outcome is SubmitOutcome.ACCEPTED
        label = "failed_at_once" if is_refused else outcome.value
        self._submitted.labels(submission.kind, label).inc()
        self._submit_s.labels(submission.kind).observe(duration_s)

    def woken(self, duration_s: float) -> None:
        """Note how long a poll took to get a result that was announced."""
        self._wake_s.observe(duration_s)

    def watch(self, hub: FuturesHub, capacity: Capacity) -> None:
        """Have polls and room be read from those who know them."""
        self._hub, self._capacity = hub, capacity

    def _num_polls(self) -> Reading:
        return self._hub.num_waiting if self._hub else 0

    def _store_bytes(self) -> Reading:
        memory = self._capacity.memory if self._capacity else None
        return {"used": memory.used_bytes, "limit": memory.limit_bytes} if memory else {}

    def _free_disk_bytes(self) -> Reading:
        return self._capacity.free_disk_bytes if self._capacity else 0

    def _shortages(self) -> Reading:
        low = self._capacity.shortage if self._capacity else None
        return {
            each.name.lower(): float(low is not None and low.resource is each) for each in Resource
        }
