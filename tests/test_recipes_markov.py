"""markov_icl: the chains are what they claim, the closed forms are, and a stopped run resumes to the same bits."""

import math

import pytest
import torch

from backend.maths import markov
from backend.runs import recipes
from backend.runs.folder import RunFolder
from backend.runs.recipes import markov_icl
from backend.runs.train import train
from tests.recipe_kit import assert_resumes_alike, assert_stops_within_one_step, assert_words_for_all, go_on

SMALL = {"steps": 24, "d_model": 16, "n_ctx": 16, "batch_size": 4, "log_every": 5, "monitor_every": 10,
         "n_checkpoints": 4, "seed": 3}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def many(k=3, n=40, rows=1500, seed=0):
    transitions = markov.matrices(rows, k, generator(seed))
    return transitions, markov.chains(transitions, n, generator(seed + 1))


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("k", [2, 3, 6])
def test_matrix_rows_are_uniform_on_the_simplex(k):
    """Dirichlet(1): each entry is Beta(1, k-1), of mean 1/k and variance (k-1)/(k^2 (k+1))."""
    drawn = markov.matrices(4000, k, generator())
    assert torch.allclose(drawn.sum(-1), torch.ones(4000, k, dtype=torch.float64), atol=1e-12, rtol=0)
    variance = (k - 1) / (k * k * (k + 1))
    assert abs(drawn.mean().item() - 1 / k) < 1e-12
    assert drawn[:, 0, 0].var().item() == pytest.approx(variance, rel=0.1)


def test_chains_follow_their_own_matrix():
    """One matrix for all rows: the counted transitions agree with it within five standard errors, at every distance."""
    one = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [0.3, 0.6, 0.1]], dtype=torch.float64)
    states = markov.chains(one.expand(4000, 3, 3), 12, generator(5))
    assert states.shape == (4000, 12) and states.min() == 0 and states.max() == 2
    first = torch.bincount(states[:, 0], minlength=3) / 4000
    assert (first - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / 4000)
    for t in (0, 1, 6, 10):  # both ends of every doubling
        counts = torch.zeros(3, 3, dtype=torch.float64)
        counts.index_put_((states[:, t], states[:, t + 1]), torch.ones(4000, dtype=torch.float64), accumulate=True)
        n = counts.sum(1, keepdim=True)
        assert ((counts / n - one).abs() < 5 * (one * (1 - one) / n).sqrt()).all(), t


def test_a_cycle_is_followed_exactly():
    cycle = torch.eye(4, dtype=torch.float64).roll(1, 1)
    states = markov.chains(cycle.expand(50, 4, 4), 23, generator())
    assert torch.equal(states, (states[:, :1] + torch.arange(23)) % 4)


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("k", [2, 4])
def test_closed_forms_agree_with_counting_by_hand(k):
    _, states = many(k, 15, 4)
    got = markov_icl.guesses(states, k)
    for row, chain in enumerate(states.tolist()):
        for t, here in enumerate(chain):
            past = chain[: t + 1]
            moves = [b for a, b in zip(past, past[1:], strict=False) if a == here]
            unigram = [(past.count(j) + 1) / (len(past) + k) for j in range(k)]
            bigram = [(moves.count(j) + 1) / (len(moves) + k) for j in range(k)]
            assert got["unigram"][row, t].tolist() == pytest.approx(unigram, abs=1e-15)
            assert got["bigram"][row, t].tolist() == pytest.approx(bigram, abs=1e-15)
            assert got["uniform"][row, t].tolist() == pytest.approx([1 / k] * k, abs=1e-15)


def test_the_bigram_guess_is_the_posterior_mean():
    """Average the matrices themselves, weighted by how likely each makes the chain seen: no closed form used."""
    chain = torch.tensor([[0, 1, 1, 0, 1, 2, 0]])
    drawn = markov.matrices(400_000, 3, generator(2))
    likely = torch.stack([drawn[:, a, b] for a, b in zip(chain[0], chain[0, 1:], strict=False)]).prod(0)
    mean = (drawn[:, 0] * likely[:, None]).sum(0) / likely.sum()
    assert (markov.bigram(chain, 3)[0, -1] - mean).abs().max() < 0.01
    assert markov.bigram(chain, 3)[0, -1].tolist() == pytest.approx([1 / 5, 3 / 5, 1 / 5])


