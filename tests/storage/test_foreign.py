import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.distillkit_coding import BUDGET, RECOMMENDED, encode, pack, with_k
from policies.identity import Teacher
from storage.codec import labels_from_arrow, log_tail
from storage.distillkit import Coding, decode
from storage.errors import ForeignDataError, Refused
from storage.importing import Provenance, import_labels
from storage.table import Table
from storage.verify import verify
from tests.storage.make_rows import sample

GEMMA = Provenance(
    teacher=Teacher(model="google/gemma-3-270m", revision="gguf-q4_k_m"),
    terms=("gemma-tou@2025-03-24",),
    prompt_licence="CC0-1.0",
)
CONFIG = """
d: 262144
delta_encoding: false
error_diffusion: false
exact_dtype: bfloat16
exact_k: 16
k: 64
polynomial_terms: [0, 1, 2, 3, 4, sqrt]
residual_bins: []
term_dtype: float32
"""


def test_exact_values_and_ids_come_back_and_the_rest_is_close():
    data = sample()
    for setting, worst in ((RECOMMENDED, 0.06), (BUDGET, 1.0)):
        coding = with_k(setting, 50)
        logprobs, ids = data["logprobs"][:, :50], data["ids"][:, :50]
        back, ids_back = decode(*encode(logprobs, ids, coding), coding)
        assert (ids_back == ids).all()
        assert np.allclose(back[:, : coding.exact_k], logprobs[:, : coding.exact_k], rtol=2**-8)
        assert np.abs(back - logprobs).mean() < worst


def test_residuals_and_deltas_are_read():
    """Against a coding written out by hand: one exact value, a line, one bin of 4-bit residuals, as deltas."""
    coding = Coding(300, 4, 1, "float32", (0, 1), "float32", (("float16", 4, 2),), True, False)
    exact, line, scale = np.float32([-1.0]), np.float32([-0.5, -0.25]), np.float16([0.125])
    packed = np.concatenate(
        [exact.view(np.uint8), line.view(np.uint8), scale.view(np.uint8), pack(np.array([[9, 6]]), 4)[0]]
    )
    logprobs, ids = decode(packed[None], pack(np.array([[299, 0, 1, 256]]), 9), coding)
    # deltas: −0.5 + 0.125·(9−8), −0.75 + 0.125·(6−8), −1.0
    assert logprobs[0].tolist() == [-1.0, -1.375, -2.375, -3.375]
    assert ids[0].tolist() == [299, 0, 1, 256]


def capture(folder, *, shift=0, sequences=2):
    """A DistillKit capture of real labels: position i holds the distribution of token i + 1 (+ shift)."""
    data, coding, lines = sample(), with_k(RECOMMENDED, 64), []
    for n in range(sequences):
        part = slice(64 * n, 64 * n + 64)
        rows = slice(64 * n + shift, 64 * n + shift + 63)
        packed, ids = encode(data["logprobs"][rows], data["ids"][rows], coding)
        lines.append(
            {
                "input_ids": data["input_ids"][part].tolist(),
                "compressed_logprobs": packed.tolist(),
                "bytepacked_indices": ids.tolist(),
            }
        )
    lines.append({"input_ids": [1, 2, 3], "compressed_logprobs": [[0] * 56], "bytepacked_indices": [[0] * 144]})
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(CONFIG)
    pq.write_table(pa.Table.from_pylist(lines), folder / "data.parquet")
    return folder


