"""transformer-lens' tools beside a direct computation and ours: `python -m benchmarks.library [--models 8]`.

For every tool of `transformer_lens.tools.analysis` and `transformer_lens.patching` that answers a question of ours: the
same question on tiny random models of eight architectures, answered by the library, by our analysis, and directly
(`benchmarks/direct.py`: the bare module's forward, plain hooks, hand arithmetic; float64). An error is the largest
difference from the direct answer, divided by its largest entry. What raises is written down in the library's words.
Seconds are of this process, one thread, of the call as a user would make it (ours draws intervals and nulls besides).
Writes benchmarks/results/library.csv and prints a row per tool at the end.
"""

from __future__ import annotations

import argparse
import copy
import csv
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.tools import analysis as tools

from backend.analyses import registry
from backend.contract import Pair, Pairs, Prompt
from backend.models import bridge
from benchmarks.direct import Direct
from benchmarks.library_models import KINDS, opened_kind
from benchmarks.table import head, line

RESULTS = Path(__file__).parent / "results" / "library.csv"
COLUMNS = ["tool", "model", "library_error", "ours_error", "library_seconds", "ours_seconds", "library_said"]
ANSWER, DISTRACTOR = 7, 11
#: within this an answer is right; transformers' RMS norms and rotary angles are float32 whatever the model is
RIGHT = 1e-5


class Case:
    """One model with its prompts: what the library, our analyses and the direct computation are asked about."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.model = kind, opened_kind(kind, folder)
        self.direct, self.card = Direct(self.model.bare), self.model.card
        dice = torch.Generator().manual_seed(5)
        self.clean, self.corrupted = torch.randint(0, self.card.d_vocab, (2, 4, 12), generator=dice)
        self.pairs = Pairs(
            pairs=tuple(
                Pair(clean=tuple(a), corrupted=tuple(b), answer=ANSWER, distractor=DISTRACTOR)
                for a, b in zip(self.clean.tolist(), self.corrupted.tolist(), strict=True)
            )
        )

    def view(self) -> Any:
        """A view of a copy: the library may change the weights that it is given."""
        return bridge.hook_view(copy.deepcopy(self.model.bare)).eval()

    def ours(self, name: str, **params: Any) -> Any:
        """Our analysis of the pairs, or of the first clean prompt."""
        one = registry()[name]
        kind = one.subject.model_fields["kind"].default
        subject: Any = self.pairs if kind == "pairs" else Prompt(tokens=tuple(self.clean[0].tolist()))
        if reason := one.unfit(self.card.capabilities):
            raise NotImplementedError(reason)
        return one.compute(self.model, subject, one.params(**params), lambda f, words: None)


def gap(logits: Tensor) -> Tensor:
    """logit_diff of every row."""
    return logits[:, -1, ANSWER] - logits[:, -1, DISTRACTOR]


# ---------------------------------------------------------------- tools: (library, direct, ours) as functions of a case


def logit_lens(case: Case) -> tuple[Callable, Callable, Callable]:
    """Log-probability of the answer after every layer, at every position of the first clean prompt."""
    view = case.view()

    def library() -> Tensor:
        told = tools.logit_lens(view, case.clean[:1], positions=None, targets=ANSWER, return_type="log_probs")
        return told.values[:, 0, :, 0]

    def direct() -> Tensor:
        places = [("resid_pre", n) for n in range(case.card.n_layers)] + [("resid_post", case.card.n_layers - 1)]
        streams = case.direct.seen(case.clean[:1], places)
        return torch.stack([case.direct.unembed(s)[0].log_softmax(-1)[:, ANSWER] for s in streams.values()])

    def ours() -> Any:
        table = case.ours("logit_lens", target=ANSWER, top_k=1)
        return table.pivot(index="layer", columns="pos", values="target_log_prob").to_numpy()

    return library, direct, ours


def attribution_by(unit: str, without_bias: bool = False) -> Callable[[Case], tuple[Callable, Callable, Callable]]:
    """Direct logit attribution over the pairs' clean prompts: by component or by head, mean over prompts."""

    def made(case: Case) -> tuple[Callable, Callable, Callable]:
        attn = [("attn_out", n) for n in range(case.card.n_layers)]
        mlps = [("mlp_out", n) for n in range(case.card.n_layers)] if case.card.d_mlp else []

        view, rows = case.view(), len(case.clean)
        view.enable_compatibility_mode()

        def library() -> Tensor:
            found = tools.direct_logit_attribution(view, case.clean, torch.full((rows,), ANSWER),
                                                   torch.full((rows,), DISTRACTOR), unit=unit)  # fmt: skip
            by = dict(zip(found.labels, found.attribution.mean(-1), strict=True))
            wanted = ([f"{n}_{p}" for p, n in (*attn, *mlps)] if unit == "component" else
                      [f"L{n}H{h}" for n in range(case.card.n_layers) for h in range(case.card.n_heads)])  # fmt: skip
            return torch.stack([by[name] for name in wanted])

        def direct() -> Tensor:
            last = ("resid_post", case.card.n_layers - 1)
            zs = [("z", n) for n in range(case.card.n_layers)]
            seen = {p: t[:, -1] for p, t in case.direct.seen(case.clean, [last, *zs, *attn, *mlps]).items()}
            weight = case.direct.head.weight
            way = weight[ANSWER] - weight[DISTRACTOR]
            if unit == "component":
                parts = torch.stack([seen[p] for p in (*attn, *mlps)])
            else:
                folded = [case.direct.constant_value(n) if without_bias else 0.0 for _, n in zs]
                parts = torch.cat(
                    [
                        torch.einsum("nhe,hed->hnd", seen[z] - b, case.direct.W_O(z[1]))
                        for z, b in zip(zs, folded, strict=True)
                    ]
                )
            return (case.direct.frozen(parts, seen[last]) @ way).mean(1)

        def ours() -> Any:
            if without_bias:
                raise NotImplementedError("what a head writes whatever it sees counts as the head's")
            table = case.ours("direct_logit_attribution").set_index(["part", "layer", "head"])["direct"]
            heads = [("head", n, h) for n in range(case.card.n_layers) for h in range(case.card.n_heads)]
            wanted = [(p, n, -1) for p, n in (*attn, *mlps)] if unit == "component" else heads
            return table.loc[wanted].to_numpy()

        return library, direct, ours

    return made


