"""Autoencoders of others in the SAELens layout: encoded as SAELens does, usable here, refused in a sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import analyses
from backend.contract import Corpus
from backend.errors import BadInput, NotFound, Unfit, Unsupported
from backend.maths.sae import from_tensors
from backend.models import companions, trained
from backend.runs import corpora
from tests.tiny_models import opened, quiet

D, N, K = 32, 20, 3
META = {"model_name": "somebody/tiny", "hook_name": "blocks.1.hook_resid_post", "hook_head_index": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opened("native", tmp_path_factory.mktemp("saelens"))


def folder(place, kind, meta=META, **config):
    """Write an autoencoder with directions of many lengths as SAELens 6 saves one."""
    dice = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=dice)  # noqa: E731
    made = {"W_enc": draw(D, N), "b_enc": draw(N), "W_dec": draw(N, D) * draw(N, 1).exp(), "b_dec": draw(D)}
    if kind == "jumprelu":
        made["threshold"] = draw(N).abs()
    if kind == "batchtopk":
        made["topk_threshold"] = torch.tensor(3.0, dtype=torch.float64)
    place.mkdir(parents=True, exist_ok=True)
    save_file(made, place / "sae_weights.safetensors")
    told = {"architecture": kind, "d_in": D, "d_sae": N, "dtype": "float32", "apply_b_dec_to_input": True,
            "normalize_activations": "none", "reshape_activations": "none", "metadata": meta, "k": K}  # fmt: skip
    (place / "cfg.json").write_text(json.dumps({**told, **config}))
    return str(place)


def theirs(path, x):
    """SAELens' own arithmetic, written out: (what each feature writes [sample, feature, d_in], reconstruction)."""
    cfg = json.loads(Path(path, "cfg.json").read_text())
    t = {n: v.double() for n, v in load_file(f"{path}/sae_weights.safetensors").items()}
    pre = (x - t["b_dec"] * cfg["apply_b_dec_to_input"]) @ t["W_enc"] + t["b_enc"]
    norm = t["W_dec"].norm(dim=1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(N, dtype=torch.float64)
    pre = pre * norm
    acts = pre.relu()
    if cfg["architecture"] == "topk":
        kept = pre.topk(cfg["k"], dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())
    if cfg["architecture"] in ("jumprelu", "batchtopk"):
        acts = acts * (pre > t.get("threshold", t.get("topk_threshold")))
    wrote = (acts / norm)[..., None] * t["W_dec"]
    return wrote, wrote.sum(-2) + t["b_dec"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("architecture", "rescale"), [
    ("standard", False), ("topk", False), ("topk", True), ("jumprelu", False), ("batchtopk", False),
    ("batchtopk", True),
])  # fmt: skip
def test_every_feature_writes_what_saelens_would(architecture, rescale, first, tmp_path, model):
    more = {"rescale_acts_by_decoder_norm": True} if rescale else {}
    path = folder(tmp_path / "x", architecture, apply_b_dec_to_input=first, **more)
    record, tensors = companions.read(path, -1, model.settings)
    sae = from_tensors({n: t.double() for n, t in tensors.items()}, record["companion"]["activation"], K)
    x = 2 * torch.randn(50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wrote, rebuilt = theirs(path, x)
    features = sae.encode(x).detach()
    torch.testing.assert_close(features[..., None] * sae.W_dec.detach(), wrote, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.decode(features).detach(), rebuilt, atol=1e-4, rtol=1e-4)
    assert (features > 0).any() and not (features > 0).all()
    if architecture != "topk" or rescale:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64), atol=1e-5, rtol=0)


def ask(name, model, **params):
    analysis = analyses.registry()[name]
    rows = corpora.rows_of(model.card, Corpus(source="random", rows=4, length=10))
    return analysis.compute(model, rows, analysis.params(**params), quiet)


