"""The settings: one frozen object read once from the environment, with sentences for people when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.errors import SettingsInvalid

Mode = Literal["live", "test"]

LIVE_KEY_PREFIXES = ("sk_live_", "rk_live_", "sk_org_live_")


def _named(variable: str) -> AliasChoices:
    return AliasChoices(variable)


class Settings(BaseSettings):
    """What an operator may set; the README says what each is for."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore", populate_by_name=True)

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None

    stripe_api_key: SecretStr | None = None
    stripe_webhook_secret: SecretStr | None = None
    stripe_api_base: str = "https://api.stripe.com"

    refunds: Literal["review", "auto"] = Field(default="review", validation_alias=_named("FINALSALE_REFUNDS"))
    policy: Path | None = Field(default=None, validation_alias=_named("FINALSALE_POLICY"))
    test_clocks: bool = Field(default=False, validation_alias=_named("FINALSALE_TEST_CLOCKS"))
    alert_urls: SecretStr | None = Field(default=None, validation_alias=_named("FINALSALE_ALERT_URLS"))
    app_webhook_url: str | None = Field(default=None, validation_alias=_named("FINALSALE_APP_WEBHOOK_URL"))
    app_webhook_secret: SecretStr | None = Field(default=None, validation_alias=_named("FINALSALE_APP_WEBHOOK_SECRET"))
    api_tokens: SecretStr | None = Field(default=None, validation_alias=_named("FINALSALE_API_TOKENS"))

    metrics_token: SecretStr | None = Field(default=None, validation_alias=_named("FINALSALE_METRICS_TOKEN"))

    public_url: str | None = Field(default=None, validation_alias=_named("FINALSALE_PUBLIC_URL"))
    console: Literal["on", "off", "only"] = Field(default="on", validation_alias=_named("FINALSALE_CONSOLE"))
    console_url: str | None = Field(default=None, validation_alias=_named("FINALSALE_CONSOLE_URL"))
    alert_private_hosts: str | None = Field(default=None, validation_alias=_named("FINALSALE_ALERT_PRIVATE_HOSTS"))
    retention_days: int = Field(default=90, ge=30, le=3650, validation_alias=_named("FINALSALE_RETENTION_DAYS"))

    bind: str = Field(default="0.0.0.0", validation_alias=_named("FINALSALE_BIND"))  # noqa: S104 - a web server is meant to be reached
    port: int = Field(default=8080, ge=0, le=65535)
    intake_backlog_limit: int = Field(default=500_000, ge=1, validation_alias=_named("FINALSALE_INTAKE_BACKLOG_LIMIT"))
    signature_tolerance_s: int = Field(
        default=300, ge=1, le=86_400, validation_alias=_named("FINALSALE_SIGNATURE_TOLERANCE_S")
    )
    log: Literal["json", "console", "auto"] = Field(default="auto", validation_alias=_named("FINALSALE_LOG"))
    state_dir: Path = Field(default=Path(".finalsale"), validation_alias=_named("FINALSALE_STATE_DIR"))

    @property
    def mode(self) -> Mode:
        """`live` with a live Stripe key; `test` with any other key and without one."""
        key = self.stripe_api_key.get_secret_value() if self.stripe_api_key else ""
        return "live" if key.startswith(LIVE_KEY_PREFIXES) else "test"

    def realm(self, account: str | None) -> str:
        """The compartment a row belongs to: the mode, and the connected account if there is one. Nothing crosses it."""
        return realm_of(self.mode, account)

    def webhook_secrets(self) -> tuple[bytes, ...]:
        """Every signing secret in use, several while one is rolled.

        Raises SettingsInvalid when there is none: an endpoint without a secret would believe anybody.
        """
        listed = self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else ""
        secrets = tuple(secret.strip().encode() for secret in listed.split(",") if secret.strip())
        if not secrets:
            raise SettingsInvalid(
                "STRIPE_WEBHOOK_SECRET is not set: set it to the signing secret of the webhook endpoint (whsec_...), "
                "or to two of them separated by a comma while the secret is being rolled."
            )
        return secrets

    def database_dsn(self) -> str:
        """The Postgres URL, the embedded server's included. Raises SettingsInvalid when there is none."""
        if self.database_url is None:
            raise SettingsInvalid(
                "DATABASE_URL is not set: set it to a PostgreSQL URL, or use `finalsale run`, which embeds one."
            )
        return self.database_url.get_secret_value()

    def redis_dsn(self) -> str | None:
        """The Redis URL, or None: without a doorbell the sweeper still does all the work, somewhat later."""
        return self.redis_url.get_secret_value() if self.redis_url else None

    def with_servers(self, database_url: str, redis_url: str | None) -> Settings:
        """The same settings with the addresses of the servers that were started for us."""
        redis = SecretStr(redis_url) if redis_url else None
        return self.model_copy(update={"database_url": SecretStr(database_url), "redis_url": redis})


def realm_of(mode: Mode, account: str | None) -> str:
    """`live`, `test`, or either with `:acct_…` behind it."""
    return f"{mode}:{account}" if account else mode


def read_settings() -> Settings:
    """Read the environment once. Raises SettingsInvalid with one sentence for each variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsInvalid(" ".join(_sentence(problem) for problem in error.errors(include_input=False))) from None


def _sentence(problem: object) -> str:
    """One sentence for one pydantic problem. The value is left out: it may be a secret in the wrong variable."""
    assert isinstance(problem, dict)
    field = str(problem["loc"][0])
    reason = str(problem["msg"]).removeprefix("Input should be ").rstrip(".")
    return f"{field.upper()} is not valid: it should be {reason}."
