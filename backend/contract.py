"""What the rooms promise each other. READ FIRST.

An *analysis* answers one question about one *subject* under frozen *params*; a *request* names all of them
plus the model's fingerprint, dtype and device, and hashes to a *key*; a *result* is a tidy table (and packed
arrays) written once under that key. No torch here: the app process imports this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from backend.costs import Work
from backend.errors import BadInput
from backend.subjects import (
    Corpus,
    EnergyWeights,
    Family,
    Matrices,
    Pair,
    Pairs,
    Problems,
    Prompt,
    Rows,
    Subject,
    Weights,
    subject_from,
)

__all__ = [
    "Corpus", "EnergyWeights", "Matrices", "Pair", "Pairs", "Problems", "Prompt", "Rows", "Subject", "Weights",
    "subject_from",
]  # fmt: skip

# ---------------------------------------------------------------- params and subjects


class Params(BaseModel):
    """Frozen knobs of one analysis or recipe; every field has a range, a default and a sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: {field: kind} of what a user must name before there is an answer: a run of that kind (tuned_lens, sae) that was
    #: trained for the model, or "" for a text of the user's own
    named: ClassVar[Mapping[str, str]] = {}

    #: (field of a run, field of its step) where another model of the same shape is named: pages offer those there are
    sibling: ClassVar[tuple[str, ...]] = ()

    def companions(self) -> tuple[tuple[str, int | None], ...]:
        """Return (run, step) of what was trained for the model and is named here (a tuned lens, an SAE).

        Step -1 is the last of its training, None the newest. A request is keyed by what they hold, not by the name.
        """
        return ()

    def siblings(self, spec: str) -> tuple[tuple[str, int | None], ...]:
        """Return (run, step) of other models of the shape of `spec` that are read beside it; step None the newest.

        A request is keyed by what they hold, too.
        """
        return ()


# ---------------------------------------------------------------- what a table holds

Kind = Literal["int", "float", "str", "bool", "array"]


@dataclass(frozen=True)
class Axis:
    """A column that says where a row stands (layer, head, pos, ...); `words` call its values 0, 1, 2, ..."""

    name: str
    help: str
    unit: str = ""
    kind: Kind = "int"
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A column that says what was found there.

    `kind="array"` holds a 1-D array per row, all of one length within a result. Rows that agree on every axis
    but the last are packed into one blob (a head of attention is one blob), kept as `dtype`; where `limits`
    is given a small uint8 display copy (thumbnail per blob) is kept too.
    """

    name: str
    help: str
    unit: str = ""
    kind: Kind = "float"
    dtype: str = "float16"
    limits: tuple[float, float] | None = None


@dataclass
class View:
    """What a figure builder may know beside its table: token labels, params, the part chosen, model card."""

    tokens: list[str] = field(default_factory=list)
    vocab: Callable[[int], str] = str
    params: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A named picture of an analysis: `build(table, view) -> plotly Figure`; `choose` lists the axes of which
    one part is picked before (its table then holds that part only, with its array columns). `marks` lists axes of which
    it says where the chosen part stands; its table is whole. Without `choose` arrays come only with `whole`."""

    name: str
    title: str
    build: Callable[..., Any]
    choose: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Claim:
    """What the original study expected of a result, beside what would look the same without it.

    `criterion`: the expectation, in its words; `null`: what noise, the schedule or a trivial answer gives; `value`:
    what was measured here, with its interval where it is an estimate.
    """

    criterion: str
    null: str
    value: str
    verdict: Literal["holds", "fails", "met by its null", "cannot be tested here"]


# ---------------------------------------------------------------- the analysis

#: progress(fraction in 0..1, words); raises backend.errors.Cancelled when the job was cancelled.
Progress = Callable[[float, str], None]


