"""transformer-lens checkpoints: old key names, today's bridge names, or NativeModel's own; config given or inferred.

What the shapes do not say (activation, direction of attention) is assumed and written into the card's notes.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from backend.errors import BadInput, Unsupported
from backend.models import bridge

State = dict[str, torch.Tensor]

DROPPED = (".mask", ".IGNORE", "rotary_sin", "rotary_cos", "causal_mask", "cos_cached", "sin_cached")
KNOWN = re.compile(r"^(embed|pos_embed|blocks|ln_final|unembed|tok_embed|pos|layers|ln_out|head)\.")
#: settings of old configs that a NativeModel cannot follow, with the value that means "off"
CANNOT = {"use_local_attn": False, "parallel_attn_mlp": False, "scale_attn_by_inverse_layer_idx": False,
          "use_qk_norm": False, "num_experts": None, "post_embedding_ln": False, "use_attn_scale": True,
          "use_normalization_before_and_after": False}  # fmt: skip
#: fields of old configs that say how a model was made or loaded
IGNORED = ("dtype", "device", "seed", "architecture", "init_mode", "init_weights", "initializer_range", "n_params",
           "model_name", "tokenizer_name", "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in",
           "n_devices", "trust_remote_code", "attn_types", "window_size")  # fmt: skip
NORMS = re.compile(r"(ln1|ln2|ln_out|mlp\.ln)\.bias$")


def prepare(state: State, config: dict[str, Any], asked: str) -> tuple[dict[str, Any], State, list[str]]:
    """Return (native config, state dict in NativeModel's names, notes); `config` is {} where none was given.

    Raises BadInput or Unsupported where the tensors are no transformer-lens model or the config cannot be followed.
    """
    kept = {k: v for k, v in state.items() if KNOWN.match(k) and not k.endswith(DROPPED)}
    foreign = sorted(k for k in state if not KNOWN.match(k))
    if not {"embed.W_E", "embed.weight", "tok_embed.weight"} & set(kept):
        raise BadInput(asked, "no transformer-lens model (it has no embed.W_E)", "Give a transformer-lens state dict")
    chosen, notes = (given(config, asked), []) if config else infer(kept, asked)
    if foreign:
        notes.append(f"Tensors without a place were dropped: {', '.join(foreign[:4])}")
    if "embed.W_E" in kept:
        return chosen, bridge.convert_legacy(kept, chosen), notes
    return chosen, {bridge.native_key(k): v for k, v in kept.items()}, notes


def given(config: dict[str, Any], asked: str) -> dict[str, Any]:
    """Return the native config of an old one. Raises Unsupported, naming the setting, where it cannot be followed."""
    for name, off in CANNOT.items():
        if config.get(name, off) not in (off, None):
            raise Unsupported(asked, f"its config sets {name}, which is not supported", "Choose another model")
    position = config.get("positional_embedding_type", "standard")
    if position == "rotary" and not config.get("rotary_adjacent_pairs"):
        raise Unsupported(asked, "rotary positions of split halves are not supported", "Choose another model")
    if position not in ("standard", "rotary"):
        raise Unsupported(asked, f"{position} positions are not supported", "Choose another model")
    kept = {k: v for k, v in config.items() if k in bridge.NATIVE_FIELDS and k not in IGNORED}
    if "normalization" in config:
        kept.setdefault("normalization_type", config["normalization"])
    return {**kept, "act_fn": config.get("act_fn") or "relu"}


def infer(state: State, asked: str) -> tuple[dict[str, Any], list[str]]:
    """Return (config, notes) as far as the tensor shapes of an old state dict determine it.

    Raises BadInput where they do not: the config JSON is needed then.
    """
    first, todo = "blocks.0.attn.W_Q", "Put the config JSON beside it"
    if first not in state or "pos_embed.W_pos" not in state or "blocks.0.mlp.W_gate" in state:
        raise BadInput(asked, "its config cannot be inferred from the tensors' shapes", todo)
    n_heads, d_model, d_head = state[first].shape
    key = next((state[k] for k in ("blocks.0.attn._W_K", "blocks.0.attn.W_K") if k in state), state[first])
    mlp = state.get("blocks.0.mlp.W_in")
    config = {
        "n_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        "n_heads": n_heads, "n_key_value_heads": key.shape[0], "d_model": d_model, "d_head": d_head,
        "d_mlp": mlp.shape[1] if mlp is not None else None, "attn_only": mlp is None, "act_fn": "relu",
        "d_vocab": state["embed.W_E"].shape[0], "d_vocab_out": state["unembed.W_U"].shape[1],
        "n_ctx": state["pos_embed.W_pos"].shape[0], "normalization_type": _norm(state), "attention_dir": "causal",
    }  # fmt: skip
    return {k: v for k, v in config.items() if v is not None or k == "normalization_type"}, _assumed(config)


def _norm(state: State) -> str | None:
    if "blocks.0.ln1.b" in state:
        return "LN"
    return "RMS" if "blocks.0.ln1.w" in state else None


def _assumed(config: dict[str, Any]) -> list[str]:
    """Say what was inferred and what was assumed."""
    parts = ["causal attention"]
    if not config["attn_only"]:
        parts.append("ReLU in the MLP")
    if config["normalization_type"] is None:
        parts.append("no layer norm (a folded one would look the same)")
    return [f"No config JSON: sizes were read from the tensors' shapes; assumed: {', '.join(parts)}"]


def zero_biases(own: State, state: State) -> list[str]:
    """Add zeros for biases that old checkpoints leave out (norms excepted). Changes `state`; returns notes."""
    absent = [n for n in own if n.endswith(".bias") and not NORMS.search(n) and n not in state]
    state.update({n: torch.zeros_like(own[n]) for n in absent})
    return [f"{len(absent)} absent biases are zero ({absent[0]}, ...)"] if absent else []