def patched(point: str) -> Callable[[Case], tuple[Callable, Callable, Callable]]:
    """Denoising at one layer and position (z: one head, all positions): mean logit_diff of the patched runs."""
    name = {"z": "attn_head_out_all_pos"}.get(point, point)

    def made(case: Case) -> tuple[Callable, Callable, Callable]:
        view = case.view()

        def library() -> Tensor:
            _, cache = view.run_with_cache(case.clean)
            metric = lambda logits: gap(logits).mean()  # noqa: E731
            return getattr(patching, f"get_act_patch_{name}")(view, case.corrupted, cache, metric).flatten()

        def direct() -> Tensor:
            source = case.direct.seen(case.clean, [(point, n) for n in range(case.card.n_layers)])

            def put(layer: int, at: Any) -> Callable[[Tensor], Tensor]:
                def change(tensor: Tensor) -> Tensor:
                    new = tensor.clone()
                    new[at] = source[point, layer][at]
                    return new

                return change

            across = case.card.n_heads if point == "z" else case.clean.shape[1]
            where = [
                (n, (slice(None), slice(None), i) if point == "z" else (slice(None), i))
                for n in range(case.card.n_layers)
                for i in range(across)
            ]
            runs = [case.direct.run(case.corrupted, {(point, n): put(n, at)}) for n, at in where]
            return torch.stack([gap(logits).mean() for logits in runs])

        def ours() -> Any:
            if point == "resid_mid":
                raise NotImplementedError("refused: the stream goes past that hook")
            return case.ours("activation_patching", site="head" if point == "z" else point)["patched"].to_numpy()

        return library, direct, ours

    return made


