"""The student's own tokenizer, 1,000 tokens in place of Gemma's 262,144: BPE over bytes (writes tokenizer.json)."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from storage import sql

texts = (
    sql("soft_labels", "SELECT prompt || completion AS text FROM soft_labels ORDER BY key").column("text").to_pylist()
)
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
special = ["<bos>", "<eos>", "<pad>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet))
bpe.save("tokenizer.json")
