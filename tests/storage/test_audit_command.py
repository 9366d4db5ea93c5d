"""`potstill audit` beyond the verdict: waivers, signatures, SARIF, re-audits under other terms, students read back."""

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from policies.documents import load_bundle
from policies.errors import FactsError
from policies.settings import read_toml
from policies.statement import SignatureError, verify
from policies.use import Use
from policies.waivers import read_waivers
from storage.audit import audit
from storage.audit_cli import audit as command
from storage.errors import InvalidRecord, StudentUnfit
from storage.evidence import audit_student, subjects, table_digest, verify_decision
from storage.reaudit import reaudit
from storage.table import Table
from tests.policies.registers import forbid, reread
from tests.storage.make_rows import QWEN, make_rows
from tests.storage.test_audit import REFUSED

GEMMA = "gemma-tou@2025-03-24"
RESTRICTED = REFUSED.replace("Apache-2.0", "LicenseRef-acme")


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels")
    table.append(make_rows(0, 4), writer="w", sequence=0)
    return table


@pytest.fixture
def use(tmp_path):
    path = tmp_path / "use.toml"
    path.write_text(RESTRICTED)
    return path


@pytest.fixture
def register(tmp_path):
    """A folder with the register that ships, to be changed."""
    return shutil.copytree(str(resources.files("policies.register")), tmp_path / "register")


def run(*arguments, code=0):
    done = CliRunner().invoke(command, [str(a) for a in arguments])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def write_waiver(folder, **changes):
    facts = {"kind": "'external_permission'", "document": f"'{GEMMA}'", "rules": "['STUDENT_LICENCE_CONFLICT']"}
    facts |= {"document_digest": repr(load_bundle().get(GEMMA).digest), "valid_from": "2026-11-01"}
    facts |= {"valid_until": "2099-01-01"} | changes
    lines = [f"{name} = {value}" for name, value in facts.items()]
    lines += ["[permission]", "title = 'Letter'", f"sha256 = '{'ab' * 32}'", "granted_by = 'Google'"]
    path = folder / "waiver.toml"
    path.write_text("\n".join([*lines, "granted_on = 2026-10-20", ""]))
    return path


def test_a_waiver_lifts_a_refusal_and_is_kept_whole_with_the_decision(table, use, tmp_path):
    use.write_text(REFUSED)
    run(table.path, "--use", use, code=3)
    run(table.path, "--use", use, "--waiver", write_waiver(tmp_path))
    newest = table.decisions()[-1]
    (kept,) = newest.facts["waivers"]
    assert (newest.verdict, kept["permission"]["title"]) == ("conditional", "Letter")
    other = write_waiver(tmp_path, document_digest=repr("0" * 64))
    done = CliRunner().invoke(command, [str(table.path), "--use", str(use), "--waiver", str(other)])
    assert isinstance(done.exception, FactsError) and "document_digest" in str(done.exception)


def test_sarif_names_the_refusal(table, use, tmp_path):
    use.write_text(REFUSED)
    run(table.path, "--use", use, "--sarif", tmp_path / "found.sarif", code=3)
    (log,) = json.loads((tmp_path / "found.sarif").read_text())["runs"]
    assert log["properties"]["verdict"] == "deny"
    assert "error" in {result["level"] for result in log["results"]}


# -- signed ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def test_a_signed_decision_is_about_one_table_version_and_can_be_checked(table, use, keys, tmp_path):
    signed = tmp_path / "decision.dsse.json"
    done = run(table.path, "--use", use, "--sign", keys[0], "--out", signed)
    assert signed.read_text() == Path(done.stderr.partition("signed: ")[2].strip()).read_text()
    decision, about = verify(signed.read_text(), keys[1].read_bytes())
    assert about == {"labels@1": table_digest(Table.open(table.path, 1))}
    assert table.decision(decision.digest) == decision
    table.append(make_rows(4, 3), writer="w", sequence=1)
    assert "labels@1 is what was signed" in run(table.path, "--verify", signed, "--key", keys[1]).stdout
    shown = json.loads(run(table.path, "--verify", signed, "--key", keys[1], "--json").stdout)
    assert shown["digest"] == decision.digest
    assert table_digest(table) != about["labels@1"]


