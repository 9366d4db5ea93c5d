from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.checked_files import CheckedFiles, _CheckedPages
from storage.errors import TableDamaged
from storage.page_header import page_header


@pytest.fixture(params=[True, False], ids=["bounds", "no bounds"])
def path(tmp_path, request):
    path = tmp_path / "a.parquet"
    numbers = pa.table({"n": pa.array(range(50_000)), "s": [f"word {n % 7}" for n in range(50_000)]})
    options = {"row_group_size": 20_000, "data_page_size": 8192, "write_page_checksum": True}
    pq.write_table(numbers, path, write_statistics=request.param, **options)
    return path


def pages(path):
    """Start, page start, end and checksum of every page, found through the footer."""
    data, metadata, found = path.read_bytes(), pq.read_metadata(path), []
    for column in (metadata.row_group(g).column(c) for g in range(3) for c in range(2)):
        at = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        end = at + column.total_compressed_size
        while at < end:
            page, page_end, checksum = page_header(data, at)
            found.append((at, page, page_end, checksum))
            at = page_end
        assert at == end
    return found


def test_headers_lead_from_page_to_page(path):
    found = pages(path)
    assert len(found) > 20 and all(checksum is not None for *_, checksum in found)
    start, page, *_ = found[0]
    data = path.read_bytes()
    assert all(page_header(data[start : start + n]) is None for n in range(page - start))
    assert page_header(b"PAR1 no header") is None and page_header(b"") is None


def test_only_its_files_are_there_and_only_to_read(path):
    files = CheckedFiles([path])
    [name] = files.names
    assert files.exists(name) and files.glob(name) == [name] and files.info(name)["size"] == path.stat().st_size
    assert not files.exists(str(path)) and files.glob("potstill://*") == []
    for asked in ((name, "wb"), (name, "r+b"), (str(path), "rb"), ("potstill://1.parquet", "rb")):
        with pytest.raises(PermissionError, match="only reads its table"):
            files.open(*asked)
    with pytest.raises(TableDamaged, match="is missing"):
        CheckedFiles([path.with_name("b.parquet")])


@pytest.mark.parametrize("size", [1, 1000, 30_000, 10**7])
def test_a_read_that_meets_a_changed_page_is_refused_wherever_it_starts(path, size):
    whole, found = path.read_bytes(), pages(path)
    start, page, end, _ = found[len(found) // 2]
    for byte in (page, (page + end) // 2, end - 1):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        for first in (start, page + 1, max(byte - size + 1, 0)):
            files = CheckedFiles([path])
            with files.open(files.names[0]) as file, pytest.raises(TableDamaged, match="checksum"):
                file.seek(first)
                file.read(size)
            assert files.damage is not None and str(path) in files.damage
    path.write_bytes(whole)
    files = CheckedFiles([path])
    with files.open(files.names[0]) as file:
        for first in (end, start, 0, page + 1, found[-1][0]):
            file.seek(first)
            assert file.read(size) == whole[first : first + size]
        assert file.tell() == min(found[-1][0] + size, len(whole))


def test_a_file_cut_short_is_refused(path):
    whole = path.read_bytes()
    for length in (0, 5, 11, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        files = CheckedFiles([path])
        with pytest.raises(TableDamaged, match="does not end as a Parquet file does"):
            files.open(files.names[0])


def test_no_descriptor_is_left_open(path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = CheckedFiles([path])
    for _ in range(20):
        with files.open(files.names[0]) as file:
            file.read(100)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_share_a_file_each_with_its_own_position(path):
    files, whole = CheckedFiles([path]), path.read_bytes()
    with files.open(files.names[0]) as file, ThreadPoolExecutor(1) as other:
        file.seek(100)
        other.submit(file.seek, 500).result()
        assert file.read(50) == whole[100:150] and other.submit(file.read, 50).result() == whole[500:550]


def test_stretches_are_joined():
    pages = _CheckedPages()
    for start, end in ((10, 20), (30, 40), (50, 60), (20, 25), (40, 50)):
        assert pages.add(start, end) == end
    assert [pages.end_of(n) for n in (9, 10, 24, 25, 30, 59, 60)] == [None, 25, 25, None, 60, 60, None]
    assert (pages.next(0), pages.next(10), pages.next(30)) == (10, 30, 2**63)
    pages.add(5, 70)
    assert [pages.end_of(n) for n in (5, 27, 69, 70)] == [70, 70, 70, None]
