"""nanoGPT checkpoints as GPT2LMHeadModel: exact GELU, Linear transposed to Conv1D, absent biases as zeros.

Source: karpathy/nanoGPT, model.py; mapping checked against a plain reimplementation in tests/test_models_nanogpt.py.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from backend.errors import BadInput, Unsupported
from backend.models import weights

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
MASK = re.compile(r"\.attn\.(bias|masked_bias)$")  # buffers of old torch versions


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (model_args, state dict without the compile prefix and mask buffers) of a ckpt.pt.

    Raises Unsupported for pickled code, BadInput where it is no nanoGPT checkpoint.
    """
    data, asked = weights.read_torch(path), f"File {path.name}"
    args = data.get("model_args") if isinstance(data, dict) else None
    state = data.get("model") if isinstance(data, dict) else None
    if not isinstance(args, dict) or not isinstance(state, dict):
        raise BadInput(asked, "no nanoGPT checkpoint (it lacks model or model_args)", "Give the ckpt.pt of nanoGPT")
    return args, clean(args, state, asked)


def clean(args: dict[str, Any], state: dict[str, torch.Tensor], asked: str) -> dict[str, torch.Tensor]:
    """Return the state dict without the compile prefix, mask buffers and tied lm_head. Raises as `read` does."""
    wrong = [n for n in SIZES if not isinstance(args.get(n), int) or args[n] < 1]
    if wrong:
        raise BadInput(asked, f"model_args names no {wrong[0]}", "Give a complete checkpoint")
    plain = {k.removeprefix("_orig_mod."): v for k, v in state.items() if not MASK.search(k)}
    return _untied(plain, asked)


def _untied(state: dict[str, torch.Tensor], asked: str) -> dict[str, torch.Tensor]:
    """Drop lm_head where it repeats wte. Raises Unsupported where it does not: nanoGPT ties the two."""
    head, embedding = state.pop("lm_head.weight", None), state.get("transformer.wte.weight")
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise Unsupported(asked, "lm_head differs from wte, which nanoGPT ties", "Save a checkpoint of stock nanoGPT")
    return state


def identity(args: dict[str, Any]) -> dict[str, Any]:
    """Return what of model_args decides the numbers."""
    return {"format": "nanogpt", **{n: args[n] for n in SIZES}, "bias": bool(args.get("bias", True))}


def hf_config(args: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a GPT2LMHeadModel that computes the same. The activation is the exact GELU, not GPT-2's."""
    drop = float(args.get("dropout") or 0.0)
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": args["vocab_size"],
        "n_positions": args["block_size"], "n_embd": args["n_embd"], "n_layer": args["n_layer"],
        "n_head": args["n_head"], "resid_pdrop": drop, "embd_pdrop": drop, "attn_pdrop": drop,
        "activation_function": "gelu", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def hf_state(state: dict[str, torch.Tensor], bias: bool) -> dict[str, torch.Tensor]:
    """Return the state dict in GPT2LMHeadModel's layout, with zeros for the biases of a biasless model."""
    out = {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v for k, v in state.items()}
    if not bias:
        out |= {k.removesuffix("weight") + "bias": torch.zeros(v.shape[-1], dtype=v.dtype) for k, v in out.items()
                if k.endswith((*TRANSPOSED, "ln_1.weight", "ln_2.weight", "ln_f.weight"))}  # fmt: skip
    return out


class _Plain(pickle.Unpickler):
    """Reads dicts, strings and numbers; refuses whatever names a class or function."""

    def find_class(self, module: str, name: str) -> Any:
        raise Unsupported("File meta.pkl", f"it would run code ({module}.{name})", "Write the characters to meta.json")


def tokenizer(meta: Path | None, vocab_size: int) -> tuple[dict[str, Any], list[str]]:
    """Return ({kind: chars, symbols} or {kind: ids}, notes) from meta.pkl or meta.json.

    Raises Unsupported where meta.pkl would run code, BadInput where it is malformed.
    """
    if meta is None:
        gpt2 = " (GPT-2's byte pairs; ids from 50257 are padding)" if vocab_size in (50257, 50304) else ""
        return {"kind": "ids"}, [f"No meta.pkl or meta.json beside the checkpoint{gpt2}: type token ids"]
    symbols = _symbols(_meta(meta), meta.name)
    if len(symbols) > vocab_size:
        found = f"it has {len(symbols)} symbols where the model has {vocab_size}"
        raise BadInput(f"File {meta.name}", found, "Give the file that belongs to the checkpoint")
    if any(len(s) != 1 for s in symbols):
        return {"kind": "ids"}, [f"The symbols of {meta.name} are not single characters: type token ids"]
    padding = vocab_size - len(symbols)
    notes = [f"{padding} ids of the vocabulary have no character"] if padding else []
    return {"kind": "chars", "symbols": symbols}, notes


def _meta(path: Path) -> Any:
    malformed = (pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError)
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        with path.open("rb") as file:
            return _Plain(file).load()
    except malformed as error:
        raise BadInput(f"File {path.name}", f"malformed ({str(error)[:80]})", "Write it again or remove it") from None


def _symbols(meta: Any, name: str) -> list[str]:
    """Return the symbols by id, from `symbols` or `itos` (a list, or a dict with ids as numbers or text)."""
    found = meta.get("symbols", meta.get("itos")) if isinstance(meta, dict) else None
    if isinstance(found, dict):
        try:
            by_id = {int(k): v for k, v in found.items()}
            found = [by_id[n] for n in range(len(by_id))]
        except (ValueError, TypeError, KeyError):
            found = None
    if not isinstance(found, list) or not found or not all(isinstance(s, str) for s in found):
        raise BadInput(f"File {name}", "it names no characters (itos)", 'Write {"itos": {"0": "a", ...}}')
    return found
