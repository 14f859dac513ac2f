"""Autoencoders of what an energy computes, beside those of Gaussians and of nets with untrained weights: for
exp003_sparse_features, whose params these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backend.analyses import _energy
from backend.contract import Energies, Matrices

HELD_OUT = 4  # one in so many
DEAD_AFTER, BATCH = 100, 256
DRAWS = 400  # of the bootstrap
NETS = 3  # initialisations of the untrained net
POINTS = 8  # counts of active features at which the error is read, at most

# ---------------------------------------------------------------- what is read


def untrained(net: Any, seed: int) -> Any:
    """Return a net of the same sizes, dtype and device with weights as training begins with, drawn from a seed."""
    import torch

    like = net.fc1.weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(net)(net.d_x, net.d_y, net.width)
    return fresh.to(like.device, like.dtype).requires_grad_(False)


def read(model: Energies, drawn: Matrices, k: int, what: str, net: Any = None) -> Any:
    """Return the samples [n, d_in] of a source in the model's dtype, of the model's net or of another."""
    net = net or model.net
    level = model.level(k, len(drawn.y))
    y = float(model.schedule.abar[k]) ** 0.5 * drawn.y
    if what == "noised field":
        y = _energy.noised(model, drawn, k)
    if what.endswith("field"):
        return net.gradient(drawn.x, y, level).detach()
    return hidden(net, drawn.x, y, level, what).detach()


def hidden(net: Any, x: Any, y: Any, level: Any, what: str) -> Any:
    import torch

    return torch.nn.functional.silu(net.run(x, y, level).z[int(what[1]) - 1])


def mean_hessian(model: Energies, problems: Matrices, k: int) -> Any:
    """Return the mean of d2E/dy2 at the solutions of level k: [d, d] in float64."""
    y = float(model.schedule.abar[k]) ** 0.5 * problems.y
    found = [h.double().sum(0) for h in _energy.hessians(model, problems, k, y)]
    return sum(found) / len(y)


# ---------------------------------------------------------------- autoencoders of one source


def told_of(model: Energies, drawn: Matrices, what: str, params: Any, said: Callable[[float], None]) -> dict[str, Any]:
    """Return what `source` does of the model's net, and in "told" beside it what NETS untrained ones have."""
    found = source(read(model, drawn, params.level, what), params, lambda done: said(done / 3))
    beside_it = []
    for i in range(NETS):
        fresh = untrained(model.net, NETS * params.seed + i)
        data = read(model, drawn, params.level, what, fresh)
        beside_it.append(beside(data, params, lambda done, i=i: said((1 + 2 * (i + done) / NETS) / 3)))
    found["told"] |= over_nets(beside_it)
    return found


def over_nets(found: list[tuple[float, float, float]]) -> dict[str, float]:
    """Return the mean ratio over untrained nets, their standard deviation, and the outermost ends of their intervals:
    what lies outside of these lies outside of every net's."""
    here, low, high = np.array(found).T
    return {"untrained": float(here.mean()), "untrained_low": float(low.min()), "untrained_high": float(high.max()),
            "untrained_spread": float(here.std(ddof=1))}  # fmt: skip


def _parts(data: Any, seed: int) -> tuple[Any, Any, Any, Any]:
    """Return (what is trained on, what is held out, the Gaussian's of both), at a mean square of 1 per coordinate."""
    import torch

    from backend.maths import sae

    data = data.to(torch.promote_types(data.dtype, torch.float32))
    data = data / (data - data.mean(0)).square().mean().sqrt().clamp_min(1e-30)
    held, train = data[::HELD_OUT], data[torch.arange(len(data), device=data.device) % HELD_OUT != 0]
    dice = torch.Generator().manual_seed(seed + 7)
    null, null_held = (sae.gaussian_like(train, len(part), dice) for part in (train, held))
    return train, held, null, null_held


def _fitted(samples: list[tuple[Any, int]], params: Any, said: Any) -> list[tuple[Any, Any]]:
    """Train an autoencoder on each of (samples [n, d_in], seed); return each with how long features were silent."""
    from backend.maths import sae

    found = []
    for i, (part, seed) in enumerate(samples):

        def updated(step: int, i: int = i) -> None:
            said((i + step / params.steps) / len(samples))

        found.append(sae.fit(part, params.d_sae, params.k, params.steps, 3 * params.seed + seed, batch=BATCH,
                             dead_after=DEAD_AFTER, said=updated))  # fmt: skip
    return found


