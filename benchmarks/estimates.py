"""What analyses are told to cost before they run, beside what they then take: `python -m benchmarks.estimates FOLDER`.

FOLDER holds a model (`python -m benchmarks.bare build FOLDER gpt2-shape`). Each analysis is priced by the probe that
opening it measured, without the correction by kept results, and run in this process, one thread: seconds by the clock,
then again, where that is not long, for the bytes in tensors at most (what numpy holds is not counted). A ratio is
estimated / measured. Writes results/estimates.csv.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.table import head, line

OUT = Path(__file__).parent / "results" / "estimates.csv"
LENGTH, N_PAIRS, LONG = 128, 2, 120.0  # tokens of a prompt; pairs; s above which an analysis is not run again for bytes
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("attention", {}),
    ("logit_lens", {}),
    ("lens_convergence", {}),
    ("head_scores", {"rows": 4}),
    ("name_movers", {}),
    ("attribution_patching", {"method": "one step", "exact_top": 4, "exact_others": 0}),
    ("neuron_examples", {}),
]
COLUMNS = ["analysis", "estimated_s", "measured_s", "ratio_s", "estimated_mb", "measured_mb", "ratio_mb", "load"]


def subject_of(asked: Any, card: Any) -> Any:
    """Return a prompt, pairs, a corpus or the weights, as the analysis takes."""
    import random

    from backend.contract import Corpus, Pair, Pairs, Prompt, Weights

    dice = random.Random(0)
    draw = lambda n: tuple(dice.randrange(card.d_vocab) for _ in range(n))  # noqa: E731
    clean = [draw(16) for _ in range(N_PAIRS)]
    made = {Prompt: lambda: Prompt(tokens=draw(LENGTH)), Weights: Weights,
            Corpus: lambda: Corpus(source="random", rows=8, length=64),
            Pairs: lambda: Pairs(pairs=tuple(Pair(clean=c, corrupted=draw(16), answer=c[3], distractor=c[5])
                                             for c in clean))}  # fmt: skip
    return made[asked.subject]()


def measured(model: Any, name: str, params: dict[str, Any]) -> list[Any]:
    """Return the row of an analysis."""
    from backend import costs
    from backend.analyses import registry
    from backend.contract import Corpus
    from backend.models.probe import counted_bytes
    from backend.runs import corpora

    asked = registry()[name]
    subject, given = subject_of(asked, model.card), asked.params(**params)
    if asked.work is None:
        raise ValueError(f"{name} declares no work")
    work = asked.work(model.card, subject, given)
    told, size = costs.seconds(work, model.card.probe), costs.memory(work, model.card.probe)
    rows = corpora.rows_of(model.card, subject) if isinstance(subject, Corpus) else subject
    run = lambda: asked.compute(model, rows, given, lambda fraction, words: None)  # noqa: E731
    began = time.perf_counter()
    run()
    spent, peak = time.perf_counter() - began, float("nan")
    if spent < LONG:
        with counted_bytes() as counter:
            run()
        peak = counter.peak
    numbers = [told, spent, told / spent, size / 1e6, peak / 1e6, size / peak, os.getloadavg()[0]]
    return [name, *(f"{n:.3g}" for n in numbers)]


def main(folder: str) -> None:
    """Print and write the table."""
    import torch

    from backend import settings
    from backend.contract import parse_spec
    from backend.models.open import open_model
    from backend.models.probe import probe

    torch.set_num_threads(1)
    model = open_model(parse_spec(f"dir:{Path(folder).resolve()}"), settings.load())
    model.card = model.card.model_copy(update={"probe": model.card.probe or probe(model)})
    print(f"\nprobe: {model.card.probe['probe_seconds']:.1f} s\n")  # noqa: T201
    head(*COLUMNS)
    rows = []
    for name, params in ASKED:
        rows.append(measured(model, name, params))
        line(*rows[-1])
    with OUT.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main(sys.argv[1])