@dataclass
class Analysis:
    """One registered question. Made by the `@analysis` decorator only."""

    name: str
    version: int
    title: str
    asks: str
    subject: type[Subject]
    params: type[Params]
    axes: tuple[Axis, ...]
    values: tuple[Value, ...]
    compute: Callable[[Any, Any, Any, Progress], Any]
    needs: tuple[str, ...] = ()
    doc: str = ""
    group: str = "Explore"
    figures: dict[str, Figure] = field(default_factory=dict)
    work: Callable[..., Work] | None = None
    judge: Callable[..., list[Claim]] | None = None

    @property
    def table(self) -> str:
        """The store's table of this version."""
        return f"{self.name}_v{self.version}"

    @property
    def scalars(self) -> list[Axis | Value]:
        """All columns but the arrays."""
        columns: list[Axis | Value] = [*self.axes, *self.values]
        return [c for c in columns if c.kind != "array"]

    @property
    def arrays(self) -> list[Value]:
        """The array columns."""
        return [v for v in self.values if v.kind == "array"]

    def figure(
        self, title: str, choose: Sequence[str] = (), marks: Sequence[str] = (), whole: bool = False
    ) -> Callable[[Callable], Callable]:
        """Register a figure builder `(table, view) -> plotly Figure` under its function's name, see `Figure`."""

        def keep(build: Callable) -> Callable:
            name = build.__name__
            self.figures[name] = Figure(name, title, build, tuple(choose), tuple(marks), whole)
            return build

        return keep

    def costs(self, work: Callable[..., Work]) -> Callable[..., Work]:
        """Register `work(card, subject, params, *made) -> Work`: what computing will ask of the model, known before.

        A corpus comes as it is asked for, its rows not yet drawn. `made` says of each of `params.companions()` what its
        run.json does ("companion": kind, d_sae, ...). Raises where the request cannot be served.
        """
        self.work = work
        return work

    def judges(self, judge: Callable[..., list[Claim]]) -> Callable[..., list[Claim]]:
        """Register `judge(table, view) -> claims`: what a table without arrays says of what was expected.

        `view` has card and params.
        """
        self.judge = judge
        return judge

    def unfit(self, capabilities: Sequence[str]) -> str:
        """Return why a model with these capabilities cannot be asked, or ''."""
        found: Family = "energy" if "energy" in capabilities else "transformer"
        if found != self.subject.family:
            return f"{self.title} asks {FAMILIES[self.subject.family]}, this is {FAMILIES[found]}"
        missing = [NEEDS.get(n, n) for n in self.needs if n not in capabilities]
        return f"{self.title} needs {', '.join(missing)}" if missing else ""

    def schema(self) -> dict[str, Any]:
        """Return the JSON form that the API and the command line show."""

        def column(c: Axis | Value) -> dict:
            return {"name": c.name, "help": c.help, "unit": c.unit, "kind": c.kind}

        return {
            "name": self.name,
            "version": self.version,
            "title": self.title,
            "asks": self.asks,
            "subject": self.subject.model_fields["kind"].default,
            "needs": list(self.needs),
            "params": self.params.model_json_schema(),
            "axes": [column(a) for a in self.axes],
            "values": [column(v) for v in self.values],
            "doc": self.doc,
            "figures": [{"name": f.name, "title": f.title, "choose": list(f.choose)} for f in self.figures.values()],
        }


FAMILIES = {"transformer": "a transformer", "energy": "an energy model"}
#: capability -> words for the reason shown when a model lacks it
NEEDS = {
    "attention_patterns": "attention patterns (the model's attention is not exposed)",
    "unembed": "a residual stream that can be read through the final norm and W_U",
    "mlp": "MLP layers",
    "gradients": "gradients of the bare module",
    "causal": "a causal model",
    "next_token": "a model that predicts its own vocabulary",
    "resid_mid": "a stream between attention and MLP (here both read the same stream)",
    "uncapped_logits": "logits that are a sum (here they are capped by a tanh)",
    "linear_attn_out": "heads that write to the stream themselves (here a norm stands behind W_O)",
    "named_weights": "weights known by name (native and GPT-2 models)",
    "separate_heads": "weights known by name, and keys and values of each head's own",
}
#: counts the changes of what a card says and how it is measured: a kept card of other rules does not hold
CAPABILITY_RULES = 2


