"""What the analyses of interventions share: the list as params, directions, and a model run with it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from backend.analyses._output import mlp_map, plan_mlp_map
from backend.analyses._work import Plan
from backend.contract import Model, Params
from backend.errors import BadInput
from backend.maths import interventions as language
from backend.maths.interventions import Intervention


class InterventionParams(Params):
    """The list of interventions, one line each (`backend/maths/interventions.py`)."""

    edits: str = Field("", max_length=4000, description="interventions, `;` between them: zero L1H2; scale L0.attn_out "
                       "0.5; set L0N17 4; add L1.resid_pre 3 token 5 at -1; mean L1H0; resample L1H0 seed 1; "
                       "patch L1H2 (pairs)")  # fmt: skip

    named: ClassVar = {"edits": ""}

    @field_validator("edits")
    @classmethod
    def _readable(cls, edits: str) -> str:
        return "; ".join(map(str, language.parse(edits)))

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """The autoencoders whose features are added."""
        return tuple((run, None) for run in dict.fromkeys(one.sae for one in language.parse(self.edits) if one.sae))


def run(model: Model, tokens: Any, edits: str, corrupted: Any = None, known: dict[str, Any] | None = None) -> Any:
    """Return the logits [row, pos, d_vocab_out] with the list applied; without any those of the plain forward.

    Directions are the same in every run: `known` keeps them from one to the next.
    Raises BadInput for a place that the model does not have, or a patch without corrupted prompts.
    """
    chain: dict[tuple[str, int], list[Any]] = {}
    known = {} if known is None else known
    for one in language.parse(edits):
        chain.setdefault((one.point, one.layer), []).append(_function(model, one, tokens, corrupted, known))
    return model.run_with(tokens, {place: _in_turn(steps) for place, steps in chain.items()}) if chain else (
        model.logits(tokens))  # fmt: skip


def _in_turn(steps: list[Any]) -> Any:
    def apply(tensor: Any) -> Any:
        for step in steps:
            tensor = step(tensor)
        return tensor

    return apply


def _function(model: Model, one: Intervention, tokens: Any, corrupted: Any, known: dict[str, Any]) -> Any:
    if one.op == "patch" and corrupted is None:
        raise BadInput(f"Intervention {one}", "there is no corrupted prompt to patch from", "Ask it of pairs")
    other = {"patch": _held, "resample": _resampled}.get(one.op, lambda *_: None)(model, one, tokens, corrupted)
    if one.op == "add" and str(one) not in known:
        known[str(one)] = _direction(model, one)
    step = language.change(one, other, known.get(str(one)))

    def told(tensor: Any) -> Any:
        try:
            return step(tensor)
        except (IndexError, RuntimeError) as error:
            raise BadInput(f"Intervention {one}", str(error), "Correct the line") from None

    return told


def _held(model: Model, one: Intervention, tokens: Any, corrupted: Any) -> Any:
    """Return what the point holds on the corrupted prompts."""
    return model.capture(corrupted, [one.point], [one.layer])[one.point, one.layer]


def _resampled(model: Model, one: Intervention, tokens: Any, corrupted: Any) -> Any:
    """Return what the point holds on the other rows; a single row takes its corrupted partner, or other positions."""
    if len(tokens) == 1 and corrupted is not None:
        return _held(model, one, tokens, corrupted)
    there = model.capture(tokens, [one.point], [one.layer])[one.point, one.layer]
    if len(tokens) > 1:
        return there[language.cycle(len(tokens), one.seed)]
    return there[:, language.cycle(there.shape[1], one.seed)]


def _direction(model: Model, one: Intervention) -> Any:
    """Return the unit vector that `add` follows. Raises BadInput where there is none."""
    vector = _between_prompts(model, one) if one.prompt else _row(model, one)
    length = vector.norm()
    if not float(length) > 0:
        raise BadInput(f"Intervention {one}", "its direction is 0: the two are the same there", "Name two that differ")
    return vector / length


def _between_prompts(model: Model, one: Intervention) -> Any:
    import torch

    first, second = (
        model.capture(torch.tensor([ids], device=model.card.device), [one.point], [one.layer])[one.point, one.layer][0]
        for ids in (one.prompt, one.other)
    )
    shorter = min(len(first), len(second))
    if not -shorter <= one.read < shorter:
        raise BadInput(f"Intervention {one}", f"a prompt has {shorter} tokens", "Correct the position that is read")
    return first[one.read] - second[one.read]


def plan_runs(plan: Plan, edits: str, rows: int, length: int, n: int = 1) -> None:
    """Add n edited runs on tokens [rows, length], with what `patch` and `resample` read each time."""
    reads = sum(one.op in ("patch", "resample") for one in language.parse(edits))
    plan.call(rows, length, n * (1 + reads))


def plan_directions(plan: Plan, edits: str) -> None:
    """Add what the directions of a list take, once."""
    for one in {str(one): one for one in language.parse(edits)}.values():
        for ids in (one.prompt, one.other) if one.prompt else ():
            plan.call(1, len(ids))
        if one.writer:
            plan_mlp_map(plan)


def _row(model: Model, one: Intervention) -> Any:
    """Return W_U's column of a token, less another's, a neuron's row of W_out, a feature's decoder row, or a draw."""
    if one.random is not None:
        import torch

        drawn = np.random.default_rng(one.random).standard_normal(model.card.d_model)
        return torch.from_numpy(drawn).to(next(iter(model.parameters().values())))
    if one.writer:
        layer, neuron = one.writer
        if layer >= model.card.n_layers or neuron >= model.card.d_mlp:
            raise BadInput(f"Intervention {one}", "there is no such neuron", "Correct the neuron")
        return mlp_map(model, layer)[neuron]
    if one.token is not None:
        columns = model.unembedding()
        if max(one.token, one.minus or 0) >= columns.shape[1]:
            raise BadInput(f"Intervention {one}", f"there are {columns.shape[1]} tokens", "Correct the token")
        vector = columns[:, one.token] - (columns[:, one.minus] if one.minus is not None else 0)
    else:
        rows = model.companion(one.sae, own=False)[1]["W_dec"]  # a direction means something elsewhere in its run
        if one.feature is None or one.feature >= len(rows):
            raise BadInput(f"Intervention {one}", f"{one.sae} has {len(rows)} features", "Correct the feature")
        vector = rows[one.feature]
    return vector