def direct_path(case: Case) -> tuple[Callable, Callable, Callable]:
    """The direct path from L0H1 into the query of every head of layer 1."""
    view = case.view()

    def library() -> Tensor:
        caches = [view.run_with_cache(tokens)[1] for tokens in (case.clean, case.corrupted)]
        metric = lambda logits: gap(logits).mean()  # noqa: E731
        return patching.get_act_patch_direct_path(view, case.corrupted, *caches, metric, 0, 1, verbose=False)[1]

    def direct() -> Tensor:
        z = [case.direct.seen(tokens, [("z", 0)])["z", 0][:, :, 1] for tokens in (case.clean, case.corrupted)]
        added = (z[0] - z[1]) @ case.direct.W_O(0)[1]
        return torch.stack(
            [
                gap(case.direct.run_with_query(case.corrupted, 1, head, added)).mean()
                for head in range(case.card.n_heads)
            ]
        )

    return library, direct, lambda: None


def attribution(case: Case) -> tuple[Callable, Callable, Callable]:
    """One-step attribution patching of every head's z and every mlp_out, all positions, mean over pairs."""
    points = ["z", *(["mlp_out"] if case.card.d_mlp else [])]

    view = case.view()

    def library() -> Tensor:
        found = tools.attribution_patch(view, case.clean, case.corrupted, lambda logits: gap(logits)[0])
        sums: dict[tuple, float] = {}
        for node, score in found.node_scores.items():
            if node.kind != "embed":
                sums[node.layer, -1 if node.head is None else node.head] = score + sums.get(
                    (node.layer, -1 if node.head is None else node.head), 0.0
                )
        return torch.tensor([sums[place] for place in sorted(sums)])

    def direct() -> Tensor:
        places = [(p, n) for p in points for n in range(case.card.n_layers)]
        source, leaves = case.direct.seen(case.clean, places), {}

        def leaf(place: tuple[str, int]) -> Callable[[Tensor], Tensor]:
            def keep(tensor: Tensor) -> Tensor:
                leaves[place] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                return leaves[place]

            return keep

        with torch.enable_grad():
            total = gap(case.direct.run(case.corrupted, {p: leaf(p) for p in places})).sum()
            slopes = dict(zip(places, torch.autograd.grad(total, [leaves[p] for p in places]), strict=True))
        out = {}
        for point, n in places:
            moved = (source[point, n] - leaves[point, n].detach()) * slopes[point, n]
            for h in range(case.card.n_heads) if point == "z" else [-1]:
                out[n, h] = (moved[:, :, h] if point == "z" else moved).flatten(1).sum(1).mean()
        return torch.stack([out[place] for place in sorted(out)])

    def ours() -> Any:
        table = case.ours("attribution_patching", method="one step", exact_top=0, exact_others=0)
        return table[table["component"].isin(["head", "mlp"])].sort_values(["layer", "head"])["approx"].to_numpy()

    return library, direct, ours


def jacobian(case: Case) -> tuple[Callable, Callable, Callable]:
    """J of the stream after layer 0 for the first clean prompt, all positions but the last."""
    prompt, last, view = case.clean[:1], case.card.n_layers - 1, case.view()

    def library() -> Tensor:
        view.to_tokens = lambda text: prompt  # it takes strings only, and these models have no tokenizer
        lens = tools.JacobianLens.fit(view, ["."], corpus="one prompt", skip_first_positions=0, show_progress=False)
        return lens.jacobians[0]

    def direct() -> Tensor:
        kept: dict[str, Tensor] = {}

        def root(stream: Tensor) -> Tensor:
            kept["first"] = stream.detach().requires_grad_()
            return kept["first"]

        def end(stream: Tensor) -> Tensor:
            kept["last"] = stream
            return stream

        with torch.enable_grad():
            case.direct.run(prompt, {("resid_post", 0): root, ("resid_post", last): end})
            rows = [
                torch.autograd.grad(kept["last"][0, :-1, i].sum(), kept["first"], retain_graph=True)[0][0, :-1]
                for i in range(case.card.d_model)
            ]
        return torch.stack(rows).mean(1)

    def ours() -> Any:
        from backend.analyses.jacobian_lens import jacobians

        return jacobians(case.model, prompt, list(range(prompt.shape[1] - 1)), lambda f, w: None)[0]

    return library, direct, ours


