"""How SAELens lays out a sparse autoencoder: `cfg.json` beside `sae_weights.safetensors`.

Its tensors are W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec and, for "jumprelu", threshold [d_sae]; its
encoder takes b_dec off first. A BatchTopK autoencoder is used with its threshold, so it is a "jumprelu" there.
Source: SAELens 6 (decoderesearch/SAELens): saes/sae.py (SAEConfig, load_from_disk), topk_sae.py, jumprelu_sae.py.
"""

from __future__ import annotations

from typing import Any

from backend.models import bridge
from backend.models.saelens_files import CONFIG, WEIGHTS

__all__ = ["ARCHITECTURES", "CONFIG", "WEIGHTS", "config"]

ARCHITECTURES = {"topk": "topk", "batch_topk": "jumprelu", "l1": "standard"}


def config(
    model: Any, *, point: str, layer: int, d_in: int, d_sae: int, kind: str, k: int, dtype: str, length: int,
) -> dict[str, Any]:
    """Return cfg.json of an autoencoder of ours for a point of an opened model."""
    made: dict[str, Any] = {
        "d_in": d_in, "d_sae": d_sae, "dtype": dtype, "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "hook_z" if point == "z" else "none",
        "architecture": ARCHITECTURES[kind],
        "metadata": {"model_name": model.card.spec, "hook_name": bridge.hook_name(model.view, point, layer),
                     "hook_layer": layer, "hook_head_index": None, "context_size": length, "prepend_bos": False,
                     "trained_with": "Phasescope", "model_fingerprint": model.card.fingerprint},
    }  # fmt: skip
    return {**made, "k": k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else made
