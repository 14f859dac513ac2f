"""Do the house's analyses give the numbers that others published of the same model?

For a model of which numbers are known (`_published.py`) every one of them is computed anew: `difference` = ours -
published, and it `agrees` where |difference| is at most `tolerance`, what the printed digits leave open. Computed are
the palindrome classifier on the sequences of its authors' generator (seed 42), mean-ablation over them, and patching
beside attribution on 200 pairs (seed 0; one token of the second half changed); the C113 model on all p^2 inputs by
`modular_progress` and `fourier_spectrum`; compiled programs by `circuit_nodes` on 24 pairs of their own inputs.

Exact but for rounding, in float32 as in float64. Some reference numbers have no publication behind them: `source` says
so. Another definition is another number: zero-ablation after folding of norms, excluded loss and the unembedding share
of the publications are not comparable with ours and are left out. Nothing is estimated, so there is no error bar; the
null is that a number of another model, or of a wrong analysis, would not meet a tolerance of its last printed digit.
Cost: seconds on a CPU.
Source: see the column `source`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from backend.analyses._causal import Batch, Place, rows_at_once, sweep
from backend.analyses._circuits import name_of
from backend.analyses._effects import records
from backend.analyses._modular import seen_everywhere
from backend.analyses._published import C113, HEADS, KEY, KNOWN, PALINDROMES, TRUTH, Known
from backend.analyses.attribution_patching import attribution_patching
from backend.analyses.circuit_nodes import circuit_nodes
from backend.analyses.fourier_spectrum import fourier_spectrum
from backend.analyses.modular_progress import modular_progress
from backend.contract import Analysis, Axis, Model, Pair, Pairs, Params, Progress, Value, View, Weights, analysis
from backend.errors import Unfit
from backend.figures import CATEGORIES, bars

Found = dict[str, float]
TRIES = 500  # draws of a pair
SEARCHES = {"circuit by score": "by score", "greedy circuit": "greedy exact"}
TIMES = {"exact": "patching one head, exact", "one step": "attribution, one step (it saturates)"}


class PublishedNumbersParams(Params):
    """Nothing to turn: the publication says it all."""


@analysis(
    version=1, group="Results", title="Published numbers",
    asks="Do the analyses here give the numbers that others published of the same model?",
    subject=Weights, params=PublishedNumbersParams,
    axes=[Axis("quantity", "what was published", kind="str")],
    values=[
        Value("source", "who published it, and where", kind="str"),
        Value("published", "their number"),
        Value("ours", "the same, computed here"),
        Value("difference", "ours minus published"),
        Value("tolerance", "what the printed digits, or float64, leave open"),
        Value("agrees", "whether |difference| is at most the tolerance", kind="bool"),
    ],
)  # fmt: skip
def published_numbers(
    model: Model, subject: Weights, params: PublishedNumbersParams, progress: Progress
) -> pd.DataFrame:
    """Return one row per published quantity."""
    known = known_of(model)
    computing: dict[str, Callable[[Model, Progress], Found]] = {PALINDROMES.name: _palindromes, C113.name: _c113}
    ours = computing.get(known.name, _program)(model, progress)
    rows = [(q.quantity, q.source, q.published, ours[q.quantity], q.tolerance) for q in known.lines]
    table = pd.DataFrame(rows, columns=["quantity", "source", "published", "ours", "tolerance"])
    table.insert(4, "difference", table["ours"] - table["published"])
    return table.assign(agrees=table["difference"].abs() <= table["tolerance"])


def known_of(model: Model) -> Known:
    """Return what is published of these very weights. Raises Unfit where that is nothing."""
    program = model.card.training.get("params", {}).get("program", "")
    for known in KNOWN:
        if known.fingerprint == model.card.fingerprint or (program and known.name == f"tracr_{program}"):
            return known
    names = ", ".join(k.title for k in KNOWN)
    raise Unfit(f"Published numbers of {model.card.spec}", "none are known of these weights", f"Open one of {names}")


def _asked(one: Analysis, model: Model, subject: Any, **given: Any) -> pd.DataFrame:
    return one.compute(model, subject, one.params(**given), lambda fraction, words: None)


# ---------------------------------------------------------------- the palindrome classifier


def _palindromes(model: Model, progress: Progress) -> Found:
    import torch

    digits = _drawn_sequences()
    right = (digits == digits.flip(-1)).all(-1).long()
    tokens = torch.nn.functional.pad(torch.nn.functional.pad(digits, (1, 0), value=31), (0, 1), value=32)
    tokens, right = tokens.to(model.card.device), right.to(model.card.device)
    logits = torch.cat([model.logits(part)[:, -1].double() for part in tokens.split(256)])
    found = {"palindromes among 2500 sequences": float(right.sum()),
             "accuracy": float((logits.argmax(-1) == right).double().mean()),
             "cross-entropy (nats)": float(torch.nn.functional.cross_entropy(logits, right))}  # fmt: skip
    progress(0.1, "Mean-ablation")
    found |= _mean_ablated(model, tokens, right)
    progress(0.4, "Patching and attribution")
    pairs = _drawn_pairs()
    for steps in (5, 20):
        heads = _heads_of(_asked(attribution_patching, model, pairs, steps=steps))
        found |= {f"integrated gradients, {steps} steps {h}": heads["approx"][h] for h in HEADS}
        found |= {f"{TIMES['exact']} {h}": heads["exact"][h] for h in HEADS}
        progress(0.4 + steps / 50, f"{steps} steps")
    heads = _heads_of(_asked(attribution_patching, model, pairs, method="one step"))
    return found | {f"{TIMES['one step']} {h}": heads["approx"][h] for h in HEADS}


def _heads_of(table: pd.DataFrame) -> pd.DataFrame:
    heads = table[table["component"] == "head"]
    return heads.set_axis([name_of(r.layer, r.head) for r in records(heads)])


def _drawn_sequences() -> Any:
    """Draw the 2500 sequences [row, digit] as the authors' generator does, in its order."""
    import torch

    dice, shape = torch.Generator().manual_seed(42), (1250, 10)
    half, other = (torch.randint(0, 31, shape, generator=dice) for _ in range(2))
    mask = torch.randint(0, 2, shape, generator=dice).bool()
    plain = torch.cat([half, torch.where(mask, other, half.flip(-1))], 1)
    second = torch.randint(0, 31, shape, generator=dice)
    return torch.cat([torch.cat([second, second.flip(-1)], 1), plain])[torch.randperm(2500, generator=dice)]


