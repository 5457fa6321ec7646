"""The console at /console/: which pages there are, and how they get onto the web process."""

from __future__ import annotations

from aiohttp import web

from worker.console import (
    alerts_pages,
    audit_pages,
    cases,
    chargebacks,
    customers,
    events,
    find,
    operators_page,
    overview,
    policy,
    refunds,
    reviews,
    runs,
)
from worker.console.page import Page
from worker.console.serve import Console
from worker.settings import Settings

PAGES: tuple[Page, ...] = (
    *overview.PAGES,
    *reviews.PAGES,
    *refunds.PAGES,
    *chargebacks.PAGES,
    *cases.PAGES,
    *customers.PAGES,
    *events.PAGES,
    *runs.PAGES,
    *alerts_pages.PAGES,
    *policy.PAGES,
    *audit_pages.PAGES,
    *operators_page.PAGES,
    *find.PAGES,
)


def mount(app: web.Application, settings: Settings) -> None:
    """Put the console on `app`. It starts and ends with it, also while Postgres is down. Raises SettingsInvalid."""
    Console(settings, PAGES).mount(app)
