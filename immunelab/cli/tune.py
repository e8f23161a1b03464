"""`tune`: a defender that looks for the settings of a defense which stand a panel of attacks best."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from immunelab.cli import options, show, submit
from immunelab.formatting import duration, named, share
from immunelab.jobs import follow
from immunelab.runs import journal

if TYPE_CHECKING:
    import pandas as pd


def tune(args: argparse.Namespace) -> int:
    """Tune defenses; the same command continues a tuning that was stopped or killed."""
    from immunelab.sweep import tuning

    home = journal.home(args.home)
    named = {key: getattr(args, key) for key in ("trials", "panel", "vary", "world") if getattr(args, key) is not None}
    specs = tuning.tune_specs(
        args.defense,
        follow.model(args.model, home),
        args.corpus,
        args.seed,
        named | args.knobs,
        args.device,
        args.name,
        **options.numbers(args),
    )
    run_ids = submit.once(specs, home)
    if args.detach:
        return submit.detached(run_ids, args.json)
    ended = follow.follow(run_ids, home)
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    events = queries.tunings(store, run_ids)
    told = [(run_id, status, events[events["tuning"] == run_id]) for run_id, status in ended.items()]
    if args.json:
        show.emit([_result(*each) for each in told])
    else:
        for each in told:
            _print(*each)
    code = submit.code(ended)
    if code == 130:
        show.err.print("Stopped. Repeat the command to continue.")
    return code


def _result(run_id: str, status: Any, events: pd.DataFrame) -> dict[str, Any]:
    from immunelab.analysis import tuning

    table = tuning.settings_table(events)
    won = events[events["event"] == "tuned"]
    return {
        "run_id": run_id,
        "status": status.status,
        "error": status.error,
        "undefended": tuning.control(events),
        "settings": show.records(table),
        "winner": show.records(won[["setting", "settings", "harm", "kept", "run_id"]])[0] if len(won) else None,
        "seconds": float(table["seconds"].sum()),
    }


def _print(run_id: str, status: Any, events: pd.DataFrame) -> None:
    from immunelab.analysis import tuning

    show.out.print(f"\n{run_id}  {status.status} after {duration(status.seconds)} {status.error}", markup=False)
    table = tuning.settings_table(events)
    if table.empty:
        return
    show.out.print(tuning.sentence(events), markup=False)
    control = tuning.control(events)
    if control == control:
        panel = ", ".join(events.loc[events["event"] == "control", "harms"].iloc[0])
        show.out.print(f"The panel ({panel}) gets {share(control)} out of the undefended model.", markup=False)
    order = table["confirmed_harm"].fillna(1 + table["harm"].fillna(1.0))
    ahead = table.assign(order=order).sort_values(["winner", "order", "setting"], ascending=[False, True, True]).head(8)
    show.table(
        ("setting", "utility", "harm", "ended", "confirmed harm", "confirmed utility", "settings"),
        [
            (
                f"{r['setting']} (preset)" if r["setting"] == 1 else r["setting"],
                share(r["kept"]),
                share(r["harm"]),
                r["outcome"],
                f"{share(r['confirmed_harm'])} ({share(r['low'])}–{share(r['high'])})" if r["n"] else "–",
                share(r["confirmed_kept"]) if r["n"] else "–",
                named(r["settings"]),
            )
            for r in ahead.to_dict("records")
        ],
        right=("setting", "utility", "harm"),
    )
    won = events[events["event"] == "tuned"]
    if len(won):
        w = won.iloc[-1]
        knobs = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in w["settings"].items())
        show.out.print(f"Use it: immunelab immunize {w['tuned']} {knobs}", markup=False)
        show.out.print(
            f"Or attack the model that was made with it: immunelab attack --model run:{w['run_id']}", markup=False
        )


def add(commands: Any) -> None:
    """Add `tune`."""
    c = options.command(
        commands,
        "tune",
        tune,
        "search for the settings of a defense that stand a panel of attacks best",
        """
        Optuna chooses the settings. A trial immunizes the model and attacks the result with a panel of attacks; the
        best setting gives least away to the worst of them and keeps at least 97 % of the utility before any attack.
        Bad settings end early. The best three and the preset are confirmed with three other seeds. Each run is
        recorded like any other. Several defenses are tuned side by side, each with the same number of trials. Ctrl-C
        stops with a checkpoint; repeat the command to continue. More settings: --utility 0.95 --max-utility-loss 0.1
        --confirm 1 --confirm-seeds 2 --random-trials 4 --prune no

        examples:
          immunelab tune seam adversarial-loss --trials 24
          immunelab tune seam --vary "beta=0.1..10,ascent=layerwise|final-logit"
          immunelab tune seam --model models/mine --corpus mine --panel harmful-sft@0.0001,lora-sft@0.0002 --detach
        """,
    )
    c.add_argument("defense", nargs="+", metavar="DEFENSE", help="name of a defense, see immunelab methods")
    c.set_defaults(knobs={})
    c.add_argument("--trials", metavar="N", help="number of settings to try, the preset included (default 24)")
    panel_options(c)
    c.add_argument("--set", action="append", metavar="SETTING=VALUE", help="the same as --SETTING VALUE")
    c.add_argument(
        "--model",
        default="fable",
        metavar="MODEL",
        help="model to immunize: fable, a Hub id, a folder or run:ID (default fable)",
    )
    c.add_argument(
        "--corpus",
        default="fable",
        metavar="CORPUS",
        help="fable, another world's folder, or a corpus.toml (default fable)",
    )
    c.add_argument("--seed", type=int, default=0, metavar="S", help="random seed of the trials (default 0)")
    options.device(c)
    options.numeric(c)
    c.add_argument("--name", default="", metavar="TEXT", help="label of the tuning and of its runs (default: none)")
    c.add_argument("--detach", action="store_true", help="print the tunings' ids and return without waiting")
    options.json_flag(c)


def panel_options(c: options.Parser) -> None:
    """Add `--panel`, `--vary` and `--world`."""
    c.add_argument(
        "--panel", metavar="ATTACKS", help="attacks as NAME@RUNG or NAME@PRESET, with commas (default: by corpus)"
    )
    c.add_argument(
        "--vary",
        metavar="RANGES",
        help="settings to vary, as NAME=LOW..HIGH or NAME=A|B, with commas (default: the numbers of the preset)",
    )
    c.add_argument("--world", metavar="CORPUS", help="another corpus to confirm with (default: none)")
