"""The words of the Training and Phase diagram pages that no analysis and no metric defines, for the glossary."""

from __future__ import annotations

#: term -> what it means here; sources: backend/maths/transitions.py, gates.py, verdicts.py
TRANSITIONS = {
    "transition": "A change of a logged quantity that is faster than its surroundings in ln step and larger than runs "
                  "without one show. A change that takes more than about one unit of ln step is none.",
    "smooth": "Neither a turn nor a jump describes the curve enough better than one smooth line does.",
    "kink": "The slope turns at a step; the value itself does not jump. Written so where one step's break in slope "
            "describes the curve best (by BIC).",
    "rapid crossover": "The value goes from one level to another within a short stretch of ln step (BIC). Of one run "
                       "nothing more can be said: whether it is a phase transition needs models of several sizes.",
    "size-sharpening crossover": "A rapid crossover whose width shrinks as the model grows: over three sizes or more, "
                                 "the exponent of width against parameters is below 0 with its whole interval (95 %).",
    "width": "How long a change takes, in ln step: a width of 0.1 is about a tenth of the step at which it happens.",
    "interval": "Where the middle of the change lies, at 90 %. Not located well: the interval is more than twice the "
                "width and more than half a unit of ln step.",
    "alarm": "The step at which the search, without looking at any later one, first says that there is a change. It "
             "never moves afterwards, while step and interval may sharpen.",
    "delay": "Alarm minus the middle of the change, in steps. Early (below 0) where it rang before the middle: half of "
             "a change can be enough to know it.",
    "exogenous": "The learning rate was changed within the interval or shortly before it: the change may come from "
                 "there and not from what the model learned.",
    "metric-induced": "Every quantity that shows the change is a step-like measure (such as accuracy) whose continuous "
                      "twin (such as loss) does not show it: the measure may have made it (Schaeffer et al., 2023).",
}  # fmt: skip


def fitting(find: str) -> dict[str, str]:
    """Return the terms in which a lower-case text occurs."""
    return {t: m for t, m in TRANSITIONS.items() if find in f"{t} {m}".lower()}
