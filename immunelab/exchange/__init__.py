"""To other tools and from them: one file a format. What needs a package imports it when it is asked for.

immunelab export --to tensorboard events --run 3f2a91
immunelab import tensorboard events --method my-sft --learning-rate 1e-4
"""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """What is written in a format, and the package that it needs, if any; its module is named like it."""

    what: str
    package: str = ""
    reads: str = ""  # what `import` takes; empty: nothing


FORMATS = {
    "every-eval-ever": Format("a JSON file and a JSONL file of answers for each evaluated checkpoint, schema 0.3.0"),
    "inspect": Format("an eval log for each checkpoint and evaluation: inspect view --log-dir DIR", "inspect_ai"),
    "tensorboard": Format("an event folder for each run: tensorboard --logdir DIR", "tensorboard", "event folders"),
    "trackio": Format("a project of runs: TRACKIO_DIR=DIR trackio show", "trackio"),
    "wandb": Format("an offline run for each run: wandb sync DIR/wandb/offline-run-*", "wandb"),
    "tamperbench": Format("its result tree, of real models only", reads="result trees of attacks"),
    "hub": Format("an immunized model as a folder to upload: weights, tokenizer, model card"),
}
