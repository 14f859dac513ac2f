"""What the logits say: loss, accuracy, uncertainty; and on rows [A; A] how the second copy fares."""

from __future__ import annotations

from typing import Any

from backend.contract import Metric, Observation
from backend.monitors import monitor

LOSS = Metric("loss", "Loss", "nats", "cross-entropy, mean over all predicted positions of the held-out rows",
              better="low")  # fmt: skip
ACCURACY = Metric("accuracy", "Accuracy", "", "share of positions where the likeliest answer is the right one",
                  better="high", continuous="loss")  # fmt: skip
ENTROPY = Metric("prediction_entropy", "Prediction entropy", "nats",
                 "mean entropy of the predicted distributions; ln(d_vocab) where all answers are alike")  # fmt: skip
FIRST = Metric("first_half_loss", "Loss, first half", "nats", "cross-entropy inside A of rows [A; A], which is random",
               better="low")  # fmt: skip
SECOND = Metric("second_half_loss", "Loss, second half", "nats",
                "cross-entropy inside the second copy of A, which repeats the first", better="low")  # fmt: skip
COPY = Metric("second_copy_accuracy", "Accuracy on the second half", "", "share of tokens of the second copy of A "
              "that are predicted", better="high", continuous="second_half_loss")  # fmt: skip
ICL = Metric("icl_score", "In-context-learning score", "nats", "loss over the last tenth of positions minus that over "
             "the second tenth; it rises before it falls", better="low")  # fmt: skip


def answers(seen: Observation) -> tuple[Any, Any]:
    """Return (logits [rows, n, d_vocab_out], right answers [rows, n]): the targets, else the next tokens."""
    if seen.targets is None:
        return seen.logits[:, :-1], seen.tokens[:, 1:]
    targets = seen.targets if seen.targets.dim() > 1 else seen.targets[:, None]
    return seen.logits[:, -targets.shape[1] :], targets


def position_losses(logits: Any, right: Any) -> Any:
    """Return the cross-entropy in nats at every position: [rows, n], float32 or better."""
    import torch.nn.functional as F

    logits = logits if logits.element_size() > 4 else logits.float()
    return F.cross_entropy(logits.transpose(1, 2), right, reduction="none")


@monitor(LOSS)
def loss(seen: Observation) -> Any:
    """Mean cross-entropy."""
    return position_losses(*answers(seen)).mean()


@monitor(ACCURACY)
def accuracy(seen: Observation) -> Any:
    """Share of right answers."""
    logits, right = answers(seen)
    return (logits.argmax(-1) == right).double().mean()


@monitor(ENTROPY)
def prediction_entropy(seen: Observation) -> Any:
    """Mean entropy of the predictions."""
    import torch

    log_prob = answers(seen)[0].float().log_softmax(-1)
    return torch.special.entr(log_prob.exp()).sum(-1).mean()


@monitor(FIRST, SECOND, COPY, ICL)
def repeated_block(seen: Observation) -> dict[str, Any] | None:
    """What rows [A; A] tell; the step from one copy to the other is left out of both halves."""
    n = seen.block
    if n < 2 or seen.targets is not None or seen.tokens.shape[1] < 2 * n:
        return None
    per_position = position_losses(seen.logits[:, : 2 * n - 1], seen.tokens[:, 1 : 2 * n]).mean(0)
    tenth = max(len(per_position) // 10, 1)
    hit = seen.logits[:, n : 2 * n - 1].argmax(-1) == seen.tokens[:, n + 1 : 2 * n]
    return {
        "first_half_loss": per_position[: n - 1].mean(), "second_half_loss": per_position[n:].mean(),
        "second_copy_accuracy": hit.double().mean(),
        "icl_score": per_position[-tenth:].mean() - per_position[tenth : 2 * tenth].mean(),
    }  # fmt: skip
