"""Addition modulo p by a one-layer transformer: the task, its split, and the exact fast forward of the last position.

Input (a, b, '=') with tokens 0..p-1 and '=' = p; the answer (a + b) mod p is read at the last position.
Source: Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability, and its published code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Any]  # by glossary name; of W_Q W_K W_V W_O W_in W_out b_* one per layer, of which there is one


def all_pairs(p: int) -> Tensor:
    """Return every (a, b) in order: long [p * p, 2]; row a * p + b is (a, b)."""
    each = torch.arange(p)
    return torch.stack([each.repeat_interleave(p), each.repeat(p)], 1)


def all_inputs(p: int) -> Tensor:
    """Return every input (a, b, '='): long [p * p, 3]."""
    return torch.cat([all_pairs(p), torch.full((p * p, 1), p)], 1)


def answers(pairs: Tensor, p: int) -> Tensor:
    """Return (a + b) mod p for pairs [rows, 2]: long [rows]."""
    return pairs.sum(1) % p


def split(p: int, train_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Part all p^2 pairs into train and test rows (long, as numbered by `all_pairs`), in shuffled order.

    The published code's own: every pair in order, `random.seed(seed); random.shuffle`, the first fraction is train.
    """
    order = list(range(p * p))
    random.Random(seed).shuffle(order)
    cut = int(train_fraction * p * p)
    return torch.tensor(order[:cut]), torch.tensor(order[cut:])


@dataclass
class Folded:
    """What the last position needs of the weights: tables over (token, place), and the folded matrices.

    logits = z W2 + c2 + ReLU(z W1 + c1) W3, with z the heads' mixed values [rows, head * d_head].
    """

    scores: Tensor  # [2 p, head]: of a in the first place, then of b in the second; those of '=' taken off
    values: Tensor  # [2 p, head * d_head], those of '=' taken off
    W1: Tensor  # W_O W_in
    c1: Tensor
    W2: Tensor  # W_O W_U
    c2: Tensor
    W3: Tensor  # W_L = W_out W_U


def fold(weights: Tensors) -> Folded:
    """Fold the weights of one layer without norms for its last position. Gradients flow back to them.

    Why this is the same function: the query is one constant vector, since its residual is e2 = W_E[p] + W_pos[2]; so
    scores are linear in the key's residual, s = e u_h with u_h = W_K^h (e2 W_Q^h + b_Q^h) / sqrt(d_head) (b_K adds one
    constant to all three, which the softmax drops); keys and values depend on (token, place) alone, so they are tables
    of p rows; since a row of the pattern sums to 1, the value of '=' and b_V come through whole and join the constant;
    and with no norm on the way W_O folds into W_in and W_U, and W_out into W_L = W_out W_U.
    Source: reference training_and_circuits.md, section 2.2.

    Args:
        weights: by glossary name; W_Q W_K W_V [head, d_model, d_head], W_O [head, d_head, d_model], W_in, W_out and
            biases as lists of one layer; absent attention biases and b_U count as 0. Token p = d_vocab - 1 is '='.
    """
    W_E, W_pos, W_U, W_in = weights["W_E"], weights["W_pos"], weights["W_U"], weights["W_in"][0]
    W_O, p, d_head = weights["W_O"][0].flatten(0, 1), len(W_E) - 1, weights["W_O"][0].shape[1]
    W_V, e2 = weights["W_V"][0].transpose(0, 1).flatten(1), W_E[p] + W_pos[2]
    beyond = torch.cat([W_E[:p] + W_pos[0], W_E[:p] + W_pos[1]]) - e2
    query = e2 @ weights["W_Q"][0] + _bias(weights, "b_Q")  # [head, d_head]
    u = (weights["W_K"][0] @ query[:, :, None])[..., 0].T / math.sqrt(d_head)
    mid = e2 + (e2 @ W_V + _bias(weights, "b_V").flatten()) @ W_O + _bias(weights, "b_O")
    return Folded(
        beyond @ u, beyond @ W_V, W_O @ W_in, mid @ W_in + weights["b_in"][0],
        W_O @ W_U, (mid + weights["b_out"][0]) @ W_U + weights.get("b_U", 0.0), weights["W_out"][0] @ W_U,
    )  # fmt: skip


def table_rows(pairs: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Return the rows of a and of b in the tables of `fold`: long [rows] each."""
    return pairs[:, 0].contiguous(), pairs[:, 1] + p


def attend(scores: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Return the pattern from '=' to a and to b: [2, rows, head]; what they leave of 1 goes to '='."""
    # index_select: its backward adds rows, where that of table[index] sorts first
    own = [scores.index_select(0, i) for i in rows]
    return torch.stack([*own, torch.zeros_like(own[0])]).softmax(0)[:2]


def fast_forward(weights: Tensors, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the logits and the neurons of the last position for pairs (a, b), without running the other two.

    The same function of the same weights as the plain forward (see `fold`); gradients flow.
    Cost per pair: (d_model + d_mlp) d_vocab_out + d_model d_mlp multiplications.

    Args:
        weights: as for `fold`.
        pairs: long [rows, 2], tokens 0..p-1.
    Returns:
        (logits [rows, d_vocab_out], neurons [rows, d_mlp] after the ReLU).
    """
    folded, rows = fold(weights), table_rows(pairs, len(weights["W_E"]) - 1)
    pattern = attend(folded.scores, rows)[..., None]
    a, b = (folded.values.index_select(0, i).unflatten(1, (pattern.shape[2], -1)) for i in rows)
    z = (pattern[0] * a + pattern[1] * b).flatten(1)
    hidden = torch.addmm(folded.c1, z, folded.W1).relu_()
    return torch.addmm(torch.addmm(folded.c2, z, folded.W2), hidden, folded.W3), hidden


def _bias(weights: Tensors, name: str) -> Tensor:
    """Return an attention bias ([head, d_head], or [d_model] of b_O), zeros where there is none."""
    if name in weights:
        return weights[name][0]
    shape = weights["W_E"].shape[1:] if name == "b_O" else weights["W_O"][0].shape[:2]
    return weights["W_E"].new_zeros(shape)
