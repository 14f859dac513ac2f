"""What the recipe `sae` reads of a model, how one update goes, and what it leaves for others."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend import settings as house
from backend.contract import Corpus, Progress, parse_spec
from backend.errors import BadInput
from backend.maths import sae as maths
from backend.models import saelens
from backend.models.open import open_model
from backend.runs import checkpoints, corpora, layout, schedule
from backend.runs.recorder import Recorder

ACTIVATION_BYTES = 4 * 2**30  # what the activations may hold
FORWARD_TOKENS = 4096  # per forward of the model
HELD_OUT = 64  # rows at most


@dataclass
class Data:
    """Activations divided by `scale`, for training and held out [token, d_in], and the model they come from."""

    model: Any
    train: Tensor
    held_out: Tensor
    scale: float
    spread: float  # mean |x - mean|^2 of the training tokens
    rows: Tensor | None  # held-out rows of tokens, for the model's loss; None for a surrogate
    losses: tuple[float, float] | None = None  # of the model as it is, and with zeros at the point


def read(params: Any, runs: Path, progress: Progress) -> Data:
    """Open the model and capture the point on the corpus. Raises what opening does, BadInput where it will not fit."""
    device = schedule.device_of(params.device)
    settings = house.load().model_copy(update={"runs": runs, "device": device})
    step = None if params.model_step < 0 else params.model_step
    model = open_model(parse_spec(params.spec, step), settings, lambda f, words: progress(0.0, words))
    corpus = Corpus(source=params.source, rows=params.rows, length=params.length, seed=params.corpus_seed)
    tokens = torch.from_numpy(corpora.rows_of(model.card, corpus).tokens).to(device)
    kept = max(1, min(HELD_OUT, len(tokens) // 10))
    parts = [_captured(model, params, part, progress) for part in (tokens[kept:], tokens[:kept])]
    if params.surrogate:
        dice = torch.Generator().manual_seed(params.corpus_seed + 2_000_003)
        train, held_out = (maths.gaussian_like(parts[0], len(part), dice) for part in parts)
        return _scaled(model, train, held_out, None)
    data = _scaled(model, parts[0], parts[1], tokens[:kept])
    data.losses = _losses(data, params)
    return data


def _captured(model: Any, params: Any, tokens: Tensor, progress: Progress) -> Tensor:
    step, found = max(1, FORWARD_TOKENS // tokens.shape[1]), []
    for start in range(0, len(tokens), step):
        progress(0.0, f"reading {params.point} of layer {params.layer}, row {start} of {len(tokens)}")
        point = model.capture(tokens[start : start + step], [params.point], [params.layer])[params.point, params.layer]
        flat = point.flatten(2).flatten(0, 1)
        found.append(flat.to(schedule.weights_dtype(params.dtype)))
        needed = found[0][0].nbytes * tokens.numel()
        if needed > ACTIVATION_BYTES:
            have = f"they take {needed / 2**30:.1f} GB, {ACTIVATION_BYTES / 2**30:.0f} GB are given"
            raise BadInput(f"Activations of {tokens.numel()} tokens", have, "Lower rows or length")
    return torch.cat(found)


def _scaled(model: Any, train: Tensor, held_out: Tensor, rows: Tensor | None) -> Data:
    """A power of 2 as scale: dividing by it and back changes no bit, so a resumed run is the same."""
    spread = float((train - train.mean(0)).square().sum(1).double().mean())
    scale = 2.0 ** round(math.log2(math.sqrt(spread / train.shape[1]))) if spread > 0 else 1.0
    return Data(model, train / scale, held_out / scale, scale, max(spread / scale**2, 1e-30), rows)


# ---------------------------------------------------------------- the model's loss


def _losses(data: Data, params: Any) -> tuple[float, float] | None:
    if data.rows is None or (clean := spliced_loss(data, params, lambda x: x)) is None:
        return None
    zero = spliced_loss(data, params, torch.zeros_like)
    return None if zero is None or abs(zero - clean) < 1e-9 else (clean, zero)


def recovered(data: Data, params: Any, reconstruct: Any) -> dict[str, float]:
    """Return {"loss_recovered": ...} with `reconstruct` (of x [token, d_in] / scale) spliced in; {} where unknown."""
    if data.losses is None:
        return {}
    clean, zero = data.losses
    spliced = spliced_loss(data, params, lambda x: reconstruct(x / data.scale) * data.scale)
    return {} if spliced is None else {"loss_recovered": (zero - spliced) / (zero - clean)}


def spliced_loss(data: Data, params: Any, change: Any) -> float | None:
    """Return the model's loss on the held-out rows with `change` applied at the point, None without a right answer."""
    assert data.rows is not None

    def edit(point: Tensor) -> Tensor:
        flat = point.flatten(2).flatten(0, 1).to(data.train.dtype)
        return change(flat).to(point.dtype).view_as(point)

    step, total = max(1, FORWARD_TOKENS // data.rows.shape[1]), 0.0
    for rows in data.rows.split(step):
        edits = placed(data.model.card, params.point, params.layer, edit)
        loss = answers_loss(data.model.card, rows, data.model.run_with(rows, edits))
        if loss is None:
            return None
        total += float(loss) * len(rows)
    return total / len(data.rows)


def placed(card: Any, point: str, layer: int, edit: Any) -> dict[tuple[str, int], Any]:
    """Return the edits that put `edit` of a point in its place.

    resid_mid is no point that can be changed (the stream goes past it): what attention adds is changed so that the
    stream behind it is as asked. Without an MLP it is resid_post.
    """
    if point != "resid_mid" or not card.d_mlp:
        return {(point, layer): edit}
    before: list[Tensor] = []

    def remember(stream: Tensor) -> Tensor:
        before[:] = [stream]
        return stream

    def moved(out: Tensor) -> Tensor:
        return edit(before[0] + out) - before[0]

    return {("resid_pre", layer): remember, ("attn_out", layer): moved}


def answers_loss(card: Any, rows: Tensor, logits: Tensor) -> Tensor | None:
    """Return the mean cross-entropy of the right answers, None where none is known."""
    told = logits.double()
    if card.training.get("recipe") == "modular_addition":
        right = (rows[:, 0] + rows[:, 1]) % card.training["params"]["p"]
        return torch.nn.functional.cross_entropy(told[:, -1], right)
    if "next_token" not in card.capabilities or rows.shape[1] < 2:
        return None
    return torch.nn.functional.cross_entropy(told[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


# ---------------------------------------------------------------- training


@dataclass
class SaeTraining(schedule.Scheduled):
    """One autoencoder over captured activations; counts for how many updates each feature has been silent."""

    data: Data = field(kw_only=True)
    params: Any = field(kw_only=True)
    loss: Tensor | None = None

    def __post_init__(self) -> None:
        self.net: Any = self.model
        self.silent = torch.zeros(self.params.d_sae, dtype=torch.long, device=self.data.train.device)
        self.update, self.measure = self._update, self._measure

    def _update(self) -> None:
        x = self.data.train[torch.randint(len(self.data.train), (self.params.batch_size,), generator=self.generator)]
        self.loss, self.silent = maths.update(
            self.net, self.optimizer, x, self.silent, self.params.dead_after, self.data.spread, self.params.l1_weight
        )

    def _measure(self) -> dict[str, float]:
        values = maths.measures(self.net, self.data.held_out)
        values["dead_share"] = float((self.silent >= self.params.dead_after).double().mean())
        with torch.no_grad():
            values |= recovered(self.data, self.params, self.net)
        return values | ({} if self.loss is None else {"objective": float(self.loss)})

    def keep(self, run: Recorder, step: int) -> None:
        """Write the tensors for inputs as they are, and what an exact resume needs."""
        state = {"generator": self.generator.get_state(), "silent": self.silent}
        run.checkpoint(step, self.net.scaled(self.data.scale), self.optimizer, state)

    def restore(self, run: Recorder, step: int) -> None:
        """Put back all that `keep` wrote. Raises Broken where a file cannot be read."""
        checkpoints.load_weights(layout.file_of(run.folder, layout.CHECKPOINTS, step), self.net)
        self.net.load_state_dict(self.net.scaled(1 / self.data.scale))
        kept = checkpoints.load_resume(layout.file_of(run.folder, layout.RESUME, step), self.optimizer)
        self.generator.set_state(kept["generator"])
        self.silent = kept["silent"].to(self.silent.device)


# ---------------------------------------------------------------- what is left for others


def companion(params: Any, data: Data) -> dict[str, Any]:
    """Return run.json's "companion": for which model, where in it, and how it is used."""
    card = data.model.card
    return {"kind": "sae", "spec": card.spec, "step": card.step, "fingerprint": card.fingerprint,
            "point": params.point, "layer": params.layer, "d_in": data.train.shape[1], "d_sae": params.d_sae,
            "k": params.k, "activation": params.kind, "surrogate": params.surrogate}  # fmt: skip


def same_model(run: Recorder, data: Data) -> None:
    """Raise BadInput where the model is not the one that the run was started with."""
    if run.info.get("companion", {}).get("fingerprint") != data.model.card.fingerprint:
        found = f"{data.model.card.spec} has other weights than when it began"
        raise BadInput(f"Resuming run {run.folder.name!r}", found, "Put the old weights back, or start a new run")


def export(run: Recorder, params: Any, data: Data) -> None:
    """Write saelens/ in the run's folder: the last checkpoint as SAELens loads it from disk."""
    folder = run.folder / "saelens"
    folder.mkdir(exist_ok=True)
    last = layout.file_of(run.folder, layout.CHECKPOINTS, max(layout.steps_in(run.folder)))
    config = saelens.config(
        data.model, point=params.point, layer=params.layer, d_in=data.train.shape[1], d_sae=params.d_sae,
        kind=params.kind, k=params.k, dtype=params.dtype, length=params.length,
    )  # fmt: skip
    layout.write_whole(folder / saelens.WEIGHTS, last.read_bytes())
    layout.write_whole(folder / saelens.CONFIG, json.dumps(config, indent=1).encode() + b"\n")
