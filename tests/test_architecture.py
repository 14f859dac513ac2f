"""The house's walls: DESIGN.md section 2 as data, and what no file may say. Every check is shown to be able to fail."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "transformer_lens")
CONTRACT = {"backend.contract", "backend.costs", "backend.errors", "backend.subjects"}
SETTINGS = {"backend.settings"}
ARRAYS = {"numpy", "pandas", "pyarrow"}


@dataclass(frozen=True)
class Room:
    """What the files under `place` may import: `ours` (module prefixes), `doors` (packages), `late` (inside functions
    only)."""

    place: str
    ours: frozenset[str]
    doors: frozenset[str]
    late: frozenset[str] = frozenset()


def room(place: str, ours: set[str] = frozenset(), doors: set[str] = frozenset(), late: set[str] = frozenset()) -> Room:
    return Room(place, frozenset(ours), frozenset(doors), frozenset(late))


# The first that fits a file decides: the particular stands before the general.
ROOMS = [
    room("pages/", {"app", "backend", "backend.*"}, {"streamlit", "pandas"}),
    room("app/picture.py", set(), {"kaleido"}),
    room("app/", {"app", "backend", "backend.*"},
         {"streamlit", "starlette", "uvicorn", "plotly", "pydantic", "numpy", "pandas", "pyarrow"}),
    room("backend/__init__.py", {"backend.facade"}),
    room("backend/errors.py"),
    room("backend/subjects.py", {"backend.errors"}, {"pydantic"}),
    room("backend/costs.py"),
    room("backend/contract.py", {"backend.costs", "backend.errors", "backend.subjects"}, {"pydantic"}),
    room("backend/settings.py", {"backend.errors"}, {"pydantic"}),
    room("backend/tables.py", CONTRACT, ARRAYS),
    room("backend/export.py", CONTRACT | {"backend.tables"}, ARRAYS | {"plotly"}),
    room("backend/client.py", CONTRACT | SETTINGS | {"backend.export"}, {"httpx", "pandas", "pyarrow"}),
    room("backend/slurm.py", {"backend.errors"}),
    room("backend/doctor.py", CONTRACT | SETTINGS, {"httpx"}),
    room("backend/facade/",
         CONTRACT | SETTINGS | {"backend.facade", "backend.tables", "backend.export", "backend.analyses",
                                "backend.slurm",
                                "backend.store", "backend.jobs", "backend.models.registry", "backend.models.tokens",
                                "backend.models.prompts", "backend.models.trained", "backend.runs.corpora",
                                "backend.models.fingerprints", "backend.runs.follow", "backend.runs.recipes",
                                "backend.runs.folder", "backend.runs.layout", "backend.runs.attached",
                                "backend.runs.diagrams", "backend.runs.directions", "backend.runs.prompt_sets",
                                "backend.monitors", "backend.maths.transitions",
                                "backend.maths.segmentation", "backend.maths.verdicts",
                                "backend.maths.phases", "backend.maths.interventions", "backend.maths.overlap",
                                "backend.runs.saved"},
         ARRAYS | {"pydantic"}),
    room("backend/diagram_cli.py", CONTRACT | SETTINGS | {"backend", "backend.client", "backend.runs.recipes"}),
    room("backend/__main__.py",
         CONTRACT | SETTINGS | {"backend", "backend.diagram_cli", "backend.analyses", "backend.export",
                                "backend.slurm",
                                "backend.client", "backend.doctor",
                                "backend.facade", "backend.runs.recipes", "backend.models.registry",
                                "backend.models.prompts"},
         {"pandas", "pydantic"}),
    room("backend/analyses/", CONTRACT | {"backend.analyses", "backend.figures", "backend.maths", "backend.monitors"},
         {"numpy", "pandas", "pydantic"}, late={"torch"}),
    room("backend/figures/", {"backend.figures"}, {"plotly", "numpy", "pandas"}),
    room("backend/monitors/", CONTRACT | {"backend.monitors", "backend.maths"}, {"numpy"}, late={"torch"}),
    room("backend/maths/transitions.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/logstep.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/glr.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/jumps.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/locate.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/verdicts.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/phases.py", {"backend.maths"}, {"numpy"}),
    room("backend/maths/overlap.py"),
    room("backend/maths/", {"backend.maths"},
         {"torch", "numpy", "scipy", "ripser", "persim", "pyhessian", "geomstats", "ruptures"}),
    room("backend/models/", CONTRACT | SETTINGS | {"backend.models", "backend.maths.annealing"},
         {"torch", "transformers", "safetensors", "numpy", "pydantic", "transformer_lens", "huggingface_hub",
          "tokenizers", "tqdm"}),
    room("backend/runs/", CONTRACT | SETTINGS | {"backend.runs", "backend.models", "backend.maths", "backend.monitors"},
         {"torch", "numpy", "safetensors", "pydantic", "pandas", "transformers", "tensorboard"}),
    room("backend/jobs/worker.py",
         CONTRACT | SETTINGS | {"backend.jobs", "backend.analyses", "backend.models", "backend.runs", "backend.tables"},
         {"pydantic"}, late={"torch"}),
    room("backend/jobs/", CONTRACT | SETTINGS | {"backend.jobs"},
         {"pydantic", "dask", "distributed", "psutil", "tornado"}),
    room("backend/store/", CONTRACT | SETTINGS | {"backend.store"}, ARRAYS | {"duckdb", "safetensors", "zstandard"}),
    room("benchmarks/", {"benchmarks", "backend", "backend.*", "app", "tests"}, {"*"}),
]

#: packages that only these files may open, wherever their room would allow it
DOORS = {
    "duckdb": r"backend/store/.*|benchmarks/.*",
    "dask": r"backend/jobs/(engine|cluster|dask_\w+)\.py|benchmarks/.*",
    "distributed": r"backend/jobs/(engine|cluster|dask_\w+)\.py|benchmarks/.*",
    "tornado": r"backend/jobs/dask_\w+\.py",
    "transformer_lens": r"backend/models/bridge\.py|benchmarks/.*",
    "huggingface_hub": r"backend/models/hub\.py",
    "tqdm": r"backend/models/hub\.py",
    "httpx": r"backend/(client|doctor)\.py|benchmarks/.*",
    "ripser": r"backend/maths/topology\.py",
    "persim": r"backend/maths/topology\.py",
    "pyhessian": r"backend/maths/pyhessian_column\.py|benchmarks/.*",
    "geomstats": r"benchmarks/.*",
    "ruptures": r"backend/maths/segmentation\.py",
    "tensorboard": r"backend/runs/tensorboard\.py",
}


# ---------------------------------------------------------------- reading


def sources(root: Path, *folders: str) -> list[Path]:
    """Every Python file of these folders, as paths below root."""
    found = [p.relative_to(root) for f in folders for p in (root / f).rglob("*.py")]
    return sorted(p for p in found if "__pycache__" not in p.parts)


def modules(root: Path) -> set[str]:
    """Dotted names of every module of ours, to tell `from package import module` from `import name`."""
    names = {".".join(p.with_suffix("").parts) for p in sources(root, "app", "pages", "backend", "benchmarks", "tests")}
    return names | {n.removesuffix(".__init__") for n in names}


def imports(root: Path, path: Path, known: set[str]) -> Iterator[tuple[str, bool, int]]:
    """Yield (module, inside a function, line) of every import of a file; relative ones resolved."""
    tree = ast.parse((root / path).read_text(), str(path))
    functions = [f for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        for name in _named(node, path, known):
            yield name, id(node) in late, node.lineno  # type: ignore[attr-defined]


def _named(node: ast.AST, path: Path, known: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = list(path.parts[: len(path.parts) - node.level]) if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func)
        if called in ("importlib.import_module", "import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def room_of(path: Path) -> Room | None:
    text = path.as_posix()
    return next((r for r in ROOMS if text == r.place or (r.place.endswith("/") and text.startswith(r.place))), None)


def violations(root: Path) -> list[str]:
    """Return one line per import that the table does not allow, and per file that has no room."""
    found, known = [], modules(root)
    for path in sources(root, "app", "pages", "backend", "benchmarks"):
        mine = room_of(path)
        if mine is None:
            found.append(f"{path}: no room of the table holds it")
            continue
        found += [f"{path}:{line}: imports {name}" for name, late, line in imports(root, path, known)
                  if not allowed(mine, path, name, late)]
    return found


def allowed(mine: Room, path: Path, name: str, late: bool) -> bool:
    package = name.split(".")[0]
    if package in sys.stdlib_module_names:
        return True
    if package in ("app", "pages", "backend", "benchmarks", "tests"):
        return any(name == o or name.startswith(f"{o}.".replace(".*.", ".")) and o != "backend" for o in mine.ours)
    if package in DOORS and not re.fullmatch(DOORS[package], path.as_posix()):
        return False
    return "*" in mine.doors or package in mine.doors or (late and package in mine.late)


# ---------------------------------------------------------------- the walls


def test_every_import_is_allowed():
    assert violations(ROOT) == []


PLANTED = [
    ("backend/analyses/bad.py", "import torch\n", "imports torch"),
    ("backend/analyses/bad.py", "def f():\n    import duckdb\n", "imports duckdb"),
    ("backend/analyses/bad.py", "from backend.models import bridge\n", "imports backend.models"),
    ("backend/analyses/bad.py", "from ..store import store\n", "imports backend.store"),
    ("backend/figures/bad.py", "import importlib\nimportlib.import_module('torch')\n", "imports torch"),
    ("backend/models/bad.py", "import transformer_lens.utils\n", "imports transformer_lens"),
    ("backend/jobs/engine.py", "def f():\n    from backend.analyses import registry\n", "imports backend.analyses"),
    ("backend/store/bad.py", "from backend import facade\n", "imports backend.facade"),
    ("backend/facade/bad.py", "from backend.models import load\n", "imports backend.models.load"),
    ("backend/maths/bad.py", "import streamlit as st\n", "imports streamlit"),
    ("backend/elsewhere/bad.py", "", "no room"),
    ("app/bad.py", "def f():\n    import torch\n", "imports torch"),
    ("pages/bad.py", "import duckdb\n", "imports duckdb"),
]


@pytest.mark.parametrize(("path", "text", "complaint"), PLANTED)
def test_a_planted_import_is_caught(path, text, complaint, tmp_path):
    for name in ("models/load", "models/bridge", "store/store", "facade/__init__", "analyses/__init__"):
        (tmp_path / "backend" / name).with_suffix(".py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "backend" / name).with_suffix(".py").touch()
    assert violations(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    (found,) = violations(tmp_path)
    assert complaint in found and found.startswith(path)


def loaded(code: str) -> list[str]:
    """Return which heavy packages a fresh interpreter holds after running `code`."""
    ask = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1].split() if done.stdout.strip() else []


LIGHT = ["from backend import Backend", "import backend.__main__", "import app.server",
         "from backend import analyses; assert analyses.registry() and not analyses.problems()",
         "from backend.runs import recipes; assert recipes.registry()"]


@pytest.mark.parametrize("code", LIGHT)
def test_the_app_process_never_loads_torch(code):
    assert loaded(code) == []


def test_a_heavy_import_is_seen():
    assert "torch" in loaded("import backend.maths.lens")


# ---------------------------------------------------------------- what no file may say


@dataclass(frozen=True)
class Ban:
    """A pattern over a line of code, and the files that may hold it."""

    what: str
    pattern: str
    except_in: str = r"$^"


BANS = [
    Ban("hook name", r"\bhook_[a-z]\w*|\bblocks\.\{?\w+\}?\.hook", r"backend/models/.*|benchmarks/.*"),
    Ban("connection", r"\bduckdb\.connect\(", r"backend/store/.*|benchmarks/.*"),
    Ban("unpickling", r"\b(c?[pP]ickle|cloudpickle|dill|joblib|marshal)\.loads?\b|allow_pickle\s*=\s*True"),
    Ban("machine path", r"(?<![\w.~*\]>}])/(work|home|root|Users|mnt|opt|media)/\w|\b[A-Z]:\\\\\w"),
    Ban("weights_only", r"weights_only\s*=\s*False"),
]


def banned(root: Path, *folders: str, bans: list[Ban] = BANS) -> list[str]:
    """Return one line per banned word, and per torch.load without weights_only=True."""
    found = []
    for path in sources(root, *folders):
        text = (root / path).read_text()
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{path}:{number}: {ban.what}" for ban in bans
                      if re.search(ban.pattern, line) and not re.fullmatch(ban.except_in, path.as_posix())]
        found += [f"{path}:{line}: torch.load without weights_only=True" for line in _unsafe_loads(text)]
        found += [f"{path}:{line}: an Unpickler that does not refuse every name" for line in _open_unpicklers(text)]
    return found


def _unsafe_loads(text: str) -> list[int]:
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    return [c.lineno for c in calls if not any(
        k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True for k in c.keywords)]


def _open_unpicklers(text: str) -> list[int]:
    """Lines that use pickle.Unpickler, except as the base of a class whose find_class does nothing but raise."""
    tree = ast.parse(text)
    names = [n for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute))]
    used = [n for n in names if ast.unparse(n).endswith("Unpickler")]
    closed = {id(base) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and _refuses(c) for base in c.bases}
    return [n.lineno for n in used if id(n) not in closed]


def _refuses(unpickler: ast.ClassDef) -> bool:
    find = [f for f in unpickler.body if isinstance(f, ast.FunctionDef) and f.name == "find_class"]
    return bool(find) and isinstance(find[0].body[0], ast.Raise)


def test_nothing_forbidden_is_said():
    assert banned(ROOT, "app", "pages", "backend", "benchmarks") == []


def test_no_test_names_this_machine():
    here = Path(__file__).relative_to(ROOT).as_posix()
    paths = [b for b in BANS if b.what == "machine path"]
    assert [f for f in banned(ROOT, "tests", bans=paths) if "machine path" in f and not f.startswith(here)] == []


WORDS = [
    ("backend/analyses/x.py", 'NAME = "blocks.0.attn.hook_pattern"', "hook name"),
    ("backend/jobs/x.py", "import duckdb\nduckdb.connect('f')", "connection"),
    ("backend/models/x.py", "import pickle\npickle.loads(b'')", "unpickling"),
    ("backend/models/x.py", "import pickle\nclass U(pickle.Unpickler): ...", "Unpickler"),
    ("backend/models/x.py", "import pickle\npickle.Unpickler(f).load()", "Unpickler"),
    ("backend/models/x.py", "import pickle\nclass U(pickle.Unpickler):\n def find_class(s, m, n): return exec",
     "Unpickler"),
    ("backend/models/x.py", "import numpy as np\nnp.load('f', allow_pickle=True)", "unpickling"),
    ("backend/models/x.py", "import torch\ntorch.load('f')", "torch.load"),
    ("backend/models/x.py", "import torch\nsafe = True\ntorch.load('f', weights_only=safe)", "torch.load"),
    ("backend/runs/x.py", 'HERE = "/home/someone/runs"', "machine path"),
]


@pytest.mark.parametrize(("path", "text", "complaint"), WORDS)
def test_a_planted_word_is_caught(path, text, complaint, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert complaint in banned(tmp_path, "backend")[0]


def test_a_harmless_file_is_not_caught(tmp_path):
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "x.py").write_text(
        'import torch\n\nA = "rates/home/x"\nB = "https://example.org/home/x"\nwebhook_name = 1\n\n\n'
        'def f(p):\n    """See cache/tensors/."""\n    return torch.load(p, weights_only=True)\n'
        'import pickle\n\n\nclass U(pickle.Unpickler):\n'
        '    def find_class(self, module, name):\n        raise ValueError\n')
    assert banned(tmp_path, "backend") == []


def test_every_room_of_the_table_is_there():
    """A row whose room is gone is a row that guards nothing."""
    later = {"pages/", "app/", "benchmarks/"}
    assert [r.place for r in ROOMS if not (ROOT / r.place).exists() and r.place not in later] == []
