"""python -m experiments.norman.publish [--out DIR]: results.csv into tables.md, the tables of README.md and the figure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..filling import fill
from .arms import CONTROL_CELLS, MEASURED, MODEL, MODEL_CELLS, PERFECT, START
from .published import DISCREPANCY_VAE, RMSE_R2, SINGLE_DOUBLE, TABLE_14
from .results import DATA, OURS, Results, table
from .verdict import lead, verdict

HERE = Path(__file__).parent
FIGURE = "scores.png"
BRIEF = [PERFECT, MODEL_CELLS, CONTROL_CELLS, "no change", "mean of the training perturbations", "additive",
         "0.85 x shrunk additive", START, MODEL, MEASURED]  # fmt: skip
PEEKING = {PERFECT, MEASURED}  # their pseudobulk is the measured one
VARIANTS = {"no-alignment": "ours, mean, no alignment", "paper-sizes": "ours, mean, d_r 20 and d_b 85"}
LIKE = {"additive": "Additive", MODEL: "PerturbedVAE", "low-rank additive": "PCA + Additive"}


def legacy(r: Results, methods: Sequence[str] = tuple(OURS), data: Sequence[str] | None = None) -> str:
    """Table 2: relative cell RMSE and population R2 of doubles, published beside ours, worst first."""
    f = r.values("arithmetic", "published: Additive", "f")
    derived = {m: f"{float((k * f.iloc[0]) ** 0.5):.3f} (derived)" for m, k in ((MEASURED, 1), (PERFECT, 2)) if len(f)}
    shown_data = r.data if data is None else data
    titles = ["doubles: relative cell RMSE, R2", "published, full screen"]
    for name in shown_data:
        titles += [f"{DATA[name]}: RMSE", "above the floor", "R2", "MMD"]
    others = {name: pair for name, pair in RMSE_R2.items() if name not in LIKE.values()}
    rows = [[f"*{name}*", ", ".join(pair), *["-"] * 4 * len(shown_data)] for name, pair in others.items()]
    for method in methods:
        like = LIKE.get(method)
        shown = ", ".join(RMSE_R2[like]) if like in RMSE_R2 else derived.get(method, "-")
        shown = f"{TABLE_14['Additive']['rmse_cell_rel']}, -" if method == "additive" else shown
        row = [OURS[method], shown]
        for name in shown_data:
            mine, floor = (r.of(name, one, "doubles", "rmse_cell_rel") for one in (method, MEASURED))
            above = "-" if mine.empty or floor.empty else f"{mine.mean() - floor.mean():.4f}"
            row += [r.text(name, method, "doubles", "rmse_cell_rel"), above]
            row += [r.text(name, method, "doubles", metric) for metric in ("r2_mean_legacy", "mmd_legacy")]
        rows.append(row)
    return table(titles, rows if methods == tuple(OURS) else [row for row in rows if not row[0].startswith("*")])


def settings(r: Results) -> str:
    """Tables 4, 12 and 13: relative cell RMSE of held-out cells of singles, and of doubles."""
    titles = ["relative cell RMSE", "published: singles", "doubles"]
    for name in r.data:
        titles += [f"{DATA[name]}: singles", "doubles"]
    rows = [[f"*{name}*", *pair, *["-"] * 2 * len(r.data)] for name, pair in SINGLE_DOUBLE.items()]
    rows.append(["*PerturbedVAE, d_r = d_b or d_r > d_b*", "0.4084", "0.4627", *["-"] * 2 * len(r.data)])
    for method, model, shown in [(m, "default", OURS[m]) for m in BRIEF] + [(MODEL, m, VARIANTS[m]) for m in VARIANTS]:
        cells = [r.text(name, method, c, "rmse_cell_rel", model) for name in r.data for c in ("singles", "doubles")]
        if set(cells) != {"-"}:
            rows.append([shown, "-", "-", *cells])
    return table(titles, rows)


def variants(r: Results) -> str:
    """The legacy metrics of doubles in all their variants; DE: the 20 genes most changed in the test cells."""
    metrics = {
        "rmse_cell_rel": "relative cell RMSE, batches", "rmse_cell_rel_whole": "whole condition", "rmse_cell_rel_de": "DE genes",
        "rmse_cell_raw": "not relative", "r2_mean_legacy": "R2, batches", "r2_mean_legacy_whole": "whole condition",
        "r2_mean_legacy_de": "DE genes", "r2_mean_whole": "right order, not clipped", "r2_pearson": "squared Pearson",
        "mmd_legacy": "MMD, sigma 1000",
    }  # fmt: skip
    rows = [["*Discrepancy-VAE, released*", *(DISCREPANCY_VAE.get(metric, "-") for metric in metrics)]]
    for name in r.data:
        rows += [[f"{DATA[name]}: {OURS[m]}", *(r.text(name, m, "doubles", metric) for metric in metrics)] for m in BRIEF]
    return table(["doubles", *metrics.values()], rows)


def pseudobulk(r: Results) -> str:
    """Tables 3 and 14: doubles, all genes."""
    metrics = ("l2", "delta_pearson", "rmse_pb_rel", "r2_mean_whole", "r2_delta", "rmse_cell_rel", "r2_cells")
    titles = ["doubles, all genes", "L2", "DeltaPearson", "RMSE pb, relative", "R2 pb", "R2 of shifts", "cell RMSE", "cell R2"]
    r2 = {"Additive": ("0.6431", "negative"), "GEARS": ("0.9730", "negative"), "PerturbedVAE": ("0.9965", "0.9840")}
    rows = [[f"*{name}, published*", f"{t['l2']:.2f}", f"{t['delta_pearson']:.3f}", f"{t['rmse_pb_rel']:.4f}", r2[name][0], "-",
             f"{t['rmse_cell_rel']:.4f}", r2[name][1]] for name, t in TABLE_14.items()]  # fmt: skip
    for name in r.data:
        for method in BRIEF:
            cells = [r.text(name, method, "doubles", m) for m in metrics]
            rows.append([f"{DATA[name]}: {OURS[method]}", *(["-"] * 5 + cells[5:] if method in PEEKING else cells)])
    return table(titles, rows)


def honest(r: Results, methods: Sequence[str] = tuple(OURS), data: Sequence[str] | None = None) -> str:
    """Metrics of pseudobulks on the doubles that nothing was tuned on, and what two metrics of cells see."""
    shown_data = r.data if data is None else data
    titles = ["odd doubles; the last two: doubles", "L2", "delta Pearson", "MSE ratio", "CRPS", "90 % covers"]
    titles += ["energy distance", "spread ratio"]
    bulk = {"floor: perfect prediction": "floor: perfect mean", "floor: measured replicate": "floor: measured replicate"}
    bulks = ("l2", "delta_pearson", "mse_ratio", "crps", "coverage_90")
    rows: list[list[str]] = []
    for name in shown_data:
        prefix = f"{DATA[name]}: " if len(shown_data) > 1 else ""
        for method in [*methods, *bulk]:
            cells = [r.text(name, method, "odd doubles", m) for m in bulks]
            cells += [r.text(name, method, "doubles", m) for m in ("energy_distance", "spread_ratio")]
            rows.append([prefix + (OURS.get(method) or bulk[method]), *(["-"] * 5 + cells[5:] if method in PEEKING else cells)])
    if len(shown_data) == 1:
        titles[0] = f"{DATA[shown_data[0]]}, {titles[0]}"
    return table(titles, rows)


def synthetic(r: Results) -> str:
    """The arithmetic of the legacy error on synthetic cells whose law is known."""
    rows = []
    for what in r.rows.loc[r.rows["arm"] == "arithmetic", "what"].unique():
        if what.startswith("synthetic") and "formula" not in what:
            rmse, distance = (r.values("arithmetic", what, m).mean() for m in ("rmse_cell_rel", "energy_distance"))
            rows.append([what.removeprefix("synthetic: "), f"{rmse:.3f}", f"{distance:.2f}"])
    for name, metric in (("true mean, sqrt(f)", "floor"), ("perfect sampler, sqrt(2 f)", "perfect_sampler")):
        rows += [[f"formula: {name}", f"{v:.3f}", "-"] for v in r.values("arithmetic", "synthetic: formula", metric)]
    return table(["synthetic cells", "relative cell RMSE", "energy distance"], rows)


def checks(r: Results) -> str:
    """What the checks of the files found."""
    titles = ["file", *(DATA[name] for name in r.data)]
    whats = r.rows.loc[r.rows["what"] == "file", "metric"].unique()
    cells = [[r.values(f"{name} rules", "file", what) for name in r.data] for what in whats]
    shown = [["-" if v.empty else f"{v.iloc[0]:g}" for v in found] for found in cells]
    return table(titles, [[what.replace("_", " "), *row] for what, row in zip(whats, shown, strict=True)])


def seconds(r: Results) -> str:
    """How long each arm took."""
    first = r.rows.drop_duplicates(["arm", "seed"])
    groups = [(str(arm), int(t.min()), int(t.max())) for arm, t in first.groupby("arm", sort=False)["seconds"]]
    times = [(arm, f"{low}" if low == high else f"{low} to {high}") for arm, low, high in groups]
    versions = f"{', '.join(sorted(set(first['date'])))}, PyTorch {', '.join(sorted(set(first['torch'])))}"
    return "Seconds, one thread: " + ", ".join(f"{arm} {time}" for arm, time in times) + f" ({versions})."


def tables(r: Results) -> dict[str, str]:
    """Every table by the name of its marker."""
    brief = [m for m in BRIEF if m != CONTROL_CELLS]
    made = {"brief": legacy(r, BRIEF, r.data[:1]), "honest-brief": honest(r, brief, r.data[:1]), "seconds": seconds(r)}
    made |= {"synthetic": synthetic(r), "legacy": legacy(r), "settings": settings(r), "pseudobulk": pseudobulk(r)}
    made |= {"honest": honest(r), "checks": checks(r), "variants": variants(r)}
    return made | ({"lead": lead(r), "verdict": verdict(r)} if "semi-synthetic" in r.data else {})


def page(r: Results) -> str:
    """tables.md: the paper's tables, published rows in italics."""
    made = tables(r)
    parts = [
        "# The Norman protocol: tables",
        "Made by `python -m experiments.norman.publish`. Published rows (*italics*) are of the full screen with 5,000 genes and\n"
        "are not on the scale of other columns. **Semi-synthetic** Norman: real effects of pseudobulks, denoised; simulated\n"
        "cells. ± is half the range over seeds.",
        "## Table 2: doubles\n\n" + made["legacy"],
        "## Tables 4, 12 and 13: singles and doubles, settings\n\n" + made["settings"],
        "## Tables 3 and 14\n\n" + made["pseudobulk"],
        "## Variants of the legacy metrics\n\n" + made["variants"],
        "## Honest metrics\n\n" + made["honest"],
        "## The arithmetic of the legacy error\n\n" + made["synthetic"],
        "## Files\n\n" + made["checks"],
        made["seconds"],
    ]
    return "\n\n".join(parts) + "\n"


