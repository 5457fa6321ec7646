"""The signature check: believes exactly who knows a secret, and never raises whatever is sent."""

import hmac

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.stripe_sender import mac
from worker.signature import MAX_HEADER_BYTES, Reason, Refused, VerifiedBy, verify

NOW = 1_764_000_000
SECRETS = (b"whsec_old", b"whsec_new")
BODY = b'{"id": "evt_1"}'
GOOD = mac(BODY, NOW, "whsec_old")


def check(
    header: str | bytes, body: bytes = BODY, now_s: float = NOW, secrets: tuple[bytes, ...] = SECRETS
) -> VerifiedBy | Refused:
    return verify(header.encode() if isinstance(header, str) else header, body, secrets, now_s, 300)


@pytest.mark.parametrize(("place", "secret"), [(0, "whsec_old"), (1, "whsec_new")])
def test_any_of_several_secrets_may_have_signed_and_the_one_is_told(place: int, secret: str) -> None:
    assert check(f"t={NOW},v1={mac(BODY, NOW, secret)}") == VerifiedBy(place)


def test_one_matching_candidate_among_others_is_enough() -> None:
    assert check(f"t={NOW},v1={'0' * 64},v1={GOOD},v0={'1' * 64}") == VerifiedBy(0)


@pytest.mark.parametrize("offset", [-300, -299, 0, 299, 300])
def test_a_time_within_the_tolerance_is_believed_both_ways(offset: int) -> None:
    assert check(f"t={NOW},v1={GOOD}", now_s=NOW + offset) == VerifiedBy(0)


@pytest.mark.parametrize("offset", [-10 * 365 * 86_400, -301, 301, 86_400])
def test_a_time_outside_the_tolerance_is_refused_both_ways(offset: int) -> None:
    assert check(f"t={NOW},v1={GOOD}", now_s=NOW + offset) == Refused(Reason.TIME)


CRAFTED = {
    "nothing": b"",
    "no time": f"v1={GOOD}".encode(),
    "no candidate": f"t={NOW}".encode(),
    "only the fake scheme": f"t={NOW},v0={GOOD}".encode(),
    "two times": f"t={NOW},t={NOW},v1={GOOD}".encode(),
    "a second, later time": f"t={NOW},v1={GOOD},t={NOW + 999}".encode(),
    "space after the comma": f"t={NOW}, v1={GOOD}".encode(),
    "upper-case hex": f"t={NOW},v1={GOOD.upper()}".encode(),
    "candidate cut short": f"t={NOW},v1={GOOD[:63]}".encode(),
    "candidate too long": f"t={NOW},v1={GOOD}0".encode(),
    "non-ASCII candidate": f"t={NOW},v1=é{GOOD[2:]}".encode(),
    "lone surrogate in the candidate": f"t={NOW},v1=\ud800{GOOD[1:]}".encode("utf-8", "surrogatepass"),
    "bytes that are no text": b"t=%d,v1=\xff\xfe" % NOW,
    "NUL": f"t={NOW},v1={GOOD}\0".encode(),
    "negative time": f"t=-{NOW},v1={GOOD}".encode(),
    "time with a sign": f"t=+{NOW},v1={GOOD}".encode(),
    "time with spaces": f"t= {NOW},v1={GOOD}".encode(),
    "time with an underscore": f"t=1_764_000_000,v1={GOOD}".encode(),
    "time in other digits": "t=١٧٦٤٠٠٠٠٠٠,v1={GOOD}".encode(),
    "time that is no number": f"t=now,v1={GOOD}".encode(),
    "empty time": f"t=,v1={GOOD}".encode(),
    "time of thirteen digits": f"t=1764000000000,v1={GOOD}".encode(),
    "time of a thousand digits": b"t=" + b"9" * 1000 + f",v1={GOOD}".encode(),
    "eleven candidates": f"t={NOW}".encode() + f",v1={GOOD}".encode() * 11,
    "longer than the limit": f"t={NOW},v1={GOOD},".encode() + b"x" * MAX_HEADER_BYTES,
    "no equals sign": f"t{NOW}v1{GOOD}".encode(),
    "another separator": f"t={NOW};v1={GOOD}".encode(),
}


@pytest.mark.parametrize("header", CRAFTED.values(), ids=CRAFTED.keys())
def test_a_crafted_header_is_refused(header: bytes) -> None:
    assert isinstance(check(header), Refused)


def test_a_body_that_is_not_text_is_only_bytes() -> None:
    body = b"\xff\xfe\x00"
    assert check(f"t={NOW},v1={mac(body, NOW, 'whsec_old')}", body) == VerifiedBy(0)
    assert check(f"t={NOW},v1={GOOD}", body) == Refused(Reason.MISMATCH)


def test_without_any_secret_nobody_is_believed() -> None:
    assert check(f"t={NOW},v1={mac(BODY, NOW, '')}", secrets=()) == Refused(Reason.MISMATCH)


def test_a_wrong_signature_hears_nothing_about_its_time() -> None:
    assert check(f"t=1,v1={'0' * 64}") == Refused(Reason.MISMATCH)


def test_every_candidate_is_compared_with_every_secret_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def spy(expected: bytes, candidate: bytes) -> bool:
        compared.append(candidate)
        return original(expected, candidate)

    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert check(f"t={NOW},v1={GOOD},v1={'0' * 64},v1={'1' * 64}") == VerifiedBy(0)
    assert len(compared) == 3 * len(SECRETS)


PIECES = st.sampled_from(
    [b"t=", b"v1=", b"v0=", b",", b"=", str(NOW).encode(), GOOD.encode(), b" ", b"\0", b"\xff", b"9" * 13]
)


@given(
    header=st.binary(max_size=200) | st.lists(PIECES, max_size=12).map(b"".join),
    body=st.binary(max_size=50),
    now_s=st.floats(),
)
@example(header=f"t={NOW},v1={GOOD}".encode(), body=BODY, now_s=float("nan"))
@example(header=f"t={NOW},v1={GOOD}".encode(), body=BODY, now_s=NOW)
def test_whatever_is_sent_nothing_raises_and_only_a_valid_mac_is_believed(
    header: bytes, body: bytes, now_s: float
) -> None:
    verdict = verify(header, body, SECRETS, now_s, 300)
    if isinstance(verdict, VerifiedBy):
        signed_at = next(part for part in header.split(b",") if part.startswith(b"t="))[2:]
        assert b"v1=" + mac(body, signed_at.decode(), SECRETS[verdict.place].decode()).encode() in header.split(b",")
        assert abs(now_s - int(signed_at)) <= 300
