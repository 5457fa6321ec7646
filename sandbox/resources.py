"""What each `/v1` path means: lists with their filters, single reads, and which mutation it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sandbox import health, shapes
from sandbox.billing import Books
from sandbox.mutations import CHANGE, CREATE
from sandbox.params import allow, flat, integer
from sandbox.store import EVENTS_KEPT_S, LINKS, Obj, StripeError, invalid, missing

FOREVER = 1 << 40


class Resource(msgspec.Struct, frozen=True):
    """A list: the kind of its objects and the filters besides `created`, cursors, `limit` and `expand`."""

    kind: str
    filters: tuple[str, ...] = ()


RESOURCES = {
    "balance_transactions": Resource("balance_transaction", ("type", "source", "currency", "payout")),
    "charges": Resource("charge", ("customer", "payment_intent", "transfer_group")),
    "checkout/sessions": Resource("checkout.session", ("payment_intent", "subscription", "customer", "status")),
    "customers": Resource("customer", ("email", "test_clock")),
    "disputes": Resource("dispute", ("charge", "payment_intent")),
    "events": Resource("event", ("type", "types", "delivery_success")),
    "invoice_payments": Resource("invoice_payment", ("invoice", "payment.type", "payment.payment_intent", "status")),
    "invoices": Resource("invoice", ("customer", "subscription", "status", "collection_method")),
    "payment_intents": Resource("payment_intent", ("customer",)),
    "prices": Resource("price", ("active", "currency", "product", "type")),
    "products": Resource("product", ("active",)),
    "radar/early_fraud_warnings": Resource("radar.early_fraud_warning", ("charge", "payment_intent")),
    "refunds": Resource("refund", ("charge", "payment_intent")),
    "subscriptions": Resource("subscription", ("customer", "price", "status", "collection_method", "test_clock")),
    "subscription_schedules": Resource("subscription_schedule", ("customer",)),
    "tax_rates": Resource("tax_rate", ("active", "inclusive")),
    "webhook_endpoints": Resource("webhook_endpoint"),
}
ALONE = ("account",)
"""Not a list: one object, without an id in its path."""
V2 = ("v2/core/events", "v2/core/event_destinations")
PAGING = {"limit", "starting_after", "ending_before", "expand", "created"}


# -- reading -----------------------------------------------------------------------------------------------------------


def read_list(
    books: Books, path: str, resource: Resource, params: Obj, fixed: dict[str, str]
) -> tuple[list[Obj], bool]:
    """One page of a list; `fixed` are filters given by the path."""
    given = flat(params)
    allow({k: v for k, v in given.items() if k not in PAGING}, set(resource.filters))
    kind = resource.kind
    limit = integer(params, "limit") or 10
    if not 1 <= limit <= 100:
        raise invalid("This value must be between 1 and 100.", param="limit", code="parameter_invalid_integer")
    filters = {name: given[name] for name in resource.filters if name in given} | fixed
    links = {name: value for name, value in filters.items() if name in LINKS.get(kind, {})}
    rest = {name: value for name, value in filters.items() if name not in links}
    created = window(params.get("created"))
    if kind == "event":
        created = (max(created[0], books.now() - EVENTS_KEPT_S), created[1])
    return books.page(
        kind,
        limit=limit,
        links=links,
        keep=_keep(books, kind, rest),
        created=created,
        starting_after=params.get("starting_after"),
        ending_before=params.get("ending_before"),
    )


def window(created: Any) -> tuple[int, int]:
    """`created`, a number or `gt gte lt lte`, as the half-open window [from, until)."""
    if created is None:
        return 0, FOREVER
    if not isinstance(created, dict):
        at = integer({"created": created}, "created") or 0
        return at, at + 1
    allow(created, {"gt", "gte", "lt", "lte"})
    low = max((integer(created, "gte") or 0), (integer(created, "gt") or -1) + 1)
    below, upto = integer(created, "lt"), integer(created, "lte")
    return low, min(FOREVER if below is None else below, FOREVER if upto is None else upto + 1)


def _keep(books: Books, kind: str, rest: dict[str, Any]) -> Callable[[Obj], bool]:
    if kind == "event":
        return _keep_event(books, rest)
    if kind == "subscription":
        return _keep_subscription(rest)

    def keep(obj: Obj) -> bool:
        for name, value in rest.items():
            held: Any = obj
            for part in name.split("."):
                held = held.get(part) if isinstance(held, dict) else None
            if (str(held).lower() if isinstance(held, bool) else held) != value:
                return False
        return True

    return keep


def _keep_event(books: Books, rest: dict[str, Any]) -> Callable[[Obj], bool]:
    types, one, success = rest.get("types"), rest.get("type"), rest.get("delivery_success")
    if types is not None and (one is not None or not isinstance(types, list) or len(types) > 20):
        raise invalid("You may pass `type` or up to 20 `types`, not both.", param="types")

    def keep(event: Obj) -> bool:
        if types is not None and event["type"] not in types:
            return False
        if one is not None and not (
            event["type"] == one or one == "*" or (one.endswith(".*") and event["type"].startswith(one[:-1]))
        ):
            return False
        return success is None or (books.pending.get(event["id"], 0) == 0) == (success == "true")

    return keep


def _keep_subscription(rest: dict[str, Any]) -> Callable[[Obj], bool]:
    status, price = rest.get("status"), rest.get("price")

    def keep(sub: Obj) -> bool:
        ended = sub["status"] in ("canceled", "incomplete_expired")
        if status is None and sub["status"] == "canceled":
            return False
        if status == "ended" and not ended:
            return False
        if status not in (None, "all", "ended") and sub["status"] != status:
            return False
        if price is not None and all(item["price"]["id"] != price for item in sub["items"]["data"]):
            return False
        return bool(sub["test_clock"] == rest.get("test_clock"))

    return keep


NESTED = {
    ("customers", "balance_transactions"): ("customer_balance_transaction", "customer"),
    ("charges", "refunds"): ("refund", "charge"),
}


class Route(msgspec.Struct, frozen=True):
    """A path taken apart: the resource, the object's id, and what stands below it."""

    resource: str
    id: str = ""
    below: str = ""
    last: str = ""

    @property
    def endpoint(self) -> str:
        """The path with its ids taken out: what a rate limit counts."""
        version = "" if self.resource.startswith("v2/") else "/v1"
        return "/".join(
            [version, self.resource, *(["{id}"] if self.id else []), *([self.below] if self.below else [])]
        ) + ("/{id}" if self.last else "")


