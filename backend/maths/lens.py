"""Read a residual stream at any depth as a distribution over the vocabulary (the logit lens).

Source: nostalgebraist (2020), interpreting GPT: the logit lens; Belrose et al. (2023), Eliciting Latent
Predictions from Transformers with the Tuned Lens, section 2 (KL to the final layer).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Readout(NamedTuple):
    """What a layer's distribution says at n positions; log-probabilities, entropy and KL in nats."""

    top_ids: Tensor  # [n, k] largest first
    top_log_probs: Tensor  # [n, k]
    entropy: Tensor  # [n]
    kl_to_final: Tensor  # [n] KL(final || layer)
    target_log_prob: Tensor  # [n] or [n, m], as the targets
    target_rank: Tensor  # the same shape: number of tokens with a strictly larger logit


class Final(NamedTuple):
    """The model's own prediction, which every layer is compared with: probs [n, d_vocab_out], entropy [n]."""

    probs: Tensor
    entropy: Tensor


def final_of(logits: Tensor) -> Final:
    """Return the distribution of the last layer's logits [n, d_vocab_out]."""
    log_probs = torch.log_softmax(logits, -1)
    probs = log_probs.exp()
    return Final(probs, -torch.linalg.vecdot(probs, log_probs))


PIECE_BYTES = 2 * 2**20  # logits read at once: temporaries stay in the CPU's cache, and cost no fresh memory pages


def readout(logits: Tensor, final: Final, targets: Tensor, top_k: int) -> Readout:
    """Return the top k tokens, entropy, KL(final || layer) and the targets' place, in one log-softmax.

    KL(final || layer) = -H(final) - sum p_final ln p_layer: with p_final and H(final) kept, each layer costs one
    pass instead of two, and the last layer's own KL is exactly 0. Rounding below 0 is cut to 0.
    Args: logits [n, d_vocab_out], targets [n] token ids, or [n, m] of m tokens followed at each position.
    """
    step = len(logits)
    if logits.device.type == "cpu":
        step = max(1, PIECE_BYTES // (logits.element_size() * logits.shape[-1]))
    pieces = [_readout(logits[s], Final(final.probs[s], final.entropy[s]), targets[s], top_k)
              for s in (slice(i, i + step) for i in range(0, len(logits), step))]
    return Readout(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _readout(logits: Tensor, final: Final, targets: Tensor, top_k: int) -> Readout:
    top_ids = logits.topk(top_k, dim=-1).indices
    followed = targets.reshape(len(targets), -1)
    target_logits = logits.gather(-1, followed)
    target_rank = torch.stack([(logits > one[:, None]).sum(-1) for one in target_logits.unbind(-1)], -1)
    log_probs = torch.log_softmax(logits, -1)
    crossed = -torch.linalg.vecdot(final.probs, log_probs)
    top_log_probs, target_log_prob = log_probs.gather(-1, top_ids), log_probs.gather(-1, followed)
    # exp_ would destroy log_probs, which entropy still needs: one scratch tensor per layer is the price
    entropy = -torch.linalg.vecdot(log_probs.exp(), log_probs)
    kl = (crossed - final.entropy).clamp(min=0)
    return Readout(top_ids, top_log_probs, entropy, kl, target_log_prob.reshape(targets.shape),
                   target_rank.reshape(targets.shape))


def translate(resid: Tensor, A: Tensor, b: Tensor) -> Tensor:  # noqa: N803 - the lens' own names
    """Return h + A h + b of streams h [..., d_model]: a tuned lens' translator; zero A and b change nothing.

    Args: A [d_model, d_model], b [d_model].
    Source: Belrose et al. (2023), Eliciting Latent Predictions from Transformers with the Tuned Lens, section 3.
    """
    return resid + resid @ A.T + b
