"""`policy diff`: recent history judged under both policies, what would change, and who must be told (clause 9)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from handlers.terms import SHIPPED_POLICY, parse_policy
from tests.handlers.history import DAY, HOUR, MINUTE, POLICY, History
from tests.worker.books import REALM, court, tell
from worker.db import Pool, connection
from worker.judging import action_id
from worker.policy_diff import diff, policy_named
from worker.reading import Document, NotFound
from worker.settings import Settings

TEXT = SHIPPED_POLICY.read_text(encoding="utf-8")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def compare(pool: Pool, *changes: tuple[str, str], since: datetime = LONG_AGO) -> Document:
    text = TEXT
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    async with connection(pool) as conn:
        return await diff(conn, court(), REALM, POLICY, parse_policy(text), since)


def bought_half_an_hour_apart() -> History:
    history = History()
    history.customer()
    history.subscribe()
    history.subscribe(when=30 * MINUTE)
    return history


async def test_a_longer_window_makes_a_refund_of_a_review(pool: Pool) -> None:
    await tell(pool, bought_half_an_hour_apart())
    found = await compare(pool, ('window = "15m"', 'window = "1h"'))
    assert found["terms"] == [{"term": "duplicates.window", "was": "15m", "would_be": "1h"}]
    (change,) = found["changes"]
    assert (change["subject"], change["was"], change["would_be"]) == ("ch_0002", "review 29.00 USD", "refund 29.00 USD")
    assert found["refunds"] == {"was": [], "would_be": [{"minor": 2900, "currency": "usd"}]}
    assert found["tell"] == ["cus_A"]
    assert await pool.fetchval("select count(*) from decisions") == 1, "nothing was written"


async def test_what_was_refunded_by_us_is_replayed_as_if_it_had_not_been(pool: Pool) -> None:
    history = bought_half_an_hour_apart()
    history.refund("ch_0002", HOUR, 2900, action=action_id(REALM, "refund", "ch_0002"))
    await tell(pool, history)
    found = await compare(pool, ('window = "15m"', 'window = "1h"'))
    assert [(c["subject"], c["was"], c["would_be"]) for c in found["changes"]] == [
        ("ch_0002", "review 29.00 USD", "refund 29.00 USD")
    ]


async def test_suspending_instead_of_flagging_and_other_credits_are_told(pool: Pool) -> None:
    history = History()
    history.customer()
    history.dispute(history.subscribe().charge, "needs_response")
    await tell(pool, history)
    found = await compare(
        pool, ('on_chargeback = "flag"', 'on_chargeback = "suspend"'), ("included = 500", "included = 400")
    )
    said = {(c["about"], c["was"], c["would_be"]) for c in found["changes"] if c["about"] != "decision"}
    assert said == {("standing", "flagged", "suspended"), ("credits", "500 credits", "400 credits")}


async def test_the_same_policy_changes_nothing_and_nobody_is_told(pool: Pool) -> None:
    await tell(pool, bought_half_an_hour_apart())
    found = await compare(pool)
    assert (found["terms"], found["changes"], found["tell"]) == ([], [], [])


async def test_only_files_that_changed_since_are_replayed(pool: Pool) -> None:
    await tell(pool, bought_half_an_hour_apart())
    found = await compare(pool, ('window = "15m"', 'window = "1h"'), since=datetime.now(UTC) + timedelta(seconds=DAY))
    assert (found["persons"], found["changes"]) == (0, [])
    assert found["tell"] == ["cus_A"], "whoever has a subscription is told, also where nothing happened lately"


def test_a_policy_is_named_by_file_or_by_version(settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(TEXT)
    assert policy_named(settings, str(other)).version[-1].id == "2025-01"
    assert policy_named(settings, "2025-01").version[-1].id == "2025-01"
    with pytest.raises(NotFound, match="neither a policy file nor a version"):
        policy_named(settings, "2031-01")
