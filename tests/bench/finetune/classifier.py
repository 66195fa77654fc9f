"""A pretrained encoder with a new two-class head, as the trainer wants it: named parameters and a loss of a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.finetune.dataset import Sentence, by_length

PAD = 0  # the token's number in BERT's vocabulary
EVAL_BATCH = 64


class Classifier(nn.Module):
    """BERT for sequence classification, without dropout, so that a step depends on weights and batch alone.

    ``batch`` is int64 (B, length + 1): tokens, padded, then the label; columns that are padding in all rows are not
    computed.
    """

    def __init__(self, bert: Any) -> None:
        super().__init__()
        # a shared parameter has the first of its names: this one tells the plan of blocks that it is an embedding
        self.embed_tokens = bert.bert.embeddings.word_embeddings
        self.network = bert

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, 2) of tokens (B, length)."""
        mask = tokens != PAD
        longest = int(mask.sum(1).max())
        out: Tensor = self.network(input_ids=tokens[:, :longest], attention_mask=mask[:, :longest].long()).logits
        return out

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross entropy, nats a sentence."""
        return F.cross_entropy(self.logits(batch[:, :-1]), batch[:, -1])


def load(folder: Path, seed: int) -> Classifier:
    """The model of ``folder``; the head's weights are drawn from ``seed``, with BERT's deviation, its biases zero."""
    transformers.logging.set_verbosity_error()  # else it reports that the head is new, which is meant
    transformers.logging.disable_progress_bar()
    bert = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, local_files_only=True
    )
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(bert.classifier.weight, std=bert.config.initializer_range, generator=generator)
    nn.init.zeros_(bert.classifier.bias)
    return Classifier(bert)


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def encode(folder: Path, sentences: Sequence[Sentence], length: int) -> Tensor:
    """Rows (sentences, length + 1) int64: tokens, cut or padded to ``length``, then the label."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [sentence.text for sentence in sentences]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
    labels = torch.tensor([[sentence.label] for sentence in sentences])
    return torch.cat((torch.tensor(tokens), labels), 1)


@torch.no_grad()
def correct(model: Classifier, rows: Tensor) -> list[bool]:
    """Of each row, whether the model gives it its label."""
    model.eval()
    right = torch.zeros(len(rows), dtype=torch.bool)
    for places in by_length(rows, EVAL_BATCH, PAD):
        batch = rows[places]
        right[places] = model.logits(batch[:, :-1]).argmax(1) == batch[:, -1]
    return right.tolist()