def route(path: str) -> Route:
    """Take a `/v1/...` or `/v2/...` path apart; 404 where Stripe has no such URL."""
    parts = [part for part in path.split("/") if part]
    if parts[0] == "v2":
        if "/".join(parts[:3]) not in V2 or len(parts) > 4:
            raise unknown_url(path)
        return Route("/".join(parts[:3]), *parts[3:])
    del parts[0]
    two = "/".join(parts[:2])
    resource, rest = (two, parts[2:]) if two in RESOURCES else ((parts or [""])[0], parts[1:])
    if not (resource in RESOURCES or resource in CREATE or (resource in ALONE and not rest)) or len(rest) > 3:
        raise unknown_url(path)
    return Route(resource, *rest)


def unknown_url(path: str) -> StripeError:
    return StripeError(404, "invalid_request_error", f"Unrecognized request URL ({path}).", stored=False)


def read(books: Books, at: Route, params: Obj, path: str, version: str) -> Obj:
    """Answer a GET, rendered in `version`."""
    if at.resource in ALONE:
        return books.account
    if at.resource in V2:
        return health.read(books, at, params)
    if at.resource not in RESOURCES or (at.resource == "invoice_payments" and shapes.is_old(version)):
        raise unknown_url(path)
    resource = RESOURCES[at.resource]
    expand = params.get("expand") or []
    if not isinstance(expand, list) or len(expand) > 20:
        raise invalid("expand must be an array of at most 20 paths.", param="expand")
    if at.id and not at.below:
        obj = books.get(resource.kind, at.id)
        return shapes.expand(_shown(books, obj, version), expand, version, books)
    if at.id:
        owner = books.get(resource.kind, at.id)
        if (at.resource, at.below) == ("invoices", "lines"):
            return _lines(books, owner["lines"]["data"], params, path, version)
        if (at.resource, at.below) == ("checkout/sessions", "line_items"):
            return _lines(books, books.session_lines.get(at.id, []), params, path, version)
        if (at.resource, at.below) not in NESTED:
            raise unknown_url(path)
        kind, link = NESTED[at.resource, at.below]
        if at.last:
            return _shown(books, books.get(kind, at.last), version)
        resource, fixed = Resource(kind), {link: at.id}
    else:
        fixed = {}
    found, more = read_list(books, path, resource, params, fixed)
    page = shapes.listing([_shown(books, obj, version) for obj in found], path, more)
    return shapes.expand(page, expand, version, books)


def _lines(books: Books, lines: list[Obj], params: Obj, path: str, version: str) -> Obj:
    """A page of the lines of an invoice or a Checkout session, in their own order."""
    allow(params, PAGING)
    limit = integer(params, "limit") or 10
    ids = [line["id"] for line in lines]
    if "starting_after" in params and params["starting_after"] not in ids:
        raise missing("line_item", params["starting_after"], "starting_after")
    start = ids.index(params["starting_after"]) + 1 if "starting_after" in params else 0
    page = [shapes.render(line, version, books) for line in lines[start : start + limit]]
    return shapes.listing(page, path, start + limit < len(lines))


def _shown(books: Books, obj: Obj, version: str) -> Obj:
    if obj["object"] == "event":
        return obj | {"pending_webhooks": books.pending.get(obj["id"], 0)}
    return shapes.render(obj, version, books)


def write(books: Books, method: str, at: Route, params: Obj, path: str) -> Obj:
    """Carry out a POST or DELETE; returns the object it made or changed, in the newest shape."""
    params = {name: value for name, value in params.items() if name != "expand"}
    if method == "POST" and not at.id and at.resource in CREATE:
        return CREATE[at.resource](books, params)
    change = CHANGE.get((method, at.resource, at.below))
    if change is None or not at.id or at.last:
        raise unknown_url(path)
    return change(books, params, at.id)
