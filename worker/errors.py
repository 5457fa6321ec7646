"""The one tree of failures: what may be tried again, and what needs a person.

    FinalsaleError
    ├── Transient                the world is not ready; the same step may be tried again
    │   ├── DatabaseUnavailable  Postgres cannot be reached, refuses connections or does not answer in time
    │   ├── StripeUnavailable    Stripe cannot be reached, limits our rate or fails; nothing was changed there
    │   └── OutcomeUnknown       a change was sent to Stripe and no answer came: ask before sending it again
    └── Permanent                trying again changes nothing; a person has to act
        ├── SettingsInvalid      an environment variable is missing or wrong; the sentence says which and what to set
        ├── PolicyInvalid        the policy file cannot be carried out as written
        ├── StripeRefused        Stripe understood and said no (`code`, `status`)
        └── EmbeddedServerFailed the embedded PostgreSQL or Valkey did not start

"Already true" (refunded, cancelled, stored before) is success and has no class here. Messages are written by us, name ids and
variables, and never quote a payload, an e-mail address or a secret, so that they may be logged and stored.
"""

from __future__ import annotations

from typing import ClassVar


class FinalsaleError(Exception):
    """Root of everything we raise on purpose. `error_code` is stable and safe for logs and metrics."""

    error_code: ClassVar[str] = "error"


class Transient(FinalsaleError):
    """May be tried again. `retry_after_s` is what the other side asked for, if it asked."""

    error_code = "transient"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DatabaseUnavailable(Transient):
    """Postgres cannot be reached, refuses connections or does not answer in time."""

    error_code = "database_unavailable"


class StripeUnavailable(Transient):
    """Stripe cannot be reached, limits our rate (429) or fails (5xx) on a step that changed nothing."""

    error_code = "stripe_unavailable"


class OutcomeUnknown(Transient):
    """A change was sent to Stripe and its answer was lost: it may have happened.

    `replayed`: the failure itself was a stored answer, which this idempotency key will give for ever.
    """

    error_code = "outcome_unknown"
    replayed: bool = False


class Permanent(FinalsaleError):
    """Trying again changes nothing; a person has to act."""

    error_code = "permanent"


class SettingsInvalid(Permanent):
    """An environment variable is missing or wrong; the message is one sentence that says what to set."""

    error_code = "settings_invalid"


class PolicyInvalid(Permanent):
    """The policy file cannot be carried out as written."""

    error_code = "policy_invalid"


class StripeRefused(Permanent):
    """Stripe understood the request and said no: https://docs.stripe.com/api/errors."""

    error_code = "stripe_refused"

    def __init__(self, message: str, *, code: str | None, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class EmbeddedServerFailed(Permanent):
    """The embedded PostgreSQL or Valkey did not start; the message says where its log is."""

    error_code = "embedded_server_failed"
