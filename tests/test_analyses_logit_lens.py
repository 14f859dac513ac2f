"""Truth of the logit lens: the last layer is the model, ranks are a full sort's, divergences obey Gibbs."""

import numpy as np
import pytest
import torch

from backend.analyses import registry
from backend.contract import Prompt, View
from backend.errors import BadInput, Unfit
from tests.tiny_models import NATIVE, hugging_face, native_run, opened, quiet, settings

TOKENS = (3, 9, 4, 9, 1, 3, 20, 17, 2)
# NeoX computes its rotary angles in float32 whatever the weights' dtype
KINDS = {"gpt2": 1e-10, "neox": 1e-5, "llama": 1e-5, "native": 1e-10}


def ask(model, tokens=TOKENS, **params):
    lens = registry()["logit_lens"]
    return lens.compute(model, Prompt(tokens=tokens), lens.params(**params), quiet)


def dtype_of(kind: str) -> str:
    return "float64" if KINDS[kind] < 1e-6 else "float32"


def dense(frame, column: str, layer: int) -> np.ndarray:
    """Lay top_k columns back out as [pos, rank]."""
    rows = frame[frame["layer"] == layer]
    return rows[column].to_numpy().reshape(rows["pos"].nunique(), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_last_layer_is_the_model(kind, tmp_path):
    model = opened(kind, tmp_path, dtype_of(kind))
    frame = ask(model, top_k=50)
    last = model.card.n_layers - 1
    own = torch.log_softmax(model.logits(torch.tensor([TOKENS]))[0].double(), -1)
    got = dense(frame, "log_prob", last)
    np.testing.assert_allclose(got, own.gather(-1, torch.tensor(dense(frame, "token_id", last))), atol=KINDS[kind])
    assert (dense(frame, "kl_to_final", last) <= 1e-7).all()


def test_last_layer_is_the_bare_hugging_face_model(tmp_path):
    """Not through our own `logits` either."""
    frame = ask(opened("gpt2", tmp_path, "float32"), top_k=50)
    with torch.no_grad():
        own = torch.log_softmax(hugging_face("gpt2")(torch.tensor([TOKENS])).logits[0], -1)
    np.testing.assert_allclose(dense(frame, "log_prob", 2), own.topk(50).values, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_entropy_and_kl_of_every_layer(kind, tmp_path):
    model = opened(kind, tmp_path, dtype_of(kind))
    frame, tokens = ask(model, top_k=50), torch.tensor([TOKENS])
    kept = model.capture(tokens, ["embed", "resid_post"])
    final = torch.log_softmax(model.logits(tokens)[0].double(), -1)
    targets = torch.tensor([*TOKENS[1:], int(final[-1].argmax())])
    for layer in range(-1, model.card.n_layers):
        resid = kept[("embed", 0)] if layer < 0 else kept[("resid_post", layer)]
        log_p = torch.log_softmax(model.unembed(resid)[0].double(), -1)
        order = log_p.argsort(-1, descending=True)
        top = frame[(frame["layer"] == layer) & (frame["rank"] == 0)]
        assert np.array_equal(dense(frame, "token_id", layer), order[:, :50])
        assert np.array_equal(top["target_id"], targets)
        assert np.array_equal(top["target_rank"], (order == targets[:, None]).int().argmax(-1))
        close = {"atol": max(KINDS[kind], 1e-9), "rtol": 1e-5}
        np.testing.assert_allclose(top["entropy"], -(log_p.exp() * log_p).sum(-1), **close)
        np.testing.assert_allclose(top["kl_to_final"], (final.exp() * (final - log_p)).sum(-1), **close)
        np.testing.assert_allclose(top["target_log_prob"], log_p.gather(-1, targets[:, None])[:, 0], **close)
    assert (frame["kl_to_final"] >= 0).all()
    assert (frame[frame["layer"] == -1]["kl_to_final"] > 0.05).all()  # the layers do something


def test_a_given_target_is_followed_and_an_impossible_one_refused(tmp_path):
    model = opened("native", tmp_path)
    assert set(ask(model, target=7)["target_id"]) == {7}
    with pytest.raises(BadInput, match="0 to 49"):
        ask(model, target=50)


def test_without_a_next_token_the_target_is_the_final_top_token(tmp_path):
    from backend.contract import parse_spec
    from backend.models.open import open_model

    folder = native_run(tmp_path / "classifier", NATIVE | {"d_vocab_out": 3})
    model = open_model(parse_spec(f"run:{folder}"), settings(tmp_path))
    frame = ask(model)
    last = frame[(frame["layer"] == 1) & (frame["rank"] == 0)]
    assert (last["target_rank"] == 0).all() and (last["target_id"] == last["token_id"]).all()
    assert frame["rank"].max() == 2  # three outputs, so three ranks


def test_blocks_of_positions_change_nothing(tmp_path, monkeypatch):
    model = opened("gpt2", tmp_path)
    whole = ask(model)
    monkeypatch.setattr("backend.analyses._lenses.LOGIT_BYTES", 4 * 61 * 2)  # two positions at a time
    split = ask(model)
    exact = ["layer", "pos", "rank", "token_id", "target_id", "target_rank", "distractor_id", "distractor_rank"]
    assert whole[exact].equals(split[exact])
    np.testing.assert_allclose(whole.drop(columns=exact), split.drop(columns=exact), atol=1e-10)


@pytest.mark.parametrize("colour", ["probability", "entropy", "kl_to_final", "target_log_prob", "target_rank"])
def test_the_grid_shows_the_top_tokens_in_the_chosen_colour(colour, tmp_path):
    frame = ask(opened("native", tmp_path))
    figure = registry()["logit_lens"].figures["grid"].build(
        frame, View(vocab=lambda i: f"w{i}", chosen={"colour": colour}, card={"d_vocab_out": 50}))
    heat, top = figure.data[0], frame[frame["rank"] == 0]
    assert np.array(heat.text).ravel().tolist() == [f"w{i}" for i in top["token_id"]]
    column = {"probability": np.exp(top["log_prob"]), "target_rank": np.log10(top["target_rank"] + 1)}.get(colour)
    expected = top[colour] if column is None else column
    np.testing.assert_allclose(np.asarray(heat.z).ravel(), expected, rtol=1e-6, atol=1e-7)


def test_an_unknown_colour_is_refused(tmp_path):
    with pytest.raises(BadInput, match="target_rank"):
        registry()["logit_lens"].figures["grid"].build(ask(opened("native", tmp_path)), View(chosen={"colour": "mood"}))


# ---------------------------------------------------------------- points of the stream


def test_what_enters_a_layer_is_what_left_the_one_before(tmp_path):
    model = opened("native", tmp_path)
    pre, post = ask(model, point="resid_pre", top_k=50), ask(model, top_k=50)
    assert sorted(pre["layer"].unique()) == [0, 1, 2] and sorted(post["layer"].unique()) == [-1, 0, 1]
    values = [c for c in pre.columns if c != "layer"]
    assert pre[values].equals(post[values])  # bit for bit, embedding and last stream included
    assert (pre["layer"] == post["layer"] + 1).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "native"])
