"""What an analysis may be asked about: a prompt, pairs of prompts, a corpus, the weights alone, or problems of an
energy model. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from backend.errors import BadInput

MOST_PAIRS = 512


#: what kind of model a question is asked of
Family = Literal["transformer", "energy"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    family: ClassVar[Family] = "transformer"  # said of a subject: who can answer


class Prompt(_Frozen):
    """One sequence of token ids; `text` is for people and is no part of the identity."""

    kind: Literal["prompt"] = "prompt"
    tokens: tuple[int, ...] = Field(min_length=1)
    text: str = ""
    asks_for_text: ClassVar[bool] = True

    @field_validator("tokens")
    @classmethod
    def _no_negative_ids(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return _ids(tokens)

    def identity(self) -> dict[str, Any]:
        """Return what the key depends on."""
        return {"kind": self.kind, "tokens": list(self.tokens)}


class Pair(_Frozen):
    """A clean and a corrupted prompt of as many tokens; at the last one `answer` is right of the clean, not the other.

    `distractor` is what the corrupted prompt calls for, or the wrong answer to tell from: the metric is
    logit_diff = logit(answer) - logit(distractor) at the last position.
    """

    clean: tuple[int, ...] = Field(min_length=1)
    corrupted: tuple[int, ...] = Field(min_length=1)
    answer: int = Field(ge=0)
    distractor: int = Field(ge=0)

    @field_validator("clean", "corrupted")
    @classmethod
    def _no_negative_ids(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return _ids(tokens)

    @model_validator(mode="after")
    def _fit(self) -> Pair:
        if len(self.clean) != len(self.corrupted):
            raise ValueError(f"clean has {len(self.clean)} tokens, corrupted {len(self.corrupted)}: they must be equal")
        if self.answer == self.distractor:
            raise ValueError("answer and distractor are the same token")
        return self


class Pairs(_Frozen):
    """Pairs of prompts for causal questions; `text` says for people what they are (task, seed)."""

    kind: Literal["pairs"] = "pairs"
    pairs: tuple[Pair, ...] = Field(min_length=1, max_length=MOST_PAIRS)
    text: str = ""
    asks_for_text: ClassVar[bool] = False

    @property
    def length(self) -> int:
        """The number of tokens of every prompt. Raises BadInput where they differ: positions would not correspond."""
        lengths = sorted({len(p.clean) for p in self.pairs})
        if len(lengths) > 1:
            found = f"prompts of {lengths[0]} to {lengths[-1]} tokens"
            raise BadInput("A map over positions", found, "Use pairs of one length, or a map over heads or layers")
        return lengths[0]

    def by_length(self) -> dict[int, list[int]]:
        """Return {number of tokens: which pairs have it}: each group can run as one batch."""
        found: dict[int, list[int]] = {}
        for i, pair in enumerate(self.pairs):
            found.setdefault(len(pair.clean), []).append(i)
        return found

    def identity(self) -> dict[str, Any]:
        """Return what the key depends on."""
        return {"kind": self.kind, "pairs": [p.model_dump(mode="json") for p in self.pairs]}


class Corpus(_Frozen):
    """Rows of tokens drawn from a source; the worker turns it into `Rows` before it computes.

    Sources: training (what the model's own recipe draws), python (the source of Python's standard library, for models
    that read text), random (uniform tokens), file (the text file `path`, whose sha256 is `digest`).
    """

    kind: Literal["corpus"] = "corpus"
    source: Literal["training", "python", "random", "file"] = "training"
    rows: int = Field(64, ge=1, le=65_536)
    length: int = Field(64, ge=1, le=8192, description="tokens of a row; cut to n_ctx")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    path: str = ""
    digest: str = ""
    asks_for_text: ClassVar[bool] = False

    def identity(self) -> dict[str, Any]:
        """Return what the key depends on: of a file what it holds, not where it lies."""
        return self.model_dump(mode="json", exclude={"path"})


@dataclass(frozen=True)
class Rows:
    """What an analysis of a Corpus is handed: its `tokens` as a numpy array [row, pos] of int64."""

    tokens: Any
    corpus: Corpus


class Weights(_Frozen):
    """The model itself, without a prompt: the analysis makes its own inputs from its params."""

    kind: Literal["weights"] = "weights"
    asks_for_text: ClassVar[bool] = False

    def identity(self) -> dict[str, Any]:
        """Return what the key depends on."""
        return {"kind": self.kind}


class EnergyWeights(Weights):
    """An energy model itself, without problems."""

    kind: Literal["energy_weights"] = "energy_weights"  # type: ignore[assignment]
    family: ClassVar[Family] = "energy"


HARDER = ("inverse", "addition", "completion")  # tasks with a harder distribution
TASKS = ("inverse", "addition", "completion", "gauss", "rank1")


class Problems(_Frozen):
    """Problems (x, y0) for an energy model, drawn fresh; the worker turns them into `Matrices` before it computes.

    `task` "" is the one that the model was trained on; `harder` draws from the distribution that nothing is trained on
    (inverse, addition, completion).
    """

    kind: Literal["problems"] = "problems"
    n: int = Field(64, ge=1, le=4096, description="how many problems")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    harder: bool = Field(False, description="drawn from a harder distribution than that of training")
    task: Literal["", "inverse", "addition", "completion", "gauss", "rank1"] = ""
    asks_for_text: ClassVar[bool] = False
    family: ClassVar[Family] = "energy"

    def identity(self) -> dict[str, Any]:
        """Return what the key depends on."""
        return self.model_dump(mode="json")


def entries(task: str, side: int) -> tuple[int, int]:
    """Return (d_x, d_y) of a task's problems."""
    d = side * side
    return {"inverse": d, "addition": 2 * d, "completion": d, "gauss": d, "rank1": 0}[task], d


@dataclass(frozen=True)
class Matrices:
    """What an analysis of `Problems` is handed: tensors x [n, d_x], solutions y [n, d_y] and noise [n, d_y] of unit
    variance, in the model's dtype and on its device; d_y = side * side, flattened by rows. `task` is never "".
    `more(n, seed)` draws others of the same kind."""

    x: Any
    y: Any
    noise: Any
    side: int
    task: str
    asked: Problems
    more: Callable[[int, int], Matrices]


Subject = Prompt | Pairs | Corpus | Weights | EnergyWeights | Problems
KINDS: dict[str, type[Any]] = {
    "prompt": Prompt, "pairs": Pairs, "corpus": Corpus, "weights": Weights,
    "energy_weights": EnergyWeights, "problems": Problems,
}  # fmt: skip


def subject_from(data: Mapping[str, Any]) -> Subject:
    """Read a subject from its JSON form. Raises BadInput for an unknown kind."""
    if data.get("kind") not in KINDS:
        raise BadInput(f"Subject {data.get('kind')!r}", "no such kind of subject", f"Use one of {sorted(KINDS)}")
    return KINDS[data["kind"]](**data)


def _ids(tokens: tuple[int, ...]) -> tuple[int, ...]:
    if any(t < 0 for t in tokens):
        raise ValueError("token ids are 0 or larger")
    return tokens
