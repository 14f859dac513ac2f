"""Markov chains drawn at random, and what a reader of one sequence can best predict of it.

Each row has a transition matrix P of its own, its rows Dirichlet(1, ..., 1), and a first state that is uniform, so
that nothing but the transitions seen says anything of P. Then the posterior mean of P after n transitions out of
state i, n_ij of them to j, is (n_ij + 1) / (n_i + k): the best prediction there is in expected log loss.
Strategies return probabilities [row, pos, state]; entry t predicts the state at t + 1 from the states 0..t.

Source: Edelman et al. (2024), The Evolution of Statistical Induction Heads (arXiv 2402.11004), sections 2 and 3.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def matrices(rows: int, k: int, generator: Generator) -> Tensor:
    """Draw transition matrices [row, from, to], each row of each Dirichlet(1, ..., 1), in float64."""
    drawn = torch.empty(rows, k, k, dtype=torch.float64).exponential_(generator=generator)
    return drawn / drawn.sum(-1, keepdim=True)


def chains(transitions: Tensor, n: int, generator: Generator) -> Tensor:
    """Draw one sequence [row, n] from each matrix [row, from, to], the first state uniform.

    One uniform number per position says where every state would go next; these maps are chained by doubling, so
    the time loop takes log2(n) steps. Only one state's answer is used per position, so sharing the number is exact.
    """
    rows, k, _ = transitions.shape
    edges = transitions.cumsum(-1)[..., :-1].float()
    draws = torch.rand(rows, n - 1, 1, generator=generator)
    following = torch.zeros(rows, n - 1, k, dtype=torch.int64)
    for edge in range(k - 1):
        following += draws >= edges[:, None, :, edge]
    distance = 1
    while distance < n - 1:  # following[t] becomes the map from the first state to state t + 1
        chained = following[:, distance:].gather(2, following[:, :-distance])
        following = torch.cat([following[:, :distance], chained], 1)
        distance *= 2
    first = torch.randint(k, (rows, 1), generator=generator)
    later = following.gather(2, first[:, None].expand(-1, n - 1, 1)).squeeze(2)
    return torch.cat([first, later], 1)


def uniform(states: Tensor, k: int) -> Tensor:
    """Predict every state alike: 1/k."""
    return torch.full((*states.shape, k), 1 / k, dtype=torch.float64)


def unigram(states: Tensor, k: int) -> Tensor:
    """Predict each state as often as it was seen so far in this row: (n_j + 1) / (n + k)."""
    seen = torch.nn.functional.one_hot(states, k).double().cumsum(1)
    return (seen + 1) / (seen.sum(-1, keepdim=True) + k)


def bigram(states: Tensor, k: int) -> Tensor:
    """Predict by the transitions seen so far out of the present state: (n_ij + 1) / (n_i + k), the Bayes answer."""
    one_hot = torch.nn.functional.one_hot(states, k).double()
    step = one_hot[:, :-1, :, None] * one_hot[:, 1:, None, :]
    seen = torch.cat([torch.zeros_like(step[:, :1]), step.cumsum(1)], 1)
    out_of = seen.gather(2, states[:, :, None, None].expand(-1, -1, 1, k)).squeeze(2)
    return (out_of + 1) / (out_of.sum(-1, keepdim=True) + k)


def kl(p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats over the last axis, from probabilities p and log-probabilities of q."""
    return (torch.special.xlogy(p, p) - p * log_q).sum(-1)


def loss(log_q: Tensor, states: Tensor) -> Tensor:
    """Return the mean log loss in nats of predictions [row, pos, state] of every next state."""
    return -log_q[:, :-1].gather(2, states[:, 1:, None]).mean()


def successor_mass(pattern: Tensor, states: Tensor) -> Tensor:
    """Return each head's attention to positions that follow an earlier visit of the present state: [head].

    Mean over rows and over the positions whose state was visited before; pattern is [row, head, query, key].
    """
    n = states.shape[1]
    follows = states[:, :, None] == torch.nn.functional.pad(states[:, :-1], (1, 0), value=-1)[:, None, :]
    follows &= torch.ones(n, n, dtype=torch.bool, device=states.device).tril()
    some = follows.any(-1)
    mass = (pattern * follows[:, None]).sum(-1)
    return (mass * some[:, None]).sum((0, 2)) / some.sum()
