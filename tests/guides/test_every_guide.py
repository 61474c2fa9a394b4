"""Every guide with every effect prior: the sites that the story promises, two epochs, predictions that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, product

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

import pvae_pyro
from pvae_pyro.errors import InputError
from pvae_pyro.guides import GUIDES, Ensemble, Flow, LowRank, Map, Sampled
from pvae_pyro.guides.joint import AUXILIARY
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import PARTS, Cells, Gaussian, PerturbedVAE, Story

JOINT = ("low-rank", "flow", "sampled")  # the last one until it samples
SINGLE = [name for name in GUIDES if name != "ensemble"]
DESIGN = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0.5, 2]]


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(0)
        yield


def stated(trace: poutine.Trace) -> dict[str, tuple[torch.Size, frozenset[tuple[str, int, int]]]]:
    """Shape and plates of every unobserved site but the auxiliary one."""
    return {
        name: (site["value"].shape, frozenset((f.name, f.size, f.dim) for f in site["cond_indep_stack"]))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not poutine.util.site_is_subsample(site)
        and not site["infer"].get("is_auxiliary")
    }  # fmt: skip


@pytest.mark.parametrize(("guide", "effects"), list(product(SINGLE, PARTS["effects"])))
def test_a_guide_states_what_the_story_states(guide: str, effects: str) -> None:
    model = PerturbedVAE(responsive=3, background=2, effects=PARTS["effects"][effects]())
    story = Story(model, torch.tensor(DESIGN), 20, 2, 6, 3)
    family, x = GUIDES[guide]().build(story), 0.5 + torch.rand(7, 6)
    cells = Cells(x, x, torch.arange(7) % 6, torch.arange(7) % 2, torch.ones(7))
    in_story = poutine.trace(story).get_trace(cells, torch.arange(7))
    in_guide = poutine.trace(family).get_trace(cells, torch.arange(7))
    assert stated(in_guide) == stated(in_story)
    for name in stated(in_guide):
        assert in_guide.nodes[name]["fn"].event_shape == in_story.nodes[name]["fn"].event_shape
        assert in_story.nodes[name]["fn"].support.check(in_guide.nodes[name]["value"]).all()
    assert (AUXILIARY in in_guide.nodes) == (guide in JOINT)
    TraceMeanField_ELBO()(story, family)(cells, torch.arange(7)).backward()
    for name, p in family.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and torch.isfinite(p.grad).all(), name
    groups = family.parameter_groups()
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(id(p) for p in family.parameters())


@cache
def screen() -> Screen:
    world = simulate("default", seed=1, targets=4, doubles=2, controls=40, cells_per_condition=10, genes=15)
    return Screen.from_anndata(world.adata, "condition", batch_key="batch")


@cache
def fitted(guide: str, effects: str) -> Fit:
    special = {"ensemble": Ensemble(n=2), "sampled": Sampled(chains=2, burn_in=6, kept=4, thin=1)}
    chosen = special.get(guide) or GUIDES[guide]()
    likelihood = Gaussian(link="identity" if guide == "sampled" else "softplus")
    model = PerturbedVAE(background=2, hidden=0, effects=PARTS["effects"][effects](), likelihood=likelihood)
    return fit(model, screen(), guide=chosen, settings=FitSettings(epochs=2, batch_size=60), device="cpu", progress=False)


@pytest.mark.parametrize("effects", PARTS["effects"])
def test_every_guide_fits_and_predicts_and_no_two_alike(effects: str) -> None:
    pair = next(c for c in screen().conditions if "+" in c)
    found = {}
    for guide in GUIDES:
        one = fitted(guide, effects)
        assert one.history["epoch"] == [0, 1, 2] and np.isfinite(one.history["loss"]).all()
        found[guide] = one.predict(["T01", pair, "T01+T02+T03"], draws=6, seed=0).draws("latent_mean")
        assert np.isfinite(found[guide]).all()
    for one, other in combinations(found, 2):
        assert not np.array_equal(found[one], found[other]), (one, other)


@pytest.mark.parametrize("effects", PARTS["effects"])
def test_globals_of_map_are_the_same_in_all_draws(effects: str) -> None:
    _, guide = fitted("map", effects).modules()
    with torch.no_grad(), poutine.block():
        drawn = [guide.sample_globals() for _ in range(3)]
    own = {"gates", "edge_gates", "surprise", "interaction", "residual", "stretch"}
    fixed = [name for name in drawn[0] if name not in own]
    assert {"effects", "noise", "coupling", "kappa"} <= set(fixed) or effects not in ("spike-slab", "normal")
    for name in fixed:
        if not guide.family.sites[name].is_gate:
            assert torch.equal(drawn[0][name], drawn[1][name]) and torch.equal(drawn[0][name], drawn[2][name]), name
    assert not torch.equal(drawn[0]["interaction"], drawn[1]["interaction"])


@pytest.mark.parametrize(
    ("make", "word"),
    [(lambda: LowRank(rank=0), "rank"), (lambda: LowRank(rank=2.5), "rank"), (lambda: Flow(layers=-1), "layers"),
     (lambda: Flow(hidden=0), "hidden"), (lambda: Flow(largest=0), "largest"), (lambda: Map(initial_scale=0), "initial_scale"),
     (lambda: Flow(initial_scale=-1.0), "initial_scale")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()


def test_a_guide_is_written_as_it_is_made() -> None:
    for cls in GUIDES.values():
        guide = cls()
        assert eval(repr(guide), {name: getattr(pvae_pyro, name) for name in pvae_pyro.__all__}) == guide
    with pytest.raises(TypeError):
        LowRank(10, 3)  # type: ignore[misc]
