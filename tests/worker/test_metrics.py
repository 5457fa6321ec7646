"""`/metrics`: the same shared numbers from every web process, through restarts and deaths; gauges of the books that never wait for them."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from sandbox.webhooks import snapshot_body
from tests.conftest import eventually
from tests.stripe_sender import Sender, event
from tests.worker.merchant import merchant, store
from tests.worker.test_failpoints import at_rest, start_worker, stop_worker
from worker import gauges, metrics
from worker.db import Pool, connection, queries
from worker.db.migrations import migrate
from worker.embedded import embedded_servers
from worker.gauges import LOOKS, Exporter
from worker.metrics import FAMILIES, counts, endpoint_of, flush, totals
from worker.settings import Settings
from worker.web import Listening, listening

Samples = dict[str, float]


@pytest.fixture(autouse=True)
def counted_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process counted too; and nobody waits for the next look."""
    counts.take()
    monkeypatch.setattr(gauges, "LOOK_S", 0.05)


def samples_of(text: str) -> Samples:
    """Samples as `name{label=value}`."""
    return {
        sample.name + str(sorted(sample.labels.items()) or ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(port: int) -> Samples:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        assert answer.status == 200
        return samples_of(await answer.text())


async def scraped_until(port: int, name: str, value: float, within_s: float = 10) -> Samples:
    """A scrape in which a series has this value."""
    async with asyncio.timeout(within_s):
        while (seen := await scraped(port)).get(name) != value:
            await asyncio.sleep(0.02)
    return seen


COMMITTED = "finalsale_deliveries_total[('outcome', 'committed')]"


async def test_every_web_process_shows_what_all_of_them_counted(settings: Settings) -> None:
    async with listening(settings) as one, listening(settings) as two, aiohttp.ClientSession() as session:
        await eventually(lambda: one.watch.ready() and two.watch.ready())
        for number, port in enumerate((one.port, one.port, two.port)):
            assert (await Sender(port, session).deliver(event(f"evt_{number}")))[0] == 200
        assert (await Sender(two.port, session).deliver(event(), header=""))[0] == 400
        first = await scraped_until(one.port, COMMITTED, 3)
        second = await scraped_until(two.port, COMMITTED, 3)
        refused = "finalsale_deliveries_total[('outcome', 'signature_missing')]"
        assert await scraped_until(one.port, refused, 1)
        assert first["finalsale_intake_answers_total[('outcome', 'committed')]"] == 2, "a process's own"
        assert second["finalsale_intake_answers_total[('outcome', 'committed')]"] == 1
        assert first["finalsale_intake_commits_total[('result', 'new_rows')]"] == 3
        buckets = [v for k, v in first.items() if k.startswith("finalsale_intake_commit_rows_bucket")]
        assert buckets == sorted(buckets), "buckets are cumulative"
        commits = first["finalsale_intake_commits_total[('result', 'done')]"]
        assert first["finalsale_intake_commit_rows_count"] == buckets[-1] == commits
        assert first["finalsale_intake_commit_rows_sum"] == 3


async def test_counts_go_on_over_a_restart_and_nothing_is_lost_by_an_orderly_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "LOOK_S", 30.0)  # only the end flushes
    for number in range(2):
        async with listening(settings) as web, aiohttp.ClientSession() as session:
            await eventually(web.watch.ready)
            await Sender(web.port, session).deliver(event(f"evt_{number}"))
    monkeypatch.setattr(gauges, "LOOK_S", 0.05)
    async with listening(settings) as web:
        await scraped_until(web.port, COMMITTED, 2)


async def test_what_workers_do_is_seen_at_the_web_process(settings: Settings, pool: Pool) -> None:
    """A worker has no port: a refund from its event to Stripe is counted there and shown here."""
    async with merchant(settings, pool) as m, listening(settings) as web:
        m.double_click()
        await store(pool, *(snapshot_body(e) for e in m.news()))
        worker = await start_worker(m)
        await at_rest(m)
        await stop_worker(worker)
        sent = "finalsale_perform_steps_total[('kind', 'refund'), ('outcome', 'sent')]"
        seen = await scraped_until(web.port, sent, 1)
        posts = "finalsale_stripe_calls_total[('endpoint', '/v1/refunds'), ('method', 'POST'), ('status', '200')]"
        assert seen[posts] == 1
        looked = "finalsale_stripe_calls_total[('endpoint', '/v1/charges/{id}'), ('method', 'GET'), ('status', '200')]"
        assert seen[looked] >= 2
        done = await pool.fetchval("select count(*) from inbox where state = 'done'")
        assert seen["finalsale_drain_events_total[('outcome', 'done')]"] == done
        assert seen["finalsale_perform_seconds_count[('kind', 'refund')]"] >= 1
        assert seen["finalsale_judged_total[('what', 'decisions')]"] >= 1
        assert seen["finalsale_stripe_budget_turns_total[('use', 'read')]"] >= 4


async def test_many_flush_at_once_and_every_count_arrives(pool: Pool) -> None:
    async def one(n: int) -> None:
        for _ in range(20):
            series = {("finalsale_rings", (f"r{(n + k) % 7}",)): 1.0 for k in range(7)}
            counts.put_back(series)
            async with connection(pool) as conn:
                await flush(conn)

    await asyncio.gather(*(one(n) for n in range(8)))
    async with connection(pool) as conn:
        await flush(conn)
        sums = await totals(conn)
    assert sums["finalsale_rings"] == {(f"r{k}",): 160.0 for k in range(7)}


async def test_what_could_not_be_flushed_is_flushed_the_next_time(pool: Pool) -> None:
    counts.add("finalsale_rings", "sent", by=3)
    async with connection(pool) as conn:
        await conn.execute("alter table metric_totals rename to elsewhere")
        with pytest.raises(Exception, match="metric_totals"):
            await flush(conn)
        await conn.execute("alter table elsewhere rename to metric_totals")
        counts.add("finalsale_rings", "sent")
        await flush(conn)
        assert (await totals(conn))["finalsale_rings"] == {("sent",): 4.0}


def test_series_are_bounded_however_many_ids_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 5)
    for number in range(100):
        counts.add("finalsale_rings", f"r{number}")
    assert len(counts.take()) == 5


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/charges/ch_1", "/v1/charges/{id}"),
        ("/v1/customers/cus_1/balance_transactions", "/v1/customers/{id}/balance_transactions"),
        ("/v1/customers/merchant%2Fown/balance_transactions", "/v1/customers/{id}/balance_transactions"),
        ("/v1/checkout/sessions/cs_1/line_items", "/v1/checkout/sessions/{id}/line_items"),
        ("/v1/refunds", "/v1/refunds"),
        ("/v1/a/b/c/d/e/f/g", "/v1/{id}"),
        ("/v2/core/events/evt_1?x=1", "/v2/core/events/{id}"),
    ],
)
def test_ids_are_no_part_of_an_endpoint(path: str, endpoint: str) -> None:
    assert endpoint_of(path) == endpoint


