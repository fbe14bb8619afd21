"""How options are checked, shown and turned into a login."""

from __future__ import annotations

import pytest

from agentmesh.errors import ConfigError
from agentmesh.transport import TransportOptions


@pytest.mark.parametrize(
    "url", ["", [], "http://x", "nats://", "nats://host:port", "nats://host:0", "nats://host:99999"]
)
def test_what_is_not_a_broker_url_is_refused(url: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="url"):
        TransportOptions(url=url)


def test_a_url_needs_no_scheme() -> None:
    assert TransportOptions(url="localhost:4222").servers == ["nats://localhost:4222"]


@pytest.mark.parametrize("secret", ["nats://bob:sekret@h:1", "nats://sekret@h:1", "bob:sekret@h:1"])
def test_credentials_in_a_url_are_used_and_never_shown(secret: str) -> None:
    options = TransportOptions(url=[secret, "nats://other:2"])

    assert "sekret" in options.credentials().values()
    assert options.shown == "nats://h:1, nats://other:2"
    assert "sekret" not in repr(options) + str(options)


def test_each_user_has_reply_subjects_of_its_own() -> None:
    assert TransportOptions(name="my agent!").reply_prefix == "_INBOX_my-agent-"
    assert TransportOptions(user="a_worker").reply_prefix == "_INBOX_a_worker"
    assert TransportOptions(url="nats://bob:x@h").reply_prefix == "_INBOX_bob"
    assert TransportOptions(user="a", inbox_prefix="_INBOX").reply_prefix == "_INBOX"


def test_missing_certificates_are_named() -> None:
    with pytest.raises(ConfigError, match="certificates"):
        TransportOptions(tls_ca="/nowhere/ca.pem").tls()


def test_tls_is_handshake_first_or_not_at_all() -> None:
    assert TransportOptions().tls() == {}
    assert TransportOptions(url="tls://127.0.0.1").tls()["tls_handshake_first"] is True