def _drawn_pairs() -> Pairs:
    """Draw 200 palindromes with one token of the second half changed."""
    import torch

    dice = torch.Generator().manual_seed(0)
    half, rows = torch.randint(0, 31, (200, 10), generator=dice), torch.arange(200)
    pos = torch.randint(10, 20, (200,), generator=dice)
    clean = torch.cat([half, half.flip(-1)], 1)
    other = clean.clone()
    other[rows, pos] = (clean[rows, pos] + torch.randint(1, 31, (200,), generator=dice)) % 31
    return Pairs(pairs=tuple(Pair(clean=(31, *a, 32), corrupted=(31, *b, 32), answer=1, distractor=0)
                             for a, b in zip(clean.tolist(), other.tolist(), strict=True)))  # fmt: skip


def _mean_ablated(model: Model, tokens: Any, right: Any) -> Found:
    """Return logit_diff (right minus wrong class), intact and with each head's z at its mean over all rows."""
    parts = tokens.split(rows_at_once(model, tokens.shape[1]))
    kept = [model.capture(part, ["z"]) for part in parts]
    means = {key: sum(k[key].sum(0, keepdim=True) for k in kept) / len(tokens) for key in kept[0]}
    places = [Place("z", layer, head=head) for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1))]
    found = []
    for part, label in zip(parts, right.split(len(parts[0])), strict=True):
        batch = Batch(part, part, label, 1 - label, list(range(len(part))))
        values = {key: mean.expand(len(part), *mean.shape[1:]) for key, mean in means.items()}
        intact = batch.logit_diff(model.run_with(part, {})).cpu().numpy()
        found.append(np.vstack([intact, sweep(model, batch, part, places, values)]))
    intact, *ablated = np.concatenate(found, 1).mean(1)
    named = {f"logit difference, mean-ablated {h}": float(v) for h, v in zip(HEADS, ablated, strict=True)}
    return {"logit difference, mean": float(intact), **named}


# ---------------------------------------------------------------- addition modulo 113


def _c113(model: Model, progress: Progress) -> Found:
    import torch

    from backend.maths import fourier, modular_addition

    p = 113
    measured = _asked(modular_progress, model, Weights(), p=p).set_index(["measure", "frequency"])["value"]
    progress(0.5, "Spectrum of the embedding")
    spectrum = _asked(fourier_spectrum, model, Weights(), p=p, n_null=10)
    share = spectrum[spectrum["matrix"] == "W_E"].set_index("frequency")["share"]
    key = [int(w) for w in measured["key"].index[measured["key"] > 0]]
    logits = seen_everywhere(model, p)[0].double()
    right = modular_addition.answers(modular_addition.all_pairs(p), p)
    traces = fourier.trace_logits(fourier.class_means(logits), key)  # theirs projects on C_w itself
    found = {f"key frequency {i}": float(w) for i, w in enumerate(key[: len(KEY)], start=1)}
    found |= {f"similarity to cos w(a + b - c), w = {w}": measured["cosine_similarity", w] for w in KEY}
    return {
        **dict.fromkeys((f"key frequency {i}" for i in (1, 2, 3)), float("nan")), **found,
        "accuracy, all pairs": float((logits.argmax(-1) == right).double().mean()),
        "cross-entropy, all pairs (nats)": measured["train_loss", 0],
        "share of logits explained": measured["explained_fraction", 0],
        "restricted loss (nats)": float(fourier.loss_by_sum(traces, torch.full((p,), p))),
        "share of W_E in the key frequencies": float(share[key].sum()),
    }  # fmt: skip


