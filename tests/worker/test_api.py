"""The API as the merchant's app uses it: real HTTP, a real Postgres, and what is said to every kind of wrong request."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from handlers.account import Access, Hold, Standing, Way
from handlers.customer import ChargeId, SubscriptionId
from tests.conftest import eventually
from tests.worker.app_books import DAY, HOUR, NOW, TOKEN, App, put_account, put_lot
from worker.api import RUN
from worker.api_document import MEANING, OPERATIONS, Code
from worker.db import Pool
from worker.settings import Settings
from worker.web import Listening, listening

SECONDS = int(NOW.timestamp())
HELD = Hold(
    subject="dp_1",
    since=SECONDS,
    status="needs_response",
    suspends=True,
    cause="dp_1 disputes ch_1.",
    charge=ChargeId("ch_1"),
    due_by=SECONDS + 7 * 86_400,
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"api_tokens": SecretStr(TOKEN)})


@pytest.fixture
async def app(web: Listening) -> AsyncIterator[App]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield App(web.port, session)


def z(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# may this customer go on? --------------------------------------------------------------------------------------------------


async def test_a_customer_is_told_whole_in_iso_times(app: App, pool: Pool) -> None:
    access = Access(
        subscription=SubscriptionId("sub_1"),
        status="active",
        way=Way.ENDING,
        until=SECONDS + 86_400,
        cause="sub_1 was cancelled.",
        requested_at=SECONDS,
        reason="cancellation_requested",
    )
    await put_account(pool, until=NOW + DAY, access=(access,))
    await put_lot(pool, "purchased:in_1:il_1", 500)
    await put_lot(pool, "included:in_1:il_2", 100, kind="included", ends_at=NOW + DAY)
    assert (await app.consume(30, "k")).status == 200
    status, told, headers = await app.get("customers/cus_A")
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert abs(datetime.fromisoformat(told.pop("as_of")) - NOW) < HOUR
    assert told == {
        "customer": "cus_A",
        "standing": "good",
        "may_continue": True,
        "holds": [],
        "access_until": z(NOW + DAY),
        "access": [
            {
                "subscription": "sub_1",
                "status": "active",
                "way": "ending",
                "until": z(NOW + DAY),
                "cause": "sub_1 was cancelled.",
                "requested_at": z(NOW),
                "ended_at": None,
                "reason": "cancellation_requested",
            }
        ],
        "credits": {
            "available": 570,
            "lots": [
                {
                    "id": "included:in_1:il_2",
                    "kind": "included",
                    "clause": "3",
                    "granted": 100,
                    "consumed": 30,
                    "available": 70,
                    "granted_at": z(NOW - HOUR),
                    "ends_at": z(NOW + DAY),
                },
                {
                    "id": "purchased:in_1:il_1",
                    "kind": "purchased",
                    "clause": "3",
                    "granted": 500,
                    "consumed": 0,
                    "available": 500,
                    "granted_at": z(NOW - HOUR),
                    "ends_at": None,
                },
            ],
        },
    }


@pytest.mark.parametrize(
    ("standing", "until", "credit", "may"),
    [
        (Standing.GOOD, NOW + DAY, 0, True),
        (Standing.GOOD, NOW - DAY, 0, False),
        (Standing.GOOD, None, 0, False),
        (Standing.GOOD, None, 5, True),
        (Standing.FLAGGED, NOW + DAY, 0, True),
        (Standing.FLAGGED, None, 0, False),
        (Standing.SUSPENDED, NOW + DAY, 5, False),
    ],
)
async def test_a_customer_may_go_on_with_access_or_credits_unless_suspended(
    standing: Standing, until: datetime | None, credit: int, may: bool, app: App, pool: Pool
) -> None:
    await put_account(pool, until=until, standing=standing)
    if credit:
        await put_lot(pool, "lot", credit)
    told = (await app.get("customers/cus_A")).json
    assert (told["standing"], told["may_continue"], told["credits"]["available"]) == (standing, may, credit)


async def test_a_lot_past_its_end_has_nothing_available_whether_or_not_its_end_was_posted(app: App, pool: Pool) -> None:
    await put_account(pool)
    await put_lot(pool, "trial", 100, kind="trial", ends_at=NOW - HOUR)
    told = (await app.get("customers/cus_A")).json
    assert (told["credits"]["available"], told["credits"]["lots"][0]["available"], told["may_continue"]) == (
        0,
        0,
        False,
    )
    assert (await app.consume(1, "k")).code == "insufficient"


async def test_a_rehearsal_moves_the_moment_that_ends_are_judged_by(app: App, pool: Pool) -> None:
    await put_account(pool, until=NOW + DAY)
    await put_lot(pool, "trial", 100, kind="trial", ends_at=NOW + DAY)
    await pool.execute("insert into rehearsal_clock (ahead) values ('2 days')")
    told = (await app.get("customers/cus_A")).json
    assert (told["credits"]["available"], told["may_continue"]) == (0, False)


async def test_a_customer_of_whom_only_an_object_of_stripe_is_known_is_in_good_standing(app: App, pool: Pool) -> None:
    await pool.execute(
        "insert into objects (realm, id, kind, customer, as_of, body) values ('test', 'cus_A', 'customer', 'cus_A', 1, '')"
    )
    told = (await app.get("customers/cus_A")).json
    assert (told["standing"], told["may_continue"], told["access_until"], told["access"]) == ("good", False, None, [])
    assert (await app.consume(1, "k")).code == "insufficient"


async def test_a_customer_of_whom_nothing_is_known_is_404(app: App, pool: Pool) -> None:
    await put_account(pool, "cus_B")
    for told in (await app.get("customers/cus_A"), await app.consume(1, "k")):
        assert (told.status, told.code, told.json["error"]["field"]) == (404, "unknown_customer", "id")


async def test_a_connected_account_s_customers_are_apart(app: App, pool: Pool) -> None:
    await put_account(pool)
    await put_lot(pool, "lot", 5, realm="test:acct_1")
    other = {"Finalsale-Account": "acct_1"}
    assert (await app.get("customers/cus_A")).json["credits"]["available"] == 0
    assert (await app.get("customers/cus_A", headers=other)).json["credits"]["available"] == 5
    assert (await app.consume(5, "k", headers=other)).json["remaining"] == 0
    refused = await app.get("customers/cus_A", headers={"Finalsale-Account": "test"})
    assert (refused.status, refused.json["error"]["field"]) == (422, "Finalsale-Account")


# consuming -----------------------------------------------------------------------------------------------------------------


async def test_a_key_consumes_once_and_answers_the_same_again(app: App, pool: Pool) -> None:
    await put_lot(pool, "lot", 10)
    assert (await app.consume(4, "k")).json == {"outcome": "consumed", "consumed": 4, "remaining": 6}
    assert (await app.consume(5, "other")).json["remaining"] == 1
    assert (await app.consume(4, "k")).json == {"outcome": "repeated", "consumed": 4, "remaining": 6}
    refused = await app.consume(5, "k")
    assert (refused.status, refused.code, refused.json["error"]["consumed"]) == (409, "other_amount", 4)
    assert await pool.fetchval("select remaining from lots") == 1


async def test_what_is_not_there_is_402_with_what_is_and_uses_up_no_key(app: App, pool: Pool) -> None:
    await put_lot(pool, "lot", 10)
    refused = await app.consume(11, "k")
    assert (refused.status, refused.code, refused.json["error"]["available"]) == (402, "insufficient", 10)
    assert (await app.consume(10, "k")).json["remaining"] == 0


async def test_a_suspended_customer_consumes_nothing_and_hears_the_holds(app: App, pool: Pool) -> None:
    await put_account(pool, standing=Standing.SUSPENDED, holds=(HELD,))
    await put_lot(pool, "lot", 10)
    refused = await app.consume(1, "k")
    held = {
        "subject": "dp_1",
        "since": z(NOW),
        "status": "needs_response",
        "suspends": True,
        "cause": "dp_1 disputes ch_1.",
        "charge": "ch_1",
        "due_by": z(NOW + 7 * DAY),
    }
    assert (refused.status, refused.code, refused.json["error"]["holds"]) == (403, "suspended", [held])
    assert (await app.get("customers/cus_A")).json["holds"] == [held]
    assert await pool.fetchval("select remaining from lots") == 10


async def test_the_key_may_be_a_header_and_has_to_be_the_same_in_both_places(app: App, pool: Pool) -> None:
    await put_lot(pool, "lot", 10)
    path = "customers/cus_A/credits/consume"
    with_key = {"Idempotency-Key": "k 1"}
    assert (await app.ask("POST", path, json={"amount": 3}, headers=with_key)).json["outcome"] == "consumed"
    assert (await app.consume(3, "k 1", headers=with_key)).json["outcome"] == "repeated"
    for told in (
        await app.consume(3, "k 2", headers=with_key),
        await app.ask("POST", path, json={"amount": 3}),
        await app.ask("POST", path, json={"amount": 3}, headers={"Idempotency-Key": ""}),
    ):
        assert (told.status, told.code) == (422, "invalid")
    assert await pool.fetchval("select remaining from lots") == 7


async def test_two_hundred_at_once_with_twenty_keys_consume_twenty_times_and_never_below_zero(
    app: App, pool: Pool
) -> None:
    await put_lot(pool, "a", 70, ends_at=NOW + DAY)
    await put_lot(pool, "b", 70)
    told = await asyncio.gather(*(app.consume(10, f"k{number % 20}") for number in range(200)))
    outcomes = Counter(one.json.get("outcome") or one.code for one in told)
    assert outcomes["consumed"] == 14
    assert set(outcomes) == {"consumed", "repeated", "insufficient"}
    assert await pool.fetchval("select count(*) from consumptions") == 14
    assert await pool.fetchval("select array_agg(remaining) from lots") == [0, 0]
    assert await pool.fetchval("select sum(amount) from entries where kind = 'consumed'") == -140


async def test_two_hundred_at_once_with_enough_for_all_consume_each_key_once(app: App, pool: Pool) -> None:
    await put_lot(pool, "a", 1000)
    told = await asyncio.gather(*(app.consume(10, f"k{number % 20}") for number in range(200)))
    assert Counter(one.json["outcome"] for one in told) == {"consumed": 20, "repeated": 180}
    assert await pool.fetchval("select remaining from lots") == 800


# cases ---------------------------------------------------------------------------------------------------------------------

CASE = {
    "email": "ada@example.com",
    "date": "2026-01-31",
    "description": "I was charged twice for one month.",
    "transaction": "ch_0001",
    "kind": "duplicate",
    "request_key": "ticket-1",
}


async def test_a_case_is_opened_once_for_a_key_and_read_again(app: App, pool: Pool) -> None:
    opened = await app.ask("POST", "cases", json=CASE)
    assert opened.status == 201
    assert {field: opened.json[field] for field in ("email", "date", "transaction", "kind", "state", "overdue")} == {
        "email": "ada@example.com",
        "date": "2026-01-31",
        "transaction": "ch_0001",
        "kind": "duplicate",
        "state": "open",
        "overdue": False,
    }
    assert opened.json["draft_answer"]
    again = await app.ask("POST", "cases", json=CASE)
    assert (again.status, again.json) == (200, opened.json)
    assert (await app.get(f"cases/{opened.json['id']}")).json == opened.json
    assert await pool.fetchval("select array_agg(by_name) from case_acts") == ["configured-1"]
    other = await app.ask("POST", "cases", json=CASE | {"description": "Something else went wrong."})
    assert (other.status, other.code) == (409, "other_request")


async def test_a_case_s_key_may_be_a_header(app: App) -> None:
    bare = {name: value for name, value in CASE.items() if name != "request_key"}
    told = [await app.ask("POST", "cases", json=bare, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [one.status for one in told] == [201, 200]
    assert told[0].json == told[1].json
    assert [(await app.ask("POST", "cases", json=bare)).status for _ in range(2)] == [201, 201]
    for body, key in ((CASE, "k"), (bare, "two words"), (bare, ""), (bare, "k" * 201)):
        refused = await app.ask("POST", "cases", json=body, headers={"Idempotency-Key": key})
        assert (refused.status, refused.json["error"]["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"email": "ada"}, "email"),
        ({"date": "2026-02-30"}, "date"),
        ({"date": "yesterday"}, "date"),
        ({"date": "2098-01-01"}, "date"),
        ({"description": "short"}, "description"),
        ({"transaction": "what"}, "transaction"),
        ({"kind": "complaint"}, "kind"),
    ],
)
async def test_a_wrong_case_is_422_and_names_the_field(
    changed: dict[str, str], field: str, app: App, pool: Pool
) -> None:
    told = await app.ask("POST", "cases", json=CASE | changed)
    assert (told.status, told.json["error"]["field"]) == (422, field)
    assert "ada@" not in told.json["error"]["message"] or field == "email"
    assert await pool.fetchval("select count(*) from cases") == 0


async def test_a_case_with_what_only_databases_dislike_is_opened_or_refused_but_never_fails(app: App) -> None:
    for description in ("a NUL: \0 in it", "emoji \U0001f600 all along", "\u202e turned around"):
        assert (
            await app.ask("POST", "cases", json={**CASE, "description": description, "request_key": None})
        ).status in (
            201,
            422,
        )


@pytest.mark.parametrize("id_", ["case_0000", "case_", "x", "ch_0001"])
async def test_an_unknown_case_is_404(id_: str, app: App) -> None:
    told = await app.get(f"cases/{id_}")
    assert (told.status, told.code) == (404, "not_found")


async def test_a_case_is_found_by_its_whole_id_only_and_only_in_its_account(app: App) -> None:
    opened = (await app.ask("POST", "cases", json=CASE)).json["id"]
    assert (await app.get(f"cases/{opened[:-1]}")).status == 404
    assert (await app.get(f"cases/{opened}", headers={"Finalsale-Account": "acct_1"})).status == 404


# wrong requests ------------------------------------------------------------------------------------------------------------

GOOD_TYPE = {"Content-Type": "application/json"}
BAD_BODIES = {
    "nothing": (b"", 400, None),
    "cut off": (b'{"amount": 1', 400, None),
    "followed by rubbish": (b'{"amount": 1, "key": "k"}x', 400, None),
    "no UTF-8": (b'{"amount": 1, "key": "\xff"}', 400, None),
    "UTF-16": ('{"amount": 1, "key": "k"}'.encode("utf-16"), 400, None),
    "not a number": (b'{"amount": NaN, "key": "k"}', 400, None),
    "a lone surrogate": (b'{"amount": 1, "key": "\\ud800"}', 400, None),
    "a field twice": (b'{"amount": 1, "key": "k", "amount": 9}', 400, None),
    "ten thousand levels deep": (b"[" * 10_000 + b"]" * 10_000, 422, None),
    "ten thousand levels deep in a field": (b'{"amount": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 422, "amount"),
    "a list": (b"[]", 422, None),
    "null": (b"null", 422, None),
    "no amount": (b'{"key": "k"}', 422, "amount"),
    "no key": (b'{"amount": 1}', 422, "key"),
    "an unknown field": (b'{"amount": 1, "key": "k", "extra": 1}', 422, "extra"),
    "an amount of zero": (b'{"amount": 0, "key": "k"}', 422, "amount"),
    "a negative amount": (b'{"amount": -1, "key": "k"}', 422, "amount"),
    "an amount as text": (b'{"amount": "1", "key": "k"}', 422, "amount"),
    "an amount as truth": (b'{"amount": true, "key": "k"}', 422, "amount"),
    "half a credit": (b'{"amount": 0.5, "key": "k"}', 422, "amount"),
    "beyond the limit": (b'{"amount": 1000000001, "key": "k"}', 422, "amount"),
    "beyond 64 bits": (b'{"amount": 99999999999999999999, "key": "k"}', 422, "amount"),
    "beyond all numbers": (b'{"amount": 1e999, "key": "k"}', 422, "amount"),
    "five thousand digits": (b'{"amount": ' + b"9" * 5000 + b', "key": "k"}', 422, "amount"),
    "an empty key": (b'{"amount": 1, "key": ""}', 422, "key"),
    "a key with NUL": (b'{"amount": 1, "key": "a\\u0000"}', 422, "key"),
    "a key with a line break": (b'{"amount": 1, "key": "a\\n"}', 422, "key"),
    "a key beyond ASCII": ('{"amount": 1, "key": "é"}'.encode(), 422, "key"),
    "an endless key": (b'{"amount": 1, "key": "' + b"k" * 256 + b'"}', 422, "key"),
    "null as a key": (b'{"amount": 1, "key": null}', 422, "key"),
}


@pytest.mark.parametrize(("body", "status", "field"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_wrong_body_is_4xx_and_names_the_field(
    body: bytes, status: int, field: str | None, app: App, pool: Pool
) -> None:
    await put_lot(pool, "lot", 10)
    told = await app.ask("POST", "customers/cus_A/credits/consume", data=body, headers=GOOD_TYPE)
    assert (told.status, told.json["error"].get("field")) == (status, field)
    assert told.json["error"]["message"].endswith(".")
    assert await pool.fetchval("select remaining from lots") == 10


async def test_a_body_over_the_limit_is_413_announced_or_not(app: App) -> None:
    body = b'{"key": "' + b"k" * 65_536 + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    for data in (body, chunks()):
        told = await app.ask("POST", "customers/cus_A/credits/consume", data=data, headers=GOOD_TYPE)
        assert (told.status, told.code) == (413, "too_large")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/jsonp"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
async def test_only_plain_json_is_read(headers: dict[str, str], status: int, app: App, pool: Pool) -> None:
    await put_lot(pool, "lot", 10)
    body = json.dumps({"amount": 1, "key": "k"}).encode()
    assert (await app.ask("POST", "customers/cus_A/credits/consume", data=body, headers=headers)).status == status


@pytest.mark.parametrize(
    "id_", ["a%00", "a%0A", "%F0%9F%98%80", "%ff", "a%20b", "a%2Fb", "%ED%A0%80", "x" * 256, "a'--"]
)
async def test_an_id_that_is_none_is_422(id_: str, app: App) -> None:
    told = await app.ask("GET", f"customers/{id_}")
    assert (told.status, told.json["error"]["field"]) == (422, "id")


@pytest.mark.parametrize(
    "path", ["", "customers", "customers/", "customers/cus_A/", "customers//credits/consume", "nothing"]
)
async def test_another_path_is_404_in_the_form_of_every_error(path: str, app: App) -> None:
    told = await app.get(path)
    assert (told.status, told.code) == (404, "not_found")


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "POST"])
async def test_another_method_is_405_and_says_which_is_right(method: str, app: App) -> None:
    told = await app.ask(method, "customers/cus_A")
    assert (told.status, told.headers["Allow"]) == (405, "GET")


# when Postgres is away -----------------------------------------------------------------------------------------------------


async def test_503_with_retry_after_while_postgres_is_away_and_401_is_not_guessed(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://nobody@127.0.0.1:1/none")})
    async with listening(away) as running, aiohttp.ClientSession() as session:
        app = App(running.port, session)
        known = await app.get("customers/cus_A")
        unknown = await App(running.port, session, "x" * 20).get("customers/cus_A")
        assert (await app.get("openapi.json")).status == 200
    for told in (known, unknown):
        assert (told.status, told.code, told.headers["Retry-After"]) == (503, "unavailable", "1")


async def test_503_before_the_tables_are_there(app: App, pool: Pool) -> None:
    await pool.execute("drop function consume_credits; drop function moment cascade")
    for told in (await app.get("customers/cus_A"), await app.consume(1, "k")):
        assert (told.status, told.code) == (503, "unavailable")


async def test_a_lock_that_is_held_too_long_is_503_and_the_key_is_free_afterwards(app: App, pool: Pool) -> None:
    await put_lot(pool, "lot", 10)
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("select 1 from lots for update")
        assert (await app.consume(1, "k")).status == 503
    assert (await app.consume(1, "k")).json["outcome"] == "consumed"


# the description -----------------------------------------------------------------------------------------------------------


def test_every_operation_has_its_function_and_every_code_its_meaning() -> None:
    assert {operation.name for operation in OPERATIONS} == set(RUN)
    assert set(MEANING) == set(Code)


ONE_KEY = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    right = case.meta is not None and case.meta.generation.mode.is_positive
    if right and isinstance(case.body, dict) and "key" in case.body and case.headers:
        case.headers.pop("Idempotency-Key", None)
"""
"""That the two places for a key have to agree, no schema says: right requests name it in one of them."""


