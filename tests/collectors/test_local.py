import asyncio
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from collectors.card import EndpointCard, contradictions  # noqa: E402 - after the skips
from collectors.config import AskSettings, EndpointSettings, TeacherSettings  # noqa: E402
from collectors.errors import EndpointStopped, Rejected  # noqa: E402
from collectors.http import Request  # noqa: E402
from collectors.plan import Item  # noqa: E402
from collectors.probe import probe  # noqa: E402
from collectors.providers import Provider, ProviderUnavailable, Reading, local_sender  # noqa: E402
from collectors.providers.callable_teacher import CallableTeacher  # noqa: E402
from collectors.providers.distribution import distribution  # noqa: E402
from collectors.providers.in_process import Question  # noqa: E402
from collectors.providers.in_process_sender import InProcessSender, Teacher  # noqa: E402
from collectors.providers.local import CausalTeacher, MaskedTeacher, draw  # noqa: E402
from storage.rows import Message  # noqa: E402
from tests.collectors.tiny_models import TEXTS, save_absolute, save_causal, save_masked  # noqa: E402

Make = Callable[..., Provider]
NewItem = Callable[..., Item]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> CausalTeacher:
    return CausalTeacher(save_causal(tmp_path_factory.mktemp("causal")))


@pytest.fixture(scope="module")
def absolute(tmp_path_factory: pytest.TempPathFactory) -> CausalTeacher:
    return CausalTeacher(save_absolute(tmp_path_factory.mktemp("absolute")))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> MaskedTeacher:
    return MaskedTeacher(save_masked(tmp_path_factory.mktemp("masked")))


def ask(teacher: Teacher, one: Provider, *items: Item) -> list[Reading | str]:
    async def go() -> list[Reading | str]:
        sender = InProcessSender(teacher)
        answers = await asyncio.gather(*(sender.send(one.request(asked)) for asked in items))
        await sender.aclose()
        return [
            one.read(asked, answer.body) if answer.status == 200 else json.loads(answer.body)["error"]
            for asked, answer in zip(items, answers, strict=True)
        ]

    return asyncio.run(go())


def mass(labels: Any) -> Any:
    return np.exp(labels.top_logprobs.astype(np.float64)).sum(axis=1) + np.exp(labels.log_tail.astype(np.float64))


def test_labels_agree_with_a_dense_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(130, 50, generator=generator) * 4
    targets = torch.randint(0, 50, (130,), generator=generator)
    found = distribution(logits, targets, Question(mode="score", k=7, tail_sums=(1.0, 2.0)))
    p = logits.double().softmax(-1)
    order = p.sort(descending=True)
    assert torch.equal(found.top_ids, order.indices[:, :7])
    assert torch.allclose(found.top_logprobs.exp(), order.values[:, :7])
    assert torch.allclose(found.log_tail.exp(), order.values[:, 7:].sum(-1))
    assert torch.allclose(found.tail_sums[0], found.log_tail)
    assert torch.allclose(found.tail_sums[1].exp(), order.values[:, 7:].sqrt().sum(-1))
    assert torch.allclose(found.token_logprobs.exp(), p.gather(-1, targets[:, None])[:, 0])
    assert found.token_ranks.tolist() == [int((row > row[t]).sum()) + 1 for row, t in zip(p, targets, strict=True)]


def test_a_tail_far_below_rounding_is_kept() -> None:
    logits = torch.tensor([[0.0, -60.0, -61.0]])
    found = distribution(logits, torch.tensor([0]), Question(mode="score", k=1))
    assert found.log_tail.item() == pytest.approx(math.log(math.exp(-60) + math.exp(-61)), rel=1e-12)
    with pytest.raises(Rejected, match="nan"):
        distribution(torch.tensor([[0.0, math.nan]]), torch.tensor([0]), Question(mode="score", k=1))


