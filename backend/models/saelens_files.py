"""Read a sparse autoencoder that others left in the SAELens layout: what cfg.json says, and its tensors as ours.

A folder holds cfg.json beside sae_weights.safetensors. Architectures whose encoder is well defined without what trained
them: standard (relu), topk, jumprelu, and batchtopk (a training file: it is used with its threshold, as SAELens
exports it). Version 6 keeps where it belongs under "metadata", older ones beside the sizes. No torch at import.
Source: SAELens 3 to 6 (decoderesearch/SAELens): saes/sae.py, topk_sae.py, jumprelu_sae.py, batchtopk_sae.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from backend.errors import BadInput, Unsupported
from backend.models import fingerprints, registry

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
#: theirs -> how our encoder names the same
KINDS = {"standard": "l1", "topk": "topk", "jumprelu": "batch_topk", "batchtopk": "batch_topk"}
_HOOK = re.compile(r"blocks\.(\d+)\.(?:hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)|mlp\.hook_(pre|post)"
                   r"|attn\.hook_(z))$")  # fmt: skip
_CENTRED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # what centred writing weights change


def folder_of(run: str) -> Path | None:
    """Return the folder where the name is a path to one in this layout, else None."""
    path = Path(run).expanduser()
    return path if "/" in run and (path / CONFIG).is_file() and (path / WEIGHTS).is_file() else None


def describe(folder: Path) -> dict[str, Any]:
    """Return what stands for its run.json: {"name", "params", "companion"}.

    Raises Unsupported for what our encoder cannot do exactly, BadInput where config and tensors do not fit.
    """
    asked = f"Autoencoder {folder}"
    config = registry.read_json(folder / CONFIG, asked)
    about = next((config[k] for k in ("metadata", "meta") if isinstance(config.get(k), dict)), config)
    kind, k = _architecture(config, asked)
    point, layer = _place(about, asked)
    _as_opened(config, about, point, asked)
    d_in, d_sae = _sizes(config, folder, KINDS[kind], asked)
    made = {"kind": "sae", "format": "saelens", "spec": str(about.get("model_name")), "step": None, "point": point,
            "layer": layer, "d_in": d_in, "d_sae": d_sae, "k": k, "activation": KINDS[kind], "surrogate": False,
            "architecture": kind, "b_dec_off_first": bool(config.get("apply_b_dec_to_input", True)),
            "norms_count": bool(config.get("rescale_acts_by_decoder_norm", False)),
            "fingerprint": str(about.get("model_fingerprint") or "")}  # fmt: skip
    return {"name": str(folder), "params": {"steps": 0}, "companion": made, "checkpoints": [0]}


def _architecture(config: dict[str, Any], asked: str) -> tuple[str, int]:
    kind = str(config.get("architecture", "standard"))
    act = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if kind == "standard" and act == "topk":  # how versions before 6 wrote it
        kind, config = "topk", {**config, **(config.get("activation_fn_kwargs") or {})}
    elif act not in ("relu", "topk", None):
        raise Unsupported(asked, f"its activation is {act!r}", "Use one with relu or topk")
    if kind not in KINDS:
        raise Unsupported(asked, f"its architecture is {kind!r}", f"Use one of {', '.join(KINDS)}")
    k = config.get("k", 1)
    if kind == "topk" and not (isinstance(k, int) and k >= 1):
        raise BadInput(asked, f"cfg.json names k = {k!r}", "Correct cfg.json")
    return kind, int(k) if isinstance(k, int | float) else 1


def _place(about: dict[str, Any], asked: str) -> tuple[str, int]:
    name = str(about.get("hook_name") or about.get("hook_point"))
    found = _HOOK.match(name)
    if found is None:
        raise Unsupported(asked, f"it reads {name!r}, no point known here", "Use one of the residual stream, attn_out, "
                          "mlp_out, mlp.hook_post or attn.hook_z")  # fmt: skip
    return found[2] or (f"mlp_{found[3]}" if found[3] else "z"), int(found[1])


def _as_opened(config: dict[str, Any], about: dict[str, Any], point: str, asked: str) -> None:
    """Refuse what would need other inputs than the model's own activations, or gives another output."""
    norm = config.get("normalize_activations", "none")
    if norm not in ("none", None, False):
        raise Unsupported(asked, f"it normalises activations ({norm})", "Fold the scaling in and save it again")
    if about.get("hook_head_index") is not None:
        raise Unsupported(asked, f"it reads head {about['hook_head_index']} alone", "Use one of the whole point")
    if about.get("hook_name_out") or config.get("d_out") not in (None, config.get("d_in")):
        raise Unsupported(asked, "it is a transcoder (it writes elsewhere than it reads)", "Use an autoencoder")
    if config.get("finetuning_scaling_factor"):
        raise Unsupported(asked, "it has a finetuning scaling factor", "Use one without")
    if (about.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights") and point in _CENTRED:
        found = "it was trained on a model with centred writing weights, models are opened here as they are"
        raise Unsupported(asked, found, "Train it with center_writing_weights=False")


def _sizes(config: dict[str, Any], folder: Path, activation: str, asked: str) -> tuple[int, int]:
    """Return (d_in, d_sae) after comparing config and tensors."""
    shapes = {name: entry["shape"] for name, entry in fingerprints.read_header(folder / WEIGHTS)[0].items()}
    d_in, d_sae = config.get("d_in"), config.get("d_sae")
    wanted = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    if activation == "batch_topk" and "topk_threshold" not in shapes:
        wanted["threshold"] = [d_sae]
    wrong = [n for n, shape in wanted.items() if shapes.get(n) != shape]
    if wrong or not isinstance(d_in, int) or not isinstance(d_sae, int):
        found = f"{wrong[0]} is {shapes.get(wrong[0], 'missing')}, not {wanted[wrong[0]]}" if wrong else "no sizes"
        raise BadInput(asked, found, "Correct cfg.json or copy the weights again")
    return d_in, d_sae


def as_ours(tensors: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of the same autoencoder as our encoder takes them: b_dec off first, float32 or better.

    Where the activation is homogeneous feature by feature (or the norms count already) directions get length 1 and
    the features the scale: f_i W_dec[i] stays what it is.
    """
    wide = {name: t if t.element_size() >= 4 else t.float() for name, t in tensors.items()}
    W_enc, b_enc, W_dec, b_dec = (wide[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec"))  # noqa: N806
    if not made["b_dec_off_first"]:
        b_enc = b_enc + b_dec @ W_enc
    norms, unfolded = W_dec.norm(dim=1), made["activation"] == "topk" and not made["norms_count"]
    norms = (norms + (norms == 0).to(norms)) ** (0 if unfolded else 1)
    found = {"W_enc": (W_enc * norms).contiguous(), "b_enc": b_enc * norms, "b_dec": b_dec,
             "W_dec": W_dec / norms[:, None]}  # fmt: skip
    if made["activation"] == "batch_topk":
        whole = wide["threshold"] if "threshold" in wide else wide["topk_threshold"].to(b_enc) * (b_enc * 0 + 1)
        found["threshold"] = whole if "threshold" not in wide and made["norms_count"] else whole * norms
    return found
