"""The guide states what the story states, follows it through composition, and finds the conjugate posterior."""

from __future__ import annotations

import pyro
import pytest
import torch
from parts_support import CHOICES, SEAMS
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Amortized, AmortizedGuide
from pvae_pyro.story import (
    PARTS,
    Additive,
    Cells,
    Gaussian,
    Interaction,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
    Saturating,
    SpikeSlab,
    Story,
)

PAIRS = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0.5, 2]]


def build(design: list[list[float]], n_cells: int = 20, genes: int = 6, latents: int = 3, **parts: object) -> Story:
    model = PerturbedVAE(responsive=latents, background=2, **parts)  # type: ignore[arg-type]
    pyro.set_rng_seed(0)
    return Story(model, torch.tensor(design, dtype=torch.float32), n_cells, 2, genes, latents)


def some_cells(story: Story, n: int) -> Cells:
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(3 * torch.ones(n, len(story.spread)), generator=generator)
    library = torch.full((n,), 3000.0)
    x = torch.log1p(counts * 10 / 3)
    observed = counts if story.model.likelihood.observes == "counts" else x
    condition, batch = torch.arange(n) % len(story.design), torch.arange(n) % 2
    return Cells(x, observed, condition, batch, library)


def sites(trace: poutine.Trace) -> dict[str, tuple[torch.Size, frozenset[tuple[str, int, int]]]]:
    """Shape of the value and plates (name, size, dim) of every unobserved site."""
    return {
        name: (site["value"].shape, frozenset((f.name, f.size, f.dim) for f in site["cond_indep_stack"]))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not poutine.util.site_is_subsample(site)
    }


@pytest.mark.parametrize("names", CHOICES, ids=["-".join(names) for names in CHOICES])
@pytest.mark.parametrize("design", [PAIRS, PAIRS[:4]], ids=["pairs", "singles"])
def test_guide_and_story_state_the_same_sites(names: tuple[str, ...], design: list[list[float]]) -> None:
    story = build(design, **{seam: PARTS[seam][name]() for seam, name in zip(SEAMS, names, strict=True)})
    guide, cells = Amortized().build(story), some_cells(story, 7)
    in_story = poutine.trace(story).get_trace(cells, torch.arange(7))
    in_guide = poutine.trace(guide).get_trace(cells, torch.arange(7))
    assert sites(in_guide) == sites(in_story)
    for name in sites(in_guide):
        assert in_guide.nodes[name]["fn"].event_shape == in_story.nodes[name]["fn"].event_shape
        # a value of the guide is one that the prior allows
        assert in_story.nodes[name]["fn"].support.check(in_guide.nodes[name]["value"]).all()
    loss = TraceMeanField_ELBO()(story, guide)(cells, torch.arange(7))
    loss.backward()
    silent = [n for n, p in guide.named_parameters() if p.grad is None]
    assert silent == [] and all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)
    assert pyro.get_param_store().keys() == set()


@pytest.mark.parametrize(
    ("zero", "absent"),
    [("width", {"interaction", "kappa"}), ("width_spread", {"kappa"}), ("outside", {"residual"}),
     ("surprise_spread", {"surprise"})],
)  # fmt: skip
def test_what_is_switched_off_is_no_site_of_either(zero: str, absent: set[str]) -> None:
    whole, story = build(PAIRS), build(PAIRS, interaction=Interaction(**{zero: 0.0}))
    guide, cells = Amortized().build(story), some_cells(story, 7)
    found = sites(poutine.trace(guide).get_trace(cells, torch.arange(7)))
    assert found == sites(poutine.trace(story).get_trace(cells, torch.arange(7)))
    expected = sites(poutine.trace(whole).get_trace(cells, torch.arange(7)))
    assert found == {name: value for name, value in expected.items() if name not in absent}
    g = story.globals()
    assert (g.kappa == Interaction(**{zero: 0.0}).width).all() == ("kappa" in absent)
    torch.testing.assert_close(g.residual.any(), torch.tensor("residual" not in absent))