def test_sampled_labels_are_unbiased_behind_their_exact_head() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(2)) * 2
    p, values = logits.double().softmax(-1)[0], torch.arange(12.0, dtype=torch.float64)
    sums = []
    for seed in range(400):
        wanted = Question(mode="score", k=2, estimator="sampled", draws=4, seed=seed)
        found = distribution(logits, torch.tensor([0]), wanted)
        assert found.top_weights is not None
        ids, weights = found.top_ids[0], found.top_weights[0]
        assert ids[:2].tolist() == p.topk(2).indices.tolist() and torch.allclose(weights[:2], p[ids[:2]])
        assert len(set(ids.tolist())) == len(ids) <= 6 and weights.sum().item() == pytest.approx(1)
        assert torch.allclose(found.top_logprobs[0].exp(), p[ids])
        assert found.top_logprobs[0, 2:].diff().le(0).all()
        assert found.log_tail.exp().item() == pytest.approx(1 - p[ids].sum().item())
        sums.append((weights * values[ids]).sum().item())
    spread = float(np.std(sums)) / 20
    assert np.mean(sums) == pytest.approx((p * values).sum().item(), abs=4 * spread) and spread > 0
    again = distribution(logits, torch.tensor([0]), wanted)
    assert torch.equal(again.top_ids, found.top_ids)


