"""Faults planted in 2 % of real teacher rows are named, clean rows are not; every figure is what it says."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from policies.decision import Decision
from policies.documents import load_bundle
from policies.evaluate import evaluate
from policies.gates import DOCUMENT, Gates, subject
from policies.use import Use
from policies.waivers import Waiver
from storage.codec import entropy
from storage.gates import gate
from storage.profile import Profile, profile
from storage.profile_against import Plan, PromptsUnreadable, read_prompts
from storage.profile_cli import profile as command
from storage.profile_outliers import far_out
from storage.profile_reference import calibration_error, matches, wilson
from storage.profile_subjects import isolated_group
from storage.profile_text import loop, refusal, wrong_languages
from storage.profile_twins import twins
from storage.rows import Row
from storage.table import Table
from tests.storage.make_rows import make_rows
from tests.storage.planted import DATA, EXPECTED, everyday, found, planted, teacher_rows


def table_of(rows: list[Row], path: Path) -> Table:
    table = Table.create(path / "labels")
    table.append(rows, writer="w", sequence=0)
    return table


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Profile]:
    table = table_of(planted("clean", 0), tmp_path_factory.mktemp("clean"))
    return table, profile(table, features="ngrams")


def test_clean_rows_raise_nothing(clean: tuple[Table, Profile]) -> None:
    assert clean[1].warnings == []


@pytest.mark.parametrize("kind", [kind for kind in EXPECTED if kind not in ("clean", "hotter")])
def test_a_planted_fault_is_named(kind: str, tmp_path: Path) -> None:
    """How often each is found in other draws is measured in benchmarks/RESULTS.md."""
    warnings = profile(table_of(planted(kind, 1), tmp_path), features="ngrams").warnings
    assert found(warnings, kind)


def test_a_small_strange_domain_is_named_by_the_prompts_domain(tmp_path: Path) -> None:
    rows = [row for row in teacher_rows() if not everyday(row)][:300]
    letters = [row for row in teacher_rows() if everyday(row) and row.domain == "letters"][:8]
    one = next(
        f
        for f in profile(table_of(rows + letters, tmp_path), features="ngrams").findings
        if f.kind == "strange_subject"
    )
    assert {example.prompt_id for example in one.examples} <= {row.prompt_id for row in letters} and one.rows == 8


def embedded(rows: list[Row]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sentence embeddings of prompts and of texts, as they were made once."""
    known = np.load(DATA.with_name("teacher_rows_embedded.npz"))
    place = {name: number for number, name in enumerate(known["prompt_id"].tolist())}
    chosen = [place[row.prompt_id] for row in rows]
    return known["prompts"][chosen].astype(np.float32), known["texts"][chosen].astype(np.float32)


def test_a_small_group_that_no_prompt_names_is_found_by_embeddings() -> None:
    """Two draws of twelve are missed: hammers and hinges are near enough to software."""
    assert not any(len(isolated_group(*embedded(planted("clean", seed, rows=300)))) for seed in range(12))
    strange = [planted("subject", seed, rows=300) for seed in range(12)]
    groups = [isolated_group(*embedded(rows)) for rows in strange]
    named = [sum(everyday(rows[n]) for n in group) for rows, group in zip(strange, groups, strict=True)]
    assert sum(right >= 4 for right in named) >= 10
    assert all(right >= 0.8 * len(group) for right, group in zip(named, groups, strict=True))


def test_a_group_of_a_table_larger_than_the_sample_is_found_whole() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3_000, 32)) + np.eye(32)[0] * 8
    vectors[1_000:1_060] = rng.normal(size=(60, 32)) + np.eye(32)[1] * 8
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert isolated_group(vectors, vectors).tolist() == list(range(1_000, 1_060))
    assert not isolated_group(vectors[:1_000], vectors[:1_000]).size
    assert not isolated_group(vectors[:20], vectors[:20]).size


