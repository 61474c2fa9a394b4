"""What a fit says of itself, in words: a level, a sentence and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from ..guides import SampledGuide
from ..labels import listing
from ..screen import CONTROL, ConditionSummary, Screen
from .composing import FEWEST

if TYPE_CHECKING:
    from .fitting import Fit

Level = Literal["fine", "look", "do not trust"]
USED = 0.01  # variance between cells of E[z_b | x] below which a background latent says nothing of them; its prior's is 1
DRAWS = 400  # that Pareto k is read from
WIDE, MANY = 0.97, 100  # coverage above which 90 % intervals are called wide, and the means that it takes to say so


@dataclass(frozen=True)
class Finding:
    """One judgement about a fit."""

    topic: str
    level: Level
    sentence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"[{self.level}] {self.topic}: {self.sentence}" + (f" {self.advice}" if self.advice else "")


def diagnose(fit: Fit, screen: Screen | None = None) -> tuple[Finding, ...]:
    """All findings, in this order: batches, own conditions, held-out cells, leakage, convergence, gates, latents that nothing
    uses, restarts, nearness to the exact posterior, what the intervals of combinations rest on."""
    found = [_batches(fit), _own_conditions(fit), _held_out_cells(fit), *_leakage(fit), _convergence(fit), *_gates(fit),
             *_collapse(fit), _restarts(fit), _importance(fit, screen), _combinations(fit)]  # fmt: skip
    return tuple(f for f in found if f is not None)


def graded(value: float, look: float, bad: float) -> Level:
    """Fine below `look`, do not trust from `bad` on."""
    return "fine" if value < look else "look" if value < bad else "do not trust"


def _batches(fit: Fit) -> Finding | None:
    """Conditions whose cells no chain of shared batches links to control: their effects and the batches' are one number."""
    if len(fit.batches) < 2:
        return None
    met = sparse.csr_matrix(fit.batch_counts > 0)
    _, part = csgraph.connected_components(sparse.block_array([[None, met], [met.T, None]]), directed=False)
    control = fit.conditions.index(CONTROL)
    apart = [name for name, one in zip(fit.conditions, part, strict=False) if one != part[control]]
    text = "conditions and control share batches." if not apart else (
        f"{len(apart)} of {len(fit.conditions) - 1} conditions share no batch with control ({listing(apart, 3)}): what their "
        "targets do cannot be told from what the batches do.")  # fmt: skip
    advice = "Fit without a batch key if batches hardly differ, or measure control cells in these batches." if apart else ""
    return Finding("batches", "do not trust" if apart else "fine", text, advice)


def _own_conditions(fit: Fit) -> Finding:
    """The trap of a plain implementation: reconstruction is perfect, prediction from the prior is not."""
    unexplained = unexplained_shift(fit)
    level = graded(unexplained, 0.15, 0.35)
    text = f"{100 * unexplained:.0f} % of the squared shift of its own training conditions is missing from its predictions."
    advice = (
        "The effects were not learnt: predictions of anything else are worse still; use warm_start = true."
        if level != "fine"
        else ""
    )
    return Finding("predicts what it was trained on", level, text, advice)


def unexplained_shift(fit: Fit) -> float:
    """Share of the noise-corrected squared shift of trained conditions that the predictive mean misses."""
    names = [c for c in fit.training.conditions if c != CONTROL]
    posterior = fit.predict(names, draws=20, seed=0)
    mean = posterior.draws("latent_mean").mean(0)[:, fit.active]
    s = fit.training
    rows, control = [s.index(c) for c in names], s.index(CONTROL)
    noise = s.variance[rows] / s.n_cells[rows, None] + s.variance[control] / s.n_cells[control]
    truth = s.mean[rows] - s.mean[control]
    error = (
        (s.mean[rows][:, fit.active] - mean) ** 2 - (s.variance[rows] / s.n_cells[rows, None])[:, fit.active]
    ).sum()
    size = (truth**2 - noise)[:, fit.active].sum()
    return float(np.clip(error / size, 0, 9.99)) if size > 0 else 0.0


