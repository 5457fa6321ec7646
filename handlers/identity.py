"""Who bought, and was it the same purchase: persons, scopes, orders and the metadata that tells them apart (4.3, D3, D4, D6)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum

import msgspec

from handlers.customer import CheckoutSession, Customer, CustomerFile, CustomerId, Metadata, Subscription
from handlers.terms import DuplicateTerms


class Sameness(Enum):
    """How far two things are one. A DOUBT goes to a person; DIFFERENT ends the comparison."""

    SAME = "same"
    DOUBT = "doubt"
    DIFFERENT = "different"


class Finding(msgspec.Struct, frozen=True):
    """A sameness, and in words what it rests on."""

    sameness: Sameness
    why: str = ""


NOBODY = frozenset(["", "0", "-", "null", "nil", "none", "undefined", "nan", "false", "guest", "anonymous", "unknown"])
"""What apps write where they have no id. Two guests called `undefined` are not one person."""


class Person(msgspec.Struct, frozen=True):
    """Under which metadata key the app names whoever owns a subscription (reading 17)."""

    ids: Metadata
    disagree: bool = False
    """Its sources name different persons."""

    def __str__(self) -> str:
        return ", ".join(map(shown, self.ids.values())) or "not named"


def person_of(
    owner: Customer | None, sessions: Iterable[CheckoutSession], metadata: Metadata, terms: DuplicateTerms
) -> Person:
    """The person: subscription metadata, then the Checkout session's, then `client_reference_id`, then the customer's.

    A `client_reference_id` stands for the first of the policy's person keys; ids under different keys are not compared.
    """
    sources = [named(metadata, terms.person)]
    for session in sessions:
        sources.append(named(session.metadata, terms.person))
        if terms.person and session.client_reference_id:
            sources.append(named({terms.person[0]: session.client_reference_id}, terms.person))
    sources.append(named(owner.metadata, terms.person) if owner else {})
    ids: Metadata = {}
    for source in reversed(sources):
        ids.update(source)
    return Person(ids=ids, disagree=any(ids[key] != source[key] for source in sources for key in source))


def shown(id_: str) -> str:
    """An app's id of a person or an order as evidence names it: decisions stay for ever, so an e-mail address is shortened.

    What is left tells equal addresses from others, and is too short to find one by.
    """
    if "@" not in id_:
        return id_
    return f"[e-mail {hashlib.sha256(id_.encode(errors='surrogatepass')).hexdigest()[:4]}]"


def named(metadata: Metadata, keys: Iterable[str]) -> Metadata:
    """The ids of persons in some metadata, without what only looks like one."""
    return {key: metadata[key] for key in keys if metadata.get(key, "").strip().lower() not in NOBODY}


def compare_persons(a: Person, b: Person) -> Finding:
    """SAME or DIFFERENT by the ids that both have; DOUBT where their sources disagree or only one is named."""
    shared = a.ids.keys() & b.ids.keys()
    equal = [key for key in sorted(shared) if a.ids[key] == b.ids[key]]
    if a.disagree or b.disagree:
        return Finding(Sameness.DOUBT, "the sources of the person's id disagree")
    if shared and not equal:
        return Finding(Sameness.DIFFERENT, "they were bought for different persons")
    if equal:
        if len(equal) < len(shared):
            return Finding(Sameness.DOUBT, "one person id is equal and another differs")
        return Finding(Sameness.SAME, f"the person's id ({equal[0]}) is equal")
    return Finding(
        Sameness.DOUBT, "only one of the two names the person" if a.ids or b.ids else "neither names a person"
    )


def purchase_metadata(subscription: Subscription, sessions: Iterable[CheckoutSession]) -> Metadata:
    """A subscription's own metadata, with its Checkout session's where it is silent itself."""
    merged: Metadata = {}
    for session in sessions:
        merged.update(session.metadata)
    return {**merged, **subscription.metadata}


def compare_metadata(a: Metadata, b: Metadata, terms: DuplicateTerms) -> Finding:
    """Reading 16: equal, or different only in volatile keys: SAME. Scope differs: DIFFERENT. Order or unknown key: DOUBT."""
    doubt = ""
    for key in sorted(a.keys() | b.keys()):
        ours, theirs = a.get(key) or None, b.get(key) or None
        if ours == theirs or key in terms.volatile or key in terms.person:
            continue
        if key in terms.scope:
            return Finding(Sameness.DIFFERENT, f"the metadata key {key!r} differs: bought on purpose for another scope")
        kind = "order key" if key in terms.order else "key"
        doubt = doubt or f"the metadata {kind} {key!r} differs"
    return Finding(Sameness.DOUBT, doubt) if doubt else Finding(Sameness.SAME)


def compare_orders(a: Metadata, b: Metadata, terms: DuplicateTerms) -> Finding:
    """D6: SAME when an order key is equal on both and none differs; DIFFERENT when one differs; DOUBT without an id on both."""
    keys = [key for key in terms.order if a.get(key) or b.get(key)]
    if differing := [key for key in keys if a.get(key) and b.get(key) and a[key] != b[key]]:
        return Finding(Sameness.DIFFERENT, f"{differing[0]!r} differs: another purchase")
    equal = [key for key in keys if a.get(key) == b.get(key)]
    if equal and len(equal) == len(keys):
        return Finding(Sameness.SAME, f"{equal[0]!r} is equal")
    if equal:
        one_sided = next(key for key in keys if key not in equal)
        return Finding(Sameness.DOUBT, f"{equal[0]!r} is equal, but {one_sided!r} stands on one of them only")
    return Finding(Sameness.DOUBT, "no order id on both")


class Traces:
    """What else may suggest that two customers are one person (D4, for review only): equal e-mails, equal cards."""

    def __init__(self, file: CustomerFile) -> None:
        self.emails: dict[str, set[str]] = defaultdict(set)
        self.cards: dict[str, set[str]] = defaultdict(set)
        for owner in file.customers.values():
            if owner.email_hash:
                self.emails[owner.id].add(owner.email_hash)
        for charge in file.charges.values():
            if charge.customer and charge.email_hash:
                self.emails[charge.customer].add(charge.email_hash)
            if charge.customer and charge.card_fingerprint:
                self.cards[charge.customer].add(charge.card_fingerprint)

    def between(self, a: CustomerId, b: CustomerId) -> str | None:
        """What is equal: the e-mail, the card, or nothing."""
        if self.emails.get(a, set()) & self.emails.get(b, set()):
            return "e-mail"
        return "card" if self.cards.get(a, set()) & self.cards.get(b, set()) else None


def link_keys(fact: object, person_keys: frozenset[str]) -> list[str]:
    """Keys under which a fact may tie its customer to another: whose files must be read and locked together."""
    keys = []
    metadata: Metadata = getattr(fact, "metadata", None) or {}
    if isinstance(fact, (Customer, Subscription)) or hasattr(fact, "client_reference_id"):
        keys += [f"person:{id_}"[:200] for id_ in named(metadata, sorted(person_keys)).values()]
    reference = getattr(fact, "client_reference_id", None) or ""
    if reference.strip().lower() not in NOBODY:
        keys.append(f"person:{reference}"[:200])
    if email := getattr(fact, "email_hash", None):
        keys.append(f"email:{email}")
    if card := getattr(fact, "card_fingerprint", None):
        keys.append(f"card:{card}")
    return keys
