"""Does the model still behave when all that a stated hypothesis calls irrelevant is exchanged (causal scrubbing)?

The hypothesis is text: claims `sender > receiver: what must be shared`, `;` between them, such as `L1H3 > logits: same
answer; L0H3 > L1H3.k: same token at -1; embed > L1H3.v; all > L1H3.q`. A receiver hears a stated sender on a random
prompt that shares the stated with its own (`same prompt` where nothing stands: its own; any; same answer; same
distractor; same token at P, 0-based, negative from the end; joined by `and`). Every sender of which nothing is stated
it hears on one random prompt; `all > receiver` states something of these together. Then the sender's own inputs are
drawn likewise, for its prompt, and so on down: a tree, in which a node has other prompts on each path to the logits.
A node of which no input is stated computes what it does on its prompt. Prompts are the clean ones, exchanged with those
of as many tokens, each as likely, itself among them; all positions at once.

With m = the mean of logit_diff (answer - distractor of the prompt at the root), `recovered` = (m(scrubbed) -
m(random)) / (m(model) - m(random)), m(random) being exact: the model's answers to all prompts, held against each one's
own answer. 1 where all is kept (computed, exactly 1), 0 where all is exchanged (drawn, about 0: its distance from 0 is
the noise of drawing). `loss_recovered` is that of the cross entropy of the answer. Each number is a mean over `samples`
draws per prompt; 95 % bootstrap intervals over prompts. Controls: the same claims about random heads of the same
layers; each claim taken away in turn (its sender exchanged at random).

**A high share does not prove a hypothesis**: claims that keep the prompt cannot fail, so state little and allow much;
with few prompts that share the stated (`others`) little is exchanged; what all prompts share, such as the place of the
answer, cannot be told from what is kept; and prompts that gain can hide others that lose: `moved` is the mean |change|
of logit_diff per prompt.
Cost: nodes of the tree x 3 forwards per prompt and draw. Needs the weights by name (native, GPT-2) and as many key as
query heads.
Source: Chan et al. (2022), Causal Scrubbing: a method for rigorously testing interpretability hypotheses; Scheurer et
al. (2023), Practical Pitfalls of Causal Scrubbing (cancellation).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._causal import rows_at_once
from backend.analyses._edges import Receiver, output_weights
from backend.analyses._effects import records
from backend.analyses._hypothesis import SAME, Hypothesis, parse
from backend.analyses._scrubbing import Prompts, chooser, other_heads, read_at, scrub, written_at
from backend.analyses._work import Plan, parts
from backend.contract import Axis, Model, ModelCard, Pairs, Params, Progress, Value, View, analysis
from backend.costs import Work
from backend.figures import CATEGORIES, NULL_GREY, bars

KEPT, EVERYTHING, NOTHING = "all kept", "all > logits", "all > logits: any"
ORDER = [KEPT, "stated", "without a claim", "random heads", "all exchanged"]


class CircuitScrubbingParams(Params):
    """The hypothesis, and how often it is drawn."""

    hypothesis: str = Field(
        "all > logits; embed > logits: any; L0H0 > logits: any",
        max_length=4000, json_schema_extra={"format": "textarea"},
        description="claims `sender > receiver: what they share`, `;` between them. Senders: embed, L1H3, L0 mlp, all. "
        "Receivers: logits, L0 mlp, L1H3 or its L1H3.q, .k, .v. Shared: same prompt (where nothing stands), any, same "
        "answer, same distractor, same token at P (0-based, negative from the end), joined by `and`. What is not "
        "stated of a receiver that is named comes from any prompt. The default says that the logits do not need "
        "what embed and L0H0 write to them directly",
    )
    samples: int = Field(8, ge=1, le=256, description="draws of the exchanged prompts, per prompt and hypothesis")
    random: int = Field(8, ge=0, le=64, description="hypotheses about random heads, the control")
    draws: int = Field(1000, ge=100, le=20_000, description="bootstrap draws of the prompts")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of all draws")


@analysis(
    version=1, group="Causal", title="Causal scrubbing",
    asks="Does the model still behave when all that a stated hypothesis calls irrelevant is exchanged?",
    subject=Pairs, params=CircuitScrubbingParams, needs=["separate_heads"],
    axes=[Axis("what", "stated, without a claim, random heads, all kept, or all exchanged", kind="str"),
          Axis("which", "the claim taken away, or the random hypothesis; 0 elsewhere")],
    values=[
        Value("recovered", "share of logit_diff that is left; NULL where the model does no better than random prompts"),
        Value("recovered_low", "lower end of its 95 % bootstrap interval over prompts"),
        Value("recovered_high", "upper end of its 95 % bootstrap interval over prompts"),
        Value("loss_recovered", "the same of the answer's cross entropy; NULL likewise"),
        Value("loss_recovered_low", "lower end of its 95 % bootstrap interval over prompts"),
        Value("loss_recovered_high", "upper end of its 95 % bootstrap interval over prompts"),
        Value("logit_diff", "mean logit_diff, scrubbed", "logits"),
        Value("loss", "mean cross entropy of the answer, scrubbed", "nats"),
        Value("moved", "mean over prompts of |scrubbed - the model's logit_diff|", "logits"),
        Value("others", "other prompts that may stand in, mean over prompts and the claims that allow any; NULL: none "
              "does"),
        Value("claims", "the hypothesis in full", kind="str"), Value("n", "prompts", kind="int"),
    ],
)  # fmt: skip
def circuit_scrubbing(model: Model, subject: Pairs, params: CircuitScrubbingParams, progress: Progress) -> pd.DataFrame:
    """Return a row per hypothesis: what is stated, its controls, and both ends."""
    shortest = min(subject.by_length())
    asked = _asked(model.card, params, shortest)
    w_o = output_weights(model)
    groups = [(which, Prompts(model, [subject.pairs[i] for i in which], w_o)) for which in subject.by_length().values()]
    found = np.empty((len(asked), 2, len(subject.pairs)))
    for i, (what, which, h) in enumerate(asked):
        dice = np.random.default_rng([params.seed, ORDER.index(what), which])
        for places, prompts in groups:
            found[i][:, places] = _drawn(prompts, h, _samples(what, params), dice)
        progress((i + 1) / len(asked), "Scrubbing")
    ends = np.empty((2, 2, len(subject.pairs)))
    for places, prompts in groups:
        ends[:, :, places] = _ends(prompts)
    rows = [{"what": what, "which": which, "claims": str(h), "others": _others([p for _, p in groups], h)}
            for what, which, h in asked]  # fmt: skip
    return _table(rows, found, ends, params)


def _asked(card: ModelCard, params: CircuitScrubbingParams, shortest: int) -> list[tuple[str, int, Hypothesis]]:
    """Return (what, which, hypothesis). Raises BadInput with the claim that cannot be read."""
    stated = parse(params.hypothesis, card, shortest)
    dice = np.random.default_rng(params.seed)
    drawn = [other_heads(stated, card.n_heads, dice) for _ in range(params.random)]
    ends = [(what, 0, parse(text, card, shortest)) for what, text in ((KEPT, EVERYTHING), ("all exchanged", NOTHING))]
    return [("stated", 0, stated), *(("without a claim", i, stated.without(i)) for i in range(len(stated.claims))),
            *(("random heads", i, h) for i, h in enumerate(drawn) if h is not None), *ends]  # fmt: skip


def _samples(what: str, params: CircuitScrubbingParams) -> int:
    return 1 if what == KEPT else params.samples  # nothing is drawn there


def _drawn(prompts: Prompts, hypothesis: Hypothesis, samples: int, dice: np.random.Generator) -> np.ndarray:
    """Return (logit_diff, loss) [2, prompt], means over draws."""
    choose, total = chooser(prompts, dice), np.zeros((2, len(prompts.pairs)))
    for _ in range(samples):
        logits = scrub(prompts, hypothesis, choose).double()
        total += np.stack([m.diagonal() for m in _against(prompts, logits)])
    return total / samples


def _against(prompts: Prompts, logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (logit_diff, loss) [row of logits, prompt]: each row held against the answer of each prompt."""
    answer, distractor = ([getattr(p, name) for p in prompts.pairs] for name in ("answer", "distractor"))
    loss = -logits.log_softmax(-1)[:, answer]
    return (logits[:, answer] - logits[:, distractor]).cpu().numpy(), loss.cpu().numpy()


