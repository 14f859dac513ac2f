"""Sparse autoencoders: a known dictionary is found again, sparsity is what it says, scaling and matching are exact."""

import numpy as np
import pytest
import torch

from backend.maths import sae as room


def planted(n=12_000, d=24, features=32, active=3, seed=0):
    """A dictionary of unit directions, and noise-free data of about `active` of them with weights 0.5 to 1.5."""
    dice = torch.Generator().manual_seed(seed)
    dictionary = room.unit(torch.randn(features, d, generator=dice))
    on = torch.rand(n, features, generator=dice) < active / features
    return dictionary, on * (0.5 + torch.rand(n, features, generator=dice)) @ dictionary


def trained(data, kind, k=4, d_sae=48, steps=900, lr=5e-3, seed=1):
    """Train as the recipe does."""
    net = room.Sae(data.shape[1], d_sae, k, kind, seed)
    spread = float((data - data.mean(0)).square().sum(1).mean())
    with torch.no_grad():
        net.b_dec.copy_(data.mean(0))
    optimizer, dice = torch.optim.Adam(net.parameters(), lr=lr), torch.Generator().manual_seed(2)
    silent = torch.zeros(d_sae, dtype=torch.long)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (steps - step) / (0.2 * steps))
        optimizer.zero_grad()
        batch = data[torch.randint(len(data), (256,), generator=dice)]
        loss, active = room.objective(net, batch, silent >= 100, spread, 0.3)
        loss.backward()
        net.without_radial()
        optimizer.step()
        net.to_unit()
        silent = torch.where(active, 0, silent + 1)
    return net


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_a_planted_dictionary_is_found_again(kind):
    dictionary, data = planted()
    net = trained(data, kind)
    found = room.match(dictionary, net.W_dec.detach())[1].mean()
    random = room.match(dictionary, torch.randn(48, 24, generator=torch.Generator().manual_seed(5)))[1].mean()
    assert found >= 0.95 and random < 0.6
    torch.testing.assert_close(net.W_dec.norm(dim=1), torch.ones(48), atol=1e-6, rtol=0)
    seen = room.measures(net, data[:2000])
    assert seen["fvu"] < 0.2 and seen["l0"] == pytest.approx(4, abs=0.5)
    null = room.gaussian_like(data, len(data), torch.Generator().manual_seed(3))
    assert room.measures(trained(null, kind, steps=300), null[:2000])["fvu"] > 2 * seen["fvu"]


def test_topk_has_exactly_k_active_and_they_are_the_largest():
    net = room.Sae(16, 64, 5)
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    pre, features = net.pre(x), net.encode(x)
    assert ((pre > 0).sum(1) >= 5).all() and ((features > 0).sum(1) == 5).all()
    smallest_kept = torch.where(features > 0, features, torch.inf).min(1).values
    largest_left = pre.masked_fill(features > 0, -torch.inf).max(1).values
    assert (smallest_kept >= largest_left).all() and (features[features > 0] == pre[features > 0]).all()


def test_batch_topk_keeps_k_per_sample_on_average_and_its_threshold_as_many():
    net = room.Sae(16, 64, 5, "batch_topk")
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    _, active = room.objective(net, x, torch.zeros(64, dtype=torch.bool), 1.0, 0.0)
    kept = room._training_features(net, net.pre(x)) > 0
    assert int(kept.sum()) == 5 * 400 and kept.sum(1).unique().numel() > 1 and active.all()
    smallest = net.pre(x)[kept].min().detach()
    assert net.threshold.tolist() == [pytest.approx(float(smallest))] * 64
    assert int((net.encode(x) > 0).sum()) == 5 * 400 - 1  # above the threshold: all but the smallest itself


def test_the_identity_leaves_nothing_unexplained():
    """Two directions per axis, + and -, write any x: W_enc = W_dec' and all active."""
    net = room.Sae(6, 12, 12, "l1")
    with torch.no_grad():
        net.W_dec.copy_(torch.cat([torch.eye(6), -torch.eye(6)]))
        net.W_enc.copy_(net.W_dec.T)
    x = torch.randn(50, 6)
    torch.testing.assert_close(net(x), x)
    assert room.measures(net, x) == {"l0": 6.0, "fvu": pytest.approx(0, abs=1e-12)}


