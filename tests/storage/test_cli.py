import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from storage import cli
from storage.errors import QueryRefused, TableNotFound
from storage.table import Table
from tests.storage.make_rows import make_row, make_rows


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels")
    table.append(make_rows(0, 3), writer="w", sequence=0)
    table.append([make_row(3, completion="\x1b[31mred")], writer="w", sequence=1)
    return table


def run(command, *arguments, code=0, **options):
    done = CliRunner().invoke(command, [str(a) for a in arguments], **options)
    assert done.exit_code == code, done.output
    return done


def test_sql_prints_a_table_without_control_codes(table):
    done = run(cli.sql, table.path, "SELECT prompt_id, completion FROM soft_labels ORDER BY 1")
    assert "p000003" in done.stdout and "[31mred" in done.stdout and "\x1b" not in done.stdout
    done = run(cli.sql, table.path, "SELECT key FROM soft_labels", "--limit", 1)
    assert "3 more lines" in done.stderr
    done = run(cli.sql, table.path, "-", input="SELECT 40 + 2 AS x")
    assert "42" in done.stdout


def test_sql_in_other_forms(table, tmp_path):
    query = "SELECT prompt_id, len(token_ids) AS n FROM soft_labels ORDER BY 1"
    assert json.loads(run(cli.sql, table.path, query, "--format", "json").stdout)[2] == {"prompt_id": "p000002", "n": 8}
    assert run(cli.sql, table.path, query, "--format", "csv").stdout.splitlines()[:2] == ["prompt_id,n", "p000000,8"]
    assert run(cli.sql, table.path, query, "--format", "csv", "--version", 1).stdout.count("\n") == 4
    run(cli.sql, table.path, query, "--format", "parquet", "--out", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 4
    run(cli.sql, table.path, query, "--format", "json", "--out", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text())) == 4
    assert "--out FILE" in run(cli.sql, table.path, query, "--format", "parquet", code=2).stderr


def test_errors_of_the_room_come_out_as_they_are(table, tmp_path):
    done = CliRunner().invoke(cli.sql, [str(table.path), "DROP TABLE x"])
    assert isinstance(done.exception, QueryRefused)
    done = CliRunner().invoke(cli.sql, [str(tmp_path / "nowhere"), "SELECT 1"])
    assert isinstance(done.exception, TableNotFound)


def test_status_for_people_and_machines(table):
    done = run(cli.status, table.path)
    assert "4 (4 with labels) of 4 prompts" in done.stdout and "google/gemma-3-270m@gguf-q4_k_m: 4 rows" in done.stdout
    record = json.loads(run(cli.status, table.path, "--json").stdout)
    assert (record["rows"], record["tokens"], record["version"]) == (4, 32, 2)


def test_verify_names_what_is_damaged(table):
    assert "2 files, 4 rows, no problem" in run(cli.verify, table.path).stdout
    (table.files()[0].path.parent / ".x.partial").write_bytes(b"x")
    assert ".x.partial: left behind" in run(cli.verify, table.path).stderr
    assert ".x.partial" in run(cli.verify, table.path, "--repair").stderr
    file = table.files()[0].path
    file.write_bytes(file.read_bytes()[:-1])
    done = run(cli.verify, table.path, code=1)
    assert f"{file.name}: its content has another checksum" in done.stdout and "1 problems" in done.stdout
    record = json.loads(run(cli.verify, table.path, "--json", code=1).stdout)
    assert record["problems"][0]["path"].endswith(file.name)


def test_compact_and_purge(table):
    assert "2 files became 1, 4 rows, version 3." in run(cli.compact, table.path).stdout
    assert "2 files of earlier versions deleted" in run(cli.compact, table.path, "--purge").stdout


def test_takedown_says_what_it_reaches_first(table):
    arguments = (table.path, "--where", "prompt_id = 'p000001'")
    assert (
        "1 rows, 0 rejects, 0 journal entries, 0 archived responses would go"
        in run(cli.takedown, *arguments, "--dry-run").stdout
    )
    assert "--reason" in run(cli.takedown, *arguments, code=2).stderr
    done = run(cli.takedown, *arguments, "--reason", "asked to")
    assert "are gone" in done.stdout and "--purge" in done.stdout
    assert json.loads(run(cli.takedown, *arguments, "--dry-run", "--json").stdout)["rows"] == 0


def test_export_and_import(table, tmp_path):
    from tests.storage.test_foreign import capture

    use = tmp_path / "use.toml"
    use.write_text('action = "internal_use"')
    done = run(cli.export, table.path, "--to", "jsonl", "--out", tmp_path / "out", "--use", use)
    assert "4 rows of version 2 written" in done.stdout
    assert (tmp_path / "out" / "data.jsonl").read_text().count("\n") == 4
    source = capture(tmp_path / "capture")
    options = ("--teacher", "google/gemma-3-270m@gguf-q4_k_m", "--terms", "gemma-tou@2025-03-24")
    done = run(cli.import_, source, tmp_path / "new", *options, code=4)
    assert "2 rows imported, 0 were there already" in done.stdout and "1 sequences" in done.stderr
    assert "--terms" in run(cli.import_, source, tmp_path / "new", *options[:2], code=2).stderr
