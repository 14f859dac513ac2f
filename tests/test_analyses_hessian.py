"""Curvature of a model's loss: the dense matrix in float64, invariances that force zeros, blocks, chunks, nulls."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_ind
from torch.nn.attention import SDPBackend, sdpa_kernel

from backend.analyses import _curving, registry
from backend.analyses._curving import Surface, blocks_of, layer_of, matrix_of, names_of
from backend.analyses._spectrum import beside_null, smoothed
from backend.contract import Corpus, Rows, View, parse_spec
from backend.errors import BadInput, Unfit
from backend.maths import pyhessian_column, ranks
from backend.models.open import open_model
from backend.runs import corpora
from backend.settings import Settings
from tests.causal_kit import ask
from tests.tiny_models import native_run, settings

SMALL = {"n_layers": 1, "d_model": 6, "d_head": 3, "n_heads": 2, "n_ctx": 12, "d_vocab": 7, "d_mlp": 4,
         "act_fn": "gelu", "normalization_type": "LN"}  # fmt: skip
ROWS = Rows(tokens=np.random.default_rng(0).integers(7, size=(6, 10)), corpus=Corpus(source="random", rows=6))
UNLICENSED = (
    "PyHessian is in no requirement: its LICENSE says MIT, the heads of its sources GPL-3; to run this as well: "
    "pip install --no-deps pyhessian==0.1"
)
MANY = {"products": 90, "k": 3, "probes": 4, "steps": 25, "tolerance": 1e-9, "exact_up_to": 0, "trace_probes": 0}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("small")
    return open_model(parse_spec(f"run:{native_run(root / 'runs' / 'small', SMALL)}"), settings(root))


@pytest.fixture(scope="module")
def truth(small: Any) -> torch.Tensor:
    """The Hessian by torch.func, on the bare module and not on our products.

    Reverse over reverse: `torch.func.hessian` (forward over reverse under vmap) is 1 % off and not symmetric here
    (torch 2.13), while one jvp at a time agrees with this to rounding.
    """
    known, tokens = small.parameters(), torch.as_tensor(ROWS.tokens)
    sizes = [p.numel() for p in known.values()]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = [v.reshape(p.shape) for v, p in zip(vector.split(sizes), known.values(), strict=True)]
        logits = torch.func.functional_call(small.bare, dict(zip(known, parts, strict=True)), (tokens,))
        log_probs = logits[:, :-1].log_softmax(-1)
        return -log_probs.gather(2, tokens[:, 1:, None]).mean()

    with sdpa_kernel(SDPBackend.MATH):
        at = torch.cat([p.detach().reshape(-1) for p in known.values()])
        found = torch.func.jacrev(torch.func.grad(loss))(at)
        torch.testing.assert_close(found, found.T, rtol=1e-10, atol=1e-12)
        return found


def of(table: pd.DataFrame, quantity: str, column: str = "value", whose: str = "model") -> np.ndarray:
    return table[(table["of"] == whose) & (table["quantity"] == quantity)][column].to_numpy(float)


def spectrum_of(model: Any, **params: Any) -> pd.DataFrame:
    return ask(registry()["hessian_spectrum"], model, ROWS, **{**MANY, "null": "none", **params})


def slices(model: Any) -> dict[str, slice]:
    ends = np.cumsum([p.numel() for p in model.parameters().values()])
    return {n: slice(e - p.numel(), e) for (n, p), e in zip(model.parameters().items(), ends, strict=True)}


def test_everything_is_that_of_the_dense_hessian(small: Any, truth: torch.Tensor) -> None:
    table = spectrum_of(small, trace_probes=250)
    values = torch.linalg.eigvalsh(truth).numpy()
    assert of(table, "n_params") == len(values) == small.card.n_params
    np.testing.assert_allclose(of(table, "high"), values[::-1][:3], rtol=1e-8)
    np.testing.assert_allclose(of(table, "low"), values[:3], rtol=1e-6)
    assert (of(table, "high", "error") < 1e-7).all() and (of(table, "high", "converged") == 1).all()
    for name, exact in (("trace", values.sum()), ("participation_ratio", values.sum() ** 2 / (values**2).sum())):
        assert abs(of(table, name)[0] - exact) < 4 * of(table, name, "error")[0]
    assert of(table, "trace", "error")[0] < 0.08 * abs(values.sum())
    assert of(table, "spectral_gap") == pytest.approx(values[-1] - values[-2])
    grid, found = of(table, "density", "at"), of(table, "density")
    exact = smoothed(values, grid, 0.01 / 1.1 * (grid[-1] - grid[0]))
    assert np.trapezoid(found, grid) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(np.abs(found - exact), grid) < 0.15, "share of the spectrum that stands elsewhere"
    for power in (1, 2):  # moments of the density, where tr H and tr H^2 stand behind
        error = 4 * of(table, "density", "error") @ np.abs(grid) ** power * (grid[1] - grid[0])
        assert abs(np.trapezoid((found - exact) * grid**power, grid)) < error
    known, tokens = small.logits(ROWS.tokens).log_softmax(-1), torch.as_tensor(ROWS.tokens)
    assert of(table, "loss")[0] == pytest.approx(-float(known[:, :-1].gather(2, tokens[:, 1:, None]).mean()))


@pytest.mark.parametrize("block", ["layer 0", "layers.0.attn.v.weight"])
def test_a_block_is_the_sub_matrix(small: Any, truth: torch.Tensor, block: str) -> None:
    at = np.concatenate(
        [
            np.arange(s.start, s.stop)
            for n, s in slices(small).items()
            if n in names_of([n], "all") and n in names_of(list(small.parameters()), block)
        ]
    )
    values = torch.linalg.eigvalsh(truth[at][:, at]).numpy()
    table = spectrum_of(small, block=block, exact_up_to=60)
    np.testing.assert_allclose(of(table, "high"), values[::-1][:3], rtol=1e-7)
    np.testing.assert_allclose(of(table, "low"), values[:3], rtol=1e-5, atol=1e-9)
    if len(values) <= 60:  # the dense truth stands beside
        np.testing.assert_allclose(of(table, "high", "exact"), values[::-1][:3], rtol=1e-8)
        np.testing.assert_allclose(of(table, "low", "exact"), values[:3], rtol=1e-8, atol=1e-12)
        told = [of(table, n, "exact")[0] for n in ("trace", "participation_ratio", "spectral_gap")]
        assert told == pytest.approx([values.sum(), values.sum() ** 2 / (values**2).sum(), values[-1] - values[-2]])
        grid, dense = of(table, "density", "at"), of(table, "density", "exact")
        assert np.trapezoid(dense * grid, grid) == pytest.approx(values.mean(), rel=1e-3)


def test_gauss_newton_has_no_negative_eigenvalue_and_is_what_the_logits_make_of_it(small: Any) -> None:
    table = spectrum_of(small, matrix="gauss-newton", block="head.weight", exact_up_to=200)
    assert of(table, "low").min() > -1e-12 and of(table, "low", "exact").min() > -1e-12
    # the loss is convex in the last matrix: there H and its Gauss-Newton part are one
    np.testing.assert_allclose(of(table, "high"), of(spectrum_of(small, block="head.weight"), "high"), rtol=1e-8)


def test_blocks_sum_to_the_whole_and_what_changes_nothing_has_no_curvature(small: Any, truth: torch.Tensor) -> None:
    table = ask(registry()["hessian_blocks"], small, ROWS, probes=8, products=40, tolerance=1e-8, null="none")
    where = slices(small)
    assert list(table["n_params"]) == [s.stop - s.start for s in where.values()]
    for row, at in zip(table.to_dict("records"), where.values(), strict=True):
        part = truth[at, at]
        assert abs(row["trace"] - float(part.trace())) <= 4 * row["trace_se"] + 1e-9, row["matrix"]
        ends = torch.linalg.eigvalsh(part)
        assert row["lambda_max"] == pytest.approx(float(ends[-1]), rel=1e-6, abs=1e-9)
        assert row["lambda_min"] == pytest.approx(float(ends[0]), rel=1e-5, abs=1e-9)
    error = float((table["trace_se"] ** 2).sum() ** 0.5)
    assert abs(table["trace"].sum() - float(truth.trace())) < 4 * error and table["share"].sum() == pytest.approx(1)
    key_bias = table[table["matrix"] == "attn.k.bias"].iloc[0]  # it adds to all scores of a query alike
    assert abs(key_bias["lambda_max"]) < 1e-12 and abs(key_bias["trace"]) < 1e-12
    layers = ask(registry()["hessian_blocks"], small, ROWS, by="layer", null="none", probes=2, products=5)
    assert list(layers["layer"]) == [0, -1] and layers["n_params"].sum() == small.card.n_params


# ---------------------------------------------------------------- chunks, nulls, refusals


def test_chunks_kept_or_built_anew_are_the_whole(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names, products = list(small.parameters()), []
    vector = torch.randn(small.card.n_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = _curving.graph_bytes(small.card, 10)
    for matrix in ("hessian", "gauss-newton"):
        for rows, kept in ((6, True), (4, True), (4, False)):
            monkeypatch.setattr(_curving, "CHUNK_BYTES", rows * each)
            monkeypatch.setattr(_curving, "KEPT_BYTES", 10 * each if kept else 0)
            surface = Surface(small, ROWS.tokens, names, matrix)
            assert len(surface.chunks) == (1 if rows == 6 else 2) and bool(surface.graphs) == kept
            products.append(surface.product(names)(vector))
    for a, b in ((0, 1), (0, 2), (3, 4), (3, 5)):
        torch.testing.assert_close(products[a], products[b], rtol=1e-10, atol=1e-12)


def test_what_is_built_anew_is_declared(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_curving, "KEPT_BYTES", 0)
    few = {"products": 10, "k": 1, "probes": 2, "steps": 5, "trace_probes": 3, "null": "none", "tolerance": 1e-10}
    few["exact_up_to"] = 0
    analysis, calls = registry()["hessian_spectrum"], []
    hook = small.bare.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    table = ask(analysis, small, ROWS, **few)
    hook.remove()
    told = analysis.work(small.card, Corpus(source="random", rows=6, length=10), analysis.params(**few))
    assert len(calls) == told.n_calls == 1 + of(table, "n_matvecs") == 1 + 10 + 2 * 5 + 3


def test_the_nulls_keep_what_they_say(small: Any) -> None:
    names = list(small.parameters())
    mine, null = (Surface(small, ROWS.tokens, names, "hessian", n, 1) for n in ("", "shuffled weights"))
    for name, tensor in mine.parameters.items():
        other = null.parameters[name]
        torch.testing.assert_close(tensor.flatten().sort().values, other.flatten().sort().values)
        assert tensor.numel() < 9 or tensor.std() == 0 or not torch.equal(tensor, other)
    table = ask(registry()["hessian_spectrum"], small, ROWS, **{**MANY, "null": "shuffled targets", "k": 2})
    assert of(table, "loss", whose="null") != of(table, "loss") and set(table["of"]) == {"model", "null"}
    vector = torch.ones(small.card.n_params, dtype=torch.float64)
    each = [
        Surface(small, ROWS.tokens, names, "gauss-newton", n).product(names)(vector) for n in ("", "shuffled targets")
    ]
    torch.testing.assert_close(*each)  # so that null is refused there
    with pytest.raises(BadInput, match="does not know the right ones"):
        spectrum_of(small, matrix="gauss-newton", null="shuffled targets")


def test_a_task_is_judged_by_its_own_answer() -> None:
    model = open_model(parse_spec("run:grokking-demo"), Settings(device="cpu"))
    rows, p = corpora.rows_of(model.card, Corpus(rows=8, length=3)), model.card.training["params"]["p"]
    surface = Surface(model, rows.tokens, ["head.weight"], "hessian")
    told = model.logits(rows.tokens)[:, -1].log_softmax(-1)
    right = torch.as_tensor((rows.tokens[:, 0] + rows.tokens[:, 1]) % p)
    assert surface.loss == pytest.approx(-float(told.gather(1, right[:, None]).mean()), rel=1e-5, abs=1e-9)


def test_blocks_by_name_and_what_is_refused(small: Any) -> None:
    names = ["wte", "h.0.attn.W", "h.1.attn.W", "h.10.b"]
    assert [layer_of(n) for n in names] == [None, 0, 1, 10] and matrix_of("h.10.b") == "b" and matrix_of("wte") == "wte"
    assert names_of(names, "layer 1") == ["h.1.attn.W"] and names_of(names, "wte") == ["wte"]
    assert blocks_of(names) == ["all", "layer 0", "layer 1", "layer 10", *names]
    with pytest.raises(BadInput, match="layer 0 to layer 10, wte"):
        names_of(names, "layer 2")
    analysis = registry()["hessian_spectrum"]
    with pytest.raises(BadInput, match=r"there are all, layer 0, tok_embed"):
        analysis.work(small.card, Corpus(), analysis.params(block="W_Q"))
    with pytest.raises(BadInput, match="knows the Hessian only"):
        spectrum_of(small, matrix="gauss-newton", pyhessian="yes")


def handed_is_the_loss(surface: Any, names: list[str]) -> None:
    """What PyHessian is handed, as the module that it is given, has this loss and, differentiated, its products."""
    forward, criterion, tensors, (inputs, targets) = surface.handed(names)
    module = pyhessian_column._Module(forward, tensors)
    loss = criterion(module(inputs), targets)
    assert float(loss.detach()) == pytest.approx(surface.loss, rel=1e-12)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*module.parameters()], create_graph=True)])
    vector = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=gradient.dtype)
    again = torch.autograd.grad(gradient @ vector, list(module.parameters()))
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in again]), surface.product(names)(vector))


def test_what_pyhessian_is_handed_is_this_loss(small: Any) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        surface = Surface(small, ROWS.tokens, list(small.card.parameters), "hessian")
        handed_is_the_loss(surface, ["head.weight", "layers.0.mlp.fc_in.bias"])


def test_without_pyhessian_the_way_to_install_it_is_said(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyhessian", None)  # Python's own way to say that it is not there
    with pytest.raises(Unfit, match="pip install --no-deps pyhessian"):
        spectrum_of(small, block="head.weight", pyhessian="yes")


@pytest.mark.skipif(not pyhessian_column.installed(), reason=UNLICENSED)
def test_pyhessian_stands_beside_and_its_largest_is_near(small: Any) -> None:
    table = spectrum_of(small, block="head.weight", pyhessian="yes", k=3)
    assert of(table, "high", "pyhessian")[0] == pytest.approx(of(table, "high")[0], rel=0.05)
    assert np.isfinite(of(table, "trace", "pyhessian")).all()


def test_figures_of_every_kind_of_table(small: Any) -> None:
    analysis = registry()["hessian_spectrum"]
    for params in ({"null": "none"}, {"null": "shuffled weights", "block": "layers.0.attn.q.bias"}):
        table = spectrum_of(small, **{**params, "k": 3})
        drawn = [f.build(table.assign(pyhessian=table["value"]), View()) for f in analysis.figures.values()]
        assert [t.name for t in drawn[0].data][-1] == "eigenvalues found at both ends"
        assert {"model", "PyHessian"} <= {t.name for t in drawn[1].data}


def test_what_the_random_vectors_do_not_tell_is_said_with_the_knob() -> None:
    """Welch's interval of two means is scipy's; what covers 0 is not resolved, and names what to raise."""
    dice = np.random.default_rng(0)
    a, b = dice.normal(3, 1, 6), dice.normal(1, 2, 9)
    exact = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    told = [v for x in (a, b) for v in (x.mean(), x.std(ddof=1) / len(x) ** 0.5, len(x))]
    assert ranks.difference(*told) == pytest.approx((exact.low, exact.high))
    rows = [("model", 52.4, 7.05), ("null", 0.686, 1.26)]
    table = pd.DataFrame([{"of": o, "quantity": "participation_ratio", "value": v, "error": e} for o, v, e in rows])
    apart, nothing = beside_null(table, View(params={"probes": 4, "null": "shuffled weights"}))
    assert apart.verdict == "holds"
    assert nothing.criterion == "these random vectors tell the participation ratio of shuffled weights from 0"
    assert "not resolved at this sample. Raise probes (4 now)" in nothing.value
    near = beside_null(table.assign(value=[1.0, 0.7]), View())[0]
    assert near.verdict == "cannot be tested here" and "Raise probes" in near.value
