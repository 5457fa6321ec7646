"""Bearer tokens: what each may do, when it begins and ends to be believed, and what guessing costs whom."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta

import aiohttp
import pytest
import structlog
from pydantic import SecretStr

from tests.conftest import eventually
from tests.worker.app_books import App, put_account, put_lot
from worker import tokens
from worker.db import Pool, transaction
from worker.errors import SettingsInvalid
from worker.settings import Settings
from worker.tokens import Bearer, Scope, TokenInvalid, Tokens, configured_tokens, digest_of
from worker.web import Listening, listening

LONG = "0123456789abcdef"
EVERYTHING = frozenset(Scope)
Open = Callable[[str], App]


@pytest.fixture
async def app(web: Listening, pool: Pool) -> AsyncIterator[Open]:
    """The app with any token, and a customer to ask about."""
    await put_account(pool)
    await put_lot(pool, "lot", 10)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield lambda token: App(web.port, session, token)


async def made(pool: Pool, name: str = "app", scopes: frozenset[Scope] = EVERYTHING, **more: timedelta) -> str:
    async with transaction(pool) as conn:
        document = await tokens.add(conn, name, scopes, by="anna", **more)
    return str(document["token"])


async def answers_within(seconds: float, status: int, ask: Callable[[], Awaitable[int]]) -> None:
    """Wait until asking answers `status`."""
    began = time.monotonic()
    while await ask() != status:
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.1)


# of the environment --------------------------------------------------------------------------------------------------------


def test_a_bare_token_may_do_everything_and_a_named_one_what_it_says() -> None:
    found = configured_tokens(f" {LONG} , app:read+consume:{LONG}:with:colons,,")
    assert found == {
        digest_of(LONG): Bearer("env_1", "configured-1", EVERYTHING),
        digest_of(f"{LONG}:with:colons"): Bearer("env_2", "app", frozenset({Scope.READ, Scope.CONSUME})),
    }


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("short", "entry 1 has a token shorter than 16 characters"),
        (f"{LONG},app:read:short", "entry 2 has a token shorter than 16 characters"),
        (f"app:{LONG}", "entry 1 is neither"),
        (f"app:write:{LONG}", "Scopes are read, consume, cases"),
        (f"app::{LONG}", "Scopes are read, consume, cases"),
        (f":read:{LONG}", "A token's name is"),
        (f"{LONG} {LONG}", "a character that no HTTP header carries"),
        (f"{LONG}é", "a character that no HTTP header carries"),
        (f"{LONG},app:read:{LONG}", "entry 2 is a token that stands there before"),
    ],
)
def test_a_wrong_list_is_refused_with_a_sentence_that_quotes_no_token(listed: str, says: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        configured_tokens(listed)
    assert says in str(refused.value)
    assert LONG not in str(refused.value)
    assert "short," not in str(refused.value)


async def test_a_web_process_with_a_wrong_list_does_not_start(settings: Settings) -> None:
    with pytest.raises(SettingsInvalid):
        async with listening(settings.model_copy(update={"api_tokens": SecretStr("short")})):
            pass


# who is let in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        f"Token {LONG}",
        f"bearer {LONG}",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 4000,
    ],
)
async def test_without_a_valid_token_everything_is_401_but_the_description(
    header: str | None, app: Open, web: Listening
) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (
        ("GET", "customers/cus_A"),
        ("GET", "customers/cus_unknown"),
        ("POST", "customers/cus_A/credits/consume"),
        ("POST", "cases"),
        ("GET", "cases/case_1"),
    ):
        told = await app("").ask(method, path, headers=headers)
        assert (told.status, told.code) == (401, "unauthorized")
        assert told.headers["WWW-Authenticate"].startswith("Bearer ")
    assert (await app("").ask("GET", "openapi.json", headers=headers)).status == 200


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_scope_opens_its_own_operations_and_no_other(scope: Scope, app: Open, pool: Pool) -> None:
    with_token = app(await made(pool, scopes=frozenset({scope})))
    asked = {
        Scope.READ: await with_token.get("customers/cus_A"),
        Scope.CONSUME: await with_token.consume(1, "k"),
        Scope.CASES: await with_token.get("cases/case_0000"),
    }
    for needed, told in asked.items():
        assert (told.status == 403) == (needed is not scope)
        assert needed is scope or told.code == "missing_scope"


async def test_a_token_is_valid_at_once_and_refused_within_two_seconds_of_its_revocation(app: Open, pool: Pool) -> None:
    token = await made(pool)
    with_token = app(token)
    assert (await with_token.get("customers/cus_A")).status == 200
    async with transaction(pool) as conn:
        (ended,) = await tokens.revoke(conn, "app", by="bert")
    assert (ended["state"], ended["id"]) == ("revoked", token.split("_")[1])

    async def status() -> int:
        return (await with_token.get("customers/cus_A")).status

    await answers_within(2, 401, status)


async def test_a_token_ends_by_itself(app: Open, pool: Pool) -> None:
    with_token = app(await made(pool, lifetime=timedelta(seconds=1)))
    assert (await with_token.get("customers/cus_A")).status == 200
    await asyncio.sleep(2.1)
    assert (await with_token.get("customers/cus_A")).status == 401


async def test_rotation_leaves_no_moment_without_a_valid_token(app: Open, pool: Pool) -> None:
    old = app(await made(pool, scopes=frozenset({Scope.READ})))
    async with transaction(pool) as conn:
        document = await tokens.rotate(conn, "app", by="bert", overlap=timedelta(seconds=1))
    assert (document["scopes"], document["created_by"], len(document["replaces"])) == (["read"], "bert", 1)
    new = app(document["token"])
    assert [(await one.get("customers/cus_A")).status for one in (old, new)] == [200, 200]
    await asyncio.sleep(2.1)
    assert [(await one.get("customers/cus_A")).status for one in (old, new)] == [401, 200]


async def test_rotation_never_prolongs_a_token(pool: Pool) -> None:
    await made(pool, lifetime=timedelta(hours=1))
    async with transaction(pool) as conn:
        document = await tokens.rotate(conn, "app", by="bert", overlap=timedelta(hours=24))
        for nothing in ("other", ""):
            with pytest.raises(TokenInvalid):
                await tokens.rotate(conn, nothing, by="bert")
    ends = document["replaces"][0]["expires_at"]
    assert timedelta(minutes=59) < ends - document["created_at"] <= timedelta(hours=1)


async def test_only_hashes_are_stored(pool: Pool) -> None:
    token = await made(pool)
    row = await pool.fetchrow("select * from api_tokens")
    assert row is not None
    assert row["hash"] == digest_of(token)
    assert token.split("_", 2)[2] not in str(dict(row))
    assert token.startswith(f"fst_{row['id']}_")
    assert len(token) > 50


# what guessing costs -------------------------------------------------------------------------------------------------------


async def test_a_thousand_unknown_tokens_are_two_queries(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()
    told = tokens.queries.valid_tokens

    def counted(conn: object) -> object:
        asked["queries"] += 1
        return told(conn)

    monkeypatch.setattr(tokens.queries, "valid_tokens", counted)
    known = Tokens({}, pool)
    refreshing = asyncio.create_task(known.run())
    await eventually(known.current)
    found = await asyncio.gather(*(known.look_up(digest_of(f"guess {number}")) for number in range(1000)))
    found += [await known.look_up(digest_of(f"another {number}")) for number in range(100)]
    assert set(found) == {None}
    assert asked["queries"] <= 2
    refreshing.cancel()


async def test_guessers_hear_429_while_a_token_goes_through(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.api.ANONYMOUS_PER_S", 1)
    await put_account(pool)
    with_token = settings.model_copy(update={"api_tokens": SecretStr(LONG)})
    async with listening(with_token) as running, aiohttp.ClientSession() as session:
        await eventually(running.watch.ready)
        guesses = [App(running.port, session, f"guess-{number}").get("customers/cus_A") for number in range(40)]
        told, let_in = await asyncio.gather(
            asyncio.gather(*guesses), App(running.port, session, LONG).get("customers/cus_A")
        )
        assert let_in.status == 200
    assert Counter(one.status for one in told)[429] >= 20
    assert {one.headers["Retry-After"] for one in told if one.status == 429} == {"1"}


async def test_each_token_has_a_rate_of_its_own(
    settings: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.api.TOKEN_PER_S", 2)
    await put_account(pool)
    two = settings.model_copy(update={"api_tokens": SecretStr(f"{LONG}1,{LONG}2")})
    async with listening(two) as running, aiohttp.ClientSession() as session:
        await eventually(running.watch.ready)
        greedy, calm = App(running.port, session, f"{LONG}1"), App(running.port, session, f"{LONG}2")
        told = await asyncio.gather(*(greedy.get("customers/cus_A") for _ in range(40)))
        assert Counter(one.status for one in told)[429] >= 20
        assert (await calm.get("customers/cus_A")).status == 200
        await asyncio.sleep(1)
        assert (await greedy.get("customers/cus_A")).status == 200


async def test_a_known_token_is_not_believed_for_long_when_the_table_cannot_be_read(
    app: Open, web: Listening, pool: Pool
) -> None:
    with_token = app(await made(pool))
    assert (await with_token.get("customers/cus_A")).status == 200
    await pool.execute("alter table api_tokens rename to elsewhere")

    async def status() -> int:
        return (await with_token.get("customers/cus_A")).status

    await answers_within(3, 503, status)
    await pool.execute("alter table elsewhere rename to api_tokens")
    await answers_within(3, 200, status)


async def test_no_token_reaches_a_log_line_or_the_metrics(
    app: Open, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    token = await made(pool)
    with_token = app(token)
    await with_token.get("customers/cus_A")
    await app(token + "x").get("customers/cus_A")
    await pool.execute("drop table lots cascade")
    assert (await with_token.get("customers/cus_A")).status == 503
    async with with_token.session.get(f"{with_token.base}/metrics") as answer:
        text = await answer.text()
    out, err = capsys.readouterr()
    assert token.split("_", 2)[2] not in out + err + text


# the command line ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Awaitable[str]]]:
    """`finalsale tokens …` on this test's database; the answer is its standard output."""
    from worker.cli_app import tokens as commands

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "60")
    handlers, level = logging.getLogger().handlers, logging.getLogger().level

    async def run(*arguments: str) -> str:
        capsys.readouterr()
        await asyncio.to_thread(commands, list(arguments), exit_on_error=False, result_action="return_value")
        return capsys.readouterr().out

    yield run
    structlog.reset_defaults()
    logging.getLogger().handlers, logging.getLogger().level = handlers, level


