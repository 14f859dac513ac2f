"""Hugging Face modules: from a folder, or from a config and a state dict. Eager attention, no remote code."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.errors import BadInput, PhasescopeError, Unsupported
from backend.models import weights


def load_folder(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """Open config.json and safetensors of a folder. Returns (module, notes).

    Raises Unsupported for an architecture without a causal language model, BadInput for weights that do not fit.
    """
    from transformers import AutoModelForCausalLM

    asked = f"Folder {folder.name!r}"
    _known(config, asked)
    _quiet()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever the library meets, the person gets one sentence
        raise _sentence(asked, error) from None
    return loaded[0], _check(loaded[1], asked)


def from_config(config: dict[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype, asked: str) -> nn.Module:
    """Build a module from a config and give it a state dict that must fit."""
    from transformers import AutoConfig, AutoModelForCausalLM

    _known(config, asked)
    rest = {k: v for k, v in config.items() if k not in ("model_type", "dtype", "torch_dtype")}
    try:
        made = AutoConfig.for_model(config["model_type"], **rest)
        model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=dtype)
    except Exception as error:  # noqa: BLE001
        raise _sentence(asked, error) from None
    weights.fit(model, state, asked)
    return model


def _quiet() -> None:
    """Keep the library's bars and reports off stderr: what they say becomes a note, or the one sentence."""
    from transformers.utils import logging as library

    library.disable_progress_bar()
    library.set_verbosity_error()


def _known(config: dict[str, Any], asked: str) -> None:
    """Raise Unsupported, naming the architecture, unless transformers has a causal language model for it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type", "")
    name = (config.get("architectures") or [kind or "no model_type"])[0]
    if config.get("auto_map") and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Unsupported(asked, f"{name} needs code from the model's folder", "Open a model of a known architecture")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found = f"{name} is not a causal language model known here"
        raise Unsupported(asked, found, "Open GPT-2, GPT-NeoX, Llama or a relative")


def _sentence(asked: str, error: Exception) -> PhasescopeError:
    if isinstance(error, PhasescopeError):
        return error
    words = (" ".join(str(error).split()) or type(error).__name__)[:160]
    config_errors = (ValueError, TypeError, KeyError, AttributeError, ImportError, ZeroDivisionError)
    if isinstance(error, config_errors) or "validation error" in words:
        return BadInput(asked, f"its config cannot be built ({words})", "Correct config.json")
    return BadInput(asked, f"its weights cannot be read ({words})", "Copy or download the files again")


def _check(info: dict[str, Any], asked: str) -> list[str]:
    """Refuse missing or misfitting weights; return a note on unused ones."""
    for name, found, wanted in sorted(info.get("mismatched_keys", [])):
        raise weights.misfit(asked, name, found, wanted)
    missing = sorted(info.get("missing_keys", []))
    if missing:
        found = f"weight {missing[0]} is missing ({len(missing)} in all)"
        raise BadInput(asked, found, "Copy or download the weights again")
    unused = sorted(info.get("unexpected_keys", []))
    return [f"{len(unused)} tensors of the file are not used ({unused[0]}, ...)"] if unused else []


def tokenizer(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return ({kind: hf, json: tokenizer.json as text} or {kind: ids}, notes). A missing tokenizer is no error."""
    file = folder / "tokenizer.json"
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        try:
            json.loads(text)
        except ValueError:
            return {"kind": "ids"}, ["tokenizer.json is malformed: type token ids"]
        return {"kind": "hf", "json": text}, []
    slow = [n for n in ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model") if (folder / n).is_file()]
    return _converted(folder) if slow else ({"kind": "ids"}, ["No tokenizer beside the weights: type token ids"])


def _converted(folder: Path) -> tuple[dict[str, Any], list[str]]:
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True, trust_remote_code=False)
        return {"kind": "hf", "json": made.backend_tokenizer.to_str()}, ["The tokenizer was converted to a fast one"]
    except Exception as error:  # noqa: BLE001 - a broken tokenizer must not keep the weights closed
        logging.getLogger(__name__).info("tokenizer of %s: %s", folder, error)
        return {"kind": "ids"}, [f"The tokenizer in {os.fspath(folder.name)} cannot be read: type token ids"]