def test_a_group_is_told_with_two_of_its_prompts_and_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted("subject", 0, rows=300)
    rows = [replace(row, domain=None) for row in rows]
    prompts, texts = embedded(rows)
    known = {str(row.prompt): vector for row, vector in zip(rows, prompts, strict=True)}
    known |= {f"{row.prompt} {row.completion}": vector for row, vector in zip(rows, texts, strict=True)}
    monkeypatch.setattr("storage.profile.chosen", lambda features: "embeddings")
    monkeypatch.setattr("storage.profile.dense", lambda written, features: np.stack([known[one] for one in written]))
    seen = profile(table_of(rows, tmp_path))
    strange = next(finding for finding in seen.findings if finding.kind == "strange_subject")
    group = [row.prompt for row in rows if everyday(row)]
    assert strange.warn and strange.examples[0].why.startswith(f"one of {strange.rows} rows ({strange.rows / 300:.1%})")
    assert sum(repr((prompt or "")[:60]) in strange.examples[0].why for prompt in group) == 2


def test_a_run_of_another_teacher_is_named_as_a_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    from tests.storage.planted import colder

    rows = planted("clean", 3)
    changed = [replace(colder(row, rng), run_id="run-other") for row in rows[:30]]
    seen = profile(table_of(changed + rows[30:], tmp_path), features="ngrams")
    assert {(shift.by, shift.group) for shift in seen.groups} == {("run", "run-other")}
    assert "other_teacher" in seen.warnings


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("the cat sat on the mat " * 5, True),
        ("I do not know. " * 4, True),
        ("It began well, and then it said so and so and so and so and so and so and so and so and so and so", True),
        ("哈哈好的" * 15, True),
        ("no no no no", False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9", False),
        ("=" * 80, False),
        ("one fish two fish red fish blue fish", False),
    ],
)
def test_what_a_loop_is(text: str, is_loop: bool) -> None:
    assert (loop(text) is not None) == is_loop


def test_a_loop_of_tokens_without_text_is_seen() -> None:
    assert loop("", np.tile(np.arange(5, dtype=np.int32), 6)) is not None
    assert loop("", np.arange(60, dtype=np.int32)) is None


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I do not have feelings.", True),
        ("Lo siento, pero no puedo ayudar con eso.", True),
        ("It's not possible for me to comply with this request.", True),
        ("I can't believe it's not butter.", False),
        ("He said he could not help them.", False),
        ("The function raises OSError when the file cannot be opened.", False),
        ("word " * 100 + "I cannot help with that.", False),
    ],
)
def test_what_a_refusal_is(answer: str, refuses: bool) -> None:
    assert (refusal(answer) is not None) == refuses


def test_an_answer_in_another_language_or_script_is_seen() -> None:
    english = "The harbour was quiet in the early morning, and the boats lay still between the long wooden piers."
    german = "Der Hafen war am frühen Morgen still, und die Boote lagen ruhig zwischen den langen hölzernen Stegen."
    russian = "Гавань была тиха ранним утром, и лодки неподвижно стояли между длинными деревянными причалами."
    code = "def f(x):\n    return [y ** 2 for y in range(x) if y % 2]\n" * 3
    seen = wrong_languages([english] * 4, [english, german, russian, code])
    assert [one is not None for one in seen] == [False, True, True, False]


def test_twins_are_near_duplicates_of_other_things() -> None:
    text = "the quick brown fox jumps over the lazy dog while the farmer sleeps under the old apple tree"
    other = "an entirely different sentence about boats and harbours and the people who work there all day"
    near = text.replace("sleeps", "snores")
    assert twins([text, other, near, text], ["a", "b", "c", "a"]) == [None, None, None, None]
    longer = " ".join([text, other])
    assert twins([longer, longer.replace("sleeps", "snores"), "yes", "yes"], ["a", "b", "c", "d"]) == [
        None,
        0,
        None,
        None,
    ]


def test_far_out_is_what_the_tail_does_not_explain() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(far_out(rng.exponential(size=300)).sum() >= 3 for _ in range(200))
    assert alarms <= 4
    assert far_out(np.append(rng.normal(size=294), np.full(6, 9.0))).sum() == 6


def test_captured_mass_and_entropy_are_those_of_the_labels(clean: tuple[Table, Profile]) -> None:
    labels = [row.labels for row in planted("clean", 0) if row.labels is not None]
    tokens = sum(len(one) for one in labels)
    seen = clean[1]
    assert seen.tokens == tokens
    mean = sum(float(entropy(one.top_logprobs, one.log_tail).sum()) for one in labels) / tokens
    assert seen.labels["entropy"] == pytest.approx(mean, rel=1e-2)
    stored = next(choice for choice in seen.choices if choice.k == seen.k)
    assert stored.captured == pytest.approx(seen.labels["captured_mass"], abs=2e-3)