def test_bayes_is_the_best_of_the_strategies_on_average():
    _, states = many(3, 60, 3000)
    losses = {name: float(markov.loss(p.log(), states)) for name, p in markov_icl.guesses(states, 3).items()}
    assert losses["uniform"] == pytest.approx(math.log(3), abs=1e-12)
    assert losses["bigram"] < losses["unigram"] - 0.05 < losses["uniform"] - 0.1
    tilted = markov.bigram(states, 3) ** 1.3  # neither surer nor less sure is better
    flat = markov.bigram(states, 3) ** 0.75
    for other in (tilted, flat):
        assert float(markov.loss((other / other.sum(-1, keepdim=True)).log(), states)) > losses["bigram"]


def test_kl_is_zero_with_itself_and_as_defined_elsewhere():
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    q = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    assert float(markov.kl(q, q.log())) == 0
    assert float(markov.kl(p, q.log())) == pytest.approx(0.5 * math.log(2), abs=1e-15)


def test_successor_mass_of_planted_heads():
    """1 for a head that attends only to successors of the present state, 0 for one that never does."""
    states = torch.tensor([[0, 1, 0, 2, 0]])
    exact, never, even = (torch.zeros(5, 5) for _ in range(3))
    exact[2, 1] = 1.0  # after the visit of 0 at 0 came position 1
    exact[4, 1], exact[4, 3] = 0.25, 0.75
    never[torch.arange(5), 0] = 1.0
    for t in range(5):
        even[t, : t + 1] = 1 / (t + 1)
    mass = markov.successor_mass(torch.stack([exact, never, even])[None], states)
    assert mass.tolist() == pytest.approx([1.0, 0.0, (1 / 3 + 2 / 5) / 2])


def test_a_repeated_state_follows_itself():
    """In 0 0 the second 0 comes right after the visit of 0 at the first place: attending to itself is right there."""
    own = torch.eye(3)[None, None]
    assert markov.successor_mass(own, torch.tensor([[0, 0, 1]])).tolist() == [1.0]
    assert markov.successor_mass(own, torch.tensor([[0, 1, 0]])).tolist() == [0.0]


def test_the_last_guess_has_no_answer_and_counts_nowhere():
    _, states = many(3, 20, 16)
    strategies = markov_icl.guesses(states, 3)
    logits = strategies["unigram"].log()
    other = logits.clone()
    other[:, -1] = torch.tensor([9.0, -9.0, 0.0])
    assert markov_icl.distances(logits, states, strategies) == markov_icl.distances(other, states, strategies)


def test_distances_of_each_strategy_are_zero_to_itself_alone():
    _, states = many(3, 30, 64)
    strategies = markov_icl.guesses(states, 3)
    for name, guess in strategies.items():
        got = markov_icl.distances(guess.log() + 7, states, strategies)
        assert got[f"kl_{name}"] == pytest.approx(0, abs=1e-12)
        assert (abs(got["excess_loss"]) < 1e-12) == (name == "bigram")
        assert all(got[f"kl_{other}"] > 0.01 for other in strategies if other != name)
        assert got["excess_loss"] == pytest.approx(got["loss"] - got["bayes_loss"], abs=1e-15)


# ---------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markov") / "straight"
    train("markov_icl", SMALL, folder, False, go_on)
    return folder


def test_resumes_to_the_same_bits_from_between_two_checkpoints(tmp_path, straight):
    assert_resumes_alike("markov_icl", SMALL, straight, tmp_path / "parted", at=13)


def test_stops_within_one_step(tmp_path):
    assert_stops_within_one_step("markov_icl", SMALL, tmp_path / "stopped")


def test_says_what_it_logs_and_how_it_was_made(straight):
    assert_words_for_all("markov_icl", straight)
    info = RunFolder(straight).info()
    assert info["tokenizer"] == {"kind": "chars", "symbols": ["0", "1", "2"]} and info["model"]["kind"] == "native"


def test_its_checkpoints_open_as_models(straight):
    from backend import settings
    from backend.contract import parse_spec
    from backend.models.load import open_model

    model = open_model(parse_spec(f"run:{straight}", 24), settings.load({"PHASESCOPE_DEVICE": "cpu"}))
    assert model.card.d_vocab == 3 and model.logits([[0, 1, 2, 1]]).shape == (1, 4, 3)
    assert model.card.tokenizer["symbols"] == ["0", "1", "2"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions_train(tmp_path, dtype):
    train("markov_icl", {**SMALL, "steps": 4, "dtype": dtype}, tmp_path / "r", False, go_on)
    rows = RunFolder(tmp_path / "r").read().rows
    assert rows[rows.metric == "loss"].value.between(0.9, 1.4).all()


def test_presets_and_estimate():
    declared = recipes.get("markov_icl")
    for preset in declared.presets:
        assert all(0 < declared.seconds(declared.params(**given)) < 300 for given in preset.runs)
    assert {len(p.runs) for p in declared.presets} == {1, 5}
