"""The roles of `finalsale doctor --grants`: every process works under its own, and what a role is not for is refused."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from pydantic import SecretStr

from sandbox import Sandbox
from sandbox.webhooks import snapshot_body
from tests.conftest import database_named, eventually
from tests.console.conftest import Browser
from tests.stripe_sender import Sender, event
from tests.worker.app_books import TOKEN, App, put_account, put_lot
from tests.worker.merchant import POLICY_FILE, merchant, store
from tests.worker.receivers import webhook
from tests.worker.test_failpoints import at_rest, start_worker, stop_worker
from tests.worker.test_nightly import night, purchases
from worker import audit, grants, operators
from worker.cli import main
from worker.console import PAGES
from worker.db import Pool, connect_pool, connection, queries, transaction
from worker.db.migrations import KNOWN_REVISIONS, migrate
from worker.embedded import EmbeddedServers
from worker.grants import CONSOLE, OWNER, WEB, WORKER
from worker.operators import Role
from worker.settings import Settings
from worker.web import listening

PROCESSES = (WEB, WORKER, CONSOLE)
As = Callable[[str], Settings]
Command = Callable[..., Awaitable[Any]]


async def granted(url: str) -> None:
    """The whole script, as an administrator runs it."""
    conn = await asyncpg.connect(url)
    try:
        for _ in range(3):  # the roles are the cluster's: another test at the same time may be creating them
            try:
                async with conn.transaction():
                    for statement in grants.statements():
                        await conn.execute(statement)
                return
            except (asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError, asyncpg.InternalServerError):
                await asyncio.sleep(0.1)
    finally:
        await conn.close()


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@/", f"{role}@/")


@pytest.fixture
async def by(settings: Settings) -> As:
    """The settings of a process under one of the roles; the other fixtures stay the superuser's."""
    url = settings.database_dsn()
    await granted(url)
    return lambda role: settings.model_copy(update={"database_url": SecretStr(as_role(url, role))})


@asynccontextmanager
async def session(settings: Settings) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    conn = await asyncpg.connect(settings.database_dsn())
    try:
        yield conn
    finally:
        await conn.close()


# nothing is forgotten ----------------------------------------------------------------------------------------------------


async def test_every_table_and_view_of_the_schema_has_its_place_in_the_grants(pool: Pool) -> None:
    """A migration that adds one decides here who may do what with it."""
    relations = await pool.fetch(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'm', 'p')"
    )
    assert {row["relname"] for row in relations} == set(grants.TABLES)


ERASING = {"acts_to_erase", "erase_act", "erase_case_texts", "erase_reasons", "erase_review_notes", "save_erasures"}
"""`finalsale customers erase` is the owner's: no process has to be able to take words out of what is append-only."""


async def test_every_statement_of_ours_may_be_run_by_the_role_of_some_process_but_for_erasing(by: As) -> None:
    """Postgres itself says who may run what: it checks before it explains."""
    refused = {}
    for role in PROCESSES:
        async with session(by(role)) as conn:
            refused[role] = {name async for name in _refused(conn)}
    assert refused[WEB] & refused[WORKER] & refused[CONSOLE] == ERASING


