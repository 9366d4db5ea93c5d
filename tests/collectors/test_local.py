import asyncio
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from collectors.card import EndpointCard, contradictions  # noqa: E402 - after the skips
from collectors.config import AskSettings, EndpointSettings, TeacherSettings  # noqa: E402
from collectors.errors import EndpointStopped, Rejected  # noqa: E402
from collectors.http import Request  # noqa: E402
from collectors.plan import Item  # noqa: E402
from collectors.probe import probe  # noqa: E402
from collectors.providers import Provider, ProviderUnavailable, Reading, local_sender  # noqa: E402
from collectors.providers.in_process import Question  # noqa: E402
from collectors.providers.in_process_sender import CallableTeacher, InProcessSender, Teacher  # noqa: E402
from collectors.providers.local import CausalTeacher, MaskedTeacher, distribution, draw  # noqa: E402
from storage.rows import Message  # noqa: E402

Make = Callable[..., Provider]
NewItem = Callable[..., Item]
TEXTS = ["the still was charged at noon", "the first cut ran clear", "a husky is a dog", "yes no maybe"]
torch.set_num_threads(1)


def _tokenizer(folder: Path) -> Any:
    trained = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]"]
    trained.train_from_iterator(TEXTS, tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, unk_token="[UNK]", pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]",
        mask_token="[MASK]",
    )  # fmt: skip
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> CausalTeacher:
    folder = tmp_path_factory.mktemp("causal")
    vocabulary = len(_tokenizer(folder))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return CausalTeacher(folder, tail_temperatures=(2.0,))


@pytest.fixture(scope="module")
def absolute(tmp_path_factory: pytest.TempPathFactory) -> CausalTeacher:
    """A model that counts positions from the left end, where padding would shift them."""
    folder = tmp_path_factory.mktemp("absolute")
    vocabulary = len(_tokenizer(folder))
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3, initializer_range=0.6
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return CausalTeacher(folder)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> MaskedTeacher:
    folder = tmp_path_factory.mktemp("masked")
    vocabulary = len(_tokenizer(folder))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.6,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return MaskedTeacher(folder)


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
    found = distribution(logits, targets, 7, (1.0, 2.0))
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
    found = distribution(logits, torch.tensor([0]), 1)
    assert found.log_tail.item() == pytest.approx(math.log(math.exp(-60) + math.exp(-61)), rel=1e-12)
    with pytest.raises(Rejected, match="nan"):
        distribution(torch.tensor([[0.0, math.nan]]), torch.tensor([0]), 1)


def test_a_text_is_scored(causal: CausalTeacher, made: Make, item: NewItem) -> None:
    (found,) = ask(causal, made("local", mode="score", top_k=5), item(prompt="the still was charged"))
    assert isinstance(found, Reading) and found.labels is not None
    ids = causal.tokenizer("the still was charged")["input_ids"]
    assert found.prompt_token_ids == (ids[0],) and found.labels.token_ids.tolist() == ids[1:]
    reference = causal.logits(ids)[:-1].double().log_softmax(-1)
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
        logprobs = causal.logits(prompt + more).double().log_softmax(-1)
        sums.append(sum(logprobs[len(prompt) - 1 + j, token].item() for j, token in enumerate(more)))
    p = np.exp(sums) / np.exp(sums).sum()
    assert found.labels.top_ids[0].tolist() == np.argsort(-p).tolist()
    assert np.exp(found.labels.top_logprobs[0]) == pytest.approx(np.sort(p)[::-1], abs=1e-5)
    assert found.text == labels[int(p.argmax())] and found.labels.log_tail[0] == -np.inf


def test_a_function_is_a_teacher(made: Make, item: NewItem) -> None:
    def function(texts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        return [[8.7, 0.8, 0.5] if "husky" in text else [0, 0, 1] for text in texts]

    one = made("local", mode="classify", labels=("dog", "wolf", "fox"))
    dog, fox = ask(CallableTeacher(function, name="f"), one, item(prompt="a husky"), item(prompt="red"))
    assert isinstance(dog, Reading) and isinstance(fox, Reading) and dog.labels and fox.labels
    assert np.exp(dog.labels.top_logprobs[0]) == pytest.approx([0.87, 0.08, 0.05]) and dog.text == "dog"
    assert fox.labels.top_ids.tolist() == [[2, -1, -1]] and fox.text == "fox"
    for bad in ([[math.nan, 0, 1]], [[-1.0, 1, 1]], [[0.0, 0, 0]], [[1.0, 0]]):
        (refused,) = ask(CallableTeacher(lambda t, c, bad=bad: bad, name="f"), one, item(prompt="x"))
        assert isinstance(refused, str) and ("no_probabilities" in refused or "length_mismatch" in refused)
    (refused,) = ask(CallableTeacher(function, name="f"), made("local"), item(prompt="x"))
    assert isinstance(refused, str) and "mode_not_possible" in refused


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


def test_a_model_that_fails_spoils_its_batch_alone(made: Make, item: NewItem) -> None:
    class Failing:
        def answer(self, questions: Sequence[Question]) -> list[Any]:
            raise RuntimeError("CUDA out of memory")

        def about(self) -> Any:
            raise NotImplementedError

    (refused,) = ask(Failing(), made("local"), item(prompt="x"))
    assert refused == "model_failed: RuntimeError: CUDA out of memory"


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
        endpoint = EndpointSettings(kind="local", served_model=teacher.tokenizer.name_or_path)
        sender = local_sender(TeacherSettings(model="m"), endpoint, AskSettings(mode=mode))  # type: ignore[arg-type]
        answer = asyncio.run(sender.send(Request("GET", "/about")))
        assert json.loads(answer.body)["vocabulary"] == teacher.model.config.vocab_size
    with pytest.raises(EndpointStopped, match="cannot be read as a transformers model"):
        local_sender(TeacherSettings(model=str(tmp_path)), EndpointSettings(kind="local"), AskSettings())


def test_without_torch_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "collectors.providers.local", None)
    with pytest.raises(ProviderUnavailable, match=r"pip install 'potstill\[train\]'"):
        local_sender(TeacherSettings(model="m"), EndpointSettings(kind="local"), AskSettings())
