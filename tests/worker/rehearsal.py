"""The stage of the truth table: many stories at one sandbox on one rehearsed clock, and what became of each in plain words.

A story is an async generator: it does what people do, and yields the day until which nothing else happens. All stories run
side by side in one database; at every stop everything is heard, judged, looked up and performed until nothing moves.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from handlers.account import Account, ActKind
from handlers.decisions import Decision, Money
from handlers.terms import Policy, parse_policy
from sandbox.webhooks import snapshot_body
from tests.worker.merchant import POLICY_FILE, Merchant, Obj, merchant, store
from worker import acts, cases, outages
from worker.db import Pool, transaction
from worker.drain import drain
from worker.jobs import WorkerProcess
from worker.judging import WITHDRAWN, Court
from worker.perform import Performer
from worker.settings import Settings

DAY = 86_400
BEGIN = int(datetime(2025, 3, 1, tzinfo=UTC).timestamp())
"""Day 0. A month's periods end on the days 31, 61 and 92."""
NEW_VERSION = 45
"""The day from which the second version of the policy is in force (9)."""
REALM = "test"
SHAPES = {"new": "2026-10-28.endive", "old": "2025-02-24.acacia"}
ROUNDS = 12
"""More than any chain of events, look-ups and actions is long."""

Story = Callable[["Scene"], AsyncIterator[float]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: the clause, the matter in plain words, what people do, and what comes of it."""

    clause: str
    name: str
    story: Story
    then: str
    agreement: str | None = None
    """What was agreed with its first customer (8), as TOML."""
    old: str | None = None
    """What comes of it where the old shape tells less."""

    def outcome(self, shape: str) -> list[str]:
        then = self.old if self.old is not None and shape == "old" else self.then
        return sorted(line.strip() for line in then.strip().splitlines())


def policy_text(agreements: dict[str, str]) -> str:
    """The tests' policy, a second version of it from day 45 on, and what was agreed with some customers."""
    first = POLICY_FILE.read_text(encoding="utf-8")
    begins = _iso(BEGIN + NEW_VERSION * DAY)
    second = first[first.index("[[version]]") :]
    for before, after in (
        ('id = "2025-01"', 'id = "second"'),
        ("in_force_from = 2025-01-01T00:00:00Z", f"in_force_from = {begins}"),
        ('on_chargeback = "flag"', 'on_chargeback = "suspend"'),
        ("included = 500, trial = 50", "included = 600, trial = 60"),
        ("price_pack_100 = 100", "price_pack_100 = 110"),
    ):
        assert before in second
        second = second.replace(before, after)
    agreed = [
        f'[[agreement]]\ncustomer = "{customer}"\nsource = "MSA 9"\nfrom = 2025-01-01T00:00:00Z\noverrides = {text}\n'
        for customer, text in sorted(agreements.items())
    ]
    return "\n".join([first, second, *agreed])


def _iso(ts: int) -> str:
    return f"{datetime.fromtimestamp(ts, UTC):%Y-%m-%dT%H:%M:%SZ}"


def day_of(moment: int | datetime | None) -> str:
    """A moment as the stories count: `day 31`."""
    if moment is None:
        return "ever"
    seconds = moment if isinstance(moment, int) else moment.timestamp()
    return f"day {round((seconds - BEGIN) / DAY, 1):g}"


class Scene:
    """What one story sees: its customers at Stripe, and the people of the merchant."""

    def __init__(self, stage: Stage, row: Row, number: int) -> None:
        self.stage, self.row, self.number = stage, row, number
        self.m, self.books = stage.m, stage.m.books
        self.customers: list[str] = []
        self.cases: list[str] = []
        self.declared: list[str] = []
        self.customer = self.somebody()
        self.user = f"user{number}"
        self.hold_money = False
        """Whether what is planned about this story's customers waits."""
        self.failure: Exception | None = None
        self.seen: list[str] = []

    # at Stripe

    def somebody(self, **how: Any) -> Obj:
        """A new customer of this story, with a card and an address of their own."""
        name = f"{self.number}n{len(self.customers)}"
        found: Obj = self.books.new_customer(email=f"{name}@example.com", fingerprint=f"card{name}", **how)
        self.customers.append(found["id"])
        return found

    def buy(self, price: str = "price_basic", *, quantity: int = 1, by: Obj | None = None, **how: Any) -> Obj:
        """A subscription, begun now and paid with the customer's card unless it begins with a trial."""
        metadata = how.pop("metadata", {"user_id": self.user})
        sold = [(self.stage.prices[price], quantity)]
        bought: Obj = self.books.subscribe(by or self.customer, sold, metadata=metadata, **how)
        return bought

    def pack(self, price: str = "price_pack_100", **how: Any) -> Obj:
        bought: Obj = self.books.checkout(self.customer, self.stage.prices[price], mode="payment", **how)
        return bought

    def at(self, day: float) -> int:
        return BEGIN + int(day * DAY)

    def charge(self, of: Obj) -> Obj:
        """The (latest) charge that paid a subscription's latest invoice."""
        return self.m.charge_of(of)

    def invoice(self, of: Obj) -> Obj:
        found: Obj = self.books.by_id[of["latest_invoice"]]
        return found

    # the merchant's people and app

    async def act(self, kind: ActKind, **more: Any) -> None:
        """An operator's act about this story's customer."""
        wish = acts.Wish(kind=kind, customer=self.customers[0], by="Ola", reason="talked to them", **more)
        async with transaction(self.m.pool) as conn:
            await acts.carry_out(conn, [REALM], wish)

    async def consume(self, amount: int, key: str = "k") -> str:
        """The app consumes credits; returns the outcome."""
        return str(
            await self.m.pool.fetchval(
                "select outcome from consume_credits($1, $2, $3, $4)", REALM, self.customers[0], key, amount
            )
        )

    async def outage(self, begins: float, ends: float, *plans: str) -> None:
        """An outage, looked at and then declared."""
        span = datetime.fromtimestamp(self.at(begins), UTC), datetime.fromtimestamp(self.at(ends), UTC)
        async with transaction(self.m.pool) as conn:
            shown = await outages.preview(conn, self.m.court, REALM, *span, plans)
            await outages.declare(conn, REALM, *span, plans, confirm=shown["id"], by="Ola", reason="down")
        self.declared.append(shown["id"])

    async def write_in(self, transaction_id: str, description: str = "I want my money back, please.") -> str:
        """A customer writes to support (5). Returns the case's id."""
        request = cases.CaseRequest(
            email=self.customer["email"],
            date=_iso(BEGIN)[:10],
            description=description,
            transaction=transaction_id,
            kind="refund",
        )
        async with transaction(self.m.pool) as conn:
            opened = await cases.open_case(conn, self.m.court.policy, REALM, request, by="app")
        self.cases.append(opened["id"])
        return str(opened["id"])

    async def answer(self, case: str) -> None:
        async with transaction(self.m.pool) as conn:
            await cases.answer(conn, self.m.court.policy, [REALM], case, by="Ola")

    # what is so now

    async def says(self, *lines: str) -> None:
        """What must be so at this point of the story."""
        told = await Outcome(self).lines()
        for line in lines:
            assert line in told, f"missing: {line}\nthere is:\n" + "\n".join(told)

    async def says_not(self, *lines: str) -> None:
        told = await Outcome(self).lines()
        for line in lines:
            assert line not in told, f"too much: {line}"


class Outcome:
    """What became of one story: standing, access, credits, decisions, alerts, news and money, a line for each."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.pool, self.books = scene, scene.m.pool, scene.books
        self.labels = dict(self._labels())

    def _labels(self) -> Iterable[tuple[str, str]]:
        """`charge 2` for the second charge of the story's customers, and so on."""
        mine = set(self.scene.customers)
        charges: set[str] = set()
        for kind in ("subscription", "invoice", "charge", "refund", "dispute", "radar.early_fraud_warning"):
            number = 0
            for obj in self.books.all(kind):
                if obj.get("customer") in mine or obj.get("charge") in charges:
                    number += 1
                    yield obj["id"], f"{kind.rpartition('.')[2].replace('early_fraud_', '')} {number}"
                    if kind == "charge":
                        charges.add(obj["id"])

    def label(self, id_: str) -> str:
        return self.labels.get(id_, "a case" if id_.startswith("case_") else id_)

    async def lines(self) -> list[str]:
        mine = self.scene.customers
        accounts = await self.pool.fetch("select body from accounts where customer = any($1) order by customer", mine)
        found = self._account([msgspec.json.decode(row["body"], type=Account) for row in accounts])
        found += [self._lot(row) for row in await self.pool.fetch(_LOTS, mine)]
        found += [*filter(None, map(self._decision, await self.pool.fetch(_DECISIONS, mine)))]
        found += [self._action(row) for row in await self.pool.fetch(_ACTIONS, mine)]
        found += [self._alert(row) for row in await self.pool.fetch(_ALERTS, mine)]
        found += self._news(await self.pool.fetch(_NEWS, mine))
        found += [self._refund(r) for r in self.books.all("refund") if r["id"] in self.labels]
        for case in self.scene.cases:
            row = await self.pool.fetchrow("select state, body from cases where id = $1", case)
            assert row is not None
            judged = msgspec.json.decode(row["body"])["evaluation"]
            found.append(f"a case: {row['state']}, {judged['verdict']} under {judged['clause']}")
        return sorted(found)

    def _account(self, accounts: list[Account]) -> list[str]:
        found = []
        for account in accounts:
            if account.holds:
                holds = ", ".join(
                    sorted(
                        self.label(h.subject) + ("" if h.status == h.subject else f" {h.status}") for h in account.holds
                    )
                )
                found.append(f"standing: {account.standing} ({holds})")
            for access in account.access:
                until = f"until {day_of(access.until)}" if access.until is not None else "served nothing"
                found.append(f"{self.label(access.subscription)}: {str(access.way).replace('_', ' ')}, {until}")
        return found

    def _lot(self, row: Any) -> str:
        sums = [f"{row[name]} {name.replace('_', ' ')}" for name in _KINDS if row[name]]
        end = f", {row['remaining']} left" + (f" until {day_of(row['ends_at'])}" if row["ends_at"] else "")
        left = end if row["remaining"] else ""
        return f"{row['kind']} credits of {day_of(row['granted_at'])}: {', '.join(sums)}{left}"

    def _decision(self, row: Any) -> str | None:
        made = msgspec.json.decode(row["body"], type=Decision)
        if made.reason.startswith(WITHDRAWN):
            return None
        amount = f" {made.amount}" if made.amount else ""
        version = "" if made.policy_version == "2025-01" else f", version {made.policy_version}"
        agreed = ", as agreed" if "MSA 9" in made.reason else ""
        return f"{self.label(made.subject)}: {made.verdict}{amount} under {made.clause} ({made.rule}{version}{agreed})"

    def _action(self, row: Any) -> str:
        return f"action {row['kind']} of {self.label(row['subject'])}: {row['state']}"

    def _alert(self, row: Any) -> str:
        over = "alert over" if row["resolved_at"] else f"{row['severity']} alert"
        stage = row["cause"].rpartition(":")[2] if row["kind"] == "deadline" else ""
        about = "" if row["subject"].startswith("case_") else f" {self.label(row['subject'])}"
        return " ".join(filter(None, [f"{over}:", row["kind"] + about, stage]))

    def _news(self, rows: list[Any]) -> list[str]:
        found = []
        for row in rows:
            data = msgspec.json.decode(row["body"])["data"]
            about = data.get("subscription") or data.get("refund")
            more = data.get("standing") or data.get("credits") or (self.label(about) if about else "")
            found.append(f"told: {row['type']} {more}" + (", held" if row["state"] == "held" else ""))
        return found

    def _refund(self, refund: Obj) -> str:
        by = "finalsale" if (refund["metadata"] or {}).get("finalsale_action") else "hand"
        money = Money(refund["amount"], refund["currency"])
        return f"{self.label(refund['id'])}: {money} of {self.label(refund['charge'])} by {by}, {refund['status']}"


_KINDS = ("granted", "consumed", "expired", "forfeited", "taken_back")
_LOTS = "select * from lots where customer = any($1) order by granted_at, kind, id"
_DECISIONS = "select distinct on (subject) body from decisions where customer = any($1) order by subject, revision desc"
_ACTIONS = "select kind, subject, state from actions where customer = any($1) and state <> 'withdrawn' order by step"
_ALERTS = "select * from alerts where customer = any($1) order by cause"
_NEWS = "select type, body, state from notices where customer = any($1) order by number"


class Stage:
    """One database, one sandbox, one clock, and the stories that are played on them."""

    def __init__(self, m: Merchant, *, rude: int | None = None) -> None:
        self.m = m
        m.books.set_clock(BEGIN, running=False)
        m.lose()
        self.rng = random.Random(rude)
        self.rude = rude is not None
        self.late: list[Obj] = []
        self.repeats = 0
        self.process = WorkerProcess(m.settings)
        self.process.pool = m.pool
        self.prices = _prices(m)
        self.scenes: list[Scene] = []

    def judge_by(self, policy: Policy) -> None:
        self.m.court = self.process.court = Court(policy=policy, refunds="auto")
        self.m.performer = Performer(self.m.pool, self.m.court, self.m.gateway, REALM)

    async def play(self, rows: Iterable[Row], until: float) -> None:
        """Every story to its end, and then on until the last day."""
        self.scenes = [Scene(self, row, number) for number, row in enumerate(rows)]
        agreed = {scene.customers[0]: scene.row.agreement for scene in self.scenes if scene.row.agreement}
        self.judge_by(parse_policy(policy_text(agreed)))
        running = {scene.number: scene.row.story(scene) for scene in self.scenes}
        due = dict.fromkeys(running, 0.0)
        day = 0.0
        while due or day < until:
            day = min([*due.values(), float(int(day) + 1)]) if due else float(int(day) + 1)
            await self.move_to(day)
            while on := sorted(number for number, when in due.items() if when <= day):
                for number in on:
                    due.pop(number)
                    try:
                        due[number] = max(day, await anext(running[number]))
                    except StopAsyncIteration:
                        pass
                    except Exception as failure:
                        self.scenes[number].failure = failure
                await self.settle()
        for scene in self.scenes:
            scene.seen = await Outcome(scene).lines()

    async def move_to(self, day: float) -> None:
        self.m.books.set_clock(BEGIN + day * DAY)
        await self.m.pool.execute(
            """insert into rehearsal_clock (ahead) values (to_timestamp($1) - now())
               on conflict (one) do update set ahead = excluded.ahead""",
            BEGIN + day * DAY,
        )
        await self.settle()

    async def settle(self) -> None:
        """Until nothing is left to hear, to judge, to ask or to do."""
        for _ in range(ROUNDS):
            await self._hear()
            await self.process._sweep_once()
            await self.m.look_up()
            await self._perform()
            if not await self.m.pool.fetchval(_LEFT) and not self._unheard():
                break
        async with transaction(self.m.pool) as conn:
            await cases.alert_cases(conn)

    async def _perform(self) -> None:
        """Everything that is planned, but for the customers whose money is to wait."""
        held = [customer for scene in self.scenes if scene.hold_money for customer in scene.customers]
        await self.m.pool.execute(
            """update actions set next_at = case when customer = any($1) then 'infinity'::timestamptz else now() end
               where state in ('planned', 'sending')""",
            held,
        )
        await self.m.performer.perform_due()

    def _unheard(self) -> bool:
        return bool(self.late) or len(list(self.m.books.all("event"))) > self.m._heard

    async def _hear(self) -> None:
        """What is new: once and in order, or as rudely as Stripe may, which is shuffled, twice, and partly later."""
        news = self.m.news()
        if not self.rude:
            await self.m.hear(news)
            return
        again = []
        for event in self.rng.sample(news, len(news) // 2):
            self.repeats += 1
            again.append({**event, "id": f"{event['id']}r{self.repeats}"})
        told = [*news, *again, *self.late]
        self.rng.shuffle(told)
        held_back = self.rng.randint(0, len(told) // 3)
        self.late, told = told[:held_back], told[held_back:]
        if not told:
            return
        await store(self.m.pool, *(snapshot_body(event) for event in told))
        await self.m.pool.execute(
            """update inbox set next_at = now() - interval '1 minute' + told.n * interval '1 ms'
               from unnest($1::text[]) with ordinality as told (id, n) where event_id = told.id""",
            [event["id"] for event in told],
        )
        await drain(self.m.pool, self.m.court, batch=self.rng.randint(5, 120))


_LEFT = """select (select count(*) from inbox where state = 'waiting')
                + (select count(*) from wakeups where due_at <= moment(realm))
                + (select count(*) from lookups where state = 'waiting')
                + (select count(*) from actions where state in ('planned', 'sending') and next_at <= now())"""


def _prices(m: Merchant) -> dict[str, Obj]:
    """What is sold: plans by the policy's table, one by its own metadata, packs of both kinds."""
    books = m.books
    product = books.new_product("FluxArt AI")["id"]
    made = [
        m.price,
        books.new_price(product, "usd", 9900, interval="month", id_="price_pro"),
        books.new_price(
            product,
            "usd",
            4900,
            interval="month",
            id_="price_own",
            metadata={"credits": "700", "trial_credits": "70"},
        ),
        *(
            books.new_price(product, "usd", 1900, interval="month", id_=id_, metadata={"credits": "1000"})
            for id_ in ("price_outage", "price_outage2", "price_outage3")
        ),
        books.new_price(product, "usd", 2, interval="month", id_="price_usage", usage_type="metered"),
        books.new_price(books.new_product("Packs")["id"], "usd", 1000, id_="price_pack_100"),
        books.new_price(books.new_product("Packs")["id"], "usd", 400, id_="price_pack_40", metadata={"credits": "40"}),
    ]
    return {price["id"]: price for price in made}


@asynccontextmanager
async def stage(settings: Settings, pool: Pool, shape: str, *, rude: int | None = None) -> AsyncIterator[Stage]:
    """A fresh stage in this API shape; `rude` is the seed of a disorderly delivery."""
    async with merchant(settings, pool, api_version=SHAPES[shape]) as m:
        made = Stage(m, rude=rude)
        try:
            yield made
        finally:
            await made.process.gateway.aclose()