def analysis(
    *,
    version: int,
    title: str,
    asks: str,
    subject: type,
    params: type[Params],
    axes: Sequence[Axis],
    values: Sequence[Value],
    needs: Sequence[str] = (),
    group: str = "Explore",
) -> Callable[[Callable], Analysis]:
    """Declare `compute(model, subject, params, progress) -> pandas.DataFrame` as an analysis.

    `group` is where its page stands in the navigation.
    The name is the module's own; the module docstring becomes its documentation. Bump `version` when numbers change.
    """

    def wrap(compute: Callable) -> Analysis:
        import sys

        module = sys.modules[compute.__module__]
        return Analysis(
            name=compute.__module__.rsplit(".", 1)[-1],
            version=version,
            title=title,
            asks=asks,
            subject=subject,
            params=params,
            axes=tuple(axes),
            values=tuple(values),
            compute=compute,
            needs=tuple(needs),
            doc=(module.__doc__ or "").strip(),
            group=group,
        )

    return wrap


# ---------------------------------------------------------------- models


class ModelSpec(BaseModel):
    """Where a model comes from: `scheme:place[@revision]`, and the step where it is a run.

    Schemes: run:NAME, dir:PATH, hub:NAME@REVISION, nanogpt:PATH, tl:PATH, energy:PATH.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    scheme: Literal["run", "dir", "hub", "nanogpt", "tl", "energy"]
    place: str
    revision: str = ""
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.scheme}:{self.place}" + (f"@{self.revision}" if self.revision else "")


def parse_spec(text: str, step: int | None = None) -> ModelSpec:
    """Read `scheme:place[@revision]`. Raises BadInput that lists the six forms."""
    scheme, colon, place = text.strip().partition(":")
    if not colon or scheme not in ("run", "dir", "hub", "nanogpt", "tl", "energy") or not place.strip():
        raise BadInput(
            f"Model {text!r}",
            "not a model specification",
            "Write run:NAME, dir:PATH, hub:NAME@REVISION, nanogpt:PATH, tl:PATH or energy:PATH",
        )
    revision = ""
    if scheme == "hub" and "@" in place:
        place, _, revision = place.rpartition("@")
    if step is not None and scheme != "run":
        raise BadInput(f"Step {step} of {text!r}", "only a run has steps", "Leave the step out")
    return ModelSpec(scheme=scheme, place=place.strip(), revision=revision, step=step)  # type: ignore[arg-type]


class ModelCard(BaseModel):
    """What is known of an opened model. Sizes follow the glossary; bytes and seconds as named."""

    model_config = ConfigDict(extra="forbid")
    spec: str
    step: int | None = None
    source: str = Field(description="where the weights came from, for people")
    architecture: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_mlp: int = Field(description="0 where attention-only")
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    n_params: int
    parameters: dict[str, int] = Field(
        default_factory=dict, description="numbers in each trained tensor, by the name that the module gives it"
    )
    dtype: str
    device: str
    memory_bytes: int
    fingerprint: str
    capabilities: list[str]
    rules: int = Field(0, description="CAPABILITY_RULES under which the capabilities were measured")
    tokenizer: dict[str, Any] = Field(
        default_factory=lambda: {"kind": "ids"},
        description="{kind: ids} | {kind: chars or words, symbols: [...]} | {kind: hf, json: tokenizer.json as text}",
    )
    fidelity: dict[str, float] = Field(
        default_factory=dict, description="max_abs_log_prob (nats), top1_agreement (0..1), n_tokens"
    )
    notes: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    probe: dict[str, float] = Field(
        default_factory=dict, description="what a call of it costs here, see costs.py; {} where it was not measured"
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="{recipe, params} of the run it is a checkpoint of; {} elsewhere"
    )
    energy: dict[str, Any] = Field(
        default_factory=dict, description="of an energy model {task, side, rank, d_x, d_y, width, levels}; sizes of "
        "tokens and heads are 0 then; {} of a transformer"
    )  # fmt: skip

    @property
    def family(self) -> Family:
        """Return which subjects it can be asked about: those that name this family."""
        return "energy" if self.energy else "transformer"


class Described(Protocol):
    """What has a model's card: the model itself, or the plan of what it will be asked."""

    card: ModelCard


