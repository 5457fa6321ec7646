"""How a page becomes HTML: the templates, their few functions, and what every page shows around its own matter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from handlers.decisions import Money
from worker.operators import Operator
from worker.show import age

NAV = (
    ("/console/", "Overview"),
    ("/console/reviews", "Reviews"),
    ("/console/refunds", "Refunds"),
    ("/console/chargebacks", "Chargebacks"),
    ("/console/cases", "Cases"),
    ("/console/customers", "Customers"),
    ("/console/events", "Events"),
    ("/console/runs", "Nightly runs"),
    ("/console/alerts", "Alerts"),
    ("/console/policy", "Policy"),
    ("/console/audit", "Audit"),
    ("/console/operators", "Operators"),
)
_DASHBOARD = "https://dashboard.stripe.com"
# by the beginning of an id: where the dashboard shows it (https://docs.stripe.com/dashboard/basics). Others are searched for
_AT_STRIPE = {
    "ch": "payments", "py": "payments", "pi": "payments", "cus": "customers", "in": "invoices", "sub": "subscriptions",
    "dp": "disputes", "du": "disputes", "evt": "events", "po": "payouts", "prod": "products", "price": "prices",
}  # fmt: skip
_OURS = {
    "dec": "reviews",
    "evt": "events",
    "dp": "chargebacks",
    "du": "chargebacks",
    "cus": "customers",
    "case": "cases",
    "run": "runs",
}
_FOUND = frozenset({"ch", "py", "pi", "in", "sub", "re", "pyr", "issfr", "cs", "act", "oact", "out"})
_ID = re.compile(r"([a-z]+)_[A-Za-z0-9_]+", re.ASCII).fullmatch


class Frame(NamedTuple):
    """What stands around the matter of a page."""

    mode: str
    operator: Operator | None = None
    nav: Sequence[tuple[str, str]] = ()
    here: str = ""
    paused: Mapping[str, Any] | None = None
    said: str | None = None


_csrf: ContextVar[str] = ContextVar("csrf", default="")
_mode: ContextVar[str] = ContextVar("mode", default="test")


def render(template: str, frame: Frame, csrf: str, context: Mapping[str, Any]) -> bytes:
    """One page of `worker/templates/console/`, as UTF-8."""
    with _set(_csrf, csrf), _set(_mode, frame.mode):
        name = template if template.startswith("console/") else f"console/{template}"
        return environment().get_template(name).render(context, frame=frame).encode()


@contextmanager
def _set(variable: ContextVar[str], value: str) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@cache
def environment() -> Environment:
    """The templates. Their macros have no context of a page: what a form needs of the session comes through `csrf()`."""
    made = Environment(
        loader=PackageLoader("worker", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "csrf": _csrf.get,
        "money_text": lambda amount: str(Money(amount["minor"], amount["currency"])),
        "when_text": when_text,
        "age_text": lambda seconds: age(None if seconds is None else int(seconds)),
        "page_of": page_of,
        "dashboard_of": lambda id_, realm="": dashboard_of(id_, _mode.get(), realm),
    }
    return made


def compile_all() -> None:
    """Compile every template now, so that the first visitor does not wait and a broken one is found at the start."""
    made = environment()
    for name in made.list_templates(filter_func=lambda name: name.startswith("console/") and name.endswith(".j2")):
        made.get_template(name)


def when_text(moment: datetime) -> str:
    """`2026-01-31 12:00:00`, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def page_of(id_: str) -> str | None:
    """Where the console shows an id, or finds it; None for what it has no page for."""
    told = _ID(id_)
    if told is None:
        return None
    if told[1] in _OURS:
        return f"/console/{_OURS[told[1]]}/{id_}"
    return f"/console/find?q={id_}" if told[1] in _FOUND else None


def dashboard_of(id_: str | None, mode: str, realm: str = "") -> str | None:
    """Where Stripe's dashboard shows an object, in this mode, for a connected account's realm within that account."""
    told = _ID(id_) if id_ else None
    if told is None:
        return None
    account = realm.partition(":")[2]
    base = f"{_DASHBOARD}/{account}" if account else _DASHBOARD
    base += "" if mode == "live" else "/test"
    if told[1] in _AT_STRIPE:
        return f"{base}/{_AT_STRIPE[told[1]]}/{id_}"
    return f"{base}/search?query={quote(told[0])}"