def test_resid_mid_is_the_stream_before_plus_attention(kind, tmp_path):
    model = opened(kind, tmp_path)
    frame, tokens = ask(model, point="resid_mid", top_k=50), [TOKENS]
    kept = model.capture(tokens, ["embed", "resid_pre", "attn_out", "resid_post"])
    n = model.card.n_layers
    assert sorted(frame["layer"].unique()) == [-1, *range(n), n]
    streams = {-1: kept["embed", 0], n: kept["resid_post", n - 1]}
    streams |= {layer: kept["resid_pre", layer] + kept["attn_out", layer] for layer in range(n)}
    for layer, stream in streams.items():
        own = torch.log_softmax(model.unembed(stream)[0].double(), -1)
        got = dense(frame, "log_prob", layer)
        np.testing.assert_allclose(got, own.gather(-1, torch.tensor(dense(frame, "token_id", layer))), atol=1e-5)
    whole = ask(model, top_k=50)
    after = whole[whole["layer"] == 0].reset_index(drop=True)
    mid = frame[frame["layer"] == 0].reset_index(drop=True)
    assert (after["kl_to_final"] - mid["kl_to_final"]).abs().max() > 1e-3, "the MLP does something"


@pytest.mark.parametrize("point", ["resid_pre", "resid_mid", "resid_post"])
def test_the_last_row_is_the_model_at_every_point(point, tmp_path):
    model = opened("gpt2", tmp_path)
    frame = ask(model, point=point, top_k=50)
    last = frame["layer"].max()
    own = torch.log_softmax(model.logits([TOKENS])[0], -1)
    got = dense(frame, "log_prob", last)
    np.testing.assert_allclose(got, own.gather(-1, torch.tensor(dense(frame, "token_id", last))), atol=1e-10)
    assert (dense(frame, "kl_to_final", last) <= 1e-12).all()


