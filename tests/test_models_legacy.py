"""transformer-lens checkpoints: old key names, configs given or inferred, and two real models trained by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from backend.errors import BadInput, NotFound, Unsupported
from backend.models.open import LoadedModel
from tests.models_support import DATA, ids, opened

SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 12, "d_vocab": 20, "d_vocab_out": 5}


def old_state(mlp: bool = False, norm: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random state dict with old transformer-lens names."""
    d, h, dh, m = 16, 2, 8, 24
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (20, d), "pos_embed.W_pos": (12, d)}
    for i in range(2):
        b = f"blocks.{i}."
        shapes |= {f"{b}attn.W_{x}": (h, d, dh) for x in "QKV"} | {f"{b}attn.b_{x}": (h, dh) for x in "QKV"}
        shapes |= {f"{b}attn.W_O": (h, dh, d), f"{b}attn.b_O": (d,)}
        if norm:
            shapes |= {f"{b}ln1.w": (d,), f"{b}ln1.b": (d,)}
        if mlp:
            shapes |= {f"{b}mlp.W_in": (d, m), f"{b}mlp.b_in": (m,), f"{b}mlp.W_out": (m, d), f"{b}mlp.b_out": (d,)}
            shapes |= {f"{b}ln2.w": (d,), f"{b}ln2.b": (d,)} if norm else {}
    shapes |= {"unembed.W_U": (d, 5), "unembed.b_U": (5,)} | ({"ln_final.w": (d,), "ln_final.b": (d,)} if norm else {})
    rng = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(s, generator=rng) * 0.5 for n, s in shapes.items()}
    buffers = {f"blocks.{i}.attn.{n}": torch.tensor(-1e5) for i in (0, 1) for n in ("mask", "IGNORE")}
    return {**state, **buffers}