def test_it_is_used_wherever_an_sae_of_ours_is(tmp_path, model):
    path = folder(tmp_path / "theirs", "jumprelu")
    assert len(ask("sae_features", model, sae=path)) == N and len(ask("feature_card", model, sae=path, feature=3))
    assert "chosen" in set(ask("feature_ablation", model, sae=path, draws=1)["condition"])
    from backend.analyses import _intervening

    tokens = torch.arange(5)[None]
    edits = f"add L1.resid_post 2 feature {path} 3"
    assert not torch.allclose(_intervening.run(model, tokens, edits), model.logits(tokens))
    assert _intervening.InterventionParams(edits=edits).companions() == ((path, None),)


def test_what_it_holds_is_its_key(tmp_path, model):
    path = folder(tmp_path / "theirs", "topk")
    one = trained.fingerprint(path, -1, model.settings)
    folder(tmp_path / "theirs", "topk", k=K + 1)
    assert trained.fingerprint(path, -1, model.settings) != one
    folder(tmp_path / "theirs", "topk")
    assert trained.fingerprint(path, -1, model.settings) == one
    moved = shutil.copytree(path, tmp_path / "moved")
    assert trained.fingerprint(str(moved), -1, model.settings) == one
    with pytest.raises(NotFound, match="no steps"):
        trained.locate(path, 5, model.settings)


def test_how_versions_before_6_wrote_it(tmp_path, model):
    flat = {"metadata": None, "hook_name": "blocks.0.attn.hook_z", "hook_layer": 0, "model_name": "gpt2",
            "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}  # fmt: skip
    record = trained.locate(folder(tmp_path / "old", "standard", **flat), -1, model.settings).record["companion"]
    assert (record["point"], record["layer"], record["activation"], record["k"]) == ("z", 0, "topk", 5)


@pytest.mark.parametrize(("config", "words"), [
    ({"architecture": "gated"}, "its architecture is 'gated'"),
    ({"normalize_activations": "layer_norm"}, "it normalises activations"),
    ({"metadata": {**META, "hook_name": "blocks.0.ln1.hook_normalized"}}, "no point known here"),
    ({"metadata": {**META, "hook_head_index": 2}}, "head 2 alone"),
    ({"metadata": {**META, "hook_name_out": "blocks.1.hook_mlp_out"}}, "transcoder"),
    ({"metadata": {**META, "model_from_pretrained_kwargs": {"center_writing_weights": True}}}, "centred writing"),
    ({"activation_fn_str": "tanh-relu"}, "its activation is 'tanh-relu'"),
])  # fmt: skip
def test_what_our_encoder_cannot_do_exactly_is_refused(config, words, tmp_path, model):
    with pytest.raises(Unsupported, match=words):
        ask("sae_features", model, sae=folder(tmp_path / "x", "standard", **config))


def test_what_does_not_fit_the_model_or_itself_is_refused(tmp_path, model):
    deep = folder(tmp_path / "deep", "standard", meta={**META, "hook_name": "blocks.7.hook_resid_post"})
    with pytest.raises(Unfit, match=r"it reads layer 7, the model has layers 0 to 1 .*for somebody/tiny"):
        ask("sae_features", model, sae=deep)
    wide = folder(tmp_path / "wide", "standard", meta={**META, "hook_name": "blocks.1.mlp.hook_post"})
    with pytest.raises(Unfit, match=r"32 coordinates \(d_in\), mlp_post has 64"):
        ask("sae_features", model, sae=wide)
    with pytest.raises(BadInput, match="W_enc is"):
        ask("sae_features", model, sae=folder(tmp_path / "cut", "standard", d_sae=N + 1))
    with pytest.raises(BadInput, match="threshold is missing"):
        ask("sae_features", model, sae=folder(tmp_path / "bare", "standard", architecture="jumprelu"))
    with pytest.raises(Unfit, match="it was trained for"):
        ask("sae_features", model, sae=folder(tmp_path / "ours", "topk", meta={**META, "model_fingerprint": "0" * 32}))
