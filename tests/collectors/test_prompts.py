import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.config import PromptSettings
from collectors.errors import PromptError
from collectors.prompts import check_prompts, read_prompts
from collectors.run import collect
from storage.errors import QueryRefused
from storage.rows import Message
from tests.collectors.runs import run_config
from tests.collectors.servers import TeacherServer


def settings(path: Path, **fields: object) -> PromptSettings:
    return PromptSettings.model_validate({"path": path, **fields})


def lines(path: Path, *texts: str | bytes) -> Path:
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts) + b"\n")
    return path


def test_text_messages_and_token_ids_are_read_with_their_place(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl",
        '{"id": "a", "prompt": "Hello 日本", "domain": "chat", "reference": "Hi", "other": 1}',
        "",
        '{"messages": [{"role": "user", "content": "Hi"}], "licence": "MIT"}',
        '{"id": 7, "prompt_token_ids": [2, 5], "completion": " x"}',
    )
    a, b, c = read_prompts(settings(path, licence="CC0-1.0"))
    assert (a.id, a.prompt, a.domain, a.reference, a.source) == ("a", "Hello 日本", "chat", "Hi", "p.jsonl:1")
    assert (b.id, b.licence) == ("p.jsonl:3", "MIT")
    assert b.messages == (Message(role="user", content="Hi"),)
    assert (c.id, c.prompt_token_ids, c.completion, c.licence) == ("7", (2, 5), " x", "CC0-1.0")
    summary = check_prompts(settings(path, licence="CC0-1.0"))
    assert summary.prompts == 3
    assert summary.licences == ("CC0-1.0", "MIT")


def test_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [prompt.prompt for prompt in read_prompts(settings(path))] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a"', "truncated|end"),
        ('{"prompt": 5}', "prompt"),
        ('{"text": "a"}', "exactly one"),
        ('{"prompt": "a", "messages": []}', "exactly one"),
        ('{"messages": []}', "empty"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('["a"]', "object"),
        (b'{"prompt": "\xff"}', "UTF-8|utf-8|decode"),
        ('{"prompt_token_ids": ["a"]}', "int"),
        ('{"prompt_token_ids": [5, -1]}', "no token id"),
        ('{"prompt_token_ids": [2147483648]}', "no token id"),
    ],
)
def test_a_broken_line_is_named_with_its_place_and_nothing_starts(tmp_path: Path, line: str | bytes, said: str) -> None:
    path = lines(tmp_path / "p.jsonl", '{"prompt": "fine"}', line)
    with pytest.raises(PromptError, match=said) as caught:
        check_prompts(settings(path))
    assert "p.jsonl:2" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_many_broken_lines_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", *["{"] * 50)
    with pytest.raises(PromptError, match=r"50 lines are not a prompt.*p\.jsonl:1 .*and 47 more"):
        check_prompts(settings(path))


def test_no_file_no_prompts_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="does not exist"):
        check_prompts(settings(tmp_path / "none.jsonl"))
    with pytest.raises(PromptError, match="no prompts"):
        check_prompts(settings(lines(tmp_path / "p.jsonl", "")))


def test_templates_are_filled_by_the_fields_of_the_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", '{"text": "Hund", "to": "English"}', '{"text": "Katze", "to": null}')
    read = [p.prompt for p in read_prompts(settings(path, template="Translate {text} to {to}{{}}"))]
    assert read == ["Translate Hund to English{}", "Translate Katze to {}"]
    with pytest.raises(PromptError, match=r"p\.jsonl:1.*'word'"):
        check_prompts(settings(path, template="{word}"))


def test_a_system_message_or_as_chat_makes_messages(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", '{"prompt": "Hi"}', '{"messages": [{"role": "user", "content": "Ho"}]}')
    system = Message(role="system", content="Be brief.")
    first, second = read_prompts(settings(path, system="Be brief."))
    assert first.messages == (system, Message(role="user", content="Hi"))
    assert second.messages == (system, Message(role="user", content="Ho"))
    first, _ = read_prompts(settings(path, as_chat=True))
    assert first.prompt is None
    assert first.messages == (Message(role="user", content="Hi"),)


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": range(3000), "prompt": [f"Prompt {n}" for n in range(3000)]}), path)
    read = list(read_prompts(settings(path)))
    assert len(read) == 3000
    assert (read[2999].id, read[2999].source) == ("2999", "p.parquet:3000")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(PromptError, match="Parquet"):
        check_prompts(settings(tmp_path / "broken.parquet"))


def test_sql_selects_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"n": range(3000), "text": [f"Prompt {n}" for n in range(3000)]}), path)
    query = "SELECT n AS id, text || '!' AS prompt FROM prompts WHERE n >= 10 ORDER BY n"
    read = list(read_prompts(settings(path, sql=query)))
    assert (len(read), read[0].prompt, read[0].id, read[0].source) == (2990, "Prompt 10!", "10", "p.parquet#1")
    assert len(list(read_prompts(settings(tmp_path, template="{text}")))) == 3000  # a folder of Parquet
    with pytest.raises(PromptError, match=r"prompts\.sql"):
        check_prompts(settings(path, sql="SELECT nothing FROM prompts"))
    with pytest.raises(QueryRefused):
        check_prompts(settings(path, sql="SELECT * FROM read_csv('/etc/passwd')"))
    with pytest.raises(ValueError, match="lines"):
        settings(tmp_path / "p.jsonl", sql="SELECT 1")


def test_another_soft_label_table_gives_its_prompts(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=5, samples=2)
        collect(config)
    read = list(read_prompts(settings(config.table)))
    assert [(p.id, p.prompt, p.licence) for p in read][:2] == [
        ("p0", "Prompt 0", "CC0-1.0"),
        ("p1", "Prompt 1", "CC0-1.0"),
    ]
    query = "SELECT prompt_id AS id, completion AS prompt FROM soft_labels WHERE sample_index = 1"
    assert len(list(read_prompts(settings(config.table, sql=query)))) == 5


def test_a_million_characters_do_not_matter_and_a_generator_holds_one_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", json.dumps({"prompt": "x" * 1_000_000}), '{"prompt": "y"}')
    prompts = read_prompts(settings(path))
    assert len(next(prompts).prompt or "") == 1_000_000
