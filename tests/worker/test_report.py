"""A run's report says everything once, in every form: terminal, page to sign, spreadsheet, JSON; and a run not yet done tells how far it is."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
import structlog

from handlers.decisions import Money
from reconcile.findings import Class, Consequence, What
from reconcile.report import Report, Waiting
from reconcile.windows import Window, scan_plan
from tests.worker import reports
from worker import run_words, show_run
from worker.cli_runs import runs
from worker.db import Pool
from worker.progress import Progress
from worker.reading import NotFound, NotUnderstood
from worker.report_pages import COLUMNS, NotWritten, csv_of, document_of, html_of, write_csv

Pages = Callable[[Callable[[Report], None], Report, int], str]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pages:
    """A page as it stands on a terminal of so many columns."""

    def shown(of: Callable[[Report], None], report: Report, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        of(report)
        return capsys.readouterr().out

    return shown


def one_line(text: str) -> str:
    """The words of a page without its line breaks and frames."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# the terminal ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_finding_and_every_class_has_words() -> None:
    assert set(run_words.WHATS) == set(What)
    assert set(run_words.CLASSES) == set(run_words.FOLLOWS) == set(Class)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_run_page_says_everything_within_the_width_of_the_terminal(page: Pages, columns: int) -> None:
    report = reports.night()
    told = page(show_run.run_page, report, columns)
    assert max(map(len, told.splitlines())) <= columns
    words = one_line(told)
    said = [
        "A PERSON MUST ACT exit 1",
        *report.why,
        *(one.sentence for one in report.findings),
        *(one.cause for one in report.findings),
        *(one.do for one in report.findings),
        *(run_words.effect(one, dry_run=False) for one in report.consequences),
        *(f"{one.object}: {one.why}" for one in report.residuals),
        *(f"{line.pages:,} {line.objects:,} {line.retries} {line.unread}" for line in report.certificate),
        "4 healed by this run.",
        "9 reviews for a person, the oldest since 2026-11-13 03:00 UTC",
        "UNEXPLAINED 0.30 USD",
    ]
    assert [sentence for sentence in said if sentence not in words] == []


def test_ids_of_the_certificate_are_whole_or_left_to_the_other_views(page: Pages) -> None:
    report = reports.night()
    wide, narrow = page(show_run.run_page, report, 140), page(show_run.run_page, report, 80)
    assert all(str(line.first_id) in wide and str(line.last_id) in wide for line in report.certificate)
    assert "newest0" not in narrow
    assert "First and last ids" in narrow


def test_a_clean_night_is_short_and_says_so(page: Pages) -> None:
    told = page(show_run.run_page, reports.clean(), 100)
    assert "CLEAN" in told
    assert "drift   0: Stripe and the books agree" in told
    assert not any(title in told for title in (*run_words.CLASSES.values(), "Residuals", "Could not be read"))


@pytest.mark.parametrize("of", [show_run.run_page, show_run.plan_page, show_run.first_look])
def test_what_could_not_be_read_stands_on_every_page_and_none_looks_clean(
    page: Pages, of: Callable[[Report], None]
) -> None:
    told = one_line(page(of, reports.incomplete(), 100))
    assert "INCOMPLETE" in told
    assert "charges 1795140000..1795143600: Stripe did not answer in 6 tries (502)" in told
    assert "CLEAN" not in told
    assert "Every list was read to its end" not in told


def test_the_plan_says_what_would_go_back_to_whom_by_which_rule_and_why(page: Pages) -> None:
    told = one_line(page(show_run.plan_page, reports.night(dry_run=True), 100))
    one = reports.CONSEQUENCES[0]
    assert (
        f"would return 29.00 USD to cus_Qa1 ({one.subject}, duplicate of {one.original}, D3, clause 4.3): {one.reason}"
        in told
    )
    assert "would move cus_Qa8 from good to flagged (du_1Qh, clause 7)" in told
    assert "back to customers: 29000 JPY, 9.500 KWD, 123485.70 USD" in told
    assert "Nothing of this has been done" in told


def test_a_plan_of_more_than_a_page_counts_what_it_leaves_out(page: Pages) -> None:
    many = [msgspec.structs.replace(reports.FINDINGS[0], object=f"ch_{n}", sentence=f"ch_{n}.") for n in range(40)]
    told = page(show_run.plan_page, reports.night(findings=many, dry_run=True), 100)
    assert f"At Stripe, not in the books ({len(many)})" in told
    assert f"... and {len(many) - show_run.OF_A_KIND} more" in told


