"""Lanczos against dense truth: known spectra, ghosts, multiplicities, moments; products against autograd's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from backend.maths import curvature, products


def with_spectrum(values: np.ndarray, seed: int = 0) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed),
                                       dtype=torch.float64))  # fmt: skip
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


SPECTRUM = np.concatenate([np.linspace(-1, 1, 290), [5.0, 7.0, 11.0, 19.0, -3.0, -6.5]])


def test_both_ends_are_those_of_the_dense_matrix_with_honest_residuals() -> None:
    matrix = with_spectrum(SPECTRUM)
    found = curvature.extreme(lambda v: matrix @ v, len(matrix), 3, tol=1e-9)
    assert found.converged and found.n_matvecs < 120
    np.testing.assert_allclose(found.high, [19, 11, 7], rtol=1e-12)
    # the third from below lies at the edge of a dense band: its error is bounded by its residual
    truth = np.sort(SPECTRUM)[:3]
    assert (np.abs(found.low - truth) <= found.low_residual + 1e-12).all()
    np.testing.assert_allclose(found.low[:2], [-6.5, -3], rtol=1e-12)
    values = np.concatenate([found.high, found.low])
    true_residual = (matrix @ found.vectors.T - found.vectors.T * torch.tensor(values)).norm(dim=0).numpy()
    np.testing.assert_allclose(true_residual, np.concatenate([found.high_residual, found.low_residual]), atol=1e-10)


def test_no_ghosts_and_what_is_not_found_is_said() -> None:
    matrix = with_spectrum(SPECTRUM)
    product = lambda v: matrix @ v  # noqa: E731
    many = curvature.extreme(product, len(matrix), 20, tol=1e-10)
    np.testing.assert_allclose(many.high, np.sort(SPECTRUM)[::-1][:20], atol=1e-9)
    few = curvature.extreme(product, len(matrix), 20, tol=1e-10, most=44)
    assert not few.converged and few.n_matvecs == 44 and few.high_residual.max() > 1e-6


def test_what_lies_nearly_in_the_basis_is_made_orthogonal_twice() -> None:
    """A part of 1e-10 outside: one pass of Gram-Schmidt leaves 1e-6 of what is left along the basis."""
    dice = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(300, 21, generator=dice, dtype=torch.float64))
    basis, outside = q.T[:20].contiguous(), q[:, 20]
    vector = basis.T @ torch.randn(20, generator=dice, dtype=torch.float64) + 1e-10 * outside
    once = vector - basis.T @ (basis @ vector)
    assert (basis @ once).norm() > 1e-8 * once.norm(), "once is not enough here"
    for along in (None, basis @ vector):
        found = curvature._orthogonal(vector, basis, along)
        assert (basis @ found).norm() < 1e-13 * found.norm()
        assert found @ outside == pytest.approx(1e-10, rel=1e-4)


def test_it_agrees_with_scipy_in_float32() -> None:
    matrix = with_spectrum(SPECTRUM).float()
    found = curvature.extreme(lambda v: matrix @ v, len(matrix), 4, tol=1e-5, like=matrix)
    theirs = eigsh(LinearOperator(matrix.shape, matvec=lambda v: matrix.numpy() @ v, dtype=np.float32), k=4, which="LA",
                   return_eigenvectors=False)  # fmt: skip
    np.testing.assert_allclose(found.high, np.sort(theirs)[::-1], rtol=2e-5)
    assert found.high_residual.min() > 19 * torch.finfo(torch.float32).eps / 2, "no residual is below rounding"


def test_an_error_of_the_products_is_heard_though_the_residuals_vanish() -> None:
    matrix, dice = with_spectrum(SPECTRUM), torch.Generator().manual_seed(1)
    rough = matrix + 1e-5 * torch.randn(len(matrix), len(matrix), generator=dice, dtype=torch.float64)
    found = curvature.extreme(lambda v: rough @ v, len(matrix), 2, tol=1e-9)
    off = np.abs(found.high - [19, 11])
    assert (off > 1e-7).all() and (off <= found.high_residual).all() and found.high_residual.max() < 1e-3
    assert curvature.extreme(lambda v: matrix @ v, len(matrix), 2, tol=1e-9).high_residual.max() < 1e-8


@pytest.mark.parametrize("values", [np.full(12, 2.0), np.zeros(6), np.array([3.0]), np.array([1.0] * 9 + [4.0] * 3)])
def test_few_distinct_eigenvalues_with_their_multiplicity(values: np.ndarray) -> None:
    matrix = with_spectrum(values)
    k = max(1, len(values) // 2)
    found = curvature.extreme(lambda v: matrix @ v, len(values), k)
    np.testing.assert_allclose(found.high, np.sort(values)[::-1][:k], atol=1e-12)
    np.testing.assert_allclose(found.low, np.sort(values)[:k], atol=1e-12)


def test_a_stop_is_heard() -> None:
    def said(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curvature.extreme(lambda v: v, 9, 2, said=said)


def test_quadrature_is_exact_for_moments_and_near_the_density() -> None:
    matrix = with_spectrum(SPECTRUM)
    n = len(matrix)
    found = curvature.quadrature(lambda v: matrix @ v, n, probes=6, steps=12, seed=1)
    dice = torch.Generator().manual_seed(1)
    for probe in range(6):
        v = (torch.randint(0, 2, (n,), generator=dice) * 2 - 1).double() / n**0.5
        w = v
        for power in range(8):  # v'H^p v, exact to degree 2 m - 1
            np.testing.assert_allclose((found.weights[probe] * found.nodes[probe] ** power).sum(), float(v @ w),
                                       rtol=1e-9, atol=1e-12)  # fmt: skip
            w = matrix @ w
    trace, error = found.trace()
    assert abs(trace - SPECTRUM.sum()) < 4 * error
    assert found.participation_ratio() == pytest.approx(SPECTRUM.sum() ** 2 / (SPECTRUM**2).sum(), rel=0.5)
    grid = np.linspace(-10, 25, 2001)
    density, spread = found.density(grid, width=0.5)
    truth = np.exp(-(((grid[:, None] - SPECTRUM) / 0.5) ** 2) / 2).mean(1) / (0.5 * np.sqrt(2 * np.pi))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(np.abs(density - truth), grid) < 0.15 and (spread >= 0).all()


def test_the_jackknife_is_as_wide_as_the_estimates_scatter() -> None:
    matrix = with_spectrum(SPECTRUM + 1)
    each = [curvature.quadrature(lambda v: matrix @ v, len(matrix), probes=12, steps=4, seed=s) for s in range(60)]
    scatter = np.std([q.participation_ratio() for q in each])
    told = np.sqrt(np.mean([q.participation_ratio_error() ** 2 for q in each]))
    assert 0.7 < told / scatter < 1.4


def test_quadrature_of_few_values_ends_early_and_the_identity_has_no_error() -> None:
    found = curvature.quadrature(lambda v: 2 * v, 50, probes=3, steps=20)
    assert found.n_matvecs == 3 and found.trace() == pytest.approx((100, 0), abs=1e-9)
    assert found.participation_ratio() == pytest.approx(50)


# ---------------------------------------------------------------- products


def small_net() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(3)
    x, target = torch.randn(7, 3, generator=dice, dtype=torch.float64), torch.randint(0, 4, (7,), generator=dice)
    weights = [torch.randn(*s, generator=dice, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (5,), (5, 4))]
    return weights, x, target


def outputs(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ weights[0] + weights[1]) @ weights[2]


def test_products_are_those_of_the_dense_matrices() -> None:
    weights, x, target = small_net()
    n = sum(w.numel() for w in weights)

    def loss_of(vector: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs(products.shaped(vector, weights), x), target)

    at = products.flat(weights, weights).detach()
    dense = torch.autograd.functional.hessian(loss_of, at)
    out = outputs(weights, x)
    loss = torch.nn.functional.cross_entropy(out, target)
    product = products.hessian_product(loss, weights)
    mine = torch.stack([product(e) for e in torch.eye(n, dtype=torch.float64)])
    torch.testing.assert_close(mine, dense, rtol=1e-10, atol=1e-12)

    jacobian = torch.autograd.functional.jacobian(lambda v: outputs(products.shaped(v, weights), x).reshape(-1), at)
    inner = torch.autograd.functional.hessian(
        lambda z: torch.nn.functional.cross_entropy(z.reshape(7, 4), target), out.detach().reshape(-1))
    gauss = products.gauss_newton_product(out, loss, weights)
    mine = torch.stack([gauss(e) for e in torch.eye(n, dtype=torch.float64)])
    torch.testing.assert_close(mine, jacobian.T @ inner @ jacobian, rtol=1e-10, atol=1e-12)
    assert torch.linalg.eigvalsh(mine).min() > -1e-12


def test_blocks_unused_and_linear_parameters() -> None:
    weights, x, target = small_net()
    spare = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(outputs(weights, x), target) + weights[1].sum()
    product = products.hessian_product(loss, [weights[1], spare])
    v = torch.arange(1.0, 8.0, dtype=torch.float64)
    assert (product(v)[5:] == 0).all() and product(v)[:5].abs().max() > 0
    linear = products.hessian_product((spare * 3).sum(), [spare])
    assert (linear(torch.ones(2, dtype=torch.float64)) == 0).all()


def test_batches_add_up() -> None:
    weights, x, target = small_net()
    parts = [slice(0, 3), slice(3, 7)]
    each = [products.hessian_product(torch.nn.functional.cross_entropy(outputs(weights, x[s]), target[s]), weights)
            for s in parts]  # fmt: skip
    whole = products.hessian_product(torch.nn.functional.cross_entropy(outputs(weights, x), target), weights)
    v = torch.linspace(-1, 1, sum(w.numel() for w in weights), dtype=torch.float64)
    torch.testing.assert_close(products.mean_product(each, [3 / 7, 4 / 7])(v), whole(v), rtol=1e-10, atol=1e-12)
