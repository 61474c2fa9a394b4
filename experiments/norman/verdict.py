"""What the results say, in one paragraph and in a table of what was expected and found."""

from __future__ import annotations

from .arms import MEASURED, MODEL, MODEL_CELLS, PERFECT
from .published import TABLE_14
from .results import Results, table

DATA = "semi-synthetic"
BEST_RULE = "0.85 x shrunk additive"


def lead(r: Results) -> str:
    """The first numbers of the README: what the legacy error says of samples and of means."""
    names = ("perfect sampler", "its mean, collapsed", "mean 10 % too large")
    perfect, mean, wrong = (r.values("arithmetic", f"synthetic: {n}", "rmse_cell_rel").mean() for n in names)
    cells, same, floor = (_doubles(r, m) for m in (PERFECT, "no change", MEASURED))
    lines = [
        f"On synthetic cells of a known law the sampler scores {perfect:.3f}, the mean repeated for every cell {mean:.3f}, and a",
        f'mean that is 10 % wrong {wrong:.3f}; smaller is "better". On doubles of the **semi-synthetic** Norman screen other',
        f'cells of the very condition score {cells:.3f}, the control mean for every cell ("no change") {same:.3f}, and the',
        f"measured mean {floor:.3f}: the metric asks for means, and has {same - floor:.3f} of room between knowing nothing and",
        "knowing all.",
    ]
    return "\n".join(lines)


def verdict(r: Results) -> str:
    """What was expected, what was found, and what follows, one row a question."""
    rows = [*_arithmetic(r), *_model(r)]
    return table(["what", "expected", "found", "verdict"], rows)


def _doubles(r: Results, method: str, metric: str = "rmse_cell_rel", conditions: str = "doubles") -> float:
    return float(r.of(DATA, method, conditions, metric).mean())


def _arithmetic(r: Results) -> list[list[str]]:
    names = ("perfect sampler", "its mean, collapsed")
    perfect, mean = (r.values("arithmetic", f"synthetic: {n}", "rmse_cell_rel").mean() for n in names)
    ratios = {"synthetic cells": perfect / mean, "semi-synthetic doubles": _doubles(r, PERFECT) / _doubles(r, MEASURED)}
    first, second = (r.values("arithmetic", f"published: {n}", "f").mean() for n in ("Additive", "PerturbedVAE"))
    met = {what: "met" if abs(v - 2**0.5) < 0.02 else "not met" for what, v in ratios.items()}
    rows = [[f"perfect sampler / true mean, {w}", "sqrt(2) = 1.414", f"{v:.3f}", met[w]] for w, v in ratios.items()]
    what, told = "share f of cell variance behind published Additive, PerturbedVAE", "met: as if both were scored as means"
    return [*rows, [what, "one value", f"{first:.4f}, {second:.4f}", told if abs(first - second) < 0.002 else "not met"]]


def _model(r: Results) -> list[list[str]]:
    floor = r.values("arithmetic", "published: Additive", "f").mean() ** 0.5
    theirs = [TABLE_14[name]["rmse_cell_rel"] - floor for name in ("PerturbedVAE", "Additive")]
    ours = [_doubles(r, m) - _doubles(r, MEASURED) for m in (MODEL, "additive")]
    odd = [[_doubles(r, m, k, "odd doubles") for k in ("l2", "delta_pearson")] for m in (MODEL, "additive")]
    published = [f"{TABLE_14[n]['l2']:.2f}, {TABLE_14[n]['delta_pearson']:.3f}" for n in ("PerturbedVAE", "Additive")]
    ahead = "ours is ahead of additive", "ours is behind additive"
    sampled, mean = ([_doubles(r, m, k) for k in ("rmse_cell_rel", "energy_distance")] for m in (MODEL_CELLS, MODEL))
    disagree = sampled[0] > mean[0] and sampled[1] < mean[1]
    both = [r.values(f"{DATA} {arm}", f"{MODEL} [doubles]", "rmse_cell_rel") for arm in ("no-alignment", "default")]
    cost = both[0].iloc[0] - both[1].iloc[0] if min(map(len, both)) else float("nan")  # the first is seed 0
    small = [[float(r.of("real-subset", m, "doubles", k).mean()) for k in ("l2", "rmse_cell_rel")] for m in (MODEL, BEST_RULE)]
    level = abs(small[0][0] - small[1][0]) < 0.05
    return [
        ["cell RMSE above the floor: model, additive", f"published {theirs[0]:.3f}, {theirs[1]:.3f}",
         f"{ours[0]:.4f}, {ours[1]:.4f}", ahead[ours[0] > ours[1]]],
        ["odd doubles, L2 and delta Pearson: model; additive", f"published {'; '.join(published)}",
         "; ".join(f"{a:.2f}, {b:.3f}" for a, b in odd), ahead[odd[0][0] > odd[1][0]]],
        ["cell RMSE that no alignment costs on doubles, seed 0", "published 0.015", f"{cost:.4f}",
         "as published" if cost > 0.005 else "not reproduced"],
        ["new cells; their mean: cell RMSE, energy distance", "the two disagree",
         f"{sampled[0]:.3f}, {sampled[1]:.2f}; {mean[0]:.3f}, {mean[1]:.2f}", "met" if disagree else "not met"],
        [f"real subset, L2 and cell RMSE: model; {BEST_RULE}", "five doubles decide little",
         "; ".join(f"{a:.2f}, {b:.4f}" for a, b in small), "level" if level else "apart"],
    ]  # fmt: skip