def test_every_parameter_is_in_one_group_and_only_networks_are_local() -> None:
    guide = Amortized().build(build(PAIRS))
    groups = guide.parameter_groups()
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in guide.parameters())
    names = {id(p): n for n, p in guide.named_parameters()}
    local = {names[id(p)].split(".")[0] for p in groups["networks"]}
    assert local == {"gain_background", "gain_responsive", "log_scale_background", "log_scale_responsive",
                     "correct_background", "correct_responsive"}  # fmt: skip
    assert not {n for n, _ in guide.named_parameters() if n.startswith(("decoder", "story"))}


@pytest.mark.parametrize("composition", [Additive(), Saturating()], ids=["additive", "saturating"])
def test_interaction_lies_between_what_cells_say_and_what_composition_says(composition: Additive | Saturating) -> None:
    """The exact conditional of m in: m ~ Normal(stretched composition, width), cells' mean ~ Normal(m, their scale)."""
    story = build(PAIRS, effects=SpikeSlab(), composition=composition)
    guide, part = Amortized().build(story), story.model.interaction
    with torch.no_grad():
        guide.family.loc["effects"].copy_(torch.randn(3, 3))
        guide.family.logits["gates"].fill_(2.0)
        guide.combination_loc.copy_(torch.randn(2, 3))
        guide.combination_log_scale.copy_(torch.tensor([[-20.0, 20.0, -1.0], [0.0, -0.5, 0.5]]))
        guide.residual_log_scale.fill_(-20.0)
    pyro.set_rng_seed(3)
    with torch.no_grad(), poutine.trace() as trace:
        values = guide.sample_globals()
        g = guide.assemble(values)
    design, law = story.design[4:], trace.trace.nodes["interaction"]["fn"].base_dist
    composed = story.compose({"effects": g.effects, "composition": g.composition}, design) * (1 + values["stretch"].unsqueeze(1))
    width = part.latent_width(g.kappa, story.typical, design, g.effects) * values["surprise"].unsqueeze(1)
    a, b = 1 / width.double().square(), 1 / (2 * guide.combination_log_scale).exp().double()
    mean = (a * composed + b * guide.combination_loc) / (a + b)
    torch.testing.assert_close(composed + law.loc, mean.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(law.scale, (1 / (a + b)).sqrt().float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(g.shift[4:], composed + values["interaction"], atol=1e-5, rtol=1e-4)
    # measured without error the cells decide, not measured at all the composition does
    torch.testing.assert_close(mean[0, 0].float(), guide.combination_loc[0, 0])
    torch.testing.assert_close(mean[0, 1].float(), composed[0, 1], atol=1e-5, rtol=1e-4)


def test_hard_gates_multiply_the_effects() -> None:
    guide = Amortized().build(build(PAIRS))
    with torch.no_grad():
        guide.family.logits["gates"][0] = -50.0
        guide.family.logits["gates"][1] = 50.0
        values = guide.sample_globals()
        g = guide.assemble(values)
    assert not g.effects[0].any()
    torch.testing.assert_close(g.effects[1], values["effects"][1])


def test_background_does_not_know_the_condition_nor_the_batch_offset() -> None:
    guide = Amortized().build(build(PAIRS))
    with torch.no_grad():
        guide.centre.copy_(torch.rand(2, 6))
        torch.nn.init.normal_(guide.correct_background.last.weight)  # type: ignore[union-attr]
    x = torch.rand(4, 6)
    batch = torch.tensor([0, 1, 0, 1])

    def background(condition: list[int], shift: Tensor) -> tuple[Tensor, Tensor]:
        return guide.background(Cells(x + shift, x, torch.tensor(condition), batch, torch.ones(4)))

    same, other = background([0, 0, 0, 0], guide.centre[batch]), background([1, 2, 3, 4], guide.centre[batch])
    assert torch.equal(same[0], other[0]) and torch.equal(same[1], other[1])
    swapped = guide.background(Cells(x + guide.centre[1 - batch], x, torch.zeros(4).long(), 1 - batch, torch.ones(4)))
    torch.testing.assert_close(swapped[0], same[0], atol=1e-5, rtol=1e-5)


def test_responsive_is_centred_on_the_prior_under_the_drawn_effects() -> None:
    story = build(PAIRS)
    guide = Amortized().build(story)
    with torch.no_grad():
        g = guide.assemble(guide.sample_globals())
        z_b = torch.randn(5, 2)
        condition, batch = torch.tensor([0, 1, 4, 5, 3]), torch.tensor([0, 1, 0, 1, 1])
        prior = story.responsive_law(g, z_b, condition).mean
        eta = story.decoder(z_b, prior, batch) + g.residual[condition]
        mean, base = (story.model.likelihood.mean(e, story.level) for e in (eta, story.decoder.intercept[batch]))
        # cells exactly where the prior puts them carry no surprise
        cells = Cells(guide.centre[batch] + mean - base, mean, condition, batch, torch.ones(5))
        found, loc, _ = guide.responsive(cells, z_b, g)
        torch.testing.assert_close(found, prior)
        torch.testing.assert_close(loc, prior, atol=1e-5, rtol=1e-5)
        moved = Cells(cells.expression + 1.0, mean, condition, batch, torch.ones(5))
        torch.testing.assert_close(guide.responsive(moved, z_b, g)[1] - loc, guide.gain_responsive.sum(0).expand(5, 3))


class LinearGaussian:
    """Cells of x ~ Normal(b + z_r W, sd^2), z_r ~ Normal(w_p, I), with loadings W orthogonal in the metric of the noise.

    Given y_k = (W_k / sd^2) . (x - b) / lambda_k, lambda_k = |W_k / sd|^2, each y_k ~ Normal(w_pk, 1 + 1 / lambda_k) on its
    own, so that under w_pk ~ Normal(0, tau_k^2) the posterior of w is a product of known normals.
    """

    tau = torch.tensor([1.0, 0.5])
    n_cells = (30, 6, 25)  # controls and two targets

    def __init__(self) -> None:
        story = build([[0, 0], [1, 0], [0, 1]], sum(self.n_cells), 8, 2, effects=NormalEffects(), graph=NoGraph(),
                      composition=Additive(), likelihood=Gaussian(link="identity"), hidden=0)  # fmt: skip
        self.story, self.guide = story, Amortized().build(story)
        generator = torch.Generator().manual_seed(2)
        self.sd = 0.5 + torch.rand(8, generator=generator)
        axes = torch.linalg.qr(torch.randn(8, 2, generator=generator))[0].T
        self.strength = torch.tensor([9.0, 2.0])  # lambda
        with torch.no_grad():
            story.decoder.responsive.copy_(self.strength.sqrt().unsqueeze(1) * axes * self.sd)
            story.decoder.background.zero_()
            story.decoder.intercept.copy_(torch.randn(1, 8, generator=generator).expand(2, 8))
            story.effect_scale.copy_(self.tau)
            story.noise_start.copy_(self.sd)
        condition = torch.repeat_interleave(torch.arange(3), torch.tensor(self.n_cells))
        truth = torch.tensor([[0.0, 0.0], [1.5, -0.4], [-0.7, 0.6]])
        n = len(condition)
        z = truth[condition] + torch.randn(n, 2, generator=generator)
        noise = self.sd * torch.randn(n, 8, generator=generator)
        x = (story.decoder.intercept[0] + z @ story.decoder.responsive).detach() + noise
        self.cells = Cells(x, x, condition, torch.zeros(n, dtype=torch.long), torch.ones(n))
        weights = story.decoder.responsive.detach() / self.sd**2
        y = (x - story.decoder.intercept[0].detach()) @ weights.T / self.strength
        count = torch.tensor(self.n_cells[1:]).unsqueeze(1)
        mean = torch.stack([y[condition == d].mean(0) for d in (1, 2)])
        marginal = 1 + 1 / self.strength
        precision = 1 / self.tau**2 + count / marginal
        self.mean, self.posterior_sd = count / marginal * mean / precision, precision.rsqrt()
        self._freeze()

    def _freeze(self) -> None:
        """Globals other than the effects at their truth, without spread."""
        guide, story = self.guide, self.story
        known = {"noise": self.sd.log(), "effect_scale": self.tau.log(), "coupling": 0.0, "log_variance": 0.0}
        for p in (*story.parameters(), *guide.parameters()):
            p.requires_grad_(False)
        with torch.no_grad():
            for name, value in known.items():
                guide.family.loc[name].copy_(torch.as_tensor(value).expand_as(guide.family.loc[name]))
                guide.family.log_scale[name].fill_(-12.0)
        guide.centre.copy_(story.decoder.intercept.detach())
        for name, p in guide.named_parameters():
            learnt = name.startswith(("gain_", "log_scale_")) or name in ("family.loc.effects", "family.log_scale.effects")
            p.requires_grad_(learnt)


def train(world: LinearGaussian, steps: int) -> tuple[Tensor, Tensor]:
    """Full-batch Adam with a falling rate; mean and sd of q(effects), averaged over the second half of the steps."""
    guide, n = world.guide, len(world.cells.condition)
    elbo = TraceMeanField_ELBO()(world.story, guide)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-3)
    kept: list[tuple[Tensor, Tensor]] = []
    pyro.set_rng_seed(3)
    with pyro.validation_enabled(False):
        for step in range(steps):
            optimiser.zero_grad()
            (elbo(world.cells, torch.arange(n)) / n).backward()
            optimiser.step()
            schedule.step()
            if step >= steps // 2:
                kept.append((guide.family.loc["effects"].detach().clone(), guide.family.log_scale["effects"].detach().exp()))
    means, sds = zip(*kept, strict=True)
    return torch.stack(means).mean(0), torch.stack(sds).mean(0)


def test_the_linear_gaussian_posterior_is_the_conjugate_one() -> None:
    world = LinearGaussian()
    mean, sd = train(world, 500)
    # what the last steps' noise leaves, in posterior sds; the prior is up to 3, the plain mean of the cells 0.5 away
    assert ((mean - world.mean) / world.posterior_sd).abs().max() < 0.15
    assert (sd / world.posterior_sd - 1).abs().max() < 0.1
    gain = world.story.decoder.responsive.detach().T / world.sd.unsqueeze(1) ** 2 / (1 + world.strength)
    learnt = world.guide.gain_responsive.detach()
    assert (learnt - gain).norm() < 0.25 * gain.norm()


def test_at_the_conjugate_posterior_the_gradient_is_zero_and_elsewhere_it_is_not() -> None:
    world = LinearGaussian()
    guide, n = world.guide, len(world.cells.condition)
    with torch.no_grad():
        guide.family.loc["effects"].copy_(world.mean)
        guide.family.log_scale["effects"].copy_(world.posterior_sd.log())
        guide.gain_responsive.copy_(world.story.decoder.responsive.T / world.sd.unsqueeze(1) ** 2 / (1 + world.strength))
        guide.log_scale_responsive.copy_(-0.5 * (1 + world.strength).log())
        guide.gain_background.zero_()
        guide.log_scale_background.zero_()  # the posterior of z_b is its prior
    elbo = TraceMeanField_ELBO()(world.story, guide)
    watched = [guide.family.loc["effects"], guide.family.log_scale["effects"], guide.gain_responsive, guide.log_scale_responsive,
               guide.log_scale_background]  # fmt: skip

    def z_scores(draws: int) -> Tensor:
        found = []
        for _ in range(draws):
            gradient = torch.autograd.grad(elbo(world.cells, torch.arange(n)), watched)
            found.append(torch.cat([g.flatten() for g in gradient]))
        stacked = torch.stack(found)
        return stacked.mean(0) / (stacked.std(0) / draws**0.5 + 1e-9)

    pyro.set_rng_seed(4)
    with pyro.validation_enabled(False):
        assert z_scores(120).abs().max() < 4.2
        with torch.no_grad():
            guide.family.log_scale["effects"] += 0.4
        assert z_scores(120)[4:8].min() > 4.2  # half too wide is seen for every effect


def test_an_initial_scale_must_be_positive() -> None:
    with pytest.raises(InputError, match="initial_scale"):
        Amortized(initial_scale=0)
    assert isinstance(Amortized(0.5).build(build(PAIRS)), AmortizedGuide)
