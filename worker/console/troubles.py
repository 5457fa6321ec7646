"""What a page says when it cannot be shown or a change cannot be made: a status, a heading and a sentence."""

from __future__ import annotations

from typing import NamedTuple

import asyncpg

from worker.console.requests import NotFromHere, TooLarge
from worker.errors import DatabaseUnavailable, FinalsaleError, OutcomeUnknown, SettingsInvalid, StripeRefused, Transient
from worker.reading import NotFound, NotUnderstood


class Forbidden(Exception):
    """Whoever is signed in may not do this, or the form is not of this session; the message says what is missing."""


class Trouble(NamedTuple):
    """A page that says no."""

    status: int
    heading: str
    sentence: str


_AWAY = "The database does not answer at this moment: wait a little and try again."
_UNFORESEEN = "This failed in a way nobody expected. The log of the web process says where."


def trouble_of(error: Exception, *, changes: bool) -> Trouble:
    """The page for a failure; one that nobody foresaw says nothing of its inside, and none claims what it cannot know."""
    trouble = _of(error)
    if changes and trouble.status >= 500:  # an answer can be lost after the commit
        return trouble._replace(sentence=f"{trouble.sentence} Look whether it was done before you repeat it.")
    return trouble


def _of(error: Exception) -> Trouble:
    match error:
        case NotFromHere():
            return Trouble(403, "Refused", "This change did not come from a page of the console, so it was not made.")
        case Forbidden():
            return Trouble(403, "Not allowed", str(error))
        case TooLarge():
            return Trouble(413, "Too long", str(error))
        case NotFound():
            return Trouble(404, "Not found", str(error))
        case NotUnderstood():
            return Trouble(400, "Not understood", str(error))
        case DatabaseUnavailable() | asyncpg.UndefinedTableError() | asyncpg.UndefinedColumnError():
            return Trouble(503, "Not available now", _AWAY)
        case asyncpg.SerializationError() | asyncpg.DeadlockDetectedError():
            return Trouble(
                409, "Changed meanwhile", "Somebody else changed the same thing. Nothing was done: look again."
            )
        case OutcomeUnknown():
            return Trouble(502, "No answer from Stripe", "Stripe was asked, and no answer came: it may have happened.")
        case StripeRefused() | SettingsInvalid():
            return Trouble(409, "Not done", str(error))
        case Transient():
            return Trouble(503, "Not available now", str(error))
        case FinalsaleError():
            return Trouble(409, "Not done", str(error))
        case _:
            return Trouble(500, "Something is broken", _UNFORESEEN)
