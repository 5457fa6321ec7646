"""Clause 7 as a truth table: what a dispute's status, an operator's word and the policy file make of a customer's standing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from handlers.account import OPERATOR_HOLD, Act, ActKind, Severity, Standing
from handlers.chargebacks import KNOWN, Disputes, judge_disputes
from handlers.customer import ChargeId, CustomerId, Dispute, DisputeId, EarlyFraudWarning, PaymentIntentId, at
from handlers.decisions import Verdict
from handlers.terms import Policy, parse_policy
from tests.handlers.history import DAY, HOUR, POLICY, T0, History, policy_with

SUSPENDING = policy_with(('on_chargeback = "flag"', 'on_chargeback = "suspend"'))
GOOD, FLAGGED, SUSPENDED = Standing.GOOD, Standing.FLAGGED, Standing.SUSPENDED
REVIEW, NONE = Verdict.REVIEW, Verdict.NONE
NOW = at(T0 + 30 * DAY)


def act(kind: ActKind, dispute: str | None = "dp_0001", status: str = "", *, when: int = 3 * DAY, id_: str = "") -> Act:
    return Act(
        id=id_ or f"act_{when}",
        kind=kind,
        customer=CustomerId("cus_A"),
        at=T0 + when,
        by="op",
        reason="spoke with the bank",
        dispute=DisputeId(dispute) if dispute else None,
        status=status,
    )


def lift(status: str, **more: Any) -> Act:
    return act(ActKind.LIFT, status=status, **more)


def keep(**more: Any) -> Act:
    return act(ActKind.KEEP, **more)


def judged(h: History, *acts: Act, policy: Policy = POLICY, now: datetime = NOW, test_clocks: bool = False) -> Disputes:
    return judge_disputes(h.file(), CustomerId("cus_A"), policy, now, acts, test_clocks=test_clocks)


def disputed(status: str, amount: int | None = None, **fields: Any) -> History:
    """One subscription, its payment ch_0001 of 29.00 USD, and the dispute dp_0001 of it."""
    h = History()
    h.customer()
    h.change(h.dispute(h.subscribe().charge, status, DAY, amount), **fields)
    return h


# status x act x policy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A dispute in a status, what operators did, and what follows under `flag`. Under `suspend`, flagged reads suspended."""

    status: str
    acts: tuple[Act, ...]
    standing: Standing
    rule: str
    verdict: Verdict
    alerts: tuple[str, ...] = ()


