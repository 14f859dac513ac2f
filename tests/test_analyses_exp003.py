"""EXP-003: Gaussian data reach their null, a sparse dictionary does not, and directions are derivatives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _dictionaries as code
from backend.analyses import exp003_sparse_features, registry
from backend.contract import View
from backend.errors import BadInput
from backend.maths.sae import Sae
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


def test_a_source_is_read_where_and_in_the_layer_that_it_is_called_after(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some, net, k = problems(model, 3), model.net, 6
    solution, level = float(model.schedule.abar[k]) ** 0.5 * some.y, model.level(k, 3)
    noised = solution + float(model.schedule.sigma[k]) * some.noise
    for what, y in (("residual field", solution), ("noised field", noised)):
        torch.testing.assert_close(code.read(model, some, k, what), net.gradient(some.x, y, level), rtol=1e-9, atol=0)
    into = [getattr(net, f"fc{i}").register_forward_pre_hook(lambda _, args: seen.append(args[0])) for i in (2, 3, 4)]
    seen: list[torch.Tensor] = []
    net(some.x, solution, level)
    for hook in into:
        hook.remove()
    for what, hidden in zip(("h1", "h2", "h3"), seen, strict=True):
        torch.testing.assert_close(code.read(model, some, k, what), hidden, rtol=1e-9, atol=1e-12)


def test_the_mean_hessian_is_that_at_the_solutions(tmp_path):
    model = tiny_energy(tmp_path, "float64", side=2)
    some, k = problems(model, 3), 6
    y = float(model.schedule.abar[k]) ** 0.5 * some.y

    def energies(v):
        return model.net(some.x, v.expand(3, -1) + y, model.level(k, 3)).mean()

    bent = torch.autograd.functional.hessian(energies, torch.zeros(4).double())
    torch.testing.assert_close(code.mean_hessian(model, some, k), bent, rtol=1e-8, atol=1e-10)


def test_held_out_samples_are_not_trained_on():
    data = torch.randn(43, 3, generator=dice(0))
    train, held, null, null_held = code._parts(data, 0)
    alike = (train[:, None] == held).all(-1)
    assert not alike.any(), "none of the held-out samples is among those that are trained on"
    assert [len(part) for part in (train, held, null, null_held)] == [32, 11, 32, 11]
    scale = (data - data.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(torch.cat([train, held]).sum(0) * scale, data.sum(0), rtol=1e-4, atol=1e-4)


def test_a_feature_is_shown_with_its_strongest_sample_and_beside_the_mean_bend(tmp_path):
    """Two features that read the two first coordinates: 1 is the more often active, so it is the first row."""
    model = tiny_energy(tmp_path, "float64", side=2)
    some = problems(model, 3)
    drawn = some.more(16, 0)
    sae = Sae(4, 2, 2, dtype=torch.float64).requires_grad_(False)
    sae.W_enc.copy_(torch.eye(4)[:, :2])
    held = torch.tensor([[1.0, 2, 0, 0], [3, 1, 0, 0], [-1, 7, 0, 0], [-1, 5, 0, 0]]).double()
    bent = torch.diag(torch.tensor([1.0, 2, 3, 6])).double()
    found = {"sae": sae, "held": held, "cosine": np.array([0.25, 0.5]), "told": {}, "curves": {}}
    rows = exp003_sparse_features._table(model, some, drawn, found, bent, PARAMS, 0)
    assert list(rows.density) == [1, 0.5] and list(rows.cosine) == [0.5, 0.25]
    np.testing.assert_allclose(np.stack(rows.example.to_list()), drawn.y[[8, 4]], rtol=1e-6)
    np.testing.assert_allclose(rows.rayleigh_null, 3)  # (1 + 2 + 3 + 6) / 4


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


def claims(*rows):
    """What is said of sources of which everything speaks for learnt features, but for what is changed in each."""
    row = {"what": "h1", "fvu": 0.2, "fvu_low": 0.19, "fvu_high": 0.21, "null_fvu": 0.5, "null_low": 0.48,
           "null_high": 0.52, "ratio": 0.4, "ratio_low": 0.38, "ratio_high": 0.42, "untrained": 0.7,
           "untrained_low": 0.65, "untrained_high": 0.75, "untrained_spread": 0.02,
           "mcc": 0.9, "mcc_null": 0.3, "kurtosis": 2.0}  # fmt: skip
    return EXP.judge(pd.DataFrame([row | {"what": f"h{i}"} | more for i, more in enumerate(rows, 1)]), View())


def verdicts(**changed):
    return [c.verdict for c in claims(changed)]


def test_features_are_learnt_only_where_intervals_part_from_the_gaussian_and_from_untrained_weights():
    assert verdicts() == ["holds", "holds"]
    assert verdicts(fvu=0.45, fvu_high=0.49)[0] == "met by its null", "intervals of data and Gaussian meet"
    assert verdicts(ratio_high=0.66)[0] == "met by its null", "those of trained and untrained weights meet"
    assert verdicts(untrained=0.3, untrained_low=0.2)[0] == "met by its null", "an untrained net does better"
    assert verdicts(mcc_null=0.85)[1] == "fails", "the Gaussian's autoencoder finds these directions as well"
    assert verdicts(mcc=0.7)[1] == "fails"


def test_within_the_spread_over_initialisations_nothing_is_told_of_training():
    """.65 is the lowest end of the untrained nets' intervals, .02 their spread: learnt below .61 only."""
    said = claims({"ratio_high": 0.609}, {"ratio_high": 0.611}, {"untrained_spread": 0.12})
    assert [c.verdict for c in said[:3]] == ["holds", "cannot be tested here", "cannot be tested here"]
    assert all("over held-out samples of one trained autoencoder" in c.value for c in said[:3])


def test_seeds_agree_only_where_one_source_meets_both_conditions():
    near, far = {"mcc": 0.85, "mcc_null": 0.84}, {"mcc": 0.5, "mcc_null": 0.3}
    assert claims(near, far)[-1].verdict == "fails", "one source agrees as its null does, the other not enough"
    assert claims(near, far, {"mcc": 0.81, "mcc_null": 0.7})[-1].verdict == "holds"


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
