"""Job scripts for a SLURM cluster that call the same command line as here. Standard library only.

The template is `slurm.sbatch` beside this file; a cluster is never required.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from backend.errors import BadInput

TEMPLATE = Path(__file__).with_name("slurm.sbatch")
PYTHON = (".venv/bin/python", "-m", "backend")
MOST_HOURS = 24 * 14
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def command(
    analysis: str, spec: str, step: int | None, about: Mapping[str, Any], params: Mapping[str, Any], out: str = ""
) -> list[str]:
    """Return `.venv/bin/python -m backend run ANALYSIS ...`: the words that ask for this result.

    `about` are the subject's flags {"n-problems": 64, "harder": True, ...}: True is a flag alone, False and None are
    left out.
    """
    line = [*PYTHON, "run", analysis, "--model", spec]
    told = {"step": step, **about, **{name.replace("_", "-"): value for name, value in params.items()}, "out": out}
    for name, value in told.items():
        if value is True:
            line.append(f"--{name}")
        elif value is not None and value is not False and value != "":
            line += [f"--{name}", str(value)]
    return line


def script(
    commands: Sequence[Sequence[str]], name: str = "phasescope", hours: float = 1.0, memory_gb: int = 8, cpus: int = 1,
    gpus: int = 0, partition: str = "", runs: str = "",
) -> str:  # fmt: skip
    """Return the text of a job script that runs the commands one after the other, on one node.

    `runs`: the folder of runs (PHASESCOPE_RUNS), where it is not the checkout's own.
    Raises BadInput for a name, partition or amount that SLURM would not take.
    """
    for what, word in (("name", name), ("partition", partition)):
        if (word or what == "name") and not _NAME.fullmatch(word):
            found = "only letters, digits, . - _ may stand in it"
            raise BadInput(f"The job's {what} {word!r}", found, "Choose another")
    if not commands or not 0 < hours <= MOST_HOURS or memory_gb < 1 or cpus < 1 or gpus < 0:
        found = f"{len(commands)} commands, {hours} hours, {memory_gb} GB, {cpus} CPUs, {gpus} GPUs"
        raise BadInput("A job script", found, f"Give a command, up to {MOST_HOURS} hours, and at least 1 GB and 1 CPU")
    more = [f"#SBATCH --partition={partition}"] * bool(partition) + [f"#SBATCH --gres=gpu:{gpus}"] * bool(gpus)
    first = [f"export PHASESCOPE_RUNS={shlex.quote(runs)}"] * bool(runs)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name, time=_clock(hours), memory=memory_gb, cpus=cpus, more="\n".join(more) or "#", device="auto" if gpus
        else "cpu", commands="\n".join([*first, *(_run(line) for line in commands)]))  # fmt: skip


def _clock(hours: float) -> str:
    minutes = max(1, round(60 * hours))
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _run(line: Sequence[str]) -> str:
    """Return a command as the script has it: what it writes lies below $PHASESCOPE_OUT, and one that fails keeps none
    that follow from running."""
    quoted = [shlex.quote(w) for w in line]
    if "--out" in line:
        at = list(line).index("--out") + 1
        quoted[at] = '"$PHASESCOPE_OUT"/' + shlex.quote(Path(line[at]).name)
    return " ".join(quoted) + " || failed=1"