ROWS = [
    # nobody has spoken
    Row("needs_response", (), FLAGGED, "chargeback", REVIEW, ("chargeback",)),
    Row("under_review", (), FLAGGED, "chargeback", NONE),
    Row("appeal_needs_response", (), FLAGGED, "chargeback", REVIEW, ("chargeback",)),
    Row("appeal_under_review", (), FLAGGED, "chargeback", NONE),
    Row("lost", (), FLAGGED, "chargeback", REVIEW, ("chargeback_lost",)),
    Row("won", (), GOOD, "chargeback", NONE),
    Row("warning_needs_response", (), GOOD, "inquiry", REVIEW, ("inquiry",)),
    Row("warning_under_review", (), GOOD, "inquiry", NONE),
    Row("warning_closed", (), GOOD, "inquiry", NONE),
    Row("prevented", (), GOOD, "prevented", NONE),
    Row("something_new", (), FLAGGED, "chargeback", REVIEW, ("unknown_status",)),
    Row("warning_new", (), FLAGGED, "chargeback", REVIEW, ("unknown_status",)),
    Row("", (), FLAGGED, "chargeback", REVIEW, ("unknown_status",)),
    # a lift covers the stage that the operator saw, whatever the dispute's status within it
    Row("needs_response", (lift("needs_response"),), GOOD, "chargeback", REVIEW, ("chargeback",)),
    Row("under_review", (lift("needs_response"),), GOOD, "chargeback", NONE),
    Row("something_new", (lift("under_review"),), GOOD, "chargeback", REVIEW, ("unknown_status",)),
    Row("appeal_under_review", (lift("appeal_needs_response"),), GOOD, "chargeback", NONE),
    Row("lost", (lift("lost"),), GOOD, "chargeback", NONE),
    # and no later one
    Row("lost", (lift("needs_response"),), FLAGGED, "chargeback", REVIEW, ("chargeback_lost",)),
    Row("appeal_needs_response", (lift("lost"),), FLAGGED, "chargeback", REVIEW, ("chargeback",)),
    Row("appeal_needs_response", (lift("needs_response"),), FLAGGED, "chargeback", REVIEW, ("chargeback",)),
    Row("appeal_under_review", (lift("needs_response"), lift("lost", when=4 * DAY)), FLAGGED, "chargeback", NONE),
    Row("lost", (lift("appeal_under_review"),), FLAGGED, "chargeback", REVIEW, ("chargeback_lost",)),
    Row("needs_response", (lift("warning_needs_response"),), FLAGGED, "chargeback", REVIEW, ("chargeback",)),
    Row("needs_response", (lift(""),), FLAGGED, "chargeback", REVIEW, ("chargeback",)),
    # a keep stays whatever becomes of the dispute, until a later lift
    Row("won", (keep(),), FLAGGED, "chargeback", NONE),
    Row("lost", (keep(),), FLAGGED, "chargeback", NONE),
    Row("warning_closed", (keep(),), FLAGGED, "inquiry", NONE),
    Row("prevented", (keep(),), FLAGGED, "prevented", NONE),
    Row("won", (keep(), lift("won", when=4 * DAY)), GOOD, "chargeback", NONE),
    Row("lost", (keep(), lift("lost", when=4 * DAY)), GOOD, "chargeback", NONE),
    Row("lost", (lift("lost"), keep(when=4 * DAY)), FLAGGED, "chargeback", NONE),
    Row("under_review", (lift("under_review"), keep(when=4 * DAY)), FLAGGED, "chargeback", NONE),
    # a keep takes an earlier lift back, also after it is lifted itself at another stage
    Row(
        "under_review",
        (lift("under_review"), keep(when=4 * DAY), lift("won", when=5 * DAY)),
        FLAGGED,
        "chargeback",
        NONE,
    ),
    # acts of equal seconds are ordered by id; acts about another dispute or of another kind change nothing
    Row("won", (lift("won", id_="b"), keep(id_="a")), GOOD, "chargeback", NONE),
    Row("won", (lift("won", id_="a"), keep(id_="b")), FLAGGED, "chargeback", NONE),
    Row("under_review", (lift("under_review", dispute="dp_9"),), FLAGGED, "chargeback", NONE),
    Row("won", (keep(dispute="dp_9"),), GOOD, "chargeback", NONE),
    Row("won", (act(ActKind.GRANT), act(ActKind.EXTEND)), GOOD, "chargeback", NONE),
    Row("under_review", (lift("", dispute=None),), FLAGGED, "chargeback", NONE),
    # an operator's own hold
    Row("won", (act(ActKind.SUSPEND, None),), SUSPENDED, "chargeback", NONE),
    Row("won", (act(ActKind.SUSPEND, None), lift("", dispute=None, when=4 * DAY)), GOOD, "chargeback", NONE),
    Row("won", (lift("", dispute=None), act(ActKind.SUSPEND, None, when=4 * DAY)), SUSPENDED, "chargeback", NONE),
    Row("under_review", (act(ActKind.SUSPEND, None),), SUSPENDED, "chargeback", NONE),
    Row("won", (act(ActKind.SUSPEND, None), lift("won", when=4 * DAY)), SUSPENDED, "chargeback", NONE),
]


def _named(row: Row) -> str:
    return " ".join([row.status or "(none)", *(f"{a.kind}:{a.status or '-'}:{a.dispute or 'own'}" for a in row.acts)])


