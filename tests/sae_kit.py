"""Sparse autoencoders for tests: a run folder that holds a random one, as the recipe `sae` would leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def sae_run(folder: Path, model: Any, seed: int = 0, point: str = "resid_post", layer: int = 0, **more: Any) -> Path:
    """Write a run of one checkpoint, at step 0, of a random TopK autoencoder for an opened model."""
    from safetensors.torch import save_file

    from backend.maths.sae import Sae

    card = model.card
    d_in = {"mlp_post": card.d_mlp, "z": card.n_heads * card.d_head}.get(point, card.d_model)
    made = {"kind": "sae", "spec": card.spec, "step": card.step, "fingerprint": card.fingerprint, "point": point,
            "layer": layer, "d_in": d_in, "d_sae": 48, "k": 4, "activation": "topk", "surrogate": False, **more}
    (folder / "checkpoints").mkdir(parents=True)
    save_file(Sae(d_in, 48, 4, seed=seed).state_dict(), folder / "checkpoints" / "step_00000000.safetensors")
    (folder / "run.json").write_text(json.dumps({"recipe": "sae", "params": {"steps": 0}, "companion": made}))
    return folder