def figure(r: Results, path: Path) -> None:
    """The same predictions by the legacy error and by two honest ones; open marks are samples of cells, full ones means."""
    name = r.data[0]
    panels = {
        "rmse_cell_rel": 'relative cell RMSE\n(legacy; smaller is "better")',
        "r2_mean_legacy": 'population R2 of batches\n(legacy; larger is "better")',
        "energy_distance": "energy distance of cells\n(smaller is better)",
    }
    drawn, axes = plt.subplots(1, len(panels), figsize=(9.5, 3.4), layout="constrained", sharey=True)
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for at, method in enumerate(BRIEF):
            found = r.of(name, method, "doubles", metric)
            mark, face = ("s", "white") if method in (PERFECT, MODEL_CELLS, CONTROL_CELLS) else ("o", "black")
            axis.plot(found, [at] * len(found), mark, color="black", markersize=6, markerfacecolor=face)
        axis.set_xlabel(title, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(BRIEF)), [OURS[m] for m in BRIEF], fontsize=8)
    axes[0].invert_yaxis()
    drawn.suptitle(f"{DATA[name]}, doubles: squares are cells, dots are one mean for every cell", fontsize=9)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def publish(out: Path) -> None:
    """tables.md and the figure beside results.csv, and the tables of a README.md there."""
    r = Results(out / "results.csv")
    (out / "tables.md").write_text(page(r), encoding="utf-8")
    if not r.data:
        return
    figure(r, out / FIGURE)
    readme = out / "README.md"
    if readme.exists():
        fill(readme, "norman", tables(r))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.norman.publish", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.csv")
    publish(parser.parse_args().out)


if __name__ == "__main__":
    main()
