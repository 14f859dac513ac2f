"""The only door to transformer-lens: native models from a config, and hook views that share their weights.

The bare module is the master; a view is made for capturing only. `torch.func` never meets a view: it would
corrupt the weights without an error (stack.md 2.3).
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformer_lens.config import TransformerBridgeConfig, TransformerLensConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.sources.native import NativeModel, initialize_native_model
from transformer_lens.utilities.activation_functions import apply_softcap
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

from backend.errors import BadInput, Unfit, Unsupported

#: every field a native config may name
NATIVE_FIELDS = frozenset(
    {*inspect.signature(TransformerBridgeConfig).parameters, *inspect.signature(TransformerLensConfig).parameters}
) - {"kwargs"}
ARCHITECTURE = "TransformerLensNative"
#: the house's points -> the library's hooks
POINTS = {
    "embed": "blocks.0.hook_resid_pre",
    **{f"resid_{p}": f"blocks.{{layer}}.hook_resid_{p}" for p in ("pre", "mid", "post")},
    **{p: f"blocks.{{layer}}.attn.hook_{p}" for p in ("q", "k", "v", "attn_scores", "pattern", "z")},
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_pre": "blocks.{layer}.mlp.hook_pre",
    "mlp_post": "blocks.{layer}.mlp.hook_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
}


def native_config(config: dict[str, Any]) -> TransformerBridgeConfig:
    """Read a native config. Raises BadInput for an unknown or missing field, or a size that does not fit."""
    unknown = sorted(set(config) - NATIVE_FIELDS)
    if unknown:
        raise BadInput("The model's config", f"unknown field {unknown[0]!r}", "Correct the name or leave it out")
    try:
        return TransformerBridgeConfig.from_dict({**config, "architecture": ARCHITECTURE, "dtype": torch.float32})
    except (TypeError, ValueError) as error:
        todo = "Give d_model, d_head, n_heads, n_layers, n_ctx, d_vocab"
        raise BadInput("The model's config", str(error).split("\n")[0], todo) from None


def build_native(config: dict[str, Any], seed: int | None = None) -> NativeModel:
    """Build a NativeModel (float32, CPU) and initialise its weights from `seed`, else from config["seed"], else 0.

    The global random state is left as it was. Raises BadInput where the config cannot be built.
    """
    cfg = native_config(config)
    cfg.seed = seed if seed is not None else (cfg.seed if cfg.seed is not None else 0)
    with torch.random.fork_rng(devices=[]):
        model = _construct(cfg)
        initialize_native_model(model, cfg)
    return model


def _construct(cfg: TransformerBridgeConfig) -> NativeModel:
    try:
        return NativeModel(cfg)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise BadInput("The model's config", str(error).split("\n")[0], "Correct the config") from None


def add_output_bias(model: NativeModel) -> None:
    """Give a NativeModel the unembedding bias b_U [d_vocab_out], zero here, that it lacks of itself."""
    old = model.head
    head = nn.Linear(old.in_features, old.out_features, bias=True, dtype=old.weight.dtype, device=old.weight.device)
    head.weight = old.weight
    nn.init.zeros_(head.bias)
    model.head = head


def convert_legacy(state: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Rename and reshape a state dict with old transformer-lens keys (blocks.0.attn.W_Q) to NativeModel's keys.

    Raises BadInput for a key that has no place, or a shape that does not fit the config.
    """
    try:
        return {native_key(k): v for k, v in convert_tl_checkpoint(state, native_config(config)).items()}
    except ValueError as error:
        found = str(error).removeprefix("convert_tl_checkpoint: ").split(". ")[0].rstrip(".")
        raise BadInput("The transformer-lens checkpoint", found, "Give weights that belong to this config") from None


def native_key(key: str) -> str:
    """Return NativeModel's name of a bridge key: blocks.0.mlp.in.weight -> layers.0.mlp.fc_in.weight."""
    for bridge, native in (("embed.", "tok_embed."), ("pos_embed.", "pos."), ("blocks.", "layers."),
                           ("ln_final.", "ln_out."), ("unembed.", "head.")):  # fmt: skip
        if key.startswith(bridge):
            key = native + key[len(bridge) :]
            break
    return key.replace(".mlp.in.", ".mlp.fc_in.").replace(".mlp.out.", ".mlp.fc_out.")


