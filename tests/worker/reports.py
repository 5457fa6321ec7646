"""Reports to look at: a night with everything in it, a clean one, one that could not look everywhere, and a first look."""

from __future__ import annotations

from typing import Any

import msgspec

from handlers.decisions import Money
from reconcile.findings import DRIFT, Class, Consequence, Difference, Finding, What
from reconcile.report import Day, ListRead, MoneyRow, Other, Report, Residual, Unread, Waiting, result_of
from reconcile.windows import LISTS

UNTIL = 1_795_316_400  # 2026-11-22 03:00 UTC
DAY = 86_400
CHARGE = "ch_3QabcdEFGHIJKLMN1nOpQr{:02}"


def charge(number: int) -> str:
    """An id as long as Stripe's."""
    return CHARGE.format(number)


def _certificate(objects: int) -> list[ListRead]:
    return [
        ListRead(
            list=name,
            slices=1 + number % 4,
            pages=1 + objects // 100 // (number + 1),
            objects=objects // (number + 1),
            first_id=f"{name[:2]}_newest{number:020}",
            last_id=f"{name[:2]}_oldest{number:020}",
            retries=number % 3,
            unread=0,
        )
        for number, name in enumerate(LISTS)
    ]


FINDINGS = [
    Finding(
        what=What.MISSING_HERE,
        class_=Class.AUTO,
        object=charge(1),
        kind="charge",
        customer="cus_Qa1",
        amount=Money(2900, "usd"),
        sentence=f"{charge(1)} of 29.00 USD is at Stripe, and the books do not have it.",
        cause="charge.succeeded evt_1QaZ never arrived",
        do="it is taken into the books",
    ),
    Finding(
        what=What.MISSING_HERE,
        class_=Class.AUTO,
        object="re_3Qz9",
        kind="refund",
        customer="cus_Qa2",
        amount=Money(2900, "jpy"),
        sentence="re_3Qz9 of 2900 JPY is at Stripe, and the books do not have it.",
        cause="refund.created evt_2QaZ never arrived",
        do="it is taken into the books",
    ),
    Finding(
        what=What.DIFFERENT,
        class_=Class.AUTO,
        object="in_1Qx",
        kind="invoice",
        customer="cus_Qa3",
        sentence="in_1Qx is paid at Stripe and open in the books.",
        differences=(
            Difference("status", "open", "paid"),
            Difference("amount paid", "0.000 KWD", "9.500 KWD"),
        ),
        cause="invoice.paid evt_3QaZ is dead: Stripe sent a shape nobody knows",
        do="the books follow Stripe",
    ),
    Finding(
        what=What.EVENT_UNHEARD,
        class_=Class.AUTO,
        object="evt_4QaZ",
        kind="event",
        sentence="evt_4QaZ (customer.updated) never arrived; what it tells is in the books.",
        do="it is stored",
    ),
    Finding(
        what=What.MISSING_THERE,
        class_=Class.NEVER,
        object=charge(9),
        kind="charge",
        customer="cus_Qa9",
        amount=Money(500, "usd"),
        sentence=f"{charge(9)} of 5.00 USD is in the books, and Stripe does not know it.",
        do="the row is marked and stays",
    ),
    Finding(
        what=What.OUT_OF_POLICY,
        class_=Class.ASK,
        object="re_hand",
        kind="refund",
        customer="cus_Qa2",
        clause="2, 6",
        amount=Money(2900, "usd"),
        sentence="re_hand gave 29.00 USD back by hand; the payment is no duplicate, and no clause allows it.",
        do="look at it: finalsale explain re_hand",
    ),
    Finding(
        what=What.MONEY,
        class_=Class.ASK,
        object="usd",
        kind="currency",
        amount=Money(30, "usd"),
        sentence="0.30 USD of Stripe's balance transactions are explained by nothing in the books.",
        do="compare txn_9 with the bank",
    ),
    Finding(
        what=What.ENDPOINT,
        class_=Class.ASK,
        object="we_1",
        kind="webhook_endpoint",
        sentence="The endpoint we_1 does not listen to charge.dispute.closed.",
        do="run finalsale doctor --fix-endpoint",
    ),
]


def _decided(number: int, rule: str, money: Money, verdict: str = "refund", **more: Any) -> Consequence:
    told = {
        "about": "decision",
        "class_": Class.AUTO if verdict == "refund" else Class.ASK,
        "customer": f"cus_Qa{number}",
        "subject": charge(2 * number),
        "original": charge(2 * number - 1),
        "clause": "4.3",
        "was": "none",
        "becomes": verdict,
        "rule": rule,
        "verdict": verdict,
        "amount": money,
        "reason": f"{charge(2 * number)} and {charge(2 * number - 1)} pay the same month of the same plan, 42 s apart.",
    }
    return Consequence(**told | more)


CONSEQUENCES = [
    _decided(1, "D3", Money(2900, "usd")),
    _decided(2, "D1", Money(29000, "jpy")),
    _decided(3, "D5", Money(9500, "kwd")),
    _decided(4, "D3", Money(123_456_70, "usd")),
    _decided(
        5,
        "D10",
        Money(2900, "usd"),
        "review",
        reason="A month and a year of one product at once: a person must decide.",
    ),
    _decided(
        6,
        "charge_after_cancellation",
        Money(4900, "usd"),
        "review",
        clause="1.2",
        subject="in_late",
        original=None,
        reason="in_late charged 49.00 USD for a time after sub_1 ended.",
    ),
    _decided(
        7,
        "out_of_policy_refund",
        Money(2900, "usd"),
        "deny",
        clause="2, 6",
        subject="re_hand",
        original=None,
        reason="re_hand gave 29.00 USD back by hand; no clause allows it.",
    ),
    Consequence(
        about="standing",
        class_=Class.AUTO,
        customer="cus_Qa8",
        subject="du_1Qh",
        clause="7",
        was="good",
        becomes="flagged",
        reason="du_1Qh of 29.00 USD is open; evidence is due on 2026-12-01.",
    ),
    Consequence(
        about="credits",
        class_=Class.AUTO,
        customer="cus_Qa9",
        subject="lot_1",
        clause="3.1",
        was="480 left",
        becomes="480 forfeited",
        reason="sub_9 ended on 2026-10-02.",
    ),
]


