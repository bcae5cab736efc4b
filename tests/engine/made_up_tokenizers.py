"""Small tokenizers of the kinds that models come with."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = ["▁", "▁a", "▁hello", "▁world", "a", "b", "h", "e", "l", "o", "w", "r", "d", ".", ","]


def sentencepiece_like() -> Tokenizer:
    """As Llama 2, Mistral and Gemma: "▁" for spaces, bytes for what is not in the vocabulary."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab.update({f"<0x{byte:02X}>": 3 + byte for byte in range(256)})
    vocab.update({word: 259 + n for n, word in enumerate(WORDS)})
    model = models.BPE(vocab, [("▁", "a")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5 and XLNet: whole words, each with the space before it."""
    vocab = [("<unk>", 0.0), *((word, -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def across_spaces() -> Tokenizer:
    """Byte-level, with a token that goes on past the end of a word, and without most bytes."""
    vocabulary = ["a", "b", "Ġ", "aĠ", "aĠb"]
    merges = [("a", "Ġ"), ("aĠ", "b")]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def every_byte(longer: tuple[str, ...], normalizer: normalizers.Normalizer) -> Tokenizer:
    """Byte-level, with a token for each byte and some made of two equal halves."""
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *longer]
    merges = [(token[: len(token) // 2],) * 2 for token in longer]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
