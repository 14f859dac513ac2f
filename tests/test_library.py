"""What is wrong or unusual in transformer-lens 4.3, and built around here.

A test that fails says: the library has mended it, so what stands in backend/models can go (benchmarks/README.md, "What
transformer-lens' tools got wrong or lack").
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.models import bridge
from tests.models_support import NATIVE, hf_config

TOKENS = torch.arange(16).reshape(2, 8)
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 50}


@pytest.fixture(scope="module")
def view() -> Any:
    return bridge.hook_view(bridge.build_native(NATIVE | {"attn_only": False, "d_mlp": 48}))


def run_with(view: Any, zeroed: list[str]) -> torch.Tensor:
    return bridge.run_edited(view, TOKENS, [(name, lambda t, hook: t * 0) for name in zeroed])


def test_native_scores_are_the_pattern(view: Any) -> None:
    name = "blocks.0.attn.hook_attn_scores"
    scores = bridge.run_hooked(view, TOKENS, [name])[1][name]
    torch.testing.assert_close(scores.sum(-1), torch.ones_like(scores[..., 0]))


def test_what_is_written_to_resid_mid_does_not_stay_in_the_stream(view: Any) -> None:
    without_mlp = run_with(view, ["blocks.0.hook_mlp_out"])
    assert torch.equal(run_with(view, ["blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"]), without_mlp)
    assert not torch.equal(run_with(view, ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"]), without_mlp)


def test_start_at_layer_computes_the_layers_before(view: Any) -> None:
    seen, name = [], "blocks.1.hook_resid_pre"
    stream = bridge.run_hooked(view, TOKENS, [name])[1][name]
    hook = view.blocks[0].original_component.register_forward_hook(lambda *_: seen.append(1))
    view(stream, start_at_layer=1)
    hook.remove()
    assert seen == [1]


def test_the_patching_sweep_keeps_float32_only() -> None:
    from transformer_lens import patching

    view = bridge.hook_view(bridge.build_native(NATIVE).double().eval()).eval()
    _, cache = view.run_with_cache(TOKENS)
    found = patching.get_act_patch_resid_pre(view, TOKENS, cache, lambda logits: logits.sum())
    assert found.dtype == torch.float32


def test_opts_config_says_its_width_wrong() -> None:
    import transformers

    config = transformers.OPTConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=4, ffn_dim=48,
                                    vocab_size=50, max_position_embeddings=24, word_embed_proj_dim=32)  # fmt: skip
    view = bridge.hook_view(transformers.OPTForCausalLM(config).eval())
    assert view.cfg.d_mlp != 48 and bridge.sizes(view)["d_mlp"] == 48


@torch.no_grad()
def test_qwen3s_q_and_k_stand_before_its_norm() -> None:
    import transformers

    config = transformers.Qwen3Config(**SMALL, num_key_value_heads=2, intermediate_size=48, head_dim=8)
    bare = transformers.Qwen3ForCausalLM(config).eval()
    bare.model.layers[0].self_attn.q_norm.weight.fill_(3)
    at = "blocks.0.attn.hook_q"
    found = bridge.run_hooked(bridge.hook_view(bare), TOKENS, [at])[1][at].flatten(2)
    layer = bare.model.layers[0]
    x = layer.input_layernorm(bare.model.embed_tokens(TOKENS))
    torch.testing.assert_close(found, layer.self_attn.q_proj(x))


@torch.no_grad()
def test_a_heads_direct_logits_leave_out_what_it_writes_whatever_it_sees() -> None:
    """The library's weight folding moves b_V (and ln1's bias through W_V) into b_O, so no head has it."""
    import transformers
    from transformer_lens.tools.analysis import direct_logit_attribution

    torch.manual_seed(0)
    bare = transformers.GPT2LMHeadModel(hf_config("gpt2")).eval()
    attention = bare.transformer.h[1].attn
    for bias in (attention.c_attn.bias, bare.transformer.h[1].ln_1.bias):
        bias.normal_()
    constant = attention.c_attn(bare.transformer.h[1].ln_1.bias)[-32:].view(4, 8)
    z = bridge.run_hooked(bridge.hook_view(bare), TOKENS, ["blocks.1.attn.hook_z"])[1]["blocks.1.attn.hook_z"][:, -1]
    w_o, norm = attention.c_proj.weight.view(4, 8, 32), bare.transformer.ln_f
    view = bridge.hook_view(bare).eval()
    resid = bridge.run_hooked(view, TOKENS, ["blocks.1.hook_resid_post"])[1]["blocks.1.hook_resid_post"][:, -1]
    way = (bare.lm_head.weight[7] - bare.lm_head.weight[11]) * norm.weight
    scale = (resid.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    wrote = torch.einsum("nhe,hed->hnd", z.view(2, 4, 8) - constant, w_o)
    expected = ((wrote - wrote.mean(-1, keepdim=True)) / scale) @ way
    view.enable_compatibility_mode()
    told = direct_logit_attribution(view, TOKENS, torch.tensor([7, 7]), torch.tensor([11, 11]), unit="head")
    heads = torch.stack([told.attribution[told.labels.index(f"L1H{h}")] for h in range(4)])
    torch.testing.assert_close(heads, expected, rtol=1e-4, atol=1e-4)
