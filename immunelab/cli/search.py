"""`search`: an attacker that looks for the worst attack on a model, and on the undefended one beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunelab.cli import options, show, submit
from immunelab.formatting import duration, named, share
from immunelab.jobs import follow
from immunelab.runs import journal
from immunelab.runs.journal import RunFolder

if TYPE_CHECKING:
    from immunelab.runs.spec import RunSpec


def search(args: argparse.Namespace) -> int:
    """Search for the worst attack; the same command continues a search that was stopped or killed."""
    home = journal.home(args.home)
    specs = _specs(args, home)
    run_ids = submit.once(specs, home)
    if args.detach:
        return submit.detached(run_ids, args.json)
    ended = follow.follow(run_ids, home)
    from immunelab.store import Store, queries

    store = Store(home)
    store.sync(force=True)
    trials = queries.trials(store, run_ids)
    results = [_result(run_id, status, home, trials[trials["search"] == run_id]) for run_id, status in ended.items()]
    if args.json:
        show.emit(results)
    else:
        _print(results)
    code = submit.code(ended)
    if code == 130:
        show.err.print("Stopped. Repeat the command to continue.")
    return code


def _specs(args: argparse.Namespace, home: Path) -> list[RunSpec]:
    from immunelab.sweep import space

    named = {
        "trials": args.trials,
        "max_utility_loss": args.max_utility_loss,
        "budget_rows": args.budget_rows,
        "budget_seconds": args.budget_seconds,
    }
    chosen = {key: value for key, value in named.items() if value is not None} | args.knobs
    settings = space.settings_for(args.corpus, chosen)
    model = follow.model(args.model, home)
    models = [model] if args.no_control else [*dict.fromkeys([space.undefended(model, home), model])]
    seeds = options.seeds(args.seed, args.seeds)
    return space.search_specs(models, seeds, args.corpus, settings, args.device, args.name, **options.numbers(args))


def _result(run_id: str, status: Any, home: Path, trials: Any) -> dict[str, Any]:
    spec = RunFolder.open(home, run_id).spec()
    rows = trials.drop(columns="search").to_dict("records")
    best = max(rows, key=lambda row: row["harm"], default=None)
    return {
        "run_id": run_id,
        "status": status.status,
        "error": status.error,
        "model": spec.model,
        "seed": spec.seed,
        "max_utility_loss": spec.knobs["max_utility_loss"],
        "bounded_harm": best["harm"] if best else None,
        "best": best,
        "trials": rows,
        "rows": int(sum(row["rows"] for row in rows)),
        "seconds": float(sum(row["seconds"] for row in rows)),
    }


def _print(results: list[dict[str, Any]]) -> None:
    for result in results:
        loss, best = result["max_utility_loss"], result["best"]
        show.out.print(
            f"\n{result['run_id']}  {result['status']}: {result['model']}, seed {result['seed']}; "
            f"{len(result['trials'])} trials, {result['rows']:,} rows, {duration(result['seconds'])} {result['error']}",
            markup=False,
        )
        if best:
            ahead = sorted(result["trials"], key=lambda row: row["harm"], reverse=True)[:5]
            show.table(
                ("trial", "attack", "harm", "outcome", "settings", "run"),
                [
                    (r["trial"], r["method"], share(r["harm"]), r["outcome"], _settings(r["params"]), r["run_id"])
                    for r in ahead
                ],
                title=f"Most harm at less than {100 * loss:g} % of utility lost: {share(best['harm'])}",
                right=("trial", "harm"),
            )


def _settings(params: dict[str, Any]) -> str:
    return named({k: v for k, v in params.items() if k != "attack"})


def add(commands: Any) -> None:
    """Add `search`."""
    c = options.command(
        commands,
        "search",
        search,
        "search for the attack that does the most harm to a model",
        """
        Optuna chooses the attack, its learning rate, steps, batch size, schedule, share of harmful rows, and full
        weights or a LoRA rank. The best attack does the most harm while it costs less than --max-utility-loss of the
        utility. The undefended model is searched too, for comparison. Each trial is recorded as an attack. Ctrl-C
        stops with a checkpoint; repeat the command to continue. Ranges are settings as well:
        --rate-high 1e-2 --trial-steps 20,60 --attacks harmful-sft,lora-sft --prune no

        examples:
          immunelab search --model run:last --trials 30
          immunelab search --model run:last --trials 100 --budget-rows 50000 --seeds 3 --json
        """,
    )
    c.add_argument(
        "--model",
        default="run:last",
        metavar="MODEL",
        help="model to attack: run:ID, run:last, fable, a Hub id or a folder (default run:last)",
    )
    c.add_argument("--no-control", action="store_true", help="do not search on the undefended model")
    c.set_defaults(knobs={})
    c.add_argument("--trials", metavar="N", help="number of attacks to try (default 30)")
    c.add_argument(
        "--max-utility-loss", metavar="X", help="share of utility, from 0 to 1, that the attack may cost (default 0.2)"
    )
    c.add_argument("--budget-rows", metavar="N", help="most training rows, summed over all trials (default: no limit)")
    c.add_argument("--budget-seconds", metavar="S", help="most seconds, summed over all trials (default: no limit)")
    c.add_argument("--set", action="append", metavar="SETTING=VALUE", help="the same as --SETTING VALUE")
    c.add_argument(
        "--corpus",
        default="fable",
        metavar="CORPUS",
        help="fable, another world's folder, or a corpus.toml (default fable)",
    )
    c.add_argument(
        "--seed", type=int, default=0, metavar="S", help="first random seed, of search and attacks (default 0)"
    )
    c.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="number of searches, with seeds S … S+N-1 (default 1)"
    )
    options.device(c)
    options.numeric(c)
    c.add_argument("--name", default="", metavar="TEXT", help="label of the search and of its trials (default: none)")
    c.add_argument("--detach", action="store_true", help="print the searches' ids and return without waiting")
    options.json_flag(c)