def shared_copy(module: nn.Module) -> nn.Module:
    """Copy the module tree but keep the very same parameters and buffers: nothing is doubled in memory."""
    memo = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def hook_view(bare: nn.Module) -> TransformerBridge:
    """Wrap a copy of the module tree that shares the bare module's tensors; the bare module stays as it was.

    GPT-2 and GPT-NeoX join Q, K and V in one matrix; there the view keeps its own split copies of those.
    Raises Unsupported, naming the architecture, where transformer-lens has no adapter.
    """
    config = native_view_config(bare) if isinstance(bare, NativeModel) else {"hf_config": bare.config}
    name = ARCHITECTURE if isinstance(bare, NativeModel) else type(bare).__name__
    parameter = next(bare.parameters())
    try:
        return build_bridge_from_module(
            shared_copy(bare), architecture=name, model_name=name, dtype=parameter.dtype, device=parameter.device,
            **config,
        )
    except Exception as error:  # noqa: BLE001 - adapters of other architectures fail in many ways
        found = f"{name} has no hooks here ({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})"
        raise Unsupported("The model's architecture", found, "Open GPT-2, GPT-NeoX, Llama or a relative") from None


def native_view_config(bare: NativeModel) -> dict[str, Any]:
    """Return the keyword that hands a NativeModel's own config to the view."""
    config = copy.deepcopy(bare.cfg)
    config.architecture = ARCHITECTURE
    return {"tl_config": config}


