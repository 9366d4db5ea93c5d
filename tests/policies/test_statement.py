"""Decisions as signed in-toto statements and as SARIF."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from policies.codes import CODES
from policies.sarif import LEVELS, sarif
from policies.statement import SignatureError, sign, statement, verify
from tests.policies.test_evaluate import decide, material, use

SUBJECTS = {"data/soft_labels@12": "cd" * 32}
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DECISION = decide(material("google/gemma-3-27b-it"), use())


def pem(key: Ed25519PrivateKey, how: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how or NoEncryption())


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_statement_is_about_the_table_version() -> None:
    found = statement(DECISION, {"b": "0" * 64, "a": "1" * 64})
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["subject"] == [
        {"name": "a", "digest": {"sha256": "1" * 64}},
        {"name": "b", "digest": {"sha256": "0" * 64}},
    ]
    assert found["predicate"]["digest"] == DECISION.digest


def test_a_signed_decision_is_verified() -> None:
    envelope = sign(DECISION, SUBJECTS, pem(KEY))
    assert verify(envelope, public(KEY)) == (DECISION, SUBJECTS)
    assert json.loads(envelope)["payloadType"] == "application/vnd.in-toto+json"


def test_the_signature_is_over_the_dsse_encoding() -> None:
    found = json.loads(sign(DECISION, SUBJECTS, pem(KEY)))
    payload = base64.b64decode(found["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    KEY.public_key().verify(base64.b64decode(found["signatures"][0]["sig"]), signed)


def test_a_changed_envelope_is_refused() -> None:
    found = json.loads(sign(DECISION, SUBJECTS, pem(KEY)))
    payload = base64.b64decode(found["payload"]).replace(b'"verdict":"deny"', b'"verdict":"allow"')
    changed = json.dumps({**found, "payload": base64.b64encode(payload).decode()})
    with pytest.raises(SignatureError, match="was changed after it was signed"):
        verify(changed, public(KEY))


def test_another_key_another_type_and_other_text_are_refused() -> None:
    envelope = sign(DECISION, SUBJECTS, pem(KEY))
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(SignatureError, match="was not signed by this key"):
        verify(envelope, public(other))
    with pytest.raises(SignatureError, match="holds 'text/plain'"):
        verify(json.dumps({**json.loads(envelope), "payloadType": "text/plain"}), public(KEY))
    for text in ("", "{}", "[]", '{"payload": "?", "signatures": []}'):
        with pytest.raises(SignatureError, match="is not DSSE"):
            verify(text, public(KEY))


def test_a_signed_statement_of_another_kind_is_refused() -> None:
    for content, says in ((b"{}", "cannot be read"), (b'{"_type":"x","predicateType":"y"}', "is of 'y'")):
        signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(content), content)
        envelope = json.loads(sign(DECISION, SUBJECTS, pem(KEY)))
        envelope["payload"] = base64.b64encode(content).decode()
        envelope["signatures"][0]["sig"] = base64.b64encode(KEY.sign(signed)).decode()
        with pytest.raises(SignatureError, match=says):
            verify(json.dumps(envelope), public(KEY))


def test_keys_of_other_kinds_are_refused() -> None:
    rsa = generate_private_key(65537, 2048)
    rsa_pem = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for key in (b"", b"no key", public(KEY), rsa_pem, pem(KEY, BestAvailableEncryption(b"secret"))):
        with pytest.raises(SignatureError, match="no unencrypted ed25519 private key") as caught:
            sign(DECISION, SUBJECTS, key)
        assert caught.value.exit_code == 2
    for key in (b"", pem(KEY)):
        with pytest.raises(SignatureError, match="no ed25519 public key"):
            verify("{}", key)


def test_sarif_has_a_result_for_each_reason() -> None:
    groups = [material("google/gemma-3-27b-it"), material("meta-llama/Llama-3.3-70B"), material("THUDM/glm-4-9b-chat")]
    decision = decide(groups, use(name="Llama"))
    log = sarif(decision)
    assert log["version"] == "2.1.0"
    run = log["runs"][0]
    assert len(run["results"]) == len(decision.reasons)
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result, reason in zip(run["results"], decision.reasons, strict=True):
        assert result["ruleId"] == reason.code == ids[result["ruleIndex"]]
        assert result["level"] == LEVELS[reason.verdict]
        assert (result["kind"] == "pass") is (reason.verdict == "allow")
        assert reason.gist in result["message"]["text"]
        assert ("locations" in result) is (reason.teacher is not None)
    assert {rule["shortDescription"]["text"] for rule in run["tool"]["driver"]["rules"]} <= {
        m for m, _ in CODES.values()
    }
    assert run["properties"]["decision"] == decision.digest
    json.dumps(log)