def test_the_first_look_adds_up_what_would_have_gone_back_point_under_point(page: Pages) -> None:
    told = page(show_run.first_look, reports.first(), 80)
    assert "4 duplicate charges of 4 customers. This would have gone back:" in told
    amounts = [line for line in told.splitlines() if re.search(r"│ +[\d,]+(\.\d+)? +(JPY|KWD|USD) ", line)]
    assert [line.split()[1:3] for line in amounts] == [["29,000", "JPY"], ["9.500", "KWD"], ["123,485.70", "USD"]]
    assert len({line.index(line.split()[2]) for line in amounts}) == 1
    units = [line.index(line.split()[1]) + len(line.split()[1].partition(".")[0]) for line in amounts]
    assert len(set(units)) == 1
    for one in reports.CONSEQUENCES:
        assert one.customer in told
        assert one.reason in one_line(told)
    assert "finalsale policy diff A B --since 90d" in told


def test_a_first_look_at_an_account_without_duplicates_says_so(page: Pages) -> None:
    nothing = reports.first(
        consequences=[], consequences_total=0, to_return={}, to_review={}, would_hold=0, credits_due=0
    )
    told = page(show_run.first_look, nothing, 80)
    assert "No proved duplicate: nothing would have gone back." in told
    assert "Duplicates: these would go back" not in told


def test_the_page_that_suits_a_run_is_chosen_by_what_it_was() -> None:
    assert show_run.page_of(reports.first()) is show_run.first_look
    assert show_run.page_of(reports.night(dry_run=True)) is show_run.plan_page
    assert show_run.page_of(reports.night()) is show_run.run_page


def test_nothing_in_the_books_can_move_the_cursor(page: Pages) -> None:
    evil = msgspec.structs.replace(reports.FINDINGS[0], sentence="\x1b[2Jgone", cause="\x07")
    who = msgspec.structs.replace(reports.CONSEQUENCES[0], customer="\x1b[31mcus", reason="\x9b1m")
    report = reports.first(findings=[evil], consequences=[who], why=["\x1b]0;x"])
    for of in (show_run.run_page, show_run.plan_page, show_run.first_look):
        told = page(of, report, 100)
        assert not [c for c in told if unicodedata.category(c) == "Cc" and c != "\n"]
        assert "\\u001b" in told


@pytest.mark.parametrize("verdict", ["refund", "review", "deny", "none"])
def test_every_decision_is_in_one_place_of_the_first_look(verdict: str) -> None:
    clauses = ("4.3", "1.2", "1.3", "2, 6", "7", "9.9")
    ones = [
        Consequence(
            about="decision", class_=Class.ASK, customer="cus", subject="x", clause=clause, was="", becomes="", verdict=verdict
        )
        for clause in clauses
    ]  # fmt: skip
    assert sum(len(place) for place in run_words.looked(ones)) == len(clauses)


def test_the_backlog_by_age_adds_up_to_all_reviews() -> None:
    report = reports.night()
    assert [count for _, count in run_words.backlog(report)] == [1, 2, 3, 2, 1]
    assert sum(count for _, count in run_words.backlog(report)) == report.waiting.reviews