def sizes(view: TransformerBridge) -> dict[str, int]:
    """Return the glossary's sizes of a view; d_mlp is 0 where the model is attention-only."""
    cfg = view.cfg
    out = {n: int(getattr(cfg, n)) for n in ("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "n_ctx")}
    out["n_key_value_heads"] = int(getattr(cfg, "n_key_value_heads", None) or out["n_heads"])
    out["d_mlp"] = _d_mlp(view)
    return out


@torch.no_grad()
def _d_mlp(view: TransformerBridge) -> int:
    """Return the MLP's width as one token shows it: the config of some architectures (OPT) says it wrong."""
    name = POINTS["mlp_post"].format(layer=0)
    if name not in view.hook_dict:
        return 0
    token = torch.zeros(1, 1, dtype=torch.long, device=next(view.parameters()).device)
    return int(run_hooked(view, token, [name])[1][name].shape[-1])


def hook_name(view: TransformerBridge, point: str, layer: int) -> str:
    """Return the library's hook name of a house point.

    Raises BadInput for no such point, Unfit for a model without it.
    """
    if point not in POINTS:
        raise BadInput(f"Point {point!r}", "no such point", f"Use one of {', '.join(POINTS)}")
    name = POINTS[point].format(layer=layer)
    if point == "resid_mid" and name not in view.hook_dict and view.cfg.attn_only:
        name = POINTS["resid_post"].format(layer=layer)  # without an MLP the two are the same stream
    if name not in view.hook_dict:
        why = "attention and MLP read the same stream" if point == "resid_mid" else "the model has no such part"
        raise Unfit(f"Point {point} of layer {layer}", why, "Choose another point")
    return name


def hook_names(view: TransformerBridge, point: str, layer: int) -> list[str]:
    """Return the hooks that a point is read from. Raises as `hook_name` does."""
    if point == "attn_scores" and isinstance(view.original_model, NativeModel):
        return [hook_name(view, "q", layer), hook_name(view, "k", layer)]  # its own hook shows the pattern instead
    return [hook_name(view, point, layer)]


def read_point(view: TransformerBridge, point: str, layer: int, found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a point's tensor from the hooks' tensors.

    Raises Unfit where the library shows no scores before the softmax.
    """
    tensors = [found[n] for n in hook_names(view, point, layer)]
    if point != "attn_scores":
        return tensors[0]
    scores = tensors[0] if len(tensors) == 1 else _native_scores(view.blocks[layer].attn.original_component, *tensors)
    if torch.allclose(scores.sum(-1), torch.ones_like(scores[..., 0]), atol=1e-2):
        raise Unfit("Point attn_scores", "the library shows only the pattern", "Choose the point pattern")
    return scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 2, float("-inf"))


def _native_scores(attention: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Repeat NativeAttention's scores [batch, head, query, key] from q and k [batch, pos, head, d_head]."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if attention.rotary is not None:
        q, k = attention.rotary.apply_rope(q, k)
    k = k.repeat_interleave(attention.kv_repeats, dim=1)
    scores = apply_softcap(q @ k.transpose(-2, -1) / attention.scale, attention.attn_scores_soft_cap)
    mask = attention.causal_mask[: q.shape[2], : q.shape[2]]
    return scores.masked_fill(mask, float("-inf")) if attention.causal else scores


def run_hooked(
    view: TransformerBridge, tokens: torch.Tensor, names: list[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Run once and return (logits, {hook name: tensor}) for the named hooks only."""
    logits, cache = view.run_with_cache(tokens, names_filter=names)
    return logits, {n: cache[n] for n in names}


def edit_hook(view: TransformerBridge, point: str, layer: int) -> str:
    """Return the hook through which a point can be changed.

    Raises as `hook_name` does, and Unfit for a point that is only read: nothing would change, or half of it.
    """
    name = hook_name(view, point, layer)
    if point == "attn_scores" and isinstance(view.original_model, NativeModel):
        raise Unfit("Editing attn_scores", "this architecture shows its scores only", "Edit q, k or pattern")
    if point == "resid_mid" and name == POINTS["resid_mid"].format(layer=layer):
        found = "what stands there is what the MLP reads, the stream goes past it"
        raise Unfit("Editing resid_mid", found, "Edit attn_out, or resid_pre of the layer")
    return name


@torch.no_grad()
def run_edited(view: TransformerBridge, tokens: torch.Tensor, edits: Any) -> torch.Tensor:
    """Run once with `edits`, pairs (hook name, function of tensor and hook), and return the logits.

    The hooks are taken off again whatever happens.
    """
    return view.run_with_hooks(tokens, fwd_hooks=edits)


def run_graph(view: TransformerBridge, tokens: torch.Tensor, edits: Any) -> torch.Tensor:
    """As `run_edited`, with autograd: what an edit returns stays in the graph."""
    with torch.enable_grad():
        return view.run_with_hooks(tokens, fwd_hooks=edits)


def logit_cap(view: TransformerBridge) -> float:
    """Return c where logits are c tanh(logits / c), as in Gemma 2; 0 where they are not capped."""
    return max(float(getattr(view.cfg, "output_logits_soft_cap", None) or 0.0), 0.0)


def unembed(view: TransformerBridge, resid: torch.Tensor) -> torch.Tensor:
    """Read a residual stream [..., d_model] through the final norm, W_U and b_U."""
    flat = resid.reshape(1, -1, resid.shape[-1])
    logits = view.unembed(view.ln_final(flat)) * _scale(view.cfg)
    cap = logit_cap(view)
    if cap:
        logits = cap * torch.tanh(logits / cap)
    return logits.reshape(*resid.shape[:-1], logits.shape[-1])


def unembedding(view: TransformerBridge) -> torch.Tensor:
    """Return W_U [d_model, d_vocab_out], times what the architecture multiplies its logits by; a cap is left out."""
    scale = _scale(view.cfg)
    columns = view.unembed.original_component.weight.detach().T
    return columns if scale == 1 else columns * scale


def direct_logits(
    view: TransformerBridge, resid: torch.Tensor, parts: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what parts of a stream add to logits, the final norm's scale held: see `LoadedModel.direct_logits`.

    The norm is n(v) = gain * C v / s(v) + bias with C v = v - mean(v) or v, s(v) = sqrt(mean((C v)^2) + eps). Held at s
    of the whole stream it is linear: (n(v) - n(0)) s(v) / s(resid), with n as the model computes it.
    """
    if logit_cap(view):
        raise Unfit("Direct logits", "the logits are capped, so they are no sum", "Choose a model without a cap")
    nothing = _normed(view, torch.zeros_like(resid[0]))
    held = _norm_scale(view, parts) / _norm_scale(view, resid[:, None])
    linear = (_normed(view, parts) - nothing) * held
    head = view.unembed.original_component
    columns = head.weight[tokens] * _scale(view.cfg)  # [n, m, d_model]
    constant = columns @ nothing + (head.bias[tokens] * _scale(view.cfg) if head.bias is not None else 0)
    return torch.einsum("nkd,nmd->nkm", linear, columns), constant


def _normed(view: TransformerBridge, resid: torch.Tensor) -> torch.Tensor:
    return view.ln_final(resid.reshape(1, -1, resid.shape[-1])).reshape(resid.shape)


def _norm_scale(view: TransformerBridge, resid: torch.Tensor) -> torch.Tensor:
    """Return what the final norm divides by [..., 1]; 1 where there is no norm."""
    norm = view.ln_final.original_component
    if isinstance(norm, nn.Identity):
        return torch.ones_like(resid[..., :1])
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or view.cfg.eps
    flat = torch.ones_like(resid.reshape(-1, resid.shape[-1])[0])
    if torch.equal(_normed(view, flat), _normed(view, 0 * flat)):  # a norm that centres sees nothing there
        resid = resid - resid.mean(-1, keepdim=True)
    return (resid.square().mean(-1, keepdim=True) + float(eps)).sqrt()


def _scale(cfg: Any) -> float:
    """Return what the architecture multiplies its logits by: Cohere scales them, Granite divides."""
    return float(getattr(cfg, "logit_scale", None) or 1.0) / float(getattr(cfg, "logits_scaling", None) or 1.0)


def analysis_tools() -> Any:
    """Return the library's module of tools (distributed alignment search, sparse probes), loaded when first asked."""
    from transformer_lens.tools import analysis

    return analysis
