"""A decision as an in-toto Statement about what it judged, and its ed25519 signature in a DSSE envelope.

Both are open formats that supply-chain tools read; the predicate type is ours, its content the decision record.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from policies.decision import Decision, canonical
from policies.errors import PolicyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:potstill:policy-decision:1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class SignatureError(PolicyError):
    """A key cannot be used, or a signed decision is not what its signature says."""

    exit_code = 2


def statement(decision: Decision, subjects: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto Statement (https://github.com/in-toto/attestation, v1) of a decision.

    `subjects` are what was judged, by name and sha256: a table version, a student's weights.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": PREDICATE_TYPE,
        "predicate": json.loads(decision.to_json()),
    }


def sign(decision: Decision, subjects: Mapping[str, str], key: bytes) -> str:
    """The DSSE envelope (https://github.com/secure-systems-lab/dsse, v1) of the statement, as JSON text.

    `key` is an unencrypted ed25519 private key in PEM; raises SignatureError when it is anything else.
    """
    private = _private_key(key)
    payload = canonical(statement(decision, subjects))
    signature = private.sign(_to_be_signed(payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id(private.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, indent=2) + "\n"


def verify(envelope: str, key: bytes) -> tuple[Decision, dict[str, str]]:
    """The decision and the subjects of a signed envelope; `key` is the signer's ed25519 public key in PEM.

    Raises SignatureError when the envelope is malformed, was signed by another key, or was changed.
    """
    from cryptography.exceptions import InvalidSignature

    public = _public_key(key)
    try:
        found = json.loads(envelope)
        payload = base64.b64decode(found["payload"], validate=True)
        signatures = [base64.b64decode(s["sig"], validate=True) for s in found["signatures"] if _is_ours(s, public)]
        payload_type = found["payloadType"]
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise SignatureError("the envelope is not DSSE: it needs payload, payloadType and signatures") from None
    if payload_type != PAYLOAD_TYPE:
        raise SignatureError(f"the envelope holds {payload_type!r}, not {PAYLOAD_TYPE}")
    if not signatures:
        raise SignatureError("the envelope was not signed by this key")
    try:
        public.verify(signatures[0], _to_be_signed(payload))
    except InvalidSignature:
        raise SignatureError("the signature does not fit: the envelope was changed after it was signed") from None
    return _read(payload)


def key_id(public: Ed25519PublicKey) -> str:
    """sha256 of the raw public key, in hex."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def _is_ours(signature: Any, public: Ed25519PublicKey) -> bool:
    return bool(signature["keyid"] == key_id(public))


def _read(payload: bytes) -> tuple[Decision, dict[str, str]]:
    try:
        found = json.loads(payload)
        if (found["_type"], found["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise SignatureError(f"the statement is of {found['predicateType']!r}, not of a policy decision")
        subjects = {subject["name"]: subject["digest"]["sha256"] for subject in found["subject"]}
        return Decision.from_json(json.dumps(found["predicate"])), subjects
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"the signed statement cannot be read ({error})") from None


def _to_be_signed(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which keeps the type inside what is signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _private_key(pem: bytes) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            "the key is no unencrypted ed25519 private key in PEM; `openssl genpkey -algorithm ed25519` makes one"
        )
    return key


def _public_key(pem: bytes) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError("the key is no ed25519 public key in PEM; `openssl pkey -in KEY -pubout` writes one")
    return key
