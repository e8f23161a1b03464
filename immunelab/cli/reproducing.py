"""`reproduce NAME --model …`: the grid of a published table, laid out, counted, and carried out like any sweep."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from immunelab.cli import grids, models, show, start
from immunelab.errors import UserError
from immunelab.formatting import size
from immunelab.jobs import follow
from immunelab.runs import journal
from immunelab.runs.spec import RunSpec

NAMED = re.compile(r"(\d+(?:\.\d+)?)(b|m)(?![a-z])", re.IGNORECASE)  # 7b, 1.8B, 135M
SUSTAINED = 1e14  # FLOP per second that one large accelerator keeps up, as a yardstick


def reproduce(args: argparse.Namespace) -> int:
    """List the protocols, or lay one out for a model; without --dry-run carry it out."""
    from immunelab.sweep import protocols

    if not args.name:
        found = protocols.titles()
        if args.json:
            show.emit(found)
        else:
            show.table(("protocol", "what it is"), list(found.items()))
        return 0
    if not args.model:
        raise UserError(
            "Which model is the protocol for? Name a folder or a Hub id: --model meta-llama/Llama-2-7b-chat-hf"
        )
    if args.seeds < 1:
        raise UserError(f"--seeds is at least 1, and got {args.seeds}.")
    home = journal.home(args.home)
    model = follow.model(args.model, home)
    specs = protocols.specs(args.name, model, args.corpus, range(args.seeds), args.device, **start.numbers(args))
    _tell(specs, model, args.name if not args.corpus else args.corpus)
    if not args.dry_run:
        start.check(specs)
    return grids.carry(specs, args)


def _tell(specs: list[RunSpec], model: str, corpus: str) -> None:
    """What the grid takes, on standard error; the data are not looked at for it."""
    from immunelab.corpus.described import lengths
    from immunelab.sweep import protocols

    needed = protocols.cost(specs, lengths(corpus))
    say = [
        f"{needed.runs} runs, {needed.steps:,} steps, {needed.rows:,} rows, at most {needed.tokens / 1e6:.0f} M tokens."
    ]
    count = parameters(model)
    if count:
        flop = needed.flop(count)
        say.append(
            f"With {models.millions(count)} parameters: from {flop:.1e} FLOP up (one pass over each token; defenses "
            f"make several), {flop / SUSTAINED / 3600:.1f} h at {SUSTAINED:.0e} FLOP a second; checkpoints of "
            f"{size(needed.disk(count))}, which `immunelab delete` frees."
        )
    say.append("Scores are this lab's, without the paper's judge: compare defended and undefended here, not with it.")
    for line in say:
        show.err.print(line, markup=False, soft_wrap=True)


def parameters(model: str) -> int:
    """How many a model has: counted in a local folder, else as its name says; 0 if neither tells."""
    if Path(model).is_dir():
        return int(models.about(model, Path(model))["parameters"])
    found = NAMED.search(model.rsplit("/", 1)[-1])
    return round(float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6)) if found else 0
