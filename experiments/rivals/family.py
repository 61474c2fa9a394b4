"""The VAE family: presets with the settings that each is tuned among, from its own random start and from ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from pvae_pyro import presets
from pvae_pyro.presets import Preset

from .scoring import MEAN
from .screens import Bench

OURS = "perturbed_vae"
RESULTS = Path(__file__).parent / "results.csv"
LATENTS, RATES = (30, 100), (3e-3, 6e-3)  # sizes and learning rates of a random start
LENGTHS = {"": 1, ", twice the epochs": 2}  # eight settings with the sizes and rates, as closed forms have
Make = Callable[[Bench], Preset]


@dataclass(frozen=True)
class Rival:
    """Settings by name: from a screen's bench (gene sets are made of its singles) to a preset."""

    settings: Mapping[str, Make]


def _trained(made: Mapping[str, Make]) -> Rival:
    """Each size at each learning rate of a random start, for each number of epochs."""

    def at(make: Make, rate: float, times: int) -> Make:
        return lambda bench: _with(make(bench), rate, times)

    settings = [(told, make, rate, longer) for told, make in made.items() for rate in RATES for longer in LENGTHS]
    return Rival({f"{told}, rate {rate}{longer}": at(make, rate, LENGTHS[longer]) for told, make, rate, longer in settings})


def _sizes(make: Callable[[int], Preset]) -> Rival:
    return _trained({f"{n} latents": (lambda bench, n=n: make(n)) for n in LATENTS})


def _with(preset: Preset, rate: float, times: int) -> Preset:
    settings = replace(preset.settings, learning_rate=rate, epochs=times * preset.settings.epochs)
    return replace(preset, settings=settings)


def _ours(make: Callable[[], Preset]) -> Rival:
    """From the closed-form start, which picks the size, with our settings of the fit: nothing left to tune."""
    return Rival({"as it is": lambda bench: make().with_our_start()})


@cache
def gene_sets(bench: Bench, count: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Stand-ins for pathways, which need a database: clusters of genes that the trained singles move alike."""
    effects = bench.known([]).effects
    profiles = (effects.shift[effects.seen] / np.sqrt(effects.cell_variance)).T
    profiles = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
    labels = KMeans(count, n_init=10, random_state=0).fit_predict(profiles)
    genes = bench.summary.genes.astype(str)
    return tuple((f"set {k}", tuple(genes[labels == k].tolist())) for k in range(count))


def _sena(count: int) -> Make:
    return lambda bench: presets.sena(dict(gene_sets(bench, count)))


def _svae(latents: int = presets.LATENTS) -> Preset:
    return presets.svae_plus(latents, compose=True)


FAMILY: dict[str, Rival] = {
    "discrepancy_vae": _sizes(presets.discrepancy_vae),
    "sena": _trained({f"{count} gene sets": _sena(count) for count in (30, 60)}),
    "svae_plus, shifts added": _sizes(_svae),
    "sams_vae": _sizes(presets.sams_vae),
    "cpa": _sizes(presets.cpa),
    "conditional_vae": Rival({"as it is": lambda bench: presets.conditional_vae()}),
    "discrepancy_vae, our start": _ours(presets.discrepancy_vae),
    "svae_plus, shifts added, our start": _ours(_svae),
    "sams_vae, our start": _ours(presets.sams_vae),
    "cpa, our start": _ours(presets.cpa),
    OURS: Rival({"default": lambda bench: presets.perturbed_vae()}),
}


def candidates(bench: Bench, name: str) -> list[Preset]:
    return [make(bench) for make in FAMILY[name].settings.values()]


def choice(name: str) -> int:
    """The setting of least L2 on the even pairs, from the `tune` arms in results.csv; the first until they have run."""
    told = list(FAMILY[name].settings)
    if len(told) == 1 or not RESULTS.exists():
        return 0
    results = pd.read_csv(RESULTS)
    results = results[(results["what"] == MEAN) & (results["metric"] == "l2") & (results["seed"] == 0)]
    found = results.set_index("arm")["value"]
    arms = [f"tune {name}, {one}" for one in told]
    if missing := [arm for arm in arms if arm not in found.index]:
        print(f"not tuned yet ({len(missing)} of {len(arms)} settings lack): {told[0]} is taken", flush=True)
        return 0
    return int(np.argmin([found[arm] for arm in arms]))
