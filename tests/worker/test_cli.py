"""The command line: one JSON document or a calm table on standard output, one sentence on standard error, a true exit code."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import structlog

from handlers.wire import email_hash
from tests.conftest import database_named
from tests.handlers.history import DAY, MINUTE, T0, History, Sold
from tests.stripe_sender import event
from tests.worker.books import tell
from worker.cli import main
from worker.db import Pool
from worker.embedded import EmbeddedServers
from worker.inbox import unpack
from worker.reading import NotUnderstood, moment

ROOT = Path(__file__).parents[2]
NAMES = ("DATABASE_URL", "REDIS_URL", "STRIPE_API_KEY", "FINALSALE_REFUNDS", "FINALSALE_POLICY", "FINALSALE_STATE_DIR")


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


Cli = Callable[..., Awaitable[Said]]


@pytest.fixture
def cli(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Cli]:
    """The command line in this process, on this test's database, on a terminal of 100 columns."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.getLogger().handlers, logging.getLogger().level

    async def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = await asyncio.to_thread(main, list(arguments))
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    yield run
    structlog.reset_defaults()
    logging.getLogger().handlers, logging.getLogger().level = handlers, level


def in_a_process(*arguments: str, **environment: str) -> Said:
    """The command line as it is really called."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    told = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Said(told.returncode, told.stdout, told.stderr)


async def fill(pool: Pool) -> History:
    """One customer with a duplicate (ch_0002), one with a review about nothing provable (ch_0004)."""
    history = History()
    history.customer(user_id="u1")
    for when in (0, 42):
        history.subscribe(when, metadata={"user_id": "u1"})
    history.customer("cus_B")
    sub = history.subscribe(0, customer="cus_B")
    history.pay_again(sub.first, MINUTE)
    spent = ("invoice_overpaid", -2900, sub.first.invoice), ("applied_to_invoice", 1000, None)
    history.balance_read(DAY, *spent, customer="cus_B")
    await tell(pool, history)
    return history


# the contract of `decisions` ---------------------------------------------------------------------------------------------


async def test_a_decision_has_exactly_the_promised_fields(pool: Pool, database_url: str) -> None:
    await fill(pool)
    told = await asyncio.to_thread(
        in_a_process, "decisions", "--json", "--customer", "cus_A", DATABASE_URL=database_url
    )
    assert (told.code, told.err) == (0, "")
    (decision,) = told.json
    # fmt: off
    assert list(decision) == [
        "id", "customer", "subject", "clause", "rule", "verdict", "policy_version", "reason", "amount", "original", "duplicate",
        "evidence", "decided_at", "revision", "actions",
    ]
    # fmt: on
    assert decision["amount"] == {"minor": 2900, "currency": "usd"}
    assert (decision["subject"], decision["original"], decision["duplicate"]) == ("ch_0002", "ch_0001", "ch_0002")
    assert (decision["clause"], decision["rule"], decision["verdict"], decision["revision"]) == (
        "4.3",
        "D3",
        "refund",
        1,
    )
    assert {"fact": "customer", "original": "cus_A", "duplicate": "cus_A"} in decision["evidence"]
    assert datetime.fromisoformat(decision["decided_at"]).utcoffset() == timedelta(0)
    refund, cancel = decision["actions"]
    assert list(refund) == ["id", "kind", "state", "stripe_id", "amount"]
    assert (refund["kind"], refund["state"], refund["amount"]) == ("refund", "proposed", decision["amount"])
    assert (cancel["kind"], cancel["amount"], cancel["stripe_id"]) == ("cancel_subscription", None, None)


async def test_decisions_are_those_in_force_and_with_history_every_revision(pool: Pool, cli: Cli) -> None:
    history = await fill(pool)
    history.refund("ch_0002", DAY, 900)
    await tell(pool, history)
    in_force = [d for d in (await cli("decisions", "--json")).json if d["subject"] == "ch_0002"]
    assert [(d["revision"], d["amount"]["minor"], len(d["actions"])) for d in in_force] == [(2, 2000, 2)]
    every = [d for d in (await cli("decisions", "--history", "--json")).json if d["subject"] == "ch_0002"]
    assert sorted((d["revision"], d["amount"]["minor"], len(d["actions"])) for d in every) == [
        (1, 2900, 0),
        (2, 2000, 2),
    ]


async def test_decisions_can_be_asked_for_by_verdict_and_time(pool: Pool, cli: Cli) -> None:
    await fill(pool)
    assert [d["verdict"] for d in (await cli("decisions", "--verdict", "review", "--json")).json] == ["review"]
    assert len((await cli("decisions", "--since", "1h", "--json")).json) == 2
    assert (await cli("decisions", "--since", "2999-01-01", "--json")).json == []
    assert len((await cli("decisions", "--limit", "1", "--json")).json) == 1


async def test_another_mode_sees_none_of_it(pool: Pool, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    history = await fill(pool)
    await tell(pool, history, realm="test:acct_1")
    assert len((await cli("decisions", "--json")).json) == 4
    monkeypatch.setenv("STRIPE_API_KEY", "rk_live_x")
    assert (await cli("decisions", "--json")).json == []


def test_moments_are_told_back_from_now_or_as_dates() -> None:
    now = datetime(2026, 5, 8, 12, tzinfo=UTC)
    assert moment("7d", now) == now - timedelta(days=7)
    assert moment("2026-05-01", now) == datetime(2026, 5, 1, tzinfo=UTC)
    assert moment("2026-05-01T02:00:00+02:00", now) == datetime(2026, 5, 1, tzinfo=UTC)
    for wrong in ("", "yesterday", "7w", "-7d", "999999999d", "2026-13-01", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(NotUnderstood):
            moment(wrong, now)


# every reading command ---------------------------------------------------------------------------------------------------

READING = [
    *(["status"], ["decisions"], ["review", "list"], ["refunds", "list"], ["events", "list"], ["policy", "show"]),
    *(["policy", "check"], ["customers", "show", "cus_A"], ["explain", "ch_0002"], ["explain", "cus_B"]),
    *(["events", "show", "evt_1"], ["migrate"]),
]


@pytest.mark.parametrize("command", READING, ids=" ".join)
async def test_every_reading_command_answers_in_both_ways(pool: Pool, cli: Cli, command: list[str]) -> None:
    await fill(pool)
    await store(pool, "evt_1", "waiting")
    program = await cli(*command, "--json")
    assert (program.code, program.err) == (0, "")
    assert program.json is not None
    person = await cli(*command)
    assert (person.code, person.err) == (0, "")
    assert person.out.strip()
    assert max(map(len, person.out.splitlines())) <= 100


@pytest.mark.parametrize(
    "command", [["status"], ["decisions"], ["review", "list"], ["refunds", "list"], ["events", "list"]], ids=" ".join
)
async def test_empty_books_are_no_error(cli: Cli, command: list[str]) -> None:
    assert (await cli(*command)).code == 0
    assert (await cli(*command, "--json")).code == 0


async def test_status_counts_what_waits_was_decided_and_done(pool: Pool, cli: Cli) -> None:
    await fill(pool)
    for number, state in enumerate(("waiting", "quarantined", "dead", "done", "done")):
        await store(pool, f"evt_{number}", state)
    await pool.execute("insert into workers (id, role, detail) values (gen_random_uuid(), 'worker', 'here')")
    await pool.execute(
        """update actions set state = 'sent', idempotency_key = 'k', first_sent_at = now(), stripe_id = 're_1',
           stripe_status = 'succeeded' where kind = 'refund' and subject = 'ch_0002'"""
    )
    told = (await cli("status", "--json")).json
    assert {k: v for k, v in told["inbox"].items() if k != "oldest_waiting_s"} == {
        "waiting": 1,
        "done": 2,
        "ignored": 0,
        "quarantined": 1,
        "dead": 1,
    }
    assert told["inbox"]["oldest_waiting_s"] >= 0
    assert told["decisions"] == {"refund": 1, "review": 1, "deny": 0, "none": 0}
    assert told["actions"] == {"cancel_subscription": {"proposed": 1}, "refund": {"sent": 1}}
    assert told["refunded"] == [{"currency": "usd", "minor": 2900, "refunds": 1}]
    assert told["reviews"]["waiting"] == 2
    assert (told["mode"], told["refunds"], told["refunds_paused"]["on"]) == ("test", "review", False)
    assert [(w["role"], w["alive"]) for w in told["workers"]] == [("worker", True)]


async def test_status_counts_standing_credits_cases_alerts_and_notices(pool: Pool, cli: Cli) -> None:
    history = await fill(pool)
    for number, due in ((1, 9), (3, 7)):
        history.dispute(f"ch_000{number}", "needs_response")
        history.change(f"dp_000{(number + 1) // 2}", due_by=T0 + due * DAY)
    await tell(pool, history)
    await pool.execute("select consume_credits('test', 'cus_A', 'k', 30)")
    await pool.execute("update notices set state = 'failed' where customer = 'cus_A'")
    await pool.execute(
        """insert into cases (id, realm, opened_at, due_at, alert_at, body)
           select 'case_' || n, 'test', now(), now() + (n - 2) * interval '1 hour', now(), '{}' from generate_series(1, 3) n"""
    )
    told = (await cli("status", "--json")).json
    assert told["standing"] == {"flagged": 2, "suspended": 0}
    assert (told["chargebacks"]["open"], told["chargebacks"]["waiting"]) == (2, 2)
    assert told["chargebacks"]["next_due_by"].startswith("2026-01-08")
    (included,) = told["credits"]
    assert (included["kind"], included["granted"], included["consumed"]) == ("included", 1500, 30)
    assert included["remaining"] == await pool.fetchval("select sum(remaining) from lots")
    assert (told["cases"]["open"], told["cases"]["overdue"]) == (3, 2)
    assert told["alerts"] == {"critical": 2, "warning": 0, "note": 0}
    assert told["notices"] == {"waiting": 1, "failed": 1, "held": 0}
    person = (await cli("status")).out
    for words in ("2 flagged, 0 suspended", "2 open, 2 wait for a person", "2026-01-08", "3 open, 2 overdue"):
        assert words in person


async def test_every_clause_is_told_on_a_hundred_columns(pool: Pool, cli: Cli) -> None:
    """Whatever id is asked about: exit 0, one JSON document, and lines that a terminal of 100 columns does not break."""
    history = await fill(pool)
    history.dispute("ch_0001", "lost")
    refund = history.refund("ch_0003", DAY, 100)
    await tell(pool, history)
    await pool.execute("select consume_credits('test', 'cus_A', 'k', 30)")
    granted = await cli(
        *("credits", "grant", "cus_A", "--credits", "5", "--by", "Ann", "--reason", "slow", "--json"),
    )
    lot = await pool.fetchval("select min(id) from lots")
    for id_ in ("dp_0001", refund, "in_0001", "sub_0001", "cus_A", "ch_0001", granted.json["id"], lot):
        program, person = await cli("explain", id_, "--json"), await cli("explain", id_)
        assert (id_, program.code, person.code) == (id_, 0, 0)
        assert program.json["reason"].split()[0] in person.out
        assert max(map(len, person.out.splitlines())) <= 100
    told = (await cli("explain", "dp_0001")).out
    assert "standing" in told
    assert "flagged" in told
    assert "finalsale customers lift cus_A --dispute dp_0001" in " ".join(told.split())
    page = (await cli("customers", "show", "cus_A")).out
    for words in ("standing", "flagged", "available", "30 consumed", "standing good -> flagged", "Ann"):
        assert words in " ".join(page.split())


async def test_a_review_that_nothing_can_be_approved_of_says_how_to_look_and_close(pool: Pool, cli: Cli) -> None:
    history = await fill(pool)
    history.dispute("ch_0001", "needs_response")
    await tell(pool, history)
    told = " ".join((await cli("review", "list")).out.split())
    assert "clause 7 (chargeback)" in told
    assert "look finalsale chargebacks show dp_0001" in told
    closed = await cli("review", "reject", "dp_0001", "--by", "Ann", "--note", "evidence given")
    assert closed.out.startswith("Closed dec_")
    refused = await cli("review", "approve", "dp_0001", "--by", "Ann", "--amount", "5")
    assert (refused.code, refused.err.count("\n")) == (1, 1)


async def test_what_comes_from_outside_cannot_move_the_cursor(pool: Pool, cli: Cli) -> None:
    history = History()
    history.customer()
    history.subscribe(0, Sold("price_\x1b[2J\u202e"), metadata={"user_id": "\x1b]0;gone\x07"})
    history.subscribe(42, Sold("price_\x1b[2J\u202e"), metadata={"user_id": "\x1b]0;gone\x07"})
    await tell(pool, history)
    for command in (("explain", "ch_0002"), ("customers", "show", "cus_A"), ("decisions",)):
        told = await cli(*command)
        assert (told.code, "\x1b" in told.out, "\u202e" in told.out) == (0, False, False)


# events ------------------------------------------------------------------------------------------------------------------


async def store(pool: Pool, id_: str, state: str, body: bytes | None = None) -> None:
    await pool.execute(
        """insert into inbox (event_id, realm, type, created_at, payload, state, attempts, error)
           values ($1, 'test', 'charge.succeeded', now(), $2, $3, 3, 'its reason')""",
        id_,
        body or event(id_),
        state,
    )


async def states(pool: Pool) -> dict[str, tuple[str, int]]:
    rows = await pool.fetch("select event_id, state, attempts from inbox")
    return {row["event_id"]: (row["state"], row["attempts"]) for row in rows}


async def test_events_are_listed_by_state_and_kind(pool: Pool, cli: Cli) -> None:
    await store(pool, "evt_1", "waiting")
    await store(pool, "evt_2", "dead")
    assert [e["id"] for e in (await cli("events", "list", "--state", "dead", "--json")).json] == ["evt_2"]
    assert len((await cli("events", "list", "--type", "charge.*", "--json")).json) == 2
    assert (await cli("events", "list", "--type", "invoice.*", "--json")).json == []


async def test_an_event_is_shown_with_its_payload_only_on_request_and_never_with_personal_data(
    pool: Pool, cli: Cli
) -> None:
    person = {
        "email": "ann@example.com",
        "name": "Ann Lee",
        "note": "write to ann@example.com",
        "address": {"city": "X"},
    }
    body = event("evt_1", data={"object": {"id": "cus_1", "object": "customer", "receipt": person}})
    await store(pool, "evt_1", "quarantined", body)
    short = await cli("events", "show", "evt_1", "--json")
    assert short.json["error"] == "its reason"
    assert "payload" not in short.json
    for how in ((), ("--json",)):
        whole = await cli("events", "show", "evt_1", "--payload", *how)
        assert "cus_1" in whole.out
        assert "ann@" not in whole.out
        assert "Ann Lee" not in whole.out


async def test_replayed_events_wait_again_from_the_beginning(pool: Pool, cli: Cli) -> None:
    for id_, state in (("evt_1", "dead"), ("evt_2", "quarantined"), ("evt_3", "ignored"), ("evt_4", "done")):
        await store(pool, id_, state)
    assert (await cli("events", "replay", "--state", "dead", "--json")).json == {"replayed": ["evt_1"]}
    assert sorted((await cli("events", "replay", "evt_2", "evt_4", "--json")).json["replayed"]) == ["evt_2", "evt_4"]
    assert await states(pool) == {"evt_1": ("waiting", 0), "evt_2": ("waiting", 0), "evt_4": ("waiting", 0)} | {
        "evt_3": ("ignored", 3)
    }


async def test_a_replay_of_what_cannot_be_replayed_changes_nothing(pool: Pool, cli: Cli) -> None:
    await store(pool, "evt_1", "dead")
    told = await cli("events", "replay", "evt_1", "evt_none")
    assert told.code == 1
    assert "evt_none" in told.err
    assert await states(pool) == {"evt_1": ("dead", 3)}
    await store(pool, "evt_other_mode", "ignored")
    assert (await cli("events", "replay", "evt_other_mode")).code == 1
    for wrong in ((), ("evt_1", "--state", "dead")):
        assert (await cli("events", "replay", *wrong)).code == 1


FORMS: dict[str, Callable[[list[bytes]], bytes]] = {
    "lines": lambda bodies: b"\n".join(json.dumps(json.loads(body)).encode() for body in bodies) + b"\n\n",
    "array": lambda bodies: b"[" + b",\n".join(bodies) + b"]",
    "page": lambda bodies: b'{"object": "list", "has_more": false, "data": [' + b",".join(bodies) + b"]}",
}


@pytest.mark.parametrize("form", FORMS)
async def test_events_are_imported_once_from_every_form_of_file(
    pool: Pool, cli: Cli, tmp_path: Path, form: str
) -> None:
    bodies = [event(f"evt_{n}") for n in range(3)] + [event("evt_live", livemode=True)]
    file = tmp_path / "events.json"
    file.write_bytes(FORMS[form](bodies))
    counted = {"read": 4, "ignored": 1, "refused": []}
    assert (await cli("events", "import", str(file), "--json")).json == counted | {"new": 4, "known": 0}
    assert (await cli("events", "import", str(file), "--json")).json == counted | {"new": 0, "known": 4}
    assert {id_: state for id_, (state, _) in (await states(pool)).items()} == {
        **dict.fromkeys(("evt_0", "evt_1", "evt_2"), "waiting"),
        "evt_live": "ignored",
    }
    assert (
        json.loads(unpack(await pool.fetchval("select payload from inbox where event_id = 'evt_1'")))["id"] == "evt_1"
    )


async def test_a_single_event_is_a_file_too(pool: Pool, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_bytes(event("evt_1"))
    assert (await cli("events", "import", str(file), "--json")).json["new"] == 1


async def test_what_is_no_event_is_named_by_its_place_and_the_rest_is_stored(
    pool: Pool, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(json.dumps(json.loads(event("evt_1"))).encode() + b'\n{"id": "evt_2"}\n\xff\nnonsense\n')
    told = await cli("events", "import", str(file), "--json")
    assert (told.code, told.json["new"]) == (1, 1)
    assert [refused["at"] for refused in told.json["refused"]] == ["line 2", "line 3", "line 4"]
    missing = await cli("events", "import", str(tmp_path / "none"))
    assert (missing.code, missing.err.count("\n")) == (1, 1)


# deciding ----------------------------------------------------------------------------------------------------------------


async def test_a_review_is_listed_approved_and_gone(pool: Pool, cli: Cli) -> None:
    await fill(pool)
    items = (await cli("review", "list", "--json")).json
    assert [item["subject"] for item in items] == ["ch_0002", "ch_0004"]
    assert {"id", "reason", "age_s", "actions", "approve", "two_persons", "acts"} <= set(items[0])
    told = (await cli("review", "approve", items[0]["id"], "--by", "Ann", "--note", "asked her", "--json")).json
    assert [a["state"] for a in told["actions"]] == ["planned", "planned"]
    told = (await cli("review", "approve", "ch_0004", "--by", "Ann", "--amount", "1900", "--json")).json
    assert [a["amount"] for a in told["actions"]] == [{"minor": 1900, "currency": "usd"}]
    assert (await cli("review", "list", "--json")).json == []
    refunds = (await cli("refunds", "list", "--json")).json
    assert sorted((r["charge"], r["state"], r["amount"]["minor"], r["approved_by"][0]) for r in refunds) == [
        ("ch_0002", "planned", 2900, "Ann"),
        ("ch_0004", "planned", 1900, "Ann"),
    ]
    assert {(r["original"], r["clause"], r["rule"]) for r in refunds} == {
        ("ch_0001", "4.3", "D3"),
        ("ch_0003", "4.3", "D1"),
    }


async def test_a_no_and_a_note_are_kept_with_their_names(pool: Pool, cli: Cli) -> None:
    await fill(pool)
    assert (await cli("review", "note", "ch_0002", "--by", "Ann", "--note", "asked her")).code == 0
    assert (await cli("review", "reject", "ch_0002", "--by", "Bob")).code == 0
    told = (await cli("explain", "ch_0002", "--json")).json
    assert [(a["act"], a["by"], a["note"]) for a in told["decisions"][0]["acts"]] == [
        ("note", "Ann", "asked her"),
        ("reject", "Bob", ""),
    ]
    again = await cli("review", "approve", "ch_0002", "--by", "Ann")
    assert (again.code, again.out) == (1, "")
    assert "was rejected by Bob" in again.err


async def test_refunds_are_paused_and_go_again(cli: Cli) -> None:
    told = (await cli("refunds", "pause", "--by", "Bob", "--reason", "holidays", "--json")).json
    assert (told["on"], told["by"], told["reason"]) == (True, "Bob", "holidays")
    assert "PAUSED by Bob" in (await cli("status")).out
    assert (await cli("refunds", "resume", "--by", "Ann", "--json")).json["on"] is False


# mistakes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(["nonsense"], ["review", "approve"], ["review", "approve", "ch_1"], ["decisions", "--verdict", "maybe"]),
        *(["events", "list", "--limit", "many"], ["explain"], ["refunds", "pause"], ["status", "--nonsense"]),
    ],
    ids=" ".join,
)
async def test_what_cannot_be_understood_is_exit_2_with_one_sentence(cli: Cli, command: list[str]) -> None:
    told = await cli(*command)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("finalsale: ")
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "command",
    [
        *(["explain", "ch_none"], ["customers", "show", "cus_none"], ["events", "show", "evt_none"]),
        *(["decisions", "--since", "yesterday"], ["decisions", "--limit", "0"], ["policy", "check", "none.toml"]),
        ["review", "approve", "ch_none", "--by", "Ann"],
    ],
    ids=" ".join,
)
async def test_what_cannot_be_done_is_exit_1_with_one_sentence(pool: Pool, cli: Cli, command: list[str]) -> None:
    await fill(pool)
    told = await cli(*command)
    assert (told.code, told.out, told.err.count("\n")) == (1, "", 1)
    assert told.err.startswith("finalsale: ")


def test_without_a_database_it_says_what_to_set(tmp_path: Path) -> None:
    told = in_a_process("status", FINALSALE_STATE_DIR=str(tmp_path))
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("finalsale: DATABASE_URL is not set")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    told = in_a_process("status", DATABASE_URL=f"postgresql://postgres@/x?host={tmp_path}")
    assert (told.code, told.err.count("\n")) == (1, 1)
    assert "Postgres cannot be reached" in told.err


async def test_a_database_without_tables_says_to_migrate(servers: EmbeddedServers, cli: Cli, monkeypatch: Any) -> None:
    connection = await asyncpg.connect(database_named(servers, "postgres"))
    await connection.execute("drop database if exists bare_one with (force)")
    await connection.execute("create database bare_one")
    await connection.close()
    monkeypatch.setenv("DATABASE_URL", database_named(servers, "bare_one"))
    assert "run `finalsale migrate`" in (await cli("status")).err
    assert (await cli("migrate", "--json")).json["applied"]
    assert (await cli("status")).code == 0


def test_the_embedded_database_of_this_directory_is_found(servers: EmbeddedServers) -> None:
    """`finalsale run` keeps one there; whoever comes after it reads the same books without any setting."""
    told = in_a_process("status", "--json", FINALSALE_STATE_DIR=str(servers.state_dir))
    assert (told.code, told.json["mode"]) == (0, "test")


@pytest.mark.parametrize(
    "command",
    [[], ["review"], ["review", "approve"], ["events", "import"], ["run"], ["policy", "check"], ["explain"]],
    ids=" ".join,
)
async def test_help_teaches(cli: Cli, command: list[str]) -> None:
    told = await cli(*command, "--help")
    assert (told.code, told.err) == (0, "")
    assert "Usage: finalsale" in told.out


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`finalsale policy show | head -1`"""
    command = f"{sys.executable} -m worker.cli policy show --json | head -1"
    told = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "{\n", "")