def test_sampled_rows_of_different_width_are_joined(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    long = item(prompt=" ".join(TEXTS * 8))
    (found,) = ask(causal, made("local", mode="score", top_k=0, estimator="sampled", draws=3), long)
    assert isinstance(found, Reading) and found.labels is not None and found.top_weights is not None
    assert len(found.labels) > 64 and found.estimator == "sampled" and found.labels.k <= 3
    assert found.top_weights.shape == found.labels.top_ids.shape
    assert found.top_weights.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert ((found.labels.top_ids == -1) == (found.top_weights == 0)).all()


def test_a_whole_distribution_has_no_tail(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    one = made("local", mode="score", estimator="full", tail_sums=(2.0,))
    (found,) = ask(causal, one, item(prompt="the still was"))
    assert isinstance(found, Reading) and found.labels is not None and found.tail_sums is not None
    assert found.estimator == "full" and found.labels.k == causal.vocabulary
    assert sorted(found.labels.top_ids[0].tolist()) == list(range(causal.vocabulary))
    assert np.isneginf(found.labels.log_tail).all() and np.isneginf(found.tail_sums[0].log_sums).all()


def test_without_candidates_tokens_alone_are_told(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    (found,) = ask(causal, made("local", mode="score", top_k=0), item(prompt="the still was"))
    assert isinstance(found, Reading) and found.labels is not None
    assert np.isnan(found.labels.token_logprobs).all() and not found.labels.token_ranks.any()


def test_one_bad_text_does_not_spoil_its_batch(absolute: CausalTeacher, made: Make, item: NewItem) -> None:
    too_long = item(prompt_token_ids=(5,) * 2000)
    for mode in ("score", "generate"):
        one = made("local", mode=mode, top_k=2)
        good, bad = ask(absolute, one, item(prompt=TEXTS[0], max_tokens=2), replace(too_long, max_tokens=2))
        assert isinstance(good, Reading) and isinstance(bad, str) and "context_overflow" in bad


def test_ids_outside_the_vocabulary_never_reach_the_model(
    causal: CausalTeacher, masked: MaskedTeacher, made: Make, item: NewItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU an index out of range ends the process and all that is in flight."""
    for teacher, mode in ((causal, "score"), (causal, "generate"), (causal, "classify"), (masked, "mask")):
        one = made("local", mode=mode, top_k=2, **({"labels": ("a", "b")} if mode == "classify" else {}))
        size = teacher.vocabulary
        asked = [item(prompt_token_ids=(5, 6, strange, 7), max_tokens=2) for strange in (size - 1, size, 2**31 - 1, -1)]
        good, *bad = ask(teacher, one, *asked)
        assert isinstance(good, Reading), (mode, good)
        assert all(isinstance(told, str) and "id_out_of_vocabulary" in told for told in bad), (mode, bad)
    monkeypatch.setattr(causal, "_continuation", lambda text: [causal.vocabulary])
    for mode, more in (("score", {}), ("classify", {"labels": ("a", "b")})):
        asked_for = item(prompt=TEXTS[0], completion="x" if mode == "score" else None)
        (told,) = ask(causal, made("local", mode=mode, top_k=2, **more), asked_for)
        assert isinstance(told, str) and "id_out_of_vocabulary" in told


def test_a_text_is_scored(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    one = made("local", mode="score", top_k=5, tail_sums=(2.0,))
    (found,) = ask(causal, one, item(prompt="the still was charged"))
    assert isinstance(found, Reading) and found.labels is not None
    ids = causal.tokenizer("the still was charged")["input_ids"]
    assert found.prompt_token_ids == (ids[0],) and found.labels.token_ids.tolist() == ids[1:]
    reference = next(causal.logits([ids]))[:-1].double().log_softmax(-1)
    assert found.labels.token_logprobs.tolist() == pytest.approx(
        [reference[j, token].item() for j, token in enumerate(ids[1:])], abs=1e-5
    )
    assert mass(found.labels) == pytest.approx(np.ones(3), abs=1e-6)
    assert found.tail_sums is not None and found.tail_sums[0].temperature == 2.0 and found.logprob_space == "raw"


def test_a_completion_is_scored_behind_its_prompt(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    one = made("local", mode="score", top_k=5)
    whole, part = ask(
        causal, one, item(prompt="the still was charged"), item(prompt="the still", completion="was charged")
    )
    assert isinstance(whole, Reading) and isinstance(part, Reading) and whole.labels and part.labels
    assert part.prompt_token_ids == whole.prompt_token_ids + tuple(whole.labels.token_ids[:1].tolist())
    assert part.labels.top_logprobs == pytest.approx(whole.labels.top_logprobs[1:], abs=1e-5)
    assert part.text == "was charged"
    (nothing,) = ask(causal, one, item(prompt="the"))
    assert isinstance(nothing, str) and "no_targets" in nothing


@pytest.mark.parametrize("name", ["causal", "absolute"])
def test_generated_labels_are_those_of_scoring_the_same_tokens(
    request: pytest.FixtureRequest, made: Make, item: NewItem, name: str
) -> None:
    """Different lengths in one batch, so padding, positions and the cache must all be right."""
    causal: CausalTeacher = request.getfixturevalue(name)
    items = [item(prompt=text, seed=i, max_tokens=9) for i, text in enumerate(TEXTS)]
    found = ask(causal, made("local", top_k=5), *items)
    for asked, reading in zip(items, found, strict=True):
        assert isinstance(reading, Reading) and reading.labels is not None and reading.prompt_token_ids is not None
        ids = [*reading.prompt_token_ids, *reading.labels.token_ids.tolist()]
        scored = ask(causal, made("local", mode="score", top_k=5), item(prompt_token_ids=tuple(ids)))[0]
        assert isinstance(scored, Reading) and scored.labels is not None
        at = len(reading.prompt_token_ids) - 1
        assert reading.labels.top_ids.tolist() == scored.labels.top_ids[at:].tolist(), asked.prompt
        assert reading.labels.top_logprobs == pytest.approx(scored.labels.top_logprobs[at:], abs=1e-4)
        ended = reading.labels.token_ids[-1] == 3
        assert reading.finish_reason == ("stop" if ended else "length")
        assert ended or len(reading.labels) == 9
    assert 3 not in found[0].labels.token_ids[:-1]  # type: ignore[union-attr]


def test_a_seed_repeats_whoever_shares_the_batch(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    one, asked = made("local", top_k=2), item(prompt=TEXTS[0], seed=5, max_tokens=5)
    (alone,) = ask(causal, one, asked)
    among = ask(causal, one, item(prompt=TEXTS[1], seed=1, max_tokens=8), asked)[1]
    other = ask(causal, one, item(prompt=TEXTS[0], seed=6, max_tokens=5))[0]
    ids = [reading.labels.token_ids.tolist() for reading in (alone, among, other)]  # type: ignore[union-attr]
    assert ids[0] == ids[1] != ids[2]


def test_draws_follow_the_distribution_and_its_limits() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def share(**settings: Any) -> list[float]:
        random = torch.Generator().manual_seed(0)
        question = Question(mode="generate", k=1, **settings)
        drawn = [draw(logits, question, random) for _ in range(4000)]
        return [drawn.count(i) / 4000 for i in range(4)]

    assert share() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert share(temperature=0.0) == [1.0, 0, 0, 0]
    assert share(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert share(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert share(min_p=0.2) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.03)
    assert share(temperature=0.5)[0] == pytest.approx(0.25 / 0.365, abs=0.03)


def test_messages_are_rendered_by_the_models_template(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    chat = (Message(role="user", content="the still"), Message(role="assistant", content="was"))
    (found,) = ask(causal, made("local", top_k=2), item(messages=chat))
    assert isinstance(found, Reading)
    assert found.prompt_token_ids == tuple(causal.tokenizer("the still was")["input_ids"])
    (found,) = ask(causal, made("local", top_k=2, bos="add"), item(prompt="the still"))
    assert isinstance(found, Reading) and found.prompt_token_ids is not None and found.prompt_token_ids[0] == 2


def test_labels_are_classified_by_their_whole_sequence(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    labels = ("yes", "no", "a dog")
    (found,) = ask(causal, made("local", mode="classify", labels=labels), item(prompt="a husky is"))
    assert isinstance(found, Reading) and found.labels is not None
    prompt = causal.tokenizer("a husky is")["input_ids"]
    sums = []
    for label in labels:
        more = causal.tokenizer(label)["input_ids"]
        logprobs = next(causal.logits([prompt + more])).double().log_softmax(-1)
        sums.append(sum(logprobs[len(prompt) - 1 + j, token].item() for j, token in enumerate(more)))
    p = np.exp(sums) / np.exp(sums).sum()
    assert found.labels.top_ids[0].tolist() == np.argsort(-p).tolist()
    assert np.exp(found.labels.top_logprobs[0]) == pytest.approx(np.sort(p)[::-1], abs=1e-5)
    assert found.text == labels[int(p.argmax())] and found.labels.log_tail[0] == -np.inf
    longer = "the still was in a valley and a husky is"
    both = ask(causal, made("local", mode="classify", labels=labels), item(prompt=longer), item(prompt="a husky is"))
    assert isinstance(both[1], Reading) and both[1].labels is not None
    assert both[1].labels.top_logprobs == pytest.approx(found.labels.top_logprobs, abs=1e-5)


def test_masked_positions_are_labelled(masked: MaskedTeacher, made: Make, item: NewItem) -> None:
    text = " ".join(TEXTS)
    (found,) = ask(masked, made("local", mode="mask", top_k=4), item(prompt=text))
    assert isinstance(found, Reading) and found.labels is not None and found.target_positions is not None
    ids = masked.tokenizer(text)["input_ids"]
    positions = found.target_positions.tolist()
    assert len(positions) == round(0.15 * len(ids)) and positions == sorted(set(positions))
    assert found.labels.token_ids.tolist() == [ids[i] for i in positions]
    seen = list(found.prompt_token_ids or ())
    assert [i for i, (a, b) in enumerate(zip(seen, ids, strict=True)) if a != b] == positions
    assert {seen[i] for i in positions} == {masked.tokenizer.mask_token_id}
    logits = masked.model(input_ids=torch.tensor([seen])).logits[0, positions]
    assert found.labels.top_logprobs == pytest.approx(logits.log_softmax(-1).topk(4).values.detach().numpy(), abs=1e-5)
    other = ask(masked, made("local", mode="mask", top_k=4), item(prompt=text, seed=8))[0]
    assert isinstance(other, Reading) and other.target_positions is not None
    assert other.target_positions.tolist() != positions
    assert "mode_not_possible" in ask(masked, made("local"), item(prompt=text))[0]
    assert "no_targets" in ask(masked, made("local", mode="mask"), item(prompt=""))[0]


def test_more_candidates_than_words_are_missing(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    vocabulary = causal.model.config.vocab_size
    (found,) = ask(causal, made("local", mode="score", top_k=vocabulary + 3), item(prompt="the still"))
    assert isinstance(found, Reading) and found.labels is not None
    assert found.labels.top_ids[0, -3:].tolist() == [-1, -1, -1] and found.labels.log_tail[0] == -np.inf


def test_a_model_that_fails_spoils_one_question_and_one_that_always_fails_stops_the_run(
    made: Make, item: NewItem
) -> None:
    class Failing(CallableTeacher):
        def __init__(self) -> None:
            super().__init__(lambda texts, labels: [[1.0, 0.0] if "good" in text else 1 / 0 for text in texts], name="")

    one = made("local", mode="classify", labels=("a", "b"))
    good, bad = ask(Failing(), one, item(prompt="good"), item(prompt="x"))
    assert isinstance(good, Reading) and bad == "model_failed: ZeroDivisionError: division by zero"
    with pytest.raises(EndpointStopped, match=r"fails on every question.*ZeroDivisionError"):
        ask(Failing(), one, item(prompt="x"), item(prompt="y"))


def test_the_probe_reads_a_teacher_in_this_process(causal: CausalTeacher) -> None:
    card = asyncio.run(
        probe(
            InProcessSender(causal),
            teacher=TeacherSettings(model="m"),
            endpoint=EndpointSettings(kind="local"),
            ask=AskSettings(top_k=5),
        )
    )
    assert card.engine == "transformers" and card.logprob_space == "raw" and card.scores_prompts
    assert card.same_answer_twice is True and card.vocabulary == causal.model.config.vocab_size
    assert card.template_sha256 is not None


def test_a_teacher_that_cannot_generate_is_believed(masked: MaskedTeacher) -> None:
    async def card_of(teacher: Teacher, asked: AskSettings) -> EndpointCard:
        endpoint, model = EndpointSettings(kind="local"), TeacherSettings(model="m")
        return await probe(InProcessSender(teacher), teacher=model, endpoint=endpoint, ask=asked)

    asked = AskSettings(mode="mask", top_k=4)
    card = asyncio.run(card_of(masked, asked))
    assert card.vocabulary == masked.model.config.vocab_size and contradictions(card, asked) == []
    asked = AskSettings(mode="classify", labels=("a", "b"))
    card = asyncio.run(card_of(CallableTeacher(lambda texts, labels: [[1.0, 0.0]], name="f"), asked))
    assert card.served_model == "f" and contradictions(card, asked) == []


def test_a_folder_opens_by_its_mode(causal: CausalTeacher, masked: MaskedTeacher, tmp_path: Path) -> None:
    for teacher, mode in ((causal, "generate"), (masked, "mask")):
        endpoint = EndpointSettings(kind="local", model_path=teacher.tokenizer.name_or_path)
        sender = local_sender(TeacherSettings(model="m"), endpoint, AskSettings(mode=mode))  # type: ignore[arg-type]
        answer = asyncio.run(sender.send(Request("GET", "/about")))
        assert json.loads(answer.body)["vocabulary"] == teacher.model.config.vocab_size
    with pytest.raises(EndpointStopped, match="cannot be read as a transformers model"):
        local_sender(TeacherSettings(model=str(tmp_path)), EndpointSettings(kind="local"), AskSettings())


def test_without_torch_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "collectors.providers.local", None)
    with pytest.raises(ProviderUnavailable, match=r"pip install 'potstill\[train\]'"):
        local_sender(TeacherSettings(model="m"), EndpointSettings(kind="local"), AskSettings())
