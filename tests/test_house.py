"""The house keeps its word: README, settings and pins in step with the code; a new analysis really is one file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import analyses
from backend.runs import recipes
from backend.settings import ROOT, Settings

README = (ROOT / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading of the README."""
    lines = README.split(f"## {heading}", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    table = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_the_readme_lists_every_analysis() -> None:
    assert {r[0].strip("`"): r[1] for r in rows("Analyses")} == {a.name: a.asks for a in analyses.registry().values()}


def test_the_readme_lists_every_recipe_and_preset() -> None:
    told = {r[0].strip("`"): (r[1], r[2]) for r in rows("Recipes")}
    assert told == {r.name: (r.asks, ", ".join(p.name for p in r.presets)) for r in recipes.registry().values()}


def test_the_readme_lists_every_setting() -> None:
    def default(value: object) -> str:
        return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)

    told = {r[0].strip("`"): (r[1].strip("`").replace("empty", ""), r[2]) for r in rows("Settings")}
    fields = Settings.model_fields.items()
    assert told == {f"PHASESCOPE_{n.upper()}": (default(f.default), f.description) for n, f in fields}


def test_the_readme_lists_every_page() -> None:
    told = {r[0].lower().replace(" ", "_") for r in rows("Pages")}
    pages = {p.stem for p in (ROOT / "pages").glob("*.py")}
    assert told == pages | {a for a in analyses.registry() if a not in pages}


def test_the_readme_names_only_files_that_are_there() -> None:
    named = re.findall(r"(?:app|backend|tests|pages|benchmarks)/[\w./-]+\.(?:py|md|png|toml)", README)
    assert named and [n for n in set(named) if not (ROOT / n).exists() and "next_token_entropy" not in n] == []


def test_every_requirement_is_pinned_and_none_is_copyleft() -> None:
    from importlib import metadata

    lines = [x.split("#")[0].strip() for x in (ROOT / "requirements.txt").read_text().splitlines()]
    for line in filter(None, lines):
        assert re.search(r"==|>=.*<", line), f"{line} is not pinned"
        name = re.split(r"[=<>\[]", line)[0]
        licence = f"{metadata.metadata(name).get('License-Expression')} {metadata.metadata(name).get('Classifier')}"
        assert "GPL" not in licence.replace("LGPL", ""), f"{name}: {licence}"


# ---------------------------------------------------------------- a new analysis is one file


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project into which the README's example was dropped, and nothing else."""
    folder = tmp_path_factory.mktemp("one-file") / "project"
    for part in ("app", "backend", "pages", "tests", ".streamlit"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.S)
    assert example
    (folder / "backend" / "analyses" / "next_token_entropy.py").write_text(example.group(1))
    return folder


def started(copy: Path, *args: str, cache: str = "cache") -> subprocess.Popen[str]:
    """Start Python in the copy with a cache of its own."""
    env = {**os.environ, "PYTHONPATH": str(copy), "PHASESCOPE_CACHE": str(copy / cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *args], cwd=copy, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a process and return what it said."""
    with process:
        out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def python(copy: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy until it ends."""
    return ended(started(copy, *args))


@pytest.fixture(scope="module")
def beside(copy: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The page and the contract tests of the copy, begun at once: while the command is tried a core is free."""
    contract = ("-m", "pytest", "tests/test_contract.py", "-k", "next_token_entropy", "-p", "no:cacheprovider")
    both = {"page": started(copy, "-c", PAGE, cache="cache-of-page"), "contract": started(copy, *contract)}
    yield both
    for process in both.values():
        process.kill()


def test_one_file_gives_a_command_with_flags_a_key_and_a_table(copy: Path, beside: dict) -> None:
    assert "next_token_entropy" in python(copy, "-m", "backend", "list").stdout
    help_ = python(copy, "-m", "backend", "run", "next_token_entropy", "--help").stdout
    assert "--temperature" in help_ and "Shannon" in help_
    ask = ["-m", "backend", "--json", "run", "next_token_entropy", "--model", "run:induction-demo", "--step", "200",
           "--tokens", "5,17,3", "--temperature", "2"]  # fmt: skip
    first, second = python(copy, *ask), python(copy, *ask)
    assert first.returncode == 0, first.stderr
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    assert [r["how"] for r in one["results"] + two["results"]] == ["computed", "cache hit"]
    assert one["results"][0]["key"] == two["results"][0]["key"] and one["table"] == two["table"]
    assert [set(r) for r in one["table"]] == [{"pos", "entropy"}] * 3


PAGE = '''
from streamlit.testing.v1 import AppTest
from app import house
from backend import Backend
house.settle(Backend(inline=True))
source = """
import streamlit as st
from app import auto_page, house
from app.links import PAGES
new = auto_page.page(house.backend().analysis("next_token_entropy"))
st.navigation([new, *(st.Page(p) for p in PAGES.glob("*.py"))]).run()
"""
at = AppTest.from_string(source, default_timeout=90).run()
for _ in range(30):  # a rerun waits some seconds for the job: AppTest does not tick fragments
    if at.get("plotly_chart"):
        break
    at.run()
assert not at.exception, at.exception
assert [n.label for n in at.number_input] == ["Temperature"], at.number_input
assert at.get("plotly_chart"), "no figure"
navigation = AppTest.from_file("app/main.py", default_timeout=90).run()
assert not navigation.exception, navigation.exception
house.backend().close()
print("page ok")
'''


def test_one_file_gives_a_page_with_a_form(beside: dict) -> None:
    done = ended(beside["page"])
    assert "page ok" in done.stdout, done.stdout + done.stderr


def test_one_file_is_covered_by_the_contract_tests(beside: dict) -> None:
    done = ended(beside["contract"])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed.group(1)) >= 4, done.stdout