def test_a_smaller_k_is_measured_and_a_larger_one_said_to_be_extrapolated(clean: tuple[Table, Profile]) -> None:
    choices = clean[1].choices
    assert [c.k for c in choices] == [1, 2, 3, 5, 10, 20, 40]
    assert [c.measured for c in choices] == [True] * 5 + [False] * 2
    for smaller, larger in pairwise(choices):
        assert smaller.captured < larger.captured <= 1 and smaller.bytes < larger.bytes
        assert smaller.overconfident >= larger.overconfident
    measured = choices[:5]
    assert all(a.lost is not None and b.lost is not None and a.lost > b.lost for a, b in pairwise(measured))


def test_what_is_extrapolated_is_near_what_is_true() -> None:
    """The k of 20 that a table of k = 10 foretells, against rows of Gemma with 64 candidates."""
    from storage.codec import Labels, log_tail
    from storage.profile_labels import TokenSample, choices
    from tests.storage.make_rows import sample

    data = sample()
    logs, ids = data["logprobs"][:, :10], data["ids"][:, :10].astype(np.int32)
    count = len(ids)
    labels = Labels(ids[:, 0], logs[:, 0], np.ones(count, np.int32), ids, logs.astype(np.float32), log_tail(logs))
    kept = TokenSample([], [], [])
    kept.add(labels)
    foretold = next(c for c in choices(kept, 7) if c.k == 20)
    true = float(np.exp(data["logprobs"][:, :20].astype(float)).sum(axis=1).mean())
    assert foretold.captured == pytest.approx(true, abs=0.015)


def test_the_ceiling_counts_right_answers_by_domain(tmp_path: Path) -> None:
    rows = make_rows(0, 40, completion="It is Paris.", reference="Paris", domain="capitals")
    rows += make_rows(40, 40, completion="It is Rome.", reference="Paris", domain="riddles")
    seen = profile(table_of(rows, tmp_path), features="ngrams").ceilings
    assert [(one.domain, one.rows, one.accuracy.value) for one in seen] == [
        (None, 80, 0.5),
        ("capitals", 40, 1.0),
        ("riddles", 40, 0.0),
    ]
    assert seen[0].accuracy.low < 0.5 < seen[0].accuracy.high and seen[0].calibration_error is not None


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Paris", "paris", True),
        ("The answer is Paris.", "Paris", True),
        ("The answer is not known.", "Paris", False),
        ("so 3 + 4 = 7", "7", True),
        ("7 is not it; it is 8", "7", False),
        ("1,024", "1024", True),
        ("Parisian", "Paris", False),
    ],
)
def test_what_a_right_answer_is(answer: str, reference: str, right: bool) -> None:
    assert matches(answer, reference) == right


def test_intervals_and_calibration_are_the_textbooks() -> None:
    assert (wilson(0, 20).low, round(wilson(0, 20).high, 3)) == (0.0, 0.161)
    rng = np.random.default_rng(0)
    sure = rng.uniform(size=20_000)
    assert calibration_error(sure, (rng.uniform(size=sure.size) < sure).astype(float)) < 0.02
    assert calibration_error(np.full(100, 0.9), np.zeros(100)) == pytest.approx(0.9)


def prompts_file(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps({"prompt": row.prompt}) + "\n" for row in rows), encoding="utf-8")
    return path


def test_against_production_says_what_the_table_lacks_and_a_plan_closes_it(tmp_path: Path) -> None:
    rows = teacher_rows()
    technical = [row for row in rows if not everyday(row)]
    daily = [row for row in rows if everyday(row)]
    table = table_of(technical[::2], tmp_path)
    same = prompts_file(tmp_path / "same.jsonl", technical[1::2])
    other = prompts_file(tmp_path / "other.jsonl", technical[1:101:2] + daily[:50])
    pool = prompts_file(tmp_path / "pool.jsonl", technical[101:201:2] + daily[50:])
    alike = profile(table, against=same, features="ngrams").against
    plan = Plan(15, pool, tmp_path / "plan.jsonl")
    unlike = profile(table, against=other, plan=plan, features="ngrams").against
    assert alike is not None and unlike is not None and unlike.planned is not None
    assert alike.auc.low <= 0.6 < unlike.auc.value and not any(c.lacks == "table" for c in alike.clusters)
    assert any(cluster.lacks == "table" for cluster in unlike.clusters)
    picked = [text for text, _ in read_prompts(tmp_path / "plan.jsonl")]
    assert len(picked) == unlike.planned.picked == 15
    assert sum(text in {row.prompt for row in daily} for text in picked) >= 12
    assert unlike.planned.coverage_after >= unlike.planned.coverage_before
    assert unlike.planned.likeness_after > unlike.planned.likeness_before + 0.02


