"""A sequence classifier that reads questions and answers: by Hub id or folder, safetensors only, never with code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from immunelab.errors import UserError
from immunelab.training.models import check_whole, evaluating, no_foreign_attention, reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 32  # texts in one forward pass
UNLIMITED = 1 << 20  # tokens: more than any classifier reads
WHAT_A_JUDGE_IS = (
    "A judge is a sequence classifier: a folder with config.json, tokenizer and safetensors weights, or a Hub id that "
    "this machine can reach."
)


class Read(NamedTuple):
    """What a classifier makes of texts: a probability for each text and label, and which texts it saw cut off."""

    probabilities: list[list[float]]
    cut: list[bool]


class Classifier:
    """A loaded classifier; `made` says which it is: its source, the Hub's commit or the hash of its weights, labels."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, made: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.made = model, tokenizer, made
        self.labels: list[str] = made["labels"]
        # Labels exclude each other, and their probabilities sum to 1, unless the config says that each stands alone.
        alone = model.config.problem_type == "multi_label_classification"
        self.exclusive = not alone and len(self.labels) > 1
        sizes = (positions(model), tokenizer.model_max_length)
        self.most = min([UNLIMITED, *(int(size) for size in sizes if size and size > 0)])

    def read(self, texts: Sequence[str], truncation: int = 0, device: str | torch.device = "cpu") -> Read:
        """Label probabilities of texts, of which the first `truncation` tokens are seen (0: as many as the model can).

        Texts stand in batches of 32 in the given order, so that equal texts in equal order give equal numbers.
        """
        self.model.to(device)  # type: ignore[arg-type]  # typed for numbers of devices only
        found, cut = [], []
        most = min(truncation or self.most, self.most)
        for start in range(0, len(texts), ROWS):
            chunk = list(texts[start : start + ROWS])
            cut += [len(ids) > most for ids in self.tokenizer(chunk, verbose=False)["input_ids"]]
            encoded = self.tokenizer(chunk, truncation=True, max_length=most, padding=True, return_tensors="pt")
            with evaluating(self.model):
                logits = self.model(**{key: value.to(device) for key, value in encoded.items()}).logits.float()
            values = logits.softmax(-1) if self.exclusive else logits.sigmoid()
            found += values.cpu().tolist()
        return Read(found, cut)


def positions(model: PreTrainedModel) -> int:
    """How many tokens a classifier can read; 0: not stated. RoBERTa and its kin count from behind their padding."""
    stated = int(getattr(model.config, "max_position_embeddings", None) or 0)
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padded = [m.num_embeddings - m.padding_idx - 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return min(padded, default=stated)


def load(source: str, revision: str = "") -> Classifier:
    """A classifier in fp32 from a local folder or a Hub id; a UserError says what is missing."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with reading(source, "judge", WHAT_A_JUDGE_IS) as where:
        if revision and where["local_files_only"]:
            raise UserError(f"The judge {source} is a folder, which has no revisions: leave {revision!r} out.")
        where |= {"revision": revision} if revision else {}
        config = AutoConfig.from_pretrained(source, **where)
        no_foreign_attention(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        tokenizer.padding_side = tokenizer.truncation_side = "right"  # the end of an answer is what is cut off
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
        model, found = loaded
        check_whole(found)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token that is no padding
    made = {
        "model": source,
        "revision": str(getattr(config, "_commit_hash", None) or revision),
        "sha256": _weights(Path(source)) if where["local_files_only"] else "",
        "labels": [str(config.id2label[i]) for i in range(config.num_labels)],
    }
    return Classifier(model, tokenizer, made)


def _weights(folder: Path) -> str:
    """One SHA-256 over all safetensors files of a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