def test_silent_features_are_drawn_to_what_is_left():
    """With everything explained but one direction, AuxK's gradient moves the silent feature and no other's."""
    net = room.Sae(8, 4, 1)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    silent = torch.tensor([False, False, False, True])
    assert float(room._auxk(net, net.pre(x), x, torch.zeros(4, dtype=torch.bool))) == 0
    room._auxk(net, net.pre(x), x.detach(), silent).backward()
    moved = net.W_dec.grad.norm(dim=1)
    assert moved[3] > 0 and moved[:3].tolist() == [0, 0, 0]


def test_what_silent_features_miss_has_its_weight_in_the_loss():
    net, x = room.Sae(8, 4, 1), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    silent, none = torch.tensor([False, False, False, True]), torch.zeros(4, dtype=torch.bool)
    pre = net.pre(x)
    left = x - net.decode(room.largest(pre, 1))
    extra = room.objective(net, x, silent, 1.0, 0.0)[0] - room.objective(net, x, none, 1.0, 0.0)[0]
    torch.testing.assert_close(extra, room._auxk(net, pre, left, silent) / 32)
    assert float(extra.detach()) > 0


def test_the_gradient_has_no_radial_part_left():
    net = room.Sae(8, 16, 3)
    room.objective(net, torch.randn(32, 8), torch.zeros(16, dtype=torch.bool), 1.0, 0.0)[0].backward()
    net.without_radial()
    assert (net.W_dec.grad * net.W_dec).sum(1).abs().max() < 1e-6 < net.W_dec.grad.abs().max()


@pytest.mark.parametrize("kind", room.KINDS)
def test_a_scaled_autoencoder_does_the_same_to_scaled_inputs(kind):
    net = room.Sae(8, 16, 3, kind, dtype=torch.float64)
    x = torch.randn(40, 8, dtype=torch.float64)
    room.objective(net, x, torch.zeros(16, dtype=torch.bool), 1.0, 0.0)
    with torch.no_grad():
        net.b_enc += 0.1
        net.b_dec += 0.2
    large = room.from_tensors(net.scaled(4.0), kind, 3)
    torch.testing.assert_close(large(4 * x), 4 * net(x), atol=1e-12, rtol=0)
    back = room.from_tensors(large.scaled(0.25), kind, 3).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in net.state_dict().items())  # a power of 2: same bits


def test_the_surrogate_has_the_mean_and_covariance_and_no_more():
    _, data = planted(8000, 6, 12, 1)
    null = room.gaussian_like(data, 60_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(null.mean(0), data.mean(0), atol=0.01)
    np.testing.assert_allclose(np.cov(null.T.numpy()), np.cov(data.T.numpy()), atol=0.01)
    standard = (null - null.mean(0)) / null.std(0)
    assert standard.pow(4).mean(0).sub(3).abs().max() < 0.15


def test_matching_undoes_a_permutation_and_beats_the_greedy_choice():
    a = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    partner, cosine = room.match(a, 3 * a[order])
    assert torch.equal(order[partner], torch.arange(20)) and cosine.min() > 1 - 1e-9
    partner, cosine = room.match(a, a[:5])
    assert (partner >= 0).sum() == 5 and partner[:5].tolist() == [0, 1, 2, 3, 4] and cosine[5:].abs().max() == 0
    # rows 0 and 1 both like column 0 best; the best sum gives it to row 1
    first, second = torch.tensor([[1.0, 0.0], [1.0, 0.2]]), torch.tensor([[1.0, 0.1], [0.6, 0.8]])
    cosines = room.unit(first) @ room.unit(second).T
    best = max(cosines[0, 0] + cosines[1, 1], cosines[0, 1] + cosines[1, 0])
    assert float(room.match(first, second)[1].sum()) == pytest.approx(float(best), abs=1e-6)
