"""What the API promises: its documents, its errors, its operations, and the OpenAPI description made from these and nothing else."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from handlers.account import LotKind, Standing, Way
from handlers.cases import CaseRequest, Kind
from worker.tokens import Scope

PREFIX = "/api/v1/"
ACCOUNT_HEADER = "Finalsale-Account"
KEY_HEADER = "Idempotency-Key"
ID_PATTERN = "^[A-Za-z0-9_.:-]{1,255}$"
KEY_PATTERN = "^[ -~]{1,255}$"
CASE_KEY_PATTERN = "^[!-~]{1,200}$"
ACCOUNT_PATTERN = "^acct_[A-Za-z0-9_]{1,250}$"

# documents -----------------------------------------------------------------------------------------------------------------

Time = Annotated[datetime, Meta(description="ISO 8601, UTC.")]
Count = Annotated[int, Meta(ge=0, description="Whole credits.")]


class Hold(Struct, kw_only=True):
    """One reason why a customer's standing is not good."""

    subject: Annotated[str, Meta(description="The dispute, or `operator` for a person's own hold.")]
    since: Time
    status: Annotated[str, Meta(description="The dispute's status at Stripe; an open list.")]
    suspends: Annotated[bool, Meta(description="Whether it suspends the customer, or only flags.")]
    cause: Annotated[str, Meta(description="A sentence for people.")]
    charge: str | None
    due_by: Annotated[Time | None, Meta(description="Until when evidence can be sent.")]


class Access(Struct, kw_only=True):
    """Until when one subscription serves, and why."""

    subscription: str
    status: Annotated[str, Meta(description="The subscription's status at Stripe; an open list.")]
    way: Annotated[Way, Meta(description="How it stands towards its end.")]
    until: Annotated[
        Time | None,
        Meta(description="The end of what was paid or tried; null where nothing was. It may lie in the past."),
    ]
    cause: Annotated[str, Meta(description="A sentence for people.")]
    requested_at: Annotated[Time | None, Meta(description="When the cancellation was asked for.")]
    ended_at: Time | None
    reason: Annotated[str | None, Meta(description="The reason of the cancellation that Stripe names.")]


class Lot(Struct, kw_only=True):
    """One grant of credits, which lives by its own rules."""

    id: str
    kind: LotKind
    clause: Annotated[str, Meta(description="The clause of the policy that it was granted under.")]
    granted: Count
    consumed: Count
    available: Annotated[int, Meta(ge=0, description="What is left of it; 0 once it has ended.")]
    granted_at: Time
    ends_at: Annotated[Time | None, Meta(description="Nothing is consumed from then on; null: no end is in sight.")]


class Credits(Struct, kw_only=True):
    """What a customer has, lot by lot."""

    available: Annotated[
        int, Meta(ge=0, description="The sum over the lots. A suspended customer has it and cannot consume it.")
    ]
    lots: Annotated[list[Lot], Meta(description="Every lot there ever was, what ends soonest first.")]


class Customer(Struct, kw_only=True):
    """Everything the app has to know to let a customer go on or not."""

    customer: str
    as_of: Annotated[Time, Meta(description="The moment that all of this is true at.")]
    standing: Annotated[
        Standing,
        Meta(
            description="`good`: no hold. `flagged`: a chargeback is open; the customer may go on. `suspended`: may not."
        ),
    ]
    may_continue: Annotated[
        bool,
        Meta(
            description="The short answer: the customer is not suspended, and has access beyond this moment or credits left. "
            "It says nothing about which plan the access is to; `access` does."
        ),
    ]
    holds: Annotated[list[Hold], Meta(description="Why the standing is not good; empty where it is.")]
    access_until: Annotated[
        Time | None, Meta(description="The latest end over all subscriptions; null where none ever served.")
    ]
    access: list[Access]
    credits: Credits


class ConsumeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to consume. The key makes it happen once, however often it is asked for."""

    amount: Annotated[int, Meta(ge=1, le=10**9, description="Whole credits.")]
    key: (
        Annotated[
            str,
            Meta(
                pattern=KEY_PATTERN,
                description=f"The caller's own name for this consumption, once per customer. Required, here or as the header "
                f"`{KEY_HEADER}`; where both are given they have to be equal.",
            ),
        ]
        | UnsetType
    ) = UNSET


class Consumed(Struct, kw_only=True):
    """What was consumed under a key."""

    outcome: Annotated[
        Literal["consumed", "repeated"], Meta(description="`repeated`: it was consumed before, and not again now.")
    ]
    consumed: Annotated[int, Meta(ge=1, description="Whole credits.")]
    remaining: Annotated[int, Meta(ge=0, description="What was left over all lots right after it was consumed.")]


class Case(Struct, kw_only=True):
    """A support request, and what the policy says to it."""

    id: str
    state: Literal["open", "answered", "closed"]
    kind: Kind
    customer: Annotated[str | None, Meta(description="Whom it is about, as far as it is known.")]
    email: str
    date: str
    transaction: str | None
    description: str
    clause: Annotated[str, Meta(description="The clause of the policy that answers it.")]
    verdict: Annotated[
        str, Meta(description="`refund`, `review` (a person looks), `deny`, or `none` (nothing is asked of anybody).")
    ]
    policy_version: str
    summary: Annotated[str, Meta(description="For whoever answers; not for the customer.")]
    draft_answer: Annotated[str, Meta(description="For the customer, once a person has read it.")]
    answer: Annotated[str | None, Meta(description="What was answered in the end.")]
    payments: Annotated[list[str], Meta(description="Charges that it is about.")]
    assigned_to: str | None
    opened_at: Time
    due_at: Annotated[Time, Meta(description="When an answer is due at the latest.")]
    answered_at: Time | None
    overdue: bool


# errors --------------------------------------------------------------------------------------------------------------------


class Code(StrEnum):
    """What was wrong, for programs."""

    MALFORMED = "malformed"
    UNAUTHORIZED = "unauthorized"
    INSUFFICIENT = "insufficient"
    MISSING_SCOPE = "missing_scope"
    SUSPENDED = "suspended"
    NOT_FOUND = "not_found"
    UNKNOWN_CUSTOMER = "unknown_customer"
    METHOD = "method_not_allowed"
    TOO_SLOW = "too_slow"
    OTHER_AMOUNT = "other_amount"
    OTHER_REQUEST = "other_request"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported_media_type"
    INVALID = "invalid"
    TOO_MANY = "too_many_requests"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"


class Meaning(NamedTuple):
    """How an error is answered and described."""

    status: int
    description: str


MEANING = {
    Code.MALFORMED: Meaning(400, "The body is not valid JSON in UTF-8, or names a field twice."),
    Code.UNAUTHORIZED: Meaning(401, "No valid token was shown."),
    Code.INSUFFICIENT: Meaning(402, "Fewer credits are available; `available` says how many. Nothing was consumed."),
    Code.MISSING_SCOPE: Meaning(403, "The token is not for this."),
    Code.SUSPENDED: Meaning(403, "The customer is suspended; `holds` says why. Nothing was consumed."),
    Code.NOT_FOUND: Meaning(404, "There is nothing of this name."),
    Code.UNKNOWN_CUSTOMER: Meaning(404, "Nothing is known of this customer."),
    Code.METHOD: Meaning(405, "The path is for other methods; `Allow` names them."),
    Code.TOO_SLOW: Meaning(408, "The body did not arrive in time."),
    Code.OTHER_AMOUNT: Meaning(409, "The key stands for another amount; `consumed` says which."),
    Code.OTHER_REQUEST: Meaning(409, "The key stands for another request."),
    Code.TOO_LARGE: Meaning(413, "The body is larger than 64 KiB."),
    Code.UNSUPPORTED: Meaning(415, "The body is not sent as plain application/json."),
    Code.INVALID: Meaning(422, "A value cannot be what it is; `field` says which."),
    Code.TOO_MANY: Meaning(429, "Too many requests."),
    Code.FAILED: Meaning(500, "A fault of ours."),
    Code.UNAVAILABLE: Meaning(
        503, "The database is away, or busy for too long. To repeat a request with its key is safe."
    ),
}
HEADERS_OF = {
    401: {"WWW-Authenticate": "The scheme to authenticate with: Bearer."},
    429: {"Retry-After": "Seconds to wait."},
    503: {"Retry-After": "Seconds to wait."},
}
ALWAYS = (Code.TOO_MANY, Code.FAILED, Code.UNAVAILABLE)
WITH_TOKEN = (Code.UNAUTHORIZED, Code.MISSING_SCOPE, Code.INVALID)
WITH_BODY = (Code.MALFORMED, Code.TOO_SLOW, Code.TOO_LARGE, Code.UNSUPPORTED)


class Problem(Struct, kw_only=True):
    """What was wrong. Only `code` and `message` are always there."""

    code: Code
    message: Annotated[str, Meta(description="A sentence for people.")]
    field: Annotated[str, Meta(description="The field, header or part of the path that is wrong.")] | UnsetType = UNSET
    available: Count | UnsetType = UNSET
    consumed: Count | UnsetType = UNSET
    holds: list[Hold] | UnsetType = UNSET


class ErrorDocument(Struct, kw_only=True):
    """The body of every answer that is not a success."""

    error: Problem


# operations ----------------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One method of one path. `scope` None: no token is asked for."""

    name: str
    method: str
    path: str
    summary: str
    description: str
    scope: Scope | None
    answers: dict[int, tuple[str, Any]]
    refusals: tuple[Code, ...] = ()
    body: Any = None
    key: str = ""
    """The pattern of the caller's key, where the header may name one."""
    id_of: str = ""

    def codes(self) -> tuple[Code, ...]:
        """Every error that it may be answered with."""
        return (
            *self.refusals,
            *(WITH_TOKEN if self.scope is not None else ()),
            *(WITH_BODY if self.body is not None else ()),
            *ALWAYS,
        )


