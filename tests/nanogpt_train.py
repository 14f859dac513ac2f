"""A small training script in the manner of nanoGPT's train.py (same names, written anew), with Phasescope's patch.

The two patched lines are marked; the third keeps checkpoints. Run by tests/test_runs_elsewhere.py in its own process:
    python nanogpt_train.py OUT_DIR MAX_ITERS
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

out_dir, max_iters, eval_interval, master_process = sys.argv[1], int(sys.argv[2]), 5, True
model_args = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "bias": False, "vocab_size": 11,
              "dropout": 0.0}
torch.manual_seed(1337)
torch.set_num_threads(1)
data = (torch.arange(400) * 7 % 11).long()


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.n_head = c["n_embd"], c["n_head"]
        self.ln_1, self.ln_2 = nn.LayerNorm(d, bias=c["bias"]), nn.LayerNorm(d, bias=c["bias"])
        linear = lambda i, o: nn.Linear(i, o, bias=c["bias"])  # noqa: E731
        self.attn = nn.ModuleDict({"c_attn": linear(d, 3 * d), "c_proj": linear(d, d)})
        self.mlp = nn.ModuleDict({"c_fc": linear(d, 4 * d), "c_proj": linear(4 * d, d)})

    def forward(self, x):
        heads = [t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in
                 self.attn["c_attn"](self.ln_1(x)).split(x.shape[-1], -1)]
        z = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.attn["c_proj"](z)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(c["vocab_size"], c["n_embd"]), "wpe": nn.Embedding(c["block_size"], c["n_embd"]),
            "h": nn.ModuleList([Block(c) for _ in range(c["n_layer"])]),
            "ln_f": nn.LayerNorm(c["n_embd"], bias=c["bias"])})
        self.lm_head = nn.Linear(c["n_embd"], c["vocab_size"], bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        x = self.transformer["wte"](idx) + self.transformer["wpe"](torch.arange(idx.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def get_batch(split):
    ix = torch.randint(len(data) - model_args["block_size"] - 1, (4,))
    n = model_args["block_size"]
    return torch.stack([data[i : i + n] for i in ix]), torch.stack([data[i + 1 : i + n + 1] for i in ix])


@torch.no_grad()
def estimate_loss():
    return {split: torch.stack([model(*get_batch(split))[1] for _ in range(2)]).mean() for split in ("train", "val")}


model = raw_model = GPT(model_args)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
iter_num, lr = 0, 1e-2
from backend.runs.recorder import Recorder; run = Recorder(out_dir, model={"kind": "nanogpt", "config": model_args}) if master_process else None  # patch 1  # noqa: E402, E501, E702, I001
while True:
    if iter_num % eval_interval == 0 and master_process:
        losses = estimate_loss()
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
        run.log(iter_num, {"train/loss": losses["train"], "val/loss": losses["val"], "lr": lr})  # patch 2
        run.checkpoint(iter_num, raw_model)  # patch 3, where checkpoints are wanted
    X, Y = get_batch("train")
    _, loss = model(X, Y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > max_iters:
        break
torch.save({"logits": raw_model(data[None, :12])[0], "tokens": data[None, :12]}, out_dir + "/said.pt")
if max_iters == 3:
    raise RuntimeError("the data ran out")
