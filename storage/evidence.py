"""What a decision can be held to: the digest of the table version that it judged, its signature, a student's folder.

The signature binds decision and content: the Statement's subjects are the table version and, where one is named, the
student's weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from policies.decision import Decision, digest_of
from policies.discharge import read_back
from policies.documents import Bundle
from policies.statement import sign, verify
from policies.use import Use
from policies.waivers import Waiver
from storage.audit import audit
from storage.errors import InvalidRecord, StudentUnfit, mapped
from storage.table import Table

TRAINING_RECORD = "training.json"
"""What `potstill train` leaves in a student's folder: which table version it read, under which decision."""
LONGEST_TEXT = 1_000_000


def table_digest(table: Table) -> str:
    """sha256 of what a table version holds: the checksums of its data files, by audit group."""
    return digest_of(sorted([file.audit_group, file.sha256, file.rows] for file in table.files()))


def subjects(table: Table, student: Path | None = None) -> dict[str, str]:
    """What a decision is about, by name and sha256: the table version, and the weights of a student."""
    found = {f"{table.path.name}@{table.version}": table_digest(table)}
    for file in sorted(student.glob("*.safetensors")) if student is not None else ():
        with mapped(file), file.open("rb") as source:
            found[f"{file.parent.absolute().name}/{file.name}"] = hashlib.file_digest(source, "sha256").hexdigest()
    return found


def sign_decision(table: Table, decision: Decision, key: bytes, student: Path | None = None) -> tuple[str, Path]:
    """The decision as a signed in-toto Statement over the table version, also kept with the table; → it and its path.

    `key` is an ed25519 private key in PEM. Raises SignatureError.
    """
    envelope = sign(decision, subjects(table, student), key)
    return envelope, table.path / table.save_signature(envelope)


def verify_decision(path: Path | str, envelope: str, key: bytes) -> tuple[Decision, str]:
    """The decision of a signed Statement and the table version that it is about, proved against the table's files.

    `key` is the signer's public key in PEM. Raises SignatureError for the signature, InvalidRecord when the table
    version is not what was signed or is not there, and what opening the table raises.
    """
    decision, signed = verify(envelope, key)
    newest = Table.open(path)
    for name, digest in signed.items():
        table_name, _, version = name.rpartition("@")
        if table_name != newest.path.name or not version.isdigit():
            continue
        if table_digest(Table.open(path, int(version))) != digest:
            raise InvalidRecord(f"{newest.path} at version {version} is not the content that was signed.")
        return decision, name
    raise InvalidRecord(f"The statement is about {', '.join(sorted(signed))}, not about a version of {newest.path}.")


def audit_student(
    path: Path | str,
    use: Use,
    student: Path,
    *,
    version: int | None = None,
    bundle: Bundle | None = None,
    today: date | None = None,
    waivers: Sequence[Waiver] = (),
) -> Decision:
    """Audit the table version that a student was trained on, then read the student's folder back: what is still owed?

    Duties that the folder shows as done are marked discharged; what is due and not there makes the verdict review.
    The decision is saved. Raises StudentUnfit for a folder that is none, or of a student of another table.
    """
    version = version_of(path, version, student)
    judged = audit(path, use, version=version, bundle=bundle, today=today, waivers=waivers)
    decision = read_back(judged, folder_texts(student))
    Table.open(path).save_decision(decision)
    return decision


def version_of(path: Path | str, asked: int | None, student: Path | None = None) -> int:
    """The version to judge: the one asked for, the one that the student was trained on, or the newest.

    Raises StudentUnfit for a folder that is no student's, or of a student of another table or version.
    """
    table = Table.open(path, asked)
    if student is None:
        return table.version
    if not student.is_dir():
        raise StudentUnfit(f"{student} is no folder: name the one that `potstill train` wrote the student into.")
    record = student / TRAINING_RECORD
    return _trained_on(table, record, asked) if record.is_file() else table.version


def _trained_on(table: Table, file: Path, asked: int | None) -> int:
    with mapped(file):
        text = file.read_text("utf-8")
    try:
        record = json.loads(text)
        version, decision = int(record["table_version"]), str(record["decision"])
    except (ValueError, KeyError, TypeError) as error:
        raise StudentUnfit(f"{file} is no training record ({type(error).__name__}): train again.") from error
    if decision not in table.listed("decisions"):
        raise StudentUnfit(f"{file.parent} was trained on another table: {table.path} does not keep its decision.")
    if asked is not None and asked != version:
        raise StudentUnfit(f"{file.parent} was trained on version {version}, not on {asked}: leave --version out.")
    return version


def folder_texts(student: Path) -> dict[str, str]:
    """The texts of a student's folder that duties are looked for in, by their path in it."""
    found = {}
    for file in sorted([*student.glob("*"), *student.glob("LICENSES/*")]):
        name = file.relative_to(student).as_posix()
        texts = name.startswith(("LICENSE", "NOTICE")) or name == "README.md"
        if texts and file.is_file() and file.stat().st_size <= LONGEST_TEXT:
            with mapped(file):
                found[name] = file.read_text("utf-8", errors="replace")
    return found