OPERATIONS = (
    Operation(
        name="show_customer",
        method="GET",
        path="customers/{id}",
        summary="Standing, access and credits of one customer",
        description="Answers from the books as they are at this moment; nothing is asked at Stripe.",
        scope=Scope.READ,
        answers={200: ("The customer.", Customer)},
        refusals=(Code.UNKNOWN_CUSTOMER,),
        id_of="The customer's id at Stripe, `cus_…`.",
    ),
    Operation(
        name="consume_credits",
        method="POST",
        path="customers/{id}/credits/consume",
        summary="Consume credits once",
        description="All or nothing, from the lots that end soonest. Repeating a request with its key is safe and answers what "
        "the first one did. A refusal uses up no key.",
        scope=Scope.CONSUME,
        answers={200: ("Consumed, now or before.", Consumed)},
        refusals=(Code.INSUFFICIENT, Code.SUSPENDED, Code.UNKNOWN_CUSTOMER, Code.OTHER_AMOUNT),
        body=ConsumeRequest,
        key=KEY_PATTERN,
        id_of="The customer's id at Stripe, `cus_…`.",
    ),
    Operation(
        name="open_case",
        method="POST",
        path="cases",
        summary="Open a support case",
        description="Evaluated at once by what is known; a person answers. With a key, the same request again opens no other case.",
        scope=Scope.CASES,
        answers={201: ("Opened now.", Case), 200: ("Opened before, under the same key.", Case)},
        refusals=(Code.OTHER_REQUEST,),
        body=CaseRequest,
        key=CASE_KEY_PATTERN,
    ),
    Operation(
        name="show_case",
        method="GET",
        path="cases/{id}",
        summary="One support case",
        description="As it stands now.",
        scope=Scope.CASES,
        answers={200: ("The case.", Case)},
        refusals=(Code.NOT_FOUND,),
        id_of="The case's id, `case_…`.",
    ),
    Operation(
        name="show_openapi",
        method="GET",
        path="openapi.json",
        summary="This description",
        description="OpenAPI 3.1.",
        scope=None,
        answers={200: ("The description.", dict[str, Any])},
    ),
)


def _by_path() -> tuple[tuple[tuple[str, ...], dict[str, Operation]], ...]:
    found: dict[tuple[str, ...], dict[str, Operation]] = defaultdict(dict)
    for operation in OPERATIONS:
        found[tuple(operation.path.split("/"))][operation.method] = operation
    return tuple(found.items())


PATHS = _by_path()
"""The operations by the parts of their path behind the prefix, and then by method."""


# the description -----------------------------------------------------------------------------------------------------------


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    kinds = [ErrorDocument]
    kinds += [kind for operation in OPERATIONS for _, kind in operation.answers.values()]
    kinds += [operation.body for operation in OPERATIONS if operation.body is not None]
    shapes, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema = {id(kind): shape for kind, shape in zip(kinds, shapes, strict=True)}
    described: dict[str, dict[str, Any]] = defaultdict(dict)
    for operation in OPERATIONS:
        described[PREFIX + operation.path][operation.method.lower()] = _described(operation, schema)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "finalsale",
            "version": "1",
            "description": "For the merchant's app: may this customer go on? Another path answers 404 and another method 405, both "
            "in the form of every error here. Each token may make 500 requests a second of each web process.",
        },
        "paths": dict(described),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`finalsale tokens add` makes one."}
            },
        },
    }


def _described(operation: Operation, schema: dict[int, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(status): {"description": text, "content": {"application/json": {"schema": schema[id(kind)]}}}
        for status, (text, kind) in operation.answers.items()
    }
    by_status: dict[int, list[Code]] = defaultdict(list)
    for code in operation.codes():
        by_status[MEANING[code].status].append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": " ".join(f"`{code}`: {MEANING[code].description}" for code in codes),
            "content": {"application/json": {"schema": schema[id(ErrorDocument)]}},
        }
        if headers := HEADERS_OF.get(status):
            responses[str(status)]["headers"] = {
                name: {"description": text, "required": True, "schema": {"type": "string"}}
                for name, text in headers.items()
            }
    described = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description
        + (f" Asks for a token with the scope `{operation.scope}`." if operation.scope else ""),
        "security": [{"token": []}] if operation.scope is not None else [],
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schema[id(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if operation.id_of:
        found.append(_parameter("id", "path", operation.id_of, ID_PATTERN, required=True))
    if operation.scope is not None:
        about = "The connected account that this is about; without it, the merchant's own."
        found.append(_parameter(ACCOUNT_HEADER, "header", about, ACCOUNT_PATTERN))
    if operation.key:
        found.append(_parameter(KEY_HEADER, "header", "The caller's key, instead of the body's.", operation.key))
    return found


def _parameter(name: str, place: str, description: str, pattern: str, *, required: bool = False) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": place, "required": required, "description": description, "schema": schema}
