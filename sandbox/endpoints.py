"""The account and its webhook endpoints, as `/v1/account` and `/v1/webhook_endpoints` show them, and which of them hear of an event."""

from __future__ import annotations

import random
import re
from typing import Any

from sandbox import shapes
from sandbox.params import allow, flag, require
from sandbox.store import ALPHABET, Obj, Store, invalid

AT_MOST = 16
"""Endpoints that an account may have in one mode (stripe.com/docs/webhooks)."""
URL = re.compile(r"https?://[^\s/]+\S*")
EVENT_TYPE = re.compile(r"\*|[a-z0-9_]+(\.[a-z0-9_]+)+")


class Endpoints(Store):
    """Webhook endpoints in the account's settings; delivery itself is the business of `sandbox.webhooks`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._settings_rng = random.Random(f"settings {settings.get('seed', 1)}")  # ids of other things stay the same
        self.secrets: dict[str, list[str]] = {}
        """Signing secrets by endpoint; two while one is rolled. They are shown once, when the endpoint is made."""
        self.account = account(self.settings_id("acct_1", 16), self.now())
        self.v2_events: dict[str, Obj] = {}
        self.thin: Obj | None = None
        """The event destination for thin v2 events at the delivering URL, if there is one."""

    def settings_id(self, prefix: str, length: int = 24) -> str:
        """An id that takes nothing from the dice of the books."""
        return prefix + "".join(self._settings_rng.choices(ALPHABET, k=length))

    def listening(self, type_: str) -> list[Obj]:
        """The endpoints that an event of this type is sent to."""
        return [
            endpoint
            for endpoint in self.all("webhook_endpoint")
            if endpoint["status"] == "enabled"
            and ("*" in endpoint["enabled_events"] or type_ in endpoint["enabled_events"])
            and shapes.has_event(type_, endpoint["api_version"] or self.event_version)
        ]

    def new_webhook_endpoint(
        self,
        url: str,
        enabled_events: list[str],
        *,
        api_version: str | None = None,
        description: str | None = None,
        metadata: Obj | None = None,
        secrets: list[str] | None = None,
    ) -> Obj:
        """A new endpoint, enabled. Its secret is made up unless `secrets` are given."""
        endpoint: Obj = {
            "id": self.settings_id("we_1"),
            "object": "webhook_endpoint",
            "api_version": api_version,
            "application": None,
            "created": self.now(),
            "description": description,
            "enabled_events": enabled_events,
            "livemode": self.livemode,
            "metadata": dict(metadata or {}),
            "status": "enabled",
            "url": url,
        }
        self.secrets[endpoint["id"]] = [self.settings_id("whsec_", 32)] if secrets is None else secrets
        return self.put(endpoint)

    def thin_destinations(self) -> list[Obj]:
        """What `/v2/core/event_destinations` lists besides the webhook endpoints."""
        return [self.thin] if self.thin is not None else []

    def delete_webhook_endpoint(self, endpoint: Obj) -> None:
        """Gone from the list; deliveries that wait for a retry are given up when it is due."""
        self.drop(endpoint)
        self.secrets.pop(endpoint["id"], None)


def account(id_: str, created: int) -> Obj:
    """The account itself, as far as somebody asks who they are."""
    return {
        "id": id_,
        "object": "account",
        "business_profile": {"name": "AptNode", "support_email": None, "url": None},
        "business_type": "company",
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": True,
        "country": "US",
        "created": created,
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "settings": {
            "dashboard": {"display_name": "AptNode", "timezone": "Etc/UTC"},
            "payments": {"statement_descriptor": "APTNODE"},
        },
        "type": "standard",
    }


# -- the API -----------------------------------------------------------------------------------------------------------


def create(books: Endpoints, params: Obj) -> Obj:
    """POST /v1/webhook_endpoints; the only answer that carries the secret."""
    allow(params, {"url", "enabled_events", "api_version", "description", "metadata", "connect"})
    url, events = _url(books, require(params, "url")), _events(require(params, "enabled_events"))
    if len(list(books.all("webhook_endpoint"))) >= AT_MOST:
        raise invalid(f"You have reached the maximum of {AT_MOST} webhook endpoints.")
    endpoint = books.new_webhook_endpoint(
        url,
        events,
        api_version=params.get("api_version"),
        description=params.get("description"),
        metadata=params.get("metadata"),
    )
    return endpoint | {"secret": books.secrets[endpoint["id"]][0]}


def update(books: Endpoints, params: Obj, id_: str) -> Obj:
    """POST /v1/webhook_endpoints/{id}. The API version cannot be changed: that takes a new endpoint."""
    allow(params, {"url", "enabled_events", "disabled", "description", "metadata"})
    endpoint = books.get("webhook_endpoint", id_, "webhook_endpoint")
    if "url" in params:
        endpoint["url"] = _url(books, params["url"])
    if "enabled_events" in params:
        endpoint["enabled_events"] = _events(params["enabled_events"])
    if "disabled" in params:
        endpoint["status"] = "disabled" if flag(params, "disabled") else "enabled"
    if "description" in params:
        endpoint["description"] = params["description"] or None
    for key, value in (params.get("metadata") or {}).items():
        if value == "":
            endpoint["metadata"].pop(key, None)
        else:
            endpoint["metadata"][key] = value
    return endpoint


def delete(books: Endpoints, params: Obj, id_: str) -> Obj:
    """DELETE /v1/webhook_endpoints/{id}."""
    allow(params, set())
    books.delete_webhook_endpoint(books.get("webhook_endpoint", id_, "webhook_endpoint"))
    return {"id": id_, "object": "webhook_endpoint", "deleted": True}


def _url(books: Endpoints, url: str) -> str:
    if not URL.fullmatch(url):
        raise invalid("Invalid URL: An explicit scheme (such as https) must be provided.", param="url", stored=False)
    if books.livemode and not url.startswith("https://"):
        raise invalid("Invalid URL: Webhook endpoints in live mode must use https.", param="url", stored=False)
    return url


def _events(types: Any) -> list[str]:
    if not isinstance(types, list) or not types:
        raise invalid("Invalid array", param="enabled_events", stored=False)
    for at, type_ in enumerate(types):
        if not isinstance(type_, str) or not EVENT_TYPE.fullmatch(type_):
            raise invalid(f"Invalid enabled_events[{at}]: {type_}", param=f"enabled_events[{at}]", stored=False)
    return list(types)
