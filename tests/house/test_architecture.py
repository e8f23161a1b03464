"""The house, held by tests: who may import whom, what stands only once, and papers that match the rooms."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "immunelab"
FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = [ROOT / "app.py", *sorted((ROOT / "pages").glob("*.py"))]

# Plain words that everyone may use; standard library only.
LEAVES = {"errors", "formatting", "bundled", "conversation"}
# Who may import whom inside the package, beside the leaves. A room may always import itself.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "formatting": set(),
    "bundled": set(),
    "conversation": set(),  # how models are asked: corpus makes rows of it, training asks, pages count
    "runs": set(),
    "method": set(),
    "training": {"method", "runs"},
    "corpus": {"method", "runs"},
    "defenses": {"method", "training"},
    "attacks": {"method", "training"},
    "evaluations": {"method", "training", "runs"},
    "experiment": {"defenses", "attacks", "evaluations", "corpus", "method", "training", "runs"},
    "store": {"runs"},
    "analysis": {"runs"},
    "figures": {"analysis", "method"},
    "sweep": {"method", "runs", "analysis"},
    # Of a corpus jobs read who judges it; experiment and sweep only inside `work`, when its process starts a run.
    "jobs": {"method", "runs", "corpus", "experiment", "sweep"},
    # A run of somebody's own code is measured as our own, and stands in the store like ours.
    "recording": {"experiment", "corpus", "method", "training", "jobs", "runs"},
    "reports": {"store", "analysis", "figures", "runs", "method"},
    "exchange": {"store", "recording", "reports", "runs", "method"},
    "ui": {"store", "analysis", "figures", "runs", "jobs", "sweep", "corpus", "reports", "method"},
    "lab": {"store", "analysis", "figures", "reports", "exchange", "jobs", "runs", "sweep"},
    "cli": {
        "recording",
        "exchange",
        "experiment",
        "sweep",
        "jobs",
        "store",
        "runs",
        "analysis",
        "reports",
        "corpus",
        "training",
        "method",
    },
    "__init__": {"lab", "recording"},
    "__main__": {"cli"},
}
# Rooms whose foreign imports are a closed list; the standard library is always allowed.
FOREIGN: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "runs": set(),
    "method": set(),
    "training": {"torch", "transformers", "peft", "safetensors", "huggingface_hub"},
    "store": {"duckdb", "pandas", "pyarrow", "filelock", "psutil"},
    "jobs": {"psutil", "filelock", "rich"},  # packages of clusters are extras, imported by name when they are asked for
    "analysis": {"pandas", "numpy", "pyarrow"},
}
NO_TORCH = LEAVES | {
    "runs",
    "method",
    "store",
    "jobs",
    "analysis",
    "figures",
    "reports",
    "exchange",
    "ui",
    "cli",
    "sweep",
    "lab",
}
TORCH = {"torch", "transformers", "peft", "accelerate", "datasets", "safetensors"}


def room(path: Path) -> str:
    """The top-level module or package of `immunelab` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, functions included; not those under TYPE_CHECKING."""
    skipped: set[ast.AST] = set()
    parsed = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(parsed):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(child for statement in node.body for child in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def listed() -> list[Path]:
    """Every file of the repository that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("Not a git clone, so what belongs to the repository is not known.")
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    mine = room(path)
    assert mine in ARROWS, f"{mine} is a new room: say in ARROWS what it may import, and why in docs/decisions.md"
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "immunelab":
            other = rest[0] if rest else "__init__"
            assert other == mine or other in LEAVES | ARROWS[mine] | {"__init__"}, f"{mine} imports {other}"
        elif first not in sys.stdlib_module_names:
            assert mine not in FOREIGN or first in FOREIGN[mine], f"{mine} imports {first}"
            assert not (mine in NO_TORCH and first in TORCH), f"{mine} imports {first}: reading starts without torch"
            assert first != "streamlit" or mine == "ui", f"{mine} imports streamlit"


