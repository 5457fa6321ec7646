"""Support cases in real books: opened once, evaluated at once, answered by a name within a day, and never a draft that has aged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import structlog

from handlers.account import Access, Account, Outage, Way
from handlers.cases import CaseRequest, read_request
from handlers.customer import CustomerId, SubscriptionId, at, customer_of, encode, fold
from handlers.decisions import as_json
from handlers.terms import Policy
from handlers.wire import email_hash
from tests.handlers.history import DAY, MONTH, POLICY, T0, History, policy_with
from tests.worker.books import tell as settle_all
from worker import cases
from worker.cases import CaseConflict, CaseInvalid, alert_cases, list_cases, open_case, overdue_cases, show_case
from worker.cli_cases import cases as app
from worker.db import Pool, connection, transaction
from worker.judging import decision_id
from worker.reading import Document, NotFound
from worker.review import ActRefused

REALM, REALMS = "test", ["test"]
EMAIL = "ada@example.com"


async def tell(pool: Pool, history: History, realm: str = REALM) -> None:
    """The history's facts and decisions as rows: what settling them leaves, of the tables that cases read."""
    facts: dict[str, Any] = {}
    for fact in history.tellings:
        facts[fact.id] = fold(facts[fact.id], fact) if fact.id in facts else fact
    async with transaction(pool) as conn:
        for id_, fact in facts.items():
            customer = customer_of(fact) or "cus_A"
            kind = str(type(fact).__struct_config__.tag)
            await conn.execute(
                """insert into objects (realm, id, kind, customer, as_of, body) values ($1, $2, $3, $4, $5, $6)
                   on conflict (realm, id) do update set body = excluded.body, as_of = excluded.as_of""",
                *(realm, id_, kind, customer, fact.as_of, encode(fact)),
            )
        for subject, d in history.judge().decisions.items():
            revision = 1 + await conn.fetchval("select count(*) from decisions where subject = $1", subject)
            await conn.execute(
                "insert into decisions (id, realm, subject, revision, customer, clause, rule, verdict, policy_version, fingerprint, body)"
                " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                *(decision_id(realm, subject, revision), realm, subject, revision, d.customer, d.clause, d.rule),
                *(str(d.verdict), d.policy_version, d.fingerprint(), as_json(d)),
            )


async def send_refund(pool: Pool, charge: str = "ch_0002", state: str = "sent") -> None:
    """The action of a duplicate's refund as the performer leaves it."""
    await pool.execute(
        """insert into actions (id, realm, kind, subject, decision_subject, decision_id, customer, amount_minor, currency, state,
                                due_at, next_at, first_sent_at, idempotency_key, key_since, stripe_id)
           select 'act_1', realm, 'refund', subject, subject, id, customer, 2900, 'usd', $2, now(), now(), $3::timestamptz,
                  'key', now(), 're_1' from decisions where subject = $1""",
        *(charge, state, at(T0 + DAY)),
    )


def bought_twice() -> History:
    history = History()
    history.customer(email=email_hash(EMAIL), user_id="u1")
    for when in (0, 42):
        history.subscribe(when, metadata={"user_id": "u1"})
    return history


def bought_once() -> History:
    history = History()
    history.customer(email=email_hash(EMAIL))
    history.subscribe(0)
    return history


def a_request(**fields: Any) -> CaseRequest:
    told = {"email": EMAIL, "date": "2026-01-01", "description": "I was charged twice, please look."}
    return read_request(told | {"kind": "duplicate", "transaction": "ch_0002"} | fields)


async def opened(pool: Pool, policy: Policy = POLICY, by: str = "Ann", **fields: Any) -> Document:
    async with transaction(pool) as conn:
        return await open_case(conn, policy, REALM, a_request(**fields), by=by)


async def acted(pool: Pool, act: Any, id_: str, **how: Any) -> Document:
    """One act in a transaction of its own; those that evaluate get the policy."""
    policy = (POLICY,) if act in (cases.answer, cases.reopen, cases.reevaluate) else ()
    async with transaction(pool) as conn:
        done: Document = await act(conn, *policy, REALMS, id_, **({"by": "Ann"} | how))
        return done


