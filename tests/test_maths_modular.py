"""The fast forward is the model; Fourier measures have their closed forms; published numbers come out again."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from backend.maths import fourier, fused_loss
from backend.maths import modular_addition as task
from backend.models.observe import live_weights
from backend.runs.recipes import modular_addition as recipe
from tests.tiny_models import settings

P = 13
SUMS = task.answers(task.all_pairs(P), P)


def model(dtype=torch.float64, biased=False, **params):
    """A random model of the recipe; `biased` gives every bias a value, the unembedding's included."""
    from backend.models.bridge import add_output_bias

    bare = recipe.build(recipe.ModularAdditionParams(p=P, d_model=32, d_mlp=48, **params))
    if biased:
        add_output_bias(bare)
        for weights in bare.parameters():
            weights.data += 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(weights.numel()))
    return bare.to(dtype)


def plain(bare):
    return bare(task.all_inputs(P))[:, -1]


def trained():
    """The weights of the shipped run before and after the transition."""
    from safetensors.torch import load_file

    from backend.runs.folder import RunFolder
    from backend.settings import SHIPPED_RUNS

    run = RunFolder(SHIPPED_RUNS / "grokking-demo")
    params = recipe.ModularAdditionParams(**run.info()["params"])
    for step in (200, 800):
        bare = recipe.build(params)
        bare.load_state_dict(load_file(run.checkpoint_path(step)))
        yield params.p, bare


# ---------------------------------------------------------------- the forward


@pytest.mark.parametrize("biased", [False, True])
def test_fast_forward_is_the_plain_forward(biased):
    bare = model(biased=biased)
    fast = task.fast_forward(live_weights(bare), task.all_pairs(P))[0]
    assert (plain(bare) - fast).abs().max() <= 1e-12


@pytest.mark.parametrize("p", [59, 113])
def test_fast_forward_is_the_plain_forward_in_float32(p):
    """On the first weights of both presets: max |delta logit| <= 1e-5 (measured 8e-7)."""
    bare, some = recipe.build(recipe.ModularAdditionParams(p=p)), torch.arange(0, p * p, 7)
    with torch.no_grad():
        fast = task.fast_forward(live_weights(bare), task.all_pairs(p)[some])[0]
        assert (bare(task.all_inputs(p)[some])[:, -1] - fast).abs().max() <= 1e-5


@torch.no_grad()
def test_fast_forward_is_the_plain_forward_on_trained_weights():
    """Trained logits reach 42, where float32 is itself 3e-5 off float64: the two agree to 2e-6 of the largest."""
    for p, bare in trained():
        single = bare(task.all_inputs(p))[:, -1]
        fast = task.fast_forward(live_weights(bare), task.all_pairs(p))[0]
        true = bare.double()(task.all_inputs(p))[:, -1]
        assert (single - fast).abs().max() <= 2e-6 * true.abs().max()
        assert (fast - true).abs().max() <= 2 * (single - true).abs().max()
        assert (task.fast_forward(live_weights(bare), task.all_pairs(p))[0] - true).abs().max() <= 1e-12


def test_neurons_are_those_of_the_last_position():
    bare, found = model(biased=True), []
    hook = bare.layers[0].mlp.fc_in.register_forward_hook(lambda _m, _i, out: found.append(out[:, -1].relu()))
    plain(bare)
    hook.remove()
    assert torch.allclose(task.fast_forward(live_weights(bare), task.all_pairs(P))[1], found[0], atol=1e-12)


@pytest.mark.parametrize("biased", [False, True])
def test_the_fused_loss_has_the_gradients_of_autograd(biased):
    bare, rows = model(biased=biased), task.split(P, 0.4, 3)[0]
    pairs = task.all_pairs(P)[rows]
    free = [w for w in bare.parameters() if w.requires_grad]
    want = F.cross_entropy(bare(task.all_inputs(P)[rows])[:, -1], SUMS[rows])
    space = fused_loss.Workspace(len(rows), 32, 48, P + 1, torch.float64)
    for _ in range(2):  # the second call finds the memory of the first
        folded = task.fold(live_weights(bare))
        loss = fused_loss.fused_loss(folded, task.table_rows(pairs, P), SUMS[rows], space)
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    for ours, autograd in zip(torch.autograd.grad(loss, free), torch.autograd.grad(want, free), strict=True):
        assert torch.allclose(ours, autograd, atol=1e-13, rtol=1e-10)


def test_bfloat16_follows_float32_and_leaves_float32_gradients():
    bare, pairs = model(torch.float32), task.all_pairs(P)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        bare.zero_grad()
        space = fused_loss.Workspace(P * P, 32, 48, P + 1, dtype)
        loss = fused_loss.fused_loss(task.fold(live_weights(bare)), task.table_rows(pairs, P), SUMS, space)
        loss.backward()
        found[dtype] = loss.item(), torch.cat([w.grad.flatten() for w in bare.parameters() if w.requires_grad])
    assert found[torch.bfloat16][1].dtype == torch.float32
    assert found[torch.bfloat16][0] == pytest.approx(found[torch.float32][0], rel=1e-2)
    assert F.cosine_similarity(found[torch.bfloat16][1], found[torch.float32][1], 0) > 0.999