def night(**changed: Any) -> Report:
    """A night in which everything there is was found and healed; `changed` says otherwise."""
    report = Report(
        run="run_01JD8Z3K",
        realm="live",
        kind="nightly",
        dry_run=False,
        asked="72h and a thirtieth",
        since=UNTIL - 33 * DAY,
        until=UNTIL,
        windows=[(UNTIL - 33 * DAY, UNTIL - 32 * DAY), (UNTIL - 3 * DAY, UNTIL)],
        started_at=UNTIL + 60,
        finished_at=UNTIL + 60 + 252,
        result="",
        exit=0,
        why=["3 findings need a person.", "2 reviews wait."],
        certificate=_certificate(48_210),
        unread=[],
        unread_total=0,
        reread=812,
        requests=1034,
        rate_limited=3,
        imported={},
        enriched=14,
        in_flight=2,
        found={},
        drift=0,
        by_class={},
        findings=FINDINGS,
        consequences=CONSEQUENCES,
        consequences_total=len(CONSEQUENCES),
        to_return={"usd": 12_348_570, "jpy": 29_000, "kwd": 9500},
        to_review={"usd": 7800},
        would_hold=1,
        credits_due=1,
        healed=4,
        unhealed=0,
        money=[
            MoneyRow(currency="usd", kind="charge", at_stripe_minor=1_234_530, ours_minor=1_234_500, residual_minor=30, explained_minor=0),
            MoneyRow(currency="usd", kind="refund", at_stripe_minor=-5800, ours_minor=-2900, residual_minor=-2900, explained_minor=-2900),
            MoneyRow(currency="jpy", kind="charge", at_stripe_minor=87_000, ours_minor=87_000, residual_minor=0, explained_minor=0),
            MoneyRow(currency="kwd", kind="dispute", at_stripe_minor=-9500, ours_minor=-9500, residual_minor=0, explained_minor=0),
        ],
        other=[Other(currency="usd", kind="stripe_fee", at_stripe_minor=-36_100, count=425)],
        residuals=[
            Residual(currency="usd", kind="refund", object="re_hand", minor=-2900, why="refunded by hand during the night", explained=True),
            Residual(currency="usd", kind="charge", object="txn_9", minor=30, why="no object of the books", explained=False),
        ],
        residuals_total=2,
        days=[
            Day(day=f"2026-11-{day}", currency=currency, kind=kind, minor=minor * (day - 17), count=day - 17)
            for day in (19, 20, 21)
            for currency, kind, minor in (
                ("usd", "charge", 120_000),
                ("usd", "refund", -2900),
                ("usd", "dispute", -4900),
                ("jpy", "charge", 29_000),
                ("kwd", "charge", 9500),
                ("kwd", "dispute", -9500),
            )
        ],
        causes={"event never arrived": 3, "event dead": 1, "no event in 30 days": 1},
        waiting=Waiting(reviews=9, reviews_1h=8, reviews_4h=6, reviews_24h=3, reviews_older=1, planned=4, in_doubt=1, oldest_review_at=UNTIL - 9 * DAY),
    )  # fmt: skip
    return finished(msgspec.structs.replace(report, **changed))


def finished(report: Report) -> Report:
    """The report with the numbers and the result that follow from what it lists."""
    findings = report.findings
    counted = msgspec.structs.replace(
        report,
        found={what: n for what in What if (n := sum(one.what is what for one in findings))},
        drift=sum(one.what in DRIFT for one in findings),
        by_class={class_: n for class_ in Class if (n := sum(one.class_ is class_ for one in findings))},
    )
    result, exit_ = result_of(counted)
    return msgspec.structs.replace(counted, result=result, exit=exit_)


def clean() -> Report:
    """Nothing found, nothing waits."""
    return night(
        findings=[],
        consequences=[],
        consequences_total=0,
        to_return={},
        to_review={},
        would_hold=0,
        credits_due=0,
        healed=0,
        money=[row for row in night().money if not row.residual_minor],
        residuals=[],
        residuals_total=0,
        causes={},
        waiting=Waiting(),
        why=["Stripe and the books agree, and nothing is left to do."],
    )


def incomplete() -> Report:
    """A page of charges never came."""
    certificate = _certificate(48_210)
    certificate[2] = msgspec.structs.replace(certificate[2], unread=1)
    unread = [Unread("charges", "1795140000..1795143600", "Stripe did not answer in 6 tries (502)")]
    return night(certificate=certificate, unread=unread, unread_total=1, why=["1 slice of charges could not be read."])


def first(**changed: Any) -> Report:
    """`reconcile --since 90d --dry-run` before any webhook was connected."""
    told = {
        "run": "run_first",
        "kind": "asked",
        "dry_run": True,
        "asked": "90d",
        "since": UNTIL - 90 * DAY,
        "windows": [(UNTIL - 90 * DAY, UNTIL)],
        "imported": {"charge": 48_210, "invoice": 24_105, "subscription": 6_026},
        "findings": [],
        "healed": 0,
        "residuals": [],
        "residuals_total": 0,
        "causes": {},
        "waiting": Waiting(),
        "why": ["4 duplicates would go back.", "3 cases need a person."],
    }
    return night(**told | changed)
