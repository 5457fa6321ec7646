"""The console's pages about events: what came, what became of it, what one tells of, and another try for what failed."""

from __future__ import annotations

from typing import Any

import msgspec

from worker import reading, story
from worker.console import asked
from worker.console.page import Gone, Page, Shown, Visit
from worker.db import queries
from worker.operators import Role
from worker.reading import Document, NotFound, fetch
from worker.replay import replay_events

LISTED = 50
LOOKED_AT = 5000
"""Events that one page looks at where a filter is set: a type that is rare must not cost a scan of everything."""
COUNTED = 10_000
"""Dead or quarantined events are counted up to here."""
STATES = ("waiting", "done", "ignored", "quarantined", "dead")
TROUBLED = ("quarantined", "dead")


async def events(visit: Visit) -> Shown:
    """Events, newest first, by state and type; those that wait in the order in which they are due."""
    state = asked.one_of(visit.query, "state", STATES)
    type_ = asked.word(visit.query, "type")
    rows, go_on, looked = await _looked(visit, state, type_, asked.mark(visit.query))
    counted = await fetch(visit.conn, queries.console_troubled_counts, most=COUNTED)
    return Shown(
        "events.html.j2",
        {
            "events": rows,
            "state": state,
            "type": type_,
            "states": STATES,
            "troubled": {row["state"]: _how_many(row["events"]) for row in counted if row["events"]},
            "looked": looked if go_on is not None and len(rows) < LISTED else None,
            "next": asked.address("/console/events", state=state, type=type_, before=go_on) if go_on else None,
            "may_act": visit.operator.role.allows(Role.DECIDE),
        },
    )


def _how_many(events: int) -> str:
    return f"{events:,}" if events < COUNTED else f"{COUNTED:,} or more"


async def _looked(
    visit: Visit, state: str | None, type_: str | None, mark: asked.Mark
) -> tuple[list[Document], asked.Mark | None, int]:
    """One page of events, where the list goes on, and how many were looked at."""
    pattern = _pattern(type_)
    window = LOOKED_AT if state or type_ else LISTED + 1
    by: dict[str, Any] = {"type": pattern, "window": window, "most": LISTED + 1}
    if state == "waiting":
        rows = await fetch(visit.conn, queries.console_events_waiting, after_at=mark.at, after_id=mark.id, **by)
    else:
        statement = queries.console_events_troubled if state in TROUBLED else queries.console_events
        rows = await fetch(visit.conn, statement, state=state, before_at=mark.at, before_id=mark.id, **by)
    found = [{**row, "id": row["event_id"]} for row in rows if row["event_id"] is not None]
    looked: int = rows[0]["looked"]
    if len(found) > LISTED:
        last = found[LISTED - 1]
        return found[:LISTED], asked.Mark(last["next_at" if state == "waiting" else "received_at"], last["id"]), looked
    stopped = asked.Mark(rows[0]["looked_at"], rows[0]["looked_id"]) if looked == window else None
    return found, stopped, looked


def _pattern(type_: str | None) -> str | None:
    """A type as SQL's `like` reads it; `invoice.*` is every type of invoices."""
    if type_ is None:
        return None
    return type_.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")


async def event(visit: Visit) -> Shown:
    """One event: its envelope, its state, what it tells of, and itself with personal data masked. Raises NotFound."""
    id_ = asked.id_in(visit.path)
    told, subject = await story.event_story(visit.conn, id_)
    if told["realm"] not in visit.realms and told["state"] != "ignored":
        raise NotFound(f"No event {id_} was received in this mode.")
    whole = await reading.event(visit.conn, id_, payload=True)
    known = await fetch(visit.conn, queries.find_objects, realms=[told["realm"]], ids=[subject]) if subject else []
    return Shown(
        "event.html.j2",
        {
            "event": told | {"next_at": whole["next_at"]},
            "subject": subject,
            "known": known[0]["kind"] if known else None,
            "customer": known[0]["customer"] if known else None,
            "payload": _laid_out(whole["payload"]) if whole["payload"] is not None else None,
            "may_replay": visit.operator.role.allows(Role.DECIDE)
            and told["state"] in ("done", *TROUBLED)
            and not told["payload_removed"],
        },
    )


def _laid_out(payload: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(payload), indent=2).decode()


# another try -------------------------------------------------------------------------------------------------------------


async def replay_one(visit: Visit) -> Gone:
    """Let one event be worked on again, from the beginning. Raises NotFound."""
    id_ = asked.id_in(visit.path)
    await replay_events(visit.conn, ids=[id_], by=visit.operator.name, via="console")
    return Gone(asked.page_of("events", id_), f"{id_} waits again; a worker takes it within seconds.")


async def replay_state(visit: Visit) -> Gone:
    """Let everything that is dead, or quarantined, be worked on again. Raises NotUnderstood."""
    state = asked.one_of(visit.form, "state", TROUBLED)
    if state is None:
        raise reading.NotUnderstood("Say whether the dead or the quarantined events are to be worked on again.")
    replayed = await replay_events(visit.conn, state=state, by=visit.operator.name, via="console")
    return Gone(asked.address("/console/events", state="waiting"), f"{len(replayed)} {state} events wait again.")


PAGES = (
    Page("GET", "/events", Role.READ, events),
    Page("POST", "/events/replay", Role.DECIDE, replay_state),
    Page("GET", "/events/{id}", Role.READ, event),
    Page("POST", "/events/{id}/replay", Role.DECIDE, replay_one),
)