@pytest.mark.parametrize("policy", [POLICY, SUSPENDING], ids=["flag", "suspend"])
@pytest.mark.parametrize("row", ROWS, ids=_named)
def test_the_truth_table_of_clause_7(row: Row, policy: Policy) -> None:
    """The order in which the acts are given never matters, only their time and id."""
    for acts in (row.acts, row.acts[::-1]):
        found = judged(disputed(row.status), *acts, policy=policy)
        becomes = SUSPENDED if policy is SUSPENDING and row.standing is FLAGGED else row.standing
        decision = found.decisions["dp_0001"]
        assert (found.standing, decision.rule, decision.verdict) == (becomes, row.rule, row.verdict)
        assert decision.clause == "7"
        assert decision.amount is None
        assert not decision.prepared
        assert tuple(sorted(alert.kind for alert in found.alerts.values())) == row.alerts
        assert {hold.subject for hold in found.holds} <= {"dp_0001", OPERATOR_HOLD}
        assert bool(found.holds) == (row.standing is not GOOD)


def test_the_table_has_every_status_that_stripe_names() -> None:
    assert set(KNOWN) == {row.status for row in ROWS if not row.acts} - {"something_new", "warning_new", ""}
    assert len(KNOWN) == 10


# a dispute's life -----------------------------------------------------------------------------------------------------------


def test_an_inquiry_that_escalates_without_a_second_created_puts_the_hold_on() -> None:
    h = disputed("warning_needs_response")
    assert judged(h).standing is GOOD
    h.change("dp_0001", status="needs_response")
    assert judged(h).standing is FLAGGED
    assert list(judged(h).alerts) == ["chargeback:dp_0001"]


def test_a_dispute_won_after_it_was_lost_clears_the_standing() -> None:
    h = disputed("lost")
    assert judged(h).standing is FLAGGED
    h.change("dp_0001", status="won")
    assert judged(h).standing is GOOD
    assert judged(h).holds == ()


def test_the_standing_clears_only_when_the_last_of_several_disputes_of_one_charge_is_over() -> None:
    h = disputed("needs_response", 1000)
    h.dispute("ch_0001", "under_review", 2 * DAY, 1900)
    both = judged(h)
    assert [hold.subject for hold in both.holds] == ["dp_0001", "dp_0002"]
    assert ("further dispute dp_0002 of the charge", "19.00 USD", "under_review") in [
        (e.fact, e.original, e.duplicate) for e in both.decisions["dp_0001"].evidence
    ]
    h.change("dp_0001", status="won")
    assert judged(h).standing is FLAGGED
    h.change("dp_0002", status="won")
    assert judged(h).standing is GOOD


def test_the_terms_are_those_in_force_when_the_disputed_payment_was_made() -> None:
    text = """
        [merchant]
        name = "AptNode"
        [[version]]
        id = "first"
        in_force_from = 2025-01-01T00:00:00Z
        [[version]]
        id = "second"
        in_force_from = 2026-01-02T00:00:00Z
        [version.chargebacks]
        on_chargeback = "suspend"
        """
    policy = parse_policy(text)
    found = judged(disputed("needs_response"), policy=policy)
    assert (found.standing, found.decisions["dp_0001"].policy_version) == (FLAGGED, "first")
    h = disputed("needs_response")
    h.forget("ch_0001")
    unknown_charge = judged(h, policy=policy)
    assert (unknown_charge.standing, unknown_charge.decisions["dp_0001"].policy_version) == (SUSPENDED, "second")
    before_all = parse_policy(text.replace("2025-", "2027-").replace("2026-", "2028-"))
    early = judged(disputed("needs_response"), policy=before_all)
    assert (early.standing, early.decisions["dp_0001"].policy_version) == (FLAGGED, "first")


def test_an_agreement_may_suspend_where_the_policy_flags_and_is_cited() -> None:
    policy = policy_with(
        agreement="""
        [[agreement]]
        customer = "cus_A"
        source = "MSA 2026-03, section 9"
        from = 2025-06-01T00:00:00Z
        overrides = { chargebacks = { on_chargeback = "suspend" } }
        """
    )
    found = judged(disputed("needs_response"), policy=policy)
    assert found.standing is SUSPENDED
    assert found.decisions["dp_0001"].reason.endswith("(agreement: MSA 2026-03, section 9)")


def test_a_dispute_without_a_known_charge_counts_for_the_customer_in_whose_file_it_is() -> None:
    h = disputed("needs_response")
    h.forget("ch_0001")
    found = judged(h)
    assert [(hold.subject, hold.charge) for hold in found.holds] == [("dp_0001", "ch_0001")]
    assert "on ch_0001" in found.decisions["dp_0001"].reason


