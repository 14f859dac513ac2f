"""Transitions of runs: found while they train, kept when they have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backend.errors import BadInput
from backend.facade.detected import base, drops_of, parameters, records, series_of
from backend.facade.training import Training
from backend.maths import transitions, verdicts

POINTS = 20_000  # per series; a longer one comes thinned
ENDED = ("finished", "stopped", "failed", "interrupted")


class Transitions(Training):
    """The part of the facade that says where runs changed."""

    def transitions(self, run: str) -> list[dict[str, Any]]:
        """Return the transitions of a run, in the order of their alarms; again only when it has new metrics.

        Records {run, metric_group, step, low, high, width, width_low, width_high, verdict, method, channels,
        alarm_step, delay, score, threshold, size, artefact, exogenous}: steps (the interval holds the change in at
        least 90 % of simulated runs), widths in ln(step). Once the run has ended none is smooth and they are kept in
        the table `transitions`. Raises NotFound for an unknown run.
        """
        info = self.run(run)
        offset = self.store.run_offset(run)
        known: dict[str, tuple[int, str, list[dict[str, Any]]]] = self.__dict__.setdefault("_detected", {})
        state = str(info.get("state", ""))
        if run not in known or known[run][:2] != (offset, state):
            known[run] = (offset, state, self._detected_in(run, info, offset, state in ENDED))
        return [dict(r) for r in known[run][2]]

    def alarms(self, run: str) -> list[dict[str, Any]]:
        """Return all that rang while a run trained, also what was withdrawn later: the records of `transitions`, each
        with `withdrawn`. Computed anew each time. Raises NotFound for an unknown run."""
        info, frame = self.run(run), self.store.metrics(run, points=POINTS)
        ended = str(info.get("state", "")) in ENDED
        return records(run, series_of(frame), self.metric_words(), drops_of(info, frame), ended, withdrawn=True)

    def latest_transitions(self, limit: int = 10) -> list[dict[str, Any]]:
        """Return the transitions kept of ended runs, newest first, with `created`."""
        return self.store.transitions(limit=limit)

    def verdict(self, runs: Sequence[str]) -> dict[str, Any]:
        """Return what several runs say together: {verdict, transition_like, words, step, step_low, step_high, offline,
        offline_low, offline_high, slope, low, high, sizes, runs}; `step` is the median over runs with a 90 % bootstrap
        interval over them, `offline` the same of the steps that a piecewise-linear segmentation of each run's whole
        curve (of the channel that carried its alarm most) gives.

        Of each run the widest-reaching alarm (highest score over threshold) counts. Only a width that shrinks with
        n_params over three sizes or more is a size-sharpening crossover, and only that is transition-like.
        Raises BadInput for no runs, NotFound for an unknown one.
        """
        if not runs:
            raise BadInput("A verdict", "no runs were given", "Name one or more runs")
        rows = [self._main(name) for name in runs]
        met = [r for r in rows if r["step"] is not None]
        sized = [r for r in met if r["n_params"]]
        fit = verdicts.sharpening([r["n_params"] for r in sized], [r["width"] for r in sized])
        whole = len(met) == len(rows)
        like = fit.transition_like and whole and all(r["verdict"] == verdicts.CROSSOVER for r in sized)
        found = verdicts.SHARPENING if like else verdicts.commonest([r["verdict"] for r in rows])
        middle, offline = (_over([r[k] for r in met if r[k] is not None]) for k in ("step", "offline"))
        return {"verdict": found, "transition_like": like, "words": _words(rows, fit, like), "sizes": fit.sizes,
                "step": middle[0], "step_low": middle[1], "step_high": middle[2],
                "offline": offline[0], "offline_low": offline[1], "offline_high": offline[2],
                "slope": _or_none(fit.slope), "low": _or_none(fit.low), "high": _or_none(fit.high),
                "runs": rows}  # fmt: skip

    # ------------------------------------------------------------ one run

    def _detected_in(self, run: str, info: Mapping[str, Any], offset: int, ended: bool) -> list[dict[str, Any]]:
        if ended and self.store.transitions_seen(run) == (transitions.VERSION, offset):
            return [{k: v for k, v in r.items() if k != "created"} for r in self.store.transitions(run)]
        frame = self.store.metrics(run, points=POINTS)
        found = records(run, series_of(frame), self.metric_words(), drops_of(info, frame), ended)
        if ended:
            self.store.put_transitions(run, found, transitions.VERSION, offset)
        return found

    def _main(self, name: str) -> dict[str, Any]:
        found, info = self.transitions(name), self.run(name)
        best = max(found, key=lambda r: r["score"] / r["threshold"], default=None)
        said = {"run": name, "n_params": self._size(name, info), "step": None, "width": None, "offline": None,
                "verdict": verdicts.SMOOTH}  # fmt: skip
        if best is None:
            return said
        told = {k: best[k] for k in ("step", "low", "high", "width", "verdict")}
        return {**said, **told, "offline": self._offline(name, best["channels"][0])}

    def _offline(self, name: str, channel: str) -> float | None:
        """Return the step of a channel's main transition by segmentation of its whole curve."""
        from backend.maths import segmentation  # ruptures: half a second that most visits never need

        steps, values = series_of(self.store.metrics(name, [channel.split("/L")[0]], points=POINTS))[channel]
        return segmentation.reference_step(steps, values, "loss" in base(channel) and not (values <= 0).any())

    def _size(self, name: str, info: Mapping[str, Any]) -> int:
        """Return the run's number of parameters: what it says, its opened model's, or its native config's; else 0."""
        if info.get("n_params"):
            return int(info["n_params"])
        opened = self.store.models()
        mine = opened[opened["spec"] == f"run:{name}"] if len(opened) else opened
        if len(mine):
            return int(mine["n_params"].iloc[0])
        return parameters((info.get("model") or {}).get("config") or {})


def _words(rows: Sequence[Mapping[str, Any]], fit: verdicts.Sharpening, like: bool) -> str:
    changed = sum(r["step"] is not None for r in rows)
    said = f"{changed} of {len(rows)} runs changed."
    if fit.sizes < 3:
        return f"{said} Fewer than three sizes: no claim of a transition."
    sharp = f"Width ~ n_params^{fit.slope:.2f} (95 %: {fit.low:.2f} to {fit.high:.2f}) over {fit.sizes} sizes"
    return f"{said} {sharp}: " + ("transition-like." if like else "no claim of a transition.")


def _over(steps: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    return verdicts.over_seeds(np.array(steps)) if steps else (None, None, None)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
