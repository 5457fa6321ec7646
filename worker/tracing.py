"""Traces over OpenTelemetry, where the extra `tracing` is installed and OTEL_EXPORTER_OTLP_ENDPOINT names a collector.

Every process finds an event's trace by itself: its id, and that of its root span, are a hash of the realm and the event's id, so
nothing has to be carried from the request through the inbox to the refund.

    deliver (web)                   verify, commit
     ├── drain (worker)             judge, commit
     └── perform refund (worker)    last look, send, commit; in them each call to Stripe

An action that no event made (a time that came, a person, the nightly run) has a trace of its own. Spans carry ids, outcomes and
durations: never names, addresses, payloads or an exception's words. While tracing is off nothing of OpenTelemetry is imported,
and `spans` is None: one `if` where a span would be.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from worker.errors import FinalsaleError
from worker.log import get_logger

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
REMEMBERED = 10_000
"""Events whose root span this process made: Stripe's redelivery of one is a child, not a second root."""
STOP_WITHIN_S = 3.0

log = get_logger()

spans: Spans | None = None
"""None while tracing is off."""
_NOTHING: AbstractContextManager[None] = nullcontext()


def trace_of(realm: str, name: str) -> tuple[int, int]:
    """Trace id and root span id of an event (or of an action that no event made)."""
    digest = hashlib.sha256(f"{realm} {name}".encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def start(process: str) -> None:
    """Trace from now on, if a collector is named; `process` is `web` or `worker`. Goes on without where that cannot be begun."""
    global spans
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        spans = Spans(process, OTLPSpanExporter())
    except ImportError:
        log.warning("tracing.missing", install="finalsale[tracing]")
        return
    except Exception as error:  # any OTEL_* setting may be wrong in any way, and money does not wait for traces
        # not its words: headers of a collector are a password
        log.error("tracing.failed", error=type(error).__name__, see="the OTEL_* settings; nothing is traced")
        return
    log.info("tracing.started")


async def stop() -> None:
    """Send what is left, for STOP_WITHIN_S at most: a collector that is away keeps no process from ending."""
    global spans
    if spans is None:
        return
    loop, ended, ending = asyncio.get_running_loop(), asyncio.Event(), spans
    spans = None

    def end() -> None:
        ending.shutdown()
        with suppress(RuntimeError):  # the loop did not wait so long
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=end, daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_WITHIN_S):
            await ended.wait()


def child(name: str) -> AbstractContextManager[Any]:
    """A span below the one under way; nothing while tracing is off."""
    return _NOTHING if spans is None else spans.child(name)


class Spans:
    """The spans of this process."""

    def __init__(self, process: str, exporter: SpanExporter) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import Decision

        class Ids(RandomIdGenerator):
            """Random, unless the next span's were given."""

            given: tuple[int, int] | None = None

            def generate_trace_id(self) -> int:
                return self.given[0] if self.given else super().generate_trace_id()

            def generate_span_id(self) -> int:
                return self.given[1] if self.given else super().generate_span_id()

        self._api = trace
        self._ids, self._sampled = Ids(), Decision.RECORD_AND_SAMPLE
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": f"finalsale-{process}"}
        self._provider = TracerProvider(resource=Resource.create(named), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("finalsale")
        self._roots: dict[tuple[int, int], None] = {}

    def shutdown(self) -> None:
        """Send what is left and end; blocks."""
        self._provider.shutdown()

    def delivered(
        self, realm: str, event_id: str, event_type: str, outcome: str, began_ns: int, verified_ns: int
    ) -> None:
        """An event's delivery, just answered: its root span, or below it where Stripe delivered it before."""
        ids, told = trace_of(realm, event_id), {"finalsale.realm": realm, "finalsale.event_id": event_id}
        attributes = told | {"finalsale.event_type": event_type, "finalsale.outcome": outcome}
        if ids in self._roots:
            span = self._tracer.start_span("redeliver", self._below(ids), start_time=began_ns, attributes=attributes)
        else:
            self._roots[ids] = None
            if len(self._roots) > REMEMBERED:
                del self._roots[next(iter(self._roots))]
            span = self._root("deliver", ids, began_ns, attributes)
        inside, ended_ns = self._api.set_span_in_context(span), time.time_ns()
        self._tracer.start_span("verify", inside, start_time=began_ns).end(verified_ns)
        self._tracer.start_span("commit", inside, start_time=verified_ns).end(ended_ns)
        span.end(ended_ns)

    def drained(self, events: Sequence[tuple[str, str, str]], began_ns: int, claimed_ns: int, judged_ns: int) -> None:
        """A batch just committed, as (realm, event id, outcome): of each event its own span, with the batch's times."""
        ended_ns = time.time_ns()
        for realm, event_id, outcome in events:
            told: dict[str, str | int] = {"finalsale.event_id": event_id, "finalsale.outcome": outcome}
            told["finalsale.batch"] = len(events)
            below = self._below(trace_of(realm, event_id))
            span = self._tracer.start_span("drain", below, start_time=began_ns, attributes=told)
            inside = self._api.set_span_in_context(span)
            self._tracer.start_span("judge", inside, start_time=claimed_ns).end(judged_ns)
            self._tracer.start_span("commit", inside, start_time=judged_ns).end(ended_ns)
            span.end(ended_ns)

    @contextmanager
    def step(self, realm: str, event_id: str | None, action: str, kind: str) -> Iterator[Span]:
        """A step of an action: below the event that made it, or in a trace of the action's own."""
        below = self._below(trace_of(realm, event_id or action))
        told = {"finalsale.realm": realm, "finalsale.action_id": action, "finalsale.kind": kind}
        with self._current(f"perform {kind}", below, told) as span:
            yield span

    def child(self, name: str) -> AbstractContextManager[Span]:
        """A span below the one under way."""
        return self._current(name, None, {})

    def call(self, method: str, endpoint: str, status: int | None, began_ns: int) -> None:
        """A call to Stripe that has just ended, if it belongs to a span: a nightly scan is no trace of ten thousand calls."""
        if self._api.get_current_span().is_recording():
            told: dict[str, str | int] = {"http.request.method": method, "url.template": endpoint}
            if status is not None:
                told["http.response.status_code"] = status
            kind = self._api.SpanKind.CLIENT
            self._tracer.start_span(f"{method} {endpoint}", kind=kind, start_time=began_ns, attributes=told).end()

    @contextmanager
    def _current(self, name: str, below: Context | None, attributes: dict[str, str]) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, below, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)  # its words may quote what is nobody's business
                if isinstance(error, FinalsaleError):
                    span.set_status(self._api.StatusCode.ERROR)
                raise

    def _root(self, name: str, ids: tuple[int, int], began_ns: int, attributes: dict[str, str]) -> Span:
        from opentelemetry.context import Context

        self._ids.given = ids
        try:  # nothing is awaited in between: the ids are for no other span
            return self._tracer.start_span(name, Context(), start_time=began_ns, attributes=attributes)
        finally:
            self._ids.given = None

    def _below(self, ids: tuple[int, int]) -> Context:
        """As a child of a root span that another process may have made; sampled as that one was, which the trace id decides."""
        from opentelemetry.context import Context

        sampled = self._provider.sampler.should_sample(Context(), ids[0], "deliver").decision is self._sampled
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED if sampled else self._api.TraceFlags.DEFAULT)
        root = self._api.SpanContext(ids[0], ids[1], is_remote=True, trace_flags=flags)
        return self._api.set_span_in_context(self._api.NonRecordingSpan(root), Context())
