"""What a merchant's people do in a year: they declare outages, grant and extend, suspend, lift and keep holds, and answer letters."""

from __future__ import annotations

from datetime import UTC, datetime

import aiohttp
import msgspec

from handlers.account import OPERATOR_HOLD, Account, ActKind
from handlers.terms import Policy
from tests.year_played import DAY, Declared, Played
from worker import acts, cases, outages
from worker.db import Pool, transaction
from worker.judging import Court

REALM = "test"
BY = "Ola"


class Operators:
    """The merchant's people, who come in the evening. What they did stands in `played`."""

    def __init__(self, pool: Pool, policy: Policy, played: Played, http: aiohttp.ClientSession, stripe: str) -> None:
        self.pool, self.policy, self.played = pool, policy, played
        self.http, self.stripe = http, stripe
        self.court = Court(policy=policy, refunds="auto")

    async def evening(self, day: int) -> bool:
        """One evening's work. Whether an outage was declared, so that every file has to be judged anew."""
        third = self.played.days // 3
        if day == third:
            await self._declare(day, 40, 13, ())
        if day == 2 * third:
            await self._declare(day, 60, 30, ("price_pro",))
        if day == 2 * third + 1:  # it overlaps the one of the day before, and gives that time to nobody twice
            await self._declare(day, 64, 37, ())
        match day % 8:
            case 1:
                await self._grant_and_extend(day)
            case 3:
                await self._open_case(day)
            case 5:
                await self._suspend(day)
            case 6:
                await self._decide_about_holds(day)
        return day in (third, 2 * third, 2 * third + 1)

    async def _declare(self, day: int, begins_h: int, ends_h: int, plans: tuple[str, ...]) -> None:
        """An outage from and to so many hours before this evening, looked at before it is declared (4.2)."""
        evening = self.played.begin + (day + 1) * DAY
        begins, ends = evening - begins_h * 3600, evening - ends_h * 3600
        times = datetime.fromtimestamp(begins, UTC), datetime.fromtimestamp(ends, UTC)
        async with transaction(self.pool) as conn:
            seen = await outages.preview(conn, self.court, REALM, *times, plans)
            await outages.declare(conn, REALM, *times, plans, confirm=seen["id"], by=BY, reason="renderers down")
        self.played.outages.append(
            Declared(
                id=seen["id"], begins=begins, ends=ends, plans=plans, declared_at=evening, previewed=seen["credits"]
            )
        )

    async def _wish(self, kind: ActKind, customer: str, reason: str, **more: object) -> None:
        wish = msgspec.convert(
            {"kind": kind, "customer": customer, "by": BY, "reason": reason, **more}, acts.Wish, strict=False
        )
        async with transaction(self.pool) as conn:
            await acts.carry_out(conn, [REALM], wish)
        self.played.acts += 1

    async def _grant_and_extend(self, day: int) -> None:
        """Technical trouble (4.1): credits, for a while or for good, and a week more."""
        row = await self.pool.fetchrow(
            "select customer, body from accounts where access_until > moment(realm) order by md5(customer || $1) limit 1",
            f"grant {day}",
        )
        if row is None:
            return
        until = datetime.fromtimestamp(self.played.begin + (day + 30) * DAY, UTC) if day % 16 == 1 else None
        await self._wish(
            ActKind.GRANT, row["customer"], "lost pictures", credits=50 + day, until=until, case=f"T-{day}"
        )
        self.played.granted += 50 + day
        access = msgspec.json.decode(row["body"], type=Account).access
        latest = max((a for a in access if a.until is not None), key=lambda a: a.until or 0)
        if latest.ended_at is None:
            await self._wish(ActKind.EXTEND, row["customer"], "lost a week", subscription=latest.subscription, days=7)

    async def _suspend(self, day: int) -> None:
        """Somebody is suspended by hand (7), and whoever was before is let go again."""
        if self.played.suspended:
            await self._wish(ActKind.LIFT, self.played.suspended.pop(), "cleared up")
        row = await self.pool.fetchrow(
            "select customer from accounts where standing = 'good' order by md5(customer || $1) limit 1",
            f"suspend {day}",
        )
        if row is not None:
            await self._wish(ActKind.SUSPEND, row["customer"], "scraping")
            self.played.suspended.append(row["customer"])

    async def _decide_about_holds(self, day: int) -> None:
        """A lost dispute is forgiven, an open one is held against its customer whatever becomes of it."""
        rows = await self.pool.fetch(
            "select body from accounts where holds > 0 order by md5(customer || $1)", f"holds {day}"
        )
        holds = [
            (account.customer, hold)
            for row in rows
            for account in [msgspec.json.decode(row["body"], type=Account)]
            for hold in account.holds
        ]
        decided = self.played.lifted | self.played.kept | {OPERATOR_HOLD}
        for status, kind, done in (
            ("lost", ActKind.LIFT, self.played.lifted),
            ("needs_response", ActKind.KEEP, self.played.kept),
        ):
            found = [(c, h) for c, h in holds if h.status == status and h.subject not in decided]
            if found and (kind is ActKind.LIFT or day % 32 == 6):
                customer, hold = found[0]
                await self._wish(kind, customer, "talked to them", dispute=hold.subject)
                done.add(hold.subject)

    async def last_evening(self) -> None:
        """The clocks of the letters are looked at once a minute; here a minute is a week, so somebody looks now."""
        async with transaction(self.pool) as conn:
            await cases.alert_cases(conn)

    async def _open_case(self, day: int) -> None:
        """A customer writes to support about a payment (5); every third letter lies too long."""
        row = await self.pool.fetchrow(
            "select id, customer from objects where kind = 'charge' and customer is not null order by md5(id || $1) limit 1",
            str(day),
        )
        if row is None:
            return
        key = {"Authorization": "Bearer sk_test_sandbox"}
        async with self.http.get(f"{self.stripe}/v1/customers/{row['customer']}", headers=key) as answer:
            email = (await answer.json())["email"]
        request = cases.CaseRequest(
            email=email,
            date=f"{datetime.fromtimestamp(self.played.begin + day * DAY, UTC):%Y-%m-%d}",
            description="I want my money back, please: I do not need it any more.",
            transaction=row["id"],
            kind="refund",
            request_key=f"letter-{day}",
        )
        async with transaction(self.pool) as conn:
            opened = await cases.open_case(conn, self.policy, REALM, request, by="app")
        self.played.cases.append(opened["id"])
        if len(self.played.cases) % 3:
            async with transaction(self.pool) as conn:
                await cases.answer(conn, self.policy, [REALM], opened["id"], by=BY)
            self.played.answered.append(opened["id"])
