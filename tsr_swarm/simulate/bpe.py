"""Byte-level BPE: a vocabulary learned from a run's training text, and texts written in it. Deterministic.

Needs the library ``tokenizers``, which is no dependency of the package: only BPE text requires it.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsr_swarm.errors import ConfigError
from tsr_swarm.train.data import END_OF_DOCUMENT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LEARNED_BYTES = 4 << 20  # at most; half of it makes a text in 1,024 tokens 1 % longer
END = bytes([END_OF_DOCUMENT])


def in_tokens(heldout: Tensor, training: Sequence[Tensor], size: int, minimum: int) -> tuple[Tensor, list[Tensor]]:
    """Return the texts (uint8) as tokens (int32) of a vocabulary of ``size`` that is learned from ``training`` alone.

    The newest texts are cached, because the next run mostly reads the same. Raises ConfigError without the library, or
    when a text has fewer than ``minimum`` tokens.
    """
    held, trained = _in_tokens(bytes(heldout.numpy()), tuple(bytes(text.numpy()) for text in training), size)
    for what, text in (("the held-out text", held), *((f"peer {n}'s text", t) for n, t in enumerate(trained, start=1))):
        if text.numel() < minimum:
            raise ConfigError(
                f"As {size} BPE tokens {what} has {text.numel()}, fewer than the {minimum} of one sequence; add text, "
                "or simulate fewer peers."
            )
    return held, trained


@lru_cache(maxsize=1)
def _in_tokens(heldout: bytes, training: tuple[bytes, ...], size: int) -> tuple[Tensor, list[Tensor]]:
    tokenizer = learn([text[: LEARNED_BYTES // len(training)] for text in training], size)
    return encode(tokenizer, heldout), [encode(tokenizer, text) for text in training]


def learn(texts: Sequence[bytes], size: int) -> "Tokenizer":
    """Learn a vocabulary of ``size`` tokens, all single bytes among them. No token spans two documents.

    Raises ConfigError without the library, or when the texts have too few different pieces.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ModuleNotFoundError:
        raise ConfigError(
            "BPE text needs the library 'tokenizers'; install it with 'pip install tokenizers', or use vocabulary 0, "
            "which is bytes."
        ) from None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one run, one thread
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((document for text in texts for document in _documents(text)), trainer)
    found = tokenizer.get_vocab_size()
    if found < size:
        raise ConfigError(
            f"The training text has pieces for {found} BPE tokens, fewer than vocabulary = {size}; add text or lower "
            "the vocabulary."
        )
    return tokenizer


def encode(tokenizer: "Tokenizer", text: bytes) -> Tensor:
    """Return the tokens of ``text``, int32, with the token of END between two documents."""
    (end,) = tokenizer.encode(END.decode()).ids
    ids: list[int] = []
    for encoding in tokenizer.encode_batch_fast(_documents(text)):
        ids += encoding.ids
        ids.append(end)
    return torch.tensor(ids[:-1], dtype=torch.int32)  # after its last END a text has an empty document


def _documents(text: bytes) -> list[str]:
    """Split a text. Where it was cut within a character it has U+FFFD."""
    return [document.decode("utf-8", "replace") for document in text.split(END)]
