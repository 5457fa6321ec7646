"""How a run looks in a terminal: its plan, its report, and the first look that a merchant takes at an account."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from handlers.customer import Seconds
from handlers.decisions import Money
from reconcile.findings import Class, Consequence, Finding, What
from reconcile.report import SHOWN, MoneyRow, Report, Residual
from reconcile.windows import ALIVE
from worker import run_words
from worker.run_words import Looked, counted_noun, sums
from worker.show import console, plain

WIDEST = 140
"""Lines longer than this are hard to read; a pipe has no width of its own."""
OF_A_KIND = 12
"""Findings and consequences of one kind that a page shows; the report has all."""
COLOURS = {0: "green", 1: "yellow", 2: "red"}
_CLASS_COLOURS = {Class.ASK: "yellow", Class.AUTO: "green", Class.NEVER: "dim"}

Cell = str | Text
Cells = Sequence[Cell]


def run_page(report: Report) -> None:
    """One run whole: the result first, then what it rests on, what was found and done, and what waits."""
    _print(
        _headline(report),
        _facts_of(report),
        *_section("Completeness certificate", _certificate(report)),
        *_unread(report),
        *_money(report),
        *_by_class(report),
        *_section("Done and waiting", _bullets(_ending(report))),
    )


def plan_page(report: Report) -> None:
    """What is wrong and what would be done about it, by who may do it; nothing of it has happened."""
    would = [
        f"{name}: {told}"
        for name, told in (
            ("back to customers", sums(report.to_return, "")),
            ("before a person", sums(report.to_review, "")),
            ("accounts on hold", str(report.would_hold or "")),
            ("credits that end", str(report.credits_due or "")),
        )
        if told
    ]
    nothing = (
        ["Nothing is wrong and nothing would be done."] if not (report.by_class or report.consequences_total) else []
    )
    _print(
        _headline(report, "THE PLAN", "Nothing of this has been done; no object at Stripe was changed.")
        if report.dry_run or report.exit == 2
        else _beginning(),
        _facts_of(report),
        *_unread(report),
        *_by_class(report),
        *_section("In all it would bring", _bullets(would or nothing or ["no money back, no hold, no credits"])),
    )


def first_look(report: Report) -> None:
    """What the policy would have said of an account's past days, before any webhook was connected (`reconcile --dry-run`)."""
    seen = run_words.looked(report.consequences)
    _print(
        _promise(report, seen),
        *_unread(report),
        *_section("Duplicates: these would go back", _cases(seen.duplicates)),
        *_section("Perhaps duplicates: a person would decide", _cases(seen.doubtful)),
        *_section("Accounts that would be held (7)", _cases(seen.standing)),
        *_section("Credits that are overdue (3.1, 3.3)", _cases(seen.credits)),
        *_section("Refunds outside the policy (2, 6)", _cases(seen.out_of_policy)),
        *_section("Charges after cancellation (1.2, 1.3)", _cases(seen.after_end)),
        *_drift_at_first(report),
        *_section("What was read", _read_at_first(report)),
        *_section("What to do next", _next(report, seen)),
    )


def page_of(report: Report) -> Callable[[Report], None]:
    """The page that suits a run: the first look where books began with it, the plan of a dry run, or the run whole."""
    if report.dry_run:
        return first_look if any(report.imported.values()) and not report.drift else plan_page
    return run_page


# building blocks ---------------------------------------------------------------------------------------------------------


def _print(*parts: RenderableType) -> None:
    out = console()
    out.width = min(out.width, WIDEST)
    out.print(Group(*parts))


def _text(value: object, style: str = "") -> Text:
    """A value from the books as text that can neither move the cursor nor style itself."""
    shown = plain(value)
    return Text(shown.plain, style=style or shown.style)


def _section(title: str, body: RenderableType | None, style: str = "bold") -> Iterator[RenderableType]:
    """A title and what stands under it; nothing where there is nothing to say."""
    if body is not None:
        yield Text()
        yield Text(title, style=style)
        yield Padding(body, (0, 0, 0, 2))


def _bullets(sentences: Iterable[Cell], mark: str = "-") -> RenderableType | None:
    drawn = Table.grid(padding=(0, 1, 0, 0))
    drawn.add_column(no_wrap=True, style="dim")
    drawn.add_column(overflow="fold")
    for number, sentence in enumerate(sentences, 1):
        drawn.add_row(mark or f"{number}.", sentence if isinstance(sentence, Text) else _text(sentence))
    return drawn if drawn.row_count else None