def _ends(prompts: Prompts) -> np.ndarray:
    """Return [model or random, logit_diff or loss, prompt]; random: the mean over all prompts' logits, exact."""
    import torch

    parts = [prompts.model.run_with(t, {})[:, -1] for t in prompts.tokens.split(prompts.step)]
    against = _against(prompts, torch.cat(parts).double())
    return np.array([[m.diagonal() for m in against], [m.mean(0) for m in against]])


def _others(groups: list[Prompts], hypothesis: Hypothesis) -> float:
    sizes = [len(g) - 1 for c in hypothesis.claims if c.shares != SAME for p in groups for g in p.groups(c.shares)]
    return float(np.mean(sizes)) if sizes else np.nan


def _table(rows: list[dict[str, Any]], found: np.ndarray, ends: np.ndarray,
           params: CircuitScrubbingParams) -> pd.DataFrame:  # fmt: skip
    from backend.maths import patching

    table = pd.DataFrame(rows).assign(n=found.shape[2])
    weights = patching.draw_weights(found.shape[2], params.draws, params.seed)
    for i, (name, value) in enumerate((("recovered", "logit_diff"), ("loss_recovered", "loss"))):
        share = patching.recovered(found[:, i], ends[0, i], ends[1, i], weights)
        table = table.assign(**{name: share.value, f"{name}_low": share.low, f"{name}_high": share.high,
                                value: found[:, i].mean(1)})  # fmt: skip
    table["moved"] = np.abs(found[:, 0] - ends[0, 0]).mean(1)
    columns: list[Axis | Value] = [*circuit_scrubbing.axes, *circuit_scrubbing.values]
    return table[[c.name for c in columns]]


