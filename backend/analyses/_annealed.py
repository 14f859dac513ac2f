"""What inference down the levels gives beside what needs none, and what its answers hold: for exp010_annealing."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.analyses import _energy
from backend.analyses._units import bootstrap
from backend.contract import Energies, Matrices

ZERO = 1e-6  # singular values below this share of the largest are none
DRAWS = 400  # of the bootstrap over problems
SHOWN = 3  # problems whose matrices are kept to look at


def infer(model: Energies, x: Any, start: Any, inner: int) -> Any:
    from backend.maths import annealed_inference

    return annealed_inference.infer(model.net, x, start, model.schedule, inner)


def trivial(model: Energies, problems: Matrices) -> list[dict[str, float]]:
    """Return by level the errors of what needs no levels."""
    from backend.maths import annealed_inference, trivial_answers

    fit = problems.more(_energy.FIT_PROBLEMS, 0)
    told = trivial_answers.errors(fit.x, fit.y, problems.x, problems.y)
    linear = trivial_answers.answers(fit.x, fit.y, problems.x)["linear"]
    shares = {f"linear_{name}": value for name, value in directions(linear, problems).items()}
    mean = _energy.posterior_mean(problems)
    bayes = float("nan") if mean is None else float(_energy.squared_error(mean, problems).mean())
    known = {name: float(e.mean()) for name, e in told.items()} | shares | {"bayes": bayes}
    rows = []
    for k in range(model.schedule.levels):
        level = model.level(k, len(problems.y))
        jump = annealed_inference.guess(model.net, problems.x, problems.noise, level, model.schedule, k)
        rows.append(known | {"one_jump": float(_energy.squared_error(jump, problems).mean())})
    return rows


def chosen(model: Energies, problems: Matrices, starts: int, inner: int, seed: int) -> list[dict[str, float]]:
    """Return by level what many starts, and problems exchanged for others, give with the chosen steps."""
    import torch

    n, d = problems.y.shape
    dice = torch.Generator().manual_seed(seed + 1)
    others = torch.randn(starts - 1, n, d, generator=dice).to(problems.noise)
    start = torch.cat([problems.noise[None], others]).flatten(0, 1)
    found = infer(model, problems.x.repeat(starts, 1), start, inner)
    answers = found.solutions.unflatten(1, (starts, n)).double()
    spread = answers.var(1).mean((1, 2)).sqrt().tolist()
    rms = (answers - problems.y.double()).square().mean((1, 2, 3)).sqrt().tolist()
    shuffled = [float("nan")] * len(rms)
    if problems.x.shape[1] and n > 1:
        turned = infer(model, problems.x.roll(1, 0), problems.noise, inner).solutions
        shuffled = (turned - problems.y).double().square().mean((1, 2)).tolist()
    return [{"spread": s, "rms": r, "shuffled": o} for s, r, o in zip(spread, rms, shuffled, strict=True)]


def level_rows(
    found: Any, errors: np.ndarray, plain: np.ndarray, problems: Matrices, seed: int
) -> list[dict[str, Any]]:
    """Return by level what one inference says: `errors` [level, problem] of it, `plain` those without steps."""
    shares = emergence(found.solutions, problems, seed)
    return [{**error(errors[k], plain[k], seed), "accepted": float(found.accepted[k]), **shares[k],
             "to_mean": distance(found.solutions[k], problems), **looked_at(problems, found.solutions[k])}
            for k in range(len(shares))]  # fmt: skip


def error(errors: np.ndarray, plain: np.ndarray, seed: int) -> dict[str, float]:
    """Return the mean error and its gain over 0 steps with their intervals, over problems."""
    low, high = bootstrap(errors, seed)
    drawn = np.random.default_rng(seed).integers(len(errors), size=(1000, len(errors)))
    gains = 1 - errors[drawn].mean(1) / plain[drawn].mean(1)
    ends = np.quantile(gains, [0.025, 0.975])
    return {"mse": float(errors.mean()), "mse_low": low, "mse_high": high,
            "gain": float(1 - errors.mean() / plain.mean()), "gain_low": ends[0], "gain_high": ends[1]}  # fmt: skip


def directions(answers: Any, problems: Matrices) -> dict[str, float]:
    """Return the share of the truth's first and last singular direction that answers [n, d] hold."""
    held, weight = _held(answers, problems)
    return dict(zip(("coarse", "fine"), (held.sum(0) / weight.sum(0)).tolist(), strict=True))


def emergence(solutions: Any, problems: Matrices, seed: int) -> list[dict[str, float]]:
    """Return by level the shares of answers [level, n, d] with their 95 % intervals over problems, and `ahead`: how
    many levels before the last direction the first one settles, with the interval of the same draws."""
    both = [_held(answers, problems) for answers in solutions]
    held, weight = np.stack([h for h, _ in both]), both[0][1]
    drawn = np.random.default_rng(seed).integers(len(weight), size=(DRAWS, len(weight)))
    shares = held[:, drawn].sum(2) / weight[drawn].sum(1)  # [level, draw, direction]
    ends = np.quantile(shares, [0.025, 0.975], axis=1)
    here = held.sum(1) / weight.sum(0)
    ahead = [settled(s[:, 0]) - settled(s[:, 1]) for s in (here, *shares.swapaxes(0, 1))]
    low, high = np.quantile(ahead[1:], [0.025, 0.975])
    fixed = {"ahead": ahead[0], "ahead_low": low, "ahead_high": high}
    return [{n + e: float(v) for e, two in (("", here[k]), ("_low", ends[0, k]), ("_high", ends[1, k]))
             for n, v in zip(("coarse", "fine"), two, strict=True)} | fixed for k in range(len(here))]  # fmt: skip


def settled(share: np.ndarray) -> int:
    """Return the level from which on, down to 0, a share [level] stays within a tenth of its last."""
    off = np.flatnonzero(np.abs(share - share[0]) > 0.1 * abs(share[0]))
    return int(off[0] - 1) if len(off) else len(share) - 1


def _held(answers: Any, problems: Matrices) -> tuple[np.ndarray, np.ndarray]:
    """Return what a share is the ratio of, by problem and for the truth's first and last direction: each [n, 2]."""
    import torch

    n = problems.side
    u, s, vt = torch.linalg.svd(problems.y.double().reshape(-1, n, n), full_matrices=False)
    held = torch.einsum("bir,bij,brj->br", u, answers.double().reshape(-1, n, n), vt) * s
    total = s.square().sum(0)
    last = int((total > ZERO * total[0]).sum()) - 1
    return tuple(t[:, [0, last]].cpu().numpy() for t in (held, s.square()))  # type: ignore[return-value]


def distance(answers: Any, problems: Matrices) -> float:
    mean = _energy.posterior_mean(problems)
    return float("nan") if mean is None else float((answers - mean).double().square().mean())


def looked_at(problems: Matrices, answers: Any) -> dict[str, np.ndarray]:
    """Return x, y and y* of the first problems by rows, one after the other; a NaN stands for an x that is not."""
    x, y, truth = (t[:SHOWN].float().flatten().cpu().numpy() for t in (problems.x, answers, problems.y))
    return {"problem": x if len(x) else np.full(1, np.nan, np.float32), "answer": y, "solution": truth}