def interchange(case: Case) -> tuple[Callable, Callable, Callable]:
    """DAS: a subspace of rank 2 of the stream entering layer 1 is learnt; the logits with it interchanged."""
    pos = case.clean.shape[1] - 1
    fitted: list[Tensor] = []
    view = case.view().requires_grad_(True)

    def library() -> Tensor:
        task = lambda tokens: view(tokens)[:, -1]  # noqa: E731
        at, name = torch.full((len(case.clean),), pos), "blocks.1.hook_resid_pre"
        found = tools.fit_das(view, name, case.corrupted, case.clean, torch.full((len(case.clean),), ANSWER), task,
                              rank=2, base_positions=at, source_positions=at, epochs=4)  # fmt: skip
        fitted.append(found.basis)
        source = tools.collect_activations(view, name, case.clean, task, positions=at)
        with torch.no_grad():
            return tools.run_with_intervention(view, name, tools.SubspaceInterchange(found.basis), case.corrupted,
                                               source, task, positions=at)  # fmt: skip

    def direct() -> Tensor:
        B = fitted[-1].double()  # noqa: N806 - the basis' usual name
        assert torch.allclose(B.T @ B, torch.eye(2, dtype=B.dtype), atol=1e-5), "the basis is not orthonormal"
        source = case.direct.seen(case.clean, [("resid_pre", 1)])["resid_pre", 1][:, pos]

        def change(stream: Tensor) -> Tensor:
            new = stream.clone()
            new[:, pos] += ((source - stream[:, pos]) @ B) @ B.T
            return new

        return case.direct.run(case.corrupted, {("resid_pre", 1): change})[:, -1]

    return library, direct, lambda: None


def probe(case: Case) -> tuple[Callable, Callable, Callable]:
    """A k-sparse probe (k = 3) of mlp_post (z where there is no MLP): even token or odd? Coefficients, selection."""
    tokens = torch.randint(0, case.card.d_vocab, (20, 12), generator=torch.Generator().manual_seed(2))
    point = "mlp_post" if case.card.d_mlp else "z"
    acts = case.model.capture(tokens, [point], [1])[point, 1].flatten(2).flatten(0, 1)
    labels = (tokens % 2).flatten()
    fitted: list[Any] = []

    def library() -> Tensor:
        fitted.append(tools.fit_sparse_probe(acts, labels, k=3, l2_strength=1e-2))
        return torch.cat(
            [fitted[-1].coefficients, fitted[-1].intercept[None], torch.tensor([fitted[-1].metrics.roc_auc])]
        )

    def direct() -> Tensor:
        from scipy.optimize import minimize

        rows = fitted[-1].train_indices
        x, y = acts[rows].numpy(), labels[rows].numpy()
        score = np.abs(x[y == 1].mean(0) - x[y == 0].mean(0))
        chosen = np.argsort(-score, kind="stable")[:3]
        assert chosen.tolist() == fitted[-1].selected_features.tolist()
        weight = len(y) / (2 * np.where(y == 1, y.sum(), len(y) - y.sum()))

        def loss(b: np.ndarray) -> float:
            told = x[:, chosen] @ b[:3] + b[3]
            return float((weight * np.logaddexp(0, np.where(y == 1, -told, told))).mean() + 0.005 * (b[:3] ** 2).sum())

        b = minimize(loss, np.zeros(4), tol=1e-14).x
        held = fitted[-1].test_indices
        told, truth = acts[held].numpy()[:, chosen] @ b[:3] + b[3], labels[held].numpy() == 1
        pairs = np.sign(told[truth][:, None] - told[~truth][None])
        return torch.tensor([*b, (pairs.mean() + 1) / 2])

    return library, direct, lambda: None


def edges(case: Case) -> tuple[Callable, Callable, Callable]:
    """Faithfulness of the whole graph, and of none of it: 1 and 0 by definition."""
    view = case.view()

    def library() -> Tensor:
        config = tools.EdgeAttributionConfig(granularity="edge")
        clean, corrupted, metric = case.clean[:1], case.corrupted[:1], lambda logits: gap(logits)[0]
        found = tools.attribution_patch(view, clean, corrupted, metric, config)
        whole = list(found.edge_scores)
        return torch.tensor(
            [tools.faithfulness(view, clean, corrupted, metric, circuit).recovered for circuit in (whole, [])]
        )

    return library, lambda: torch.tensor([1.0, 0.0]), lambda: None


