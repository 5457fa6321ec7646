"""How a message about alerts reads, and which alerts go into one message. Pure; nothing personal passes."""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote

from worker.alert_kinds import kind_of
from worker.log import masked
from worker.settings import Settings

WINDOW_S = 5.0
"""What comes within these seconds after the first goes together; with the quiet before, people hear within some ten seconds."""
DIGEST_AFTER_S = 60.0
KINDS_APART = 5
"""Up to so many alerts get a message for each kind; more come as one."""
MESSAGES_AN_HOUR, CRITICAL_AN_HOUR = 30, 120
DIGEST_EVERY_S = 300.0
"""How often a route over the higher limit still hears of what is critical."""
WHOLE, NAMED = 20, 500
"""How many alerts of a message are told whole, and how many more by their ids."""


class Telling(NamedTuple):
    """What a route is to be told of one alert."""

    realm: str
    cause: str
    raising: int
    step: str
    """raised, `rose to` a severity, `again` 1.., resolved, or `was`: over, and nobody had been told."""
    kind: str
    severity: str
    customer: str
    subject: str
    sentence: str
    since: datetime
    flaps: int
    until: datetime | None
    """When it was over, of what nobody had been told."""
    age_s: float
    """How long it waits to be put into a message."""

    @property
    def over(self) -> bool:
        return self.step in ("resolved", "was")

    @property
    def urgent(self) -> bool:
        return self.severity == "critical" and not self.over


class Lately(NamedTuple):
    """What a route got, or is to get, within the hour."""

    messages: int
    last_s: float
    """Since the newest of them."""
    stuck: bool = False
    """One that is not critical could not be sent: only what is critical is made beside it, and goes past it."""
    told: frozenset[str] = frozenset()
    """The kinds of what was critical in them."""


class Message(NamedTuple):
    """A message as it is sent. `severity` is the worst in it, or `resolved`."""

    severity: str
    title: str
    body: str


def gathered(waiting: Sequence[Telling], lately: Lately) -> list[list[Telling]]:
    """The messages to make now of what waits for a route; what is left out waits on.

    A route over its limit hears only of what is critical, as one message, and of the rest when there is room again: at once, and
    over the higher limit every five minutes, but for a kind that it has not heard of within the hour.
    """
    oldest_s = max((telling.age_s for telling in waiting), default=0.0)
    if oldest_s < WINDOW_S:
        return []
    waiting = sorted(waiting, key=lambda telling: -telling.age_s)
    if lately.stuck or lately.messages >= MESSAGES_AN_HOUR:
        urgent = [telling for telling in waiting if telling.urgent]
        room = lately.messages < CRITICAL_AN_HOUR or lately.last_s >= DIGEST_EVERY_S
        return [urgent] if urgent and (room or {t.kind for t in urgent} - lately.told) else []
    if len(waiting) > KINDS_APART or oldest_s > DIGEST_AFTER_S:
        return [waiting]
    kinds = dict.fromkeys(telling.kind for telling in waiting)
    return [[telling for telling in waiting if telling.kind == kind] for kind in kinds]


def message_id(mode: str, route: str, tellings: Sequence[Telling]) -> str:
    """The id of a message, which its receivers see: the same whenever the same is told over the same route."""
    told = "\n".join(sorted(f"{t.realm} {t.cause} {t.raising} {t.step}" for t in tellings))
    return "alm_" + hashlib.sha256(f"{mode} {route}\n{told}".encode(errors="surrogatepass")).hexdigest()[:24]


def written(tellings: Sequence[Telling], settings: Settings, id_: str) -> Message:
    """The message that tells these, the worst first."""
    order = {"critical": 0, "warning": 1, "note": 2}
    newest = {(t.realm, t.cause): t for t in tellings}.values()  # what waited long may hold an alert and its reminders
    listed = sorted(newest, key=lambda t: (t.over, order.get(t.severity, 1)))
    first = listed[0]
    severity = "resolved" if first.over else first.severity
    if len(listed) == 1:
        title, lines = _title(first), _alone(first, settings)
    else:
        title, lines = f"{severity}: {_counted(listed)}", _listed(listed, settings)
    body = "\n".join([*lines, "", f"Message {id_}"])
    return Message(severity, masked(f"[finalsale {settings.mode}] {title}"), body)


def plain(counts: Sequence[tuple[str, int]], severity: str, settings: Settings, id_: str) -> Message:
    """What is left to say where a service refused a message for what it says: how many of which kind, in our fixed words."""
    total = sum(n for _, n in counts)
    said = ", ".join(f"{n} {kind_of(kind).title}" for kind, n in counts[:10])
    body = (
        f"The service refused the message that tells of {'this' if total == 1 else 'these'} in full: {said}.\n"
        f"Look: finalsale alerts list\n\nMessage {id_}"
    )
    what = "1 alert" if total == 1 else f"{total} alerts"
    return Message(severity, f"[finalsale {settings.mode}] {severity}: {what}, told in short", body)


