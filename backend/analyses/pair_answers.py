"""Does the model answer pairs of prompts, and does its answer follow what differs between them?

For every pair, at the last position: `logit_diff` = logit(answer) - logit(distractor), the probabilities of both, their
ranks (0-based: how many logits are larger), and the top token. `condition` is `clean`; `corrupted`, where the
distractor is what is called for; and `other answers`: the clean prompt, at the answer and distractor of the next pair,
the control that says what a liking for some words alone would give (it means something where pairs have different
answers; absent for one pair). `right` is 1 where the token called for has the largest logit: the answer of a clean
prompt, the distractor of a corrupted one.

Exact; logits are read in float64. Means with standard errors over pairs (standard deviation with n - 1, over sqrt(n))
stand in the figures; they speak of pairs like these, and of the user's own pairs only as far as these are a sample.
Cost: 2 forwards, more where the pairs have different lengths or their logits would not fit.
Source: Wang et al. (2022), Interpretability in the Wild (logit difference, clean and corrupted prompts).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._asking import CAPTURE_BYTES
from backend.analyses._work import Plan
from backend.contract import Axis, Described, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, Line, bars, lines

CONDITIONS = ("clean", "corrupted", "other answers")
COLOURS = dict(zip(CONDITIONS, (CATEGORIES[0], CATEGORIES[1], NULL_GREY), strict=True))


class PairAnswersParams(Params):
    """Nothing to choose: the pairs say it all."""


@analysis(
    version=1, group="Causal",
    title="Answers to pairs", asks="Does the model answer clean and corrupted prompts as their task has it?",
    subject=Pairs, params=PairAnswersParams, needs=["next_token"],
    axes=[Axis("condition", "clean, corrupted, or other answers (the control)", kind="str"),
          Axis("pair", "pair, 0-based")],
    values=[
        Value("logit_diff", "logit of the answer minus that of the distractor, at the last position", "logits"),
        Value("answer_prob", "probability of the answer", "probability"),
        Value("distractor_prob", "probability of the distractor", "probability"),
        Value("answer_rank", "how many tokens have a larger logit than the answer", kind="int"),
        Value("distractor_rank", "how many tokens have a larger logit than the distractor", kind="int"),
        Value("right", "1 where the token called for has the largest logit, else 0", kind="int"),
        Value("top_id", "the token with the largest logit", kind="int"),
    ],
)  # fmt: skip
def pair_answers(model: Model, subject: Pairs, params: PairAnswersParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (condition, pair)."""
    answers = np.array([[p.answer, p.distractor] for p in subject.pairs])
    clean = last_logits(model, subject, "clean")
    progress(0.5, "clean prompts read")
    corrupted = last_logits(model, subject, "corrupted")
    progress(1.0, "both read")
    parts = [_read("clean", clean, answers, 0), _read("corrupted", corrupted, answers, 1)]
    parts += [_read("other answers", clean, np.roll(answers, -1, 0), 0)] if len(answers) > 1 else []
    return pd.concat(parts, ignore_index=True)


def last_logits(model: Model, subject: Pairs, which: str) -> np.ndarray:
    """Return the logits at the last position of the clean or corrupted prompts: float64 [pair, d_vocab_out]."""
    import torch

    found = np.empty((len(subject.pairs), model.card.d_vocab_out))
    for length, members in subject.by_length().items():
        step = rows_at_once(model, length)
        for start in range(0, len(members), step):
            chosen = members[start : start + step]
            tokens = torch.tensor([getattr(subject.pairs[i], which) for i in chosen], device=model.card.device)
            found[chosen] = model.logits(tokens)[:, -1].double().cpu().numpy()
    return found


def rows_at_once(model: Described, length: int) -> int:
    """Return of how many rows CAPTURE_BYTES hold the logits, at least one."""
    return max(1, CAPTURE_BYTES // (4 * length * model.card.d_vocab_out))


def _read(condition: str, logits: np.ndarray, answers: np.ndarray, called_for: int) -> pd.DataFrame:
    """Return the rows of one condition; `answers` [pair, (answer, distractor)], `called_for` says which is right."""
    mine = np.take_along_axis(logits, answers, 1)
    top = logits.max(1, keepdims=True)
    prob = np.exp(mine - top) / np.exp(logits - top).sum(1, keepdims=True)
    rank = (logits[:, None, :] > mine[:, :, None]).sum(-1)
    return pd.DataFrame({
        "condition": condition, "pair": np.arange(len(logits)), "logit_diff": mine[:, 0] - mine[:, 1],
        "answer_prob": prob[:, 0], "distractor_prob": prob[:, 1], "answer_rank": rank[:, 0],
        "distractor_rank": rank[:, 1], "right": (rank[:, called_for] == 0).astype(int), "top_id": logits.argmax(1),
    })  # fmt: skip


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return per condition, in order: n, and mean and standard error over pairs (NaN for one pair) of logit_diff,
    answer_prob and right."""
    grouped = table.groupby("condition")[["logit_diff", "answer_prob", "right"]]
    mean, error = grouped.mean(), grouped.sem()
    found = mean.join(error.add_suffix("_se")).assign(n=grouped.size())
    return found.loc[[c for c in CONDITIONS if c in found.index]].reset_index()


@pair_answers.costs
def work(card: ModelCard, subject: Pairs, params: PairAnswersParams) -> Work:
    """Both prompts of every pair once."""
    plan = Plan(card)
    for length, which in subject.by_length().items():
        plan.call_parts(len(which), rows_at_once(plan, length), length, n=2)
    return plan.total(4 * 8 * len(subject.pairs) * card.d_vocab_out)


# ---------------------------------------------------------------- figures


@pair_answers.figure("Mean logit difference")
def means(table: pd.DataFrame, view: View) -> Any:
    """Clean, corrupted and, in grey, the control, each with its standard error."""
    found = summary(table)
    hover = [f"{r.condition}: {r.logit_diff:.3g} ± {r.logit_diff_se:.2g}<br>{r.n} pairs, {r.right:.0%} right"
             for r in found.itertuples()]
    return bars(found["condition"].tolist(), found["logit_diff"], errors=found["logit_diff_se"], hover=hover,
                colours=[COLOURS[c] for c in found["condition"]], x_title="prompts",
                y_title="mean logit_diff (error: se)")


@pair_answers.figure("Pair by pair")
def by_pair(table: pd.DataFrame, view: View) -> Any:
    """Logit differences of every pair, those of the largest clean one first."""
    wide = table.pivot(index="pair", columns="condition", values="logit_diff").sort_values("clean", ascending=False)
    top = table.pivot(index="pair", columns="condition", values="top_id").loc[wide.index]
    curves = []
    for name in (c for c in reversed(CONDITIONS) if c in wide):
        hover = [f"pair {pair}, {name}: {value:.3g}<br>top token {view.vocab(int(token))}"
                 for pair, value, token in zip(wide.index, wide[name], top[name], strict=True)]
        curves.append(Line(name, list(range(1, len(wide) + 1)), wide[name], colour=COLOURS[name], hover=hover))
    return lines(curves, x_title="pairs, by their clean logit_diff", y_title="logit_diff")
