"""The policy file: checked whole, errors that name their line, versions by date, agreements, durations (clauses 8 and 9)."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.customer import CustomerId
from handlers.terms import SHIPPED_POLICY, Policy, PolicyInvalid, load_policy, parse_policy

SHIPPED = SHIPPED_POLICY.read_text(encoding="utf-8")
JAN_2025, MAR_2026, JUN_2026, JAN_2027 = 1_735_689_600, 1_772_323_200, 1_780_272_000, 1_798_761_600

TWO_VERSIONS = """
[merchant]
name = "AptNode"

[[version]]
id = "later"
in_force_from = 2026-06-01T00:00:00Z
[version.duplicates]
window = "1h"

[[version]]
id = "first"
in_force_from = 2025-01-01T00:00:00Z
"""

AGREEMENT = """
[[agreement]]
customer = "cus_E"
source = "MSA 2026-03, section 9"
from = 2026-03-01T00:00:00Z
until = 2026-06-01T00:00:00Z
overrides = { %s }
"""


def _agreed(overrides: str, text: str = SHIPPED) -> Policy:
    return parse_policy(text + AGREEMENT % overrides)


def test_the_shipped_policy_is_the_published_one() -> None:
    terms = load_policy(SHIPPED_POLICY).latest()
    assert (terms.version, terms.agreement) == ("2025-01", None)
    duplicates = terms.duplicates
    assert (duplicates.window, duplicates.settle) == (900, 600)
    assert (duplicates.bare_payment_window, duplicates.manual_charge_window) == (86400, 7 * 86400)
    assert (duplicates.late_recovery, duplicates.reverse_overpaid_credit) == ("review", False)
    assert (duplicates.person, duplicates.order) == (("user_id",), ("order_id", "renewal_id"))
    assert "workspace_id" in duplicates.scope
    assert "request_id" in duplicates.volatile
    assert terms.refunds.per_refund == {"usd": 50000, "eur": 50000, "gbp": 40000, "jpy": 75000, "kwd": 150000}
    assert terms.refunds.per_day["usd"] == 500000
    assert terms.refunds.two_persons["jpy"] == 150000
    assert (terms.chargebacks.on_chargeback, terms.chargebacks.deadline_alerts) == ("flag", (604800, 259200, 86400))
    assert (terms.credits.plans["price_basic"].included, terms.credits.packs) == (500, {"price_pack_100": 100})
    assert (terms.cases.answer_within, terms.cases.alert_before) == (86400, 14400)


def test_what_the_file_leaves_out_is_as_in_the_shipped_policy() -> None:
    bare = parse_policy(
        '[merchant]\nname = "A"\n[[version]]\nid = "1"\nin_force_from = 2025-01-01T00:00:00Z\n'
    ).latest()
    assert bare.duplicates == load_policy(SHIPPED_POLICY).latest().duplicates
    assert bare.refunds.per_refund == {}, "no limit named: every refund is a review"


def _line(text: str, needle: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if needle in line)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('window = "15m"', 'window = "soon"', "'soon' is not a duration; write it as 30s, 15m, 72h or 7d"),
        ('window = "15m"', "window = 15", "15 is not a duration"),
        ('window = "15m"', 'window = "-15m"', "'-15m' is not a duration"),
        ('window = "15m"', 'window = "15 m"', "'15 m' is not a duration"),
        ('window = "15m"', 'widow = "15m"', "unknown key 'widow'"),
        ('late_recovery = "review"', 'late_recovery = "maybe"', "maybe"),
        ("reverse_overpaid_credit = false", 'reverse_overpaid_credit = "no"', "Expected `bool`"),
        ('person = ["user_id"]', 'person = "user_id"', "Expected `array`"),
        ('person = ["user_id"]', "person = [7]", "Expected `str`"),
        ('on_chargeback = "flag"', 'on_chargeback = "ban"', "ban"),
        ('deadline_alerts = ["7d", "3d", "24h"]', 'deadline_alerts = ["7d", "3 days"]', "'3 days' is not a duration"),
        ("usd = 50000,", "usd = 500.00,", "Expected `int`"),
        ("usd = 50000,", "USD = 50000,", "USD = 50000: write a lower-case currency"),
        ("usd = 50000,", "usd = -1,", "usd = -1: write a lower-case currency"),
        ("per_day     =", "per_week    =", "unknown key 'per_week'"),
        ("price_basic = { included = 500", "price_basic = { includes = 500", "unknown key 'includes'"),
        ("price_pack_100 = 100", 'price_pack_100 = "many"', "Expected `int`"),
        ('answer_within = "24h"', 'answer_within = "1w"', "'1w' is not a duration"),
        ("in_force_from = 2025-01-01T00:00:00Z", 'in_force_from = "soon"', "datetime"),
        ("in_force_from = 2025-01-01T00:00:00Z", "in_force_from = 2025-01-01T00:00:00", "needs a time zone"),
        ('name = "AptNode"', "name = 7", "Expected `str`"),
        ('statement = "APTNODE"', 'motto = "x"', "unknown key 'motto'"),
        ('window = "15m"', 'rule = "none"', "only by an [[agreement]]"),
        ('id = "2025-01"', "id = 2025", "Expected `str`"),
    ],
)
def test_an_error_names_its_line_and_what_is_wrong(before: str, after: str, says: str) -> None:
    assert before in SHIPPED
    text = SHIPPED.replace(before, after, 1)
    with pytest.raises(PolicyInvalid) as refused:
        parse_policy(text, name="policy.toml")
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"policy.toml, line {_line(text, after)}:")


def test_an_error_in_a_later_version_names_the_line_in_that_version() -> None:
    text = TWO_VERSIONS.replace('window = "1h"', 'window = "15m"') + '[version.duplicates]\nwindow = "never"\n'
    with pytest.raises(PolicyInvalid, match=f"line {_line(text, 'never')}:"):
        parse_policy(text)


def test_an_error_in_an_agreement_behind_two_versions_names_the_agreement() -> None:
    text = TWO_VERSIONS + (AGREEMENT % 'window = "1h"').replace("source", "sauce")
    with pytest.raises(PolicyInvalid, match=f"line {_line(text, 'sauce')}: unknown key 'sauce'"):
        parse_policy(text)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ('[merchant]\nname = "A"\n', "version"),
        ('version = []\n[merchant]\nname = "A"\n', "no [[version]]"),
        ('[[version]]\nid = "1"\nin_force_from = 2025-01-01T00:00:00Z\n', "merchant"),
        ('[merchant]\nname = "A"\n[[version]]\nid = "1"\n', "in_force_from"),
    ],
)
def test_what_is_missing_is_said(missing: str, says: str) -> None:
    with pytest.raises(PolicyInvalid, match="line") as refused:
        parse_policy(missing)
    assert says in str(refused.value)


def test_two_versions_with_one_id_or_one_date_are_refused() -> None:
    with pytest.raises(PolicyInvalid, match="version id 'first' stands twice"):
        parse_policy(TWO_VERSIONS.replace('"later"', '"first"'))
    with pytest.raises(PolicyInvalid, match="same moment"):
        parse_policy(TWO_VERSIONS.replace("2026-06-01", "2025-01-01"))


def test_an_error_that_the_second_version_has_names_its_line() -> None:
    text = TWO_VERSIONS + "[version.refunds]\nper_day = { EUR = 1 }\n"
    with pytest.raises(PolicyInvalid, match=f"line {_line(text, 'per_day')}: EUR = 1"):
        parse_policy(text)
    text = TWO_VERSIONS.replace("2025-01-01T00:00:00Z", "2025-01-01T00:00:00")
    with pytest.raises(PolicyInvalid, match=f"line {_line(text, '2025-01-01')}: in_force_from needs a time zone"):
        parse_policy(text)


def test_broken_toml_and_a_missing_file_are_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PolicyInvalid, match=r"policy: not valid TOML: .*line 2"):
        parse_policy("[merchant]\nname =\n")
    with pytest.raises(PolicyInvalid, match="FINALSALE_POLICY"):
        load_policy(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyInvalid, match="cannot be read"):
        load_policy(tmp_path / "binary.toml")


def test_a_payment_is_judged_by_the_version_in_force_when_it_was_made() -> None:
    policy = parse_policy(TWO_VERSIONS)
    cases = {JAN_2025 - 1: None, JAN_2025: "first", JUN_2026 - 1: "first", JUN_2026: "later", JAN_2027: "later"}
    for paid_at, version in cases.items():
        terms = policy.terms_for(None, paid_at)
        assert (terms.version if terms else None) == version
    assert (policy.earliest().version, policy.latest().version) == ("first", "later")
    assert policy.latest().duplicates.window == 3600


@pytest.mark.parametrize(
    ("written", "seconds"), [("0s", 0), ("30s", 30), ("15m", 900), ("72h", 259200), ("7d", 604800), ("90m", 5400)]
)
def test_durations(written: str, seconds: int) -> None:
    text = SHIPPED.replace('window = "15m"', f'window = "{written}"', 1)
    assert parse_policy(text).latest().duplicates.window == seconds


@pytest.mark.parametrize(
    "overrides",
    ['window = "1h"', '"duplicates.window" = "1h"', 'duplicates = { window = "1h" }', 'duplicates.window = "1h"'],
)
def test_an_agreement_overrides_a_single_term_and_is_named(overrides: str) -> None:
    terms = _agreed(overrides).terms_for(CustomerId("cus_E"), MAR_2026)
    assert terms is not None
    assert (terms.duplicates.window, terms.duplicates.settle) == (3600, 600)
    assert (terms.version, terms.agreement) == ("2025-01", "MSA 2026-03, section 9")


@pytest.mark.parametrize("rule", ["none", "review"])
def test_an_agreement_overrides_the_whole_rule(rule: str) -> None:
    terms = _agreed(f'duplicates = "{rule}"').terms_for(CustomerId("cus_E"), MAR_2026)
    assert terms is not None
    assert terms.duplicates.rule == rule


def test_an_agreement_holds_for_its_customer_from_its_day_until_its_end() -> None:
    policy = _agreed('window = "1h"')
    windows = {
        (customer, paid_at): terms.duplicates.window
        for customer in ("cus_E", "cus_F")
        for paid_at in (MAR_2026 - 1, MAR_2026, JUN_2026 - 1, JUN_2026)
        if (terms := policy.terms_for(CustomerId(customer), paid_at))
    }
    assert {key for key, window in windows.items() if window == 3600} == {
        ("cus_E", MAR_2026),
        ("cus_E", JUN_2026 - 1),
    }


def test_an_agreement_lies_over_the_version_in_force() -> None:
    policy = _agreed('settle = "1m"', TWO_VERSIONS.replace("2026-06-01", "2026-04-01"))
    terms = policy.terms_for(CustomerId("cus_E"), JUN_2026 - 1)
    assert terms is not None
    assert (terms.version, terms.duplicates.window, terms.duplicates.settle) == ("later", 3600, 60)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ('fees = "none"', "unknown rule 'fees'"),
        ('refunds = "none"', "only duplicates can be"),
        ('duplicates = "sometimes"', "only duplicates can be 'none' or 'review'"),
        ('duplicates = { rule = "none" }', "must be a table of terms"),
        ("duplicates = 7", "must be a table of terms"),
        ('window = "soon"', "'soon' is not a duration"),
        ('duplicates = { widow = "1h" }', "widow"),
        ('refunds = { per_refund = { usd = "much" } }', "Expected `int`"),
        ("per_refund = { USD = 1 }", "lower-case currency"),
    ],
)
def test_a_wrong_override_is_refused_with_its_line(overrides: str, says: str) -> None:
    text = SHIPPED + AGREEMENT % overrides
    with pytest.raises(PolicyInvalid) as refused:
        parse_policy(text)
    assert says in str(refused.value)
    assert f"line {_line(text, 'overrides')}:" in str(refused.value)


def test_two_agreements_of_one_customer_at_one_time_are_refused() -> None:
    text = SHIPPED + AGREEMENT % 'window = "1h"' + (AGREEMENT % 'window = "2h"').replace("2026-03-01", "2026-05-01")
    with pytest.raises(PolicyInvalid, match="two agreements of cus_E hold at one time"):
        parse_policy(text)
    parse_policy(text.replace("until = 2026-06-01", "until = 2026-05-01", 1))


def test_an_agreement_whose_dates_lack_a_time_zone_is_refused() -> None:
    with pytest.raises(PolicyInvalid, match="time zone"):
        parse_policy(SHIPPED + (AGREEMENT % 'window = "1h"').replace("2026-03-01T00:00:00Z", "2026-03-01T00:00:00"))


def test_an_agreement_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(PolicyInvalid, match="ends before it begins"):
        parse_policy(SHIPPED + (AGREEMENT % 'window = "1h"').replace("2026-06-01", "2026-02-01"))