def held_out_coverage(fit: Fit, draws: int = 100, seed: int = 0) -> float | None:
    """Share of (condition, gene) pairs whose mean over the held-out cells lies in its 90 % interval; None without such cells.

    Means of few cells: this judges the noise of cells and the trained conditions, not combinations. Of an ensemble the first
    member is judged: the others were trained on some of these cells.
    """
    held_out = fit.validation
    if held_out is None:
        return None
    counts = dict(zip(held_out.conditions, held_out.n_cells.tolist(), strict=True))
    drawn = fit.members[0].predict(list(held_out.conditions), draws=draws, n_cells=counts, seed=seed).draws()
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    seen = _seen(fit, held_out)
    return float(((held_out.mean >= low) & (held_out.mean <= high))[:, seen].mean())


def _seen(fit: Fit, held_out: ConditionSummary) -> NDArray[np.bool_]:
    """Genes (G,) with a count in training and in some held-out cell."""
    return fit.active & (held_out.mean > 0).any(0)


def _held_out_cells(fit: Fit) -> Finding | None:
    share = held_out_coverage(fit)
    if share is None:
        return None
    assert fit.validation is not None
    level = graded(0.9 - share, 0.06, 0.15)
    text = (f"90 % intervals cover {100 * share:.0f} % of the means of {int(fit.validation.n_cells.sum())} cells kept out of "
            "training (a few cells of every trained condition).")  # fmt: skip
    advice = "" if level == "fine" else "Intervals are too narrow for trained conditions already: try another likelihood."
    if share > WIDE and len(fit.validation.conditions) * int(_seen(fit, fit.validation).sum()) >= MANY:
        level, advice = "look", "Intervals are wider than they claim, for trained conditions already: try another likelihood."
    return Finding("calibration on held-out cells", level, text, advice)


def _collapse(fit: Fit) -> list[Finding]:
    """Responsive latents that no target moves, background latents in which cells do not differ: posterior collapse, or more of
    them than the screen can tell apart."""
    active = fit.history["active_units"][-1]
    total = float(np.mean([len(one.state["story.effect_scale"]) for one in fit.members]))
    level = graded(1 - active / total, 0.5, 0.9)
    moved = Finding("latents in use", level, f"targets move {active:.0f} of {total:.0f} responsive latents.",
                    "" if level == "fine" else "The others say nothing: ask for fewer (responsive).")  # fmt: skip
    size = fit.model.background
    used = float(np.mean([(one.controls[:, :size].var(0) > USED).double().mean() for one in fit.members]))
    level = graded(1 - used, 0.5, 0.9)
    text = f"control cells differ in {used * size:.0f} of {size} background latents."
    advice = "" if level == "fine" else "The others are collapsed to their prior: ask for fewer (background)."
    return [moved, Finding("background latents in use", level, text, advice)]


def _restarts(fit: Fit) -> Finding:
    """Share of the variance of predictions that lies between restarts."""
    if len(fit.trained) == 1:
        return Finding("restarts", "look", "one run was made, so whether restarts agree is not known.",
                       "Fit with guide=Ensemble(3) before relying on latents, edges or narrow intervals.")  # fmt: skip
    names = [c for c in fit.conditions if c != CONTROL]
    draws = [one.predict(names, draws=40, seed=0).draws("latent_mean") for one in fit.members]
    between = np.var([d.mean(0) for d in draws], axis=0).mean() - np.mean([d.var(0, ddof=1) / len(d) for d in draws])
    share = float(max(between, 0.0) / (max(between, 0.0) + np.mean([d.var(0, ddof=1) for d in draws])))
    level = graded(share, 0.3, 0.7)
    return Finding("restarts", level, f"{100 * share:.0f} % of the variance of predictions lies between {len(draws)} restarts.",
                   "" if level == "fine" else "Restarts disagree: use the predictions of all, not those of one.")  # fmt: skip


def _importance(fit: Fit, screen: Screen | None) -> Finding:
    from ..prediction.importance import hindrance, usable

    guides = [one.modules()[1] for one in fit.members]
    if sampled := [float(guide.r_hat) for guide in guides if isinstance(guide, SampledGuide) and guide.sampled]:
        grade = graded(max(sampled), 1.05, 1.3)
        return Finding("nearness to the exact posterior", grade,
                       f"globals were sampled; R-hat of the log density over chains is {max(sampled):.2f}.",
                       "" if grade == "fine" else "Chains do not agree: raise burn_in and thin.")  # fmt: skip
    advice = "Rely on intervals as far as their coverage was measured on held-out conditions."
    if problem := hindrance(fit, screen):
        return Finding("nearness to the exact posterior", "look", f"not known: {problem}.", advice)
    assert screen is not None
    k, limit = fit.pareto_k(screen, DRAWS), usable(DRAWS)
    grade = graded(k, limit, np.inf)
    return Finding("nearness to the exact posterior", grade,
                   f"Pareto k of all globals is {k:.1f}; below {limit:.1f} draws can be reweighted to the exact posterior.",
                   "" if grade == "fine" else advice)  # fmt: skip


