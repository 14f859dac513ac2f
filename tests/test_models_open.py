"""The hook view repeats the bare module, which stays untouched: GPT-2, GPT-NeoX, Llama with GQA, native."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.contract import CAPABILITY_RULES
from backend.errors import BadInput, Unfit
from backend.models import bridge
from backend.models.fidelity import sample
from backend.models.open import LoadedModel, fidelity
from tests.models_support import NATIVE, hf_folder, ids, opened, run_folder

KINDS = ["gpt2", "neox", "llama", "native", "native-mlp"]
MLP = NATIVE | {"attn_only": False, "d_mlp": 40, "act_fn": "gelu", "n_key_value_heads": 2, "d_vocab_out": 7,
                "positional_embedding_type": "rotary", "normalization_type": "RMS"}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    path = tmp_path_factory.mktemp("models")
    run_folder(path / "runs" / "native")
    run_folder(path / "runs" / "mlp", config=MLP)
    found = {n: opened(f"dir:{hf_folder(path / n, n)}", dtype="float64") for n in KINDS[:3]}
    found["native"] = opened("run:native", path, dtype="float64")
    found["native-mlp"] = opened("run:mlp", path, dtype="float64")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_hooked_run_equals_the_plain_forward(models: dict[str, LoadedModel], kind: str) -> None:
    model, tokens = models[kind], ids()
    logits, _ = model.run(tokens, ["pattern", "resid_post"])
    assert torch.allclose(logits, model.logits(tokens), atol=2e-6)
    assert fidelity(model)["max_abs_log_prob"] < 2e-6 and fidelity(model)["top1_agreement"] == 1.0
    assert model.card.fidelity == fidelity(model)


def test_fidelity_sees_a_view_that_computes_something_else(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "r")
    model = opened("run:r", tmp_path)
    other = opened("run:r", tmp_path, step=0)
    tokens = sample(model)
    agree = (model.logits(tokens).argmax(-1) == other.logits(tokens).argmax(-1)).double().mean().item()
    model.view = other.view
    assert fidelity(model)["max_abs_log_prob"] > 0.1
    assert fidelity(model)["top1_agreement"] == pytest.approx(agree) and agree < 0.9


def test_fidelity_counts_the_positions_where_the_view_disagrees(tmp_path: Path) -> None:
    """The view's W_U alone is disturbed, so that another token wins at some positions and not at others."""
    run_folder(tmp_path / "runs" / "r")
    model, other = opened("run:r", tmp_path), opened("run:r", tmp_path)
    tokens = sample(model)
    with torch.no_grad():
        weight = other.bare.head.weight
        weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    changed = (model.logits(tokens).argmax(-1) != other.logits(tokens).argmax(-1)).sum().item()
    model.view = other.view
    assert 0 < changed < tokens.numel()
    assert fidelity(model)["top1_agreement"] == pytest.approx(1 - changed / tokens.numel())


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_are_causal_distributions(models: dict[str, LoadedModel], kind: str) -> None:
    for (_, layer), pattern in models[kind].capture(ids(), ["pattern"]).items():
        assert pattern.shape == (3, 4, 12, 12) and layer in (0, 1)
        assert torch.allclose(pattern.sum(-1), torch.ones_like(pattern[..., 0]), atol=1e-6)
        assert not pattern.triu(1).any()
        assert pattern.std() > 0.01, "a uniform pattern would prove nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_are_the_softmax_of_the_scores(models: dict[str, LoadedModel], kind: str) -> None:
    found = models[kind].capture(ids(), ["attn_scores", "pattern"], layers=[1])
    scores = found["attn_scores", 1]
    assert torch.isneginf(scores[..., 0, 1:]).all()
    assert torch.allclose(torch.softmax(scores, -1), found["pattern", 1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_patterns_equal_the_plain_forwards_own_attentions(models: dict[str, LoadedModel], kind: str) -> None:
    model, tokens = models[kind], ids()
    own = model.bare(tokens, output_attentions=True).attentions
    for layer, attention in enumerate(own):
        assert torch.allclose(model.capture(tokens, ["pattern"])["pattern", layer], attention, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_residual_reads_as_the_models_logits(models: dict[str, LoadedModel], kind: str) -> None:
    model, tokens = models[kind], ids()
    first, last = model.capture(tokens, ["resid_post"]).values()
    assert torch.allclose(model.unembed(last), model.logits(tokens), atol=2e-6)
    assert model.unembed(last[0, 3]).shape == (model.card.d_vocab_out,)
    assert not torch.allclose(model.unembed(first), model.logits(tokens), atol=1e-2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "native-mlp", "native"])
def test_the_residual_stream_adds_up(models: dict[str, LoadedModel], kind: str) -> None:
    points = ["embed", "resid_pre", "resid_mid", "resid_post", "attn_out"]
    points += ["mlp_out"] if "mlp" in models[kind].card.capabilities else []
    found = models[kind].capture(ids(), points)
    assert torch.equal(found["embed", 0], found["resid_pre", 0])
    assert torch.equal(found["resid_post", 0], found["resid_pre", 1])
    for layer in (0, 1):
        mid = found["resid_pre", layer] + found["attn_out", layer]
        assert torch.allclose(mid, found["resid_mid", layer], atol=1e-9)
        after = mid + found.get(("mlp_out", layer), torch.tensor(0))
        assert torch.allclose(after, found["resid_post", layer], atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_z_is_the_pattern_times_v(models: dict[str, LoadedModel], kind: str) -> None:
    model = models[kind]
    found = model.capture(ids(), ["pattern", "v", "q", "k", "z"], layers=[0])
    kv = model.card.n_key_value_heads
    assert found["q", 0].shape == (3, 12, 4, 8) and found["k", 0].shape == found["v", 0].shape == (3, 12, kv, 8)
    values = found["v", 0].repeat_interleave(4 // kv, dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", found["pattern", 0], values)
    assert torch.allclose(z, found["z", 0].reshape(z.shape), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bare_module_is_not_touched_by_its_view(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m"
    config = MLP if kind == "native-mlp" else None
    spec = f"run:{run_folder(path, config=config)}" if "native" in kind else f"dir:{hf_folder(path, kind)}"
    model, tokens = opened(spec), ids()
    fresh, _ = model.bare, model.view
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    plain, names = model.logits(tokens), [(n, type(m)) for n, m in fresh.named_modules()]
    again = bridge.hook_view(fresh)
    again.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_pattern"])
    assert [(n, type(m)) for n, m in fresh.named_modules()] == names
    assert "Bridge" not in repr(fresh)
    assert torch.equal(model.logits(tokens), plain)
    assert before.keys() == fresh.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_view_shares_the_parameters(models: dict[str, LoadedModel], kind: str) -> None:
    model = models[kind]
    own = {p.data_ptr() for p in model.bare.parameters()}
    assert own <= {p.data_ptr() for p in model.view.parameters()}
    bare = sum(t.numel() * t.element_size() for t in (*model.bare.parameters(), *model.bare.buffers()))
    split = 0 if kind in ("llama", "native", "native-mlp") else 2 * 3 * (32 * 32 + 32) * 8  # Q, K, V of two layers
    assert model.card.memory_bytes <= bare + split + model.card.d_vocab_out * 8  # and a zero b_U


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_on_the_bare_module_leaves_everything_as_it_was(models: dict[str, LoadedModel], kind: str) -> None:
    model, tokens = models[kind], ids(2, 6)
    plain, hooked = model.logits(tokens), model.run(tokens, ["resid_post"])[0]
    parameters = {k: v.detach() for k, v in model.bare.named_parameters()}

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model.bare, p, (x.unsqueeze(0),), tie_weights=False)
        return (out if isinstance(out, torch.Tensor) else out.logits).double().logsumexp(-1).sum()

    zeros = {k: torch.zeros_like(v) for k, v in parameters.items()}
    assert loss(zeros, tokens[0]) != loss(parameters, tokens[0])
    torch.func.grad(loss)(parameters, tokens[0])
    assert torch.equal(model.logits(tokens), plain)
    assert torch.equal(model.run(tokens, ["resid_post"])[0], hooked)


def test_gradients_reach_the_parameters(models: dict[str, LoadedModel]) -> None:
    for model in models.values():
        model.forward(ids(1, 5)).logsumexp(-1).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.bare.parameters())
        model.bare.zero_grad(set_to_none=True)
        assert not model.logits(ids(1, 5)).requires_grad


def test_the_card_is_complete(models: dict[str, LoadedModel]) -> None:
    llama, native, mlp = (models[k].card for k in ("llama", "native", "native-mlp"))
    assert (llama.n_layers, llama.n_heads, llama.n_key_value_heads, llama.d_head, llama.d_mlp) == (2, 4, 2, 8, 48)
    assert (llama.d_vocab, llama.n_ctx, llama.dtype, llama.device) == (50, 24, "float64", "cpu")
    assert llama.architecture == "LlamaForCausalLM" and len(llama.fingerprint) == 32 and llama.seconds > 0
    assert llama.n_params == sum(p.numel() for p in models["llama"].bare.parameters())
    assert set(llama.capabilities) == {"attention_patterns", "unembed", "mlp", "gradients", "causal", "next_token",
                                       "resid_mid", "uncapped_logits", "linear_attn_out"}  # fmt: skip
    assert "resid_mid" not in models["neox"].card.capabilities and llama.rules == CAPABILITY_RULES
    assert {"named_weights", "separate_heads"} <= set(models["gpt2"].card.capabilities)
    assert "named_weights" in mlp.capabilities and "separate_heads" not in mlp.capabilities
    assert native.d_mlp == 0 and "mlp" not in native.capabilities and "next_token" in native.capabilities
    assert mlp.d_mlp == 40 and mlp.d_vocab_out == 7 and "next_token" not in mlp.capabilities
    assert native.step == 10 and native.tokenizer == {"kind": "ids"}


def test_a_model_that_looks_ahead_is_not_called_causal(tmp_path: Path) -> None:
    run_folder(tmp_path / "r", config=NATIVE | {"attention_dir": "bidirectional"})
    assert "causal" not in opened(f"run:{tmp_path / 'r'}").card.capabilities


@pytest.mark.parametrize("kind", ["neox", "llama"])
def test_bfloat16_keeps_the_rotary_tables_in_float32(tmp_path: Path, kind: str) -> None:
    model = opened(f"dir:{hf_folder(tmp_path / 'm', kind)}", dtype="bfloat16")
    assert model.card.dtype == "bfloat16" and next(model.bare.parameters()).dtype == torch.bfloat16
    tables = [b for n, b in model.bare.named_buffers() if "inv_freq" in n]
    assert tables and all(b.dtype == torch.float32 for b in tables)
    assert model.card.fidelity["top1_agreement"] == 1.0


def test_points_and_tokens_that_do_not_fit_are_refused(models: dict[str, LoadedModel]) -> None:
    model = models["neox"]
    with pytest.raises(Unfit, match="same stream"):
        model.capture(ids(), ["resid_mid"])
    with pytest.raises(Unfit, match="no such part"):
        models["native"].capture(ids(), ["mlp_post"])
    with pytest.raises(BadInput, match="no such point"):
        model.capture(ids(), ["resid_past"])
    with pytest.raises(BadInput, match=r"layers 0\.\.1"):
        model.capture(ids(), ["pattern"], layers=[2])
    with pytest.raises(BadInput, match="too long by 3"):
        model.capture([[0] * 27], ["pattern"])
    with pytest.raises(BadInput, match="outside the vocabulary"):
        model.logits([0, 50])
    with pytest.raises(BadInput, match="there are none"):
        model.logits([[]])


def test_only_the_named_points_are_kept(models: dict[str, LoadedModel]) -> None:
    found = models["gpt2"].capture([3, 1, 2], ["pattern", "embed"], layers=[1])
    assert set(found) == {("pattern", 1), ("embed", 0)} and found["pattern", 1].shape == (1, 4, 3, 3)