async def _refused(conn: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[str]:
    for name in queries.available_queries:
        if name.endswith("_cursor"):
            continue
        try:
            await conn.execute(f"explain (generic_plan) {getattr(queries, name).sql.rstrip().rstrip(';')}")
        except asyncpg.InsufficientPrivilegeError:
            yield name
        except asyncpg.PostgresSyntaxError:
            assert name in UNEXPLAINED


async def test_the_modules_of_a_worker_name_no_statement_that_its_role_may_not_run(by: As) -> None:
    """Judging, sending, the nightly run, notices, alerts' rounds, audit and retention: whatever a worker's loops import."""
    async with session(by(WORKER)) as conn:
        refused = {name async for name in _refused(conn)}
    ours = Path(grants.__file__).parent
    loops = ["accounts", "book", "budget", "checks", "drain", "gaps", "healing", "history", "jobs", "judging", "matching", "nightly", "outages", "perform", "planning", "reconciliation", "runs", "scan", "settle", "notices"]  # fmt: skip
    named = {name for module in loops for name in re.findall(r"queries\.(\w+)", (ours / f"{module}.py").read_text())}
    assert named & refused - PEOPLE == set()


UNEXPLAINED = {"analyze_run"}
"""Utility statements."""
PEOPLE = {"save_outage"}
"""Statements beside a loop's, in the same module, that only people's commands run: under the console's role."""


async def test_the_script_can_be_run_again_and_takes_away_what_was_granted_beside_it(by: As, pool: Pool) -> None:
    await pool.execute(f"grant delete on decisions to {WORKER}; grant select (payload) on inbox to {WEB}")
    await granted(by("postgres").database_dsn())
    assert not await pool.fetchval("select has_table_privilege($1, 'decisions', 'delete')", WORKER)
    assert not await pool.fetchval("select has_column_privilege($1, 'inbox', 'payload', 'select')", WEB)


async def test_no_role_is_more_than_a_login(by: As, pool: Pool) -> None:
    rows = await pool.fetch("select * from pg_roles where rolname like 'finalsale\\_%'")
    assert {row["rolname"] for row in rows} == set(grants.ROLES)
    for row in rows:
        assert row["rolcanlogin"]
        more = [row[f"rol{might}"] for might in ("super", "createdb", "createrole", "replication", "bypassrls")]
        assert not any(more)


async def test_the_owner_brings_an_empty_database_to_this_release(by: As, servers: EmbeddedServers) -> None:
    maintenance = await asyncpg.connect(database_named(servers, "postgres"))
    name = f"owned_{time.monotonic_ns()}"
    await maintenance.execute(f"create database {name}")
    url = database_named(servers, name)
    try:
        admin = await asyncpg.connect(url)
        await admin.execute(f"grant usage, create on schema public to {OWNER}")
        await admin.close()
        assert await migrate(as_role(url, OWNER)) == list(KNOWN_REVISIONS)
        await granted(url)
        assert await migrate(as_role(url, OWNER)) == []
    finally:
        await maintenance.execute(f"drop database {name} with (force)")
        await maintenance.close()


# each process under its role ---------------------------------------------------------------------------------------------


async def test_web_takes_in_events_and_serves_the_app_under_its_role(by: As, pool: Pool) -> None:
    await put_account(pool)
    await put_lot(pool, "purchased:in_1:il_1", 500)
    under = by(WEB).model_copy(update={"api_tokens": SecretStr(TOKEN)})
    async with listening(under) as web, aiohttp.ClientSession() as http:
        await eventually(web.watch.ready)
        sender = Sender(web.port, http)
        assert [(await sender.deliver(event()))[0] for _ in range(2)] == [200, 200]
        app = App(web.port, http)
        assert (await app.get("customers/cus_A")).json["credits"]["available"] == 500
        assert (await app.consume(30, "k")).status == 200
        assert (await app.consume(30, "k")).status == 200
        case = {
            "email": "a@example.com",
            "date": "2026-01-31",
            "description": "I was charged twice.",
            "transaction": "ch_1",
        }
        opened = await app.ask("POST", "cases", json=case)
        assert opened.status in (200, 201), opened.json
        assert (await app.get(f"cases/{opened.json['id']}")).status == 200
    assert await pool.fetchval("select count(*) from inbox") == 1
    assert await pool.fetchval("select consumed from lots") == 30
    assert await pool.fetchval("select count(*) from case_acts") == 1


async def test_a_worker_refunds_a_duplicate_under_its_role(by: As, pool: Pool) -> None:
    """A real process, from the event to the one refund."""
    async with merchant(by(WORKER), pool) as m:
        _, second = m.double_click()
        await store(pool, *(snapshot_body(event) for event in m.news()))
        process = await start_worker(m)
        await at_rest(m, 20)
        await stop_worker(process)
        assert [(r["amount"], r["charge"]) for r in m.refunds] == [(2900, m.charge_of(second)["id"])]
    assert await pool.fetchval("select array_agg(distinct state) from inbox") == ["done"]


async def test_a_night_is_done_under_the_workers_role(by: As, pool: Pool) -> None:
    under = by(WORKER)
    mine = await connect_pool(under.database_dsn(), role="worker", max_size=8)
    await pool.execute(
        "insert into schedule_runs (name, due_at, state) values ('reconcile', now() - interval '40 days', 'done')"
    )
    try:
        async with Sandbox() as stripe:
            await purchases(stripe)
            (report,) = await night(under, mine, stripe)
    finally:
        mine.terminate()
    assert (report.imported["charge"], report.unread_total) == (20, 0)


@pytest.fixture
def command(by: As, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """A command of a person, under the console's role."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", by(CONSOLE).database_dsn())
    monkeypatch.setenv("FINALSALE_POLICY", str(POLICY_FILE))
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_canary0000000000")

    async def run(*arguments: str) -> Any:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*arguments, "--json"])
        told = capsys.readouterr()
        assert code == 0, (arguments, told.err)
        return json.loads(told.out)

    return run


async def test_people_read_and_decide_under_the_consoles_role(settings: Settings, pool: Pool, command: Command) -> None:
    async with merchant(settings, pool, refunds="review") as m:
        first, second = m.double_click()
        m.double_click("u2")
        await m.hear()
        await m.look_up()
        charge, customer = m.charge_of(second)["id"], first["customer"]
        await pool.execute("update inbox set state = 'dead' where event_id = (select min(event_id) from inbox)")
        waiting = await command("review", "list")
        others = [one for one in waiting if one["subject"] != charge]
        await command("review", "note", charge, "--by", "Ada", "--note", "Looked at.")
        await command("review", "approve", charge, "--by", "Ada")
        await command("review", "reject", others[0]["subject"], "--by", "Ada")
    for reading in ("status", f"explain {charge}", f"customers show {customer}", "events list", "decisions", "alerts list",
                    "refunds list", "notices list", "runs list", "cases list", "policy show", "outage show", "audit list", "operator list"):  # fmt: skip
        await command(*reading.split())
    (dead,) = await command("events", "list", "--state", "dead")
    await command("events", "show", dead["id"], "--payload")
    await command("events", "replay", dead["id"])
    await command("refunds", "pause", "--by", "Ada", "--reason", "Wait.")
    await command("refunds", "resume", "--by", "Ada")
    made = await command("tokens", "add", "app", "--scopes", "read", "--by", "Ada")
    await command("tokens", "list")
    await command("tokens", "rotate", "app", "--by", "Ada")
    await command("tokens", "revoke", made["id"], "--by", "Ada")
    assert await pool.fetchval("select count(*) from actions where kind = 'refund' and state = 'planned'") == 1


async def test_the_console_shows_every_page_and_takes_a_decision_under_its_role(
    by: As, settings: Settings, pool: Pool
) -> None:
    """Every page that can be reached by links from the others, in a process that serves the console and nothing else."""
    async with merchant(settings, pool, refunds="review") as m:
        _, second = m.double_click()
        await m.hear()
        await m.look_up()
        charge = m.charge_of(second)["id"]
    under = by(CONSOLE).model_copy(update={"console": "only", "policy": POLICY_FILE})
    async with listening(under) as web, aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        await eventually(web.watch.ready)
        made = await pool_operator(pool)
        browser = Browser(f"http://127.0.0.1:{web.port}", http, "Ada", made["token"])
        assert (await browser.sign_in())[0] == 303
        seen, ahead = (
            set[str](),
            [f"/console{page.path}" for page in PAGES if page.method == "GET" and "{" not in page.path],
        )
        approve = ""
        while ahead and len(seen) < 80:
            path = ahead.pop()
            seen.add(path)
            status, html = await browser.get(path)
            assert status in (200, 400, 404), (path, status)  # a search for nothing is not understood
            links = {unescape(link) for link in re.findall(r'href="(/console/[^"#]*)"', html)}
            ahead += sorted(links - seen - set(ahead))
            approve = approve or next(iter(re.findall(r'action="(/console/[^"]*/approve)"', html)), "")
        assert len(seen) > len(PAGES) / 4
        status, html = await browser.post(approve, note="Seen.", reason="Seen.")
        assert status == 200, html
        async with http.get(f"http://127.0.0.1:{web.port}/stripe/webhook") as answer:
            assert answer.status == 404
    assert await pool.fetchval("select by_name from review_acts where act = 'approve'") == "Ada"
    assert await pool.fetchval("select state from actions where kind = 'refund' and subject = $1", charge) == "planned"


async def pool_operator(pool: Pool) -> Any:
    """An admin of the console, with a token."""
    async with pool.acquire() as conn, conn.transaction():
        return await operators.add(conn, "Ada", Role.ADMIN, by="tests")


async def test_metrics_tell_under_the_web_role_what_they_tell_a_superuser(
    by: As, settings: Settings, pool: Pool
) -> None:
    async with merchant(settings, pool, refunds="review") as m:
        m.double_click()
        await m.hear()
    told: list[set[str]] = []
    for role in ("postgres", WEB):
        async with listening(by(role).model_copy(update={"console": "off"})) as web, aiohttp.ClientSession() as http:
            families: set[str] = set()
            for _ in range(150):
                async with http.get(f"http://127.0.0.1:{web.port}/metrics") as answer:
                    families = set(re.findall(r"^# TYPE (finalsale_\S+)", await answer.text(), re.M))
                if "finalsale_refunded_minor_units" in families and families >= (told[0] if told else set()):
                    break
                await asyncio.sleep(0.1)
            told.append(families)
    assert told[0] - told[1] == set()


async def test_a_web_process_tells_under_its_role_what_is_critical_while_no_worker_is_alive(
    by: As, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.alert_standin.AFTER_S", 0.0)
    monkeypatch.setattr("worker.alert_standin.LOOK_S", 0.2)
    await pool.execute("insert into workers (id, role, detail) values (gen_random_uuid(), 'worker', '')")
    await pool.execute(
        """insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
           values ('test', 'worker_silent:workers', 'worker_silent', 'critical', '', 'workers', 'None is alive.')"""
    )
    async with webhook() as hook:
        routes = {"alert_urls": SecretStr(hook.url), "alert_private_hosts": "127.0.0.1", "console": "off"}
        async with listening(by(WEB).model_copy(update=routes)):
            await pool.execute("update alerts set look_at = now()")
            await asyncio.sleep(2)
            assert await pool.fetchval("select count(*) from alert_tellings") == 0
            await pool.execute("update workers set seen_at = now() - interval '3 minutes'")
            await eventually(lambda: bool(hook.heard), 30)
    assert [m.title for m in hook.heard] == ["[finalsale test] critical: No worker is alive"]


# what is refused ---------------------------------------------------------------------------------------------------------

REFUSED = [
    (WEB, "select payload from inbox"),
    (WEB, "select event_id from inbox"),
    (WEB, "update inbox set state = 'done'"),
    (WEB, "delete from inbox"),
    (WEB, "insert into decisions (id) values ('x')"),
    (WEB, "update actions set state = 'planned'"),
    (WEB, "insert into actions (id) values ('x')"),
    (WEB, "update lots set granted_at = now()"),
    (WEB, "update accounts set standing = 'good'"),
    (WEB, "insert into api_tokens (id) values ('x')"),
    (WEB, "select * from operator_tokens"),
    (WEB, "select * from console_sessions"),
    (WEB, "insert into switches (name, is_on, by_name) values ('x', false, 'x')"),
    (WORKER, "select * from api_tokens"),
    (WORKER, "select * from operator_tokens"),
    (WORKER, "insert into operators (name, role, created_by) values ('x', 'admin', 'x')"),
    (WORKER, "update switches set is_on = false"),
    (WORKER, "insert into review_acts (decision_id, act, by_name) values ('x', 'approve', 'x')"),
    (WORKER, "delete from actions"),
    (CONSOLE, "select hash from api_tokens"),
    (CONSOLE, "insert into decisions (id) values ('x')"),
    (CONSOLE, "insert into entries (realm) values ('x')"),
    (CONSOLE, "update objects set body = ''"),
    (CONSOLE, "update inbox set payload = ''"),
    (CONSOLE, "delete from actions"),
]


@pytest.mark.parametrize(("role", "statement"), REFUSED, ids=[f"{role}: {text}" for role, text in REFUSED])
async def test_a_role_is_refused_what_it_is_not_for(by: As, role: str, statement: str) -> None:
    async with session(by(role)) as conn:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(statement)


GUARDED = """
    select tgrelid::regclass::text as name, bit_or(tgtype::int) as refused from pg_trigger
    where tgfoid in (select oid from pg_proc where proname in ('refuse_change', 'refuse_all_but_erasure')) group by 1 order by 1"""
DELETE, UPDATE, TRUNCATE = 8, 16, 32
"""Bits of pg_trigger.tgtype."""


async def test_no_process_can_rewrite_what_is_append_only_nor_switch_its_guard_off(by: As, pool: Pool) -> None:
    """A trigger guards them too; here not even the statement is let in."""
    tables = {row["name"]: row["refused"] for row in await pool.fetch(GUARDED)}
    assert {"decisions", "entries", "acts", "review_acts", "case_acts", "actions"} <= tables.keys()
    columns = "select attname from pg_attribute where attrelid = $1::regclass and attnum = 1"
    for table, refused in tables.items():
        first = await pool.fetchval(columns.replace("$1", f"'{table}'"))
        rewriting = [f"drop table {table}", f"alter table {table} disable trigger all", f"truncate {table}"]
        rewriting += [f"delete from {table}"] if refused & DELETE else []
        rewriting += [f"update {table} set {first} = default"] if refused & UPDATE else []
        for role in PROCESSES:
            async with session(by(role)) as conn:
                for statement in [*rewriting, "set session_replication_role = replica"]:
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await conn.execute(statement)


OF_THE_CHAIN = "proname ~ '^audit_(told|erased)_'"


async def test_no_process_can_make_the_chain_say_what_it_did_not_write(by: As, pool: Pool) -> None:
    """The chain's triggers run as the owner: on a table of one's own they would chain, and erase, whatever stands in it."""
    async with transaction(pool) as conn:
        await audit.record(conn, audit.EVERYWHERE, by="Ann", via="cli", act="refunds.pause", subject="refunds")
    functions = [row[0] for row in await pool.fetch(f"select proname::text from pg_proc where {OF_THE_CHAIN}")]
    assert len(functions) > 10
    await pool.execute("create schema elsewhere")
    for role in PROCESSES:
        await pool.execute(f"grant create, usage on schema elsewhere to {role}")
        async with session(by(role)) as conn:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute("create temp table forged (x int)")
            table = f"elsewhere.forged_by_{role}"
            await conn.execute(f"create table {table} (x int)")
            for name in functions:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.execute(
                        f"create trigger forges after insert on {table} for each row execute function public.{name}()"
                    )
    while await audit.append_pending(pool):
        pass
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read"):
        assert (await audit.verify(conn))["ok"]


async def test_nobody_may_hang_the_chains_functions_on_a_table_before_any_grants_were_made(pool: Pool) -> None:
    may = f"select count(*) from pg_proc where {OF_THE_CHAIN} and has_function_privilege('public', oid, 'execute')"
    assert await pool.fetchval(may) == 0


async def test_no_process_can_make_a_table_or_a_function_in_the_schema(by: As) -> None:
    for role in PROCESSES:
        async with session(by(role)) as conn:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute("create table public.more (x int)")


def test_the_script_for_psql_is_one_transaction_that_names_no_password() -> None:
    script = grants.script()
    assert script.index("\nbegin;") < script.index("then create role") < script.index("\ncommit;")
    assert "password '" not in script