async def turn_clock(pool: Pool, hours: float) -> None:
    await pool.execute(
        "insert into rehearsal_clock (ahead) values ($1) on conflict (one) do update set ahead = excluded.ahead",
        timedelta(hours=hours),
    )


async def alerts(pool: Pool) -> dict[str, tuple[str, bool]]:
    """Severity, and whether it still holds, by kind."""
    async with transaction(pool) as conn:
        await alert_cases(conn)
    rows = await pool.fetch("select kind, severity, resolved_at from alerts order by kind")
    return {row["kind"]: (row["severity"], row["resolved_at"] is None) for row in rows}


# opening -----------------------------------------------------------------------------------------------------------------


async def test_a_case_is_evaluated_at_once_by_the_decisions_in_force(pool: Pool) -> None:
    await tell(pool, bought_twice())
    case = await opened(pool)
    assert (case["verdict"], case["clause"], case["customer"], case["payments"]) == (
        "refund",
        "4.3",
        "cus_A",
        ["ch_0002"],
    )
    assert "29.00 USD" in case["draft_answer"]
    assert (case["state"], case["answer"], case["email"]) == ("open", None, EMAIL)
    assert [(a["act"], a["by"]) for a in case["acts"]] == [("open", "Ann")]


async def test_the_clock_runs_24_hours_and_warns_4_before(pool: Pool) -> None:
    case = await opened(pool)
    assert case["due_at"] - case["opened_at"] == timedelta(hours=24)
    assert case["due_at"] - case["alert_at"] == timedelta(hours=4)


async def test_an_agreement_may_set_another_clock(pool: Pool) -> None:
    await tell(pool, bought_once())
    agreed = policy_with(
        agreement="""
[[agreement]]
customer = "cus_A"
source = "MSA 7"
from = 2025-06-01T00:00:00Z
overrides = { answer_within = "2h" }
"""
    )
    case = await opened(pool, agreed, transaction="ch_0001")
    assert case["due_at"] - case["opened_at"] == timedelta(hours=2)
    assert case["alert_at"] == case["opened_at"]


async def test_what_nobody_knows_is_a_case_too_that_asks(pool: Pool) -> None:
    case = await opened(pool, transaction="ch_9999")
    assert (case["verdict"], case["clause"], case["customer"]) == ("review", "5.1", None)


async def test_what_is_in_another_realm_is_not_known(pool: Pool) -> None:
    await tell(pool, bought_twice(), realm="live")
    assert (await opened(pool))["clause"] == "5.1"