def test_without_an_mlp_the_middle_is_the_end(tmp_path):
    from tests.wired import config, wired_induction, wired_run

    model = wired_run(tmp_path / "wired", wired_induction(), config())
    mid, post = ask(model, point="resid_mid"), ask(model)
    values = ["token_id", "log_prob", "entropy"]
    for layer in (0, 1):
        assert mid[mid["layer"] == layer][values].to_numpy().tolist() == \
            post[post["layer"] == layer][values].to_numpy().tolist()


def test_resid_mid_of_a_parallel_architecture_is_refused(tmp_path):
    model = opened("neox", tmp_path, "float32")
    assert "resid_mid" not in model.card.capabilities
    with pytest.raises(Unfit, match="same stream"):
        ask(model, point="resid_mid")
    assert len(ask(model, point="resid_pre"))


def test_target_and_distractor_are_followed_side_by_side(tmp_path):
    """Their difference after the last layer is the model's own logit difference."""
    model = opened("native", tmp_path)
    frame, logits = ask(model, target=7, distractor=11), model.logits([TOKENS])[0].double()
    last = frame[(frame["layer"] == 1) & (frame["rank"] == 0)]
    got = last["target_log_prob"] - last["distractor_log_prob"]
    np.testing.assert_allclose(got, logits[:, 7] - logits[:, 11], atol=1e-10)
    np.testing.assert_array_equal(last["distractor_rank"], (logits > logits[:, 11:12]).sum(-1))
    swapped = ask(model, target=11, distractor=7)
    assert frame["target_log_prob"].equals(swapped["distractor_log_prob"])
    assert ask(model)[["distractor_id", "distractor_log_prob", "distractor_rank"]].isna().all().all()
    with pytest.raises(BadInput, match="Distractor token 50"):
        ask(model, distractor=50)


def test_figures_name_the_stream_and_both_tokens(tmp_path):
    lens, frame = registry()["logit_lens"], ask(opened("native", tmp_path), point="resid_mid", target=7, distractor=11)
    view = View(vocab=lambda i: f"w{i}", params={"point": "resid_mid"}, card={"d_vocab_out": 50})
    grid = lens.figures["grid"].build(frame, view)
    assert grid.data[0].y[-1].endswith("final") and "between attention and MLP" in grid.layout.yaxis.title.text
    drawn = lens.figures["target_rank"].build(frame, view)
    assert drawn.layout.title.text == "target w7, distractor w11" and len(drawn.data) == 4
    mine = frame[(frame["rank"] == 0) & (frame["pos"] == len(TOKENS) - 1)]
    np.testing.assert_allclose(drawn.data[1].y, mine["distractor_log_prob"])