def _table(names: Sequence[str], rows: Iterable[Cells], left: Sequence[str] = ()) -> Table:
    """A table whose first column and those in `left` stand at the left; figures stand at the right."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for place, name in enumerate(names):
        justify: Literal["left", "right"] = "left" if place == 0 or name in left else "right"
        drawn.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _headline(report: Report, title: str = "", beneath: str = "") -> Panel:
    colour = COLOURS.get(report.exit, "red")
    result = Text(run_words.headline(report), style=f"bold {colour}")
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(Text.assemble(f"{title}  " if title else "", result), Text(f"exit {report.exit}", style="dim"))
    said = [_text(sentence) for sentence in (*report.why, *([beneath] if beneath else []))]
    return Panel(Group(head, *said), box=box.ROUNDED, border_style=colour, padding=(0, 1))


def _beginning() -> Panel:
    """Above the plan of a run that heals: it has no result yet."""
    return Panel(
        Text("THE PLAN  what was found, and what is done about it now", style="bold"), box=box.ROUNDED, padding=(0, 1)
    )


def _facts_of(report: Report) -> RenderableType:
    """Which run it was, over which time, how much it read."""
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True, style="dim")
    drawn.add_column(overflow="fold")
    dry = ", dry run" if report.dry_run else ""
    drawn.add_row("run", _text(f"{report.run}  ({report.realm}, {report.kind}{dry}, asked: {report.asked})"))
    drawn.add_row("window", run_words.window(report))
    drawn.add_row("read", run_words.pace(report))
    drift = Text(f"{report.drift:,}", style="green" if report.drift == 0 else "yellow")
    told = " findings: Stripe and the books do not agree" if report.drift else ": Stripe and the books agree"
    drawn.add_row("drift", drift + Text(told))
    for note in run_words.notes(report):
        drawn.add_row("", _text(note, "dim"))
    return drawn


# the certificate and the money -------------------------------------------------------------------------------------------


def _certificate(report: Report) -> RenderableType:
    """How much of every list was read; first and last ids where there is room for them whole."""
    lines, rows = report.certificate, list[Cells]()
    longest = max((len(id_) for line in lines for id_ in (line.first_id, line.last_id) if id_), default=0)
    roomy = 70 + 2 * (longest + 3) <= min(console().width, WIDEST)
    ids = ("newest", "oldest") if roomy else ()
    for line in lines:
        unread = Text(f"{line.unread:,}", style="bold red" if line.unread else "green")
        figures = [f"{figure:,}" for figure in (line.slices, line.pages, line.objects, line.retries)]
        seen = [_text(line.first_id), _text(line.last_id)] if roomy else []
        rows.append([_text(line.list.replace("_", " ")), *figures, unread, *seen])
    drawn = _table(("list", "slices", "pages", "objects", "retries", "unread", *ids), rows, left=ids)
    hint = Text("First and last ids: in a wider terminal, --json or --html.", style="dim")
    return drawn if roomy else Group(drawn, hint)


def _unread(report: Report) -> Iterator[RenderableType]:
    shown: list[Cell] = [f"{one.list.replace('_', ' ')} {one.what}: {one.why}" for one in report.unread[:OF_A_KIND]]
    if left := report.unread_total - len(shown):
        shown.append(_more(left))
    yield from _section(f"Could not be read ({report.unread_total:,})", _bullets(shown, "!"), "bold red")


def _money(report: Report) -> Iterator[RenderableType]:
    """Conservation per currency, every residual with its object, and what is no business of the books."""
    if report.money:
        names = ("currency", "kind", "at Stripe", "in the books", "residual", "explained")
        rows = [_money_row(row) for row in sorted(report.money, key=lambda m: (m.currency, m.kind))]
        yield from _section("Money, by Stripe's balance transactions", _table(names, rows, left=("kind",)))
    # what nothing explains is what a person has to see
    residuals = sorted(report.residuals, key=lambda residual: residual.explained)
    shown: list[Cell] = [_residual(one) for one in residuals[:OF_A_KIND]]
    if left := report.residuals_total - len(shown):
        shown.append(_more(left))
    yield from _section(f"Residuals ({report.residuals_total:,})", _bullets(shown))
    others = [
        f"{one.kind.replace('_', ' ')}: {Money(one.at_stripe_minor, one.currency)} in {one.count:,}"
        for one in report.other
    ]
    yield from _section("No business of the books", _bullets([", ".join(others)] if others else []), "dim")


def _money_row(row: MoneyRow) -> Cells:
    unexplained = row.residual_minor - row.explained_minor
    style = "bold red" if unexplained else "" if row.residual_minor else "green"
    sums_ = [str(Money(minor, row.currency)) for minor in (row.at_stripe_minor, row.ours_minor)]
    residual = Text(str(Money(row.residual_minor, row.currency)), style=style)
    explained = str(Money(row.explained_minor, row.currency)) if row.residual_minor else "-"
    return [row.currency.upper(), _text(row.kind), *sums_, residual, explained]


def _residual(one: Residual) -> Text:
    unexplained = "" if one.explained else "UNEXPLAINED  "
    said = _text(f"{Money(one.minor, one.currency)}  {one.kind} {one.object}: {one.why}")
    return Text.assemble((unexplained, "bold red"), said)


# findings and consequences -----------------------------------------------------------------------------------------------


def _by_class(report: Report) -> Iterator[RenderableType]:
    """What was found and what follows, by who may put it right."""
    for class_, title in run_words.CLASSES.items():
        findings = [one for one in report.findings if one.class_ is class_]
        follows = [one for one in report.consequences if one.class_ is class_]
        counted = report.by_class.get(class_, len(findings))
        if not counted and not follows:
            continue
        yield Text()
        also = f", and {len(follows):,} that follow" if follows else ""
        yield Text(f"{title} ({class_}): {counted:,} found{also}", style=f"bold {_CLASS_COLOURS[class_]}")
        for what, ones in _grouped(findings):
            yield Padding(_findings(what, ones), (0, 0, 0, 2))
        if counted > len(findings):
            yield Padding(_text(_more(counted - len(findings))), (0, 0, 0, 2))
        if follows:
            yield Padding(_consequences(follows, report), (0, 0, 0, 2))


def _grouped(findings: Iterable[Finding]) -> list[tuple[What, list[Finding]]]:
    """By kind, in the order of `What`."""
    kinds: dict[What, list[Finding]] = defaultdict(list)
    for one in findings:
        kinds[one.what].append(one)
    return [(what, kinds[what]) for what in What if what in kinds]


def _findings(what: What, ones: Sequence[Finding]) -> RenderableType:
    """One kind: a sentence each, and beneath it why, and what is done about it."""
    lines: list[Cell] = []
    for one in ones[:OF_A_KIND]:
        why = run_words.explained(one)
        lines.append(Text.assemble(_text(one.sentence), ("\n" if why else ""), _text(why, "dim") if why else ""))
    if left := len(ones) - len(lines):
        lines.append(_more(left))
    body = _bullets(lines)
    assert body is not None  # a kind without findings is no group
    return Group(Text(f"{run_words.titled(what)} ({len(ones):,})", style="bold"), body)


def _consequences(ones: Sequence[Consequence], report: Report) -> RenderableType:
    lines: list[Cell] = [_consequence(one, dry_run=report.dry_run) for one in ones[:OF_A_KIND]]
    if left := len(ones) - len(lines):
        lines.append(_more(left))
    body = _bullets(lines)
    assert body is not None  # asked for only where something follows
    return Group(Text("What follows by the policy", style="bold"), body)


def _consequence(one: Consequence, *, dry_run: bool) -> Text:
    """`would return 29.00 USD to cus_A (ch_2, duplicate of ch_1, D3, clause 4.3): reason`."""
    style = "green" if one.verdict == "refund" else "yellow" if one.class_ is Class.ASK else ""
    said = Text(_text(run_words.effect(one, dry_run=dry_run)).plain, style=style)
    return Text.assemble(said, _text(f": {one.reason}" if one.reason else "", "dim"))


def _ending(report: Report) -> list[Cell]:
    """What was healed, what was not, what waits, and how the run ended."""
    told: list[Cell] = []
    if report.dry_run:
        told.append("A dry run: nothing was healed.")
    elif report.healed or report.by_class.get(Class.AUTO):
        told.append(_text(f"{report.healed:,} healed by this run.", "green"))
    if report.unhealed:
        told.append(
            _text(f"{report.unhealed:,} should have healed by themselves and did not: ask for help.", "bold red")
        )
    told += run_words.waits(report)
    return [*told, f"Finished {run_words.moment(report.finished_at)} UTC, exit {report.exit}."]


def _more(left: int) -> str:
    return f"... and {left:,} more: finalsale runs show last --html FILE, --csv FILE or --json"


# the first look ----------------------------------------------------------------------------------------------------------


def _promise(report: Report, seen: Looked) -> Panel:
    """The answer to the merchant's first question: how much, to how many, and is it safe."""
    span = _since(run_words.days_of(report), report.until)
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(Text("Before the first night", style="bold"), Text(f"{report.realm}  {span}", style="dim"))
    colour = "red" if report.exit == 2 else "green"
    body: list[RenderableType] = [head, Text(), *_answer(report, seen), Text(), _glance(report, seen)]
    if report.exit == 2:
        body += [Text(), Text("INCOMPLETE: not everything could be read, so there may be more.", style="bold red")]
        body += [_text(sentence) for sentence in report.why]
    return Panel(Group(*body), box=box.ROUNDED, border_style=colour, padding=(1, 2))


