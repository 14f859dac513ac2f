"""From a run's metrics to the records of its transitions: which channels count, what the words say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from backend.contract import Metric
from backend.maths import transitions, verdicts

#: what says how a run goes, not what its model does
LEFT_OUT = re.compile(r"(steps_per_second|update_norm|lr|learning_rate|predicted_loss|bayes_loss)$")
TRAIN = "train_"  # memorising the training set is no transition asked for
RATES = ("lr", "learning_rate")

Series = dict[str, tuple[np.ndarray, np.ndarray]]


def parameters(config: Mapping[str, Any]) -> int:
    """Return the weights of the matrices of a native config (norms and biases left out); 0 where it lacks a size."""
    try:
        d, layers = int(config["d_model"]), int(config["n_layers"])
        mlp = 0 if config.get("attn_only") else 2 * d * int(config.get("d_mlp") or 4 * d)
        return layers * (4 * d * d + mlp) + d * (2 * int(config["d_vocab"]) + int(config["n_ctx"]))
    except (KeyError, TypeError, ValueError):
        return 0


def records(
    run: str, series: Series, words: Mapping[str, Metric], drops: Sequence[float] = (), ended: bool = False,
    withdrawn: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Detect in named series and return one record per transition (the facade's `transitions`).

    An alarm is withdrawn where, once enough points lie behind it or the run has ended, all its channels' curves turn
    out smooth there; `withdrawn`: return those too, each record saying so.
    """
    used = channels(series, words)
    logs = {n for n in used if "loss" in base(n) and not (used[n][1] <= 0).any()}  # a negative one has no logarithm
    spans = {n: words_for(n, words).span for n in used if n not in logs}
    found = transitions.detect(used, logs, spans=spans, ended=ended, keep_withdrawn=True)
    told = [_record(run, alarm, used, logs, words, drops, ended) for alarm in found]
    kept = [r for r in told if withdrawn or not r["withdrawn"]]
    return kept if withdrawn else [{k: v for k, v in r.items() if k != "withdrawn"} for r in kept]


def channels(series: Series, words: Mapping[str, Metric]) -> Series:
    """Return the series that are searched; what is logged of the training set counts where there is nothing else."""
    alike = Counter(base(n) for n in series)  # one x_w1 without words is a name, several are a spectrum
    able = {n: s for n, s in series.items() if not LEFT_OUT.fullmatch(base(n)) and not (
            words_for(n, words).per == "frequency" and (base(n) in words or alike[base(n)] > 1))}  # fmt: skip
    return {n: s for n, s in able.items() if not base(n).startswith(TRAIN)} or able


def _record(
    run: str, alarm: transitions.Alarm, series: Series, logs: set[str], words: Mapping[str, Metric],
    drops: Sequence[float], ended: bool,
) -> dict[str, Any]:  # fmt: skip
    shapes = [verdicts.shape_of(*series[n], alarm.step, alarm.width, n in logs).verdict for n in alarm.channels[:3]]
    verdict = verdicts.left(shapes)
    gone = alarm.withdrawn or (verdict == verdicts.SMOOTH and (alarm.closed or ended))
    return {
        "run": run, "metric_group": base(alarm.channels[0]), "step": alarm.step, "low": alarm.low, "high": alarm.high,
        "width": alarm.width, "width_low": alarm.width_low, "width_high": alarm.width_high,
        "verdict": verdicts.SMOOTH if gone else verdict, "method": alarm.method, "channels": list(alarm.channels),
        "alarm_step": alarm.alarm_step, "delay": alarm.delay, "score": alarm.score, "threshold": alarm.threshold,
        "size": alarm.size, "artefact": _artefact(alarm, series, logs, words),
        "exogenous": verdicts.exogenous(alarm.low, alarm.high, drops), "withdrawn": gone,
    }  # fmt: skip


def _artefact(
    alarm: transitions.Alarm, series: Series, logs: set[str], words: Mapping[str, Metric]
) -> str:
    """Say so where only metrics with a continuous twin changed, and no twin did (by its own local fit)."""
    jumped = [base(n) for n in alarm.channels]
    measured = {base(n): n for n in series}
    twins = {m: t for m in jumped if (t := words_for(m, words).continuous) in measured}
    shows = [t for t in twins.values() if t in jumped or verdicts.shape_of(
        *series[measured[t]], alarm.step, alarm.width, measured[t] in logs).verdict == verdicts.CROSSOVER]  # fmt: skip
    return verdicts.artefact(jumped, twins, shows, {m: words_for(m, words).title for m in [*jumped, *twins.values()]})


def series_of(frame: pd.DataFrame) -> Series:
    """Return {name, with its place: (steps, values)} of the store's metrics."""
    found: Series = {}
    series: Any = frame.groupby(["metric", "layer", "head"], dropna=False, sort=False)
    for (metric, layer, head), rows in series:
        place = ("" if pd.isna(layer) else f"/L{int(layer)}") + ("" if pd.isna(head) else f"H{int(head)}")
        found[f"{metric}{place}"] = (rows["step"].to_numpy(float), rows["value"].to_numpy(float))
    return found


def base(name: str) -> str:
    """Return the metric's name without its place: `induction_score/L1H2` -> `induction_score`, `x_w14` -> `x`."""
    return re.sub(r"(/L\d+(H\d+)?|_w\d+)$", "", name)


def words_for(name: str, words: Mapping[str, Metric]) -> Metric:
    """Return a metric's words; for an unknown one its name in plain writing."""
    known = words.get(base(name))
    per = "frequency" if re.search(r"_w\d+$", name) else ""
    return known or Metric(base(name), base(name).replace("_", " "), per=per)  # type: ignore[arg-type]


def drops_of(info: Mapping[str, Any], frame: pd.DataFrame) -> list[float]:
    """Return the steps at which the learning rate was changed: by params, by `lr_drops` of run.json, or as logged."""
    params = info.get("params") or {}
    planned = [params.get("lr_drop_at")] if params.get("lr_drop_factor", 0) != 1 else []
    listed = info.get("lr_drops") if isinstance(info.get("lr_drops"), list) else []
    told = [float(s) for s in [*planned, *(listed or [])] if isinstance(s, int | float) and s > 0]
    logged = [frame[(frame["metric"] == m) & frame["layer"].isna()] for m in RATES]
    return told + [s for rows in logged if len(rows) for s in verdicts.learning_rate_jumps(
        rows["step"].to_numpy(float), rows["value"].to_numpy(float))]  # fmt: skip