def plain_forward(s: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The old HookedTransformer's forward with einsums on the old tensors: [batch, pos, d_vocab_out]."""
    s = {k: v.double() for k, v in s.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (16,), s[name + ".w"], s[name + ".b"]) if name + ".w" in s else x

    x = s["embed.W_E"][tokens] + s["pos_embed.W_pos"][: tokens.shape[1]]
    for b in ("blocks.0.", "blocks.1."):
        y = norm(x, b + "ln1")
        q, k, v = (torch.einsum("bpd,hde->bphe", y, s[f"{b}attn.W_{n}"]) + s[f"{b}attn.b_{n}"] for n in "QKV")
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / 8**0.5
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        z = torch.einsum("bhqk,bkhe->bqhe", scores.masked_fill(ahead, -torch.inf).softmax(-1), v)
        x = x + torch.einsum("bqhe,hed->bqd", z, s[b + "attn.W_O"]) + s[b + "attn.b_O"]
        if b + "mlp.W_in" in s:
            hidden = F.relu(norm(x, b + "ln2") @ s[b + "mlp.W_in"] + s[b + "mlp.b_in"])
            x = x + hidden @ s[b + "mlp.W_out"] + s[b + "mlp.b_out"]
    return norm(x, "ln_final") @ s["unembed.W_U"] + s["unembed.b_U"]


@pytest.mark.parametrize(("mlp", "norm"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_inferred_models_equal_the_old_forward(tmp_path: Path, mlp: bool, norm: bool, form: str) -> None:
    state, file = old_state(mlp, norm), tmp_path / f"model.{form}"
    torch.save(state, file) if form == "pt" else save_file(state, file)
    model = opened(f"tl:{file}", dtype="float64")
    tokens = ids(pos=9)
    assert (model.logits(tokens) - plain_forward(state, tokens)).abs().max() < 1e-10
    assert (model.run(tokens, ["pattern"])[0] - plain_forward(state, tokens)).abs().max() < 1e-10
    assert {n: getattr(model.card, n) for n in SIZES} == SIZES and model.card.d_mlp == (24 if mlp else 0)
    assert "next_token" not in model.card.capabilities
    assert any("sizes were read from the tensors' shapes" in n for n in model.card.notes)


def test_a_config_beside_the_file_decides(tmp_path: Path) -> None:
    torch.save(old_state(True), tmp_path / "model.pt")
    config = {**SIZES, "d_mlp": 24, "act_fn": "gelu", "normalization_type": "LN", "attn_only": False, "seed": 3,
              "attention_dir": "causal", "device": "cuda", "checkpoint_index": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = opened(f"tl:{tmp_path}", dtype="float64")
    assert not any("No config JSON" in n for n in model.card.notes)
    assert (model.logits(ids(pos=9)) - plain_forward(old_state(True), ids(pos=9))).abs().max() > 1e-3  # GELU, not ReLU
    (tmp_path / "config.json").write_text(json.dumps({**config, "act_fn": "relu"}))
    again = opened(f"tl:{tmp_path / 'model.pt'}", dtype="float64")
    assert (again.logits(ids(pos=9)) - plain_forward(old_state(True), ids(pos=9))).abs().max() < 1e-10
    assert again.card.fingerprint != model.card.fingerprint


def test_absent_biases_are_zero_and_said(tmp_path: Path) -> None:
    state = old_state()
    state["unembed.b_U"].zero_()
    state["blocks.0.attn.b_Q"].zero_()
    fewer = {k: v for k, v in state.items() if k not in ("unembed.b_U", "blocks.0.attn.b_Q")}
    torch.save(fewer, tmp_path / "m.pt")
    model = opened(f"tl:{tmp_path / 'm.pt'}", dtype="float64")
    assert (model.logits(ids(pos=9)) - plain_forward(state, ids(pos=9))).abs().max() < 1e-10
    assert any("1 absent biases are zero" in n for n in model.card.notes)


def test_bad_checkpoints_get_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    with pytest.raises(NotFound, match="no such file"):
        opened(f"tl:{file}")
    with pytest.raises(NotFound, match="no weights"):
        opened(f"tl:{tmp_path}")
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(BadInput, match="no transformer-lens model"):
        opened(f"tl:{file}")
    torch.save([1, 2], file)
    with pytest.raises(BadInput, match="no state dict"):
        opened(f"tl:{file}")
    torch.save(old_state(), file)
    config = {**SIZES, "attn_only": True, "normalization_type": "LN"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_heads": 4}))
    with pytest.raises(BadInput, match=r"has shape \(2, 16, 8\), expected \(4, 16, 8\)"):
        opened(f"tl:{file}")
    (tmp_path / "config.json").write_text(json.dumps({**config, "parallel_attn_mlp": True}))
    with pytest.raises(Unsupported, match="parallel_attn_mlp"):
        opened(f"tl:{file}")
    (tmp_path / "config.json").write_text(json.dumps({**config, "positional_embedding_type": "rotary"}))
    with pytest.raises(Unsupported, match="split halves"):
        opened(f"tl:{file}")
    (tmp_path / "config.json").write_text(json.dumps({**config, "d_vocab": 21}))
    with pytest.raises(BadInput, match=r"tok_embed\.weight is \[20, 16\] where the config says \[21, 16\]"):
        opened(f"tl:{file}")
    (tmp_path / "config.json").write_text("{no")
    with pytest.raises(BadInput, match="malformed"):
        opened(f"tl:{file}")


@pytest.fixture
def shared() -> Path:
    if not DATA.is_dir():
        pytest.skip("shared/data with models trained by others is not beside this checkout")
    return DATA


def test_palindrome_classifier_repeats_its_published_numbers(shared: Path) -> None:
    model = opened(f"tl:{shared / 'palindrome_classifier.pt'}")
    torch.manual_seed(42)
    half, other = torch.randint(0, 31, (1250, 10)), torch.randint(0, 31, (1250, 10))
    mask = torch.randint(0, 2, (1250, 10)).bool()
    plain = torch.cat([half, torch.where(mask, other, half.flip(-1))], 1)
    second = torch.randint(0, 31, (1250, 10))
    digits = torch.cat([torch.cat([second, second.flip(-1)], 1), plain])[torch.randperm(2500)]
    label = (digits == digits.flip(-1)).all(-1).long()
    ends = torch.ones(2500, 1, dtype=torch.long)
    logits = model.logits(torch.cat([31 * ends, digits, 32 * ends], 1))[:, -1]
    assert label.sum() == 1252
    assert round((logits.argmax(-1) == label).double().mean().item(), 4) == 0.9988
    assert round(F.cross_entropy(logits, label).item(), 5) == 0.00799
    assert model.card.d_vocab == 33 and model.card.d_vocab_out == 2 and model.card.d_mlp == 0


def test_modular_addition_model_repeats_its_published_numbers(shared: Path) -> None:
    model: LoadedModel = opened(f"tl:{shared / 'c113_t_seed1' / 'model.pt'}")
    a = torch.arange(113)
    tokens = torch.stack([a.repeat_interleave(113), a.repeat(113), torch.full((113**2,), 113)], 1)
    logits, label = model.logits(tokens)[:, -1].double(), tokens[:, :2].sum(1) % 113
    assert (logits.argmax(-1) == label).all()
    assert F.cross_entropy(logits, label).item() == pytest.approx(1.585e-7, rel=1e-3)
    assert any("x_embed, y_embed" in n for n in model.card.notes)