async def test_the_commands_make_list_rotate_and_revoke(app: Open, command: Callable[..., Awaitable[str]]) -> None:
    told = await command("add", "shop", "--scopes", "read,consume", "--by", "anna", "--expires", "90d")
    token = told.splitlines()[0]
    assert token.startswith("fst_")
    assert (await app(token).get("customers/cus_A")).status == 200
    (listed,) = json.loads(await command("list", "--json"))
    assert (listed["name"], listed["state"], listed["scopes"], listed["created_by"]) == (
        "shop",
        "valid",
        ["consume", "read"],
        "anna",
    )
    assert token not in json.dumps(listed)
    assert "hash" not in listed
    second = json.loads(await command("rotate", "shop", "--overlap", "1h", "--by", "bert", "--json"))
    assert second["replaces"][0]["id"] == listed["id"]
    (ended,) = json.loads(await command("revoke", second["id"], "--by", "bert", "--json"))
    assert (ended["id"], ended["state"]) == (second["id"], "revoked")
    states = {one["id"]: one["state"] for one in json.loads(await command("list", "--json"))}
    assert states == {listed["id"]: "valid", second["id"]: "revoked"}
    assert "revoked" in await command("list")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "shop", "--scopes", "write", "--by", "anna"), "Scopes are"),
        (("add", "", "--scopes", "read", "--by", "anna"), "A token's name"),
        (("add", "shop", "--scopes", "read", "--by", " "), "--by NAME"),
        (("add", "shop", "--scopes", "read", "--by", "anna", "--expires", "soon"), "A length of time"),
        (("add", "shop", "--scopes", "read", "--by", "anna", "--expires", "0d"), "expires at once"),
        (("revoke", "nobody", "--by", "anna"), "No token that could be revoked"),
        (("rotate", "nobody", "--by", "anna"), "No valid token"),
    ],
)
async def test_a_wrong_command_is_refused_with_one_sentence(
    arguments: tuple[str, ...], says: str, command: Callable[..., Awaitable[str]], pool: Pool
) -> None:
    with pytest.raises(TokenInvalid, match=says):
        await command(*arguments)
    assert await pool.fetchval("select count(*) from api_tokens") == 0