# the page to sign --------------------------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """A page's tags, attributes and words; style apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    html = html_of(reports.night())
    parsed = Parsed(html)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "image", "use", "a"}
    attributes = {name for _, attrs in parsed.tags for name in attrs}
    assert not [
        name for name in attributes if name == "style" or name.startswith(("on", "xlink")) or name in ("src", "href")
    ]
    assert set(re.findall(r"https?://[^\"' <]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in parsed.style
    assert "@import" not in parsed.style
    (policy,) = (attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(parsed.style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in str(policy)


def test_the_page_says_all_that_the_report_holds() -> None:
    report = reports.incomplete()
    text = Parsed(html_of(report)).text
    said = [
        "INCOMPLETE",
        *report.why,
        *(str(line.first_id) for line in report.certificate),
        *(str(line.last_id) for line in report.certificate),
        *(one.why for one in report.unread),
        *(one.sentence for one in report.findings),
        *(one.reason for one in report.consequences),
        *(f"{one.object} {one.kind} {Money(one.minor, one.currency)}" for one in report.residuals),
        *(str(Money(row.residual_minor, row.currency)) for row in report.money),
        "amount paid: 0.000 KWD here, 9.500 KWD at Stripe",
        report.run,
        "2026-11-19 03:00 to 2026-11-22 03:00 UTC",
        "Signature",
    ]
    assert [sentence for sentence in said if sentence not in text] == []


def test_the_sum_that_is_signed_is_that_of_the_json_that_is_printed() -> None:
    report = reports.night()
    stored = msgspec.json.encode(report)
    assert hashlib.sha256(document_of(stored)).hexdigest() in html_of(report, stored)
    assert msgspec.json.decode(document_of(stored), type=Report) == report


def test_the_plots_have_one_currency_each_and_the_same_figures_as_a_table() -> None:
    report = reports.night()
    parsed = Parsed(html_of(report))
    assert sum(tag == "svg" for tag, _ in parsed.tags) == len({day.currency for day in report.days}) + 2
    for day in report.days:
        assert str(Money(day.minor, day.currency)) in parsed.text
        assert f"{day.day} {day.kind}: {Money(day.minor, day.currency)}" in parsed.text
    assert "Pygal" not in parsed.text


def test_a_long_window_is_plotted_by_month() -> None:
    template = reports.night().days[0]
    days = [
        msgspec.structs.replace(template, day=f"2026-{month:02}-{day:02}", minor=100, kind="charge")
        for month in range(1, 7)
        for day in range(1, 29)
    ]
    text = Parsed(html_of(reports.night(days=days))).text
    assert "2026-03 charge: 28.00 USD" in text
    assert "2026-03-01" not in text


def test_a_clean_page_and_an_empty_one_can_be_made() -> None:
    empty = reports.night(certificate=[], findings=[], consequences=[], money=[], other=[], residuals=[], days=[], causes={},
                          residuals_total=0, waiting=Waiting(), windows=[])  # fmt: skip
    assert "<svg" not in html_of(empty)
    assert "CLEAN" in html_of(reports.clean())


def test_nothing_in_a_report_can_become_markup() -> None:
    evil = msgspec.structs.replace(
        reports.FINDINGS[2], sentence="<script>alert(1)</script>", object='"><img src=x>', cause="<b>", do="&lt;"
    )
    report = reports.night(findings=[evil], causes={"<svg onload=x>": 1}, why=["</style><script>"])
    names = {tag for tag, _ in Parsed(html_of(report)).tags}
    assert not names & {"script", "img", "b"}
    assert "<script>alert(1)</script>" in Parsed(html_of(report)).text


def test_every_table_has_a_caption_and_every_heading_cell_its_scope() -> None:
    tags = Parsed(html_of(reports.incomplete())).tags
    tables = [place for place, (tag, _) in enumerate(tags) if tag == "table"]
    assert tables
    assert all(tags[place + 1][0] == "caption" for place in tables)
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in tags if tag == "th")


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    pairs = [digits[n : n + 2] for n in (0, 2, 4)] if len(digits) == 6 else [c * 2 for c in digits]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(p, 16) / 255 for p in pairs)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_words_and_bars_stand_out_from_what_is_behind_them(dark: bool) -> None:
    style = Parsed(html_of(reports.clean())).style
    blocks = re.findall(r":root\{(color-scheme:light dark;)?(--bg[^}]*)\}", style)
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", blocks[int(dark)][1]))
    words = [("ink", "bg"), ("ink", "card"), ("soft", "bg"), ("soft", "card"), ("link", "bg")]
    words += [(name, behind) for name in ("ok", "ask", "bad") for behind in ("bg", f"{name}-bg")]
    words += [("ink", f"{name}-bg") for name in ("ok", "ask", "bad")]
    assert [pair for pair in words if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    assert [n for n in range(6) if _contrast(colours[f"c{n}"], colours["bg"]) < 3] == []


# the spreadsheet ---------------------------------------------------------------------------------------------------------


def rows_of(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(report))))


def test_the_spreadsheet_holds_every_figure_in_minor_units_and_in_the_currency_s_own_digits() -> None:
    report = reports.night()
    rows = rows_of(report)
    assert tuple(rows[0]) == COLUMNS
    money = [row for row in rows if row["section"] == "money" and row["what"] == "residual"]
    assert [(r["currency"], r["kind"], int(r["amount_minor"])) for r in money] == [
        (m.currency, m.kind, m.residual_minor) for m in report.money
    ]
    by_section = {
        name: sum(row["section"] == name for row in rows) for name in ("finding", "consequence", "residual", "day")
    }
    assert by_section == {
        "finding": len(report.findings),
        "consequence": len(report.consequences),
        "residual": len(report.residuals),
        "day": len(report.days),
    }
    amounts = {
        row["currency"]: row["amount"] for row in rows if row["section"] == "total" and row["what"] == "to_return"
    }
    assert amounts == {"jpy": "29000", "kwd": "9.500", "usd": "123485.70"}
    assert (
        next(row for row in rows if row["object"] == "re_hand" and row["section"] == "residual")["amount"] == "-29.00"
    )


@pytest.mark.parametrize("evil", ["=HYPERLINK(1)", "+1+1", "-cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "-1.5.2"])
def test_no_cell_is_a_formula(evil: str) -> None:
    finding = msgspec.structs.replace(reports.FINDINGS[0], sentence=evil, object=evil, customer=evil)
    (row,) = (row for row in rows_of(reports.night(findings=[finding])) if row["section"] == "finding")
    assert {row["sentence"], row["object"], row["customer"]} == {f"'{evil}"}


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match=r"nowhere/r\.csv cannot be written: No such file or directory\."):
        write_csv(reports.clean(), tmp_path / "nowhere" / "r.csv")


# `finalsale runs` --------------------------------------------------------------------------------------------------------

Asked = Callable[..., Awaitable[str]]


@pytest.fixture
def asked(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Asked]:
    """`finalsale runs ...` on this test's database: what it prints."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_canary0000000000")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)

    def call(arguments: list[str]) -> None:
        runs(arguments, exit_on_error=False, print_error=False, result_action="return_value")

    async def ask(*arguments: str) -> str:
        capsys.readouterr()
        await asyncio.to_thread(call, list(arguments))
        return capsys.readouterr().out

    yield ask
    structlog.reset_defaults()


async def kept(pool: Pool, report: Report | None, id_: str, *, minutes_ago: int = 0, realm: str = "test") -> None:
    """A run in the books; without a report it is under way."""
    plan = msgspec.json.encode(scan_plan([Window(reports.UNTIL - 3 * reports.DAY, reports.UNTIL)], reports.UNTIL))
    await pool.execute(
        """insert into runs (id, realm, kind, dry_run, asked, plan, state, exit_code, report, started_at, seen_at, finished_at)
        values ($1, $2, 'nightly', false, 'last night', $3, $4, $5, $6, now() - $7 * interval '1 minute',
            now() - $7 * interval '1 minute' + interval '150 s', case when $6::bytea is not null then now() - $7 * interval '1 minute' + interval '252 s' end)""",
        id_,
        realm,
        plan,
        "running" if report is None else "done",
        report.exit if report else None,
        msgspec.json.encode(msgspec.structs.replace(report, run=id_)) if report else None,
        minutes_ago,
    )  # fmt: skip


async def test_runs_are_listed_newest_first_with_what_came_of_them(pool: Pool, asked: Asked) -> None:
    assert "No run yet" in await asked("list")
    await kept(pool, reports.clean(), "run_a", minutes_ago=60)
    await kept(pool, reports.night(), "run_b", minutes_ago=30)
    await kept(pool, None, "run_c")
    await kept(pool, reports.clean(), "run_live", realm="live")
    found = json.loads(await asked("list", "--json"))
    told = ("id", "state", "result", "exit_code", "drift", "seconds", "stage")
    assert [tuple(run[name] for name in told) for run in found] == [
        ("run_c", "running", None, None, None, None, "scan"),
        ("run_b", "done", "needs_person", 1, 5, 252, "scan"),
        ("run_a", "done", "clean", 0, 0, 252, "scan"),
    ]
    assert found[0]["since"] == "2026-11-19T03:00:00Z"
    table = await asked("list", "--limit", "2")
    assert re.search(r"run_c +test +running: scan +2026-11-19 03:00 to 2026-11-22 03:00", table)
    assert "run_a" not in table


async def test_a_run_is_shown_by_id_by_its_beginning_or_as_the_last(pool: Pool, asked: Asked) -> None:
    await kept(pool, reports.clean(), "run_aa", minutes_ago=60)
    await kept(pool, reports.incomplete(), "run_ab", minutes_ago=30)
    assert "INCOMPLETE" in await asked("show")
    assert "INCOMPLETE" in await asked("show", "last")
    assert "CLEAN" in await asked("show", "run_aa")
    with pytest.raises(NotUnderstood, match="Several runs begin with run_a"):
        await asked("show", "run_a")
    await kept(pool, reports.clean(), "run_x", realm="live")  # of another compartment: not seen from here
    with pytest.raises(NotFound, match="There is no run run_x"):
        await asked("show", "run_x")
    assert "INCOMPLETE" in await asked("show", "last")


async def test_the_json_of_a_run_is_what_the_signed_page_was_made_of(pool: Pool, asked: Asked) -> None:
    await kept(pool, reports.night(), "run_a")
    printed = await asked("show", "run_a", "--json", "--html", "run.html", "--csv", "run.csv")
    assert msgspec.json.decode(printed, type=Report).run == "run_a"
    page, sheet = await asyncio.to_thread(
        lambda: [Path(name).read_text(encoding="utf-8") for name in ("run.html", "run.csv")]
    )
    assert hashlib.sha256(printed.encode()).hexdigest() in page
    assert sheet.startswith(",".join(COLUMNS))


async def test_a_run_without_a_report_tells_how_far_it_is(pool: Pool, asked: Asked) -> None:
    await kept(pool, None, "run_a")
    slices = [
        ("charges", 0, 50, "done", 4, 400),
        ("charges", 50, 100, "open", 1, 100),
        ("refunds", 0, 100, "unread", 0, 0),
    ]
    for list_, lo, hi, state, pages, objects in slices:
        await pool.execute(
            "insert into slices (run, list, lo, hi, state, pages, objects) values ('run_a', $1, $2, $3, $4, $5, $6)",
            *(list_, lo, hi, state, pages, objects),
        )
    told = await asked("show")
    assert "run_a has no report yet: running, scan" in told
    assert re.search(r"charges +50% +2 +5 +500 +0", told)
    assert re.search(r"refunds +100% +1 +0 +0 +1", told)
    (charges, _) = json.loads(await asked("show", "--json"))["lists"]
    assert (charges["share"], charges["objects"]) == (0.5, 500)
    with pytest.raises(NotUnderstood, match="has no report yet"):
        await asked("show", "--html", "x.html")


async def test_a_report_of_another_release_is_still_had_as_json(pool: Pool, asked: Asked) -> None:
    await kept(pool, reports.clean(), "run_a")
    await pool.execute("update runs set report = $1", b'{"run": "run_a", "result": "clean", "drift": 0}')
    assert json.loads(await asked("show", "--json")) == {"run": "run_a", "result": "clean", "drift": 0}
    with pytest.raises(NotUnderstood, match="another release"):
        await asked("show")


# progress ----------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_progress_is_a_plain_line_now_and_then() -> None:
    out, now = io.StringIO(), [0.0]
    with Progress(out, clock=lambda: now[0]) as progress:
        progress.begin(["charges", "refunds"])
        for second in range(1, 26):
            now[0] = float(second)
            progress.page("charges", second * 4, 100, second * 100)
        progress.page("refunds", 50, 50, 10)
        progress.stage("compare")
    assert out.getvalue().splitlines() == [
        "reading Stripe: 0%, 0 objects, 0/s, 0 of 2 lists",
        "reading Stripe: 20%, 1,000 objects, 100/s, 0 of 2 lists, about 40 s left",
        "reading Stripe: 40%, 2,000 objects, 100/s, 0 of 2 lists, about 30 s left",
        "compare: 100%, 2,510 objects, 100/s, 2 of 2 lists",
    ]


def test_on_a_terminal_progress_is_a_bar_that_goes_away() -> None:
    out = Terminal()
    with Progress(out) as progress:
        progress.begin(["charges"])
        progress.page("charges", 50, 100, 1234)
        progress.stage("compare [red]")
    assert "1,234 objects" in out.getvalue()
    assert "compare [red]" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")
    progress.end()