def module(path: Path) -> str:
    """A file's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in arrows[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in arrows:
        if node not in order:
            visit(node)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_of_rooms() -> None:
    assert circles({name: below & set(ARROWS) for name, below in ARROWS.items()}) == []


def test_no_circle_of_files() -> None:
    """Imports inside functions count: a circle that is only hidden is still one."""
    modules = {module(path): path for path in FILES}
    found = {
        name: {i if i in modules else i.rpartition(".")[0] for i in imports(path)} for name, path in modules.items()
    }
    arrows = {name: (targets & set(modules)) - {name} for name, targets in found.items()}
    assert "immunelab.errors" in arrows["immunelab.runs.spec"]
    assert circles(arrows) == []


def test_a_method_does_not_know_another() -> None:
    for path in FILES:
        if room(path) in ("defenses", "attacks", "evaluations"):
            others = [n for n in imports(path) if re.match(r"immunelab\.(defenses|attacks|evaluations)(?!\.judges)", n)]
            assert not others, f"{path.name} imports {others}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_pages_are_thin(path: Path) -> None:
    names = [n for n in imports(path) if n.startswith("immunelab.") and n != "immunelab.store.queries"]
    rooms = {n.split(".")[1] for n in names}
    assert rooms <= LEAVES | {"ui", "jobs", "analysis", "figures", "runs", "sweep", "method"}, (
        f"{path.name} imports {rooms}"
    )
    assert not TORCH & {n.split(".")[0] for n in imports(path)}


@pytest.mark.slow
def test_reading_starts_without_torch() -> None:
    rooms = sorted(
        f"immunelab.{name}" for name in NO_TORCH | {"store.queries", "figures.collapse", "cli.parser", "jobs.follow"}
    )
    code = f"import sys, {', '.join(rooms)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_weights_change_in_one_place() -> None:
    steppers = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.search(r"optim\w*\.step$", ast.unparse(node.func)):
                steppers.add(path.relative_to(PACKAGE).as_posix())
    assert steppers == {"training/loop.py"}


def test_the_database_has_one_door() -> None:
    doors = set()
    for path in [*FILES, *PAGES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.fullmatch(
                r"duckdb\.(connect|sql|query|execute)", ast.unparse(node)
            ):
                doors.add(path.relative_to(ROOT).as_posix())
    assert len(doors) == 1, f"DuckDB is opened in {sorted(doors)}"
    assert doors.pop().startswith("immunelab/store/")


def test_no_file_has_a_name_that_says_nothing() -> None:
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "common", "base", "manager"), path


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_formatter_governs_layout(path: Path) -> None:
    assert not re.search(r"# *fmt: *(skip|off)", path.read_text(encoding="utf-8"))


def test_nothing_names_this_machine() -> None:
    places = re.compile(r"/(home|root|work|Users)/\w|C:\\Users")
    text = {".py", ".md", ".toml", ".lock", ".json", ".jsonl", ".ipynb", ".cff", ".yaml", ".html", ".js", ""}
    for path in listed():
        if path.suffix in text and path != Path(__file__).resolve():
            found = places.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)} has {found.group(0) if found else ''}"


def test_every_dependency_is_pinned() -> None:
    lines = [line.split(";")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in ("test", "notebook")]
    names = {n.lower().replace("_", "-") for n in pins}
    for requirement in [*project["dependencies"], *(name for extra in extras for name in extra)]:
        assert re.split(r"[^\w.-]", requirement)[0].lower() in names, f"requirements.lock lacks {requirement}"


def test_what_ships_is_in_a_wheel_too() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {file for patterns in settings["data-files"].values() for p in patterns for file in ROOT.glob(p)}
    ours = {path for path in listed() if path.is_relative_to(ROOT / "data") and path.suffix != ".md"}
    ours |= set(PAGES) | {ROOT / ".streamlit" / "config.toml"}
    assert ours <= packed, f"[tool.setuptools.data-files] lacks {sorted(ours - packed)[:3]}"
    kinds = settings["package-data"]["*"] + settings["package-data"]["immunelab.method"]
    inside = [path for path in listed() if path.is_relative_to(PACKAGE) and path.suffix != ".py"]
    assert [p for p in inside if not any(fnmatch.fnmatch(p.name, kind) for kind in kinds)] == []


def test_a_host_gets_the_pinned_packages() -> None:
    """What the read-only app needs has the versions that the tests run with."""
    pins = [
        [line for line in (ROOT / name).read_text(encoding="utf-8").lower().splitlines() if "==" in line]
        for name in ("requirements.txt", "requirements.lock")
    ]
    assert pins[0]
    assert set(pins[0]) <= set(pins[1])


def readme_tree() -> set[str]:
    """The paths of the README's annotated tree: indented names lie in the folder above them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- house -->\s*```\w*\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no annotated tree after <!-- house -->"
    found, folders = set(), [""]
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\s*(.+?)(?:  +.*)?$", line)
        for name in names.group(1).split(" · ") if names else ():
            path = "".join(folders[: depth + 1]) + name
            found.add(path)
        folders[depth + 1 :] = [name if name.endswith("/") else name + "/"]
    return found


def test_the_readme_tree_is_the_disk() -> None:
    shown = readme_tree()
    for path in sorted(shown):
        exists = (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()
        assert exists, f"the README's tree shows {path}, which does not exist"
    rooms = set()
    for path in listed():
        parts = path.relative_to(ROOT).parts
        if parts[0].startswith(".") and parts[0] not in (".ci", ".streamlit"):
            continue
        depth = 2 if parts[0] == "immunelab" else 1
        rooms.add("/".join(parts[:depth]) + ("/" if len(parts) > depth else ""))
    for path in sorted(rooms - {"immunelab/__init__.py"}):
        assert any(path == s or s.startswith(path) for s in shown), f"the README's tree lacks {path}"