async def test_a_refund_that_was_sent_is_told_with_its_day(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await send_refund(pool)
    assert "29.00 USD, back on 2 January 2026" in (await opened(pool))["draft_answer"]


async def test_a_decision_that_a_person_rejected_is_not_promised(pool: Pool) -> None:
    await tell(pool, bought_twice())
    await pool.execute("insert into review_acts (decision_id, act, by_name) select id, 'reject', 'Bob' from decisions")
    case = await opened(pool)
    assert (case["verdict"], "A person rejected ch_0002" in case["summary"]) == ("review", True)


async def test_standing_access_lots_and_outages_are_read(pool: Pool) -> None:
    await tell(pool, bought_once())
    access = Access(
        subscription=SubscriptionId("sub_0001"), status="active", way=Way.ENDING, until=T0 + MONTH, cause="Asked for."
    )
    account = Account(customer=CustomerId("cus_A"), access=(access,))
    await pool.execute(
        "insert into accounts values ('test', 'cus_A', 'good', 0, $1, $2, now())", at(T0 + MONTH), as_json(account)
    )
    outage = Outage(id="out_1", begins=T0, ends=T0 + 3600, declared_at=T0 + DAY, by="Ann", reason="power")
    await pool.execute("insert into outages (realm, id, body) values ('test', 'out_1', $1)", as_json(outage))
    await pool.execute(
        """insert into lots (realm, id, customer, kind, clause, granted_at, cause)
           values ('test', 'service:out_1:sub_0001', 'cus_A', 'service', '4.2', now(), 'x')"""
    )
    await pool.execute(
        """insert into entries (realm, lot, customer, kind, amount, clause, cause, effective_at)
           values ('test', 'service:out_1:sub_0001', 'cus_A', 'granted', 4, '4.2', 'x', now())"""
    )
    ending = await opened(pool, kind="cancellation", transaction="sub_0001")
    assert (ending["clause"], "until 31 January 2026" in ending["draft_answer"]) == ("1.2", True)
    trouble = await opened(pool, kind="technical", transaction=None, customer="cus_A")
    assert (trouble["clause"], "4 service credits" in trouble["draft_answer"]) == ("4.2", True)


async def test_a_date_in_the_future_is_refused(pool: Pool) -> None:
    with pytest.raises(CaseInvalid, match=r"^date: "):
        await opened(pool, date="2099-01-01")
    assert await pool.fetchval("select count(*) from cases") == 0


@pytest.mark.parametrize("by", ["", " ", "x" * 101])
async def test_nobody_opens_a_case_without_a_name(pool: Pool, by: str) -> None:
    with pytest.raises(ActRefused, match="--by NAME"):
        await opened(pool, by=by)


# once per key ------------------------------------------------------------------------------------------------------------


async def test_the_same_request_under_one_key_opens_one_case(pool: Pool) -> None:
    first, again = await opened(pool, request_key="k1"), await opened(pool, request_key="k1")
    assert first == again
    assert await pool.fetchval("select count(*) from cases") == 1
    assert await pool.fetchval("select count(*) from case_acts") == 1


async def test_many_at_once_under_one_key_open_one_case(pool: Pool) -> None:
    ids = {case["id"] for case in await asyncio.gather(*(opened(pool, request_key="k1") for _ in range(12)))}
    assert len(ids) == await pool.fetchval("select count(*) from cases") == 1


async def test_another_request_under_a_used_key_is_refused(pool: Pool) -> None:
    first = await opened(pool, request_key="k1")
    with pytest.raises(CaseConflict, match=first["id"]):
        await opened(pool, request_key="k1", transaction="ch_0003")


async def test_without_a_key_every_request_is_a_case(pool: Pool) -> None:
    assert (await opened(pool))["id"] != (await opened(pool))["id"]


# finding and listing -----------------------------------------------------------------------------------------------------


async def test_a_case_is_found_by_its_id_or_a_unique_beginning(pool: Pool) -> None:
    case = await opened(pool)
    async with connection(pool) as conn:
        for named in (case["id"], case["id"][:9], case["id"][:20]):
            assert (await show_case(conn, REALMS, named))["id"] == case["id"]


@pytest.mark.parametrize(
    "named", ["case_", "case_1", "case_ffffffff", "ch_0001", "", "%", "case_%%%%", "case_\x00\x00\x00\x00"]
)
async def test_an_id_that_names_no_case_is_said_so(pool: Pool, named: str) -> None:
    await opened(pool)
    async with connection(pool) as conn:
        with pytest.raises(NotFound):
            await show_case(conn, REALMS, named)


async def test_a_beginning_that_several_share_is_not_guessed(pool: Pool) -> None:
    case = await opened(pool)
    await pool.execute("insert into cases select 'case_aaaa' || n, realm, customer, state, assigned_to, opened_at, due_at, alert_at,"
                       " answered_at, request_key, body from cases, generate_series(1, 2) n where id = $1", case["id"])  # fmt: skip
    async with connection(pool) as conn:
        with pytest.raises(NotFound, match="Several cases"):
            await show_case(conn, REALMS, "case_aaaa")


async def test_another_realm_sees_no_case(pool: Pool) -> None:
    case = await opened(pool)
    async with connection(pool) as conn:
        assert await list_cases(conn, ["live"]) == []
        with pytest.raises(NotFound):
            await show_case(conn, ["live"], case["id"])


async def test_lists_mask_the_e_mail_and_show_what_is_due_first(pool: Pool) -> None:
    first, second = await opened(pool), await opened(pool)
    await pool.execute("update cases set due_at = due_at - interval '1 hour' where id = $1", second["id"])
    answered = await opened(pool)
    await acted(pool, cases.answer, answered["id"])
    async with connection(pool) as conn:
        rows = await list_cases(conn, REALMS)
        assert [row["id"] for row in rows] == [second["id"], first["id"], answered["id"]]
        assert {row["email"] for row in rows} == {"a…@example.com"}
        assert EMAIL not in msgspec.json.encode(rows).decode()
        assert [row["id"] for row in await list_cases(conn, REALMS, state="answered")] == [answered["id"]]
        assert len(await list_cases(conn, REALMS, limit=2)) == 2


async def test_cases_can_be_asked_for_by_who_answers_and_by_being_late(pool: Pool) -> None:
    case, other = await opened(pool), await opened(pool)
    await acted(pool, cases.assign, case["id"], to="Bob")
    await pool.execute("update cases set due_at = now() - interval '1 minute' where id = $1", other["id"])
    async with connection(pool) as conn:
        assert [row["id"] for row in await list_cases(conn, REALMS, assigned="bob")] == [case["id"]]
        assert [row["id"] for row in await list_cases(conn, REALMS, overdue=True)] == [other["id"]]
        assert await overdue_cases(conn) == [other["id"]]


# what people do ----------------------------------------------------------------------------------------------------------


async def test_every_act_is_kept_with_its_name(pool: Pool) -> None:
    id_ = (await opened(pool))["id"]
    await acted(pool, cases.assign, id_, to="Bob", by="Cleo")
    await acted(pool, cases.note, id_, text="called her", by="Bob")
    await acted(pool, cases.reevaluate, id_, by="Bob")
    await acted(pool, cases.answer, id_, by="Bob", text="We looked, and will write again.")
    await acted(pool, cases.close, id_, by="Bob")
    case = await acted(pool, cases.reopen, id_, by="Cleo", text="she wrote back")
    told = [(a["act"], a["by"]) for a in case["acts"]]
    assert told == [
        ("open", "Ann"),
        ("assign", "Cleo"),
        ("note", "Bob"),
        ("evaluate", "Bob"),
        ("answer", "Bob"),
        ("close", "Bob"),
        ("reopen", "Cleo"),
    ]
    assert (case["state"], case["assigned_to"], case["answer"], case["answered_at"]) == ("open", "Bob", None, None)


async def test_what_was_done_can_be_neither_changed_nor_deleted(pool: Pool) -> None:
    await opened(pool)
    for statement in ("update case_acts set by_name = 'Eve'", "delete from case_acts"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await pool.execute(statement)


async def test_an_answer_is_the_draft_or_other_words_and_stops_the_clock(pool: Pool) -> None:
    one, two = await opened(pool), await opened(pool)
    said = await acted(pool, cases.answer, one["id"])
    assert (said["state"], said["answer"]) == ("answered", one["draft_answer"])
    assert said["answered_at"] is not None
    assert (await acted(pool, cases.answer, two["id"], text=" In my words. "))["answer"] == "In my words."
    await turn_clock(pool, 48)
    async with connection(pool) as conn:
        assert await overdue_cases(conn) == []


async def test_a_draft_that_has_aged_is_not_sent(pool: Pool) -> None:
    """It said that the money goes back; meanwhile a dispute came, and a person has to look."""
    history = bought_twice()
    await tell(pool, history)
    id_ = (await opened(pool))["id"]
    history.dispute("ch_0002", "needs_response", when=DAY)
    await tell(pool, history)
    with pytest.raises(ActRefused, match=f"finalsale cases evaluate {id_}"):
        await acted(pool, cases.answer, id_)
    assert (await acted(pool, cases.reevaluate, id_))["verdict"] == "review"
    assert (await acted(pool, cases.answer, id_))["state"] == "answered"


async def test_time_alone_does_not_age_a_draft(pool: Pool) -> None:
    await tell(pool, bought_twice())
    id_ = (await opened(pool))["id"]
    await turn_clock(pool, 20)
    assert (await acted(pool, cases.answer, id_))["state"] == "answered"


async def test_a_payment_that_becomes_known_later_is_found_when_evaluated_again(pool: Pool) -> None:
    id_ = (await opened(pool))["id"]
    await tell(pool, bought_twice())
    case = await acted(pool, cases.reevaluate, id_)
    assert (case["customer"], case["verdict"]) == ("cus_A", "refund")
    assert await pool.fetchval("select customer from cases") == "cus_A"


@pytest.mark.parametrize("text", ["", "  ", "x" * 20_001, "a\x00b"])
async def test_an_empty_or_endless_answer_is_refused(pool: Pool, text: str) -> None:
    id_ = (await opened(pool))["id"]
    with pytest.raises(ActRefused):
        await acted(pool, cases.answer, id_, text=text)


async def test_an_answered_case_is_not_answered_again_before_it_is_reopened(pool: Pool) -> None:
    id_ = (await opened(pool))["id"]
    await acted(pool, cases.answer, id_)
    for act in (cases.answer, cases.reevaluate):
        with pytest.raises(ActRefused, match=f"{id_} is answered since .*cases reopen {id_}"):
            await acted(pool, act, id_)
    await acted(pool, cases.reopen, id_)
    with pytest.raises(ActRefused, match="is open already"):
        await acted(pool, cases.reopen, id_)
    assert (await acted(pool, cases.answer, id_))["state"] == "answered"


async def test_reopening_starts_a_new_clock(pool: Pool) -> None:
    case = await opened(pool)
    await acted(pool, cases.answer, case["id"])
    await turn_clock(pool, 100)
    again = await acted(pool, cases.reopen, case["id"])
    assert again["due_at"] - case["due_at"] >= timedelta(hours=100)
    assert not again["overdue"]


async def test_what_was_never_answered_is_closed_only_with_a_reason(pool: Pool) -> None:
    id_ = (await opened(pool))["id"]
    with pytest.raises(ActRefused, match="was not answered"):
        await acted(pool, cases.close, id_)
    assert (await acted(pool, cases.close, id_, text="spam"))["state"] == "closed"
    with pytest.raises(ActRefused, match="is closed"):
        await acted(pool, cases.assign, id_, to="Bob")


# the clock ---------------------------------------------------------------------------------------------------------------


async def test_the_clock_warns_then_alarms_and_falls_silent_with_the_answer(pool: Pool) -> None:
    id_ = (await opened(pool))["id"]
    assert await alerts(pool) == {}
    await turn_clock(pool, 20.1)
    assert await alerts(pool) == {"case_near_due": ("warning", True)}
    await turn_clock(pool, 24.1)
    assert await alerts(pool) == {"case_near_due": ("warning", False), "case_overdue": ("critical", True)}
    row = await pool.fetchrow("select cause, subject, sentence from alerts where kind = 'case_overdue'")
    assert (row["cause"], row["subject"]) == (f"case:{id_}:overdue", id_)
    assert row["sentence"].endswith(f"finalsale cases show {id_}")
    assert "@" not in row["sentence"]
    await acted(pool, cases.answer, id_)
    assert {holds for _, holds in (await alerts(pool)).values()} == {False}


async def test_an_alert_is_raised_once_and_again_after_a_reopening(pool: Pool) -> None:
    id_ = (await opened(pool))["id"]
    await turn_clock(pool, 25)
    await alerts(pool)
    raised = await pool.fetchval("select raised_at from alerts")
    await alerts(pool)
    assert await pool.fetchval("select raised_at from alerts") == raised
    await acted(pool, cases.close, id_, text="spam")
    assert await pool.fetchval("select resolved_at is not null from alerts")
    await acted(pool, cases.reopen, id_)
    await turn_clock(pool, 50)
    assert (await alerts(pool))["case_overdue"] == ("critical", True)


async def test_other_alerts_are_left_alone(pool: Pool) -> None:
    await pool.execute(
        "insert into alerts values ('test', 'chargeback:dp_1', 'chargeback', 'critical', 'cus_A', 'dp_1', 'A chargeback.')"
    )
    assert (await alerts(pool))["chargeback"] == ("critical", True)


# logs and the command line -----------------------------------------------------------------------------------------------


async def test_no_log_line_holds_the_e_mail_or_the_words(pool: Pool) -> None:
    with structlog.testing.capture_logs() as lines:
        id_ = (await opened(pool, description="My name is Ada Lovelace and I want it back."))["id"]
        await acted(pool, cases.answer, id_, text="Dear Ada, no.")
    assert [line["event"] for line in lines] == ["case.opened", "case.acted"]
    for word in (EMAIL, "Lovelace", "Dear"):
        assert word not in str(lines)


@pytest.fixture
def desk(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The environment of a command line on this test's database."""
    for name in ("REDIS_URL", "STRIPE_API_KEY", "FINALSALE_REFUNDS", "FINALSALE_POLICY", "FINALSALE_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers, logging.getLogger().level = handlers, level


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    call = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
    await asyncio.to_thread(app, list(arguments), **call)
    return capsys.readouterr().out


async def test_the_command_line_opens_shows_and_answers(
    pool: Pool, desk: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await tell(pool, bought_twice())
    told = ("--email", EMAIL, "--date", "2026-01-01", "--description", "charged twice by mistake")
    case = json.loads(
        await run(capsys, "open", *told, "--transaction", "ch_0002", "--kind", "duplicate", "--by", "Ann", "--json")
    )
    assert (case["verdict"], case["realm"]) == ("refund", "test")
    page = await run(capsys, "show", case["id"])
    for words in ("REFUND, clause 4.3", EMAIL, "29.00 USD", f"finalsale cases answer {case['id']}"):
        assert words in page
    listed = await run(capsys, "list")
    assert case["id"] in listed
    assert EMAIL not in listed
    await run(capsys, "assign", case["id"], "--to", "Bob", "--by", "Ann")
    await run(capsys, "note", case["id"], "--note", "called her", "--by", "Bob")
    await run(capsys, "evaluate", case["id"], "--by", "Bob")
    answered = json.loads(await run(capsys, "answer", case["id"], "--by", "Bob", "--json"))
    assert (answered["state"], answered["assigned_to"]) == ("answered", "Bob")
    await run(capsys, "close", case["id"], "--by", "Bob")
    assert json.loads(await run(capsys, "list", "--state", "closed", "--json"))[0]["id"] == case["id"]
    await run(capsys, "reopen", case["id"], "--by", "Bob")
    assert json.loads(await run(capsys, "show", case["id"], "--json"))["state"] == "open"


async def test_a_request_may_come_from_a_file(
    pool: Pool, desk: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = {"email": EMAIL, "date": "2026-01-01", "description": "It does not work for me.", "kind": "technical"}
    (tmp_path / "request.json").write_text(json.dumps(told))
    assert (
        json.loads(await run(capsys, "open", "--file", "request.json", "--by", "Ann", "--json"))["kind"] == "technical"
    )
    (tmp_path / "request.json").write_text(json.dumps(told | {"email": "nobody"}))
    with pytest.raises(CaseInvalid, match=r"^email: "):
        await run(capsys, "open", "--file", "request.json", "--by", "Ann")
    assert await pool.fetchval("select count(*) from cases") == 1


# through the one door ----------------------------------------------------------------------------------------------------


async def test_a_cancellation_is_answered_by_what_settling_its_facts_left(pool: Pool) -> None:
    history = bought_once()
    history.schedule_end(history.subscribe(DAY), 2 * DAY)
    await settle_all(pool, history)
    case = await opened(pool, kind="cancellation", transaction="sub_0002")
    assert (case["clause"], case["verdict"]) == ("1.2", "none")
    assert "Access lasts until 1 February 2026, 00:00 UTC" in case["draft_answer"]


async def test_settling_a_customer_again_leaves_the_alerts_of_their_cases(pool: Pool) -> None:
    history = bought_twice()
    await settle_all(pool, history)
    await opened(pool)
    await turn_clock(pool, 25)
    await alerts(pool)
    history.refund("ch_0002", 3 * DAY)
    await settle_all(pool, history)
    assert (await alerts(pool))["case_overdue"] == ("critical", True)