def test_histograms_of_an_earlier_release_with_other_edges_stay_cumulative() -> None:
    sums = {
        "finalsale_drain_seconds_bucket": {("0.01",): 2.0, ("0.02",): 1.0, ("+Inf",): 1.0},
        "finalsale_drain_seconds_sum": {(): 9.0},
    }
    (family,) = (f for f in metrics.shared(sums) if f.name == "finalsale_drain_seconds")
    below = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert (below["0.01"], below["0.02"], below["0.025"], below["+Inf"]) == (2, 3, 3, 4)


async def test_gauges_tell_what_the_books_hold(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool, refunds="review") as m:
        charge = m.charge_of(m.double_click()[1])
        await m.hear()
        await m.pool.execute("update actions set created_at = now() - interval '5 hours'")
        async with listening(settings) as web:
            await eventually(web.watch.ready)
            await store(pool, event("evt_waits"))
            await pool.execute("update inbox set received_at = now() - interval '90 s' where event_id = 'evt_waits'")
            await pool.execute(
                "update inbox set state = 'dead' where event_id = (select max(event_id) from inbox where state = 'done')"
            )
            await pool.execute(
                """insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
                   values ('test', 'c', 'intake_silent', 'critical', '', '', 'x')"""
            )
            seen = await scraped_until(web.port, "finalsale_reviews_waiting[('age', '4h-24h')]", 1)
            risk = "finalsale_refunds_at_risk_minor_units[('currency', 'usd'), ('state', 'proposed')]"
            assert seen[risk] == charge["amount"]
            await asyncio.sleep(0.2)
        assert seen["finalsale_reviews_waiting[('age', '<1h')]"] == 0
        assert 5 * 3600 <= seen["finalsale_review_oldest_age_seconds"] < 5 * 3600 + 60
        assert seen["finalsale_workers[('doorbell', 'rung')]"] == 0
        assert seen["finalsale_refunds_paused"] == 0
        exporter = Exporter(settings, [], lambda: True)
        await exporter.look()
        late = {s.name + str(sorted(s.labels.items()) or ""): s.value for f in exporter.collect() for s in f.samples}
        exporter._drop()
        assert 90 <= late["finalsale_inbox_oldest_age_seconds"] < 120
        assert late["finalsale_inbox_troubled_events[('state', 'dead')]"] == 1
        assert late["finalsale_alerts_open[('kind', 'intake_silent'), ('severity', 'critical')]"] == 1


