"""What a process sees that stands in no table: clocks, Stripe's own list of events, its endpoint, and the signatures of deliveries.

Each is kept as a row of `signals`, so that whichever worker holds the vigil can tell of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import structlog

from handlers import HANDLERS
from handlers.account import Severity
from worker.conditions import HOUR, MINUTE, Here, Holding, said_at
from worker.db import Connection, Pool, connection, queries
from worker.endpoint import State, check_endpoint
from worker.errors import DatabaseUnavailable, StripeRefused, StripeUnavailable
from worker.reading import fetch
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway, ahead_s

CLOCK, EVENTS, EVENTS_UNREAD, ENDPOINT, SECRET_ALONE, SECRET_PARTIAL = (
    "clock",
    "events at Stripe",
    "events unread",
    "endpoint",
    "secret alone",
    "secret partial",
)
CLOCK_WARNS_S = 30.0
"""A clock that is so far off refuses no delivery yet, and mixes up the order of reads and events."""
CLOCK_FORGOTTEN_S = 10 * MINUTE
SILENT_AFTER_S = 10 * MINUTE
"""Without an event for so long, Stripe is asked whether it has any; what is younger there may still be on its way."""
ASK_EVENTS_EVERY_S = 5 * MINUTE
ASK_ENDPOINT_EVERY_S, ASK_ENDPOINT_AGAIN_S = HOUR, 5 * MINUTE
ASK_WITHIN_S = 12.0
"""So long one question may take, with all its tries."""
NEWEST = 100
ROLL_LASTS_S = 26 * HOUR
"""Stripe keeps a rolled secret valid for 24 hours at most (docs.stripe.com/webhooks#roll-endpoint-secrets)."""

log = structlog.get_logger()


class Unheard(msgspec.Struct):
    """The newest event of ours that Stripe lists and that never came."""

    id: str
    type: str
    created: int


class Trouble(msgspec.Struct):
    """A check of the endpoint that fails."""

    name: str
    detail: str
    remedy: str


class Skew(msgspec.Struct):
    """How far a machine's clock is ahead (negative: behind), in seconds, of whose."""

    of: str
    seconds: float


class _Event(msgspec.Struct):
    id: str
    type: str
    created: int


class _Events(msgspec.Struct):
    data: list[_Event]


# clocks ------------------------------------------------------------------------------------------------------------------


class Clocks:
    """A process's clock against Postgres's and, by the answers that come anyway, against Stripe's."""

    def __init__(self, place: str, gateway: StripeGateway | None = None) -> None:
        self._place, self._gateway = place, gateway
        self._told = True

    async def look(self, conn: Connection) -> None:
        """Keep a signal while either is off, take it away when it was and is not any more."""
        before = time.time()
        there: datetime = await queries.clock(conn)
        skews = [Skew("Postgres's", ahead_s(before, there.timestamp(), time.time()))]
        stripes = self._gateway
        if (
            stripes is not None
            and stripes.ahead_s is not None
            and time.monotonic() - stripes.ahead_at < CLOCK_FORGOTTEN_S
        ):
            skews.append(Skew("Stripe's", stripes.ahead_s))
        worst = max(skews, key=lambda skew: abs(skew.seconds))
        if abs(worst.seconds) >= CLOCK_WARNS_S:
            await queries.save_signal(conn, name=CLOCK, place=self._place, detail=msgspec.json.encode(worst).decode())
            self._told = True
        elif self._told:
            await queries.drop_signal(conn, name=CLOCK, place=self._place)
            self._told = False


# asking Stripe -----------------------------------------------------------------------------------------------------------


async def ask_stripe(pool: Pool, gateway: StripeGateway, settings: Settings) -> None:
    """Whether events are there that never came, where it is silent; hourly, whether the endpoint is right and events may be read.

    One worker asks. What cannot be read is known no better than before. Raises DatabaseUnavailable.
    """
    if not gateway.connected:
        return
    async with connection(pool) as conn:
        seen = {row["name"]: row for row in await fetch(conn, queries.signals_seen)}
        quiet_s = await queries.last_received(conn)
        troubled = EVENTS_UNREAD in seen or (ENDPOINT in seen and seen[ENDPOINT]["detail"])
        again_s = ASK_ENDPOINT_AGAIN_S if troubled else ASK_ENDPOINT_EVERY_S
        endpoint = bool(await queries.take_look(conn, name=ENDPOINT, every_s=again_s))
        is_quiet = quiet_s is None or quiet_s >= SILENT_AFTER_S
        events = is_quiet and bool(await queries.take_look(conn, name=EVENTS, every_s=ASK_EVENTS_EVERY_S))
        if not is_quiet and EVENTS in seen and seen[EVENTS]["detail"]:
            await queries.save_signal(conn, name=EVENTS, place="", detail="")
    if endpoint:
        await _ask(_may_read_events(pool, gateway))
        await _ask(_troubles(pool, gateway, settings))
    if events:
        await _ask(_unheard(pool, gateway))


async def _ask(question: Awaitable[None]) -> None:
    """One question to Stripe that keeps its answer; one that fails, whatever the reason, keeps no other from being asked."""
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            await question
    except DatabaseUnavailable:
        raise
    except (StripeRefused, StripeUnavailable, TimeoutError) as error:
        log.warning("vigil.unanswered", error=type(error).__name__)
    except Exception as error:
        log.error("vigil.unanswered", error=type(error).__name__, exc_info=error)


async def _save(pool: Pool, name: str, answer: Any) -> None:
    async with connection(pool) as conn:
        detail = msgspec.json.encode(answer).decode() if answer else ""
        await queries.save_signal(conn, name=name, place="", detail=detail)


async def _may_read_events(pool: Pool, gateway: StripeGateway) -> None:
    """Without that permission silence looks like a day on which nothing happens."""
    try:
        await gateway.document("/v1/events", {"limit": 1})
    except StripeRefused as refused:
        if refused.status not in (401, 403):
            raise
        await _save(pool, EVENTS_UNREAD, refused.status)
        return
    async with connection(pool) as conn:
        await queries.drop_signal(conn, name=EVENTS_UNREAD, place="*")


async def _troubles(pool: Pool, gateway: StripeGateway, settings: Settings) -> None:
    """What fails, not what should only be better; an endpoint that cannot be read is the doctor's matter."""
    checks = await check_endpoint(gateway, settings)
    if [check.state for check in checks] == [State.WARN]:  # it could not be read
        return
    failing = [Trouble(check.name, check.detail, check.remedy) for check in checks if check.state is State.FAIL]
    await _save(pool, ENDPOINT, failing)


async def _unheard(pool: Pool, gateway: StripeGateway) -> None:
    """Keep the answer of `_newest_unheard`."""
    await _save(pool, EVENTS, await _newest_unheard(pool, gateway))


async def _newest_unheard(pool: Pool, gateway: StripeGateway) -> Unheard | None:
    """The newest event of a type that we read, older than what may be on its way and younger than this deployment."""
    _body, now_s = await gateway.document("/v1/events", {"limit": 1})
    async with connection(pool) as conn:
        began: datetime | None = await queries.first_night(conn)
    if began is None:
        return None
    span = {"gte": int(began.timestamp()), "lte": now_s - int(SILENT_AFTER_S)}
    body, _ = await gateway.document("/v1/events", {"limit": NEWEST, "created": span})
    for event in msgspec.json.decode(body, type=_Events).data:
        if event.type in HANDLERS:
            async with connection(pool) as conn:
                heard = await queries.was_heard(conn, id=event.id)
            return None if heard else Unheard(event.id, event.type, event.created)
    return None


# signatures --------------------------------------------------------------------------------------------------------------


class Signatures:
    """Of verified deliveries: while an endpoint's secret is rolled each carries one signature for each secret, old and new.

    A secret of ours that verified deliveries alone before, and then only one signature of two, is the old one; nobody set the
    new one here. Counted in memory, a dictionary access for each delivery, and kept once a minute.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = secrets
        self._names = [hashlib.sha256(secret).hexdigest()[:12] for secret in secrets]
        self._seen: set[tuple[str, str]] = set()
        self._whole = False

    def verified(self, header: bytes, body: bytes, place: int) -> None:
        """A delivery that the secret at `place` verified."""
        if header.count(b"v1=") < 2:
            self._seen.add((SECRET_ALONE, self._names[place]))
            return
        parts = [part.partition(b"=") for part in header.split(b",")]
        signed_at = next(value for name, _, value in parts if name == b"t")
        candidates = {value for name, _, value in parts if name == b"v1"}
        macs = {hmac.digest(secret, signed_at + b"." + body, "sha256").hex().encode() for secret in self._secrets}
        if candidates <= macs:
            self._whole = True
        else:
            self._seen.add((SECRET_PARTIAL, self._names[place]))

    async def keep(self, conn: Connection) -> None:
        """Write down what was seen since the last time; what could not be written is kept for the next one."""
        seen, whole = self._seen, self._whole
        self._seen, self._whole = set(), False
        try:
            for name, place in sorted(seen):
                await queries.save_signal(conn, name=name, place=place, detail="")
            if whole:
                await queries.drop_signal(conn, name=SECRET_PARTIAL, place="*")
        except BaseException:
            self._seen, self._whole = self._seen | seen, self._whole or whole
            raise


# what they mean ----------------------------------------------------------------------------------------------------------

KINDS_OF_SIGNALS = frozenset(
    {"clock_skew", "intake_silent", "intake_unseen", "endpoint_misconfigured", "secret_expiring"}
)


async def of_signals(here: Here, *, tolerance_s: float) -> list[Holding]:
    """The alerts that hold by what was seen; a clock off by `tolerance_s` refuses every delivery."""
    conn, realm = here.conn, here.realms[0]
    rows = await fetch(conn, queries.signals_seen)
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    found = [_clock(realm, row, tolerance_s) for row in by_name.get(CLOCK, ()) if row["age_s"] < CLOCK_FORGOTTEN_S]
    found += [each for row in by_name.get(ENDPOINT, ()) if row["detail"] for each in _endpoint(realm, row)]
    found += [_unseen(realm, row) for row in by_name.get(EVENTS_UNREAD, ())]
    for row in by_name.get(EVENTS, ()):
        if row["detail"] and (unheard := await _still_unheard(conn, row)):
            found.append(_silent(realm, row, unheard))
    alone = {row["place"]: row for row in by_name.get(SECRET_ALONE, ())}
    found += [_secret(realm, row) for row in by_name.get(SECRET_PARTIAL, ()) if _is_old(row, alone.get(row["place"]))]
    return found


def _clock(realm: str, row: Any, tolerance_s: float) -> Holding:
    skew = msgspec.json.decode(row["detail"], type=Skew)
    off = abs(skew.seconds)
    severity = Severity.CRITICAL if off >= tolerance_s else Severity.WARNING
    refused = " Every delivery signed by a right clock is refused." if off >= tolerance_s else ""
    sentence = (
        f"The clock of {row['place']} is {off:.0f} s {'ahead of' if skew.seconds > 0 else 'behind'} {skew.of}, "
        f"since {said_at(row['since'])}.{refused} Set it by NTP; `finalsale doctor` measures it again."
    )
    return Holding(realm, f"clock_skew:{row['place']}", "clock_skew", severity, "", row["place"], sentence)


def _endpoint(realm: str, row: Any) -> list[Holding]:
    """One for each check that fails: who acknowledged one of them hears of the next."""
    said = f"Stripe does not tell everything that the rules need, as seen at {said_at(row['seen_at'])}."
    kind = "endpoint_misconfigured"
    return [
        Holding(
            realm,
            f"{kind}:{trouble.name.replace(' ', '_')}",
            kind,
            Severity.CRITICAL,
            "",
            "endpoint",
            f"{said} {trouble.detail} {trouble.remedy}",
        )
        for trouble in msgspec.json.decode(row["detail"], type=list[Trouble])
    ]


def _unseen(realm: str, row: Any) -> Holding:
    sentence = (
        f"Stripe refused to list events ({row['detail']}), as seen since {said_at(row['since'])}: if they stop coming, finalsale cannot tell "
        "that from a quiet day. Give the key read access to events; `finalsale doctor --recipe` shows the whole key."
    )
    return Holding(realm, "intake_unseen:events", "intake_unseen", Severity.WARNING, "", "events", sentence)


async def _still_unheard(conn: Connection, row: Any) -> Unheard | None:
    """Unless it came after all, or anything did since Stripe was asked."""
    unheard = msgspec.json.decode(row["detail"], type=Unheard)
    quiet_s = await queries.last_received(conn)
    if (quiet_s is not None and quiet_s < row["age_s"]) or await queries.was_heard(conn, id=unheard.id):
        return None
    return unheard


def _silent(realm: str, row: Any, unheard: Unheard) -> Holding:
    sentence = (
        f"Stripe made {unheard.id} ({unheard.type}) at {said_at(datetime.fromtimestamp(unheard.created).astimezone())}, and it never "
        f"arrived; nothing has for ten minutes, as seen at {said_at(row['seen_at'])}. See whether the web process can be reached from "
        "outside; `finalsale doctor` looks at the endpoint, `finalsale reconcile` takes in what is missing."
    )
    return Holding(realm, "intake_silent:events", "intake_silent", Severity.CRITICAL, "", unheard.id, sentence)


def _is_old(partial: Any, alone: Any) -> bool:
    """Whether it verified alone before the roll, and not since: else it is the new one, or the roll is over."""
    rolling = partial["age_s"] < ROLL_LASTS_S
    return (
        rolling and alone is not None and alone["since"] < partial["since"] and alone["seen_at"] <= partial["seen_at"]
    )


def _secret(realm: str, row: Any) -> Holding:
    sentence = (
        f"Since {said_at(row['since'])} Stripe signs with two secrets, and only the old one is set here: the signing secret was rolled. "
        "It expires 24 hours after that at the latest, and then every delivery is refused. Add the new one, as the Dashboard shows "
        "it, to STRIPE_WEBHOOK_SECRET after a comma and restart web."
    )
    return Holding(realm, "secret_expiring:webhook", "secret_expiring", Severity.CRITICAL, "", "webhook", sentence)
