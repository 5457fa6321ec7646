"""Traces: one for each event, from Stripe's request in the web process to the refund of a worker process, over a real collector."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.webhooks import snapshot_body
from tests.stripe_sender import WEBHOOK_SECRET, Sender
from tests.worker.merchant import Merchant, merchant
from tests.worker.test_failpoints import ROOT, at_rest, environment, stop_worker
from worker import tracing
from worker.db import Pool
from worker.run import free_port
from worker.settings import Settings

Span = dict[str, Any]


class Collector:
    """An OTLP/HTTP receiver: what came in, span by span."""

    def __init__(self) -> None:
        self.url, self.raw = "", b""
        self.spans: list[Span] = []

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        self.raw += body
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            of = {a.key: a.value.string_value for a in sent.resource.attributes}
            for scope in sent.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "service": of["service.name"],
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "name": span.name,
                            "took_ns": span.end_time_unix_nano - span.start_time_unix_nano,
                            "told": {a.key: a.value.string_value or a.value.int_value for a in span.attributes},
                            "failed": span.status.code == 2,
                        }
                    )
        return web.Response(body=b"", content_type="application/x-protobuf")

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span["name"] == name]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield collector
    await runner.cleanup()


@asynccontextmanager
async def processes(m: Merchant, otel: dict[str, str]) -> AsyncIterator[Sender]:
    """Web and worker as real processes; both end well, which sends what they have."""
    port = free_port()
    env = (
        environment(m)
        | otel
        | {"PORT": str(port), "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET, "FINALSALE_BIND": "127.0.0.1"}
    )
    started = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker.cli", name),
            cwd=ROOT,
            env=env,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        for name in ("web", "worker")
    ]
    try:
        async with aiohttp.ClientSession() as session:
            sender = Sender(port, session)
            async with asyncio.timeout(15):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        if (await sender.get("/readyz"))[0] == 200:
                            break
                    await asyncio.sleep(0.05)
            yield sender
    finally:
        for process in started:
            await stop_worker(process)


async def test_one_trace_leads_from_the_request_to_the_refund(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m, collecting() as collector:
        charge = m.charge_of(m.double_click()[1])
        async with processes(m, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as sender:
            events = m.news()
            for event in events:
                assert (await sender.deliver(snapshot_body(event)))[0] == 200
            await sender.deliver(snapshot_body(events[0]))  # Stripe sends one again
            await at_rest(m)
        roots = collector.named("deliver")
        assert len(roots) == len(events) == len({root["trace"] for root in roots})
        assert all(not root["parent"] and root["service"] == "finalsale-web" for root in roots)
        (again,) = collector.named("redeliver")
        assert again["parent"] in {root["id"] for root in roots}

        (refund,) = collector.named("perform refund")
        (root,) = (r for r in roots if r["trace"] == refund["trace"])
        trace = [span for span in collector.spans if span["trace"] == refund["trace"]]
        by_id = {span["id"]: span for span in trace}
        parents = {(span["name"], by_id[span["parent"]]["name"]) for span in trace if span["parent"]}
        assert {
            ("verify", "deliver"),
            ("commit", "deliver"),
            ("drain", "deliver"),
            ("judge", "drain"),
            ("commit", "drain"),
            ("perform refund", "deliver"),
            ("last look", "perform refund"),
            ("GET /v1/charges/{id}", "last look"),
            ("send", "perform refund"),
            ("POST /v1/refunds", "send"),
            ("commit", "perform refund"),
        } <= parents
        assert {span["service"] for span in trace} == {"finalsale-web", "finalsale-worker"}
        assert refund["told"]["finalsale.outcome"] == "sent"
        (drained,) = (s for s in trace if s["name"] == "drain")
        assert drained["told"]["finalsale.event_id"] == root["told"]["finalsale.event_id"]
        caused = {e["id"]: snapshot_body(e) for e in events}[root["told"]["finalsale.event_id"]]
        assert charge["customer"].encode() in caused
        assert len(collector.named("drain")) == len(events)
        assert all(span["took_ns"] >= 0 for span in collector.spans)
        for private in (b"example.com", b"user_id", b"card0", b"sk_test"):
            assert private not in collector.raw


async def test_a_failed_call_is_seen_in_the_trace_by_its_class_alone(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m, collecting() as collector:
        m.double_click()
        m.fault({"kind": "502_after", "path": "/v1/refunds", "method": "POST", "times": 1})
        async with processes(m, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as sender:
            for event in m.news():
                await sender.deliver(snapshot_body(event))
            await at_rest(m)
        sends = [span for span in collector.named("send") if span["failed"]]
        assert [span["told"]["error.type"] for span in sends] == ["OutcomeUnknown"]
        (call,) = collector.named("POST /v1/refunds")
        assert call["told"]["http.response.status_code"] == 502
        outcomes = [s["told"]["finalsale.outcome"] for s in collector.named("perform refund")]
        assert outcomes == ["in_doubt", "adopted"]


async def test_a_collector_that_is_away_keeps_no_process_from_working_or_ending(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m:
        m.double_click()
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
        async with processes(m, otel) as sender:
            for event in m.news():
                assert (await sender.deliver(snapshot_body(event)))[0] == 200
            await at_rest(m)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 12
        assert len(m.refunds) == 1


async def test_sampled_out_traces_are_sampled_out_everywhere(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m, collecting() as collector:
        for number in range(4):
            m.double_click(f"u{number}")
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
        async with processes(m, otel | {"OTEL_TRACES_SAMPLER_ARG": "0.5"}) as sender:
            events = m.news()
            for event in events:
                await sender.deliver(snapshot_body(event))
            await at_rest(m)
        delivered = {span["trace"] for span in collector.named("deliver")}
        assert 0 < len(delivered) < len(events)
        assert {span["trace"] for span in collector.named("drain")} == delivered


def test_while_tracing_is_off_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys, worker.web, worker.jobs, worker.tracing as t; t.start('web'); "
        "assert t.spans is None; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    clean = {"PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=clean, check=False).returncode == 0


def test_without_the_extra_a_named_collector_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    tracing.start("web")
    assert tracing.spans is None
    assert "finalsale[tracing]" in capsys.readouterr().out


def test_a_setting_of_the_collector_that_is_wrong_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name, value in (("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"), ("OTEL_BSP_MAX_QUEUE_SIZE", "100")):
        with monkeypatch.context() as wrong:
            wrong.setenv(name, value)
            tracing.start("worker")
        assert tracing.spans is None
        assert "tracing.failed" in capsys.readouterr().out


def test_an_events_trace_is_the_same_wherever_it_is_asked_for() -> None:
    assert tracing.trace_of("test", "evt_1") == tracing.trace_of("test", "evt_1")
    assert len({tracing.trace_of(realm, name) for realm in ("test", "live") for name in ("evt_1", "evt_2")}) == 4
