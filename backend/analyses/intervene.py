"""What does the model say, and write, when it is interfered with?

The prompt is run as it is and with a list of interventions: the `top_k` most probable next tokens after the last one
(by either run) with their probability and rank in both, and a continuation of `continue_by` tokens, greedily, the
interventions acting at every step of it (positions counted from the end move with the end). kl = KL(before || after) in
nats at the last position is the size of the change.

Exact. `patch` takes its values from the `corrupted` prompt, which is written on with the same tokens. `mean` and
`resample` take the prompt's own positions: there is no other row. Truth: without interventions, or with each place set
to what it is, nothing changes. Cost: 2 + 2 continue_by forwards, and one more per edited one and `resample`; a
direction's own are read once.
Source: Vig et al. (2020), Causal mediation analysis; Turner et al. (2023), Activation addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses import _intervening as intervening
from backend.analyses._asking import prompt_tokens
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import BadInput
from backend.figures import bars


class InterveneParams(intervening.InterventionParams):
    """The list, and how much of the answer is shown."""

    top_k: int = Field(10, ge=1, le=50, description="most probable next tokens shown, of either run")
    corrupted: str = Field("", max_length=100_000, pattern=r"^[0-9, ]*$", description="token ids of the corrupted "
                           "prompt that `patch` takes its values from; as many as the prompt has")  # fmt: skip
    continue_by: int = Field(12, ge=0, le=64, description="tokens written on, greedily, before and after")


@analysis(
    version=1, title="Intervene", asks="What does the model say, and write, when it is interfered with?",
    subject=Prompt, params=InterveneParams, needs=["next_token"],
    axes=[Axis("what", "next: a possible next token; written: a token of the continuation", kind="str"),
          Axis("number", "next: place by the larger probability; written: place in the continuation")],
    values=[Value("token_before", "token: of `next` the same as after", kind="int"),
            Value("token_after", "token of the continuation with interventions", kind="int"),
            Value("prob_before", "probability without interventions"),
            Value("prob_after", "probability with interventions"),
            Value("rank_before", "rank without, 0-based; -1 for written tokens", kind="int"),
            Value("rank_after", "rank with, 0-based; -1 for written tokens", kind="int"),
            Value("kl", "KL(before || after) at the last position", "nats")],
)  # fmt: skip
def intervene(model: Model, subject: Prompt, params: InterveneParams, progress: Progress) -> pd.DataFrame:
    """Return the next tokens and the continuation, before and after."""
    tokens, other = prompt_tokens(model, subject), _corrupted(model, subject, params)
    progress(0.1, "Forward without and with interventions")
    known: dict[str, Any] = {}
    before, after = (_log_probs(model, tokens, edits, known, other) for edits in ("", params.edits))
    kl = float((before.exp() * (before - after)).sum())
    rows = _next(before.cpu().numpy(), after.cpu().numpy(), params.top_k)
    written = [_written(model, tokens, edits, params.continue_by, progress, known, other)
               for edits in ("", params.edits)]  # fmt: skip
    rows += [("written", i, a, b, p, q, -1, -1) for i, ((a, p), (b, q)) in enumerate(zip(*written, strict=True))]
    names = ["what", "number", "token_before", "token_after", "prob_before", "prob_after", "rank_before", "rank_after"]
    return pd.DataFrame(rows, columns=names).assign(kl=kl)


def _corrupted(model: Model, subject: Prompt, params: InterveneParams) -> Any:
    """Return the corrupted prompt [1, pos] or None. Raises BadInput where it has another number of tokens."""
    import torch

    ids = [int(t) for t in params.corrupted.replace(",", " ").split()]
    if ids and len(ids) != len(subject.tokens):
        found = f"the prompt has {len(subject.tokens)} tokens"
        raise BadInput(f"A corrupted prompt of {len(ids)} tokens", found, "Give as many as the prompt has")
    return torch.tensor([ids], device=model.card.device) if ids else None


def _log_probs(model: Model, tokens: Any, edits: str, known: dict[str, Any], corrupted: Any = None) -> Any:
    """Return the log-probabilities after the last token: [d_vocab_out], float64."""
    return intervening.run(model, tokens, edits, corrupted, known)[0, -1].double().log_softmax(-1)


def _next(before: np.ndarray, after: np.ndarray, top_k: int) -> list[tuple]:
    best = np.argsort(-np.maximum(before, after), kind="stable")[:top_k]
    ranks = [np.argsort(np.argsort(-x, kind="stable"), kind="stable") for x in (before, after)]
    return [("next", i, int(t), int(t), float(np.exp(before[t])), float(np.exp(after[t])), int(ranks[0][t]),
             int(ranks[1][t])) for i, t in enumerate(best)]  # fmt: skip


def _written(
    model: Model, tokens: Any, edits: str, n: int, progress: Progress, known: dict[str, Any], corrupted: Any = None
) -> list[tuple[int, float]]:
    """Write on greedily; past n_ctx the first tokens are dropped, which the interventions' positions follow. The
    corrupted prompt goes on with the same tokens."""
    import torch

    found = []
    for i in range(n):
        progress(0.2 + 0.8 * i / n, f"Writing on, {i + 1} of {n}")
        other = None if corrupted is None else corrupted[:, -model.card.n_ctx :]
        log_probs = _log_probs(model, tokens[:, -model.card.n_ctx :], edits, known, other)
        token = int(log_probs.argmax())
        found.append((token, float(log_probs[token].exp())))
        tokens, corrupted = (None if t is None else torch.cat([t, t.new_tensor([[token]])], 1)
                             for t in (tokens, corrupted))  # fmt: skip
    return found


@intervene.costs
def work(card: ModelCard, subject: Prompt, params: InterveneParams, *made: Mapping[str, Any]) -> Work:
    """The prompt as it is and edited, and both again for every token that is written on."""
    plan, length = Plan(card), len(subject.tokens)
    intervening.plan_directions(plan, params.edits)
    for written in [0, *range(params.continue_by)]:
        plan.call(1, min(length + written, card.n_ctx))
        intervening.plan_runs(plan, params.edits, 1, min(length + written, card.n_ctx))
    return plan.total(12 * 8 * card.d_vocab_out, knobs=SHORTER)


@intervene.figure("Next token, before and after")
def next_token(table: pd.DataFrame, view: View) -> Any:
    """Bars of the probability with interventions; without them in grey beside."""
    rows = table[table["what"] == "next"]
    words = [f"{view.vocab(int(t))}" for t in rows["token_before"]]
    names = [f"{i + 1} {w}" for i, w in enumerate(words)]
    hover = [f"{w}<br>before {b:.3g} (rank {r}), after {a:.3g} (rank {s})" for w, b, a, r, s in
             zip(words, rows["prob_before"], rows["prob_after"], rows["rank_before"], rows["rank_after"], strict=True)]
    return bars(names, rows["prob_after"], null=rows["prob_before"], hover=hover, x_title="next token",
                y_title="probability", names_of=("after", "before"))  # fmt: skip
