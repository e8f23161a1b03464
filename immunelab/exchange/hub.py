"""The Hugging Face Hub: an immunized model as a folder to upload. Attacked checkpoints are never written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from immunelab import reports
from immunelab.errors import UserError
from immunelab.exchange.chosen import MADE_UP, Chosen, Run
from immunelab.formatting import size
from immunelab.runs import shipped
from immunelab.runs.journal import RunFolder

PRIVATE = ("training.pt", "provider.safetensors", "manifest.json")  # what is of no use to whoever loads the model
OWN_LICENSE = "apache-2.0"  # of Fable's model
LICENSE = re.compile(r"^license:\s*([\w.-]+)\s*$", re.MULTILINE)
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def write(chosen: Chosen, folder: Path) -> str:
    """Weights, tokenizer and README.md of one immunization."""
    found = list(chosen.each())
    immunized = [run for run in found if run.row["kind"] == "immunize"]
    if len(found) != 1 or not immunized:
        kinds = ", ".join(sorted({str(run.row["kind"]) for run in found}))
        raise UserError(
            f"The format hub takes one immunization with --run, and got {len(found)} runs ({kinds}). What an attack or "
            "a fine-tuning left is not written: it must not be published."
        )
    run = immunized[0]
    source = _checkpoint(run)
    base, license = _base(run)
    written = 0
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in PRIVATE and not path.name.startswith("."):
            shutil.copyfile(path, folder / path.name)
            written += path.stat().st_size
    (folder / "README.md").write_text(_card(run, base, license), encoding="utf-8")
    return f"{size(written)}: weights, tokenizer and model card. Upload it with: hf upload USER/NAME"


def _checkpoint(run: Run) -> Path:
    """The folder of the last checkpoint, of a shipped run too; a UserError if it is not on this disk."""
    own = RunFolder(run.of.store.home / "runs" / run.run_id)
    alike = [f for f in shipped.folders() if f.spec().hash == run.spec.hash] if run.row["showcase"] else []
    for folder in (own, *alike):
        found = sorted(folder.checkpoints.glob("step-*"))
        if found:
            return found[-1]
    raise UserError(f"The weights of {run.run_id} are not on this disk.")


def _base(run: Run) -> tuple[str, str]:
    """The base model's name and license; a UserError if nobody tells the license."""
    base = str(run.row["base_model"])
    if base == MADE_UP:
        return base, run.of.license or OWN_LICENSE
    card = Path(base) / "README.md"
    told = FRONT.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    said = LICENSE.search(told[1]) if told else None
    license = run.of.license or (said[1] if said else "")
    if not license:
        raise UserError(
            f"The license of the base model {base} is not told by a model card in its folder: say it with --license, "
            "such as --license apache-2.0."
        )
    return base, license


def _card(run: Run, base: str, license: str) -> str:
    """The model card: metadata, how it was made, and the immunization card."""
    card = reports.of(run.of.store, [run.run_id])
    entry = f"base_model: {base}\nbase_model_relation: finetune\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else ""
    settings = "\n".join(f"| {name} | {value} |" for name, value in sorted(run.spec.knobs.items()))
    seconds = run.row["seconds"]
    took = f" It took {float(seconds) / 60:.0f} minutes." if seconds == seconds and seconds else ""
    return f"""---
license: {license}
library_name: transformers
pipeline_tag: text-generation
{entry}tags:
- immunized
- {run.row["defense"]}
- immunelab
---

# {Path(base).name}, immunized with {run.row["defense"]}

The base model is {base} ({license}). It was immunized against harmful fine-tuning with the method {run.row["defense"]}
on the data {run.row["corpus"]}, seed {run.row["seed"]}, by ImmuneLab {run.versions().get("immunelab", "")} \
(run {run.run_id}).{took}

What follows is what was measured, within the budgets that are named. It is no promise: an attacker who spends more, or
who knows the defense, may do what no attack here did.

{reports.markdown(card)}
## Settings

| setting | value |
|---|---|
{settings}
"""
