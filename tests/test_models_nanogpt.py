"""A nanoGPT checkpoint computes what a plain reimplementation of nanoGPT computes, in float64."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.errors import BadInput, NotFound, Unsupported
from backend.models import nanogpt
from tests.models_support import ids, opened

ARGS = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 20, "dropout": 0.1}


def random_state(bias: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a state dict with nanoGPT's names and shapes, as its own module would save it."""
    d, rng = ARGS["n_embd"], torch.Generator().manual_seed(seed)
    shapes = {"transformer.wte.weight": (20, d), "transformer.wpe.weight": (16, d)}
    for i in range(3):
        for name, (out, into) in {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d),
                                  "mlp.c_proj": (d, 4 * d)}.items():  # fmt: skip
            shapes[f"transformer.h.{i}.{name}.weight"] = (out, into)
            shapes[f"transformer.h.{i}.{name}.bias"] = (out,)
        for norm in ("ln_1", "ln_2"):
            shapes[f"transformer.h.{i}.{norm}.weight"] = shapes[f"transformer.h.{i}.{norm}.bias"] = (d,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (d,)
    state = {n: torch.randn(s, generator=rng) * 0.4 + ("ln" in n) for n, s in shapes.items() if bias or "bias" not in n}
    return {**state, "lm_head.weight": state["transformer.wte.weight"]}


def checkpoint(path: Path, bias: bool = True, prefix: str = "", **more: Any) -> Path:
    """Write a ckpt.pt as nanoGPT's train.py does."""
    state = {prefix + k: v for k, v in random_state(bias).items()}
    file = path / "ckpt.pt"
    torch.save({"model": state, "optimizer": {"state": {}}, "model_args": {**ARGS, "bias": bias}, "iter_num": 7,
                "best_val_loss": torch.tensor(1.5), "config": {"dataset": "x"}, **more}, file)  # fmt: skip
    return file


def plain_nanogpt(state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Write nanoGPT's forward again in float64, without transformers. Source: karpathy/nanoGPT, model.py."""
    p = {k.removeprefix("transformer."): v.double() for k, v in state.items()}
    n_head, width = ARGS["n_head"], ARGS["n_embd"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ p[name + ".weight"].T + p.get(name + ".bias", torch.zeros(()))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * p[name + ".weight"] + p.get(name + ".bias", torch.zeros(()))

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        heads = [t.unflatten(-1, (n_head, -1)).transpose(1, 2) for t in linear(x, name + ".c_attn").split(width, -1)]
        scores = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(width // n_head)
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = torch.softmax(scores.masked_fill(ahead, -math.inf), -1) @ heads[2]
        return linear(mixed.transpose(1, 2).flatten(-2), name + ".c_proj")

    def mlp(x: torch.Tensor, name: str) -> torch.Tensor:
        hidden = linear(x, name + ".c_fc")
        return linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), name + ".c_proj")

    x = p["wte.weight"][tokens] + p["wpe.weight"][: tokens.shape[1]]
    for i in range(ARGS["n_layer"]):
        x = x + attention(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
        x = x + mlp(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
    return norm(x, "ln_f") @ p["wte.weight"].T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits_equal_a_plain_reimplementation(tmp_path: Path, bias: bool, prefix: str) -> None:
    model = opened(f"nanogpt:{checkpoint(tmp_path, bias, prefix)}", dtype="float64")
    own = plain_nanogpt(random_state(bias), ids())
    assert (model.logits(ids()) - own).abs().max() < 1e-10
    assert (model.run(ids(), ["pattern"])[0] - own).abs().max() < 1e-10
    assert model.card.n_params == sum(v.numel() for v in random_state(True).values()) - 20 * 32  # lm_head is wte


def test_the_approximate_gelu_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = nanogpt.hf_config
    monkeypatch.setattr(nanogpt, "hf_config", lambda args: {**exact(args), "activation_function": "gelu_new"})
    model = opened(f"nanogpt:{checkpoint(tmp_path)}", dtype="float64")
    assert (model.logits(ids()) - plain_nanogpt(random_state(True), ids())).abs().max() > 1e-5


def test_the_same_weights_have_one_fingerprint_compiled_or_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mask = {"model": {**random_state(True), "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}}
    plain = opened(f"nanogpt:{checkpoint(tmp_path / 'a', **mask).parent}").card
    compiled = opened(f"nanogpt:{checkpoint(tmp_path / 'b', prefix='_orig_mod.')}").card
    assert plain.fingerprint == compiled.fingerprint
    (tmp_path / "c").mkdir()
    assert opened(f"nanogpt:{checkpoint(tmp_path / 'c', bias=False)}").card.fingerprint != plain.fingerprint


@pytest.mark.parametrize("form", ["pkl", "json", "symbols"])
def test_characters_come_from_meta(tmp_path: Path, form: str) -> None:
    symbols = list("\n abcdefghijklmnopq")
    if form == "pkl":
        meta = {"vocab_size": 19, "itos": dict(enumerate(symbols)), "stoi": {s: i for i, s in enumerate(symbols)}}
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    else:
        data = {"itos": {str(i): s for i, s in enumerate(symbols)}} if form == "json" else {"symbols": symbols}
        (tmp_path / "meta.json").write_text(json.dumps(data))
    card = opened(f"nanogpt:{checkpoint(tmp_path)}").card
    assert card.tokenizer == {"kind": "chars", "symbols": symbols}
    assert any("1 ids of the vocabulary have no character" in n for n in card.notes)


def test_without_meta_there_are_ids_and_a_note(tmp_path: Path) -> None:
    card = opened(f"nanogpt:{checkpoint(tmp_path)}").card
    assert card.tokenizer == {"kind": "ids"} and any("No meta.pkl" in n for n in card.notes)


class Evil:
    """A pickle that would create a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (self.path,)


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    checkpoint(tmp_path, extra=Evil(trap))
    with pytest.raises(Unsupported, match="pickled code"):
        opened(f"nanogpt:{tmp_path}")
    (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(Unsupported, match="pickled code"):
        opened(f"nanogpt:{tmp_path}")
    checkpoint(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": Evil(trap)}))
    with pytest.raises(Unsupported, match="run code"):
        opened(f"nanogpt:{tmp_path}")
    assert not trap.exists()
    pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert trap.exists(), "the trap itself must work, else this test proves nothing"


def test_damaged_checkpoints_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        opened(f"nanogpt:{tmp_path / 'no.pt'}")
    with pytest.raises(NotFound, match=r"no ckpt\.pt"):
        opened(f"nanogpt:{tmp_path}")
    file = checkpoint(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="truncated") as caught:
        opened(f"nanogpt:{file}")
    assert "\n" not in str(caught.value)
    checkpoint(tmp_path, model_args={**ARGS, "n_embd": 64})
    with pytest.raises(BadInput, match=r"wte\.weight is \[20, 32\] where the config says \[20, 64\]"):
        opened(f"nanogpt:{file}")
    lacking = random_state(True)
    del lacking["transformer.h.1.mlp.c_fc.weight"]
    checkpoint(tmp_path, model=lacking)
    with pytest.raises(BadInput, match=r"h\.1\.mlp\.c_fc\.weight is missing"):
        opened(f"nanogpt:{file}")
    checkpoint(tmp_path, model={**random_state(True), "extra.weight": torch.ones(1)})
    with pytest.raises(BadInput, match=r"extra\.weight has no place"):
        opened(f"nanogpt:{file}")
    checkpoint(tmp_path, model={**random_state(True), "lm_head.weight": torch.ones(20, 32)})
    with pytest.raises(Unsupported, match="lm_head differs"):
        opened(f"nanogpt:{file}")
    torch.save({"weights": 1}, file)
    with pytest.raises(BadInput, match="no nanoGPT checkpoint"):
        opened(f"nanogpt:{file}")
    (tmp_path / "meta.json").write_text("{")
    checkpoint(tmp_path)
    with pytest.raises(BadInput, match="malformed"):
        opened(f"nanogpt:{file}")
