"""`finalsale doctor`: whether this deployment is well, what to do where it is not, the endpoint's repair, the key and the grants."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TextIO

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from worker import grants, recipe, show
from worker.doctor import examine, exit_code
from worker.doctor_place import try_routes
from worker.endpoint import Check, State, fix_endpoint
from worker.errors import FinalsaleError, SettingsInvalid
from worker.log import configure, get_logger
from worker.options import Json
from worker.settings import Settings, read_settings
from worker.stripe_gateway import StripeGateway

_LOOKS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
log = get_logger()


def doctor(
    *,
    fix: Annotated[
        bool,
        Parameter(name="--fix-endpoint", negative="", help="First enable, complete or create the webhook endpoint."),
    ] = False,
    test_alerts: Annotated[bool, Parameter(negative="", help="Send a test message over every alert route.")] = False,
    recipe_: Annotated[
        bool,
        Parameter(name="--recipe", negative="", help="Print the restricted key to make at Stripe, and nothing else."),
    ] = False,
    grants_: Annotated[
        bool, Parameter(name="--grants", negative="", help="Print the SQL of the least privileges, and nothing else.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Look at everything that this deployment needs, and say what to do. Exit code 0: all well, 1: warnings, 2: something fails.

    --fix-endpoint enables our endpoint at Stripe and adds the event types that it lacks; it never removes any. Where there is
    none and FINALSALE_PUBLIC_URL is set, it creates one and shows its signing secret, once, on the terminal.
    """
    if recipe_ or grants_:
        return _printed(recipe_, grants_, as_json)
    try:
        settings = read_settings()
    except SettingsInvalid as invalid:
        check = Check("settings", State.FAIL, str(invalid), "Correct this variable of the environment.")
        return _answer({"checks": [check]}, [check], as_json)
    configure(settings.log)
    document: dict[str, Any] = {}
    checks: list[Check] = []
    if fix:
        try:
            document["fixed"] = asyncio.run(_fix(settings, _terminal(as_json)))
        except FinalsaleError as failed:
            document["fixed"] = []
            checks.append(Check("repair", State.FAIL, "The endpoint could not be repaired.", str(failed)))
        else:
            if not as_json:
                show.say(" ".join(document["fixed"]) or "Nothing is to be repaired at the endpoint.")
                show.say()
    checks += asyncio.run(examine(settings))
    if test_alerts:
        checks += asyncio.run(try_routes(settings))
    return _answer({"checks": checks, **document}, checks, as_json)


def _printed(key: bool, privileges: bool, as_json: bool) -> int:
    """What is only shown, and needs no deployment."""
    document = (recipe.document() if key else {}) | ({"grants": grants.statements()} if privileges else {})
    if as_json:
        show.json_document(document)
        return 0
    if key:
        _recipe()
    if privileges:
        sys.stdout.write(grants.script())
    return 0


def _recipe() -> None:
    """The form at Stripe, row by row."""
    show.say(
        "In the Dashboard: Developers > API keys > Create restricted key. Two keys, according to what it shall be able to do:"
    )
    show.say(
        "`to watch` can change nothing; `to work` also sends what was decided. What is not named here stays at none."
    )
    columns = ("resource", "to watch", "to work", "why")
    show.table(columns, [(row.name, row.watch, row.work, row.why) for row in recipe.RECIPE], "")
    show.say(f"Which permission an endpoint needs: {recipe.SOURCE}.")


async def _fix(settings: Settings, show_secret: Callable[[str], None] | None) -> list[str]:
    gateway = StripeGateway(settings)
    try:
        done = await fix_endpoint(gateway, settings, show_secret)
    finally:
        await gateway.aclose()
    log.info("endpoint.fixed", changes=len(done))
    return done


def _terminal(as_json: bool) -> Callable[[str], None] | None:
    """Where a person reads along, and nobody keeps what is written; None if there is no such place."""
    screen: TextIO | None = next((out for out in (sys.stdout, sys.stderr) if out.isatty()), None)
    if screen is None or as_json:
        return None

    def write(secret: str) -> None:
        screen.write(f"{secret}\n")
        screen.flush()

    return write


def _answer(document: dict[str, Any], checks: Sequence[Check], as_json: bool) -> int:
    if as_json:
        show.json_document(document)
    else:
        _page(checks)
    return exit_code(checks)


def _page(checks: Sequence[Check]) -> None:
    """A line for each check, and below it what to do."""
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold", max_width=24)
    drawn.add_column(overflow="fold")
    for check in checks:
        told = show.plain(check.detail)
        if check.remedy:
            told.append("\n→ ", style="bold").append_text(show.plain(check.remedy))
        drawn.add_row(Text(check.state.value, style=_LOOKS[check.state]), show.plain(check.name), told)
    out = show.console()
    out.print(drawn)
    out.print()
    count = {state: sum(check.state is state for check in checks) for state in State}
    if count[State.OK] == len(checks):
        show.say(f"All {len(checks)} are well.")
    else:
        show.say(f"{count[State.OK]} are well, {count[State.WARN]} could be better, {count[State.FAIL]} fail.")