def test_a_loss_near_zero_is_not_rounded_away():
    """float32 log-softmax gives multiples of 1.2e-7; the fused loss is float64."""
    folded = task.fold(live_weights(model(torch.float32)))
    folded.W1, folded.W2, folded.W3 = (torch.zeros_like(w) for w in (folded.W1, folded.W2, folded.W3))
    folded.c2 = F.one_hot(torch.tensor(4), P + 1).float() * 30
    pairs = task.all_pairs(P)[SUMS == 4]
    space = fused_loss.Workspace(len(pairs), 32, 48, P + 1, torch.float32)
    loss = fused_loss.fused_loss(folded, task.table_rows(pairs, P), SUMS[SUMS == 4], space)
    assert loss.item() == pytest.approx(P * 9.357622968840175e-14, rel=1e-2)


@pytest.mark.parametrize(("above", "right"), [(0.05, False), (-0.05, True)])
def test_a_hit_is_the_largest_logit_and_nothing_near_it(above, right):
    folded = task.fold(live_weights(model()))
    folded.W1, folded.W2, folded.W3 = (torch.zeros_like(w) for w in (folded.W1, folded.W2, folded.W3))
    folded.c2 = torch.zeros(P + 1, dtype=torch.float64)
    folded.c2[4], folded.c2[7] = 3.0, 3.0 + above
    pairs = task.all_pairs(P)[SUMS == 4]
    space = fused_loss.Workspace(len(pairs), 32, 48, P + 1, torch.float64)
    fused_loss.fused_loss(folded, task.table_rows(pairs, P), SUMS[SUMS == 4], space)
    assert space.hits.tolist() == [right] * P


def test_the_split_is_the_published_one():
    import random

    pairs = [(i, j) for i in range(P) for j in range(P)]
    random.seed(5)
    random.shuffle(pairs)
    train, test = task.split(P, 0.3, 5)
    assert [tuple(x) for x in task.all_pairs(P)[train].tolist()] == pairs[: int(0.3 * P * P)]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(P * P))


# ---------------------------------------------------------------- Fourier


def cosine_logits(w, p=P):
    """C_w[a, b, c] = cos(2 pi w (a + b - c) / p): [p * p, p], written out."""
    a, b, c = torch.meshgrid(*[torch.arange(p, dtype=torch.float64)] * 3, indexing="ij")
    return torch.cos(2 * torch.pi * w * (a + b - c) / p).flatten(0, 1)