# ---------------------------------------------------------------- compiled programs


def _program(model: Model, progress: Progress) -> Found:
    from backend.maths.circuits import precision_recall

    told = model.card.training["params"]
    ids = {word: i for i, word in enumerate(model.card.tokenizer["symbols"])}
    found = {"outputs decoded as tracr decodes them": _decoded(model, told, ids)}
    found["nodes of the true circuit"] = _nodes_that_write(model)
    pairs, true = _pairs_of(model, told, ids), frozenset(TRUTH[told["program"]])
    if pairs is None:  # it answers everything alike: there is no circuit to find
        return found | {f"{w}: {x}": float("nan") for w in SEARCHES for x in ("precision", "recall")}
    for words, search in SEARCHES.items():
        table = _asked(circuit_nodes, model, pairs, ablate="zero", search=search, least=0.99, random=1, draws=100)
        chosen = {name_of(r.layer, r.head) for r in records(table[table["in_circuit"]])}
        found[f"{words}: precision"], found[f"{words}: recall"] = precision_recall(chosen, true)
        progress(0.5, words)
    return found


def _decoded(model: Model, told: dict[str, Any], ids: dict[str, int]) -> float:
    """Return how many outputs of tracr's own sample the model decodes alike; BOS has none."""
    same = 0
    for words, outs in zip(told["seqs"], told["outs"], strict=True):
        tokens = _tokens(model, [ids[w] for w in words])
        classes = model.logits(tokens)[0].argmax(-1).tolist()[1:]
        same += sum(told["outputs"][c] == out for c, out in zip(classes, outs[1:], strict=True))
    return float(same)


def _nodes_that_write(model: Model) -> float:
    """Return how many heads and MLPs have output weights that are not 0."""
    weights = model.weights()
    heads = sum(int((head != 0).any()) for layer in weights["W_O"] for head in layer)
    return float(heads + sum(int((mlp != 0).any()) for mlp in weights["W_out"]))


def _pairs_of(model: Model, told: dict[str, Any], ids: dict[str, int], n: int = 24) -> Pairs | None:
    """Draw pairs of equally long inputs whose last outputs differ, of several lengths; the answers are the model's.

    None where TRIES draws do not give n of them.
    """
    dice, found = np.random.default_rng(0), list[Pair]()
    letters = [i for word, i in ids.items() if word not in ("BOS", "compiler_pad")]
    for _ in range(TRIES):
        length, again = int(dice.integers(1, model.card.n_ctx)), told["program"] != "sort_unique"
        two = [[ids["BOS"], *dice.choice(letters, length, replace=again).tolist()] for _ in range(2)]
        a, b = (int(model.logits(_tokens(model, t))[0, -1].argmax()) for t in two)
        if a != b:
            found.append(Pair(clean=tuple(two[0]), corrupted=tuple(two[1]), answer=a, distractor=b))
        if len(found) == n:
            return Pairs(pairs=tuple(found))
    return None


def _tokens(model: Model, ids: list[int]) -> Any:
    import torch

    return torch.tensor([ids], device=model.card.device)


# ---------------------------------------------------------------- figures


@published_numbers.figure("Difference in units of the tolerance")
def differences(table: pd.DataFrame, view: View) -> Any:
    """Within -1 and 1 ours agrees; where the tolerance is 0, the difference itself."""
    size = table["difference"] / table["tolerance"].where(table["tolerance"] > 0, 1.0)
    hover = [f"{r.quantity}<br>published {r.published:.6g}, ours {r.ours:.6g}<br>difference {r.difference:.2g}, "
             f"tolerance {r.tolerance:.2g}" for r in table.itertuples()]  # fmt: skip
    colours = [CATEGORIES[0] if ok else CATEGORIES[1] for ok in table["agrees"]]
    told = f"{int(table['agrees'].sum())} of {len(table)} agree"
    return bars(table["quantity"].tolist(), size, colours=colours, hover=hover, x_title=told,
                y_title="(ours - published) / tolerance")  # fmt: skip