TOOLS: dict[str, Callable[[Case], tuple[Callable, Callable, Callable]]] = {
    "logit_lens": logit_lens, "direct_logit_attribution, component": attribution_by("component"),
    "direct_logit_attribution, head": attribution_by("head"),
    "direct_logit_attribution, head without constant values": attribution_by("head", without_bias=True),
    "patching direct_path (q)": direct_path, "attribution_patch, node": attribution,
    "attribution_patch, edge + faithfulness": edges, "JacobianLens.fit": jacobian,
    "fit_das + SubspaceInterchange": interchange, "fit_sparse_probe": probe,
    **{f"patching {p}": patched(p) for p in ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z")},
}  # fmt: skip


# ---------------------------------------------------------------- the table


def rows_of(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row per tool."""
    for tool, made in TOOLS.items():
        absent = (tool == "patching mlp_out" and not case.card.d_mlp) or (tool == "patching resid_mid" and (
            case.direct.parallel or not case.card.d_mlp))  # fmt: skip
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"tool": tool, "model": case.kind}
        if absent:
            yield row | {"library_said": "no such point in the model"}
            continue
        library, direct, ours = made(case)
        found, row["library_seconds"], row["library_said"] = timed(library)
        mine, row["ours_seconds"], _ = timed(ours)
        truth = None
        with torch.no_grad():
            if found is not None or mine is not None:
                truth = direct()
        row["library_error"], row["ours_error"] = error(found, truth), error(mine, truth)
        yield row


def summary(found: list[dict[str, Any]]) -> None:
    """Print a row per tool: the worst error, the architectures it answers rightly, median seconds."""
    head("tool", "library, worst error", "ours, worst error", "library right on", "library, s", "ours, s")
    for tool in dict.fromkeys(row["tool"] for row in found):
        rows = [r for r in found if r["tool"] == tool and r["library_said"] != "no such point in the model"]
        numbers = {c: [float(r[c]) for r in rows if r[c]] for c in COLUMNS[2:6]}
        right = [r["model"] for r in rows if r["library_error"] and float(r["library_error"]) < RIGHT]
        shown = [f"{max(numbers[c]):.1e}" if numbers[c] else "" for c in COLUMNS[2:4]]
        seconds = [f"{np.median(numbers[c]):.3f}" if numbers[c] else "" for c in COLUMNS[4:6]]
        line(tool, *shown, f"{len(right)} of {len(rows)}: {', '.join(right)}", *seconds)


def timed(work: Callable[[], Any]) -> tuple[Any, str, str]:
    """Return (answer or None, seconds or '', what was said where it raised)."""
    try:
        work()  # which imports, and fills what is kept
        began = time.process_time()
        answer = work()
    except Exception as problem:  # noqa: BLE001 - what a tool says is what is asked
        return None, "", f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"
    answer = answer.detach() if isinstance(answer, Tensor) else answer
    return answer, "" if answer is None else f"{time.process_time() - began:.3f}", ""


def error(found: Any, truth: Any) -> str:
    """Return the largest difference as a share of the largest entry."""
    if found is None or truth is None:
        return ""
    found, truth = torch.as_tensor(np.asarray(found)).double(), torch.as_tensor(truth).double()
    if found.shape != truth.shape:
        return f"shape {tuple(found.shape)}, not {tuple(truth.shape)}"
    return f"{float((found - truth).abs().max() / truth.abs().max()):.1e}"


def main() -> None:
    """Measure, print and write."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--models", type=int, default=len(KINDS), help="only the first so many")
    asked.add_argument("--tool", default="", help="only tools whose name begins so")
    args = asked.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for tool in [t for t in TOOLS if not t.startswith(args.tool)]:
        del TOOLS[tool]
    head(*COLUMNS)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS[: args.models]:
            for row in rows_of(Case(kind, Path(folder))):
                line(*map(str, row.values()))
                found.append(row)
    if not args.tool and args.models == len(KINDS):
        with RESULTS.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(found)
    summary(found)


if __name__ == "__main__":
    main()