def test_a_signature_on_other_content_is_found_out(table, use, keys, tmp_path):
    signed = tmp_path / "decision.dsse.json"
    run(table.path, "--use", use, "--sign", keys[0], "--out", signed)
    forged = Table.create(tmp_path / "other" / "labels")
    forged.append(make_rows(0, 3), writer="w", sequence=0)
    with pytest.raises(InvalidRecord, match="not the content that was signed"):
        verify_decision(forged.path, signed.read_text(), keys[1].read_bytes())
    unlike = Table.create(tmp_path / "unlike")
    with pytest.raises(InvalidRecord, match="about labels@1, not about a version of"):
        verify_decision(unlike.path, signed.read_text(), keys[1].read_bytes())
    envelope = json.loads(signed.read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    with pytest.raises(SignatureError):
        verify_decision(table.path, json.dumps(envelope), keys[1].read_bytes())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--use USE.toml, or check a decision"),
        (("--verify", "x"), "--verify FILE and --key"),
        (("--verify", "x", "--key", "y"), "x is not there"),
        (("--use", "USE", "--verify", "x", "--key", "y"), "--use USE.toml, or check a decision"),
        (("--use", "USE", "--sign", "nowhere.pem"), "nowhere.pem is not there"),
        (("--use", "USE", "--student", "s", "--since", "ab"), "leave --bundle and --since out"),
    ],
)
def test_options_that_do_not_go_together_are_told(table, use, arguments, says):
    done = run(table.path, *(use if a == "USE" else a for a in arguments), code=2)
    assert says in " ".join(done.stderr.split())


# -- again ----------------------------------------------------------------------------------------------------------


def test_a_changed_verdict_has_one_cause_and_its_reason(table, use, register, tmp_path):
    first = json.loads(run(table.path, "--use", use, "--json").stdout)
    forbid(register, GEMMA)
    done = run(table.path, "--use", use, "--bundle", register, "--json", code=3)
    record = json.loads(done.stdout)
    assert record["since"] == first["digest"]
    assert [(c["before"], c["after"], c["cause"]) for c in record["changes"]] == [
        ("conditional", "deny", "rule corrected"),
        ("conditional", "deny", "rule corrected"),
    ]
    assert record["changes"][1]["teacher"] == "google/gemma-3-270m@gguf-q4_k_m"
    assert record["changes"][1]["because"] == f"{GEMMA}: The licensor took it back"
    text = " ".join(
        run(table.path, "--use", use, "--bundle", register, "--since", first["digest"][:9], code=3).stdout.split()
    )
    assert "Changed since decision" in text and "rule corrected" in text and "took it back" in text


def test_another_register_with_the_same_verdicts_changes_nothing(table, use, register):
    run(table.path, "--use", use)
    reread(register, GEMMA)
    assert "No verdict changed since decision" in run(table.path, "--use", use, "--bundle", register).stdout


def test_rows_facts_and_waivers_are_told_apart(table, use, tmp_path):
    """Each is the one thing that differs from the audit before."""
    first = audit(table.path, read_toml(use, Use))
    table.append(make_rows(4, 3, teacher=QWEN, terms=("unknown@2020",)), writer="w", sequence=1)
    found = reaudit(table.path, read_toml(use, Use), since=first.digest)
    assert {change.cause for change in found.changes} == {"rows"} and found.decision.verdict == "deny"
    use.write_text(REFUSED)
    found = reaudit(table.path, read_toml(use, Use), since=first.digest, version=1)
    assert {change.cause for change in found.changes} == {"fact changed"}
    refused = found.decision
    waivers = read_waivers([write_waiver(tmp_path)])
    found = reaudit(table.path, read_toml(use, Use), since=refused.digest, version=1, waivers=waivers)
    assert next((c.before, c.after, c.cause) for c in found.changes) == ("deny", "conditional", "waiver")
    back = reaudit(table.path, read_toml(use, Use), since=found.decision.digest, version=1)
    assert next((c.before, c.after, c.cause) for c in back.changes) == ("conditional", "deny", "waiver")


