import json

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from policies.use import Organisation, Use
from storage import cli
from storage.errors import NeedsReview, NotWritable, Refused
from storage.export import export
from storage.rows import TeacherRecord, rows_from_arrow
from storage.selection import Selection
from storage.table import Table
from storage.takedown import takedown
from tests.storage.make_rows import make_row, make_rows
from tests.storage.test_rows import same

LLAMA = TeacherRecord(model="meta-llama/Llama-3.3-70B-Instruct", provider="vllm", access_path="self_host")
INTERNAL = Use(action="internal_use")


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels", mantissa_bits=23)
    tokenizer = table.save_tokenizer(b'{"model": {"vocab": {}}}')
    table.append(make_rows(0, 4), writer="w", sequence=0)
    table.append([make_row(4, labels=None, tokenizer_sha256=tokenizer)], writer="w", sequence=1)
    return table


def test_the_hugging_face_layout(table, tmp_path):
    done = export(table.path, tmp_path / "out", use=INTERNAL)
    assert (done.rows, done.version) == (5, 2)
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [f.name for f in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    rows = [row for f in files for row in rows_from_arrow(pq.read_table(f))]
    assert sorted(row.key for row in rows) == sorted(make_row(n).key for n in range(5))
    assert same(next(r for r in rows if r.prompt_id == "p000002"), make_row(2))
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license_name"] == "gemma-tou@2025-03-24" and card["size_categories"] == ["n<1K"]
    assert card["teachers"] == ["google/gemma-3-270m"]
    assert "5 teacher sequences" in body and "top_k_logprobs" in body
    decision = table.decision(done.decision)
    assert json.loads((tmp_path / "out" / "decision.json").read_text())["digest"] == decision.digest
    assert all(duty.document in body for duty in decision.obligations) and decision.obligations
    assert len(list((tmp_path / "out" / "tokenizers").iterdir())) == 1


def test_json_lines(table, tmp_path):
    export(table.path, tmp_path / "out", to="jsonl", use=INTERNAL, version=1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert [line["prompt_id"] for line in lines] == [f"p{n:06}" for n in range(4)]
    assert lines[0]["top_ids"] == make_row(0).labels.top_ids.ravel().tolist()


def test_an_export_is_a_publication_unless_said_otherwise(table, tmp_path):
    table.append(make_rows(10, 1, terms=("no-such-terms@2020-01-01",)), writer="w", sequence=2)
    with pytest.raises((Refused, NeedsReview), match="publish_dataset"):
        export(table.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gate_at_export(table, tmp_path):
    """Named for the gate without which it fails: nothing leaves the table that the policies refuse or cannot judge."""
    table.append(make_rows(10, 1, terms=("no-such-terms@2020-01-01",)), writer="w", sequence=2)
    with pytest.raises(Refused) as refused:
        export(table.path, tmp_path / "out", use=INTERNAL)
    assert refused.value.exit_code == 3 and not (tmp_path / "out").exists()
    export(table.path, tmp_path / "out", use=INTERNAL, version=2)
    table.append(make_rows(20, 1, prompt_licence=None), writer="w", sequence=3)
    takedown(table.path, Selection(terms="no-such-terms@2020-01-01"), reason="unknown")
    with pytest.raises(NeedsReview) as review:
        export(table.path, tmp_path / "again", use=INTERNAL)
    assert review.value.exit_code == 5 and not (tmp_path / "again").exists()


@pytest.mark.parametrize("layout", ["hf", "jsonl"])
def test_what_publishing_owes_lies_beside_the_data(tmp_path, layout):
    table = Table.create(tmp_path / "llama")
    rows = make_rows(0, 2, teacher=LLAMA, terms=("llama-3.3@2024-12-06",))
    table.append(rows, writer="w", sequence=0)
    with pytest.raises(NeedsReview, match=r"give organisation\.monthly_active_users in use\.toml"):
        export(table.path, tmp_path / "out", to=layout)
    use = Use(action="publish_dataset", organisation=Organisation(commercial=True, monthly_active_users=5))
    done = export(table.path, tmp_path / "out", to=layout, use=use)
    assert done.owed == ()  # nothing but what holds at all times
    obligations = (tmp_path / "out" / "LICENSE-OBLIGATIONS.md").read_text()
    due = [duty for duty in table.decision(done.decision).obligations if duty.due]
    assert due and all(duty.text in obligations for duty in due)
    assert "# What is owed for this data set" in obligations
    assert "This data set holds outputs of meta-llama/Llama-3.3" in (tmp_path / "out" / "NOTICE").read_text()
    if layout == "hf":
        text = (tmp_path / "out" / "README.md").read_text()
        front = yaml.safe_load(text.split("---\n", 2)[1])
        assert front["ai_generated"] is True and "AI-generated: keep that label" in text
        assert all(line in text for line in front["attributions"])


def test_what_is_owed_is_told_and_the_card_names_the_prompts_licences(tmp_path):
    deepseek = TeacherRecord(model="deepseek-chat", provider="openai", access_path="deepseek-platform")
    table = Table.create(tmp_path / "labels")
    terms = ("deepseek-platform@2026-04-29",)
    table.append(make_rows(0, 2, teacher=deepseek, terms=terms, prompt_licence="CC-BY-SA-4.0"), writer="w", sequence=0)
    done = CliRunner().invoke(cli.export, [str(table.path), "--to", "hf", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if line.startswith("owed: ")] == [
        "owed: Label published outputs as AI-generated (deepseek-platform@2026-04-29)",
        "owed: Verify published outputs (deepseek-platform@2026-04-29)",
        "owed: Name the prompts' authors and their licence, CC-BY-SA-4.0 (prompts: CC-BY-SA-4.0)",
        "owed: Publish the data set under CC-BY-SA-4.0 (prompts: CC-BY-SA-4.0)",
    ]
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n", 2)[1])
    assert front["prompt_licences"] == ["CC-BY-SA-4.0"] and front["attributions"] == []
    assert (tmp_path / "out" / front["license_link"]).is_file()


def test_nothing_is_written_over(table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with pytest.raises(NotWritable, match="is there already"):
        export(table.path, tmp_path / "out", use=INTERNAL)


def test_a_card_cannot_be_broken_by_a_name(table, tmp_path):
    from dataclasses import replace

    nasty = replace(make_row(0).teacher, model="google/gemma-3-270m", revision='x"\n---\n| <b>')
    table.append([make_row(50, teacher=nasty)], writer="w", sequence=2)
    export(table.path, tmp_path / "out", use=INTERNAL)
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count("\n---\n") == 1 and 'x"---\\| <b>' in text
