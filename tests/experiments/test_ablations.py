"""The ablations: the other parametrisation of the noise, what the arms change, and what intervals of differences hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student
from torch.distributions import kl_divergence

import pvae_pyro as pv
from experiments.ablations import arms, claims, publish
from experiments.ablations.arms import METRICS
from experiments.ablations.differences import BATCHES, borrowed_errors, differences
from experiments.ablations.noise_site import NoiseGuide, NoiseSite, expected_at
from experiments.filling import fill
from pvae_pyro.inference.cells import CellStore
from pvae_pyro.story import Cells
from pvae_pyro.story.latents import StructuralNormal

HERE = Path(arms.__file__).parent


@pytest.fixture(scope="module")
def train() -> pv.Screen:
    made = pv.simulate.simulate(seed=1, targets=6, doubles=3, genes=40, controls=200, cells_per_condition=80).adata
    screen = pv.Screen.from_anndata(made, "condition", batch_key="batch")
    return pv.split_screen(screen, "singles").train


@pytest.fixture(scope="module")
def starts(train: pv.Screen) -> tuple[pv.Fit, pv.Fit]:
    """The closed-form start with the default guide and with the noise as the site."""
    settings = pv.FitSettings(epochs=0)
    centred = pv.fit(pv.PerturbedVAE(), train, settings=settings, progress=False)
    guide = NoiseSite(expected=expected_at(centred))
    return centred, pv.fit(pv.PerturbedVAE(), train, guide=guide, settings=settings, progress=False)


@pytest.fixture(scope="module")
def cells(train: pv.Screen) -> Cells:
    return CellStore(train, np.arange(train.n_cells), "expression", torch.device("cpu")).take(np.arange(50, train.n_cells, 7))


def test_kl_of_noise_is_that_of_the_latents() -> None:
    torch.manual_seed(0)
    graph = torch.tril(torch.randn(3, 3), -1)
    q = StructuralNormal(torch.randn(3), graph, torch.rand(3) + 0.5)
    p = StructuralNormal(torch.randn(3), graph, torch.rand(3) + 0.5)
    spread = torch.linalg.inv(torch.eye(3) - graph)

    def dense(law: StructuralNormal) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(law.mean, spread @ torch.diag(law.scale**2) @ spread.T)

    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(dense(q), dense(p)), rtol=1e-4, atol=1e-4)


def test_both_parametrisations_start_at_the_same_posterior(starts: tuple[pv.Fit, pv.Fit], cells: Cells) -> None:
    means = []
    for fit in starts:
        _, guide = fit.modules()
        g = guide.assemble(guide.central_values())
        z_b, _ = guide.background(cells)
        means.append(guide.responsive(cells, z_b, g)[1].detach())
    assert float(means[0].abs().max()) > 1
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-4)


def test_the_free_encoder_does_not_follow_the_effects(starts: tuple[pv.Fit, pv.Fit], cells: Cells) -> None:
    moved = []
    for fit in starts:
        _, guide = fit.modules()
        values = guide.central_values()
        z_b, _ = guide.background(cells)
        beyond = []
        for w in (values["effects"], torch.zeros_like(values["effects"])):
            prior, mean, _ = guide.responsive(cells, z_b, guide.assemble(values | {"effects": w}))
            beyond.append(mean - prior)
        moved.append(float((beyond[0] - beyond[1]).detach().abs().max()))
    assert moved[0] > 0.5  # default: what effects lose is a surprise to the encoder
    assert moved[1] < 1e-4


def test_what_the_encoder_expects_is_of_one_condition(starts: tuple[pv.Fit, pv.Fit], cells: Cells) -> None:
    _, guide = starts[1].modules()
    assert isinstance(guide, NoiseGuide)
    g, (z_b, _) = guide.assemble(guide.central_values()), guide.background(cells)
    before = guide.law(cells, z_b, g)[1].mean
    one = int(cells.condition[0])
    with torch.no_grad():
        guide.gain_expected[one] += 1
    changed = (guide.law(cells, z_b, g)[1].mean - before).abs().amax(1)
    assert bool((changed[cells.condition == one] > 0.1).all())
    assert float(changed[cells.condition != one].detach().max()) == 0


def test_both_parametrisations_have_one_bound(starts: tuple[pv.Fit, pv.Fit]) -> None:
    # the same program and the same posterior: one sample's noise apart
    losses = [fit.history["held_out_loss"][0] for fit in starts]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_random_start_has_as_many_latents_as_the_closed_form(train: pv.Screen, starts: tuple[pv.Fit, pv.Fit]) -> None:
    fit = arms.fitted(arms.Arm(warm_start=False), train, seed=0, epochs=0)
    assert fit.state["story.effect_scale"].shape == starts[0].state["story.effect_scale"].shape
    assert not torch.equal(fit.state["story.decoder.responsive"], starts[0].state["story.decoder.responsive"])


def test_every_arm_but_the_default_changes_something() -> None:
    named = arms.variants()
    what = {n: (pv.PerturbedVAE(**a.parts), a.noise_site, a.warm_start) for n, a in named.items()}
    assert [n for n, made in what.items() if made == (pv.PerturbedVAE(), False, True)] == [arms.DEFAULT]
    sums = {a.parts["responsive"] + a.parts["background"] for n, a in named.items() if n.startswith("sizes")}
    assert sums == {10, 35, 75, 105}
    known = {name for claim in claims.CLAIMS for name in (claim.arm, claim.reference)} | set(claims.COLLAPSING)
    assert known - {"alignment: none"} <= set(named)


def results(gaps: dict[str, list[float]]) -> pd.DataFrame:
    """Made scores: 35 pairs around 4, arms `gaps` away from the default in each seed, pairs agreeing but for a little."""
    generator = np.random.default_rng(0)
    rows = []
    base, wiggle = generator.normal(4, 1, 35), generator.normal(0, 0.01, 35)
    for arm, by_seed in {"default": [0.0, 0.0, 0.0], **gaps}.items():
        for seed, gap in enumerate(by_seed):
            for pair in range(35):
                at = base[pair] + (gap + wiggle[pair] if arm != "default" else 0)
                rows += [(arm, f"A+B{pair:02d}", metric, seed, at, 1) for metric in arms.METRICS]
            rows += [(arm, "model, odd pairs", "l2", seed, 4.0, 1)]
    return pd.DataFrame(rows, columns=["arm", "what", "metric", "seed", "value", "seconds"])


def test_differences_hold_the_noise_of_pairs_and_of_seeds() -> None:
    table = differences(results({"one": [0.3, 0.3, 0.3], "seeds apart": [-0.1, 0.3, 0.7], "same": [0, 0, 0], "single": [0.3]}))
    rows = table[table["metric"] == "l2"].set_index("method")
    assert rows["outcome"].to_dict() == {"one": "worse", "seeds apart": "no difference beyond noise",
                                         "same": "no difference beyond noise", "single": "worse"}  # fmt: skip
    assert rows.loc["one", "difference"] == pytest.approx(rows.loc["single", "difference"])
    # 4.303 sd / sqrt(3), Student's t of two degrees of freedom; pairs add next to nothing
    above = rows.loc["seeds apart", "high"] - rows.loc["seeds apart", "difference"]
    assert above == pytest.approx(4.3027 * 0.4 / 3**0.5, rel=0.01)
    assert rows["seeds"].to_dict() == {"one": 3, "seeds apart": 3, "same": 3, "single": 1}


def test_claims_are_judged_by_the_paired_interval() -> None:
    gaps = {"sizes: 20 + 85": 0.0, "sizes: 53 + 52": 0.3, "sizes: 85 + 20": -0.3, "sizes: 2 + 8": 1.0}
    made = results({arm: [gap] * 3 for arm, gap in gaps.items()})
    verdicts = [line.rsplit("|", 2)[1].strip() for line in claims.claim_table(made).splitlines()[2:]]
    assert verdicts == ["yes", "no", "no"]


def test_the_readme_holds_the_tables_of_the_results(tmp_path: Path) -> None:
    text, copy = (HERE / "README.md").read_text(encoding="utf-8"), tmp_path / "README.md"
    copy.write_text(text, encoding="utf-8")
    fill(copy, "ablations", publish.tables(pd.read_csv(HERE / "results.csv")))
    assert copy.read_text(encoding="utf-8") == text


def test_an_arm_of_one_seed_borrows_the_spread_of_the_defaults_seeds() -> None:
    means = {0: 4.0, 1: 4.1, 2: 4.3}
    each = [(metric, seed, i) for metric in METRICS for seed in means for i in range(3)]
    rows = [("default", f"A+B{i}", metric, seed, means[seed] + i) for metric, seed, i in each]
    pairs = pd.DataFrame(rows, columns=["arm", "what", "metric", "seed", "value"])
    found = borrowed_errors(pairs)
    # two fits, each as far off as seeds are: sd x sqrt(2); Student's t of three seeds in units of that of the batches
    wider = student.ppf(0.975, 2) / student.ppf(0.975, BATCHES - 1)
    assert found["l2"] == pytest.approx(np.std(list(means.values()), ddof=1) * np.sqrt(2) * wider)
    assert np.isnan(borrowed_errors(pairs.query("seed == 0"))["l2"])