def _since(days: int, until: Seconds) -> str:
    return f"{days:,} {'day' if days == 1 else 'days'} to {run_words.moment(until)[:10]}"


def _answer(report: Report, seen: Looked) -> Iterator[RenderableType]:
    if not report.to_return:
        yield Text("No proved duplicate: nothing would have gone back.", style="bold")
        return
    charges, persons = len(seen.duplicates), len({one.customer for one in seen.duplicates})
    least = "At least " if report.consequences_total > SHOWN else ""
    counted = f"{counted_noun(charges, 'duplicate charge')} of {counted_noun(persons, 'customer')}"
    yield Text(f"{least}{counted}. This would have gone back:", style="bold")
    yield Text()
    for amount in _aligned(report.to_return):
        yield Padding(Text(amount, style="bold green"), (0, 0, 0, 4))


def _aligned(by_currency: dict[str, int]) -> list[str]:
    """Amounts under one another with their currencies in line: units right up to the point, whatever its digits."""
    told = [str(Money(minor, currency)).rsplit(" ", 1) for currency, minor in sorted(by_currency.items())]
    wholes = [number.partition(".") for number, _ in told]
    units, parts = max(len(f"{int(w):,}") for w, _, _ in wholes), max(len(point + f) for _, point, f in wholes)
    lines = zip(wholes, told, strict=True)
    return [f"{int(w):>{units},}{point + f:<{parts}} {currency}" for (w, point, f), (_, currency) in lines]