def test_a_dispute_that_names_only_the_payment_intent_finds_its_charge() -> None:
    h = disputed("needs_response")
    known: Dispute = h.latest["dp_0001"]
    h.forget("dp_0001")
    h.tell(
        Dispute(
            id="dp_0001",
            as_of=known.as_of,
            payment_intent=PaymentIntentId("pi_0001"),
            amount_minor=2900,
            currency="usd",
            status="needs_response",
            created=known.created,
        )
    )
    assert judged(h).holds[0].charge == "ch_0001"


def test_a_guest_is_held_under_the_id_of_the_charge() -> None:
    h = disputed("needs_response")
    found = judge_disputes(h.file(), CustomerId("ch_0001"), POLICY, NOW, (), test_clocks=False)
    assert found.standing is FLAGGED
    assert found.decisions["dp_0001"].customer == "ch_0001"


@pytest.mark.parametrize("where", ["customer", "subscription"])
def test_a_rehearsal_on_a_test_clock_is_left_alone_unless_test_clocks_are_looked_at(where: str) -> None:
    h = History()
    if where == "customer":
        h.customer(test_clock=True)
    h.dispute(h.subscribe(test_clock=where == "subscription").charge, "needs_response")
    assert judged(h) == Disputes()
    assert judged(h, test_clocks=True).standing is FLAGGED


def test_holds_are_ordered_by_their_beginning_and_name_their_cause() -> None:
    h = disputed("needs_response", due_by=T0 + 40 * DAY, reason="duplicate")
    first, second = judged(h, act(ActKind.SUSPEND, None, when=HOUR), keep(when=3 * DAY)).holds
    assert (first.subject, first.since, first.suspends, first.status) == (OPERATOR_HOLD, T0 + HOUR, True, OPERATOR_HOLD)
    assert first.cause == "Suspended by op at 2026-01-01T01:00:00Z: spoke with the bank"
    assert (second.subject, second.since, second.suspends) == ("dp_0001", T0 + DAY, False)
    assert (second.charge, second.due_by, second.status) == (ChargeId("ch_0001"), T0 + 40 * DAY, "needs_response")
    assert second.cause == (
        "The chargeback dp_0001 of 29.00 USD on ch_0001 (duplicate) is needs_response. "
        "Kept by op at 2026-01-04T00:00:00Z: spoke with the bank"
    )


def test_suspended_again_the_hold_dates_from_the_first_time_and_from_the_next_after_a_lift() -> None:
    h = disputed("won")
    twice = [act(ActKind.SUSPEND, None, when=HOUR), act(ActKind.SUSPEND, None, when=DAY)]
    assert judged(h, *twice).holds[0].since == T0 + HOUR
    assert judged(h, twice[0], lift("", dispute=None, when=2 * HOUR), twice[1]).holds[0].since == T0 + DAY


# deadlines ------------------------------------------------------------------------------------------------------------------

DUE = T0 + 40 * DAY


@pytest.mark.parametrize(
    ("before", "stage", "severity", "next_before"),
    [
        (7 * DAY + 1, None, None, 7 * DAY),
        (7 * DAY, "7d", Severity.WARNING, 3 * DAY),
        (3 * DAY + 1, "7d", Severity.WARNING, 3 * DAY),
        (3 * DAY, "3d", Severity.WARNING, DAY),
        (DAY + 1, "3d", Severity.WARNING, DAY),
        (DAY, "24h", Severity.CRITICAL, 0),
        (1, "24h", Severity.CRITICAL, 0),
        (0, None, None, None),
        (-DAY, None, None, None),
    ],
)
@pytest.mark.parametrize(
    "status", ["needs_response", "warning_needs_response", "appeal_needs_response", "something_new"]
)
def test_only_the_nearest_stage_before_the_deadline_is_told(
    status: str, before: int, stage: str | None, severity: Severity | None, next_before: int | None
) -> None:
    found = judged(disputed(status, due_by=DUE), now=at(DUE - before))
    told = {cause: alert.severity for cause, alert in found.alerts.items() if alert.kind == "deadline"}
    assert told == ({f"deadline:dp_0001:{stage}": severity} if stage else {})
    assert found.judge_again_at == (None if next_before is None else at(DUE - next_before))


