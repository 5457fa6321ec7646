"""The policy file: dated versions of the merchant's terms, agreements with single customers, and which of them hold when.

The file is a contract with operators and other programs; it is checked whole, and an error names its line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from handlers.customer import CustomerId, Seconds

SHIPPED_POLICY = Path(__file__).with_name("finalsale.policy.toml")
"""AptNode's policy, used where `FINALSALE_POLICY` names no other file."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class PolicyInvalid(ValueError):
    """The policy file cannot be used. The message names the line and what to write instead."""


class Duration(int):
    """Whole seconds, written `30s`, `15m`, `72h` or `7d`."""


class DuplicateTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[version.duplicates]`: how clause 4.3 is read."""

    rule: Literal["on", "review", "none"] = "on"
    """`review` or `none` only through an agreement that overrides the whole rule."""
    window: Duration = Duration(900)
    settle: Duration = Duration(600)
    bare_payment_window: Duration = Duration(86400)
    manual_charge_window: Duration = Duration(7 * 86400)
    late_recovery: Literal["review", "refund"] = "review"
    person: tuple[str, ...] = ("user_id",)
    order: tuple[str, ...] = ("order_id", "renewal_id")
    scope: tuple[str, ...] = (
        *("workspace_id", "team_id", "site_id", "site", "project_id", "seat", "recipient", "gift"),
    )
    volatile: tuple[str, ...] = ("session_id", "request_id", "attempt", "utm_source", "utm_medium", "utm_campaign")
    reverse_overpaid_credit: bool = False


class RefundTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[version.refunds]`: limits in minor units per lower-case currency. A currency not named is always a review."""

    per_refund: dict[str, int] = {}
    per_day: dict[str, int] = {}
    two_persons: dict[str, int] = {}


class ChargebackTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[version.chargebacks]`: what an open chargeback does to the customer's standing (clause 7)."""

    on_chargeback: Literal["flag", "suspend"] = "flag"
    deadline_alerts: tuple[Duration, ...] = (Duration(7 * 86400), Duration(3 * 86400), Duration(86400))


class PlanCredits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credits that one price grants: per paid period, and at the start of a trial."""

    included: int = 0
    trial: int = 0


class CreditTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[version.credits]`: credits by price id (clause 3). A price in `packs` is a one-time credit pack."""

    plans: dict[str, PlanCredits] = {}
    packs: dict[str, int] = {}


class CaseTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[version.cases]`: the support clock (clause 5)."""

    answer_within: Duration = Duration(86400)
    alert_before: Duration = Duration(4 * 3600)


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dated version of the policy (clause 9)."""

    id: str
    in_force_from: datetime
    duplicates: DuplicateTerms = DuplicateTerms()
    refunds: RefundTerms = RefundTerms()
    chargebacks: ChargebackTerms = ChargebackTerms()
    credits: CreditTerms = CreditTerms()
    cases: CaseTerms = CaseTerms()


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was agreed with one customer (clause 8), where it is written, and from when to when it holds."""

    customer: str
    source: str
    from_: datetime = msgspec.field(name="from")
    until: datetime | None = None
    overrides: dict[str, Any] = {}


class Merchant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[merchant]`: whose policy it is, and the name on card statements."""

    name: str
    statement: str = ""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one customer's payment: a version, with an agreement laid over it where there is one."""

    version: str
    duplicates: DuplicateTerms
    refunds: RefundTerms
    chargebacks: ChargebackTerms
    credits: CreditTerms
    cases: CaseTerms
    agreement: str | None = None
    """The agreement's source, cited by every decision that used it."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file, checked."""

    merchant: Merchant
    version: tuple[Version, ...]
    agreement: tuple[Agreement, ...] = ()

    def earliest(self) -> Terms:
        """The first version's terms, without any agreement."""
        return _plain(self.version[0])

    def latest(self) -> Terms:
        """The last version's terms, without any agreement."""
        return _plain(self.version[-1])

    def terms_for(self, customer: CustomerId | None, paid_at: Seconds) -> Terms | None:
        """The terms in force when a payment was made (unix seconds); None before the first version (clause 9)."""
        held = [v for v in self.version if v.in_force_from.timestamp() <= paid_at]
        if not held:
            return None
        version = held[-1]
        for agreement in self.agreement:
            begun = agreement.customer == customer and agreement.from_.timestamp() <= paid_at
            if begun and (agreement.until is None or paid_at < agreement.until.timestamp()):
                return _overridden(version, agreement)
        return _plain(version)


_RULES = ("duplicates", "refunds", "chargebacks", "credits", "cases")