# policy ------------------------------------------------------------------------------------------------------------------


async def test_a_wrong_policy_is_named_with_its_line_for_people_and_programs(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        '[merchant]\nname = "X"\n[[version]]\nid = "1"\nin_force_from = 2025-01-01T00:00:00Z\nwindw = "5m"\n'
    )
    person = await cli("policy", "check", str(file))
    assert (person.code, person.out) == (1, "")
    assert "line 6" in person.err
    program = await cli("policy", "check", str(file), "--json")
    assert (program.code, program.json["ok"]) == (1, False)
    assert "line 6" in program.json["error"]


async def test_the_shipped_policy_is_good_and_shown_as_it_is_written(cli: Cli) -> None:
    told = (await cli("policy", "check", "--json")).json
    assert (told["ok"], told["in_force"], told["agreements"]) == (True, "2025-01", 0)
    (version,) = (await cli("policy", "show", "--json")).json["version"]
    assert (version["duplicates"]["window"], version["refunds"]["per_refund"]["jpy"]) == ("15m", 75000)


# processes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "ready"), [("web", "web.started"), ("worker", "worker.started")])
def test_a_process_says_that_it_is_there_and_ends_in_order(
    process: str, ready: str, database_url: str, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"DATABASE_URL": database_url, "STRIPE_WEBHOOK_SECRET": "whsec_x", "PORT": "0"}
    log = tmp_path / "log"
    with log.open("wb") as err:
        command = [sys.executable, "-m", "worker.cli", process]
        child = subprocess.Popen(command, cwd=ROOT, env=environment | {"FINALSALE_BIND": "127.0.0.1"}, stderr=err)
    try:
        deadline = time.monotonic() + 20
        while ready not in log.read_text() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ready in log.read_text()
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    finally:
        child.kill()
    assert f"{process}.stopped" in log.read_text()


# what the console lists, on the command line -------------------------------------------------------------------------------


async def test_customers_are_found_by_mail_and_by_the_apps_id_and_those_on_hold_are_listed(
    pool: Pool, cli: Cli
) -> None:
    history = History()
    history.customer(email=email_hash("ada@example.com"), user_id="u1")
    sub = history.subscribe(0, metadata={"user_id": "u1"})
    history.dispute(sub.charge, "needs_response")
    await tell(pool, history)
    for typed in ("ada@example.com", " ADA@example.com ", "u1"):
        assert [one["customer"] for one in (await cli("customers", "find", typed, "--json")).json] == ["cus_A"], typed
    assert (await cli("customers", "find", "eve@example.com", "--json")).json == []
    assert "Nobody" in (await cli("customers", "find", "eve@example.com")).out
    (held,) = (await cli("customers", "list", "--json")).json
    assert (held["customer"], held["standing"]) == ("cus_A", "flagged")
    assert (await cli("customers", "list", "--limit", "0")).code == 1
    assert (await cli("policy", "files", "--json")).json == []