def test_a_table_of_productions_own_prompts_cannot_be_told_from_it(tmp_path: Path) -> None:
    rows = teacher_rows()[100:250]
    same = profile(
        table_of(rows, tmp_path), against=prompts_file(tmp_path / "p.jsonl", rows), features="ngrams"
    ).against
    assert same is not None and same.auc.value == pytest.approx(0.5, abs=0.02) and same.coverage.value == 1.0
    assert not same.warn and same.clusters == ()


def test_files_that_are_no_prompts_are_refused_by_line(tmp_path: Path, clean: tuple[Table, Profile]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"wrong": 1}\n', encoding="utf-8")
    with pytest.raises(PromptsUnreadable, match=r"bad.jsonl:2"):
        profile(clean[0], against=bad, features="ngrams")
    bad.write_text('{"prompt": "a"}\n', encoding="utf-8")
    with pytest.raises(PromptsUnreadable, match="need 20 prompts"):
        profile(clean[0], against=bad, features="ngrams")


def test_a_sample_of_the_rows_is_the_same_each_time(clean: tuple[Table, Profile]) -> None:
    one, again = (profile(clean[0], most=80, features="ngrams") for _ in range(2))
    assert one == again and (one.looked_at, one.rows) == (80, 250)


def decided(table: Table) -> Decision:
    return evaluate(table.materials(), Use(action="train"), bundle=load_bundle())


def test_the_gate_measures_refuses_and_is_lifted_by_a_waiver_for_these_rows(clean: tuple[Table, Profile]) -> None:
    table, _ = clean
    gates = Gates(max_loops=0.01, min_captured_mass=0.99)
    refused = gate(table, decided(table), gates)
    assert refused.verdict == "deny" and refused.reasons[-1].section == "min_captured_mass"
    assert table.decision(refused.digest) == refused
    waiver = Waiver.model_validate(
        {
            "kind": "internal_risk_acceptance",
            "document": DOCUMENT,
            "document_digest": refused.facts["gates"]["digest"],
            "rules": ("GATE_MISSED",),
            "valid_from": "2026-11-01",
            "valid_until": "2027-04-01",
            "reason": "a first try",
            "approvers": ("ada", "bob"),
        }
    )
    assert gate(table, decided(table), gates, waivers=[waiver]).verdict == "conditional"
    assert gate(table, decided(table), Gates(max_loops=0.01)).verdict == decided(table).verdict
    assert subject(gates, "a") != subject(gates, "b")


def test_the_command_names_what_to_look_at_and_leaves_with_its_code(
    tmp_path: Path, clean: tuple[Table, Profile]
) -> None:
    quiet = CliRunner().invoke(command, [str(clean[0].path), "--features", "ngrams"])
    assert quiet.exit_code == 0 and "Nothing looks wrong." in quiet.output
    bad = table_of(planted("refusals", 2), tmp_path)
    loud = CliRunner().invoke(command, [str(bad.path), "--features", "ngrams", "--json"])
    record = json.loads(loud.output)
    assert loud.exit_code == 5 and record["warnings"] == ["refusals"] and record["format"] == "potstill-profile-1"
    train = tmp_path / "train.toml"
    train.write_text('table = "labels"\n[gates]\nmax_refusals = 0.01\n', encoding="utf-8")
    held = CliRunner().invoke(command, [str(bad.path), "--features", "ngrams", "--gates", str(train)])
    assert held.exit_code == 3 and "max_refusals" in held.output
    wrong = CliRunner().invoke(command, [str(bad.path), "--plan", "3"])
    assert wrong.exit_code == 2 and "belong together" in wrong.output
