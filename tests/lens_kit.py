"""Runs of tuned lenses for tests, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lens_run(folder: Path, model: Any, scale: float = 0.0, steps: int = 3, kind: str = "tuned_lens") -> str:
    """Write a finished lens for this model with random translators of this scale (0: the logit lens); return its name.

    The folder must lie where the model's settings look for runs.
    """
    import torch
    from safetensors.torch import save_file

    (folder / "checkpoints").mkdir(parents=True)
    dice, (layers, width) = torch.Generator().manual_seed(0), (model.card.n_layers, model.card.d_model)
    tensors = {"A": scale * torch.randn(layers, width, width, generator=dice),
               "b": scale * torch.randn(layers, width, generator=dice)}  # fmt: skip
    save_file(tensors, folder / "checkpoints" / f"step_{steps:08d}.safetensors")
    companion = {"kind": kind, "spec": model.card.spec, "step": model.card.step, "fingerprint": model.card.fingerprint}
    (folder / "run.json").write_text(json.dumps({"companion": companion, "params": {"steps": steps}}))
    return folder.name
