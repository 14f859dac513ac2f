"""EXP-003: Gaussian data reach their null, a sparse dictionary does not, and directions are derivatives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _dictionaries as code
from backend.analyses import registry
from backend.contract import View
from backend.errors import BadInput
from tests.energy_kit import problems, tiny_energy
from tests.tiny_models import quiet

EXP = registry()["exp003_sparse_features"]
PARAMS = EXP.params(d_sae=16, k=2, steps=180, samples=2048)


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_data_reach_their_null_and_a_sparse_dictionary_does_not():
    wide = torch.randn(2048, 8, generator=dice(0)) @ torch.randn(8, 8, generator=dice(1))
    told = code.source(wide, PARAMS, lambda done: None)["told"]
    assert told["fvu"] == pytest.approx(told["null_fvu"], rel=0.1) and abs(told["kurtosis"]) < 0.3
    words = torch.nn.functional.normalize(torch.randn(12, 8, generator=dice(2)), dim=1)
    active = (torch.rand(2048, 12, generator=dice(3)) < 0.1) * (1 + torch.rand(2048, 12, generator=dice(4)))
    sparse = code.source(active @ words, PARAMS, lambda done: None)["told"]
    assert sparse["fvu_high"] < sparse["null_low"] and sparse["l0"] <= 2


def test_kurtosis_is_that_of_known_distributions():
    flat = torch.rand(200_000, 1, generator=dice(0), dtype=torch.float64)
    assert code.kurtosis(flat) == pytest.approx(-1.2, abs=0.02)  # of a uniform distribution
    constant = torch.cat([torch.randn(200_000, 1, generator=dice(1)), torch.ones(200_000, 1)], 1)
    assert code.kurtosis(constant) == pytest.approx(0, abs=0.05)


def test_a_hidden_direction_is_how_its_reading_moves_with_the_solution(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 3)
    rows = torch.randn(2, 16, generator=dice(0), dtype=torch.float64)
    found = code.directions(model, some, 1, "h2", rows)
    push, root = 1e-6 * torch.eye(4).double(), float(model.schedule.abar[1]) ** 0.5
    for j in range(4):
        up, down = (
            code.hidden(model.net, some.x, root * some.y + s * push[j], model.level(1, 3), "h2") for s in (1, -1)
        )
        moved = ((up - down) @ rows.T / 2e-6).mean(0)
        torch.testing.assert_close(found[:, j], moved, rtol=1e-6, atol=1e-9)


def test_what_a_level_or_a_dictionary_has_not_is_refused_and_fields_bend_as_they_do(tmp_path):
    model = tiny_energy(tmp_path)
    some = problems(model, 4)
    for wrong, words in (({"level": 10}, "levels 0 to 9"), ({"k": 9, "d_sae": 4}, "Lower k")):
        with pytest.raises(BadInput, match=words):
            EXP.compute(model, some, EXP.params(**wrong), quiet)
    table = EXP.compute(model, some, EXP.params(steps=5, samples=64, d_sae=9, k=2), quiet)
    assert (table.untrained != table.ratio).all(), "of other nets; the same one has the same ratio to the bit"
    one = table.iloc[0]
    assert one.by_fvu[-1] == pytest.approx(one.fvu) and one.null_by_fvu[-1] == pytest.approx(one.null_fvu), "all k kept"
    assert one.by_l0[-1] == pytest.approx(one.l0) and one.by_l0[0] <= 1 and len(one.by_l0) == 2
    bent = code.mean_hessian(model, some, 0).numpy()
    for row in table[table.density > 0].iloc[::7].itertuples():
        assert row.rayleigh == pytest.approx(row.direction @ bent @ row.direction, rel=1e-4)
        assert np.linalg.eigvalsh(bent)[0] - 1e-6 <= row.rayleigh <= np.linalg.eigvalsh(bent)[-1] + 1e-6


# ---------------------------------------------------------------- what may be called learnt


def verdicts(**changed):
    """The verdicts on a source of which everything speaks for learnt features, but for what is changed."""
    row = {"what": "h1", "fvu": 0.2, "fvu_low": 0.19, "fvu_high": 0.21, "null_fvu": 0.5, "null_low": 0.48,
           "null_high": 0.52, "ratio": 0.4, "ratio_low": 0.38, "ratio_high": 0.42, "untrained": 0.7,
           "untrained_low": 0.65, "untrained_high": 0.75, "untrained_spread": 0.02,
           "mcc": 0.9, "mcc_null": 0.3, "kurtosis": 2.0}  # fmt: skip
    return [c.verdict for c in EXP.judge(pd.DataFrame([row | changed]), View())]


def test_features_are_learnt_only_where_intervals_part_from_the_gaussian_and_from_untrained_weights():
    assert verdicts() == ["holds", "holds"]
    assert verdicts(fvu=0.45, fvu_high=0.49)[0] == "met by its null", "intervals of data and Gaussian meet"
    assert verdicts(ratio_high=0.66)[0] == "met by its null", "those of trained and untrained weights meet"
    assert verdicts(untrained=0.3, untrained_low=0.2)[0] == "met by its null", "an untrained net does better"
    assert verdicts(mcc_null=0.85)[1] == "fails", "the Gaussian's autoencoder finds these directions as well"
    assert verdicts(mcc=0.7)[1] == "fails"


def test_untrained_weights_of_these_sizes_meet_their_own_null(tmp_path):
    model = tiny_energy(tmp_path)
    one, other, again = (code.untrained(model.net, seed) for seed in (0, 1, 0))
    assert [p.shape for p in one.parameters()] == [p.shape for p in model.net.parameters()]
    told = code.over_nets([(0.5, 0.4, 0.6), (0.6, 0.3, 0.7), (0.7, 0.5, 0.9)])
    assert told == pytest.approx({"untrained": 0.6, "untrained_low": 0.3, "untrained_high": 0.9,
                                  "untrained_spread": 0.1})  # fmt: skip
    assert torch.equal(one.fc2.weight, again.fc2.weight) and not torch.equal(one.fc2.weight, other.fc2.weight)
    drawn = problems(model, 4).more(1024, 0)
    params = EXP.params(d_sae=16, k=2, steps=120)
    mine = code.source(code.read(model, drawn, 3, "h2"), params, lambda done: None)["told"]  # untrained as well
    null = code.beside(code.read(model, drawn, 3, "h2", other), params, lambda done: None)
    assert mine["ratio_high"] < 1, "it lies below its Gaussian without any training"
    assert mine["ratio"] == pytest.approx(null[0], rel=0.3)
    assert mine["ratio"] == pytest.approx(mine["fvu"] / mine["null_fvu"])
