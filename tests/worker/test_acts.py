"""What operators do about single customers takes effect at once, once per key, with a name and a reason that are kept."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from cyclopts import App

from handlers.account import ActKind
from handlers.customer import at
from tests.handlers.history import DAY, MONTH, T0, History
from tests.worker.books import REALMS, court, tell
from tests.worker.merchant import merchant
from worker import acts, cli_accounts
from worker.acts import Wish, carry_out, seen
from worker.cli_accounts import chargebacks_app, credits_app, register
from worker.cli_notices import alerts_app, notices_app
from worker.db import Pool, connection, queries, transaction
from worker.errors import FinalsaleError
from worker.reading import Document, NotFound
from worker.review import ActRefused
from worker.settings import Settings
from worker.settle import settle


def subscribed(*disputes: str) -> History:
    """cus_A with sub_0001 of price_basic (500 credits a month), its charge disputed as often as statuses are given."""
    history = History()
    history.customer()
    sub = history.subscribe()
    for status in disputes:
        history.dispute(sub.charge, status)
    return history


def wish(kind: ActKind, **more: Any) -> Wish:
    return Wish(**{"kind": kind, "customer": "cus_A", "by": "Ann", "reason": "because", **more})


async def do(pool: Pool, kind: ActKind, **more: Any) -> Document:
    async with transaction(pool) as conn:
        done = await carry_out(conn, REALMS, wish(kind, **more))
    async with transaction(pool) as conn:  # what a worker does within seconds
        await settle(conn, court(), "test", (), wake=["cus_A"])
        return await seen(conn, REALMS, done)


async def standing(pool: Pool) -> str | None:
    found: str | None = await pool.fetchval("select standing from accounts where customer = 'cus_A'")
    return found


async def change_status(pool: Pool, history: History, status: str) -> None:
    history.change("dp_0001", status=status)
    await tell(pool, history)


# standing ----------------------------------------------------------------------------------------------------------------


async def test_a_suspension_takes_effect_and_ends_with_a_lift(pool: Pool) -> None:
    await tell(pool, subscribed())
    done = await do(pool, ActKind.SUSPEND, case="case 7")
    assert (done["standing"], [hold["subject"] for hold in done["holds"]]) == ("suspended", ["operator"])
    assert await standing(pool) == "suspended"
    done = await do(pool, ActKind.LIFT)
    assert (done["standing"], done["holds"], await standing(pool)) == ("good", [], "good")
    rows = await pool.fetch("select kind, body from acts order by acted_at")
    assert [row["kind"] for row in rows] == ["suspend", "lift"]
    kept = json.loads(rows[0]["body"])
    assert (kept["by"], kept["reason"], kept["case"]) == ("Ann", "because", "case 7")


async def test_within_one_second_the_later_act_counts(pool: Pool) -> None:
    await tell(pool, subscribed())
    for _ in range(4):
        await do(pool, ActKind.SUSPEND)
        await do(pool, ActKind.LIFT)
    assert await standing(pool) == "good"
    await do(pool, ActKind.SUSPEND)
    assert await standing(pool) == "suspended"


async def test_two_operators_who_suspend_at_once_suspend_once(pool: Pool) -> None:
    await tell(pool, subscribed())
    outcomes = await asyncio.gather(*(do(pool, ActKind.SUSPEND) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, ActRefused) for outcome in outcomes) == 3
    assert await pool.fetchval("select count(*) from acts") == 1


async def test_a_lifted_chargeback_holds_again_once_it_is_lost(pool: Pool) -> None:
    history = subscribed("needs_response")
    await tell(pool, history)
    assert await standing(pool) == "flagged"
    assert (await do(pool, ActKind.LIFT, dispute="dp_0001"))["standing"] == "good"
    await change_status(pool, history, "lost")
    assert await standing(pool) == "flagged"
    assert (await do(pool, ActKind.LIFT, dispute="dp_0001"))["standing"] == "good"


async def test_a_kept_hold_outlives_a_dispute_that_was_won_until_it_is_lifted(pool: Pool) -> None:
    history = subscribed("needs_response")
    await tell(pool, history)
    await do(pool, ActKind.KEEP, dispute="dp_0001")
    await change_status(pool, history, "won")
    assert await standing(pool) == "flagged"
    with pytest.raises(ActRefused, match="kept already, by Ann"):
        await do(pool, ActKind.KEEP, dispute="dp_0001")
    assert (await do(pool, ActKind.LIFT, dispute="dp_0001"))["standing"] == "good"


@pytest.mark.parametrize(
    ("kind", "more", "error", "says"),
    [
        (ActKind.LIFT, {}, ActRefused, "nothing to lift.*dp_0001"),
        (ActKind.LIFT, {"dispute": "dp_0002"}, ActRefused, "dp_0002 holds nothing.*won"),
        (ActKind.LIFT, {"dispute": "dp_9999"}, NotFound, "has no dispute dp_9999"),
        (ActKind.LIFT, {"dispute": "ch_0001"}, NotFound, "has no dispute ch_0001"),
        (ActKind.KEEP, {"dispute": "dp_none"}, NotFound, "has no dispute"),
        (ActKind.KEEP, {}, ActRefused, "--dispute"),
        (ActKind.SUSPEND, {"customer": "cus_none"}, NotFound, "No customer cus_none"),
        (ActKind.SUSPEND, {"by": " "}, ActRefused, "--by NAME"),
        (ActKind.SUSPEND, {"reason": " \n"}, ActRefused, "--reason"),
        (ActKind.SUSPEND, {"key": "\n"}, ActRefused, "--key"),
        (ActKind.GRANT, {"credits": 0}, ActRefused, "--credits"),
        (ActKind.GRANT, {"credits": 5, "until": at(T0)}, ActRefused, "in the past"),
        (ActKind.EXTEND, {"subscription": "sub_0001"}, ActRefused, "--until TIME or --days N"),
        (ActKind.EXTEND, {"subscription": "sub_0001", "days": 1, "until": at(T0)}, ActRefused, "--until TIME or"),
        (ActKind.EXTEND, {"subscription": "sub_9", "days": 1}, NotFound, "there are: sub_0001"),
        (ActKind.EXTEND, {"subscription": "sub_0001", "until": at(T0)}, ActRefused, "ends later than that"),
        (ActKind.EXTEND, {"subscription": "sub_0001", "days": 4000}, ActRefused, "--days"),
        (ActKind.EXTEND, {"subscription": "sub_0001", "until": at(T0 + 9000 * DAY)}, ActRefused, "more than ten years"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason_and_leaves_nothing(
    pool: Pool, kind: ActKind, more: dict[str, Any], error: type[Exception], says: str
) -> None:
    await tell(pool, subscribed("needs_response", "won"))
    with pytest.raises(error, match=says):
        await do(pool, kind, **more)
    assert await pool.fetchval("select count(*) from acts") == 0


async def test_another_customers_dispute_and_another_realm_are_out_of_reach(pool: Pool) -> None:
    history = subscribed()
    history.customer("cus_B")
    other = history.subscribe(customer="cus_B")
    history.dispute(other.charge, "needs_response")
    await tell(pool, history)
    with pytest.raises(NotFound, match="cus_A has no dispute dp_0001"):
        await do(pool, ActKind.LIFT, dispute="dp_0001")
    async with transaction(pool) as conn:
        with pytest.raises(NotFound):
            await carry_out(conn, ["live"], wish(ActKind.SUSPEND))


async def test_a_dispute_that_changes_while_it_is_lifted_is_lifted_in_the_stage_that_was_seen(pool: Pool) -> None:
    """Whoever comes first, the hold of a lost dispute stays unless it was lifted as lost."""
    history = subscribed("needs_response")
    await tell(pool, history)
    await asyncio.gather(do(pool, ActKind.LIFT, dispute="dp_0001"), change_status(pool, history, "lost"))
    status = json.loads(await pool.fetchval("select body from acts"))["status"]
    assert await standing(pool) == ("good" if status == "lost" else "flagged")


# once per key ------------------------------------------------------------------------------------------------------------


async def test_the_same_wish_under_the_same_key_is_done_once(pool: Pool) -> None:
    await tell(pool, subscribed())
    first = await do(pool, ActKind.GRANT, credits=50, key="ticket-1")
    again = await do(pool, ActKind.GRANT, credits=50, key="ticket-1", by="Bob")
    assert (first["id"], first["repeated"], again["id"], again["repeated"]) == (first["id"], False, first["id"], True)
    assert again["by"] == "Ann"
    assert await pool.fetchval("select sum(granted) from lots where kind = 'service'") == 50
    with pytest.raises(ActRefused, match="used before, for another act"):
        await do(pool, ActKind.GRANT, credits=51, key="ticket-1")
    with pytest.raises(ActRefused, match="used before"):
        await do(pool, ActKind.SUSPEND, key="ticket-1")
    assert (await do(pool, ActKind.GRANT, credits=50))["repeated"] is False


async def test_one_key_at_the_same_moment_is_done_once(pool: Pool) -> None:
    await tell(pool, subscribed())
    done = await asyncio.gather(*(do(pool, ActKind.GRANT, credits=50, key="k") for _ in range(4)))
    assert sorted(outcome["repeated"] for outcome in done) == [False, True, True, True]
    assert await pool.fetchval("select sum(granted) from lots where kind = 'service'") == 50


# access and credits ------------------------------------------------------------------------------------------------------


async def test_an_extension_by_days_counts_from_the_present_end_or_from_now_where_that_has_passed(pool: Pool) -> None:
    history = History()
    history.customer()
    history.subscribe(int(time.time()) - T0 - 10 * DAY)  # serves for 20 days more
    history.subscribe(0)  # ended its first month long ago
    await tell(pool, history)
    ends = dict(await _ends(pool))
    for subscription in ("sub_0001", "sub_0002"):
        await do(pool, ActKind.EXTEND, subscription=subscription, days=5)
    after = dict(await _ends(pool))
    assert after["sub_0001"] == ends["sub_0001"] + 5 * DAY
    assert abs(after["sub_0002"] - time.time() - 5 * DAY) < 60


async def _ends(pool: Pool) -> list[tuple[str, int]]:
    body = json.loads(await pool.fetchval("select body from accounts"))
    return [(a["subscription"], a["until"]) for a in body["access"]]


async def test_granted_credits_can_be_consumed_until_they_end(pool: Pool) -> None:
    await tell(pool, subscribed())
    until = datetime.now(UTC) + timedelta(days=3)
    done = await do(pool, ActKind.GRANT, credits=50, until=until)
    assert done["credits_left"] == 550
    async with transaction(pool) as conn:
        first = await acts.consume(conn, REALMS, "cus_A", 60, "job-1")
        again = await acts.consume(conn, REALMS, "cus_A", 60, "job-1")
    assert [(d["outcome"], d["consumed"], d["remaining"]) for d in (first, again)] == [
        ("consumed", 60, 490),
        ("repeated", 60, 490),
    ]
    lots = dict(await pool.fetch("select kind, consumed from lots"))
    assert lots == {"service": 50, "included": 10}  # what ends soonest goes first


async def test_what_cannot_be_consumed_is_refused_in_a_sentence(pool: Pool) -> None:
    await tell(pool, subscribed())

    async def consume(credits_: int, key: str = "k", customer: str = "cus_A") -> None:
        async with transaction(pool) as conn:
            await acts.consume(conn, REALMS, customer, credits_, key)

    await consume(100)
    for wanted, says in ((401, "400 credits, not 401"), (0, "--credits"), (-5, "--credits")):
        with pytest.raises(ActRefused, match=says):
            await consume(wanted, f"k{wanted}")
    with pytest.raises(ActRefused, match="consumed 100 credits before"):
        await consume(99)
    with pytest.raises(NotFound):
        await consume(1, customer="cus_none")
    await do(pool, ActKind.SUSPEND)
    with pytest.raises(ActRefused, match="is suspended"):
        await consume(1, "k2")


async def test_credits_as_recorded_at_a_moment_are_explained_entry_by_entry(pool: Pool) -> None:
    """An end that was learned late: by what was recorded then something was left, by what is known today nothing was."""
    history = subscribed()
    await tell(pool, history)
    async with transaction(pool) as conn:
        await acts.consume(conn, REALMS, "cus_A", 120, "job-1")
    before = await pool.fetchval("select clock_timestamp()")
    sub = history.latest["sub_0001"]
    history.change("sub_0001", when=MONTH + 1, status="canceled", ended_at=sub.created + MONTH)
    await tell(pool, history)
    async with connection(pool) as conn:
        now = await acts.credits_of(conn, REALMS, "cus_A")
        then = await acts.credits_of(conn, REALMS, "cus_A", before)
        earlier = await acts.credits_of(conn, REALMS, "cus_A", at(T0 - 1))
    assert [(e["kind"], e["amount"], e["balance"]) for e in now["entries"]] == [
        ("granted", 500, 500),
        ("consumed", -120, 380),
        ("forfeited", -380, 0),
    ]
    assert (now["balance"], now["available"], now["effective"]) == (0, 0, 0)
    assert all(e["clause"] and e["cause"] for e in now["entries"])
    assert [(e["kind"], e["balance"]) for e in then["entries"]] == [("granted", 500), ("consumed", 380)]
    assert (then["balance"], then["effective"]) == (380, 0)
    assert [lot["remaining"] for lot in then["lots"]] == [380]
    assert (earlier["balance"], earlier["entries"], earlier["lots"]) == (0, [], [])


# the command line --------------------------------------------------------------------------------------------------------

Cli = Callable[..., Awaitable[str]]


@pytest.fixture
def cli(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Cli]:
    """The commands of this part under one app, on this test's database, on a terminal of 100 columns."""
    for name in ("REDIS_URL", "STRIPE_API_KEY", "FINALSALE_POLICY", "FINALSALE_REFUNDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    top, customers = App(name="finalsale"), App(name="customers")
    register(customers)
    for part in (customers, credits_app, chargebacks_app, notices_app, alerts_app):
        top.command(part)

    async def run(*arguments: str) -> str:
        capsys.readouterr()
        options = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
        await asyncio.to_thread(top, list(arguments), **options)
        return capsys.readouterr().out

    yield run
    structlog.reset_defaults()
    logging.getLogger().handlers, logging.getLogger().level = handlers, level


@pytest.fixture
async def judging(pool: Pool) -> AsyncIterator[None]:
    """A worker's sweep: whoever is woken is judged at once."""

    async def sweep() -> None:
        while True:
            for row in await pool.fetch(queries.due_wakeups.sql, 10):
                async with transaction(pool) as conn:
                    await settle(conn, court(), row["realm"], (), wake=[row["customer"]])
            await asyncio.sleep(0.05)

    task = asyncio.create_task(sweep())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("judging")
async def test_acts_from_the_command_line_say_what_became_of_the_customer(pool: Pool, cli: Cli) -> None:
    await tell(pool, subscribed("needs_response"))
    who = ("--by", "Ann", "--reason", "spoke to her")
    told = await cli("customers", "suspend", "cus_A", *who, "--case", "C-1")
    assert "Suspended cus_A. Kept as oact_" in told
    assert "operator: Suspended by Ann" in " ".join(told.split())
    assert "Lifted the operators' hold on cus_A" in await cli("customers", "lift", "cus_A", *who)
    assert "The hold of dp_0001" in await cli("customers", "keep", "cus_A", "--dispute", "dp_0001", *who)
    told = await cli("customers", "lift", "cus_A", "--dispute", "dp_0001", *who, "--json")
    assert json.loads(told)["standing"] == "good"
    told = await cli("customers", "extend", "cus_A", "--subscription", "sub_0001", "--until", "2030-01-31", *who)
    assert "serves until 2030-01-31 00:00:00 UTC" in told
    told = await cli("credits", "grant", "cus_A", "--credits", "25", *who, "--key", "k", "--json")
    assert (json.loads(told)["credits"], json.loads(told)["credits_left"]) == (25, 525)
    with pytest.raises(FinalsaleError):
        await cli("customers", "lift", "cus_A", *who)


async def test_an_act_without_any_worker_says_that_it_has_still_to_be_judged(
    pool: Pool, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(pool, subscribed())
    monkeypatch.setattr(cli_accounts, "JUDGED_WITHIN_S", 0.0)
    told = await cli("customers", "suspend", "cus_A", "--by", "Ann", "--reason", "spoke to her")
    assert "No worker has looked at it yet" in told
    assert await standing(pool) == "good"


async def test_credits_show_reads_in_100_columns_without_losing_an_id(pool: Pool, cli: Cli) -> None:
    await tell(pool, subscribed())
    await cli("credits", "consume", "cus_A", "--credits", "20", "--key", "job-1")
    told = await cli("credits", "show", "cus_A")
    assert "cus_A: 480 credits left." in told
    assert max(map(len, told.splitlines())) <= 100
    assert "included:in_0001:il_in_0001_0" in told
    assert "-20" in told
    assert "consumed by the app under the key job-1" in " ".join(told.split())
    told = await cli("credits", "show", "cus_A", "--at", "2025-01-01")
    assert "0 credits left as recorded by 2025-01-01 00:00:00 UTC" in told
    assert json.loads(await cli("credits", "show", "cus_A", "--json"))["available"] == 480


async def test_notices_and_alerts_are_read_and_replayed(pool: Pool, cli: Cli) -> None:
    await tell(pool, subscribed("needs_response"))
    rows = json.loads(await cli("notices", "list", "--json"))
    assert {row["customer"] for row in rows} == {"cus_A"}
    id_ = rows[0]["id"]
    assert id_ in await cli("notices", "list", "--customer", "cus_A")
    assert '"customer": "cus_A"' in await cli("notices", "show", id_)
    assert json.loads(await cli("notices", "replay", id_, "--json")) == {"replayed": [id_]}
    assert "1 notices wait again" in await cli("notices", "replay", "--customer", "cus_A", "--since", "1h")
    told = await cli("alerts", "list")
    assert "critical" in told
    assert "dp_0001" in told
    alerts = json.loads(await cli("alerts", "list", "--all", "--json"))
    assert {alert["kind"] for alert in alerts} >= {"chargeback"}


# chargebacks -------------------------------------------------------------------------------------------------------------


async def test_disputes_are_listed_by_who_is_next_and_by_deadline(pool: Pool, cli: Cli) -> None:
    history = subscribed("needs_response", "under_review", "won", "lost", "warning_needs_response")
    history.change("dp_0001", due_by=T0 + 20 * DAY)
    history.change("dp_0005", due_by=T0 + 9 * DAY)
    await tell(pool, history)
    rows = json.loads(await cli("chargebacks", "list", "--json"))
    assert [(row["id"], row["waits_for_a_person"]) for row in rows] == [
        ("dp_0005", True),
        ("dp_0001", True),
        ("dp_0004", True),
        ("dp_0002", False),
    ]
    assert "dp_0003" in await cli("chargebacks", "list", "--all")


async def test_evidence_is_staged_only_when_a_named_person_says_so_and_never_submitted(
    pool: Pool, settings: Settings, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with merchant(settings, pool) as shop:
        sub = shop.buy(shop.customer())
        dispute = shop.books.open_dispute(shop.charge_of(sub), reason="credit_not_processed")
        await shop.hear()
        monkeypatch.setenv("STRIPE_API_KEY", "sk_test_canary0000000000")
        monkeypatch.setenv("STRIPE_API_BASE", shop.settings.stripe_api_base)
        id_ = dispute["id"]
        told = await cli("chargebacks", "show", id_)
        assert "refund policy" in told
        assert f"finalsale chargebacks evidence {id_} --stage" in told
        assert json.loads(await cli("chargebacks", "evidence", id_, "--json"))["staged"] is False
        with pytest.raises(ActRefused, match="--by NAME"):
            await cli("chargebacks", "evidence", id_, "--stage")
        assert shop.calls(f"/disputes/{id_}") == []
        for _ in range(2):
            staged = json.loads(await cli("chargebacks", "evidence", id_, "--stage", "--by", "Ann", "--json"))
        assert staged["staged"] is True
        assert {call["params"]["submit"] for call in shop.calls(f"/disputes/{id_}")} == {"false"}
        assert dispute["status"] == "needs_response"
        assert dispute["evidence"]["refund_refusal_explanation"]
        assert dispute["evidence_details"]["submission_count"] == 0
        notes = await pool.fetch("select by_name, note from review_acts")
        assert notes[0]["by_name"] == "Ann"
        assert notes[0]["note"].startswith("evidence staged by Ann, not submitted: ")
        shop.books.set_dispute(dispute, "won")
        await shop.hear()
        with pytest.raises(ActRefused, match="Stripe waits for no evidence"):
            await cli("chargebacks", "evidence", id_, "--stage", "--by", "Ann")
        with pytest.raises(NotFound):
            await cli("chargebacks", "show", "dp_none")


async def test_the_gateway_cannot_update_a_dispute_without_submit_false(settings: Settings, pool: Pool) -> None:
    async with merchant(settings, pool) as shop:
        with pytest.raises(AssertionError, match="submitted by people only"):
            await shop.gateway._write("post", "/v1/disputes/dp_1", {"evidence": {}}, "k", None)
        assert shop.calls("/disputes/dp_1") == []
