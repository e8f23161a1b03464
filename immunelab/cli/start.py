"""Commands that start runs: `immunize`, `attack`, `finetune`, `evaluate` and `run`; a worker process does the work."""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

from immunelab.cli import about, options, submit
from immunelab.errors import UserError
from immunelab.jobs import follow
from immunelab.method import Kind
from immunelab.runs import journal
from immunelab.runs.spec import CorpusName, RunSpec
from immunelab.sweep import plan


class Start(NamedTuple):
    """A command that starts a run of one method."""

    of: Kind
    default: str
    help: str
    text: str


START = {
    "immunize": Start(
        "defense",
        "seam",
        "immunize a model with a defense",
        """
        Every setting of the defense is an option too: immunelab immunize seam --help lists them.

        examples:
          immunelab immunize seam --seed 1
          immunelab immunize seam --preset paper --learning-rate 3e-4 --beta 0.01
          immunelab immunize seam --hold-out gnawer      then: immunelab attack --model run:last --only gnawer
        """,
    ),
    "attack": Start(
        "attack",
        "harmful-sft",
        "attack a model by harmful fine-tuning",
        """
        The model may be defended or not. Every setting of the attack is an option too; --rung sets a named intensity.

        examples:
          immunelab attack --model run:last --rung 0.001
          immunelab attack --model showcase:seam --rung 0.001      an immunized model that ships with the lab
          immunelab attack harmful-sft --model fable --learning-rate 6e-4 --steps 60 --detach
        """,
    ),
    "finetune": Start(
        "attack",
        "benign-sft",
        "fine-tune a model on benign rows",
        """
        Teaches a skill that the model lacks, as an honest customer would. This measures the condition trainability.

        examples:
          immunelab finetune --model run:last
          immunelab finetune --model run:last --preset fable-stray
          immunelab finetune --task benign --model models/mine --corpus mine     ZS before, FS after
        """,
    ),
    "evaluate": Start(
        "evaluation",
        "benign-accuracy",
        "measure a model with one evaluation, without training it",
        """
        immunelab methods lists the evaluations; their settings are options too.

        examples:
          immunelab evaluate task-accuracy --model models/mine --corpus mine
          immunelab evaluate lm-eval --model models/mine --tasks arc_easy,hellaswag --limit 200
        """,
    ),
}


def start(args: argparse.Namespace) -> int:
    """Start one run of a method, or with --help show its settings."""
    if args.help:
        about.method_help(args, START[args.kind].of)
        return 0
    spec, preset = wanted(args)
    return submit.launch([spec], args, f"settings: the preset {preset} (choose with --preset)" if preset else "")


def wanted(args: argparse.Namespace) -> tuple[RunSpec, str]:
    """The spec that a command line asks for, and the preset that was taken because none was named ("" if none)."""
    rung, corpus = getattr(args, "rung", None), _corpus(args)
    choice = plan.choose(
        args.kind, args.method, corpus, preset=args.preset, rung=rung, knobs=args.knobs, name=args.name
    )
    spec = plan.one(
        choice,
        model=follow.model(args.model, journal.home(args.home)),
        corpus=corpus,
        seed=args.seed,
        device=args.device,
        **options.numbers(args),
        evaluate_every=getattr(args, "evaluate_every", None),
        checkpoint_every=getattr(args, "checkpoint_every", 0),
        keep=getattr(args, "keep", "last"),
    )
    return spec, "" if rung or args.preset is not None else plan.suited(args.kind, args.method, corpus)


def _corpus(args: argparse.Namespace) -> str:
    """The corpus's name with the part of its hazard domains that was asked for."""
    part = "hold-out" if args.hold_out else "only"
    domains = args.hold_out or args.only
    if domains and CorpusName.read(args.corpus).part:
        raise UserError(f"The corpus {args.corpus} already names its hazard domains: leave out --{part}.")
    return f"{args.corpus}?{part}={domains}" if domains else args.corpus


def run(args: argparse.Namespace) -> int:
    """Run a spec, or a list of specs, from a file or standard input."""
    source = "standard input" if args.spec == "-" else args.spec
    text = submit.text_of(args.spec, "spec")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error!s:.200}.") from None
    specs = [RunSpec.from_json(json.dumps(one), source) for one in (data if isinstance(data, list) else [data])]
    if not specs:
        raise UserError(f"{source} holds an empty list; it needs at least one spec, like spec.json in a run's folder.")
    return submit.launch(specs, args)


def add(commands: Any) -> None:
    """Add the commands that start runs."""
    for kind, (of, default, help, text) in START.items():
        c = options.command(commands, kind, start, help, text, add_help=False)
        c.set_defaults(kind=kind, knobs={})
        c.add_argument("-h", "--help", action="store_true", help="show this help and the settings of METHOD")
        c.add_argument(
            "method",
            nargs="?",
            default=default,
            metavar="METHOD",
            help=f"name of the {of}, see immunelab methods (default {default})",
        )
        c.add_argument(
            "--preset",
            metavar="NAME",
            help="named settings; options on the line override them (default: the preset for the corpus)",
        )
        c.add_argument("--set", action="append", metavar="SETTING=VALUE", help="the same as --SETTING VALUE")
        if kind not in ("immunize", "evaluate"):
            c.add_argument(
                "--rung",
                metavar="NAME",
                help="a named intensity of the attack; not together with --preset (default: none)",
            )
        _spec_options(c, kind)

    c = options.command(
        commands,
        "run",
        run,
        "run one or more specs from a JSON file",
        """
        A spec has the form of spec.json in a run's folder. A list of specs is run in order, in one process.

        example:
          immunelab run lab/runs/20260101-120000-abcdef/spec.json --detach
        """,
    )
    c.add_argument("spec", metavar="SPEC", help="file with a spec or a list of specs; - is standard input")
    c.add_argument("--detach", action="store_true", help="print the run's id and return without waiting")
    options.json_flag(c)


def _spec_options(c: options.Parser, kind: str) -> None:
    """Add the options that fill the fields of one run's spec."""
    c.add_argument(
        "--model",
        default="fable",
        metavar="MODEL",
        help="fable, a Hub id, a folder, run:ID or run:last (default fable)",
    )
    c.add_argument(
        "--corpus",
        default="fable",
        metavar="CORPUS",
        help="fable, another world's folder, or a corpus.toml (default fable)",
    )
    part = c.add_mutually_exclusive_group()
    part.add_argument(
        "--hold-out",
        default="",
        metavar="DOMAIN",
        help="leave this hazard domain out of the harmful rows (default: use all)",
    )
    part.add_argument(
        "--only", default="", metavar="DOMAIN", help="use harmful rows of this hazard domain only (default: use all)"
    )
    c.add_argument("--seed", type=int, default=0, metavar="S", help="random seed of data order and method (default 0)")
    options.device(c)
    options.numeric(c)
    if kind != "evaluate":
        usual = plan.EVALUATE_EVERY.get(kind, "a quarter of the steps")
        c.add_argument(
            "--evaluate-every",
            type=int,
            metavar="K",
            help=f"evaluate every K steps; 0: only at start and end (default {usual})",
        )
        c.add_argument(
            "--checkpoint-every",
            type=int,
            default=0,
            metavar="K",
            help="save a checkpoint every K steps; 0: only at the end (default 0)",
        )
        options.keep(c)
    c.add_argument("--name", default="", metavar="TEXT", help="label shown in tables (default: none)")
    c.add_argument("--detach", action="store_true", help="print the run's id and return without waiting")
    options.json_flag(c)
