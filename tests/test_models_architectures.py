"""The test matrix of architectures beyond test_models_open: Qwen 2 and 3, Gemma 2, attention-only, no norm with ReLU.

The reference is the bare Hugging Face module opened by transformers alone, or a forward written out here. Every point
of the bridge is read and edited, or refused with a reason; what a model cannot be asked is greyed out with one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backend.analyses import registry
from backend.analyses._output import mlp_map
from backend.contract import NEEDS, Pair, Pairs, Prompt, Weights
from backend.errors import Unfit
from backend.models import bridge
from tests.models_support import NATIVE, ids, opened, run_folder

HF, OURS = ("qwen2", "qwen3", "gemma2"), ("attn-only", "no-ln-relu")
KINDS = (*HF, *OURS)
V = 50
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 48, "vocab_size": V, "max_position_embeddings": 24}  # fmt: skip
NO_NORM = {"attn_only": False, "d_mlp": 48, "normalization_type": None}
CONFIGS = {"attn-only": NATIVE | {"d_vocab": V}, "no-ln-relu": NATIVE | {"d_vocab": V} | NO_NORM}
TOKENS = ids(3, 12, V)
#: a window shorter than the text, caps that bite
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": 3.0,
         "attn_logit_softcapping": 2.0, "pad_token_id": 0}  # fmt: skip


def config_of(kind: str) -> Any:
    import transformers

    if kind == "gemma2":
        return transformers.Gemma2Config(**SIZES, **GEMMA)
    return transformers.Qwen2Config(**SIZES) if kind == "qwen2" else transformers.Qwen3Config(**SIZES, head_dim=8)


def save(kind: str, path: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, Any]:
    found = {kind: opened(f"dir:{save(kind, root / kind)}", dtype="float64") for kind in HF}
    for kind in OURS:
        model = opened(f"run:{run_folder(root / kind, config=CONFIGS[kind])}", dtype="float64")
        dice = torch.Generator().manual_seed(1)
        with torch.no_grad():  # weights that say something, biases that are not zero
            for p in model.bare.parameters():
                p.mul_(3) if p.ndim > 1 else p.add_(0.1 * torch.randn(p.shape, generator=dice, dtype=p.dtype))
        found[kind] = model
    return found


# ---------------------------------------------------------------- references


def hf_forward(folder: Path) -> torch.Tensor:
    """The module as transformers opens it, not through our loading."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def written_forward(w: dict[str, torch.Tensor], norm: bool) -> torch.Tensor:
    """Two layers of four heads: h += softmax(q k / sqrt 8) v W_O, then h += ReLU(h W_in) W_out where there are MLPs."""
    affine = torch.nn.functional.linear

    def ln(h: torch.Tensor, name: str) -> torch.Tensor:
        if not norm:
            return h
        return torch.nn.functional.layer_norm(h, h.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    h = w["tok_embed.weight"][TOKENS] + w["pos.weight"][: TOKENS.shape[1]]
    hidden = torch.ones(TOKENS.shape[1], TOKENS.shape[1], dtype=torch.bool).triu(1)
    for at in ("layers.0", "layers.1"):
        x = ln(h, f"{at}.ln1")
        q, k, v = (affine(x, w[f"{at}.attn.{n}.weight"], w[f"{at}.attn.{n}.bias"]).unflatten(-1, (4, 8)).transpose(1, 2)
                   for n in "qkv")  # fmt: skip
        pattern = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        h = h + affine((pattern @ v).transpose(1, 2).flatten(2), w[f"{at}.attn.o.weight"], w[f"{at}.attn.o.bias"])
        if f"{at}.mlp.fc_in.weight" in w:
            up = affine(ln(h, f"{at}.ln2"), w[f"{at}.mlp.fc_in.weight"], w[f"{at}.mlp.fc_in.bias"]).relu()
            h = h + affine(up, w[f"{at}.mlp.fc_out.weight"], w[f"{at}.mlp.fc_out.bias"])
    return affine(ln(h, "ln_out"), w["head.weight"])


@pytest.mark.parametrize("kind", HF)
def test_logits_are_those_of_the_hugging_face_module(models: dict[str, Any], root: Path, kind: str) -> None:
    expected = hf_forward(root / kind)
    torch.testing.assert_close(models[kind].logits(TOKENS), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(models[kind].run(TOKENS, ["pattern"])[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", OURS)
def test_logits_are_those_of_the_forward_written_out(models: dict[str, Any], kind: str) -> None:
    expected = written_forward(dict(models[kind].bare.state_dict()), norm=kind == "attn-only")
    torch.testing.assert_close(models[kind].logits(TOKENS), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(models[kind].run(TOKENS, ["pattern"])[0], expected, rtol=0, atol=1e-10)


# ---------------------------------------------------------------- points

#: points that are not there, with the reason
ABSENT = {"attn-only": {"mlp_pre", "mlp_post", "mlp_out"}}
#: points that are only read
READ_ONLY = {kind: {"resid_mid"} | ({"attn_scores"} if kind in OURS else set()) for kind in KINDS}
READ_ONLY["attn-only"] = {"attn_scores"}  # there resid_mid is resid_post


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", bridge.POINTS)
def test_every_point_is_read_and_edited_or_refused_with_a_reason(models: dict[str, Any], kind: str, point: str) -> None:
    model = models[kind]
    if point in ABSENT.get(kind, ()):
        with pytest.raises(Unfit, match="the model has no such part"):
            model.capture(TOKENS, [point])
        return
    places = model.capture(TOKENS, [point])
    assert all(len(t) == 3 for t in places.values())
    if point in READ_ONLY[kind]:
        with pytest.raises(Unfit, match="goes past it|Edit q, k or pattern"):
            model.run_with(TOKENS, dict.fromkeys(places, torch.clone))
        return
    plain = model.run_with(TOKENS, {})
    assert torch.equal(model.run_with(TOKENS, dict.fromkeys(places, torch.clone)), plain)
    assert torch.equal(model.run_with(TOKENS, {p: lambda _, kept=t: kept for p, t in places.items()}), plain)
    swapped = model.run_with(TOKENS, {next(iter(places)): lambda t: t.flip(0)})
    assert (swapped - plain).abs().max() > 1e-2, "the point is not on the model's way"


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_adds_up(models: dict[str, Any], kind: str) -> None:
    """In Gemma 2 too: attn_out and mlp_out are what is added to the stream, after the norms behind W_O and W_out."""
    mlp = [] if kind in ABSENT else ["mlp_out"]
    found = models[kind].capture(TOKENS, ["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", *mlp])
    assert torch.equal(found["embed", 0], found["resid_pre", 0])
    assert torch.equal(found["resid_post", 0], found["resid_pre", 1])
    for layer in (0, 1):
        mid = found["resid_pre", layer] + found["attn_out", layer]
        torch.testing.assert_close(found["resid_mid", layer], mid, rtol=0, atol=1e-12)
        after = mid + found.get(("mlp_out", layer), torch.zeros_like(mid))
        torch.testing.assert_close(found["resid_post", layer], after, rtol=0, atol=1e-12)


def test_gemmas_embedding_is_scaled(models: dict[str, Any]) -> None:
    weight = models["gemma2"].bare.model.embed_tokens.weight
    found = models["gemma2"].capture(TOKENS, ["embed"])["embed", 0]
    torch.testing.assert_close(found, weight[TOKENS] * 32**0.5, rtol=1e-6, atol=0)


def test_gemmas_window_and_cap_are_in_the_pattern(models: dict[str, Any]) -> None:
    """Layer 0 sees 6 tokens, layer 1 all; capped at 2, no score weighs more than e^4 times another."""
    found = models["gemma2"].capture(TOKENS, ["pattern", "attn_scores"])
    assert not found["pattern", 0].tril(-6).any() and (found["pattern", 1].tril(-6)[..., 6:, 0] > 0).all()
    seen = found["attn_scores", 1][found["attn_scores", 1].isfinite()]
    assert 1.5 < seen.abs().max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_a_causal_distribution(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    found = model.capture(TOKENS, ["pattern", "attn_scores", "v", "z"])
    for layer in (0, 1):
        pattern = found["pattern", layer]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), rtol=0, atol=1e-6)
        assert not pattern.triu(1).any() and pattern.std() > 0.01
        torch.testing.assert_close(found["attn_scores", layer].softmax(-1), pattern, rtol=0, atol=1e-6)
        v = found["v", layer].repeat_interleave(4 // model.card.n_key_value_heads, 2)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        torch.testing.assert_close(found["z", layer].reshape(z.shape), z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lens_of_the_last_layer_is_the_model(models: dict[str, Any], kind: str) -> None:
    first, last = models[kind].capture(TOKENS, ["resid_post"]).values()
    logits = models[kind].logits(TOKENS)
    torch.testing.assert_close(models[kind].unembed(last), logits, rtol=0, atol=1e-10)
    assert (models[kind].unembed(first) - logits).abs().max() > 1e-2
    assert kind != "gemma2" or 2 < logits.abs().max() < 3  # the cap is in the lens, and bites


# ---------------------------------------------------------------- gradients

PLACES = [("resid_pre", 1), ("q", 1), ("k", 0), ("v", 0), ("z", 1), ("attn_out", 0), ("pattern", 1)]


def gap(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 7] - logits[:, -1, 11] + 0.5 * logits[:, 4, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(models: dict[str, Any], kind: str) -> None:
    """These architectures' norms round to float32 in any precision, so the step is wide there."""
    model, (h, tolerance) = models[kind], (3e-4, 4e-3) if kind in HF else (1e-5, 1e-6)
    value, tensors, grads = model.gradients(TOKENS, gap, PLACES)
    torch.testing.assert_close(value, gap(model.logits(TOKENS)), rtol=0, atol=1e-10)
    for n, (place, tensor) in enumerate(tensors.items()):
        way = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(n), dtype=tensor.dtype)
        up, down = (gap(model.run_with(TOKENS, {place: lambda t, s=s, w=way: t + s * w})) for s in (h, -h))
        slope, got = (up - down) / (2 * h), (grads[place] * way).flatten(1).sum(1)
        scale = max(1.0, slope.abs().max().item())
        torch.testing.assert_close(got, slope, rtol=0, atol=tolerance * scale, msg=lambda m, p=place: f"{p}: {m}")
        assert slope.abs().max() > 1e-4, f"{place} changes nothing: this would prove nothing"


# ---------------------------------------------------------------- what each can be asked

EVERY = {"attention_patterns", "unembed", "mlp", "gradients", "causal", "next_token", "resid_mid", "uncapped_logits",
         "linear_attn_out", "named_weights", "separate_heads"}  # fmt: skip
LACKS = {
    "qwen2": {"named_weights", "separate_heads"}, "qwen3": {"named_weights", "separate_heads"}, "no-ln-relu": set(),
    "gemma2": {"named_weights", "separate_heads", "uncapped_logits", "linear_attn_out"}, "attn-only": {"mlp"},
}  # fmt: skip
SUBJECTS = {
    "prompt": Prompt(tokens=tuple(TOKENS[0].tolist())), "weights": Weights(),
    "pairs": Pairs(pairs=(Pair(clean=tuple(TOKENS[0].tolist()), corrupted=tuple(TOKENS[1].tolist()), answer=3,
                               distractor=4),)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_lacks_is_measured_and_said(models: dict[str, Any], kind: str) -> None:
    can = models[kind].card.capabilities
    assert EVERY - set(can) == LACKS[kind] and NEEDS.keys() >= EVERY
    grey = {name: one.unfit(can) for name, one in registry().items() if one.unfit(can)}
    assert ("value_weighted" in grey) == (kind == "gemma2") == ("direct_logit_attribution" in grey)
    assert ("neurons" in grey) == (kind == "attn-only") and ("circuit_edges" in grey) == (kind in HF)


def quiet(fraction: float, words: str) -> None:
    pass


@pytest.mark.parametrize(("name", "why"), [
    ("value_weighted", "something else than W_O stands behind attention"), ("direct_logit_attribution", "capped"),
    ("circuit_edges", "share 2 keys"), ("fourier_spectrum", "not known by name"),
])  # fmt: skip
def test_who_asks_all_the_same_is_refused_by_the_measurement(models: dict[str, Any], name: str, why: str) -> None:
    """The capability says before what the computation itself finds: both are about the same fact."""
    one = registry()[name]
    subject = SUBJECTS[one.subject.model_fields["kind"].default]
    with pytest.raises(Unfit, match=why):
        one.compute(models["gemma2"], subject, one.params(), quiet)


@pytest.mark.parametrize("kind", HF)
def test_w_out_and_w_u_without_names(models: dict[str, Any], kind: str) -> None:
    """Qwen 2 and 3 as their modules hold them; Gemma 2 has a norm behind W_out and is refused."""
    model = models[kind]
    assert torch.equal(model.unembedding(), model.bare.lm_head.weight.T)
    if kind == "gemma2":
        with pytest.raises(Unfit, match="a norm stands behind it"):
            mlp_map(model, 1)
        return
    torch.testing.assert_close(mlp_map(model, 1), model.bare.model.layers[1].mlp.down_proj.weight.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", HF)
def test_mlp_points_of_a_gated_mlp(models: dict[str, Any], kind: str) -> None:
    """mlp_pre goes into the activation, mlp_post (activation times the other branch) into W_out."""
    model = models[kind]
    found, layer = (
        model.capture(TOKENS, ["mlp_pre", "mlp_post", "mlp_out", "resid_mid"], [1]),
        model.bare.model.layers[1],
    )
    norm = layer.pre_feedforward_layernorm if kind == "gemma2" else layer.post_attention_layernorm
    x = norm(found["resid_mid", 1])
    torch.testing.assert_close(found["mlp_pre", 1], layer.mlp.gate_proj(x), rtol=0, atol=1e-10)
    post = layer.mlp.act_fn(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
    torch.testing.assert_close(found["mlp_post", 1], post, rtol=0, atol=1e-10)
    out = layer.mlp.down_proj(post)
    out = layer.post_feedforward_layernorm(out) if kind == "gemma2" else out
    torch.testing.assert_close(found["mlp_out", 1], out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_put_in_for_one_forward_that_bends_twice(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    ids, own = torch.tensor([[1, 2, 3, 4]]), {n: p.detach().clone() for n, p in model.parameters().items()}
    before = model.logits(ids)
    assert torch.equal(model.logits_at(own, ids), before)
    name = next(n for n, p in own.items() if p.ndim == 2 and "mb" not in n)
    with torch.no_grad():
        assert not torch.allclose(model.logits_at({name: 1.5 * own[name]}, ids), before)
    assert torch.equal(model.logits(ids), before), "the module stays as it is"
    leaf = own[name].requires_grad_()
    slope = torch.autograd.grad(model.logits_at({name: leaf}, ids).square().sum(), leaf, create_graph=True)[0]
    assert torch.autograd.grad(slope.square().sum(), leaf)[0].abs().max() > 0