def _terms(version: Version, rules: dict[str, Any], source: str | None) -> Terms:
    return Terms(version=version.id, agreement=source, **rules)


def _overridden(version: Version, agreement: Agreement) -> Terms:
    rules = {name: getattr(version, name) for name in _RULES}
    for key, override in agreement.overrides.items():
        name, change = _placed(key, override)
        rules[name] = _merge(rules[name], change)
    return _terms(version, rules, agreement.source)


def _placed(key: str, override: Any) -> tuple[str, Any]:
    """An override by rule: `duplicates = {window = "1h"}`, `"duplicates.window" = "1h"` and `window = "1h"` say the same."""
    rule, _, term = key.partition(".")
    if term:
        return rule, {term: override}
    owners = [name for name, blank in _BLANK.items() if key in blank.__struct_fields__ and key != "rule"]
    return (owners[0], {key: override}) if key not in _RULES and owners else (key, override)


def _merge(rule: Any, override: Any) -> Any:
    """A rule with single terms replaced, or switched off (`none`) or to a person's word (`review`) as a whole."""
    if isinstance(override, str):
        return msgspec.structs.replace(rule, rule=override)
    merged = {**msgspec.to_builtins(rule, builtin_types=(Duration,)), **override}
    return msgspec.convert(merged, type(rule), dec_hook=_duration)


def load_policy(path: Path | str) -> Policy:
    """Read and check a policy file. Raises PolicyInvalid with the line and the reason."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyInvalid(
            f"{path}: cannot be read ({type(error).__name__}); set FINALSALE_POLICY to a readable file"
        ) from None
    return parse_policy(text, name=str(path))


def parse_policy(text: str, *, name: str = "policy") -> Policy:
    """Check the text of a policy file whole. Raises PolicyInvalid with the line and the reason."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalid(f"{name}: not valid TOML: {error}") from None
    try:
        policy = msgspec.convert(tree, Policy, dec_hook=_duration)
    except msgspec.ValidationError as error:
        raise PolicyInvalid(_with_line(name, text, str(error))) from None
    for complaint, key, ordinal in _complaints(policy):
        raise PolicyInvalid(f"{name}, line {_line_of(text, key, ordinal)}: {complaint}")
    ordered = tuple(sorted(policy.version, key=lambda v: v.in_force_from))
    return msgspec.structs.replace(policy, version=ordered)


def _duration(kind: type, value: Any) -> Any:
    if kind is not Duration:
        raise TypeError(f"no way to read {kind}")
    if isinstance(value, int) and isinstance(value, Duration):
        return value
    found = re.fullmatch(r"(\d{1,6})([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a duration; write it as 30s, 15m, 72h or 7d")
    return Duration(int(found[1]) * _UNITS[found[2]])


Complaint = tuple[str, str, int]
"""What is wrong, the dotted key it is about, and in the how-manieth table of that name."""


def _complaints(policy: Policy) -> Iterator[Complaint]:
    """What the types cannot say. Only the first is looked at: what follows it may rest on what it complains of."""
    if not policy.version:
        yield "there is no [[version]]; a policy needs at least one", "version", 0
    for n, version in enumerate(policy.version):
        yield from _version_faults(version, n, policy.version[:n])
    for n, agreement in enumerate(policy.agreement):
        yield from _agreement_faults(agreement, n, policy.agreement[:n])


def _version_faults(version: Version, n: int, before: tuple[Version, ...]) -> Iterator[Complaint]:
    start = version.in_force_from
    if start.tzinfo is None:
        yield "in_force_from needs a time zone, for example 2025-01-01T00:00:00Z", "version.in_force_from", n
    elif any(start == other.in_force_from for other in before):
        yield "two versions come into force at the same moment", "version.in_force_from", n
    if any(version.id == other.id for other in before):
        yield f"version id {version.id!r} stands twice; ids must differ", "version.id", n
    if version.duplicates.rule != "on":
        why = "unknown key 'rule'; a whole rule is overridden only by an [[agreement]]"
        yield why, "version.duplicates.rule", n
    for why, name in _limit_faults(version.refunds):
        yield why, f"version.refunds.{name}", n


def _limit_faults(refunds: RefundTerms) -> Iterator[tuple[str, str]]:
    for name in ("per_refund", "per_day", "two_persons"):
        for currency, minor in getattr(refunds, name).items():
            if not re.fullmatch("[a-z]{3}", currency) or minor < 0:
                yield f"{currency} = {minor}: write a lower-case currency and whole minor units", name