def source(data: Any, params: Any, said: Any) -> dict[str, Any]:
    """Train two seeds and the null; return the first autoencoder and what is said of the source."""
    import torch

    from backend.maths import sae

    train, held, null, null_held = _parts(data, params.seed)
    fitted = _fitted([(train, 0), (train, 1), (null, 2)], params, said)
    (first, silent), (second, _), (other, _) = fitted
    _, cosine = sae.match(first.W_dec, second.W_dec)
    fvu, null_fvu = unexplained(first, held, params.seed), unexplained(other, null_held, params.seed)
    ratio = _ratio(first, held, other, null_held, params.seed)
    whole = [torch.cat(both) for both in ((train, held), (null, null_held))]
    told = {"fvu": fvu[0], "fvu_low": fvu[1], "fvu_high": fvu[2], "null_fvu": null_fvu[0], "null_low": null_fvu[1],
            "null_high": null_fvu[2], "ratio": ratio[0], "ratio_low": ratio[1], "ratio_high": ratio[2],
            "l0": sae.measures(first, held)["l0"],
            "dead": float((silent >= DEAD_AFTER).double().mean()), "mcc": float(cosine.mean()),
            "mcc_null": float(sae.match(first.W_dec, other.W_dec)[1].mean()), "kurtosis": kurtosis(whole[0]),
            "kurtosis_null": kurtosis(whole[1])}  # fmt: skip
    curves = by_count(first, held, params.seed) | by_count(other, null_held, params.seed, "null_")
    return {"sae": first, "held": held, "cosine": cosine.numpy(), "told": told, "curves": curves}


def by_count(sae: Any, x: Any, seed: int, name: str = "") -> dict[str, np.ndarray]:
    """Return how the FVU falls with L0: that of held-out samples, of each only the strongest 1 .. k features kept.

    The autoencoder is one, trained with k; each array has a point per count, of equal number for equal k.
    """
    from backend.maths.sae import largest

    pre, rows = sae.pre(x), []
    for count in np.unique(np.linspace(1, sae.k, min(sae.k, POINTS)).round().astype(int)):
        features = largest(pre, int(count))
        fvu, drawn = _resampled(sae.decode(features), x, seed)
        rows.append([float((features > 0).sum(1).double().mean()), fvu, *np.quantile(drawn, [0.025, 0.975])])
    words = (f"{name}by_l0", f"{name}by_fvu", f"{name}by_low", f"{name}by_high")
    return dict(zip(words, np.array(rows, np.float32).T, strict=True))


def beside(data: Any, params: Any, said: Any) -> tuple[float, float, float]:
    """Return how far the source of an untrained net lies below its own Gaussian, by autoencoders trained alike."""
    train, held, null, null_held = _parts(data, params.seed)
    (one, _), (other, _) = _fitted([(train, 0), (null, 2)], params, said)
    return _ratio(one, held, other, null_held, params.seed)


def _ratio(one: Any, held: Any, other: Any, null_held: Any, seed: int) -> tuple[float, float, float]:
    """Return the FVU over the Gaussian's with its 95 % interval; both are resampled by themselves."""
    fvu, drawn = _resampled(one(held), held, seed)
    null, null_drawn = _resampled(other(null_held), null_held, seed + 1)
    low, high = np.quantile(drawn / np.maximum(null_drawn, 1e-300), [0.025, 0.975])
    return fvu / max(null, 1e-300), float(low), float(high)


def unexplained(sae: Any, x: Any, seed: int) -> tuple[float, float, float]:
    """Return the FVU on samples [n, d_in] with its 95 % bootstrap interval over them."""
    fvu, drawn = _resampled(sae(x), x, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return fvu, float(low), float(high)


def _resampled(found: Any, x: Any, seed: int) -> tuple[float, np.ndarray]:
    """Return (the FVU of reconstructions of samples [n, d_in], that of DRAWS resamples of them)."""
    left = (x - found).double().square().sum(1).cpu().numpy()
    size = np.maximum((x - x.mean(0)).double().square().sum(1).cpu().numpy(), 1e-300)
    drawn = np.random.default_rng(seed).integers(len(left), size=(DRAWS, len(left)))
    return float(left.sum() / size.sum()), left[drawn].sum(1) / size[drawn].sum(1)


def kurtosis(x: Any) -> float:
    """Return the mean over coordinates of E z^4 / (E z^2)^2 - 3, of samples [n, d]; those that never move left out."""
    z = (x - x.mean(0)).double()
    square = z.square().mean(0)
    moved = square > 1e-12 * square.max()
    return float((z.pow(4).mean(0)[moved] / square[moved].square()).mean() - 3) if bool(moved.any()) else 0.0


def directions(model: Energies, problems: Matrices, k: int, what: str, rows: Any) -> Any:
    """Return the directions of features among solutions [feature, d_y]: of a field as they are, of h_l the mean of
    d (h_l . v) / dy over the problems' solutions."""
    import torch

    if what.endswith("field"):
        return rows
    with torch.enable_grad():
        y = (float(model.schedule.abar[k]) ** 0.5 * problems.y).detach().requires_grad_()
        h = hidden(model.net, problems.x, y, model.level(k, len(y)), what)
        said = (h @ rows.to(h).mT).mean(0)
        found = [torch.autograd.grad(s, y, retain_graph=True)[0].sum(0) for s in said]
    return torch.stack(found)
