"""The sampler's moves on densities whose posterior is known, and the guide that keeps what was drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Sampled
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.inference.collapsed import CellMoments
from pvae_pyro.inference.moves import Chains, Moves
from pvae_pyro.inference.sampling import JointDensity
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.screen import Screen
from pvae_pyro.story import Gaussian, PerturbedVAE
from pvae_pyro.story.plates import Plates

Density = Callable[[Tensor, Tensor], Tensor]
ScreenOf = Callable[..., Screen]
NONE = (torch.zeros(0).long(), torch.zeros(0).double())
CHAINS = 400


def started(density: Density, slabs: tuple[Tensor, Tensor], x: Tensor, gates: int) -> tuple[Moves, Chains]:
    moves = Moves(density, slabs, seed=1)
    g = torch.zeros(len(x), gates).double()
    chains = Chains(x, g, moves.value(x, g), step=0.5)
    moves.whiten(chains)
    return moves, chains


def test_hamiltonian_moves_find_a_correlated_normal() -> None:
    """From a start ten sds away; moments of 400 independent chains within four Monte Carlo errors."""
    root = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.5, 0.0], [-1.0, 1.0, 0.1]]).double()
    covariance, mean = root @ root.T, torch.tensor([1.0, -2.0, 0.5]).double()
    law = torch.distributions.MultivariateNormal(mean, covariance)
    moves, chains = started(lambda x, g: law.log_prob(x), NONE, (mean + 10 * root.sum(1)).expand(CHAINS, 3).clone(), 0)
    accepted = [moves.hamiltonian(chains) for _ in range(40)]
    assert np.mean(accepted) > 0.7
    sd = covariance.diagonal().sqrt()
    assert ((chains.x.mean(0) - mean).abs() < 4 * sd / math.sqrt(CHAINS)).all()
    z = (chains.x - mean) @ torch.linalg.inv(root).T
    assert (z.T @ z / CHAINS - torch.eye(3).double()).abs().max() < 4 * math.sqrt(2 / CHAINS)


def regression() -> tuple[Density, Tensor]:
    """y = X (s * e) + noise with three gates of prior 0.3 and slabs Normal(0, 1): log density, exact gate probabilities."""
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(12, 3, generator=generator).double()
    design[:, 1] = 0.9 * design[:, 0] + 0.3 * design[:, 1]  # two columns that can stand in for each other
    y = design @ torch.tensor([0.7, 0.0, 0.25]).double() + 0.8 * torch.randn(12, generator=generator).double()

    def density(x: Tensor, g: Tensor) -> Tensor:
        prior = (g * math.log(0.3) + (1 - g) * math.log(0.7)).sum() - 0.5 * x.square().sum()
        return prior - 0.5 * ((y - design @ (g * x)) / 0.8).square().sum()

    mass = torch.zeros(2, 2, 2).double()
    for s in itertools.product(range(2), repeat=3):
        on = torch.tensor(s).double()
        covariance = 0.64 * torch.eye(12).double() + design @ torch.diag(on) @ design.T
        evidence = torch.distributions.MultivariateNormal(torch.zeros(12).double(), covariance).log_prob(y)
        mass[s] = evidence + sum(math.log(0.3 if one else 0.7) for one in s)
    mass = (mass - mass.logsumexp((0, 1, 2))).exp()
    return density, torch.stack([mass.sum([d for d in range(3) if d != k])[1] for k in range(3)])


def test_gate_moves_find_the_enumerated_posterior() -> None:
    density, exact = regression()
    slabs = torch.arange(3), torch.full((3,), 0.1).double()
    moves, chains = started(density, slabs, torch.zeros(CHAINS, 3).double(), 3)
    kept = []
    for sweep in range(30):
        moves.hamiltonian(chains)
        for number in range(3):
            before = chains.density.clone()
            moves.gate(chains, number)
            assert (chains.density != before).all()  # quadratic: never rejected
        if sweep >= 20 and sweep % 5 == 4:
            kept.append(chains.g.mean(0))
    assert ((exact > 0.1) & (exact < 0.95)).all()
    # two sets of 400 chains, five sweeps apart, are at worst the same one twice
    assert ((torch.stack(kept).mean(0) - exact).abs() < 4 * (exact * (1 - exact) / CHAINS).sqrt()).all()


def test_gate_moves_are_exact_where_the_density_is_not_quadratic() -> None:
    """One gate, a slab seen through tanh: the proposal is wrong and Metropolis-Hastings mends it; exact by quadrature."""

    def density(x: Tensor, g: Tensor) -> Tensor:
        prior = (g * math.log(0.4) + (1 - g) * math.log(0.6)).sum() - 0.5 * x.square().sum()
        return prior - 0.5 * ((0.9 - torch.tanh(2 * g[0] * x[0])) / 0.4) ** 2

    grid = torch.linspace(-8, 8, 4001).double().unsqueeze(1)
    both = [torch.stack([density(x, torch.tensor([s]).double()) for x in grid]).exp().sum() for s in (0.0, 1.0)]
    exact = float(both[1] / (both[0] + both[1]))
    moves, chains = started(density, (torch.tensor([0]), torch.tensor([0.1]).double()), torch.zeros(CHAINS, 1).double(), 1)
    proposals = moved = 0
    for _ in range(60):
        moves.hamiltonian(chains)
        before = chains.x.clone()
        moves.gate(chains, 0)
        proposals, moved = proposals + CHAINS, moved + int((chains.x != before).sum())
    assert moved < 0.99 * proposals
    assert abs(float(chains.g.mean()) - exact) < 4 * math.sqrt(exact * (1 - exact) / CHAINS)


def test_lattice_moves_leave_the_law_of_a_share_with_a_long_tail_as_it_is() -> None:
    """Exact logits of Beta(0.1, 0.6) and Beta(2, 3) stay so: 4,000 chains of 30 moves, quantiles and correlation, four errors."""
    n, a, b = 4000, torch.tensor([0.1, 2.0]).double(), torch.tensor([0.6, 3.0]).double()
    torch.manual_seed(0)

    def log_gamma(c: Tensor) -> Tensor:  # Gamma(c) = Gamma(c + 1) U^(1 / c): does not underflow
        return dist.Gamma(c + 1, torch.ones_like(c)).sample((n,)).log() + torch.rand(n, 2).double().log() / c

    def terms(x: Tensor, g: Tensor) -> Tensor:
        return a * torch.nn.functional.logsigmoid(x) + b * torch.nn.functional.logsigmoid(-x)

    x, none = torch.full((n, 3), 7.0).double(), torch.zeros(n, 0).double()  # the first is no share: stays
    x[:, 1:] = begun = log_gamma(a) - log_gamma(b)
    moves = Moves(lambda x, g: terms(x[1:], g).sum(), NONE, seed=1)
    chains = Chains(x, none, moves.value(x, none))
    for _ in range(30):
        moves.lattice(chains, slice(1, 3), lambda x, g: terms(x[1:3], g))
    torch.testing.assert_close(chains.density, moves.value(chains.x, none), rtol=0, atol=1e-8)
    now = chains.x[:, 1:]
    assert (chains.x[:, 0] == 7.0).all() and (now != begun).double().mean() > 0.9
    for level in (0.1, 0.3, 0.5, 0.7, 0.9):
        quantile = scipy.stats.beta.ppf(level, a.numpy(), b.numpy())
        below = (torch.sigmoid(now) < torch.as_tensor(quantile)).double().mean(0)
        assert ((below - level).abs() < 4 * math.sqrt(level * (1 - level) / n)).all()
    ranks = scipy.stats.rankdata(now.numpy(), axis=0)
    assert abs(np.corrcoef(ranks.T)[0, 1]) < 4 / math.sqrt(n)
    for column in range(2):  # moved far, not only about
        assert abs(scipy.stats.spearmanr(begun[:, column].numpy(), now[:, column].numpy()).statistic) < 0.2


def test_a_move_of_shares_knows_what_it_does_to_the_density(sampled: Fit, screen: ScreenOf) -> None:
    """Entries are independent given the rest, so that their own terms add up to what the whole density changes by."""
    story, guide = sampled.modules()
    data = screen(genes=15, targets=4, doubles=2)
    moments = CellMoments.of(data, np.arange(data.n_cells), story.decoder.intercept.detach())
    density = JointDensity(story, moments)
    rows = [density.vectors({name: part[row] for name, part in guide.draws().items()}) for row in range(3)]  # type: ignore[attr-defined]
    x, g = (torch.stack(part) for part in zip(*rows, strict=True))
    with pyro.validation_enabled(False):
        moves = Moves(density, density.slabs(), seed=1)
        chains = Chains(x, g, moves.value(x, g))
        shares = density.shares(x[0])
        names = [name for name, (columns, _) in density.continuous.items() if columns in [place for place, _ in shares]]
        assert names == ["inclusion", "acting", "activity"]
        for columns, terms in shares:
            moves.lattice(chains, columns, terms)
            assert (chains.x[:, columns] != x[:, columns]).any()
            torch.testing.assert_close(chains.density, moves.value(chains.x, chains.g), rtol=0, atol=1e-7)


LINEAR = PerturbedVAE(responsive=2, background=2, hidden=0, likelihood=Gaussian(link="identity"))
SHORT = Sampled(chains=4, burn_in=6, kept=4, thin=1)


@pytest.fixture(scope="module")
def sampled(screen: ScreenOf) -> Fit:
    data = screen(genes=15, targets=4, doubles=2)
    return fit(LINEAR, data, guide=SHORT, settings=FitSettings(epochs=2), device="cpu", progress=False)


def test_draws_are_those_that_were_kept(sampled: Fit) -> None:
    guide = sampled.modules()[1]
    kept = guide.draws()  # type: ignore[attr-defined]
    torch.manual_seed(3)
    for _ in range(5):
        one = guide.sample_globals()
        rows = [r for r in range(16) if all(torch.equal(kept[name][r], value) for name, value in one.items())]
        assert len(rows) == 1 and set(one) == set(kept)
    of_chains = kept["noise"].unflatten(0, (4, 4))  # (kept, chains, genes)
    moved = (of_chains[1:] != of_chains[:-1]).all(-1)
    assert moved.float().mean() > 0.4  # four in five proposals are accepted once the step has settled; here burn-in is six
    torch.testing.assert_close(guide.central_values()["noise"].log(), kept["noise"].log().mean(0))
    torch.testing.assert_close(guide.inclusion(), kept["gates"].mean(0).clamp(1e-4, 1 - 1e-4))


def test_a_saved_fit_predicts_the_same_and_the_start_is_not_sampled(sampled: Fit, screen: ScreenOf, tmp_path: Path) -> None:
    sampled.save(tmp_path / "run")
    again = Fit.load(tmp_path / "run")
    one, other = (f.predict(["T01+T03"], draws=6).draws() for f in (sampled, again))
    np.testing.assert_array_equal(one, other)
    assert not sampled.at_start().modules()[1].sampled  # type: ignore[union-attr]
    finding = next(f for f in sampled.diagnose() if f.topic == "nearness to the exact posterior")
    assert "R-hat" in finding.sentence
    assert "draws of MCMC" in sampled.to_datatree(draws=4, genes=3).attrs["note"]
    with pytest.raises(InputError, match="R-hat"):
        sampled.pareto_k(screen(genes=15, targets=4, doubles=2))


def test_the_same_seed_gives_the_same_draws(sampled: Fit, screen: ScreenOf) -> None:
    data = screen(genes=15, targets=4, doubles=2)
    again = fit(LINEAR, data, guide=SHORT, settings=FitSettings(epochs=2), device="cpu", progress=False)
    assert all(torch.equal(again.state[name], value) for name, value in sampled.state.items())


def on_targets(v: float, plates: Plates, like: Tensor) -> dist.Beta:
    return dist.Beta(torch.full((plates.targets.size, 1), v).to(like), torch.ones(()).to(like))


@dataclass(frozen=True)
class Odd:
    """Shares that must not be moved by their own terms: `seen` scales effects, `gated` too where a gate is open, `sticks` and
    `partners` are entries of one plate that share gates, `unnamed` are entries without a plate of their own, `plain` is right."""

    what: str

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        scaled = one = torch.ones(())
        rate = 0.05 * torch.ones_like(scale)
        if self.what == "sticks":
            with plates.latents:
                rate = pyro.sample("share", dist.Beta(2 * torch.ones_like(scale), torch.ones_like(scale))).cumprod(-1)
        elif self.what == "unnamed":
            with plates.targets:
                shape = torch.ones(plates.targets.size, len(scale)).to(scale)
                rate = pyro.sample("share", dist.Beta(shape, shape))
        else:
            with plates.targets:
                share = pyro.sample("share", on_targets(2.0, plates, scale))
            rate = {"partners": 0.5 * (share + share.roll(1, 0)), "plain": share}.get(self.what, rate)
            scaled = share if self.what in ("seen", "gated") else one
        with plates.targets, plates.latents:
            s = one if self.what == "seen" else pyro.sample("gates", dist.Bernoulli(rate * torch.ones_like(scale)))
            return scaled * s * pyro.sample("effects", dist.Normal(torch.zeros_like(scale), scale))


@pytest.mark.parametrize("what", ["seen", "gated", "sticks", "partners", "unnamed", "plain"])
def test_only_shares_whose_entries_stand_alone_are_moved(what: str, screen: ScreenOf) -> None:
    """At a start with all gates shut and shares near zero, where the others would not show."""
    data = screen(genes=15, targets=4, doubles=2)
    made = fit(LINEAR.replace(effects=Odd(what)), data, settings=FitSettings(epochs=0), device="cpu", progress=False)
    story, guide = made.modules()
    density = JointDensity(story, CellMoments.of(data, np.arange(data.n_cells), story.decoder.intercept.detach()))
    with torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(1)
        x, _ = density.vectors(guide.sample_globals())
        x[density.continuous["share"][0]] = -30.0
        assert len(density.shares(x)) == (what == "plain")


@dataclass(frozen=True)
class LaplaceSlab:
    """Gates over a slab that is not normal: along it the log density is no parabola."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        with plates.targets, plates.latents:
            s = pyro.sample("gates", dist.Bernoulli(0.5 * torch.ones_like(scale)))
            return s * pyro.sample("effects", dist.Laplace(torch.zeros_like(scale), scale))


def test_gates_of_another_slab_are_refused_before_training(screen: ScreenOf, monkeypatch: pytest.MonkeyPatch) -> None:
    data = screen(genes=15, targets=4, doubles=2)
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("trained before it was refused"))
    with pytest.raises(InputError, match="gates without a normal slab; take another guide"):
        fit(LINEAR.replace(effects=LaplaceSlab()), data, guide=SHORT, settings=FitSettings(epochs=1), progress=False)
