"""Event destinations and the events of `/v2/core`: how Stripe tells that it could not make an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.endpoints import Endpoints
from sandbox.store import Obj, StripeError
from sandbox.webhooks import HEALTH, Webhooks, iso, related_object

if TYPE_CHECKING:
    from sandbox.resources import Route


def tell_failures(books: Endpoints, webhooks: Webhooks, since: int, until: int) -> list[Obj]:
    """One health event for each event that was not made in [since, until) (unix seconds), all sent at once.

    stripe.com/docs/webhooks/handle-irrecoverable-events: such an event never stands in `/v1/events`; the notice names
    its type and its object, and goes thin to the destinations that want it.
    """
    missed = [row for row in books.ungenerated if since <= row[0] < until]
    books.ungenerated = [row for row in books.ungenerated if not since <= row[0] < until]
    made = []
    for _, type_, kind, id_ in missed:
        event = _failure(books, type_, kind, id_, until)
        books.v2_events[event["id"]] = event
        made.append(event)
        destination = webhooks.own
        if destination is not None and destination["status"] == "enabled" and HEALTH in webhooks.endpoint.v2_events:
            webhooks.notify(event, destination)
    return made


def _failure(books: Endpoints, type_: str, kind: str, id_: str, resolved: int) -> Obj:
    return {
        "id": books.settings_id("evt_test_" if not books.livemode else "evt_"),
        "object": "v2.core.event",
        "type": HEALTH,
        "created": iso(books.now()),
        "livemode": books.livemode,
        "context": None,
        "data": {
            "alert_id": books.settings_id("halert_", 32),
            "grouping_key": books.settings_id("_grouping_", 32),
            "impact": {"event_type": type_, "related_object": related_object(kind, id_)},
            "resolved_at": iso(resolved),
            "summary": "We have failed to create a notification for your Stripe account.",
        },
        "reason": None,
    }


def read(books: Endpoints, at: Route, params: Obj) -> Obj:
    """GET /v2/core/events/{id}, /v2/core/event_destinations and /v2/core/event_destinations/{id}."""
    if at.resource == "v2/core/events":
        if at.id not in books.v2_events:
            raise _unknown(at.id)
        return books.v2_events[at.id]
    include = params.get("include") or []
    shown = [_destination(books, endpoint, include) for endpoint in books.all("webhook_endpoint")]
    shown += [_destination(books, thin, include) for thin in books.thin_destinations()]
    if not at.id:
        return {"data": shown, "next_page_url": None, "previous_page_url": None}
    for destination in shown:
        if destination["id"] == at.id:
            return destination
    raise _unknown(at.id)


def _unknown(id_: str) -> StripeError:
    return StripeError(404, "invalid_request_error", f"Not found: {id_}", code="not_found", stored=False)


def _destination(books: Endpoints, endpoint: Obj, include: list[str]) -> Obj:
    """A webhook endpoint as v2 shows it. URL and secret only come when asked for."""
    thin = endpoint["object"] != "webhook_endpoint"
    url = endpoint["url"] if "webhook_endpoint.url" in include else None
    return {
        "id": endpoint["id"],
        "object": "v2.core.event_destination",
        "created": iso(endpoint["created"]),
        "description": endpoint["description"] or "",
        "enabled_events": endpoint["enabled_events"],
        "event_payload": "thin" if thin else "snapshot",
        "events_from": ["self"],
        "livemode": endpoint["livemode"],
        "metadata": endpoint["metadata"],
        "name": endpoint["description"] or endpoint["id"],
        "snapshot_api_version": None if thin else endpoint["api_version"],
        "status": endpoint["status"],
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": iso(endpoint["created"]),
        "webhook_endpoint": {"signing_secret": None, "url": url},
    }
