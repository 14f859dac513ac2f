"""What the logits say: loss, accuracy, entropy, and on repeated blocks what the second copy is worth.

The right answer is the next token, or `targets` where the observation has them: [rows] for the last position,
[rows, pos] for all, negative where there is none. Rows [A; A] (`block` = n): first_half_loss leaves out the step from
one copy to the other. Source: Olsson et al. (2022), In-context Learning and Induction Heads.
"""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

LOSS = Metric("loss", "Loss", "nats", "mean cross-entropy of the right answers", better="low")
ACCURACY = Metric("accuracy", "Accuracy", "", "share of positions whose largest logit is the right answer",
                  better="high", continuous="loss", span=1.0)  # fmt: skip
ENTROPY = Metric("prediction_entropy", "Prediction entropy", "nats", "entropy of the predicted distribution, mean over "
                 "rows and positions: ln(vocabulary) where nothing is known, 0 where all is certain")  # fmt: skip
ICL = Metric("icl_score", "In-context-learning score", "nats", "loss over the last tenth of positions minus that over "
             "the second tenth; it may rise before it falls", better="low")  # fmt: skip
FIRST = Metric("first_half_loss", "Loss on the first copy", "nats", "on rows [A; A]: random tokens, so ln(vocabulary) "
               "is the least there is", better="low")  # fmt: skip
SECOND = Metric("second_half_loss", "Loss on the second copy", "nats", "on rows [A; A]: near 0 once the model "
                "continues a repeated block", better="low")  # fmt: skip
COPY = Metric("second_copy_accuracy", "Accuracy on the second copy", "", "on rows [A; A]: share of tokens of the "
              "second copy foretold", better="high", continuous="second_half_loss", span=1.0)  # fmt: skip


@monitor(LOSS, ACCURACY)
def right_answers(seen: Observation) -> dict[str, Any] | None:
    """Loss and accuracy over all positions that have a right answer."""
    losses, hits = _scored(seen)
    return {"loss": losses.mean(), "accuracy": hits.double().mean()} if losses.numel() else None


@monitor(LOSS)
def loss(seen: Observation) -> Any:
    """The loss alone."""
    losses, _ = _scored(seen)
    return losses.mean() if losses.numel() else None


@monitor(ENTROPY)
def prediction_entropy(seen: Observation) -> Any:
    """-sum p log p of every prediction."""
    import torch

    return torch.special.entr(_wide(seen.logits).softmax(-1)).sum(-1).mean()


@monitor(ICL)
def icl_score(seen: Observation) -> Any:
    """Late minus early loss; None below 20 positions with a next token, or where the task is another."""
    if seen.targets is not None or seen.tokens.shape[1] < 21:
        return None
    by_position = position_losses(seen.logits, seen.tokens).mean(0)
    tenth = len(by_position) // 10
    return by_position[-tenth:].mean() - by_position[tenth : 2 * tenth].mean()


@monitor(FIRST, SECOND, COPY)
def repeated_block(seen: Observation) -> dict[str, Any] | None:
    """What is foretold inside the first and inside the second copy of A, on rows [A; A]."""
    n = seen.block
    if n < 2 or seen.tokens.shape[1] < 2 * n:
        return None
    by_position = position_losses(seen.logits, seen.tokens).mean(0)
    hits = seen.logits[:, n : 2 * n - 1].argmax(-1) == seen.tokens[:, n + 1 : 2 * n]
    return {"first_half_loss": by_position[: n - 1].mean(), "second_half_loss": by_position[n : 2 * n - 1].mean(),
            "second_copy_accuracy": hits.double().mean()}  # fmt: skip


def position_losses(logits: Any, tokens: Any) -> Any:
    """Return the cross-entropy in nats of every next token: [rows, pos - 1]."""
    import torch.nn.functional as F

    return F.cross_entropy(_wide(logits[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")


def _scored(seen: Observation) -> tuple[Any, Any]:
    """Return (losses, hits) of every position with a right answer."""
    import torch.nn.functional as F

    logits, right = seen.logits[:, :-1], seen.tokens[:, 1:]
    if seen.targets is not None:
        logits, right = seen.logits, seen.targets
        logits, right = (logits, right) if right.ndim == 2 else (logits[:, -1:], right[:, None])
    there = right >= 0
    logits, right = _wide(logits[there]), right[there]
    return F.cross_entropy(logits, right, reduction="none"), logits.argmax(-1) == right


def _wide(logits: Any) -> Any:
    return logits if logits.element_size() >= 4 else logits.float()
