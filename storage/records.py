"""What is kept beside the rows as single files: decisions, bundles, trainings, takedowns, tokenizers, by sha256.

A record is written once and never changed; reading one checks it against its name.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard

from policies.decision import Decision
from policies.documents import Bundle
from policies.errors import RegisterError
from storage.data_files import write_once
from storage.errors import InvalidRecord, mapped

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Records:
    """The folders decisions/, bundles/, signatures/, trainings/, takedowns/ and tokenizers/ of the table at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save_decision(self, decision: Decision) -> str:
        """Keep a decision under its digest, which is returned; the first of several equal ones stays."""
        self._save_file("decisions", f"{decision.digest}.json", decision.to_json().encode())
        return decision.digest

    def decision(self, digest: str) -> Decision:
        """The decision of that digest. Raises InvalidRecord when it is not there or was altered."""
        try:
            return Decision.from_json(self._load_file("decisions", f"{_checked(digest)}.json"))
        except ValueError as error:
            raise InvalidRecord(f"The decision {digest[:12]} was altered since it was made: audit again.") from error

    def decisions(self) -> list[Decision]:
        """All decisions, oldest first."""
        found = [self.decision(digest) for digest in self.listed("decisions")]
        return sorted(found, key=lambda decision: decision.decided_at)

    def save_bundle(self, bundle: Bundle) -> str:
        """Keep the terms documents that decisions were made under, so that these can be made again; → their digest."""
        self._save_file("bundles", f"{bundle.digest}.json.zst", zstandard.compress(bundle.to_json(), 9))
        return bundle.digest

    def bundle(self, digest: str) -> Bundle:
        """The bundle of that digest. Raises InvalidRecord when it is not there or was altered."""
        try:
            return Bundle.from_json(self._unpacked("bundles", digest))
        except RegisterError as error:
            raise InvalidRecord(f"bundles/{digest[:12]} cannot be read by this version of potstill.") from error

    def save_signature(self, envelope: str) -> str:
        """Keep a signed decision (a DSSE envelope) under the digest of its text; → the path under the table."""
        data = envelope.encode()
        name = f"{hashlib.sha256(data).hexdigest()}.json"
        self._save_file("signatures", name, data)
        return f"signatures/{name}"

    def save_training(self, training: Mapping[str, Any]) -> str:
        """Keep the record of one training (any JSON object) under the digest of its content, which is returned."""
        content = {"saved_at": datetime.now(UTC).isoformat(), **training}
        data = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        digest = hashlib.sha256(data).hexdigest()
        self._save_file("trainings", f"{digest}.json", data)
        return digest

    def trainings(self) -> list[dict[str, Any]]:
        """All training records, oldest first."""
        found = [self.training(digest) for digest in self.listed("trainings")]
        return sorted(found, key=lambda training: str(training["saved_at"]))

    def training(self, digest: str) -> dict[str, Any]:
        """One training record. Raises InvalidRecord when it is not there or was altered."""
        return self._digested("trainings", digest)

    def save_takedown(self, takedown: Mapping[str, Any]) -> str:
        """Keep the record of what was taken down and why under the digest of its content, which is returned."""
        data = json.dumps(takedown, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        digest = hashlib.sha256(data).hexdigest()
        self._save_file("takedowns", f"{digest}.json", data)
        return digest

    def takedowns(self) -> list[dict[str, Any]]:
        """All records of takedowns, oldest first. Raises InvalidRecord when one was altered."""
        found = [self.takedown(digest) for digest in self.listed("takedowns")]
        return sorted(found, key=lambda takedown: str(takedown["at"]))

    def takedown(self, digest: str) -> dict[str, Any]:
        """One record of a takedown. Raises InvalidRecord when it is not there or was altered."""
        return self._digested("takedowns", digest)

    def save_doubt(self, doubt: Mapping[str, Any]) -> str:
        """Keep which rows are in doubt and why (see storage.doubts) under the digest of its content; → the digest."""
        data = json.dumps(doubt, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        digest = hashlib.sha256(data).hexdigest()
        self._save_file("doubts", f"{digest}.json", data)
        return digest

    def doubts(self) -> list[dict[str, Any]]:
        """All doubts, in the order of their beginning. Raises InvalidRecord when one was altered."""
        return sorted((self.doubt(digest) for digest in self.listed("doubts")), key=lambda doubt: str(doubt["since"]))

    def doubt(self, digest: str) -> dict[str, Any]:
        """One doubt. Raises InvalidRecord when it is not there or was altered."""
        return self._digested("doubts", digest)

    def save_tokenizer(self, data: bytes) -> str:
        """Keep a tokenizer file, so that the table needs nothing else to be trained on; → the sha256 of its bytes."""
        digest = hashlib.sha256(data).hexdigest()
        self._save_file("tokenizers", f"{digest}.json.zst", zstandard.compress(data, 9))
        return digest

    def tokenizer(self, digest: str) -> bytes:
        """The tokenizer file of that sha256. Raises InvalidRecord when it is not there or was altered."""
        return self._unpacked("tokenizers", digest)

    def _unpacked(self, folder: str, digest: str) -> bytes:
        packed = self._load_file(folder, f"{_checked(digest)}.json.zst")
        try:
            data = zstandard.decompress(packed)
        except zstandard.ZstdError as error:
            raise InvalidRecord(f"{folder}/{digest[:12]} cannot be decompressed: save it again.") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise InvalidRecord(f"{folder}/{digest[:12]} is not what its name says: save it again.")
        return data

    def _digested(self, folder: str, digest: str) -> dict[str, Any]:
        data = self._load_file(folder, f"{_checked(digest)}.json")
        if hashlib.sha256(data).hexdigest() != digest:
            raise InvalidRecord(f"The record {digest[:12]} in {folder}/ was altered: it proves nothing any more.")
        record: dict[str, Any] = json.loads(data)
        return record

    def _save_file(self, folder: str, name: str, data: bytes) -> None:
        with mapped(self._root):
            write_once(self._root / folder / name, data)

    def _load_file(self, folder: str, name: str) -> bytes:
        path = self._root / folder / name
        if not path.is_file():
            raise InvalidRecord(f"{path} is not there: it was never saved, or the table was copied only in part.")
        with mapped(path):
            return path.read_bytes()

    def listed(self, folder: str) -> list[str]:
        """Digests of all records of one kind: decisions, bundles, trainings, takedowns or tokenizers."""
        path = self._root / folder
        names = (file.name.split(".")[0] for file in path.iterdir()) if path.is_dir() else ()
        return sorted(name for name in names if _DIGEST.fullmatch(name))


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidRecord(f"{digest[:80]!r} is no digest: give 64 hexadecimal digits.")
    return digest