def test_the_basis_is_orthonormal():
    for n in (3, 13, 59):
        rows = fourier.basis(n)
        assert torch.allclose(rows @ rows.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
    with pytest.raises(ValueError, match="odd"):
        fourier.basis(8)


def test_a_pure_cosine_embedding_has_exactly_its_frequency():
    wave = torch.cos(2 * torch.pi * 4 * torch.arange(P, dtype=torch.float64) / P + 0.7)
    share = fourier.power(torch.outer(wave, torch.randn(8, dtype=torch.float64)))
    assert share[4] == pytest.approx(1, abs=1e-12) and share.sum() == pytest.approx(1, abs=1e-12)


def test_gini_of_known_vectors():
    assert float(fourier.gini(torch.full((7,), 3.0))) == pytest.approx(0, abs=1e-7)
    assert float(fourier.gini(torch.tensor([0.0, 0, 5, 0]))) == pytest.approx(3 / 4)
    assert float(fourier.gini(torch.tensor([1.0, 3.0]))) == pytest.approx(1 / 4)  # |1 - 3| / (2 * 2 * 2)


@pytest.mark.parametrize("w", [1, 4, 6])
def test_logits_of_one_frequency_are_explained_by_it_alone(w):
    logits = 3 * cosine_logits(w) + torch.randn(P * P, 1, dtype=torch.float64)  # what no softmax sees changes nothing
    similar = fourier.cosine_similarities(fourier.class_means(logits))
    assert similar.square()[w - 1] == pytest.approx(1, abs=1e-12)
    assert similar.square().sum() == pytest.approx(1, abs=1e-12) and fourier.key_frequencies(similar) == [w]
    assert fourier.key_frequencies(-similar) == []


def brute_force(logits, key):
    """P L over p^2 inputs with the unit vectors u_c and u_s of every key frequency, as the paper writes it."""
    s = task.all_pairs(P).sum(1).double()
    inside = torch.zeros_like(logits)
    for w in key:
        for wave in (torch.cos(2 * torch.pi * w * s / P), torch.sin(2 * torch.pi * w * s / P)):
            u = wave / wave.norm()
            inside += torch.outer(u, u @ logits)
    return inside


@pytest.mark.parametrize("key", [[], [2], [1, 4, 5]])
def test_restricted_and_excluded_loss_are_the_projection_over_all_inputs(key):
    logits = torch.randn(P * P, P, dtype=torch.float64) + 2 * cosine_logits(4)
    means, inside = fourier.class_means(logits), brute_force(logits, key)
    some = torch.rand(P * P) < 0.6
    restricted = inside - inside.mean(0) + logits.mean(0)
    ours = fourier.loss_by_sum(fourier.restricted_logits(means, key), SUMS[some].bincount(minlength=P))
    assert ours.item() == pytest.approx(F.cross_entropy(restricted[some], SUMS[some]).item(), rel=1e-12)
    ours = fourier.excluded_loss(logits[some], SUMS[some], fourier.projected(means, key))
    assert ours.item() == pytest.approx(F.cross_entropy((logits - inside)[some], SUMS[some]).item(), rel=1e-12)


def test_cosine_similarities_are_those_over_all_inputs():
    logits = torch.randn(P * P, P, dtype=torch.float64) + cosine_logits(2)
    centred = logits - logits.mean(1, keepdim=True)
    found = fourier.cosine_similarities(fourier.class_means(logits))
    for w in range(1, 7):
        want = F.cosine_similarity(cosine_logits(w).flatten(), centred.flatten(), 0)
        assert found[w - 1].item() == pytest.approx(want.item(), rel=1e-10)
    traces = fourier.trace_logits(fourier.class_means(logits), [2, 5])[SUMS]
    want = sum((cosine_logits(w) * logits).sum() / cosine_logits(w).square().sum() * cosine_logits(w) for w in (2, 5))
    assert torch.allclose(traces, want, atol=1e-12)


def test_neurons_belong_to_the_frequency_that_was_planted():
    a, b = (task.all_pairs(P)[:, i].double() * 2 * torch.pi / P for i in (0, 1))
    noise = torch.randn(P * P, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    neurons = torch.stack([
        torch.cos(3 * a + 0.2), torch.sin(5 * b) + 7, torch.cos(2 * a) * torch.sin(2 * b) + torch.cos(2 * b),
        torch.cos(2 * a) * torch.cos(3 * b), noise, torch.full_like(a, 4.0),
    ], 1)  # fmt: skip
    held = fourier.neuron_frequencies(neurons)
    for neuron, w in ((0, 3), (1, 5), (2, 2)):
        assert held[w - 1, neuron] == pytest.approx(1, abs=1e-9) and held[:, neuron].sum() == pytest.approx(1, abs=1e-9)
    assert held[:, 3].max() < 1e-9, "a product of two frequencies is in neither's block"
    assert held[:, 4].max() < 0.5 and (held[:, 5] == 0).all()


# ---------------------------------------------------------------- a model trained and measured by others


def test_the_published_numbers_of_c113_come_out(tmp_path):
    """Reference section 13.2. Published are 699 metrics of Chughtai et al.'s C113_T, seed 1."""
    from backend.contract import parse_spec
    from backend.models.open import open_model

    there = Path(__file__).resolve().parents[2] / "shared" / "data" / "c113_t_seed1"
    if not (there / "model.pt").exists():
        pytest.skip("shared/data/c113_t_seed1 is not beside this checkout")
    published, p = json.loads((there / "summary_metrics.json").read_text()), 113
    opened = open_model(parse_spec(f"tl:{there / 'model.pt'}"), settings(tmp_path))
    right = task.answers(task.all_pairs(p), p)
    with torch.no_grad():
        logits = task.fast_forward(live_weights(opened.bare), task.all_pairs(p))[0]
        some = torch.randperm(p * p)[:300]
        assert (opened.logits(task.all_inputs(p)[some])[:, -1] - logits[some]).abs().max() < 1e-11
    means = fourier.class_means(logits)
    similar = fourier.cosine_similarities(means)
    key = fourier.key_frequencies(similar)
    assert key == [int(line.split("_")[1]) for line in (there / "key_reps.txt").read_text().split()] == [16, 30, 56]
    assert [round(similar[w - 1].item(), 4) for w in key] == [0.7780, 0.5177, 0.3087]
    assert similar.square().sum().item() == pytest.approx(published["percent_logits_explained"], rel=1e-5)
    assert F.cross_entropy(logits, right).item() == pytest.approx(published["all_loss"], rel=1e-3)
    # theirs projects on C_w itself; on cos and sin of w (a + b), Nanda et al.'s way, it is 5.57e-8
    traces = fourier.loss_by_sum(fourier.trace_logits(means, key), torch.full((p,), p))
    assert traces.item() == pytest.approx(published["total_logit_restricted_loss"], rel=1e-4)
    share = fourier.power(opened.weights()["W_E"][:p])[key].sum()
    assert share.item() == pytest.approx(published["percent_x_embed_explained"], rel=1e-5)
