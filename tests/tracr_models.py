"""Compiled RASP programs (tracr, Apache-2.0) as native models: which components they use is known exactly.

The arrays in tests/data were compiled by tracr-pypi 1.0.0. Residual coordinates have names; the output is the argmax
over the coordinates of one variable, so W_U picks those and the logits are its classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.contract import Pair, Pairs
from tests.wired import wired_run

DATA = Path(__file__).parent / "data"
OUTPUT = {"reverse": "reverse_1:", "hist": "hist_7:", "sort_unique": "sort_9:"}
#: components with output weights that are not zero
TRUTH = {"reverse": {"L0H0", "L0 mlp", "L1 mlp", "L2 mlp", "L3H0"}, "hist": {"L0H0", "L0 mlp"},
         "sort_unique": {"L0H0", "L0 mlp", "L1H0"}}


@dataclass(frozen=True)
class Program:
    """An opened program, its words, and what it should answer."""

    name: str
    model: Any
    meta: dict[str, Any]
    outputs: list[str]  # class -> output value

    def ids(self, words: list[str]) -> list[int]:
        """Return the tokens of BOS and words."""
        return [self.meta["inmap"][w] for w in ["BOS", *words]]

    def answer(self, words: list[str]) -> list[str]:
        """Return what the program says, computed here in plain Python."""
        if self.name == "hist":
            return [str(words.count(w)) for w in words]
        return sorted(words) if self.name == "sort_unique" else words[::-1]

    def draw(self, dice: np.random.Generator, length: int = 0) -> list[str]:
        """Draw words of a random length (or this one); of sort_unique all different."""
        letters = [w for w in self.meta["inmap"] if w not in ("BOS", "compiler_pad")]
        length = length or int(dice.integers(1, self.model.card.n_ctx))
        return [str(w) for w in dice.choice(letters, length, replace=self.name != "sort_unique")]

    def pairs(self, n: int, seed: int = 0) -> Pairs:
        """Return pairs of equally long inputs whose last outputs differ; lengths vary over pairs."""
        dice, found = np.random.default_rng(seed), []
        while len(found) < n:
            clean = self.draw(dice)
            other = self.draw(dice, len(clean))
            a, b = (self.outputs.index(self.answer(w)[-1]) for w in (clean, other))
            if a != b:
                found.append(Pair(clean=tuple(self.ids(clean)), corrupted=tuple(self.ids(other)), answer=a,
                                  distractor=b))  # fmt: skip
        return Pairs(pairs=tuple(found))


def program(name: str, folder: Path) -> Program:
    """Write the program as a native run and open it in float64."""
    from backend.models.bridge import build_native

    arrays = np.load(DATA / f"tracr_{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    at = [i for i, label in enumerate(meta["labels"]) if label.startswith(OUTPUT[name])]
    outputs = [meta["labels"][i].split(":")[1] for i in at]
    sizes = _sizes(arrays, meta, len(outputs))
    bare: Any = build_native(sizes)
    with torch.no_grad():
        _fill(bare, arrays, meta["cfg"]["num_layers"])
        bare.head.weight.zero_()[torch.arange(len(at)), torch.tensor(at)] = 1
    return Program(name, wired_run(folder, bare, sizes), meta, outputs)


def _sizes(arrays: Any, meta: dict[str, Any], classes: int) -> dict[str, Any]:
    n_ctx, width = arrays["pos_embed|embeddings"].shape
    cfg = meta["cfg"]
    return {"n_layers": cfg["num_layers"], "d_model": width, "d_head": cfg["key_size"], "n_heads": cfg["num_heads"],
            "d_mlp": cfg["mlp"], "d_vocab": len(meta["inmap"]), "d_vocab_out": classes, "n_ctx": n_ctx,
            "act_fn": "relu", "normalization_type": None, "attention_dir": "bidirectional",
            "positional_embedding_type": "standard"}  # fmt: skip


def _fill(bare: Any, arrays: Any, n_layers: int) -> None:
    def put(module: Any, name: str) -> None:
        module.weight.copy_(torch.tensor(arrays[f"{name}|w"]).T)
        module.bias.copy_(torch.tensor(arrays[f"{name}|b"]))

    bare.tok_embed.weight.copy_(torch.tensor(arrays["token_embed|embeddings"]))
    bare.pos.weight.copy_(torch.tensor(arrays["pos_embed|embeddings"]))
    for n in range(n_layers):
        here, block = f"transformer/layer_{n}", bare.layers[n]
        for part, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "linear")):
            put(getattr(block.attn, part), f"{here}/attn/{name}")
        for part, name in (("fc_in", "linear_1"), ("fc_out", "linear_2")):
            put(getattr(block.mlp, part), f"{here}/mlp/{name}")