def _leakage(fit: Fit) -> list[Finding]:
    background, responsive = fit.history["leakage_background"][-1], fit.history["leakage_responsive"][-1]
    first = Finding(
        "background leakage",
        graded(background, 0.02, 0.1),
        f"conditions differ in the background latents by {100 * background:.1f} % of the variance between cells.",
        ""
        if background < 0.02
        else "Part of the perturbation hides in z_b and is lost in predictions: raise the alignment weight.",
    )
    second = Finding(
        "responsive leakage",
        graded(responsive, 0.1, 0.3),
        f"{100 * responsive:.1f} % of the shift of z_r is made by the encoder, not by the effects.",
        "" if responsive < 0.1 else "Effects are behind what cells show: train longer or start warm.",
    )
    return [first, second]


def _convergence(fit: Fit) -> Finding:
    held_out = np.array(fit.history["held_out_loss"])
    if len(held_out) < 4:
        done = f"{len(held_out) - 1} epochs were run"
        if not fit.settings.warm_start:
            return Finding("convergence", "do not trust", f"{done} from a random start: effects were not learnt.",
                           "Raise epochs, or use warm_start = true.")  # fmt: skip
        return Finding("convergence", "look", f"{done}: hardly more than the closed-form start.",
                       "Its predictions are usable; raise epochs for a posterior that has seen the likelihood.")  # fmt: skip
    if np.isnan(held_out).any():
        return Finding(
            "convergence",
            "look",
            "no cells were held out, so overfitting cannot be seen.",
            "Set validation to 0.02.",
        )
    fall = held_out[0] - held_out.min()
    last = abs(held_out[-1] - held_out[-3]) / max(fall, 0.01 * abs(held_out[0]), 1e-9)
    rise = (held_out[-1] - held_out.min()) / max(fall, 0.01 * abs(held_out[0]), 1e-9)
    if rise > 0.2:
        return Finding(
            "convergence",
            "look",
            "the held-out loss rose again after its minimum.",
            "Fewer epochs or a lower learning rate.",
        )
    return Finding("convergence", graded(last, 0.1, 1.0),
                   "the held-out loss has levelled off." if last < 0.1 else "the held-out loss still moves.",
                   "" if last < 0.1 else "Train for more epochs.")  # fmt: skip


def _gates(fit: Fit) -> list[Finding]:
    probabilities = [p for one in fit.members if (p := one.modules()[1].inclusion()) is not None]
    if not probabilities:
        return []
    inclusion = float(np.mean([float(p.mean()) for p in probabilities]))
    level: Level = "look" if not 0.02 < inclusion < 0.98 else "fine"
    return [Finding("gates", level, f"{100 * inclusion:.0f} % of the gates are open on average.",
                    "" if level == "fine" else "Gates collapsed or saturated: compare with normal effects.")]  # fmt: skip


def _combinations(fit: Fit) -> Finding:
    """Combinations inform how effects combine only beside the effects of their targets alone."""
    targets = (fit.design != 0).sum(1)
    alone = (fit.design[targets == 1] != 0).any(0)
    combined = fit.design[targets >= 2] != 0
    usable = int((~(combined & ~alone).any(1)).sum())
    if usable < FEWEST:
        few = f"{usable} of {len(combined)} trained combinations have all their targets measured alone, too few to learn from"
        return Finding(
            "combinations", "look",
            f"{few if len(combined) else 'no combination was trained'}: how effects combine, and how wide intervals of pairs "
            "are, rests on an informed prior.",
            "Hold some measured combinations out and look at their coverage before relying on these intervals.",
        )  # fmt: skip
    level: Level = "fine" if usable >= 10 else "look"
    return Finding("combinations", level, f"{usable} trained combinations inform composition and interaction width.",
                   "" if level == "fine" else "Below ten the informed prior still says more than they do: look at coverage of "
                   "measured combinations that were held out.")  # fmt: skip
