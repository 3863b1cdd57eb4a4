"""Tokenisers: trained here, from a local folder or from the hub; and the one way in which this
project encodes text.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sae_lib.errors import ModelError, SettingsError, printable
from sae_lib.text import hub

END = "<|endoftext|>"
CHAT = "dialogue in the chat template"  # the kind of document in which special tokens are special


def load_tokenizer(source: str | Path):
    """A fast tokeniser from a local folder or the hub (NAME, or NAME@COMMIT); `ModelError` that
    says what to do where it is missing or out of reach.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def refused(problem: str) -> ModelError:
        return ModelError(f"tokenizer.source {printable(str(source))[:300]}: {problem}")

    expected = "expected a Hugging Face folder with tokenizer.json, or a hub name such as gpt2"
    name = str(source)
    try:
        path = Path(source).expanduser()
        local, is_path = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise refused(f"cannot be looked up ({reason}); {expected}") from None
    if not local and (is_path or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise refused(f"no such folder; {expected}")
    if local and not any((path / f"tokenizer{kind}.json").exists() for kind in ("", "_config")):
        raise refused(f"the folder has no tokenizer.json; {expected}")
    reached = local or hub.reached()
    name, _, revision = name.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path if local else name,
            local_files_only=local or not reached,
            revision=revision or "main",
        )
    except Exception as error:  # transformers, huggingface_hub and json each raise their own
        if not local:
            raise refused(hub.problem(error) if reached else hub.OUT_OF_REACH) from None
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise refused(f"cannot be read ({said})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise refused(f"{kind} has no fast version; choose a model with tokenizer.json")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int):
    """A byte-level BPE with GPT-2's splitting rule: every text round-trips, whatever its bytes."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, clean_up_tokenization_spaces=False
    )


@lru_cache(maxsize=8)
def exact_encoder(tokenizer, chat: bool = False) -> Tokenizer:
    """Its `tokenizers` object as this project encodes: special tokens in a text are ordinary text,
    unless it is a dialogue in the `chat` template, and spans keep their space.
    """
    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.encode_special_tokens = not chat
    encoder.no_truncation()
    encoder.no_padding()
    # Llama-3's own would cut the space off the spans
    encoder.post_processor = processors.ByteLevel(trim_offsets=False)
    return encoder


def token_ids(tokenizer, text: str) -> list[int]:
    """The ids of a text that a person typed, by `exact_encoder`; `SettingsError` where it is not
    text that UTF-8 can write.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the text is not valid Unicode: a lone surrogate at character {error.start}; "
            "leave it out"
        ) from None
    return exact_encoder(tokenizer).encode(text, add_special_tokens=False).ids


def bos_id(tokenizer) -> int | None:
    """The id that the model of this tokeniser expects before every text, if it expects one."""
    first = tokenizer("a")["input_ids"][0]
    return first if first == tokenizer.bos_token_id else None


def special_ids(tokenizer) -> list[int]:
    """The ids of all tokens that stand for no text."""
    added = tokenizer.added_tokens_decoder.items()
    return sorted({*tokenizer.all_special_ids, *(i for i, token in added if token.special)})


def separators(tokenizer) -> list[int]:
    """The ids between two documents: end of text, and begin of text where the model expects it."""
    end, begin = separator_id(tokenizer), bos_id(tokenizer)
    return [end] if begin in (None, end) else [end, begin]


def separator_id(tokenizer) -> int:
    """The id that ends a document: eos, else bos; `ModelError` where there is neither."""
    for token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return token_id
    raise ModelError(
        "the tokeniser has neither an end-of-text nor a begin-of-text token to separate documents; "
        "choose another tokeniser"
    )