def _glance(report: Report, seen: Looked) -> RenderableType:
    """The other answers, a line each; zero is an answer too."""
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(justify="right", style="bold")
    drawn.add_column(overflow="fold")
    hand = max(len(seen.out_of_policy), report.found.get(What.OUT_OF_POLICY, 0))
    late = max(len(seen.after_end), report.found.get(What.CHARGED_AFTER_END, 0))
    due = max(report.credits_due, report.found.get(What.CREDITS_OVERDUE, 0) + report.found.get(What.TRIAL_OVERDUE, 0))
    worth = f" ({sums(report.to_review)} in all reviews)" if report.to_review else ""
    for count, one, several in (
        (len(seen.doubtful), "may be a duplicate; a person decides", f"may be duplicates; a person decides{worth}"),
        (report.would_hold, "account would be held for a chargeback", "accounts would be held for chargebacks"),
        (due, "credit has outlived its subscription or trial", "credits have outlived their subscription or trial"),
        (hand, "refund made by hand that no clause allows", "refunds made by hand that no clause allows"),
        (late, "charge after a cancellation", "charges after cancellations"),
    ):
        told = one if count == 1 else several
        drawn.add_row(Text(f"{count:,}", style="yellow" if count else "dim"), Text(told, style="" if count else "dim"))
    return drawn


def _cases(ones: Sequence[Consequence]) -> RenderableType | None:
    """Amount and customer on the first line, and beneath it which charge, by which rule, and why."""
    if not ones:
        return None
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(justify="right", no_wrap=True, style="bold")
    drawn.add_column(overflow="fold")
    for one in ones[:OF_A_KIND]:
        repeats = f" repeats {one.original}" if one.original else ""
        rule = f"  {one.rule.replace('_', ' ')}" if one.rule else ""
        changed = f"  {one.was} -> {one.becomes}" if one.about != "decision" else ""
        subject = "" if one.subject == one.customer else f"  {one.subject}"
        head = _text(f"{one.customer}{subject}{repeats}{rule}{changed}")
        drawn.add_row(_text(one.amount) if one.amount else "", Text.assemble(head, "\n", _text(one.reason, "dim")))
    if len(ones) > OF_A_KIND:
        drawn.add_row("", _more(len(ones) - OF_A_KIND))
    return drawn


def _drift_at_first(report: Report) -> Iterator[RenderableType]:
    """A first look imports; should books have been there already, drift is told as on every other night."""
    if report.drift:
        yield from _by_class(report)


def _read_at_first(report: Report) -> RenderableType:
    lists = [f"{line.objects:,} {line.list.replace('_', ' ')}" for line in report.certificate if line.list not in ALIVE]
    whole = (
        "Every list was read to its end." if not report.unread_total else f"{report.unread_total:,} could not be read."
    )
    safe = "Nothing was changed at Stripe: a read-only key is enough."
    drawn = _bullets([f"{run_words.pace(report)}.", f"{', '.join(lists) or 'nothing'}.", f"{whole} {safe}"])
    assert drawn is not None  # three sentences
    return drawn


def _next(report: Report, seen: Looked) -> RenderableType | None:
    steps = [
        "Everything that was found, on one page: finalsale runs show last --html look.html",
        f"Try other terms on the same history: finalsale policy diff A B --since {run_words.days_of(report)}d",
        "Connect the webhook, POST /stripe/webhook, and check it: finalsale doctor",
        "Run with FINALSALE_REFUNDS=review first: every refund waits for you. Set it to auto when you agree with it.",
    ]
    return _bullets(steps, "")
