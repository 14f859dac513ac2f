"""Open a sparse autoencoder that was trained for the model that is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.analyses._output import mlp_map, output_maps, plan_mlp_map, plan_output_maps
from backend.analyses._units import rows_at_once
from backend.analyses._work import Plan
from backend.contract import Corpus, Model
from backend.errors import BadInput, Unfit

#: an autoencoder starts from directions drawn with its own seed; a null must never draw the same
_NULL = 4_000_003


def dice(seed: int) -> Any:
    """Return the generator of random directions that are a null."""
    import torch

    return torch.Generator().manual_seed(seed + _NULL)


def opened(model: Model, run: str, step: int, own: bool = True) -> tuple[dict[str, Any], Any]:
    """Return (what its run.json says of it, the autoencoder in the model's dtype); step -1 is the last of its training.

    A run that still trains has no last step yet and is refused: its name would mean other numbers later.
    Raises BadInput where no run is named, NotFound for no such run or step, Unfit where it belongs to another model;
    without `own` it may be another checkpoint's of the same run.
    """
    import torch

    from backend.maths import sae

    check_named(run)
    record, tensors = model.companion(run, step, own)
    made = record["companion"]
    if made.get("kind") != "sae":
        found = f"it holds a {made.get('kind')}, no sparse autoencoder"
        raise Unfit(f"Run {run!r}", found, "Choose a run of recipe sae")
    dtype = torch.promote_types(getattr(torch, model.card.dtype), torch.float32)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return made, sae.from_tensors(tensors, made["activation"], made["k"])


def check_named(run: str) -> None:
    """Raises BadInput where no run of an autoencoder is named."""
    if not run:
        todo = "Train one for this model (recipe sae on the Training page) and give the run's name"
        raise BadInput("Which sparse autoencoder", "no run is named", todo)


def passed(plan: Plan, subject: Corpus, run: str, made: Sequence[Mapping[str, Any]]) -> tuple[int, int, int, int]:
    """Add one pass of the corpus through the autoencoder to a plan.

    Returns (features, d_in, tokens of a batch, operations of encoding all). Raises BadInput where no run is named,
    Unfit where it holds no autoencoder.
    """
    check_named(run)
    n, d_in = sizes(run, made[0])
    length = min(subject.length, plan.card.n_ctx)
    plan.corpus(subject, 3 * n)
    batch = min(subject.rows, rows_at_once(plan, length, 3 * n)) * length
    return n, d_in, batch, 2 * subject.rows * length * n * d_in


def sizes(run: str, made: Mapping[str, Any]) -> tuple[int, int]:
    """Return (features, d_in) of what a run holds. Raises Unfit where it is no autoencoder."""
    if made.get("kind") != "sae":
        found = f"it holds a {made.get('kind')}, no sparse autoencoder"
        raise Unfit(f"Run {run!r}", found, "Choose a run of recipe sae")
    return int(made["d_sae"]), int(made["d_in"])


def named(*asked: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    """Return those (run, step) that name a run: what `Params.companions` of an analysis of SAEs answers."""
    return tuple((run, step) for run, step in asked if run)


def point_of(made: dict[str, Any]) -> str:
    """Return the point in words: resid_post of layer 0."""
    return f"{made['point']} of layer {made['layer']}"


def read(model: Model, made: dict[str, Any], tokens: Any) -> Any:
    """Return what the autoencoder reads on tokens: [row, pos, d_in], heads joined, as the model computes it."""
    return model.capture(tokens, [made["point"]], [made["layer"]])[made["point"], made["layer"]].flatten(2)


def encoded(model: Model, made: dict[str, Any], sae: Any, tokens: Any) -> Any:
    """Return the features on tokens [row, pos, feature] in the autoencoder's dtype, without gradients."""
    import torch

    with torch.no_grad():
        return sae.encode(read(model, made, tokens).to(sae.W_dec.dtype))


def activity(features: Any, by_row: Any) -> dict[str, Any]:
    """Return density, density_se and mean_active of every feature, from Moments of tokens and of rows."""
    import numpy as np

    density = features.density.numpy()
    with np.errstate(invalid="ignore"):
        active = np.where(density > 0, features.mean.numpy() / density, np.nan)
    return {"density": density, "density_se": by_row.standard_error().numpy(), "mean_active": active}


def written(model: Model, made: dict[str, Any], directions: Any) -> tuple[Any, Any] | None:
    """Return (what directions [unit, d_in] of the point write into the stream [unit, d_model], W_U).

    mlp_post is read through W_out, z through W_O. None for mlp_pre, from which no map leads, where a norm stands behind
    those, or where the stream is not read.
    """
    if made["point"] == "mlp_pre":
        return None
    try:
        if made["point"] == "mlp_post":
            directions = directions @ mlp_map(model, made["layer"]).to(directions)
        elif made["point"] == "z":
            if "linear_attn_out" not in model.card.capabilities:
                return None
            W_O = list(output_maps(model))[made["layer"]][0]  # noqa: N806 - the glossary's name
            directions = directions @ W_O.flatten(0, 1).to(directions)
        return directions, model.unembedding()
    except Unfit:
        return None


def plan_written(plan: Plan, point: str) -> None:
    """Add the calls of `written` for directions of this point."""
    if point == "mlp_post":
        plan_mlp_map(plan)
    elif point == "z" and "linear_attn_out" in plan.card.capabilities:
        plan_output_maps(plan)


def feature_of(sae: Any, run: str, feature: int) -> int:
    """Return the feature. Raises BadInput where the dictionary has no such one."""
    if feature >= len(sae.W_dec):
        found = f"{run} has features 0 to {len(sae.W_dec) - 1}"
        raise BadInput(f"Feature {feature}", found, "Choose one of them")
    return feature
