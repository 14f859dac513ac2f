"""Curvature of an energy model's own loss: the dense matrix in float64, what is linear, levels, chunks, the null."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses import _curving, _denoising, _energy, energy_hessian, registry
from backend.analyses._curving import Curved, parts_of
from backend.analyses._denoising import Denoising
from backend.contract import Problems
from backend.errors import BadInput, Unfit
from backend.maths import pyhessian_column
from tests.causal_kit import ask
from tests.energy_kit import problems, tiny_energy
from tests.test_analyses_hessian import UNLICENSED, handed_is_the_loss, of

N = 3
EXACT = {"products": 400, "k": 3, "tolerance": 1e-10, "probes": 2, "steps": 5, "trace_probes": 30, "exact_up_to": 0,
         "null": "none", "by_module": "no"}  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_energy(tmp_path_factory.mktemp("energy"), dtype="float64", side=2, width=6, scale=2.0)


@pytest.fixture(scope="module")
def some(net: Any) -> Any:
    return problems(net, n=N)


def table(net: Any, some: Any, **params: Any) -> pd.DataFrame:
    return ask(registry()["energy_hessian"], net, some, **{**EXACT, **params})


def loss_by(net: Any, some: Any, names: list[str], levels: list[int]) -> tuple[Callable[[Any], Any], torch.Tensor]:
    """The loss of these parameters as one vector by torch.func alone, with grad by y within; and the net's own."""
    own = {name: p.detach() for name, p in net.net.named_parameters()}
    sizes = [own[name].numel() for name in names]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = zip(names, vector.split(sizes), strict=True)
        at = {**own, **{name: part.reshape(own[name].shape) for name, part in parts}}
        found = torch.zeros((), dtype=torch.float64)
        for k in levels:
            y = float(net.schedule.abar[k]) ** 0.5 * some.y + float(net.schedule.sigma[k]) * some.noise

            def energy(y: torch.Tensor, k: int = k) -> torch.Tensor:
                return torch.func.functional_call(net.net, at, (some.x, y, net.level(k, N))).sum()

            found = found + (torch.func.grad(energy)(y) - some.noise).square().mean() / len(levels)
        return found

    return loss, torch.cat([own[name].reshape(-1) for name in names])


def truth(net: Any, some: Any, names: list[str], levels: list[int]) -> torch.Tensor:
    """The Hessian over these parameters: jacrev(grad) of the loss."""
    loss, at = loss_by(net, some, names, levels)
    return torch.func.jacrev(torch.func.grad(loss))(at)


def test_everything_is_that_of_the_dense_hessian(net: Any, some: Any) -> None:
    names = [name for name in net.card.parameters if name.startswith(("fc1", "fc3"))]
    for block, part in (("fc1", names[:2]), ("fc3.weight", names[2:3])):
        values = torch.linalg.eigvalsh(truth(net, some, part, list(range(10)))).numpy()
        found = table(net, some, block=block, exact_up_to=100, by_module="yes")
        size = np.abs(values).max()
        np.testing.assert_allclose(of(found, "high"), values[::-1][:3], atol=1e-8 * size)
        np.testing.assert_allclose(of(found, "low"), values[:3], atol=1e-8 * size)
        np.testing.assert_allclose(of(found, "high", "exact"), values[::-1][:3], atol=1e-9 * size)
        assert abs(of(found, "trace")[0] - values.sum()) < 4 * of(found, "trace", "error")[0]
        ratio = of(found, "participation_ratio", "exact")[0]
        assert ratio == pytest.approx(values.sum() ** 2 / (values**2).sum())
        assert set(found[found["quantity"] == "module_high"]["block"]) == {block.partition(".")[0]}
        assert of(found, "module_high") == pytest.approx(values[-1], rel=1e-3)
        assert of(found, "module_low") == pytest.approx(values[0], abs=1e-3 * size)
    sharp = table(net, some, block="fc3.weight", level=0)
    assert of(sharp, "high")[0] == pytest.approx(
        float(torch.linalg.eigvalsh(truth(net, some, names[2:3], [0]))[-1]), rel=1e-8
    )


def test_the_gradient_field_is_linear_in_the_last_bias_and_there_h_is_its_gauss_newton_part(
    net: Any, some: Any
) -> None:
    """dE/dy = 2 J'(W h + b), so H over b is 8 / (entries) sum J J' with J = d output / dy, at every weight."""
    found = 0.0
    for k in range(10):
        y = _energy.noised(net, some, k)
        for i in range(N):
            one = torch.func.jacrev(lambda t, i=i, k=k: net.net.run(some.x[i : i + 1], t, net.level(k, 1)).output[0])
            jacobian = one(y[i : i + 1])[:, 0]
            found = found + 8 * jacobian @ jacobian.T / (10 * N * 4)
    exact = torch.linalg.eigvalsh(found).numpy()[::-1]
    for matrix in ("hessian", "gauss-newton"):
        rows = table(net, some, block="fc4.bias", matrix=matrix, k=2)
        np.testing.assert_allclose(of(rows, "high"), exact[:2], rtol=1e-8)
    whole = table(net, some, block="fc2", matrix="gauss-newton", exact_up_to=100)
    assert of(whole, "low", "exact").min() > -1e-12 and of(table(net, some, block="fc2"), "low").min() < -1e-6