@pytest.mark.parametrize(
    "status", ["under_review", "won", "lost", "warning_closed", "warning_under_review", "prevented"]
)
def test_no_deadline_is_told_where_nobody_is_waited_for(status: str) -> None:
    found = judged(disputed(status, due_by=DUE), now=at(DUE - HOUR))
    assert found.judge_again_at is None
    assert not [alert for alert in found.alerts.values() if alert.kind == "deadline"]


def test_no_deadline_is_told_after_evidence_was_submitted_or_where_there_is_none() -> None:
    for fields in ({"due_by": DUE, "evidence_submitted": True}, {"due_by": None}, {"due_by": 0}):
        found = judged(disputed("needs_response", **fields), now=at(DUE - HOUR))
        assert list(found.alerts) == ["chargeback:dp_0001"]
        assert found.judge_again_at is None
    assert "cannot be challenged" in found.decisions["dp_0001"].reason


def test_the_stages_are_the_policy_files() -> None:
    policy = policy_with(('deadline_alerts = ["7d", "3d", "24h"]', 'deadline_alerts = ["10d", "36h", "90m", "50s"]'))
    causes = []
    for before in (10 * DAY, 36 * HOUR, 90 * 60, 50):
        alerts = judged(disputed("needs_response", due_by=DUE), policy=policy, now=at(DUE - before)).alerts
        causes += [cause for cause in alerts if cause.startswith("deadline")]
    assert causes == [f"deadline:dp_0001:{stage}" for stage in ("10d", "36h", "90m", "50s")]


def test_the_passing_of_time_changes_nothing_else() -> None:
    h = disputed("needs_response", due_by=DUE)
    early, late = judged(h, now=at(T0)), judged(h, now=at(DUE + DAY))
    assert (early.decisions, early.holds, early.standing) == (late.decisions, late.holds, late.standing)
    assert early.alerts["chargeback:dp_0001"] == late.alerts["chargeback:dp_0001"]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (None, "Stripe submits no answer of its own"),
        ("manual", "Stripe submits no answer of its own"),
        ("prefer_manual", "where no evidence was given, Stripe may answer by itself (Smart Disputes)"),
        ("prefer_smart_disputes", "Stripe may answer by itself (Smart Disputes)"),
        ("smart_disputes", "leaves out what was given by hand"),
        ("by_pigeon", "what Stripe then does (by_pigeon) is not known"),
    ],
)
def test_the_alert_says_what_stripe_does_at_the_deadline_and_which_command_helps(method: str | None, says: str) -> None:
    found = judged(disputed("needs_response", due_by=DUE, intended_submission_method=method, reason="fraudulent"))
    alert = found.alerts["chargeback:dp_0001"]
    assert alert.severity is Severity.CRITICAL
    assert (alert.subject, alert.customer) == ("dp_0001", "cus_A")
    for part in (
        "The chargeback dp_0001 of 29.00 USD on ch_0001 (fraudulent) is needs_response",
        "Evidence is due by 2026-02-10T00:00:00Z",
        says,
        "If nobody answers, it is lost.",
        "`finalsale chargebacks show dp_0001`",
    ):
        assert part in alert.sentence


def test_a_lost_dispute_asks_for_a_decision_and_names_both_commands() -> None:
    alert = judged(disputed("lost")).alerts["chargeback_lost:dp_0001"]
    assert alert.severity is Severity.WARNING
    assert "`finalsale customers lift cus_A --dispute dp_0001 --by NAME --reason …`" in alert.sentence
    assert "`finalsale customers keep cus_A --dispute dp_0001 --by NAME --reason …`" in alert.sentence