def test_the_earlier_bundle_is_kept_with_the_table(table, use, register, monkeypatch):
    """The register that an audit was made under is gone; what it said is not."""
    old = load_bundle()
    first = audit(table.path, read_toml(use, Use))
    forbid(register, GEMMA)
    monkeypatch.setattr("policies.documents.register_folder", lambda: register)
    found = reaudit(table.path, read_toml(use, Use))
    assert found.since == first and {change.cause for change in found.changes} == {"rule corrected"}
    assert table.bundle(old.digest).digest == old.digest
    (table.path / "bundles" / f"{old.digest}.json.zst").unlink()
    with pytest.raises(InvalidRecord, match="is not kept with the table"):
        reaudit(table.path, read_toml(use, Use), since=first.digest)
    with pytest.raises(InvalidRecord, match="no decision begins with 'ffff'"):
        reaudit(table.path, read_toml(use, Use), since="ffff")


# -- a finished student -----------------------------------------------------------------------------------------------


def student_of(table, use, folder, **changes):
    from policies.discharge import texts

    decision = audit(table.path, read_toml(use, Use), version=1)
    folder.mkdir()
    record = {"table_version": 1, "decision": decision.digest} | changes
    (folder / "training.json").write_text(json.dumps(record))
    (folder / "model.safetensors").write_bytes(b"weights")
    for name, text in texts(decision).items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text("# acme\n")
    return folder


def test_a_finished_folder_is_read_again_and_what_is_open_is_said(table, use, tmp_path):
    student = student_of(table, use, tmp_path / "student")
    table.append(make_rows(4, 3, teacher=QWEN, terms=("unknown@2020",)), writer="w", sequence=1)  # after the training
    done = run(table.path, "--use", use, "--student", student, code=5)
    text = " ".join(done.stdout.split())
    assert "Not found in the student's folder: Give a copy of the licence" in text and "NEEDS REVIEW" in text
    assert "✓ Mark what was modified" in text
    (student / "LICENSES").mkdir()
    (student / "LICENSES" / "gemma-tou.txt").write_text("Gemma Terms of Use " * 20)
    (student / "LICENSE").write_text("You follow the Gemma Prohibited Use Policy. " * 10)
    record = json.loads(run(table.path, "--use", use, "--student", student, "--json").stdout)
    open_ = {o["type"] for o in record["obligations"] if o["due"] and not o["discharged"]}
    assert "license_copy" not in open_ and record["verdict"] == "conditional"
    assert table.decision(record["digest"]).obligations


def test_a_reading_of_a_folder_is_no_audit_to_compare_with(table, use, tmp_path):
    student = student_of(table, use, tmp_path / "student")
    plain = audit(table.path, read_toml(use, Use))
    run(table.path, "--use", use, "--student", student, code=5)
    found = reaudit(table.path, read_toml(use, Use)).since
    assert found is not None and found.digest == plain.digest


def test_a_student_of_a_refused_use_stays_refused(table, use, tmp_path):
    student = student_of(table, use, tmp_path / "student")
    use.write_text(REFUSED)
    run(table.path, "--use", use, "--student", student, code=3)


@pytest.mark.parametrize(
    ("changes", "version", "says"),
    [
        ({"decision": "0" * 64}, None, "was trained on another table"),
        ({}, 0, "was trained on version 1, not on 0"),
        ({"table_version": None}, None, "is no training record"),
    ],
)
def test_a_student_that_does_not_belong_here_is_refused(table, use, tmp_path, changes, version, says):
    student = student_of(table, use, tmp_path / "student", **changes)
    with pytest.raises(StudentUnfit, match=says):
        audit_student(table.path, read_toml(use, Use), student, version=version)
    with pytest.raises(StudentUnfit, match="is no folder"):
        audit_student(table.path, read_toml(use, Use), tmp_path / "nowhere")


def test_a_signature_covers_the_students_weights(table, use, keys, tmp_path):
    student = student_of(table, use, tmp_path / "student")
    signed = tmp_path / "signed.json"
    run(table.path, "--use", use, "--student", student, "--sign", keys[0], "--out", signed, code=5)
    _, about = verify(signed.read_text(), keys[1].read_bytes())
    assert about == subjects(Table.open(table.path, 1), student) and set(about) == {
        "labels@1",
        "student/model.safetensors",
    }