def test_chunks_are_the_whole_and_the_loss_is_that_of_the_recipe(
    net: Any, some: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.runs.recipes import energy

    names, levels = list(net.card.parameters), list(range(10))
    vector = torch.randn(net.card.n_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each, products = _denoising.graph_bytes(net.card), []
    for rows, kept in ((30, True), (8, True), (8, False)):
        monkeypatch.setattr(_curving, "CHUNK_BYTES", rows * each)
        monkeypatch.setattr(_curving, "KEPT_BYTES", 100 * each if kept else 0)
        surface = Denoising(net, some, levels, names, "hessian")
        assert len(surface.chunks) == -(-30 // rows) and bool(surface.graphs) == kept
        products.append(surface.product(names)(vector))
    for other in products[1:]:
        torch.testing.assert_close(other, products[0], rtol=1e-10, atol=1e-12)
    held = object.__new__(energy.HeldOut)
    held.net, held.x, held.y, held.noise = net.net, some.x, some.y, some.noise
    assert surface.loss == pytest.approx(held.loss(net.schedule), rel=1e-12)


def test_modules_sum_to_the_whole_and_the_null_is_drawn_anew(net: Any, some: Any) -> None:
    found = table(net, some, by_module="yes", null="shuffled noise", products=10)
    parts = found[found["quantity"] == "module_trace"]
    assert list(parts["block"]) == list(parts_of(list(net.card.parameters), layered=False))
    error = float((parts["error"] ** 2).sum() + of(found, "trace", "error")[0] ** 2) ** 0.5
    assert abs(parts["value"].sum() - of(found, "trace")[0]) < 4 * error
    assert of(found, "loss", whose="null")[0] != of(found, "loss")[0]
    analysis = registry()["energy_hessian"]
    told = analysis.work(net.card, Problems(n=N), analysis.params(**{**EXACT, "by_module": "yes", "null": "none"}))
    assert told.tokens == 10 * N and told.operations > 0
    with pytest.raises(BadInput, match="does not know them"):
        table(net, some, matrix="gauss-newton", null="shuffled noise")
    with pytest.raises(BadInput, match="levels 0 to 9"):
        table(net, some, level=10)
    with pytest.raises(BadInput, match="no such block"):
        table(net, some, block="layer 7")


def test_the_null_has_the_models_weights_in_another_order(net: Any, some: Any) -> None:
    """By default: each tensor holds the same entries elsewhere, so that the loss is another; the data stay."""
    names = list(net.card.parameters)
    assert registry()["energy_hessian"].params().null == "shuffled weights"
    own, null, again = (Denoising(net, some, [0], names, "hessian", *told)
                        for told in ((), ("shuffled weights", 0), ("shuffled weights", 1)))  # fmt: skip
    for name, tensor in own.parameters.items():
        other = null.parameters[name]
        torch.testing.assert_close(other.detach().flatten().sort().values, tensor.detach().flatten().sort().values)
        assert tensor.numel() < 4 or not torch.equal(other, tensor), name
    assert len({round(one.loss, 9) for one in (own, null, again)}) == 3
    assert torch.equal(own.y, null.y) and torch.equal(own.right, null.right)
    found = table(net, some, block="fc4.bias", level=0, null="shuffled weights")
    assert of(found, "loss")[0] == pytest.approx(own.loss) and of(found, "loss", whose="null")[0] == pytest.approx(
        null.loss
    )


def test_what_pyhessian_is_handed_is_this_loss(net: Any, some: Any) -> None:
    """It differentiates the field and the squared error itself; where it is not installed it is asked for in vain."""
    handed_is_the_loss(Denoising(net, some, [0, 5], list(net.card.parameters), "hessian"), ["fc1.weight", "fc4.bias"])
    with pytest.raises(BadInput, match="knows the Hessian only"):
        table(net, some, matrix="gauss-newton", pyhessian="yes")
    if not pyhessian_column.installed():
        with pytest.raises(Unfit, match="pip install --no-deps pyhessian"):
            table(net, some, block="fc4.bias", pyhessian="yes")


@pytest.mark.skipif(not pyhessian_column.installed(), reason=UNLICENSED)
def test_pyhessian_stands_beside_and_its_largest_is_near(net: Any, some: Any) -> None:
    found = table(net, some, block="fc4.bias", pyhessian="yes")
    assert of(found, "high", "pyhessian")[0] == pytest.approx(of(found, "high")[0], rel=0.05)
    assert np.isfinite(of(found, "trace", "pyhessian")).all()


class Bowl(Curved):
    """sum h w^2 / 2, curved by h."""

    def __init__(self, curved: torch.Tensor):
        self.model, self.matrix, self.curved = None, "hessian", curved
        self.parameters = {"w": torch.ones_like(curved, requires_grad=True)}
        self.chunks, self.kept = [slice(0, 1)], True
        self._built(1)

    def _graph(self, chunk: slice) -> tuple[Any, Any]:
        w = self.parameters["w"]
        return w, (self.curved * w.square()).sum() / 2


def test_an_end_of_a_module_that_has_not_converged_is_not_called_so() -> None:
    """30 products find both ends of four eigenvalues, and neither of 2000 that lie evenly."""
    params = registry()["energy_hessian"].params(tolerance=1e-6)
    few, many = torch.tensor([-3.0, 1.0, 2.0, 5.0]).double(), torch.linspace(-1, 1, 2000).double()
    for curved, whole in ((few, [1, 1]), (many, [0, 0])):
        trace, *ends = energy_hessian._module(Bowl(curved), ["w"], params, lambda _: None)
        assert [row["quantity"] for row in ends] == ["module_high", "module_low"]
        assert [row["converged"] for row in ends] == whole
        assert trace["value"] == pytest.approx(float(curved.sum()), abs=1e-9)
        if all(whole):
            assert [row["value"] for row in ends] == pytest.approx([5, -3])