@pytest.mark.timeout(240)
async def test_the_description_is_true_whatever_a_program_makes_up_of_it(
    settings: Settings, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.api.ANONYMOUS_PER_S", 10_000)
    monkeypatch.setattr("worker.api.TOKEN_PER_S", 10_000)
    await put_account(pool, until=NOW + DAY)
    await put_lot(pool, "lot", 10**12)
    async with listening(settings) as running, aiohttp.ClientSession() as session:
        await eventually(running.watch.ready)
        app = App(running.port, session)
        case = await app.ask("POST", "cases", json=CASE)
        likely = {"show_customer": "cus_A", "consume_credits": "cus_A", "show_case": case.json["id"]}
        likely_at, bare_at = tmp_path / "likely", tmp_path / "bare"
        likely_at.mkdir()
        bare_at.mkdir()
        (likely_at / "one_key.py").write_text(ONE_KEY)
        config = likely_at / "schemathesis.toml"
        config.write_text(
            'hooks = "one_key.py"\n'
            "[checks.positive_data_acceptance]\n"
            # a key may be missing in both places, a date may lie in the future: no schema says so
            'expected-statuses = ["2xx", "401", "402", "403", "404", "409", "422"]\n'
            + "".join(
                f'[[operations]]\ninclude-operation-id = "{name}"\nparameters = {{ "path.id" = "{id_}" }}\n'
                for name, id_ in likely.items()
            )
        )
        runs = [await _schemathesis(app.base, likely_at, config), await _schemathesis(app.base, bare_at)]
    assert [run[0] for run in runs] == [0, 0], "\n".join(run[1] for run in runs)
    assert await pool.fetchval("select count(*) from consumptions") >= 5
    assert await pool.fetchval("select count(*) from cases") > 1


async def _schemathesis(base: str, directory: Path, config: Path | None = None) -> tuple[int, str]:
    """Made-up requests, right ones and wrong ones, and whether every answer is one that the description names."""
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", str(config)] if config else []
    command += ["run", f"{base}/api/v1/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"]
    command += ["--max-examples", "20", "--seed", "1", "--continue-on-failure", "--no-color", "--no-shrink"]
    command += [] if config else ["--exclude-checks", "positive_data_acceptance"]
    program = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=directory,
    )
    output, _ = await asyncio.wait_for(program.communicate(), 100)
    return program.returncode or 0, output.decode(errors="replace")[-8000:]


async def test_requests_are_counted_by_operation_and_status(app: App, web: Listening, pool: Pool) -> None:
    await put_lot(pool, "lot", 10)
    await app.consume(1, "k")
    await app.get("nothing")
    async with app.session.get(f"{app.base}/metrics") as answer:
        text = await answer.text()
    assert 'finalsale_api_answers_total{operation="consume_credits",status="200"} 1.0' in text
    assert 'finalsale_api_answers_total{operation="none",status="404"} 1.0' in text
    assert "cus_A" not in text


async def test_the_intake_goes_on_beside_it(web: Listening) -> None:
    await eventually(web.watch.ready)
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{web.port}/readyz") as answer:
        assert answer.status == 200