@circuit_scrubbing.costs
def work(card: ModelCard, subject: Pairs, params: CircuitScrubbingParams) -> Work:
    """Per draw a forward for the logits and every MLP of the tree, one in three copies for every head of it; what the
    unchanged model computes once; the ends. A hypothesis that cannot be read has no price."""
    plan, held, heads, others, plain = Plan(card), 0, 0, 0, set[tuple[str, int]]()
    for what, _, h in _asked(card, params, min(subject.by_length())):
        for node, claims in h.nodes(Receiver("logits", card.n_layers)):
            heads += _samples(what, params) * (node.head >= 0)
            others += _samples(what, params) * (node.head < 0)
            plain |= {read_at(node), *(written_at(c.sender) for c in claims if c.sender)}
    for length, which in subject.by_length().items():
        step = rows_at_once(plan, length)
        for rows in parts(len(which), step):
            plan.call(rows, length, 1 + len(plain) + others)
        for rows in parts(len(which), max(1, step // 3)):
            plan.call(3 * rows, length, heads)
        held += sum(plan.bytes(len(which) * length, [point], layers=1) for point, _ in plain)
        held += plan.bytes(3 * len(which) * length, ["resid_pre"], layers=1)
    return plan.total(held)


# ---------------------------------------------------------------- figures


@circuit_scrubbing.figure("What is recovered")
def shares(table: pd.DataFrame, view: View) -> Any:
    """Share of logit_diff left, with 95 % intervals; grey: random heads, everything exchanged."""
    rank = {what: i for i, what in enumerate(ORDER)}
    drawn = table.sort_values(["what", "which"], key=lambda c: c.map(rank) if c.name == "what" else c, kind="stable")
    stated = table[table["what"] == "stated"].iloc[0]
    names = [_name(r, stated.claims) for r in records(drawn)]
    colours = [{"stated": CATEGORIES[0], "without a claim": CATEGORIES[2], "all kept": CATEGORIES[1]}.get(w, NULL_GREY)
               for w in drawn["what"]]  # fmt: skip
    share = drawn["recovered"]
    told = "may stand in: no claim allows another prompt" if np.isnan(stated.others) else (
        f"{stated.others:.3g} other prompts may stand in, mean over claims")  # fmt: skip
    return bars(names, share, errors=drawn["recovered_high"] - share, errors_below=share - drawn["recovered_low"],
                colours=colours, hover=[_words(r) for r in records(drawn)],
                x_title=f"hypothesis ({told}; {int(stated.n)} prompts)",
                y_title="recovered (share of logit_diff; 95 %)", height=420)  # fmt: skip


def _name(r: Any, stated: str) -> str:
    if r.what == "without a claim":
        return "without " + stated.split("; ")[r.which].split(":")[0]
    return r.what + (f" {r.which + 1}" if r.what == "random heads" else "")


def _words(r: Any) -> str:
    claims = r.claims.replace("; ", "<br>  ")
    return (f"{r.what}: recovered {r.recovered:.3g} ({r.recovered_low:.3g} to {r.recovered_high:.3g})<br>of the loss "
            f"{r.loss_recovered:.3g}; logit_diff {r.logit_diff:.3g}, moved by {r.moved:.3g} per prompt<br>"
            f"  {claims}")  # fmt: skip