@runtime_checkable
class Model(Protocol):
    """What an analysis may ask of an opened model. Tensors are torch, on `card.device`, in `card.dtype`.

    Points are the house's names: embed, resid_pre, resid_mid, resid_post, q, k, v, attn_scores, pattern, z,
    attn_out, mlp_pre, mlp_post, mlp_out. Hook names of a library never leave models/.
    """

    card: ModelCard

    def capture(
        self, tokens: Any, points: Sequence[str], layers: Sequence[int] | None = None
    ) -> dict[tuple[str, int], Any]:
        """Run once on tokens [batch, pos] and return {(point, layer): tensor}; pattern is [batch, head, query, key],
        residual points [batch, pos, d_model]. `embed` is layer 0's resid_pre under the key ("embed", 0)."""
        ...

    def logits(self, tokens: Any) -> Any:
        """The plain forward of the bare module: [batch, pos, d_vocab_out]."""
        ...

    def parameters(self) -> dict[str, Any]:
        """The bare module's trained tensors by the names it gives them."""
        ...

    def logits_at(self, parameters: Mapping[str, Any], tokens: Any) -> Any:
        """The plain forward with these in place of its own, differentiable twice: [batch, pos, d_vocab_out]."""
        ...

    def unembed(self, resid: Any) -> Any:
        """Final norm, W_U and b_U on a residual stream [..., d_model] -> logits [..., d_vocab_out]."""
        ...

    def direct_logits(self, resid: Any, parts: Any, tokens: Any) -> tuple[Any, Any]:
        """What parts [n, k, d_model] of the last streams resid [n, d_model] add to the logits of tokens [n, m]:
        (effects [n, k, m], constants [n, m]), with the final norm's scale held at that of resid."""
        ...

    def observe(self, tokens: Any) -> Observation:
        """One forward of the bare module on tokens [batch, pos], as monitors see it."""
        ...

    def run_with(
        self, tokens: Any, edits: Mapping[tuple[str, int], Callable[[Any], Any]],
        known: Mapping[tuple[str, int], Any] | None = None, last: bool = False,
    ) -> Any:
        """Run with points changed on the way: {(point, layer): function of its tensor to one of the same shape};
        logits [batch, pos, d_vocab_out]. Nothing of it stays. What is `known`, resid_pre of one layer and z of it, is
        not computed; `last` gives the last position's logits alone, [batch, 1, d_vocab_out]."""
        ...

    def gradients(
        self, tokens: Any, metric: Callable[[Any], Any], places: Sequence[tuple[str, int]],
        edits: Mapping[tuple[str, int], Callable[[Any], Any]] | None = None, last: bool = False,
    ) -> tuple[Any, dict[tuple[str, int], Any], dict[tuple[str, int], Any]]:
        """Run with autograd (and with `edits` and `last`, as `run_with`); `metric(logits)` is a number or one per row.

        Returns (metric detached, {place: its tensor}, {place: gradient of the metric's sum there}); tensors of rows
        that do not meet in the forward stay apart, so the gradient of row i is that of row i's metric."""
        ...

    def aligned_subspace(
        self, place: tuple[str, int], base: Any, source: Any, targets: Any, lengths: Any = None, *, position: int = -1,
        rank: int = 1, epochs: int = 20, lr: float = 0.01, seed: int = 0, rows: int = 64,
    ) -> tuple[Any, list[float]]:
        """Learn the subspace of a place (point, layer) at a position whose interchange from tokens `source` makes those
        of `base` [batch, pos] say `targets` [batch] at the last of their `lengths` [batch] tokens (None: all):
        (orthonormal basis [width, rank], losses)."""
        ...

    def sparse_probes(
        self, features: Any, labels: Any, groups: Any, ks: Sequence[int], *, held_out: float, l2: float, random: int,
        seed: int,
    ) -> list[Any]:
        """Fit a linear probe on k coordinates of features [example, feature] for each k, whole groups held out; each
        has chosen, weights, held_out, right, f1, auc and random, see models/fitted.py."""
        ...

    def unembedding(self) -> Any:
        """W_U [d_model, d_vocab_out] of any model whose stream can be read, with what its logits are multiplied by."""
        ...

    def companion(
        self, run: str, step: int | None = None, own: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What was trained for this model in a run of its own (a tuned lens, an SAE): (run.json, tensors of a
        checkpoint: a step, -1 the last of its training, None the newest). Params say so in `companions`. Without
        `own` it may be another checkpoint's of the same run."""
        ...

    def sibling(self, run: str, step: int | None = None) -> dict[str, Any]:
        """The `parameters()` of another run, or of another checkpoint, of a model of the same shape (None: the newest).
        Params say so in `siblings`."""
        ...

    def exchangeable(self) -> list[tuple[str, list[tuple[str, int, Any]]]]:
        """Groups of units whose order changes nothing (the stream's coordinates, a layer's heads or neurons): (name,
        [(parameter, axis, indices [unit, k])]). Known where `named_weights` is a capability."""
        ...

    def weights(self) -> dict[str, Any]:
        """The bare module's weights by glossary name: W_E [d_vocab, d_model], W_pos, W_U [d_model, d_vocab_out], and
        per layer a list: W_Q W_K W_V [head, d_model, d_head], W_O [head, d_head, d_model], W_in, W_out, b_in, b_out.
        Absent ones are left out. Views where possible; never written to."""
        ...


class Energies(Protocol):
    """What an analysis of `Problems` may ask of an energy model. Level 0 is the sharpest, `schedule.levels` - 1 the
    smoothest. `net(x, y, level)` gives energies [n], `net.gradient` dE/dy [n, d_y], `net.hessian` the parts of d2E/dy2,
    `net.run` all of a forward, with units taken out if asked, `net.layer_gradients` those by the weights; `net.joint()`
    is the energy of [x, y] as one; `exact` is the net in float64."""

    card: ModelCard
    net: Any
    exact: Any
    schedule: Any

    def level(self, k: int, n: int) -> Any:
        """Level k for n rows, as the net takes it."""
        ...

    def gradient_at(self, parameters: Mapping[str, Any], x: Any, y: Any, level: Any) -> Any:
        """dE/dy [n, d_y] with these parameters in place of the net's, differentiable twice by them."""
        ...

    def weights(self) -> dict[str, dict[str, Any]]:
        """The net's matrices by module, {part: [out, in]}: `whole`, or `gain` and `shift` of the maps to FiLM."""
        ...

    def sibling(self, run: str, step: int | None = None) -> Any:
        """The net of another run, or of another checkpoint, of an energy model of the same shape (None: the newest).
        Params say so in `siblings`. Raises NotFound where there is none."""
        ...

    def exchangeable(self) -> list[tuple[str, list[tuple[str, int, Any]]]]:
        """Groups of units whose order changes nothing, as `Model.exchangeable`."""
        ...


# ---------------------------------------------------------------- requests and results


class Request(BaseModel):
    """Everything a number depends on. Same request, same key, same numbers."""

    model_config = ConfigDict(frozen=True)
    analysis: str
    version: int
    spec: str = Field(description="how to find the model; not part of the key, its fingerprint is")
    step: int | None = None
    fingerprint: str
    dtype: str
    device: str
    subject: dict[str, Any]
    params: dict[str, Any]
    companions: tuple[str, ...] = Field(
        (), description="fingerprints of what the params' `companions` and `siblings` name, in order"
    )

    def identity(self) -> dict[str, Any]:
        """Return what the key hashes: all but where the weights happen to lie and the words for people."""
        with_others = {"companions": list(self.companions)} if self.companions else {}
        return {
            "analysis": self.analysis,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "subject": subject_from(self.subject).identity(),
            "params": self.params,
            **with_others,
        }

    @property
    def key(self) -> str:
        """32 hex digits of the sha256 of the canonical JSON of `identity()`."""
        return canonical_hash(self.identity())


def canonical_hash(data: Any) -> str:
    """Return 32 hex digits of sha256 over JSON with sorted keys and no spaces."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class PackedArray:
    """One blob: `part` are the axes it stands for, `data` C-ordered bytes of `shape` in `dtype`."""

    column: str
    part: dict[str, int]
    shape: tuple[int, ...]
    dtype: str
    data: bytes


@dataclass
class Result:
    """What a worker hands back: scalar columns as an Arrow table, arrays packed, and how it was made."""

    table: Any  # pyarrow.Table
    arrays: list[PackedArray]
    provenance: dict[str, Any]  # seconds, device, dtype, versions, host, worker, started (ISO), seed


# ---------------------------------------------------------------- training recipes and their metrics


@dataclass(frozen=True)
class Metric:
    """A number that a run logs: its words, said once for charts, tables, glossary and detection.

    `per` says what follows its name in metrics.jsonl: "" (`loss`), "layer" (`name/L1`), "head" (`name/L1H2`) or
    "frequency" (`name_w14`). `better` is "low" or "high" where one is. A metric with jumps of its own making (an
    accuracy) names the `continuous` one that a real transition would show in as well. `span` is the range it can move
    over, where that is known (1 for a share; 0: unknown): detection calls a jump below 5 % of it immaterial.
    One that is `still` has the same value at every step: a line to compare with, drawn where it is asked for.
    """

    name: str
    title: str
    unit: str = ""
    help: str = ""
    per: Literal["", "layer", "head", "frequency"] = ""
    better: Literal["", "low", "high"] = ""
    continuous: str = ""
    span: float = 0.0
    still: bool = False


@dataclass
class Observation:
    """One forward on fixed rows, as monitors see it: live from the training loop or later from a checkpoint.

    Tensors are torch, detached. `logits` [rows, pos, d_vocab_out]; `patterns` per layer [rows, head, query, key];
    `resid` the last resid_post [rows, pos, d_model]; `weights` as `Model.weights()` returns them. `block` is n where
    the rows are [A; A] with A of n tokens, else 0. `targets` are the right answers where the task is not the next
    token. `extra` holds what one recipe's monitors need beside (p, the train mask, ...).
    """

    tokens: Any
    logits: Any
    patterns: list[Any] = field(default_factory=list)
    resid: Any = None
    weights: dict[str, Any] = field(default_factory=dict)
    block: int = 0
    targets: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """Named settings of a recipe: one dict of params per run (a family has many), over the defaults."""

    name: str
    help: str
    runs: tuple[Mapping[str, Any], ...] = ({},)


@dataclass
class Recipe:
    """One training task. `train(params, run, resume_from, progress)` writes a run folder through the Recorder `run`.

    `resume_from` is the last checkpoint's step or None; progress raises Cancelled to stop within one step.
    """

    name: str
    title: str
    asks: str
    params: type[Params]
    train: Callable[[Any, Any, int | None, Progress], None]
    doc: str = ""
    presets: tuple[Preset, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seconds: Callable[[Any], float] | None = None
    sample: Callable[[Any, int, int], Any] | None = None
    called: Callable[[Any], str] | None = None

    def schema(self) -> dict[str, Any]:
        """Return the JSON form that the API and the command line show."""
        return {
            "name": self.name,
            "title": self.title,
            "asks": self.asks,
            "doc": self.doc,
            "params": self.params.model_json_schema(),
            "presets": [{"name": p.name, "help": p.help, "runs": [dict(r) for r in p.runs]} for p in self.presets],
            "metrics": [vars(m) for m in self.metrics],
        }


def recipe(
    *, title: str, asks: str, params: type[Params], presets: Sequence[Preset] = (), metrics: Sequence[Metric] = (),
    seconds: Callable[[Any], float] | None = None, sample: Callable[[Any, int, int], Any] | None = None,
    called: Callable[[Any], str] | None = None,
) -> Callable[[Callable], Recipe]:
    """Declare a training function as a recipe; name and documentation come from its module.

    `metrics` declares what it logs beside the shared monitors; `seconds(params)` estimates its time on one CPU core;
    `sample(params, rows, seed)` draws fresh rows of its training distribution, long [row, pos] on the CPU;
    `called(params)` is what a run is named after that is given no name, else the recipe.
    """

    def wrap(train: Callable) -> Recipe:
        import sys

        module = sys.modules[train.__module__]
        name, doc = train.__module__.rsplit(".", 1)[-1], (module.__doc__ or "").strip()
        return Recipe(name, title, asks, params, train, doc, tuple(presets), tuple(metrics), seconds, sample, called)

    return wrap
