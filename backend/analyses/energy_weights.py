"""Which singular values of an energy model's weights stand above noise, and how heavy is their tail?

For every matrix of the net: fc1 to fc4; the two layers that embed the level (time_mlp); the maps from that embedding to
the gain and to the shift of layers 2 and 3 (FiLM: t_map_fc2, t_map_fc3), each of the two by itself. Columns, errors and
null are those of Weight spectra: singular values s, stable rank, participation ratio, the exponent of the tail with its
standard error, beside `draws` random Gaussian matrices of the same shape, scaled so that the medians meet. `edge` is
where the bulk of Marchenko and Pastur ends; noise of that shape has a value above `edge_high` in 5 % of matrices; z =
(exponent - mean of the null) / sd of the null. An untrained layer is uniform noise, of which the same law holds.
Small matrices say little: 9 singular values have no tail, and their median says the noise's scale to a tenth.

Exact but for the null. Cost: no call of the model, an SVD per matrix.
Source: Marchenko and Pastur (1967); Martin and Mahoney (2021), Implicit self-regularization in deep neural networks;
Clauset, Shalizi and Newman (2009), section 3; Du, Mao and Tenenbaum (2024), appendix A, for the net.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from backend.analyses._weight_spectra import VALUES, Nulls, WeightNullParams, bulks, in_words, row_of, tails
from backend.contract import Axis, Energies, EnergyWeights, ModelCard, Progress, View, analysis
from backend.costs import Work
from backend.figures import bars

MODULES = ("fc1", "fc2", "fc3", "fc4", "time_mlp.1", "time_mlp.3", "t_map_fc2", "t_map_fc3")


class EnergyWeightsParams(WeightNullParams):
    """The null."""


@analysis(
    version=1, group="Spectra", title="Energy weights",
    asks="Which singular values of an energy model's weights stand above noise, and how heavy is their tail?",
    subject=EnergyWeights, params=EnergyWeightsParams,
    axes=[Axis("module", "which layer of the net", words=MODULES),
          Axis("part", "whole; of the maps from the level's embedding (FiLM) gain and shift", kind="str")],
    values=VALUES,
)  # fmt: skip
def energy_weights(
    model: Energies, subject: EnergyWeights, params: EnergyWeightsParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per (module, part)."""
    import torch

    nulls, rows, known = Nulls(params), list[dict[str, Any]](), model.weights()
    for module, name in enumerate(MODULES):
        progress(module / len(MODULES), name)
        for part, matrix in known[name].items():
            values = torch.linalg.svdvals(matrix.double()).cpu().numpy()
            shape = (int(matrix.shape[0]), int(matrix.shape[1]), 0)
            rows.append({"module": module, "part": part, **row_of(values, nulls[shape])})
    declared: Any = energy_weights
    return pd.DataFrame(rows)[[c.name for c in (*declared.axes, *declared.values)]].astype({"tail_n": "Int64"})


@energy_weights.costs
def work(card: ModelCard, subject: EnergyWeights, params: EnergyWeightsParams) -> Work:
    """No call: an SVD per matrix (about 14 n m min(n, m)) and per draw of the null."""
    sizes = [n for name, n in card.parameters.items() if name.endswith("weight")] or [card.n_params]
    widest = max(int(card.energy["width"]), 128)
    values = (params.draws + 4) * widest * 8.0 * len(MODULES)
    return Work((), 8.0 * 2 * max(sizes) + values, 14.0 * widest * (sum(sizes) + params.draws * len(sizes) * widest),
                knobs="Ask for fewer draws of the null")  # fmt: skip


# ---------------------------------------------------------------- figures


@energy_weights.figure("The largest singular value beside noise")
def largest(table: pd.DataFrame, view: View) -> Any:
    """Each matrix' largest singular value over the edge of its noise; grey: what noise passes in 5 % of matrices."""
    known = table.dropna(subset=["edge"])
    rows = known.to_dict("records")
    return bars([_name(r) for r in rows], known["largest"] / known["edge"], null=known["edge_high"] / known["edge"],
                hover=[in_words(r, _name) for r in rows], x_title="matrix", y_title="largest value / edge of noise",
                names_of=("measured", "95 % of random matrices"))  # fmt: skip


@energy_weights.figure("Tail exponents beside random matrices")
def exponents(table: pd.DataFrame, view: View) -> Any:
    """The matrices whose tail differs most from noise of their shape; grey: the null's mean."""
    return tails(table, _name)


@energy_weights.figure("Spectrum beside noise", choose=("module",))
def bulk(table: pd.DataFrame, view: View) -> Any:
    """The singular values of the chosen layer's matrices; grey: Marchenko and Pastur's law."""
    return bulks(table[table["module"] == table["module"].iloc[0]].to_dict("records"), _name)


def _name(row: Any) -> str:
    return MODULES[int(row["module"])] + ("" if row["part"] == "whole" else f" {row['part']}")
