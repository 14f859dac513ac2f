"""What the lenses share: logits of a stream in blocks that fit, the final prediction, and the axis of layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from backend.contract import Corpus, Model
from backend.errors import BadInput, Broken, Unfit

LOGIT_BYTES = 128 * 2**20  # what one block of logits may hold
LAYER = "layer (embed: before layer 0)"


def blocks(model: Model, length: int) -> Iterator[slice]:
    """Yield runs of positions whose logits fit LOGIT_BYTES."""
    step = max(1, LOGIT_BYTES // (4 * model.card.d_vocab_out))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def logits_of(model: Model, resid: Any) -> Any:
    """Return the logits [n, d_vocab_out] of streams [n, d_model], at least float32. Raises Broken where not finite."""
    import torch

    logits = model.unembed(resid[None])[0]
    if not bool(logits.isfinite().all()):
        raise Broken("A lens", "the logits hold NaN or infinity", "Try float32")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def streams(model: Model, tokens: Any) -> dict[int, Any]:
    """Return {layer: residual stream [batch, pos, d_model] after it}, layer -1 the embedding, in order."""
    kept = model.capture(tokens, ["embed", "resid_post"])
    return {-1: kept["embed", 0]} | {n: kept["resid_post", n] for n in range(model.card.n_layers)}


def point_streams(model: Model, tokens: Any, point: str) -> dict[int, Any]:
    """Return {layer: stream [batch, pos, d_model]} at one residual point, in order, from the embedding to the last.

    resid_pre: what enters layer l, layer n_layers the last stream. resid_mid: between attention and MLP of layer l,
    with layer -1 the embedding and n_layers the last stream. resid_post: as `streams`. Raises Unfit for a model
    without the point.
    """
    n_layers = model.card.n_layers
    after = streams(model, tokens)
    if point == "resid_post":
        return after
    if point == "resid_pre":
        return {layer + 1: stream for layer, stream in after.items()}
    mid = model.capture(tokens, ["resid_mid"])
    between = {n: mid["resid_mid", n] for n in range(n_layers)}
    return {-1: after[-1], **between, n_layers: after[n_layers - 1]}


def layer_names(layers: Any, final: int | None = None) -> list[str]:
    """Return "embed" for -1, "final" for the layer that stands for the last stream, else the number."""
    return ["embed" if x == -1 else "final" if x == final else str(x) for x in layers]


def layer_axis(layers: Any, final: int | None = None) -> dict[str, Any]:
    """Return the settings of an axis that names at most 32 layers."""
    shown = list(layers)[:: -(-len(layers) // 32)]
    return {"tickmode": "array", "tickvals": [int(x) for x in shown], "ticktext": layer_names(shown, final)}


def mean_and_se(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard error over the first axis; the error of one value is NaN."""
    values = np.asarray(values, float)
    n, mean = len(values), values.mean(0)
    return mean, values.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.full_like(mean, np.nan)


def lens_named(run: str, step: int | None) -> tuple[tuple[str, int | None], ...]:
    """Return what `Params.companions` of an analysis of a tuned lens answers; () where none is named."""
    return ((run, -1 if step is None else step),) if run else ()


def check_named(run: str) -> None:
    """Raises BadInput where no run of a tuned lens is named."""
    if not run:
        raise BadInput("A tuned lens", "no run is named",
                       "Train one on the Training page (recipe Tuned lens) and give its run's name")


def translators(model: Model, run: str, step: int | None, measured_on: Corpus | None = None) -> tuple[Any, Any]:
    """Return A [layer, d_model, d_model] and b [layer, d_model] of a tuned lens trained for this model.

    Without `step` those of the lens' last step, so that the same question keeps its answer; an unfinished lens is
    refused then. Layer l's translator reads the stream that enters it, the last stream needs none.
    A corpus that it is `measured_on` must not be the rows that it learnt from: same source and seed are refused.
    """
    check_named(run)
    record, tensors = model.companion(run, -1 if step is None else step)
    if record["companion"].get("kind") != "tuned_lens" or not {"A", "b"} <= tensors.keys():
        raise Unfit(f"Run {run!r}", f"it is a {record['companion'].get('kind')}", "Name the run of a tuned lens")
    if measured_on and _learnt_from(record, measured_on):
        found = f"it learnt from the {measured_on.source} rows of seed {measured_on.seed}"
        raise BadInput(f"The quality of {run!r} on these rows", found, "Choose another seed of the rows")
    return tensors["A"], tensors["b"]


def _learnt_from(record: Mapping[str, Any], rows: Corpus) -> bool:
    """Say whether the lens learnt from rows of this source and seed; a text is known by what it holds, where kept."""
    learnt, digest = record.get("params", {}), record["companion"].get("digest", "")
    if (learnt.get("source"), learnt.get("seed")) != (rows.source, rows.seed):
        return False
    return rows.source != "file" or not digest or digest == rows.digest


def tuned(streams_: dict[int, Any], lens: tuple[Any, Any]) -> dict[int, Any]:
    """Return the streams {layer: [..., d_model]} as the lens translates them; the last as it is."""
    from backend.maths.lens import translate

    A, b = (part.to(streams_[-1].dtype) for part in lens)  # noqa: N806 - the lens' own names
    last = max(streams_)
    return {n: h if n == last else translate(h, A[n + 1], b[n + 1]) for n, h in streams_.items()}
