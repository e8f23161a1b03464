"""The options of the commands that make many runs: `sweep`, `reproduce` and `search`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from immunelab.cli import grids, reproducing
from immunelab.cli import search as searching
from immunelab.runs import numerics


def add(command: Callable[..., Any]) -> None:
    """Add them to the command line; `command(name, call, help, text)` makes a parser."""
    c = command(
        "sweep",
        grids.sweep,
        "carry out a grid: defenses × attacks × settings × seeds",
        """
        A grid is a TOML file (docs/grid.toml is one with comments). Finished runs of the same settings are reused, an
        immunized model is attacked many times, and the same command goes on where it was stopped. A failed run takes
        only the runs that start from it with it.

        examples:
          immunelab sweep docs/grid.toml --dry-run
          immunelab sweep grid.toml --csv results.csv
          immunelab sweep grid.toml --executor slurm --partition gpu --gpus 1 --minutes 240
        """,
    )
    c.add_argument("grid", metavar="GRID", help="a TOML file, or - for standard input")
    _carrying(c)

    c = command(
        "reproduce",
        reproducing.reproduce,
        "the grid of a published table, for a model of yours",
        """
        Without NAME: the protocols there are. With it: the runs, what they take, and (without --dry-run) the runs
        carried out as `sweep` does. Grids and data stand in data/protocols, with what deviates from the paper.

        examples:
          immunelab reproduce
          immunelab reproduce seam-table2 --model meta-llama/Llama-2-7b-chat-hf --dry-run
          immunelab reproduce sdd --model models/mine --corpus mine --executor slurm --gpus 1
        """,
    )
    c.add_argument("name", nargs="?", default="", metavar="NAME", help="a protocol")
    c.add_argument("--model", default="", metavar="MODEL", help="a Hub id, a folder, run:ID or run:last")
    c.add_argument("--corpus", default="", metavar="CORPUS", help="your data in the place of the protocol's")
    c.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 … N-1 (default 1)")
    c.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda:0 (default auto)")
    numbers(c)
    _carrying(c)
    _search(command)


def numbers(c: Any) -> None:
    """In what numbers a run computes."""
    for name, usual in numerics.USUAL.items():
        help = f"{numerics.HELP[name]} (default {usual})"
        c.add_argument(f"--{name}", default=usual, metavar=name.upper(), help=help)


def _carrying(c: Any) -> None:
    """How a list of runs is carried out, and where."""
    c.add_argument("--dry-run", action="store_true", help="list the runs, what is reused, and an estimate of the time")
    c.add_argument("--csv", metavar="FILE", help="write one row for each run there")
    c.add_argument("--detach", action="store_true", help="return at once and print the runs' ids")
    c.add_argument("--json", action="store_true", help="print JSON on standard output")

    c.add_argument(
        "--executor",
        default="local",
        metavar="NAME",
        help="local (default), slurm or ray; nodes of a cluster share the disk of --home",
    )
    c.add_argument("--apart", action="store_true", help="Ray's nodes share no disk: send run folders, and back")
    c.add_argument("--partition", default="", metavar="NAME", help="Slurm's partition (default: the cluster's)")
    c.add_argument("--minutes", type=int, default=1440, metavar="M", help="Slurm's time limit of a run (default 1440)")
    c.add_argument("--cpus", type=int, default=1, metavar="N", help="CPU cores of a run on a cluster (default 1)")
    c.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs of a run on a cluster (default 0)")
    c.add_argument(
        "--at-once",
        type=int,
        default=0,
        metavar="N",
        help="runs of a Slurm array, or a Ray started here, at a time",
    )
    c.add_argument("--address", default="", metavar="HOST:PORT", help="of a Ray cluster (default: one started here)")


def _search(command: Callable[..., Any]) -> None:
    c = command(
        "search",
        searching.search,
        "search for the worst attack on a model, and on the undefended",
        """
        Optuna chooses attack, learning rate, steps, batch size, schedule, share of harmful rows, full weights or an
        adapter of some rank. What counts is the most harm at less than --max-utility-loss of the utility lost. Every
        trial is an attack run like any other. Ctrl-C stops with a checkpoint; the same command goes on from there.
        The ranges are settings too: --rate-high 1e-2 --trial-steps 20,60 --attacks harmful-sft,lora-sft --prune no.

        examples:
          immunelab search --model run:last --trials 30
          immunelab search --model run:last --trials 100 --budget-rows 50000 --seeds 3 --json
        """,
    )
    c.add_argument(
        "--model",
        default="run:last",
        metavar="MODEL",
        help="run:ID, run:last, fable, a Hub id or a folder (default run:last)",
    )
    c.add_argument("--no-control", action="store_true", help="do not search against the undefended model too")
    c.add_argument("--trials", metavar="N", help="attacks to try (default 30)")
    c.add_argument("--max-utility-loss", metavar="X", help="share of utility the attacker may lose (default 0.2)")
    c.add_argument("--budget-rows", metavar="N", help="rows to train on in all trials together (default: no limit)")
    c.add_argument("--budget-seconds", metavar="S", help="seconds of all trials together (default: no limit)")
    c.add_argument("--set", action="append", metavar="SETTING=VALUE", help="the same as --SETTING VALUE")
    c.add_argument("--corpus", default="fable", metavar="CORPUS", help="fable, or the folder of another world")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="first seed, of search and attacks (default 0)")
    c.add_argument("--seeds", type=int, default=1, metavar="N", help="how many searches: seeds S … S+N-1 (default 1)")
    c.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda:0 (default auto)")
    numbers(c)
    c.add_argument("--name", default="", metavar="TEXT", help="a label for the search and the group of its trials")
    c.add_argument("--detach", action="store_true", help="return at once and print the searches' ids")
    c.add_argument("--json", action="store_true", help="print JSON on standard output")
