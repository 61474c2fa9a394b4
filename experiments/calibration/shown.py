"""What a report says of calibration, kept for the odd doubles: python -m experiments.calibration.shown [--smoke].

Writes shown.csv (the rows of a report's calibration.csv, for singles and doubles in training) and the figures named shown-*.png.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd

import pvae_pyro as pv
from pvae_pyro.evaluation.baselines import ADDITIVE, ORACLE
from pvae_pyro.evaluation.bootstrap import interval, resample_ratios
from pvae_pyro.inference.versions import versions
from pvae_pyro.report.calibrating import Calibration, calibrate
from pvae_pyro.report.calibration_text import calibration_figures
from pvae_pyro.report.plots import save
from pvae_pyro.report.scoring import MODEL, Scored, score, unit

from ..filling import markdown
from ..swap.arms import DRAWS, _norman, _pairs

HERE = Path(__file__).parent
REGIMES = {"singles": "singles trained", "doubles": "even doubles trained, too"}
FIGURES = ("pit", "signs", "risk", "interactions")
REFERENCE = f"probabilistic {ADDITIVE}{ORACLE}"  # its widths have seen the scored pairs, ours have not


def found(regime: str, settings: pv.FitSettings, seed: int = 0) -> tuple[Scored, Calibration, str]:
    """Scores and calibration of the default on the odd doubles of the semi-synthetic Norman screen, and the unit of means."""
    screen = _norman()
    odd = _pairs(screen, "odd")
    split = pv.split_screen(screen, "singles") if regime == "singles" else pv.split_screen(screen, "all", odd)
    fit = pv.fit(pv.PerturbedVAE(), split.train, settings=settings, seed=seed, progress=False)
    assert split.held_out is not None
    scored = score(fit, split.held_out.summary().restrict(odd), DRAWS, seed)
    return scored, calibrate(scored, seed), unit(fit)


def rows(scored: Scored, calibration: Calibration) -> pd.DataFrame:
    """Those of calibration.csv, and CRPSS: 1 - CRPS / that of `REFERENCE`, both means over pairs."""
    own, other = (scored.values(name, "crps") for name in (MODEL, REFERENCE))
    gained = (other - own).to_numpy()[:, None], other.to_numpy()[:, None]
    low, high = interval(resample_ratios(*gained))
    skill = {"quantity": "crpss", "method": MODEL, "value": 1 - own.mean() / other.mean(), "conditions": len(own),
             "low": low[0], "high": high[0]}  # fmt: skip
    return pd.concat([calibration.rows(), pd.DataFrame([skill])], ignore_index=True)


def table(kept: pd.DataFrame) -> str:
    """Markdown: a measure a row, a regime a column."""
    regimes = [regime for regime in REGIMES if regime in set(kept["regime"])]
    cells = {regime: _measures(kept[kept["regime"] == regime]) for regime in regimes}
    names = list(dict.fromkeys(name for one in cells.values() for name in one))
    lines = [[name, *(cells[r].get(name, "-") for r in regimes)] for name in names]
    return markdown(["odd doubles, seed 0", *(REGIMES[r] for r in regimes)], lines)


def _measures(kept: pd.DataFrame) -> dict[str, str]:
    out = {}
    for metric, name in (("skill", "interactions: skill (0 additive, 1 perfect)"), ("slope", "slope of measured on predicted"),
                         ("auprc", "AUPRC of clear ones"), ("prevalence", "the same by chance"),
                         ("sign_accuracy", "sign right among the clear ones")):  # fmt: skip
        for group in ("all", "resistant"):
            one = kept[(kept["quantity"] == "interaction") & (kept["label"] == metric) & (kept["group"] == group)]
            if len(one):
                out[name + (", resistant pairs" if group == "resistant" else "")] = _ranged(one.iloc[0])
    calls = kept[kept["quantity"] == "interaction_call"]
    for call, size in (("sign", "0"), ("synergy", "0.1"), ("synergy", "0.25"), ("opposite", "0.1"), ("opposite", "0.25")):
        one = calls[(calls["group"] == call) & (calls["label"] == size)]
        word = {"sign": "P(e > 0)", "synergy": f"P(synergy, e > {size})", "opposite": f"P(e < -{size})"}[call]
        out[f"{word}: mean gap between said and seen, over tenths"] = f"{_gap(one):.3f}"
        sure = one[one["x"] > 0.5]
        if len(sure):
            said, seen = ((sure[c] * sure["cases"]).sum() / sure["cases"].sum() for c in ("x", "value"))
            out[f"{word}: where more than 0.5 was said"] = f"{said:.2f} said, {seen:.2f} seen ({int(sure['cases'].sum())} genes)"
    out["P(gene goes up): mean gap"] = f"{_gap(kept[kept['quantity'] == 'sign']):.3f}"
    pit = kept[(kept["quantity"] == "pit") & (kept["method"] == MODEL)]
    out["PIT: largest gap to uniform"] = f"{pit['value'].abs().max():.3f}" + (
        " (outside of its band)" if ((pit["low"] > 0) | (pit["high"] < 0)).any() else " (inside its band)")  # fmt: skip
    lost = kept[kept["quantity"] == "aurc_lost"].set_index("label")["value"]
    for doubt in ("predicted sd", "largest predicted shift"):
        out[f"risk-coverage by {doubt}: lost of what an oracle gains"] = f"{lost[doubt]:.2f}"
    out["CRPSS against addition with widths fitted on these pairs"] = _ranged(kept[kept["quantity"] == "crpss"].iloc[0])
    return out


def _ranged(row: pd.Series) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _gap(bins: pd.DataFrame) -> float:
    """Mean distance between probability and share, bins weighted by their cases."""
    return float(((bins["x"] - bins["value"]).abs() * bins["cases"]).sum() / bins["cases"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.calibration.shown", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one regime from the closed-form start, nothing written")
    smoke = parser.parse_args().smoke
    parts = []
    for regime in ["singles"] if smoke else REGIMES:
        scored, calibration, measure = found(regime, pv.FitSettings(epochs=0) if smoke else pv.FitSettings())
        stamp = {"regime": regime, "seed": 0, "date": date.today().isoformat(), "torch": versions()["torch"]}
        parts.append(rows(scored, calibration).assign(**stamp))
        if not smoke:
            figures = calibration_figures(calibration, measure)
            for name in FIGURES:
                save(figures[f"calibration_{name}.png"], HERE / f"shown-{regime}-{name}.png")
    kept = pd.concat(parts, ignore_index=True)
    print(table(kept))
    if not smoke:
        kept.to_csv(HERE / "shown.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
