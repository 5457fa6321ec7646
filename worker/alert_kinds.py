"""The kinds of alerts: for each its title, why it matters, the page of the console that shows it and the one command that acts."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """What people are told of every alert of one kind. `page` and `command` are format strings over {subject} {customer} {cause}."""

    title: str
    why: str
    page: str
    """Below the console's address, beginning with /console/."""
    command: str
    """One that works when it is pasted; NAME stands for the operator's name."""


_FIND, _CHARGEBACK, _CASE = "/console/find?q={subject}", "/console/chargebacks/{subject}", "/console/cases/{subject}"
_EXPLAIN, _EVIDENCE = "finalsale explain {subject}", "finalsale chargebacks show {subject}"
_ANSWER, _DOCTOR = "finalsale cases show {subject}", "finalsale doctor"

KINDS: dict[str, Kind] = {
    # payments and refunds
    "charge_after_cancellation": Kind(
        "Charge after cancellation",
        "A customer paid for time after a subscription had ended. Clause 1.2 forbids that charge, and a chargeback is likely.",
        _FIND,
        _EXPLAIN,
    ),
    "proration_after_cancellation": Kind(
        "Credit after cancellation",
        "An ended subscription's rest was credited. Clause 1.3 gives nothing back for it, and Stripe sets it off by itself.",
        _FIND,
        _EXPLAIN,
    ),
    "out_of_policy_refund": Kind(
        "Refund that no clause allows",
        "Somebody gave money back at Stripe past the policy (2, 6). It is gone; find out who did it and why.",
        _FIND,
        _EXPLAIN,
    ),
    "refunded_by_hand": Kind(
        "Refund by hand, in doubt",
        "Somebody gave money back at Stripe where it was not certain that it was a duplicate (4.3).",
        _FIND,
        _EXPLAIN,
    ),
    "refund_failed": Kind(
        "Refund failed",
        "A duplicate was to go back and did not. The customer is still out of pocket, and finalsale does not try again alone.",
        _FIND,
        _EXPLAIN,
    ),
    "refund_in_doubt": Kind(
        "Refund in doubt",
        "A refund was sent and nobody knows yet whether Stripe made it. It is asked about, never sent blindly again.",
        _FIND,
        _EXPLAIN,
    ),
    "refunds_failed": Kind(
        "Many refunds failed",
        "Duplicates were to go back and did not. Something is wrong with all of them: the balance, the key, or Stripe.",
        "/console/refunds",
        "finalsale refunds list",
    ),
    "refunds_in_doubt": Kind(
        "Many refunds in doubt",
        "Refunds were sent and nobody knows yet whether Stripe made them. They are asked about, never sent blindly again.",
        "/console/refunds",
        "finalsale refunds list",
    ),
    "refund_limit": Kind(
        "Refund limit reached",
        "The policy's limits hold refunds back for a person. Usual after a real incident, and also the sign of a wrong rule.",
        "/console/reviews",
        "finalsale review list",
    ),
    "refunds_paused": Kind(
        "Refunds are paused",
        "Nothing goes back while the switch is on, not even what the policy owes.",
        "/console/refunds",
        "finalsale refunds resume --by NAME",
    ),
    "review_waiting": Kind(
        "A review waits",
        "Money may be owed, and only a person can say so.",
        "/console/reviews/{subject}",
        _EXPLAIN,
    ),
    "reviews_waiting": Kind(
        "Many reviews wait",
        "Money may be owed to many customers, and only a person can say so.",
        "/console/reviews",
        "finalsale review list",
    ),
    # chargebacks
    "chargeback": Kind(
        "Chargeback",
        "Unanswered by the deadline it is lost, with its fee. The customer's standing has changed (7).",
        _CHARGEBACK,
        _EVIDENCE,
    ),
    "inquiry": Kind(
        "Inquiry before a chargeback",
        "The bank asks. A good answer keeps it from becoming a chargeback.",
        _CHARGEBACK,
        _EVIDENCE,
    ),
    "deadline": Kind(
        "Deadline of a chargeback",
        "After the deadline no evidence is taken, and the money is lost.",
        _CHARGEBACK,
        _EVIDENCE,
    ),
    "unknown_status": Kind(
        "Chargeback in an unknown state",
        "Stripe names a state that this release does not know. Until a person has looked, it is treated with caution.",
        _CHARGEBACK,
        _EVIDENCE,
    ),
    "chargeback_lost": Kind(
        "Chargeback lost, hold undecided",
        "The hold on the customer stays until a person lifts or keeps it (7).",
        _CHARGEBACK,
        _EVIDENCE,
    ),
    "early_fraud_warning": Kind(
        "Early fraud warning",
        "The card network expects fraud; a chargeback may follow within days.",
        _FIND,
        _EXPLAIN,
    ),
    # support and the merchant's app
    "case_near_due": Kind(
        "Case near 24 h", "Clause 5 promises an answer within 24 hours, and they are nearly over.", _CASE, _ANSWER
    ),
    "case_overdue": Kind("Case overdue", "Clause 5 promised an answer within 24 hours.", _CASE, _ANSWER),
    "notice_failed": Kind(
        "The app was not told",
        "The merchant's app did not take a notice for days: what it shows or allows the customer may be wrong.",
        "/console/customers/{customer}",
        "finalsale notices list --state failed",
    ),
    # events
    "events_dead": Kind(
        "Events that cannot be worked on",
        "What they tell is missing from the books, and so are the refunds and holds that follow from it.",
        "/console/events",
        "finalsale events list --state dead",
    ),
    "events_quarantined": Kind(
        "Quarantined events",
        "They cannot be understood by this release. What they tell is missing from the books.",
        "/console/events",
        "finalsale events list --state quarantined",
    ),
    "intake_silent": Kind(
        "Stripe's events do not arrive",
        "Stripe has events that did not come here. Chargebacks and duplicates are noticed only by the nightly run meanwhile.",
        "/console/events",
        _DOCTOR,
    ),
    "intake_unseen": Kind(
        "Silence of Stripe cannot be seen",
        "The key may not read events: if they stop coming, nobody can tell that from a quiet day.",
        "/console/events",
        _DOCTOR,
    ),
    "backlog_growing": Kind(
        "Events wait too long",
        "Workers do not keep up or stand still: decisions, refunds and holds are late.",
        "/console/events",
        "finalsale status",
    ),
    "api_version_unknown": Kind(
        "Unknown API version",
        "Events come in a version this release was not tested with; a field that moved would be overlooked.",
        "/console/events",
        _DOCTOR,
    ),
    "endpoint_misconfigured": Kind(
        "Webhook endpoint is not right",
        "Events that Stripe does not send are noticed only by the nightly run, up to a day late.",
        "/console/",
        "finalsale doctor --fix-endpoint",
    ),
    "secret_expiring": Kind(
        "Signing secret is about to expire",
        "When the old secret expires every delivery is refused, and Stripe disables the endpoint after some days.",
        "/console/",
        _DOCTOR,
    ),
    # the nightly comparison and the books
    "nightly_incomplete": Kind(
        "Nightly run incomplete",
        "What was not compared may be missing from the books, and nobody would know.",
        "/console/runs",
        "finalsale runs list",
    ),
    "nightly_not_run": Kind(
        "Nightly run did not take place",
        "What the webhooks missed last night was not found.",
        "/console/runs",
        "finalsale reconcile",
    ),
    "books_do_not_close": Kind(
        "The books do not close",
        "Money moved at Stripe that the books do not explain, or something happened that must never happen.",
        "/console/runs/{subject}",
        "finalsale runs show {subject}",
    ),
    "audit_broken": Kind(
        "Audit chain is broken",
        "A row of the books was edited, removed or reordered by something other than finalsale.",
        "/console/audit",
        "finalsale audit verify",
    ),
    "audit_late": Kind(
        "Audit chain is late",
        "What happens is written down and not yet bound by the chain: until it is, tampering with it is harder to see.",
        "/console/audit",
        "finalsale status",
    ),
    # the deployment
    "clock_skew": Kind(
        "A clock is wrong",
        "Signatures are refused and deadlines misjudged when clocks differ. Let the machine synchronise its clock (NTP).",
        "/console/",
        _DOCTOR,
    ),
    "worker_silent": Kind(
        "No worker is alive",
        "Events are stored, and nothing is judged, refunded or told until a worker runs.",
        "/console/",
        "finalsale status",
    ),
    "alert_route_failed": Kind(
        "An alert route is dead",
        "Whoever relies on that route hears nothing any more.",
        "/console/alerts",
        "finalsale alerts test",
    ),
}

_UNKNOWN = Kind(
    "Something needs a look",
    "This release raises it and has no further words for it.",
    "/console/alerts",
    "finalsale alerts list",
)


def kind_of(name: str) -> Kind:
    """What people are told of the kind `name`; for one that nobody knows (another release raised it) its name and the list."""
    return KINDS.get(name) or _UNKNOWN._replace(title=name.replace("_", " ").capitalize() or _UNKNOWN.title)