def of_test(severity: str, settings: Settings) -> dict[str, str]:
    """A test message, each time under an id of its own."""
    id_ = f"alm_test_{secrets.token_hex(8)}"
    body = f"This is a test: the route works, and nothing needs to be done.\n\nMessage {id_}"
    return {"id_": id_, "title": f"[finalsale {settings.mode}] {severity}: Test", "body": body, "severity": severity}


def _title(telling: Telling) -> str:
    word = f"was {telling.severity}" if telling.step == "was" else "resolved" if telling.over else telling.severity
    ways = {"again": ", still open", "rose": ", worse", "grew": ", many more"}
    return f"{word}{ways.get(telling.step.partition(' ')[0], '')}: {kind_of(telling.kind).title}"


def _counted(tellings: Sequence[Telling]) -> str:
    """`12 alerts (7 Refund failed, 5 Chargeback; 2 resolved)`."""
    counts = Counter(kind_of(t.kind).title for t in tellings if not t.over).most_common(4)
    over = sum(t.over for t in tellings)
    said = [", ".join(f"{n} {title}" for title, n in counts)] if counts else []
    return f"{len(tellings)} alerts ({'; '.join([*said, *([f'{over} resolved'] if over else [])])})"


def _alone(telling: Telling, settings: Settings) -> list[str]:
    kind = kind_of(telling.kind)
    lines = [_sentence(telling), ""]
    if telling.step == "was":
        said = (
            f"It was so from {_when(telling)} to {_moment(telling.until)}, and nobody could be told then. It is over."
        )
        return [lines[0], "", said, *_where(telling, settings)]
    if telling.over:
        return [f"It is over: {lines[0]}", "", f"It was open since {_when(telling)}.", *_where(telling, settings)]
    lines += [masked(f"Why it matters: {kind.why}"), f"Since: {_when(telling)}{_again(telling)}"]
    lines += _where(telling, settings)
    lines.append(masked(f"Act: {_filled(kind.command, telling)}"))
    if telling.severity == "critical":
        told = f"finalsale alerts ack {shlex.quote(telling.cause)} --by NAME"
        lines.append(masked(f"It is told again until it is over or somebody has it: {told}"))
    return lines


def _listed(tellings: Sequence[Telling], settings: Settings) -> list[str]:
    lines = []
    for number, telling in enumerate(tellings[:WHOLE], start=1):
        lines += [f"{number}. {_title(telling)}{_again(telling)}", f"   {_sentence(telling)}"]
        if telling.step == "was":
            lines.append(
                f"   It was so from {_when(telling)} to {_moment(telling.until)}, and nobody could be told then."
            )
        if not telling.over:
            lines.append(masked(f"   Act: {_filled(kind_of(telling.kind).command, telling)}"))
    if more := tellings[WHOLE:]:
        named = [masked(t.subject or t.customer or t.cause) for t in more[:NAMED]]
        beyond = f" and {len(more) - NAMED} others" if len(more) > NAMED else ""
        lines += ["", f"And {len(more)} more: {', '.join(named)}{beyond}."]
    base = _console(settings)
    look = f"Look: {base}/alerts" if base else "Look: finalsale alerts list"
    return [*lines, "", look, "Acknowledge what is critical: finalsale alerts ack CAUSE --by NAME"]


def _where(telling: Telling, settings: Settings) -> list[str]:
    base = _console(settings)
    if not base:
        return []
    values = {name: quote(value, safe="") for name, value in _ids(telling).items()}
    return [masked(f"Look: {base}{kind_of(telling.kind).page.removeprefix('/console').format_map(values)}")]


def _console(settings: Settings) -> str | None:
    """Where the console is, for people: its own address, or the public one."""
    base = (settings.console_url or settings.public_url or "").rstrip("/")
    return f"{base.removesuffix('/console')}/console" if base else None


def _filled(command: str, telling: Telling) -> str:
    return command.format_map({name: shlex.quote(value) if value else "ID" for name, value in _ids(telling).items()})


def _ids(telling: Telling) -> dict[str, str]:
    return {"subject": telling.subject, "customer": telling.customer, "cause": telling.cause}


def _sentence(telling: Telling) -> str:
    """One line, with the connected account that it is about."""
    account = telling.realm.partition(":")[2]
    return masked(" ".join(telling.sentence.split()) + (f" (account {account})" if account else ""))


def _when(telling: Telling) -> str:
    return _moment(telling.since)


def _moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "now"


def _again(telling: Telling) -> str:
    if not telling.flaps or telling.over:
        return ""
    return f" (it came back {telling.flaps} times within minutes; that it comes and goes is not told each time)"
