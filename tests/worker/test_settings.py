"""Settings: derived mode, secrets that never print, and one readable sentence for every mistake."""

import pytest
from pydantic import ValidationError

from worker.errors import SettingsInvalid
from worker.settings import Settings, read_settings

NAMES = ("DATABASE_URL", "REDIS_URL", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "FINALSALE_REFUNDS", "PORT")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("sk_live_x", "live"),
        ("rk_live_x", "live"),
        ("sk_org_live_x", "live"),
        ("sk_test_x", "test"),
        ("rk_test_x", "test"),
        ("live", "test"),
        (None, "test"),
    ],
)
def test_the_mode_follows_the_key_and_is_test_unless_the_key_is_live(key: str | None, mode: str) -> None:
    assert Settings(stripe_api_key=key).mode == mode


def test_a_realm_is_the_mode_with_the_connected_account_behind_it() -> None:
    settings = Settings(stripe_api_key="rk_live_x")
    assert (settings.realm(None), settings.realm("acct_1")) == ("live", "live:acct_1")


def test_several_secrets_are_separated_by_commas() -> None:
    assert Settings(stripe_webhook_secret=" whsec_a, whsec_b,,").webhook_secrets() == (b"whsec_a", b"whsec_b")


@pytest.mark.parametrize("value", [None, "", " ", ",", " , "])
def test_without_a_webhook_secret_the_sentence_says_what_to_set(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", value)
    with pytest.raises(SettingsInvalid, match="STRIPE_WEBHOOK_SECRET is not set"):
        read_settings().webhook_secrets()


@pytest.mark.parametrize("value", ["yes", "AUTO", "on", "automatic"])
def test_refunds_other_than_review_or_auto_are_refused_by_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINALSALE_REFUNDS", value)
    with pytest.raises(SettingsInvalid) as refused:
        read_settings()
    assert str(refused.value) == "FINALSALE_REFUNDS is not valid: it should be 'review' or 'auto'."


def test_every_wrong_variable_is_named_and_no_value_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINALSALE_REFUNDS", "whsec_secretinthewrongplace")
    monkeypatch.setenv("PORT", "99999")
    with pytest.raises(SettingsInvalid) as refused:
        read_settings()
    assert "FINALSALE_REFUNDS" in str(refused.value)
    assert "PORT" in str(refused.value)
    assert "whsec_" not in str(refused.value)


def test_secrets_never_print() -> None:
    settings = Settings(
        database_url="postgresql://u:canary1@h/d",
        redis_url="redis://:canary2@h",
        stripe_api_key="sk_test_canary3",
        stripe_webhook_secret="whsec_canary4",
        alert_urls="slack://canary5",
        app_webhook_secret="whsec_canary6",
        api_tokens="canary7",
    )
    shown = f"{settings!r} {settings!s} {settings.model_dump_json()}"
    assert "canary" not in shown


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_refunds_wait_for_a_person_unless_told_otherwise() -> None:
    assert Settings().refunds == "review"
