import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.bookmark import Bookmark, Mark, TeacherTokens, found_again
from collectors.plan import Plan
from collectors.prompts import read_prompts
from collectors.run import collect
from storage.table import Table
from tests.collectors.runs import run_config, write_prompts
from tests.collectors.servers import TeacherServer

TOKENS = TeacherTokens("a" * 64, None)


def test_the_place_is_behind_all_that_is_committed_and_before_all_that_is_not(tmp_path: Path) -> None:
    config = run_config(tmp_path, prompts=2000, samples=2)
    path = config.prompts.path
    bookmark = Bookmark(path, TOKENS)
    items = list(Plan(config, TOKENS, (), bookmark).items(read_prompts(config.prompts)))
    assert bookmark.mark == Mark()
    bookmark.committed(item.key for item in items[1:])
    assert bookmark.mark == Mark()
    bookmark.committed([items[0].key])
    assert bookmark.mark == Mark(path.stat().st_size, 2000, 2000)
    count, text = bookmark.text()
    assert count == 2000
    assert found_again(path, TOKENS, text) == bookmark.mark
    assert found_again(path, TeacherTokens("b" * 64, None), text) is None
    write_prompts(tmp_path, 2100)
    mark = found_again(path, TOKENS, text)
    assert mark is not None
    left = list(read_prompts(config.prompts, mark))
    assert [prompt.source for prompt in left[:1]] == ["prompts.jsonl:2001"]
    assert len(left) == 100
    path.write_text(path.read_text().replace('Prompt 7"', 'Prompt x"'))
    assert found_again(path, TOKENS, text) is None
    path.write_text("")
    assert found_again(path, TOKENS, text) is None


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 59)))
def test_reading_from_the_place_finds_all_that_is_missing(done: set[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        config = run_config(Path(name), prompts=60)
        bookmark = Bookmark(config.prompts.path, TOKENS)
        items = list(Plan(config, TOKENS, (), bookmark).items(read_prompts(config.prompts)))
        bookmark.committed(items[n].key for n in done)
        left = {prompt.id for prompt in read_prompts(config.prompts, bookmark.mark)}
    assert {f"p{n}" for n in range(60) if n not in done} <= left
    assert bookmark.mark.prompts == min((n for n in range(60) if n not in done), default=60)


def test_a_resumed_run_reads_from_its_place_and_from_the_beginning_when_rows_are_gone(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=30)
        collect(config)
        (record,) = Table.open(config.table).runs()
        assert record.prompts_done == 30
        with config.prompts.path.open("a") as file:
            file.write(json.dumps({"id": "new", "prompt": "Prompt new"}) + "\n")
        report = collect(config)
        assert (report.committed, report.planned) == (1, 31)
        assert collect(config).outcome == "nothing to do"
        (record,) = Table.open(config.table).runs()
        assert (record.prompts_done, record.outcome) == (31, "nothing to do")


def test_a_limit_keeps_the_place_before_what_is_left(tmp_path: Path) -> None:
    with TeacherServer() as server:
        config = run_config(tmp_path, server.url, prompts=30)
        collect(config, limit=12)
        (record,) = Table.open(config.table).runs()
        assert record.prompts_done <= 12
        assert collect(config).committed == 18