def test_a_distillkit_capture_becomes_rows(tmp_path):
    done = import_labels(capture(tmp_path / "capture"), tmp_path / "labels", GEMMA)
    assert (done.rows, done.duplicates, done.rejects) == (2, 0, 1)
    table = Table.open(tmp_path / "labels")
    [file] = table.files()
    rows = pq.read_table(file.path, partitioning=None).sort_by("prompt_id")
    labels, data = labels_from_arrow(rows)[0], sample()
    assert rows["prompt_token_ids"][0].as_py() == data["input_ids"][:1].tolist()
    assert (labels.token_ids == data["input_ids"][1:64]).all()
    assert (labels.top_ids[:, :8] == data["ids"][:63, :8]).mean() > 0.99
    assert np.allclose(np.exp(labels.log_tail), np.exp(log_tail(data["logprobs"][:63].astype(float))), atol=0.02)
    assert table.rejects.read()["detail"].to_pylist() == ["1 positions for 3 tokens"]
    assert verify(tmp_path / "labels").problems == ()
    again = import_labels(tmp_path / "capture", tmp_path / "labels", GEMMA)
    assert (again.rows, again.duplicates) == (0, 2) and len(table.rejects.read()) == 1


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shifted_capture_is_refused(tmp_path, shift):
    with pytest.raises(ForeignDataError, match="do not fit their own tokens best"):
        import_labels(capture(tmp_path / "capture", shift=shift), tmp_path / "labels", GEMMA)
    assert not (tmp_path / "labels").exists()


def axolotl(path, **changes):
    """A prepared Axolotl set: the target_* at position j describe token j + 1; prompt positions are masked."""
    data = sample()
    line = {
        "input_ids": data["input_ids"][:40].tolist(),
        "target_token_ids": [*data["ids"][:39, :8].tolist(), [0] * 8],
        "target_logprobs": [*data["logprobs"][:39, :8].tolist(), [0.0] * 8],
        "target_mask": [[int(j >= 9)] * 8 for j in range(39)] + [[0] * 8],
    }
    path.write_text("\n".join(json.dumps(x) for x in [line, line | changes]) + "\n")
    return path


def test_a_prepared_axolotl_set_becomes_rows(tmp_path):
    mask = [[int(j % 2)] * 8 for j in range(40)]
    done = import_labels(axolotl(tmp_path / "set.jsonl", target_mask=mask), tmp_path / "labels", GEMMA)
    assert (done.rows, done.rejects) == (1, 1)
    rows = pq.read_table(Table.open(tmp_path / "labels").files()[0].path, partitioning=None)
    [labels], data = labels_from_arrow(rows), sample()
    assert rows["prompt_token_ids"][0].as_py() == data["input_ids"][:10].tolist()
    assert (labels.token_ids == data["input_ids"][10:40]).all()
    assert (labels.top_ids == data["ids"][9:39, :8]).all()
    known = labels.token_ranks > 0
    assert np.isnan(labels.token_logprobs[~known]).all() and known.any()


def test_what_is_no_known_set_is_said(tmp_path):
    for text, message in (
        ('{"messages": []}', "neither the columns input_ids, .* nor the column"),
        ('{"messages": [], "logprobs": []}', "by --tokenizer, with its chat template beside it"),
        ('{"messages": [', "Line 1 of .* is no JSON: "),
        ("[]", "Line 1 of .* is no JSON object"),
    ):
        (tmp_path / "raw.jsonl").write_text(text + "\n")
        with pytest.raises(ForeignDataError, match=message):
            import_labels(tmp_path / "raw.jsonl", tmp_path / "labels", GEMMA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForeignDataError, match="neither a DistillKit capture"):
        import_labels(tmp_path / "empty", tmp_path / "labels", GEMMA)
    folder = capture(tmp_path / "capture")
    for text, message in (
        ("k: [", "no YAML"),
        ("k: 3", "not DistillKit's current format"),
        (CONFIG.replace("64", "32"), "bytes, not"),
    ):
        (folder / "compression_config.yaml").write_text(text)
        with pytest.raises(ForeignDataError, match=message):
            import_labels(folder, tmp_path / "labels", GEMMA)


def test_gate_at_import(tmp_path):
    closed = Provenance(teacher=Teacher(model="nobody/knows-this"), terms=("no-such-terms@2020-01-01",))
    with pytest.raises(Refused, match="Importing these labels is refused"):
        import_labels(capture(tmp_path / "capture"), tmp_path / "labels", closed)
    assert not (tmp_path / "labels").exists()
