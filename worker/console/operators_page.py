"""The page of operators: who may sign in, with what role and tokens, and for admins everything that changes that."""

from __future__ import annotations

from datetime import timedelta

from worker import operators
from worker.console.page import Answer, Gone, Page, Shown, Visit
from worker.operators import Role
from worker.reading import NotUnderstood
from worker.tokens import TokenInvalid, length_of

HERE = "/console/operators"


async def show(visit: Visit) -> Answer:
    """All operators with their tokens."""
    return Shown(
        "operators.html.j2", {"operators": await operators.every(visit.conn), "me": visit.operator, "roles": list(Role)}
    )


async def add(visit: Visit) -> Answer:
    """A new operator, and the token this once."""
    name, role = visit.form.get("name", ""), operators.role_of(visit.form.get("role", ""))
    lifetime = _length(visit, "expires")
    made = await operators.add(visit.conn, name, role, by=visit.operator.name, lifetime=lifetime, via="console")
    return Shown("operator_token.html.j2", {"made": made})


async def rotate(visit: Visit) -> Answer:
    """A new token for an operator; the others end after the overlap."""
    overlap, lifetime = _length(visit, "overlap"), _length(visit, "expires")
    name, by = visit.path["name"], visit.operator.name
    made = await operators.rotate(visit.conn, name, by=by, overlap=overlap, lifetime=lifetime, via="console")
    return Shown("operator_token.html.j2", {"made": made})


async def set_role(visit: Visit) -> Answer:
    """Another role, from the next request on."""
    role = operators.role_of(visit.form.get("role", ""))
    done = await operators.set_role(visit.conn, visit.path["name"], role, by=visit.operator.name, via="console")
    return Gone(HERE, f"{done['name']} has the role {done['role']} now.")


async def remove(visit: Visit) -> Answer:
    """The end of an operator with all tokens and sessions."""
    if visit.form.get("sure") != "yes":
        raise NotUnderstood("Tick that you mean it: a removed operator's name is not given again.")
    done = await operators.remove(visit.conn, visit.path["name"], by=visit.operator.name, via="console")
    return Gone(HERE, f"{done['name']} was removed and is signed out.")


async def revoke(visit: Visit) -> Answer:
    """The end of one token and its sessions."""
    done = await operators.revoke(visit.conn, visit.path["id"], by=visit.operator.name, via="console")
    return Gone(HERE, f"The token {done['id']} of {done['name']} is refused from now on.")


def _length(visit: Visit, field: str) -> timedelta | None:
    written = visit.form.get(field, "").strip()
    try:
        return length_of(written) if written else None
    except TokenInvalid as error:
        raise NotUnderstood(str(error)) from None


PAGES = (
    Page("GET", "/operators", Role.ADMIN, show),
    Page("POST", "/operators", Role.ADMIN, add),
    Page("POST", "/operators/{name}/rotate", Role.ADMIN, rotate),
    Page("POST", "/operators/{name}/role", Role.ADMIN, set_role),
    Page("POST", "/operators/{name}/remove", Role.ADMIN, remove),
    Page("POST", "/operator-tokens/{id}/revoke", Role.ADMIN, revoke),
)