def _agreement_faults(agreement: Agreement, n: int, before: tuple[Agreement, ...]) -> Iterator[Complaint]:
    begins, ends = agreement.from_, agreement.until
    if begins.tzinfo is None or (ends is not None and ends.tzinfo is None):
        yield "from and until need a time zone, for example 2026-03-01T00:00:00Z", "agreement.from", n
        return
    if ends is not None and ends <= begins:
        yield "the agreement ends before it begins", "agreement.until", n
    for other in before:
        if other.customer == agreement.customer:
            starts_within = other.until is None or begins < other.until
            if starts_within and (ends is None or other.from_ < ends):
                yield f"two agreements of {agreement.customer} hold at one time", "agreement.customer", n
    for key, override in agreement.overrides.items():
        for why in _override_faults(key, override):
            yield why, "agreement.overrides", n


def _override_faults(key: str, override: Any) -> list[str]:
    rule, override = _placed(key, override)
    if rule not in _RULES:
        return [f"unknown rule {rule!r} in overrides; there are {', '.join(_RULES)}"]
    if isinstance(override, str):
        fits = rule == "duplicates" and override in ("none", "review")
        return [] if fits else [f"{rule} = {override!r}: only duplicates can be 'none' or 'review' as a whole"]
    if not isinstance(override, dict) or "rule" in override:
        return [f'{rule} must be a table of terms, for example {{ window = "30m" }}']
    try:
        merged = _merge(_BLANK[rule], override)
    except (msgspec.ValidationError, ValueError) as error:
        return [f"{rule}: {error}"]
    return [why for why, _ in _limit_faults(merged)] if isinstance(merged, RefundTerms) else []


_BLANK: dict[str, Any] = {
    "duplicates": DuplicateTerms(),
    "refunds": RefundTerms(),
    "chargebacks": ChargebackTerms(),
    "credits": CreditTerms(),
    "cases": CaseTerms(),
}


def _with_line(name: str, text: str, message: str) -> str:
    """msgspec's complaint (`... - at `$.version[0].duplicates`) with the line of the file it is about."""
    reason, _, path = message.partition(" - at ")
    unknown = re.search(r"unknown field `([^`]+)`", reason)
    trail = [part for part in re.split(r"[.\[\]`$]+", path) if part and part != "..."]
    if unknown:
        trail.append(unknown[1])
        reason = f"unknown key {unknown[1]!r}"
    key = ".".join(part for part in trail if not part.isdigit())
    ordinal = next((int(part) for part in trail if part.isdigit()), 0)
    return f"{name}, line {_line_of(text, key, ordinal)}: {reason} (in {key or 'the file'})"


def _line_of(text: str, key: str, ordinal: int = 0) -> int:
    """The line on which a dotted key is set, counting tables of the same name from `ordinal`; 1 where it is not."""
    table, seen, best = "", -1, 1
    top = key.split(".")[0]
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([\w.\-\" ]+?)\s*\]+", line):
            table = header[1].replace(" ", "")
            seen += table == top and line.lstrip().startswith("[[")
            here = table
        elif assigned := re.match(r"\s*([\w.\-\"]+)\s*=", line):
            here = f"{table}.{assigned[1]}" if table else assigned[1]
        else:
            continue
        if max(seen, 0) == ordinal or not line.strip():
            if here == key:
                return number
            if key.startswith(here + ".") or here.rpartition(".")[0] == key:
                best = number if best == 1 or key.startswith(here + ".") else best
    return best


_PLAIN: dict[int, tuple[Version, Terms]] = {}


def _plain(version: Version) -> Terms:
    """The terms of a version without an agreement, built once: they are asked for with every payment."""
    cached = _PLAIN.get(id(version))
    if cached is None or cached[0] is not version:
        cached = (version, _terms(version, {name: getattr(version, name) for name in _RULES}, None))
        _PLAIN[id(version)] = cached
    return cached[1]


def as_written(value: Any) -> Any:
    """Terms, or a whole policy, as the file writes them: plain values, durations as `15m`."""
    match value:
        case Duration():
            sizes = ((86400, "d"), (3600, "h"), (60, "m"))
            fits = next(((s, letter) for s, letter in sizes if value and value % s == 0), (1, "s"))
            return f"{value // fits[0]}{fits[1]}"
        case msgspec.Struct():
            return {f.encode_name: as_written(getattr(value, f.name)) for f in msgspec.structs.fields(value)}
        case dict():
            return {key: as_written(inner) for key, inner in value.items()}
        case list() | tuple():
            return [as_written(inner) for inner in value]
        case _:
            return value
