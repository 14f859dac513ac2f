"""A Hugging Face Trainer writes a run folder: `Trainer(..., callbacks=[PhasescopeCallback("runs/mine")])`.

What the Trainer logs becomes metrics, its closing summary (pace, mean loss) a part of run.json; what it saves becomes a
checkpoint that opens in the dashboard. Only rank zero writes. A folder that cannot be written any more ends the
recording, never the training.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from backend.errors import Broken, PhasescopeError
from backend.runs.layout import RUN
from backend.runs.recorder import Recorder

log = logging.getLogger(__name__)


class PhasescopeCallback(TrainerCallback):
    """Record a training of the Trainer.

    Args:
        folder: the run's folder; its last part is the run's name.
        checkpoints: save the weights whenever the Trainer saves (safetensors, beside the Trainer's own).
        params: further words for run.json.
    A training that goes on from the Trainer's own checkpoint goes on with the run too. Raises BadInput, before the
    first step, where another run of that name is there.
    """

    def __init__(self, folder: str | Path, checkpoints: bool = True, params: dict[str, Any] | None = None):
        self.folder, self.checkpoints, self.params = Path(folder), checkpoints, dict(params or {})
        self.run: Recorder | None = None
        self._epoch: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the run folder, or go on with it where the Trainer goes on."""
        if not state.is_world_process_zero:
            return
        self._epoch = None
        again = state.global_step > 0 and (self.folder / RUN).exists()
        if again:
            self.run = Recorder(self.folder, resume=True, resume_from=state.global_step)
            return
        self.run = Recorder(self.folder, recipe="", params={**_settings(args, state), **self.params},
                            extra={"written_by": "transformers.Trainer", **_tokenizer(kwargs.get("processing_class"))},
                            model=_model(kwargs.get("model")))  # fmt: skip

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log every number of `logs` at the Trainer's step; the summary at the end would be charts of one dot."""
        numbers = {k: v for k, v in (logs or {}).items() if _is_number(v)}
        if "train_runtime" in numbers:
            self._safely("describe", summary={k: float(v) for k, v in numbers.items()})
            return
        if numbers.get("epoch") == self._epoch:  # the Trainer says it again in the line of an evaluation
            numbers.pop("epoch", None)
        self._epoch = numbers.get("epoch", self._epoch)
        if numbers:
            self._safely("log", state.global_step, numbers)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the weights where the Trainer does."""
        if self.checkpoints and model is not None:
            self._safely("checkpoint", state.global_step, model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the run has finished."""
        self._safely("finish")
        self.run = None

    def _safely(self, what: str, *given: Any, **more: Any) -> None:
        if self.run is None:
            return
        try:
            getattr(self.run, what)(*given, **more)
        except (OSError, Broken) as error:
            log.warning("Phasescope no longer records %s: %s", self.folder, error)
            self.run = None
        except PhasescopeError as error:
            log.warning("Phasescope left a line out: %s", error)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _settings(args: Any, state: Any) -> dict[str, Any]:
    """Return what decides a training most; TrainingArguments as a whole holds paths and tokens."""
    names = ("learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type", "per_device_train_batch_size",
             "gradient_accumulation_steps", "num_train_epochs", "seed", "bf16", "fp16")  # fmt: skip
    found = {n: getattr(args, n) for n in names if hasattr(args, n)}
    return {k: getattr(v, "value", v) for k, v in found.items()} | {"max_steps": state.max_steps}


def _model(model: Any) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_json_string"):
        return None
    return {"kind": "hf", "config": json.loads(config.to_json_string(use_diff=False))}


def _tokenizer(given: Any) -> dict[str, Any]:
    """Return a fast tokenizer as run.json keeps it; nothing where there is none."""
    if not getattr(given, "is_fast", False):
        return {}
    return {"tokenizer": {"kind": "hf", "json": given.backend_tokenizer.to_str()}}
