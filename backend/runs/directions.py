"""Directions that a user keeps by name: a run folder that holds vectors for a model, as an autoencoder's run does.

run.json says for which weights ("companion", kind direction_set); the checkpoint holds W_dec [direction, d_in]. What
adds a feature's direction (`add L0.resid_post 2 feature NAME 1`) adds one of these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from backend.errors import BadInput, Broken
from backend.runs import layout


def keep(folder: Path, card: Mapping[str, Any], vectors: Any, point: str, layer: int) -> None:
    """Write vectors [direction, d_in] of a point of the model of `card` as a run folder.

    Raises BadInput where the folder is there already, Broken where it cannot be written.
    """
    if folder.exists():
        raise BadInput(f"Keep directions as {folder.name!r}", "a run has this name", "Choose another name")
    rows = np.ascontiguousarray(np.stack([np.asarray(v, np.float32) for v in vectors]))
    made = {"kind": "direction_set", "spec": card["spec"], "step": card["step"], "fingerprint": card["fingerprint"],
            "point": point, "layer": layer, "d_in": rows.shape[1], "n": len(rows)}  # fmt: skip
    record = {"name": folder.name, "params": {"steps": 0}, "companion": made}
    try:
        (folder / layout.CHECKPOINTS).mkdir(parents=True)
        save_file({"W_dec": rows}, layout.file_of(folder, layout.CHECKPOINTS, 0))
        layout.write_whole(folder / layout.RUN, json.dumps(record, indent=1).encode() + b"\n")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Broken(f"Keep directions as {folder.name!r}", f"cannot be written ({error.strerror})",
                     "Correct the rights or PHASESCOPE_RUNS") from None  # fmt: skip