async def test_money_given_back_and_open_disputes_are_seen(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m:
        sub = m.buy(m.customer())
        second = m.double_click("u2")[1]
        m.books.open_dispute(m.charge_of(sub))
        await m.to_the_end()
        exporter = Exporter(settings, [], lambda: True)
        await exporter.look()
        seen = {s.name + str(sorted(s.labels.items()) or ""): s.value for f in exporter.collect() for s in f.samples}
        exporter._drop()
        assert seen["finalsale_refunded_minor_units[('currency', 'usd')]"] == m.charge_of(second)["amount"]
        assert seen["finalsale_disputes_open"] == 1
        assert 0 < seen["finalsale_dispute_deadline_seconds"] < 60 * 86400
        assert sum(seen[f"finalsale_customers[('standing', '{s}')]"] for s in ("good", "flagged", "suspended")) >= 2


async def test_while_postgres_is_away_the_last_numbers_are_served_at_once_with_their_age(
    tmp_path: Path, settings: Settings
) -> None:
    async with embedded_servers(tmp_path / "own", valkey=False) as servers:
        await migrate(servers.database_url)
        async with listening(settings.with_servers(servers.database_url, None)) as web, aiohttp.ClientSession() as s:
            await eventually(web.watch.ready)
            await Sender(web.port, s).deliver(event())
            await scraped_until(web.port, COMMITTED, 1)
            await asyncio.to_thread(servers.stop_postgres, signal.SIGQUIT)
            await asyncio.sleep(1)
            began = time.monotonic()
            seen = await scraped(web.port)
            assert time.monotonic() - began < 0.3
            assert seen[COMMITTED] == 1
            assert seen["finalsale_look_age_seconds[('look', 'counts')]"] > 0.9
            await Sender(web.port, s).deliver(event("evt_2"))  # is refused, and counted all the same
            await asyncio.to_thread(servers.start_postgres)
            await scraped_until(web.port, "finalsale_deliveries_total[('outcome', 'unavailable')]", 1)
            assert (await scraped(web.port))["finalsale_look_age_seconds[('look', 'counts')]"] < 1


async def test_before_the_schema_is_there_nothing_is_asked_and_metrics_are_served(
    settings: Settings, pool: Pool
) -> None:
    await pool.execute("drop schema public cascade; create schema public")
    async with listening(settings) as web:
        await eventually(web.watch.postgres_there)
        seen = await scraped(web.port)
        assert seen["finalsale_postgres_up"] == 1
        assert not [name for name in seen if name.startswith("finalsale_look_age")]


async def test_a_look_that_is_too_dear_keeps_its_last_answer_and_holds_up_no_other(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "STATEMENT_TIMEOUT_S", 0.3)
    await pool.execute(
        "alter table accounts rename to accounts_; create view accounts as select accounts_.* from accounts_, pg_sleep(2);"
        "insert into accounts_ (realm, customer, standing, holds, body, changed_at) values ('test', 'cus_1', 'good', 0, '', now())"
    )
    exporter = Exporter(settings, [], lambda: True)
    began = time.monotonic()
    await exporter.look()
    exporter._drop()
    assert time.monotonic() - began < 2
    assert {look.name for look in LOOKS} - exporter._seen.keys() == {"standing"}
    assert exporter._due["standing"] > time.monotonic() + 10, "it comes back after many times what it took"


async def test_every_family_says_what_it_is(web: Listening) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{web.port}/metrics") as answer:
        text = await answer.text()
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    assert all(len(told) > 10 for name, told in helps.items() if name.startswith("finalsale_"))
    assert set(FAMILIES) <= {name.removesuffix("_total") for name in helps}
    names = re.findall(r"^# TYPE (\S+) ", text, re.M)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "header",
    [
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
        {"Fly-Client-IP": "203.0.113.7"},
        {"X-Forwarded-Proto": "https"},
        {"Via": "1.1 fly.io"},
    ],
    ids=str,
)
async def test_what_came_through_a_proxy_sees_no_metrics(web: Listening, header: dict[str, str]) -> None:
    assert await asked_for_metrics(web, **header) == 404
    assert await asked_for_metrics(web) == 200


async def test_with_a_token_metrics_need_it_wherever_one_asks_from(settings: Settings) -> None:
    secret = "scrape-me-not"
    async with listening(settings.model_copy(update={"metrics_token": SecretStr(secret)})) as web:
        right, near = {"Authorization": f"Bearer {secret}"}, {"X-Forwarded-For": "203.0.113.7"}
        assert await asked_for_metrics(web, **right) == 200
        assert await asked_for_metrics(web, **right, **near) == 200
        assert await asked_for_metrics(web, **near) == 404
        for wrong in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Basic {secret}"},
            {"Authorization": "Bearer \xe9"},
        ):
            assert await asked_for_metrics(web, **wrong) == 401
            assert await asked_for_metrics(web, **wrong, **near) == 404


async def asked_for_metrics(web: Listening, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{web.port}/metrics", headers=headers) as answer,
    ):
        assert (answer.status == 200) is ("finalsale_" in await answer.text())
        return answer.status


async def test_the_table_is_small_whatever_was_counted(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as m:
        for number in range(3):
            m.double_click(f"u{number}")
        await m.to_the_end()
        async with connection(pool) as conn:
            await flush(conn)
            rows = await conn.fetch(queries.metric_totals.sql)
    assert len(rows) < 120
    assert not [r for r in rows if re.search(r"(cus|ch|sub|evt|re|in)_\w", r["labels"])]
