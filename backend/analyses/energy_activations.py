"""How many directions do an energy model's hidden layers use, level by level, and does one direction or unit rule them?

h1, h2 and h3 at the noised solutions sqrt(abar_k) y + sigma_k eps of every problem, for every annealing level k: the
eigenvalues of their covariance over problems. Participation ratio (without bias from the number of problems), RankMe,
share of the largest eigenvalue, rogue units, their errors and the null (every unit shuffled over problems by itself)
are those of Activation spectra; rows are problems, of which there may be fewer than units: RankMe cannot exceed their
number less one, nor can the null's, so ask about many.
Exact but for the null. Cost: a forward per problem and level; an eigenproblem of the width per group and draw.
Source: Gao et al. (2017), A theory of multineuronal dimensionality; Srivastava (2005), lemma 2.1; Garrido et al.
(2023), RankMe; Du, Mao and Tenenbaum (2024), Learning Iterative Reasoning through Energy Diffusion, appendix A.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from backend.analyses import _energy
from backend.analyses._activation_spectra import (
    GROUPS,
    VALUES,
    SpectraOfActivationsParams,
    eigenvalues_of,
    in_words,
    measured,
    operations,
    over,
)
from backend.analyses._dictionaries import hidden
from backend.contract import Axis, Energies, Matrices, ModelCard, Problems, Progress, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import CATEGORIES, bars

POINTS = ("h1", "h2", "h3")


class EnergyActivationsParams(SpectraOfActivationsParams):
    """The null, and what counts as rogue."""


@analysis(
    version=1, group="Spectra", title="Energy activations",
    asks="How many directions do an energy model's hidden layers use, and does one rule them?",
    subject=Problems, params=EnergyActivationsParams,
    axes=[_energy.LEVEL, Axis("point", "hidden layer: h1, h2 or h3", kind="str")],
    values=VALUES,
)  # fmt: skip
def energy_activations(
    model: Energies, problems: Matrices, params: EnergyActivationsParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (level, hidden layer)."""
    import torch

    if len(problems.y) < 4:
        raise BadInput("Energy activations", f"{len(problems.y)} problems, at least 4 are needed", "Ask about more")
    rows = []
    for k in range(model.schedule.levels):
        progress(k / model.schedule.levels, f"level {k}")
        y, level = _energy.noised(model, problems, k), model.level(k, len(problems.y))
        for point in POINTS:
            with torch.no_grad():
                x = hidden(model.net, problems.x, y, level, point).cpu()
            rows.append({"level": k, "point": point, **measured(x[:, None], params)})
    declared: Any = energy_activations
    return pd.DataFrame(rows)[[c.name for c in (*declared.axes, *declared.values)]]


@energy_activations.costs
def work(card: ModelCard, subject: Problems, params: EnergyActivationsParams) -> Work:
    """A forward per problem, level and hidden layer; covariances and their eigenvalues."""
    levels, width = int(card.energy["levels"]), int(card.energy["width"])
    each = operations(width, subject.n, min(GROUPS, subject.n), params.draws)
    rows = subject.n * levels * len(POINTS)
    return _energy.work(card, energies=rows, at_once=subject.n, operations=each * levels * len(POINTS),
                        held_numbers=12.0 * subject.n * width + 16.0 * width**2)  # fmt: skip


# ---------------------------------------------------------------- figures


@energy_activations.figure("Participation ratio")
def ratio(table: pd.DataFrame, view: View) -> Any:
    """The number of directions in use, by level; dotted: every unit shuffled by itself."""
    return over(table, "level", "participation_ratio", "participation ratio", _name)


@energy_activations.figure("RankMe")
def rank(table: pd.DataFrame, view: View) -> Any:
    """The effective rank, which weighs small directions more, by level; dotted: shuffled."""
    return over(table, "level", "rankme", "RankMe", _name)


@energy_activations.figure("Share of the largest eigenvalue")
def top(table: pd.DataFrame, view: View) -> Any:
    """How much of the variance lies along one direction, by level; dotted: shuffled."""
    return over(table, "level", "top_share", "share of the variance, 0 to 1", _name)


@energy_activations.figure("The largest unit", choose=("level",))
def units(table: pd.DataFrame, view: View) -> Any:
    """The share of the mean square that one unit holds; orange where it is rogue; grey: an equal share."""
    mine = _level(table)
    rows = mine.to_dict("records")
    equal = 1 / max(1, int((view.card.get("energy") or {}).get("width", 0) or 1))
    return bars([f"{r['point']}: unit {r['coordinate']}" for r in rows], mine["coordinate_share"],
                null=[equal] * len(rows), hover=[in_words(r, _name) for r in rows],
                colours=[CATEGORIES[1 if r["rogue"] else 0] for r in rows], x_title="layer: its largest unit",
                y_title="share of the mean square", names_of=("largest unit", "equal share"))  # fmt: skip


@energy_activations.figure("Eigenvalues of one level", choose=("level",))
def eigenvalues(table: pd.DataFrame, view: View) -> Any:
    """The spectrum of each hidden layer at the chosen level; grey: shuffled units."""
    return eigenvalues_of(_level(table))


def _level(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["level"] == table["level"].iloc[0]]


def _name(row: Any) -> str:
    return f"{row['point']}, level {row['level']}"