# refund and chargeback never both -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refund", "action", "status", "says"),
    [
        (
            "succeeded",
            "a",
            "needs_response",
            "Our refund re_0001 gave back 10.00 USD of this charge: the evidence must say so",
        ),
        ("succeeded", None, "lost", "A refund re_0001 gave back 10.00 USD of this charge."),
        (
            "pending",
            "a",
            "needs_response",
            "is pending; it may fail because of the dispute, and none is sent besides it",
        ),
        ("new_status", "a", "under_review", "is new_status; it may fail"),
        ("failed", "a", "needs_response", "failed: the duplicate is owed again only if the dispute is won"),
        ("failed", "a", "warning_needs_response", "failed: the duplicate is owed again only if the inquiry closes"),
        ("failed", "a", "won", "failed: the duplicate is owed again."),
        ("canceled", "a", "lost", "was canceled: the dispute gave the money back, nothing is owed for it"),
        ("failed", None, "needs_response", "failed: nothing of it went back"),
    ],
)
def test_the_reason_says_where_a_refund_of_the_charge_stands(
    refund: str, action: str | None, status: str, says: str
) -> None:
    h = disputed(status)
    h.refund("ch_0001", HOUR, 1000, status=refund, action=action)
    decision = judged(h).decisions["dp_0001"]
    assert says in decision.reason
    whose = "of ours" if action else "by hand"
    assert (f"refund re_0001 {whose}", "10.00 USD", refund) in [
        (e.fact, e.original, e.duplicate) for e in decision.evidence
    ]


def test_a_dispute_of_a_part_settles_only_that_part_of_a_failed_refund() -> None:
    h = disputed("lost", amount_minor=1000)
    h.refund("ch_0001", HOUR, 2900, status="failed", action="a")
    assert "gave 10.00 USD of it back, for which nothing is owed" in judged(h).decisions["dp_0001"].reason


@pytest.mark.parametrize(("withdrawn", "twice"), [(2900, True), (1900, False), (None, False)])
def test_a_refund_beside_a_lost_dispute_is_called_too_much_only_where_the_books_show_it(
    withdrawn: int | None, twice: bool
) -> None:
    h = disputed("lost", withdrawn_minor=withdrawn)
    h.refund("ch_0001", HOUR, 1000, action="a")
    assert ("more than was paid went back" in judged(h).decisions["dp_0001"].reason) == twice


def test_a_dispute_larger_than_its_charge_says_so_and_in_another_currency_does_not_compare() -> None:
    larger = judged(disputed("needs_response", 9900)).decisions["dp_0001"]
    assert "of 99.00 USD on ch_0001 (no reason told) is needs_response; only 29.00 USD were paid." in larger.reason
    foreign = judged(disputed("needs_response", 9900, currency="jpy")).decisions["dp_0001"]
    assert "of 9900 JPY" in foreign.reason
    assert "only" not in foreign.reason.partition(".")[0]


def test_what_stripe_withdrew_is_evidence() -> None:
    facts = judged(disputed("lost", withdrawn_minor=1900)).decisions["dp_0001"].evidence
    assert ("withdrawn by Stripe, fees aside", "", "19.00 USD") in [(e.fact, e.original, e.duplicate) for e in facts]


# early fraud warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("charge", ["ch_0001", "ch_unknown", None])
def test_an_early_fraud_warning_is_a_note_and_no_hold(charge: str | None) -> None:
    h = History()
    h.customer()
    h.subscribe()
    h.tell(
        EarlyFraudWarning(
            id="issfr_1",
            as_of=T0 + DAY,
            created=T0 + DAY,
            charge=ChargeId(charge) if charge else None,
            fraud_type="made_with_stolen_card",
            actionable=True,
        )
    )
    found = judged(h, policy=SUSPENDING)
    decision, alert = found.decisions["issfr_1"], found.alerts["early_fraud_warning:issfr_1"]
    assert (found.standing, found.holds) == (GOOD, ())
    assert (decision.clause, decision.rule, decision.verdict) == ("7", "early_fraud_warning", NONE)
    assert alert.severity is Severity.NOTE
    assert "made_with_stolen_card" in alert.sentence
    h.change("issfr_1", actionable=False)
    assert (judged(h).alerts, set(judged(h).decisions)) == ({}, {"issfr_1"})


def test_a_customer_without_disputes_is_in_good_standing() -> None:
    h = History()
    h.customer()
    h.subscribe()
    assert judged(h) == Disputes()
