"""Who may do what in the database: a role for each process with no privilege that its statements do not need, as SQL to run once.

The roles are cut by what a break-in would give away. A `web` process stands in the open: it can add events, and neither read nor
change one that is there. A `worker` decides and sends, and can rewrite nothing that was decided. The console shows everything
and writes what people do. Nobody but the owner of the tables, whom no process uses, can switch off the triggers that keep the
append-only tables append-only. The functions of the chain run as the owner, so only the owner may hang them on a table, and no
process may make one of its own, not even a temporary one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

WEB, WORKER, CONSOLE, OWNER = "finalsale_web", "finalsale_worker", "finalsale_console", "finalsale_migrate"

ROLES: dict[str, str] = {
    OWNER: "owns the tables: `finalsale migrate` and `finalsale customers erase`, and nothing that stays up",
    WEB: "`finalsale web` with FINALSALE_CONSOLE=off: takes in events, answers the merchant's app",
    WORKER: "`finalsale worker`, `finalsale reconcile`, `finalsale events import`: judges, sends, compares",
    CONSOLE: "`finalsale web` with FINALSALE_CONSOLE=only, and people's commands: reads everything, writes their acts",
}
_S, _I, _IS, _ISU, _ISUD, _SU = (
    "select",
    "insert",
    "insert, select",
    "insert, select, update",
    "insert, select, update, delete",
    "select, update",
)
_SHOWN = "select (id, name, scopes, created_at, created_by, expires_at, revoked_at)"


class Access(NamedTuple):
    """What each role may do with one table; nothing where it is empty."""

    web: str = ""
    worker: str = ""
    console: str = ""


TABLES: dict[str, Access] = {
    "alembic_version": Access(_S, _S, _S),
    # what Stripe told: a web process counts what waits, and sees nothing of it
    "inbox": Access(
        "insert, select (state, received_at, next_at)",
        "insert, select, update (state, attempts, next_at, error, settled_at, payload)",  # payloads are pruned
        "select, update (state, attempts, next_at, error, settled_at)",  # events replay
    ),
    "objects": Access(_S, _ISU, _S),
    "links": Access(
        _S, "insert, select, delete", _S
    ),  # a guest's go when the guest turns out to be somebody who was erased
    "lookups": Access("select (state)", _ISU, _S),
    "gaps": Access("", _ISU, _S),
    "retention": Access("", _ISU, _S),
    "unpruned": Access("", "insert, select, delete", _S),
    "erasures": Access("", _S, _S),
    # what was decided and done
    "decisions": Access(_S, _IS, _S),
    "actions": Access(_S, _ISU, _ISU),  # the console approves, and prepares what a person asked for
    "action_causes": Access("", _IS, _S),
    "review_acts": Access("select (decision_id, act)", _S, _IS),
    "acts": Access("", _S, _IS),
    "outages": Access(_S, _S, _IS),
    "switches": Access(_S, _S, _ISU),
    "wakeups": Access("", _ISUD, _ISU),
    "paid_periods": Access("", _ISUD, _S),
    # the accounts
    "accounts": Access(_S, _ISU, _S),
    "standing_changes": Access("", _IS, _S),
    "lots": Access("select, update (granted, consumed, expired, forfeited, taken_back)", _ISU, _S),
    "entries": Access(_I, _IS, _S),
    "consumptions": Access(_IS, _S, _S),
    "customer_standing": Access("", "", _S),
    "customer_credits": Access("", "", _S),
    "rehearsal_clock": Access(_S, _S, _S),
    # people and the app
    "cases": Access(_IS, _ISU, _ISU),
    "case_acts": Access(_IS, _S, _IS),
    "notices": Access("select (state)", _ISU, _SU),
    "api_tokens": Access(
        "select (id, name, hash, scopes, expires_at, revoked_at)",
        "",
        f"insert, {_SHOWN}, update (expires_at, revoked_at)",
    ),
    "operators": Access("", "", _ISU),
    "operator_tokens": Access("", "", _ISU),
    "console_sessions": Access("", "delete, select (hash, ends_at)", _ISUD),  # pruned when they are over
    "operator_acts": Access(_I, _IS, _IS),
    # who is told
    # a web process tells while no worker is alive, and sees for it what the alerts say: ids and amounts
    "alerts": Access(_ISU, _ISU, _ISU),
    "alert_messages": Access(_ISU, _ISUD, _ISU),
    "alert_tellings": Access(_ISU, _ISUD, _ISU),
    "signals": Access(_ISUD, _ISUD, _S),  # what its deliveries carry and its clock says
    # the chain: triggers of the owner's queue what anybody writes, a worker chains it and verifies it
    "audit_queue": Access("select (number)", "insert, select, delete", _S),
    "audit_texts": Access("", _S, ""),
    "audit_chain": Access("select (seq)", _IS, _S),
    "audit_backfill": Access("", "select, update, delete", _S),
    "audit_checks": Access("", _IS, _S),
    "audit_sources": Access("", _S, _S),
    "audit_unexplained": Access("", _S, _S),
    "policy_versions": Access("", _IS, _S),
    # the processes and the nights
    "workers": Access("select (role, seen_at, detail)", _ISUD, _S),
    "metric_totals": Access(_ISU, _ISU, _ISU),
    "schedule_runs": Access("select (name, due_at, state)", _ISU, _S),
    "runs": Access("select (realm, kind, exit_code, started_at, finished_at)", _ISU, _S),
    "slices": Access("", _ISU, _S),
    "scanned": Access("", _ISUD, _S),
    "found": Access("", _ISUD, _S),
    "unheard": Access("", _ISUD, _S),
    "unread": Access("", _ISUD, _S),
    "balance_moves": Access("", _ISUD, _S),
    "findings": Access("", _ISUD, _S),
}
ANALYZED = ("scanned", "found", "balance_moves")
"""Filled by a run and read by it at once: without fresh statistics its comparison takes a bad plan."""

_HEAD = """\
-- Least privileges for finalsale. As a superuser, or the owner of the database who may create roles, after every `finalsale migrate`
-- that added a table (it is safe to run again):
--     finalsale doctor --grants | psql -v ON_ERROR_STOP=1 "$ADMIN_URL"
-- It sets no password: \\password finalsale_web, and so on. In front of DATABASE_URL stands then, for each process, its own role.
-- A web process that serves the console too needs both: grant finalsale_console to finalsale_web.
-- Your app reads standing and credits with: grant select on customer_standing, customer_credits to your_role."""


def statements() -> list[str]:
    """The SQL, a statement each, in order; run it in one transaction. Afterwards the roles have these privileges and no others."""
    return [
        *map(_create, ROLES),
        "revoke create on schema public from public",
        f"grant usage, create on schema public to {OWNER}",
        _own(),
        _chain(),
        *(line for role in (WEB, WORKER, CONSOLE) for line in _of_role(role)),
        _maintain(),
    ]


def script() -> str:
    """The same for psql, with the words that an administrator needs."""
    roles = "\n".join(f"--   {role:18} {why}" for role, why in ROLES.items())
    body = "\n".join(f"{statement};" for statement in statements())
    return f"{_HEAD}\n--\n{roles}\n\nbegin;\n{body}\ncommit;\n"


def _create(role: str) -> str:
    return (
        f"do $$ begin if not exists (select from pg_roles where rolname = '{role}') then create role {role} "
        "login nosuperuser nocreatedb nocreaterole noreplication; end if; end $$"
    )


def _own() -> str:
    """Tables, views and functions of ours to their owner. An identity's sequence goes with its table, a trigger too.

    The functions are those of the schema that belong to whoever owned our tables, but for an extension's.
    """
    relations = ", ".join(f"'{name}'" for name in TABLES)
    lines = (
        "do $$ declare thing text; before oid := (select relowner from pg_class where oid = 'public.inbox'::regclass); begin",
        "    for thing in select oid::regprocedure from pg_proc p where pronamespace = 'public'::regnamespace",
        "        and proowner = before and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e') loop",
        f"        execute format('alter routine %s owner to {OWNER}', thing);",
        "    end loop;",
        "    for thing in select oid::regclass from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v')",
        f"        and relname in ({relations}) loop",
        f"        execute format('alter table %s owner to {OWNER}', thing);",
        "    end loop;",
        "end $$",
    )
    return "\n".join(lines)


def _chain() -> str:
    """What runs as the owner is the owner's alone, and nobody makes a table to hang it on."""
    lines = (
        "do $$ declare thing text; begin",
        "    for thing in select oid::regprocedure from pg_proc where pronamespace = 'public'::regnamespace and prosecdef loop",
        f"        execute format('revoke execute on routine %s from public, {WEB}, {WORKER}, {CONSOLE}', thing);",
        "    end loop;",
        f"    execute format('revoke temporary on database %I from public, {WEB}, {WORKER}, {CONSOLE}', current_database());",
        "end $$",
    )
    return "\n".join(lines)


def _of_role(role: str) -> Iterator[str]:
    yield f"revoke all on all tables in schema public from {role}"
    yield f"revoke create on schema public from {role}"
    yield f"grant usage on schema public to {role}"
    place = (WEB, WORKER, CONSOLE).index(role)
    for table, access in TABLES.items():
        if access[place]:
            yield f"grant {access[place]} on {table} to {role}"


def _maintain() -> str:
    """A privilege of its own since PostgreSQL 17; before, `analyze` is the owner's, and autovacuum's in time."""
    return (
        "do $$ begin if current_setting('server_version_num')::int >= 170000 then "
        f"grant maintain on {', '.join(ANALYZED)} to {WORKER}; end if; end $$"
    )
