"""Operators: names that two people cannot share, tokens that end when they should, and the last admin who stays."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.test_review import POLICY, REALMS, bought_twice, tell
from worker import cli, operators, review
from worker.console_address import console_address
from worker.db import Pool, transaction
from worker.operators import OperatorInvalid, Role, folded, matches, split_token
from worker.review import ActRefused
from worker.settings import Settings

TOKEN = re.compile(r"fso_[0-9a-f]{8}_[A-Za-z0-9_-]{43}")


async def made(
    pool: Pool, name: str, role: Role = Role.DECIDE, lifetime: timedelta | None = None
) -> operators.Document:
    async with transaction(pool) as conn:
        return await operators.add(conn, name, role, by="tests", lifetime=lifetime)


async def valid(pool: Pool, token: operators.Document) -> bool:
    split = split_token(token["token"])
    assert split
    async with pool.acquire() as conn:
        row = await operators.queries.find_operator_token(conn, id=split[0])
    return row is not None and await matches(row["hash"], split[1])


def test_each_role_may_do_what_those_before_it_may() -> None:
    may = {(role, needed) for role in Role for needed in Role if role.allows(needed)}
    assert (Role.READ, Role.DECIDE) not in may
    assert (Role.DECIDE, Role.ADMIN) not in may
    assert len(may) == 6


@pytest.mark.parametrize(
    "name", ["", "  ", "a\x00b", "a\x1bb", "x" * 61, "a\u202eb", "\u200b", "A\u034fda", "Ada\ufe0f", "Ada\u3164"]
)
async def test_a_name_is_one_line_of_printable_characters(pool: Pool, name: str) -> None:
    with pytest.raises(OperatorInvalid, match="printable"):
        await made(pool, name)


ONE_PERSON = {
    "decomposed": ("José", "Jose\u0301"),
    "joined by what is not seen": ("José", "Jose\u034f\u0301"),
    "variation selector": ("Ada", "Ada\ufe0f"),
    "supplementary variation selector": ("Ada", "Ad\U000e0100a"),
    "zero width": ("Ada", "A\u200bda"),
    "soft hyphen": ("Ada", "A\u00adda"),
    "Hangul filler": ("Ada", "Ada\u3164"),
    "half width filler": ("Ada", "\uffa0Ada"),
    "blank Braille": ("Ada", "Ada\u2800"),
    "full width": ("Ada", "\uff21da"),
    "mathematical": ("Ada", "\U0001d400da"),
    "no-break space": ("Ada Lee", "ADA\u00a0\u2003Lee"),
    "case": ("Weiß", "WEISS"),
}


@pytest.mark.parametrize("names", ONE_PERSON.values(), ids=ONE_PERSON)
def test_names_that_look_alike_are_one_person(names: tuple[str, str]) -> None:
    one, other = names
    assert folded(one) == folded(other)
    assert review._same_name(one, other)


def test_two_people_stay_two() -> None:
    names = ("Ada", "Ida", "Ada Lee", "Jose", "José", "Ада", "李", "")
    assert len({folded(name) for name in names}) == len(names)


@given(st.text(max_size=20))
def test_comparing_a_name_again_changes_nothing(name: str) -> None:
    assert folded(folded(name)) == folded(name)


@pytest.mark.parametrize("name", ["Аda", "Ad\u03b1", "Αda", "Иvan"])
async def test_a_name_in_mixed_alphabets_is_refused(pool: Pool, name: str) -> None:
    with pytest.raises(OperatorInvalid, match="alphabet"):
        await made(pool, name)


@pytest.mark.parametrize("name", ["Ада Лавлейс", "Δημήτρης", "李 Lee", "O’Neill-Å"])
async def test_a_name_in_one_alphabet_is_taken(pool: Pool, name: str) -> None:
    assert (await made(pool, name))["name"] == name


async def test_a_name_is_kept_composed(pool: Pool) -> None:
    assert (await made(pool, "Jose\u0301"))["name"] == "José"
    with pytest.raises(OperatorInvalid, match="taken"):
        await made(pool, "JOSÉ")


@given(st.text(max_size=20), st.text(max_size=20))
def test_names_are_compared_as_the_two_person_rule_compares_them(one: str, other: str) -> None:
    assert (folded(one) == folded(other)) is review._same_name(one, other)


@pytest.mark.parametrize("again", ["Ada Lovelace", "ADA  LOVELACE", " ada lovelace ", "ada LOVELACE"])
async def test_a_name_is_given_once_also_in_other_letters_and_after_its_end(pool: Pool, again: str) -> None:
    await made(pool, "Ada Lovelace")
    with pytest.raises(OperatorInvalid, match="taken"):
        await made(pool, again)
    async with transaction(pool) as conn:
        await operators.remove(conn, "ada lovelace", by="tests")
    with pytest.raises(OperatorInvalid, match="removed"):
        await made(pool, again)


async def test_a_token_is_kept_as_an_argon2id_hash_only(pool: Pool) -> None:
    token = await made(pool, "Ada")
    assert TOKEN.fullmatch(token["token"])
    stored = await pool.fetchrow("select id, hash, sieve from operator_tokens")
    assert len(stored["sieve"]) == 4, "what is kept beside the hash tells 32 of 256 bits"
    assert stored["hash"].startswith("$argon2id$")
    assert token["token"] not in str(stored)
    assert token["token"].split("_", 2)[2] not in str(stored)
    assert await valid(pool, token)
    assert not await matches(stored["hash"], "A" * 43)
    assert not await matches("no hash at all", "A" * 43)


async def test_an_expiring_token_ends(pool: Pool) -> None:
    token = await made(pool, "Ada", lifetime=timedelta(hours=1))
    assert await valid(pool, token)
    await pool.execute("update operator_tokens set expires_at = expires_at - interval '1 hour'")
    assert not await valid(pool, token)
    with pytest.raises(OperatorInvalid, match="at once"):
        await made(pool, "Bea", lifetime=timedelta(0))


async def test_after_a_rotation_the_old_token_ends_with_the_overlap_and_never_later_than_before(pool: Pool) -> None:
    first = await made(pool, "Ada", lifetime=timedelta(hours=2))
    async with transaction(pool) as conn:
        second = await operators.rotate(conn, "ada", by="tests", overlap=timedelta(hours=24))
    assert second["replaces"] == [{"id": first["token_id"], "expires_at": first["expires_at"]}]
    async with transaction(pool) as conn:
        third = await operators.rotate(conn, "Ada", by="tests", overlap=timedelta(0))
    assert {one["id"] for one in third["replaces"]} == {first["token_id"], second["token_id"]}
    assert [await valid(pool, token) for token in (first, second, third)] == [False, False, True]


async def test_a_token_is_revoked_by_its_id_or_by_itself_once(pool: Pool) -> None:
    token = await made(pool, "Ada")
    async with transaction(pool) as conn:
        done = await operators.revoke(conn, token["token"], by="tests")
        assert done["name"] == "Ada"
        for again in (token["token_id"], "00000000", "", "x' or 1=1"):
            with pytest.raises(OperatorInvalid, match="revoked"):
                await operators.revoke(conn, again, by="tests")
    assert not await valid(pool, token)


async def test_the_last_admin_is_neither_removed_nor_degraded(pool: Pool) -> None:
    await made(pool, "Ida", Role.ADMIN)
    await made(pool, "Ada", Role.DECIDE)
    async with transaction(pool) as conn:
        with pytest.raises(OperatorInvalid, match="last admin"):
            await operators.remove(conn, "Ida", by="tests")
        with pytest.raises(OperatorInvalid, match="last admin"):
            await operators.set_role(conn, "Ida", Role.DECIDE, by="tests")
        await operators.set_role(conn, "Ida", Role.ADMIN, by="tests")
        await operators.set_role(conn, "Ada", Role.ADMIN, by="tests")
        assert (await operators.remove(conn, "Ida", by="tests"))["removed"]
        with pytest.raises(OperatorInvalid, match="No operator"):
            await operators.remove(conn, "Ida", by="tests")


async def test_an_admin_who_can_still_sign_in_is_always_left(pool: Pool) -> None:
    ida, eve = await made(pool, "Ida", Role.ADMIN), await made(pool, "Eve", Role.ADMIN)
    await pool.execute("update operator_tokens set expires_at = now() where operator = 'Eve'")
    async with transaction(pool) as conn:
        for refused in (
            operators.revoke(conn, ida["token_id"], by="tests"),
            operators.remove(conn, "Ida", by="tests"),
            operators.set_role(conn, "Ida", Role.READ, by="tests"),
            operators.rotate(conn, "Ida", by="tests", lifetime=timedelta(minutes=5)),
        ):
            with pytest.raises(OperatorInvalid, match="last admin"):
                await refused
        again = await operators.rotate(conn, "Ida", by="tests", overlap=timedelta(0))
        assert (await operators.revoke(conn, eve["token_id"], by="tests"))["name"] == "Eve"
        with pytest.raises(OperatorInvalid, match="last admin"):
            await operators.revoke(conn, again["token_id"], by="tests")
        await operators.rotate(conn, "Eve", by="tests")
        assert (await operators.revoke(conn, again["token_id"], by="tests"))["name"] == "Ida"


async def test_two_admins_who_revoke_each_others_token_at_once_do_not_both_succeed(pool: Pool) -> None:
    tokens = [(await made(pool, name, Role.ADMIN))["token_id"] for name in ("Ida", "Ada")]

    async def revoke(token: str) -> bool:
        try:
            async with transaction(pool) as conn:
                await operators.revoke(conn, token, by="tests")
        except (OperatorInvalid, asyncpg.SerializationError):
            return False
        return True

    assert sorted(await asyncio.gather(*map(revoke, tokens))) == [False, True]


async def test_two_admins_who_remove_each_other_at_once_do_not_both_succeed(pool: Pool) -> None:
    await made(pool, "Ida", Role.ADMIN)
    await made(pool, "Ada", Role.ADMIN)

    async def remove(name: str) -> bool:
        try:
            async with transaction(pool) as conn:
                await operators.remove(conn, name, by="tests")
        except (OperatorInvalid, asyncpg.SerializationError):
            return False
        return True

    assert sorted(await asyncio.gather(remove("Ida"), remove("Ada"))) == [False, True]


async def test_every_change_is_written_down_with_before_and_after_and_no_secret(pool: Pool) -> None:
    token = await made(pool, "Ada", Role.READ)
    async with transaction(pool) as conn:
        await operators.set_role(conn, "Ada", Role.DECIDE, by="Ida", via="console")
        await operators.rotate(conn, "Ada", by="Ida")
        await operators.revoke(conn, token["token_id"], by="Ida")
        await operators.remove(conn, "Ada", by="Ida")
    rows = await pool.fetch("select * from operator_acts order by id")
    assert [(row["act"], row["by_name"], row["via"], row["subject"]) for row in rows] == [
        ("operator.add", "tests", "cli", "Ada"),
        ("operator.role", "Ida", "console", "Ada"),
        ("operator.rotate", "Ida", "cli", "Ada"),
        ("operator.revoke", "Ida", "cli", "Ada"),
        ("operator.remove", "Ida", "cli", "Ada"),
    ]
    assert token["token"].split("_", 2)[2] not in str(rows)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        (Settings(), "http://localhost:8080/console/"),
        (Settings(public_url="https://hooks.example/"), "https://hooks.example/console/"),
        (
            Settings(public_url="https://a.example", console_url="https://b.example/console"),
            "https://b.example/console/",
        ),
    ],
)
def test_people_are_told_where_the_console_is(settings: Settings, address: str) -> None:
    assert console_address(settings) == address


# the second person ---------------------------------------------------------------------------------------------------------


async def yes(pool: Pool, by: str, via: str = "cli") -> operators.Document:
    async with transaction(pool) as conn:
        return await review.approve(conn, POLICY, REALMS, "ch_0002", by=by, via=via)


async def test_above_the_limit_the_command_line_takes_the_names_of_active_operators_who_may_decide(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=100_001))
    for name, role in (("Ada", Role.DECIDE), ("Rosa", Role.READ), ("Eve", Role.DECIDE), ("Ida", Role.ADMIN)):
        await made(pool, name, role)
    async with transaction(pool) as conn:
        await operators.remove(conn, "Eve", by="tests")
    for nobody in ("Bob", "Rosa", "Eve"):
        with pytest.raises(ActRefused, match="finalsale operator list"):
            await yes(pool, nobody)
    assert (await yes(pool, "ada"))["planned"] == []
    with pytest.raises(ActRefused, match="finalsale operator list"):
        await yes(pool, "Bob")
    done = await yes(pool, "Ida")
    assert done["planned"]
    assert done["approved_by"] == ["ada", "Ida"]


async def test_one_person_with_a_name_written_in_two_ways_is_no_second_person(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=100_001))
    await made(pool, "José")
    assert (await yes(pool, "José", "console"))["planned"] == []
    for again in ("Jose\u0301", "JOSÉ", "Ｊosé"):
        with pytest.raises(ActRefused, match="second person"):
            await yes(pool, again)


async def test_up_to_the_limit_any_name_will_do(pool: Pool) -> None:
    await tell(pool, bought_twice(amount=100_000))
    await made(pool, "Ada")
    assert (await yes(pool, "Bob"))["planned"]


# the commands --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FINALSALE_LOG", "json")
    for name in ("FINALSALE_CONSOLE_URL", "FINALSALE_PUBLIC_URL", "PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("environment")
async def test_the_command_prints_a_token_once_and_manages_the_rest(
    capsys: pytest.CaptureFixture[str], pool: Pool
) -> None:
    async def said(*arguments: str, code: int = 0) -> tuple[str, str]:
        assert await asyncio.to_thread(cli.main, ["operator", *arguments]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    out, err = await said("add", "Ada", "--role", "decide", "--by", "Ida", "--expires", "90d")
    first = out.splitlines()[0]
    assert TOKEN.fullmatch(first)
    assert "http://localhost:8080/console/" in out
    assert first[13:] not in err
    out, _ = await said("rotate", "ada", "--overlap", "1h", "--json")
    assert TOKEN.fullmatch(json.loads(out)["token"])
    out, _ = await said("list", "--json")
    assert [len(one["tokens"]) for one in json.loads(out)] == [2]
    assert "hash" not in out
    assert first[4:12] in (await said("list"))[0]
    assert "has the role admin" in (await said("role", "Ada", "admin"))[0]
    assert "refused from now on" in (await said("revoke", first[4:12]))[0]
    out, err = await said("remove", "Ada", code=1)
    assert "Ada is the last admin who can sign in" in err
    await said("add", "Ida", "--role", "owner", code=2)
    _, err = await said("add", "ADA", "--role", "read", code=1)
    assert "is taken" in err


async def test_an_operator_can_be_made_while_the_embedded_database_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from worker.db.migrations import migrate
    from worker.embedded import embedded_servers

    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FINALSALE_STATE_DIR", str(tmp_path))
    async with embedded_servers(tmp_path, valkey=False) as servers:
        await migrate(servers.database_url)
        arguments = ["operator", "add", "Ida", "--role", "admin"]
        assert await asyncio.to_thread(cli.main, arguments) == 0
        assert TOKEN.fullmatch(capsys.readouterr().out.splitlines()[0])
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("select name from operators") == "Ida"
        await connection.close()
