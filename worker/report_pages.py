"""A run's report on paper: one self-contained HTML page that finance can sign, and one long CSV file for its spreadsheets."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from handlers.decisions import Money
from reconcile.report import Day, Report
from worker import run_words
from worker.errors import Permanent
from worker.plots import Plot, bars, stacked

COLUMNS = (
    "section", "currency", "kind", "object", "customer", "amount_minor", "amount", "clause", "class", "what", "sentence", "cause",
)  # fmt: skip
MAX_DAYS = 100
"""A plot of more days than this is one of months."""
KINDS = ("charge", "refund", "dispute")
"""The kinds of movement that have a colour of their own; others share what is left."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_WOULD_BE_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class NotWritten(Permanent):
    """A file cannot be written; the message names it and says why."""

    error_code = "not_written"


def write_html(report: Report, path: Path, stored: bytes | None = None) -> None:
    """`html_of` into a file. Raises NotWritten."""
    _write(path, html_of(report, stored))


def write_csv(report: Report, path: Path) -> None:
    """`csv_of` into a file. Raises NotWritten."""
    _write(path, csv_of(report))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror or type(error).__name__}.") from error


def document_of(stored: bytes) -> bytes:
    """A stored report exactly as `finalsale runs show ID --json` prints it; its SHA-256 stands on the page that is signed."""
    return msgspec.json.format(stored, indent=2) + b"\n"


# HTML --------------------------------------------------------------------------------------------------------------------


def html_of(report: Report, stored: bytes | None = None) -> str:
    """The whole report as one page without scripts and without anything from elsewhere; `stored` are its bytes in the books."""
    style = _environment().get_template("run.css").render()
    return _environment().get_template("run.html.j2").render(
        matter_of(report, stored),
        style=Markup(style),  # noqa: S704  # our own file, without anything of the report in it
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )  # fmt: skip


def matter_of(report: Report, stored: bytes | None = None) -> dict[str, Any]:
    """What `_report.html.j2` is rendered with, wherever it stands: the report, its words and its drawings."""
    document = document_of(stored if stored is not None else msgspec.json.encode(report))
    return {
        "report": report,
        "words": run_words,
        "sha256": hashlib.sha256(document).hexdigest(),
        "money": lambda minor, currency: str(Money(minor, currency)),
        "plots": list(_money_plots(report.days)),
        "causes": bars("Drift by cause", sorted(report.causes.items(), key=lambda item: (-item[1], item[0]))),
        "backlog": bars("Reviews that wait, by age", run_words.backlog(report)) if report.waiting.reviews else None,
    }


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("worker", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _money_plots(days: Iterable[Day]) -> Iterator[Plot]:
    """One per currency: what came and went on each day, by kind. Refunds and disputes hang below the line."""
    found = list(days)
    monthly = len({day.day for day in found}) > MAX_DAYS
    sums: dict[str, dict[tuple[str, str], int]] = defaultdict(lambda: defaultdict(int))
    for day in found:
        sums[day.currency][day.day[:7] if monthly else day.day, day.kind] += day.minor
    kinds = sorted({day.kind for day in found}, key=lambda kind: (KINDS.index(kind) if kind in KINDS else 99, kind))
    for currency, moved in sorted(sums.items()):
        labels = sorted({label for label, _ in moved})
        shown = [kind for kind in kinds if any((label, kind) in moved for label in labels)]
        title = f"{currency.upper()} by {'month' if monthly else 'day'} (UTC) and kind"
        colours = [(_colour(kind, kinds), kind) for kind in shown]
        in_words = partial(_in_words, currency)
        yield stacked(title, "month" if monthly else "day", labels, moved, colours, in_words)


def _in_words(currency: str, minor: int) -> str:
    return str(Money(minor, currency))


def _colour(kind: str, kinds: Sequence[str]) -> int:
    """The same kind has the same colour in every plot."""
    return KINDS.index(kind) if kind in KINDS else len(KINDS) + [k for k in kinds if k not in KINDS].index(kind) % 3


# CSV ---------------------------------------------------------------------------------------------------------------------


def csv_of(report: Report) -> str:
    """Everything in the report in one long form, a row per fact, for spreadsheets; `amount` has the currency's own digits."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, restval="")
    writer.writeheader()
    for row in _rows(report):
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue()


def _rows(report: Report) -> Iterator[dict[str, object]]:
    yield _row("run", kind=report.kind, object=report.run, what=report.result, sentence=" ".join(report.why))
    yield _row("run", kind="window", object=report.run, what="utc", sentence=run_words.window(report))
    for line in report.certificate:
        counted = f"{line.slices} slices, {line.pages} pages, {line.objects} objects, {line.retries} retries, {line.unread} unread"
        ids = f"{line.first_id or '-'} to {line.last_id or '-'}"
        what = "unread" if line.unread else "complete"
        yield _row("certificate", kind=line.list, object=ids, what=what, sentence=counted)
    for unread in report.unread:
        yield _row("unread", kind=unread.list, object=unread.what, sentence=unread.why)
    yield from _money_rows(report)
    for finding in report.findings:
        yield _row("finding", finding.amount, kind=finding.kind, object=finding.object, customer=finding.customer,
                   clause=finding.clause, what=finding.what, sentence=finding.sentence, cause=finding.cause,
                   **{"class": finding.class_})  # fmt: skip
    for one in report.consequences:
        told = run_words.effect(one, dry_run=report.dry_run)
        yield _row("consequence", one.amount, kind=one.about, object=one.subject, customer=one.customer, clause=one.clause,
                   what=one.verdict or one.becomes, sentence=told, cause=one.reason, **{"class": one.class_})  # fmt: skip
    for name, sums in (("to_return", report.to_return), ("to_review", report.to_review)):
        for currency, minor in sorted(sums.items()):
            yield _row("total", Money(minor, currency), what=name)
    for age, count in run_words.backlog(report):
        yield _row("waiting", kind="review", what=age, sentence=str(count))


def _money_rows(report: Report) -> Iterator[dict[str, object]]:
    for row in report.money:
        for what in ("at_stripe", "ours", "residual", "explained"):
            yield _row("money", Money(getattr(row, f"{what}_minor"), row.currency), kind=row.kind, what=what)
    for other in report.other:
        amount = Money(other.at_stripe_minor, other.currency)
        yield _row("other", amount, kind=other.kind, what="at_stripe", sentence=f"{other.count} balance transactions")
    for one in report.residuals:
        what = "explained" if one.explained else "unexplained"
        yield _row(
            "residual", Money(one.minor, one.currency), kind=one.kind, object=one.object, what=what, cause=one.why
        )
    for day in report.days:
        amount = Money(day.minor, day.currency)
        yield _row(
            "day", amount, kind=day.kind, object=day.day, what="moved", sentence=f"{day.count} balance transactions"
        )


def _row(section: str, amount: Money | None = None, **cells: object) -> dict[str, object]:
    if amount is None:
        return {"section": section, **cells}
    decimal = str(amount).partition(" ")[0]
    return {"section": section, "currency": amount.currency, "amount_minor": amount.minor, "amount": decimal, **cells}


def _cell(value: object) -> str:
    """A value as a spreadsheet may have it: what would be read as a formula gets an apostrophe, numbers do not."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_WOULD_BE_A_FORMULA) and not _NUMBER.fullmatch(text) else text
