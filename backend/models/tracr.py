"""Compiled RASP programs (tracr) as native models: which components they use is known exactly.

The shipped arrays were compiled by tracr-pypi 1.0.0 (Apache-2.0): token and position embeddings, attention and MLPs
without norms or mask, ReLU. Residual coordinates have names; the output is the argmax over the coordinates of one
variable, so W_U picks those and the logits are its classes. No torch at import.
Source: Lindner et al. (2023), Tracr: Compiled Transformers as a Laboratory for Interpretability.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import BadInput

PROGRAMS = Path(__file__).with_name("programs")
#: program -> the variable whose coordinates are its output
OUTPUT = {"reverse": "reverse_1:", "hist": "hist_7:", "sort_unique": "sort_9:"}


def programs() -> dict[str, Path]:
    """Return {tracr_NAME: file} of the shipped programs."""
    return {f"tracr_{name}": PROGRAMS / f"tracr_{name}.npz" for name in OUTPUT}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (arrays, meta) of a program's file. Raises BadInput where it is none of the known ones."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        meta["program"] = path.stem.removeprefix("tracr_")
        meta["at"] = [i for i, said in enumerate(meta["labels"]) if said.startswith(OUTPUT[meta["program"]])]
    except (OSError, ValueError, KeyError) as error:
        todo = f"Name one of {', '.join(programs())}"
        raise BadInput(f"Program {path.name}", f"no compiled program ({type(error).__name__})", todo) from None
    return arrays, {**meta, "outputs": [meta["labels"][i].split(":")[1] for i in meta["at"]]}


def config(arrays: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the native config."""
    n_ctx, width = arrays["pos_embed|embeddings"].shape
    cfg = meta["cfg"]
    return {"n_layers": cfg["num_layers"], "d_model": width, "d_head": cfg["key_size"], "n_heads": cfg["num_heads"],
            "d_mlp": cfg["mlp"], "d_vocab": len(meta["inmap"]), "d_vocab_out": len(meta["at"]), "n_ctx": n_ctx,
            "act_fn": "relu", "normalization_type": None, "attention_dir": "bidirectional",
            "positional_embedding_type": "standard"}  # fmt: skip


def about(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a card says of the program: its words and what tracr's own decoding said of some inputs."""
    symbols = sorted(meta["inmap"], key=meta["inmap"].get)
    told = {n: meta[n] for n in ("program", "outputs", "seqs", "outs")}
    return {"tokenizer": {"kind": "words", "symbols": symbols}, "training": {"recipe": "tracr", "params": told}}


def state(arrays: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors in NativeModel's names."""
    import torch

    found = {"tok_embed.weight": arrays["token_embed|embeddings"], "pos.weight": arrays["pos_embed|embeddings"],
             "head.weight": np.eye(len(meta["labels"]), dtype=np.float32)[meta["at"]]}  # fmt: skip
    parts = {"attn.q": "attn/query", "attn.k": "attn/key", "attn.v": "attn/value", "attn.o": "attn/linear",
             "mlp.fc_in": "mlp/linear_1", "mlp.fc_out": "mlp/linear_2"}  # fmt: skip
    for layer in range(meta["cfg"]["num_layers"]):
        for ours, theirs in parts.items():
            name = f"transformer/layer_{layer}/{theirs}"
            found[f"layers.{layer}.{ours}.weight"] = arrays[f"{name}|w"].T
            found[f"layers.{layer}.{ours}.bias"] = arrays[f"{name}|b"]
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in found.items()}
