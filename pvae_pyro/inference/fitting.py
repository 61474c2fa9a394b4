"""`fit(model, screen)` -> `Fit`: an immutable result that predicts, diagnoses itself and saves without pickle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..guides import GUIDES, Amortized, AmortizedGuide, Ensemble
from ..guides.ensemble import restarts
from ..screen import ConditionSummary, Screen
from ..splits import validation_slice
from ..story import PARTS, PerturbedVAE, Story
from . import storage
from .admission import check_screen, choose_device
from .edges import edges_table
from .programs import Programs
from .responses import penetrance_table, responding
from .restart import State, Trained, train
from .svi import FitSettings
from .versions import versions

if TYPE_CHECKING:
    from xarray import DataTree

    from ..prediction import Posterior
    from .diagnosis import Finding

log = logging.getLogger("pvae_pyro")


@dataclass(frozen=True, eq=False)
class Fit:
    """Result of `fit`; immutable, self-contained (no file of the screen is needed again).

    trained: what every run left, one but for ensembles. genes (G,) of the output, active (G,) those with a count in
    training cells; library (cells,) of the training cells, batch_counts (conditions, batches); training: condition
    summaries, validation: of the cells that the first run kept out of training (None without any); known_targets: targets
    that may be asked for.
    """

    model: PerturbedVAE
    guide: Amortized | Ensemble
    settings: FitSettings
    seed: int
    trained: tuple[Trained, ...]
    genes: NDArray[np.str_]
    active: NDArray[np.bool_]
    targets: tuple[str, ...]
    known_targets: tuple[str, ...]
    conditions: tuple[str, ...]
    design: NDArray[np.float32]
    batches: tuple[str, ...]
    batch_counts: NDArray[np.float64]
    library: NDArray[np.float32]
    scale: str
    training: ConditionSummary
    validation: ConditionSummary | None
    notices: tuple[str, ...]
    versions: dict[str, str]
    date: str

    @property
    def members(self) -> tuple[Fit, ...]:
        """The fits whose draws are mixed: of an ensemble each run as a fit of its own, else this one."""
        if len(self.trained) == 1:
            return (self,)
        return tuple(replace(self, guide=one.guide, seed=one.seed, trained=(one,)) for one in self.trained)

    @property
    def history(self) -> dict[str, list[float]]:
        """What was recorded after every epoch; of an ensemble the mean over members."""
        names = self.trained[0].history
        return {name: np.mean([one.history[name] for one in self.trained], axis=0).tolist() for name in names}

    @property
    def state(self) -> State:
        """Parameters after training."""
        return self._only.state

    @property
    def start_state(self) -> State:
        """Parameters before training."""
        return self._only.start_state

    @property
    def controls(self) -> Tensor:
        """Location and scale of q(z_b | x) of the control cells, (cells, 2 * background)."""
        return self._only.controls

    @property
    def n_cells(self) -> int:
        """Cells trained on, without those of the validation."""
        return self._only.n_cells

    @property
    def _only(self) -> Trained:
        if len(self.trained) > 1:
            raise InputError(
                f"an ensemble of {len(self.trained)} members has no parameters of its own; take one of fit.members."
            )
        return self.trained[0]

    def predict(
        self,
        conditions: str | Sequence[str],
        draws: int = 200,
        n_cells: int | Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> Posterior:
        """Posterior predictions of conditions, in the order asked; order of targets inside a name never matters.

        `draws` joint draws of all globals; of an ensemble with n members every member gives draws / n, and where that is no
        whole number the first ones give one more. `n_cells`: cells of the measured pseudobulk, for all or by canonical name;
        default the condition's own number if it was trained, else the median of the trained perturbations. Raises InputError for
        an unknown target, a repeated condition, no draws or a non-positive number of cells.
        """
        from ..prediction import predict

        return predict(
            self, [conditions] if isinstance(conditions, str) else list(conditions), draws, n_cells, seed
        )

    def to_datatree(
        self,
        draws: int = 200,
        seed: int = 0,
        *,
        conditions: Sequence[str] | None = None,
        genes: int | Sequence[str] | None = 100,
        predictions: Sequence[str] | Mapping[str, int] = (),
    ) -> DataTree:
        """Draws as an ArviZ DataTree, see `docs/arviz.md`: draws of a variational posterior, not MCMC.

        Chains are the members of an ensemble, else there is one; `draws` in all, rounded up to as many of each. With the same
        seed `posterior_predictive` holds the very draws of `predict`. `conditions`: trained ones, default all that are perturbed;
        `genes`: the number that trained perturbations move most, names, or None for all that were fitted. `predictions`:
        conditions for the group of that name, or cells of their pseudobulks by name. Each of y_bulk and delta_mean, of posterior
        and prior, takes 4 bytes x draws x conditions x genes: 8 MB for 200 draws, 100 conditions and 100 genes.
        Raises InputError as `predict` does, and for a condition that was not trained or a gene that was not fitted.
        """
        from ..report.datatree import fit_tree

        return fit_tree(self, draws, seed, conditions, genes, predictions)

    def pareto_k(self, screen: Screen, draws: int = 400, seed: int = 0) -> float:
        """How far the posterior of the globals is from the exact one given the cells it was trained on (Pareto k), latents of
        cells integrated out; the largest of an ensemble's members. Only for linear-Gaussian stories, see `prediction.importance`.
        """
        from ..prediction.importance import pareto_k

        runs = zip(self.members, restarts(self.guide, self.seed), strict=True)
        return max(pareto_k(one, run, screen, draws, seed) for one, run in runs)

    def diagnose(self, screen: Screen | None = None) -> tuple[Finding, ...]:
        """Findings in words, each with a level and what to do: own conditions, held-out cells, leakage, convergence, gates,
        collapsed latents, restarts, how near the posterior is to the exact one, and what intervals of combinations rest on.

        `screen`: the cells that it was trained on, which the Pareto k of a linear-Gaussian story needs. What is asked of a
        prediction, `Posterior.diagnose` answers.
        """
        from .diagnosis import diagnose

        return diagnose(self, screen)

    def at_start(self) -> Fit:
        """The same fit before training: the closed-form start, 0 epochs."""
        return replace(self, trained=tuple(one.at_start() for one in self.trained))

    def modules(self) -> tuple[Story, AmortizedGuide]:
        """Story and guide with the fitted parameters, in evaluation mode on the CPU."""
        rank = self.state["story.effect_scale"].shape[0]
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten below
            story = Story(
                self.model,
                torch.as_tensor(self.design),
                self.n_cells,
                len(self.batches),
                int(self.active.sum()),
                rank,
            )
            guide = self._only.guide.build(story)
        for module, prefix in ((story, "story."), (guide, "guide.")):
            saved = _part(self.state, prefix)
            shapes = {name: value.shape for name, value in module.state_dict().items()}
            if {name: value.shape for name, value in saved.items()} != shapes:
                raise InputError("the fit was saved by another version, with other parameters; it has to be run again.")
            module.load_state_dict(saved)
        return story.eval(), guide.eval()

    def effects_table(self, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """Latent effects w: target, latent, mean, sd, inclusion (probability of the hard gate; 1 without gates).

        Latents of an ensemble's members are not the same ones: its table has one block for each, numbered by `member`.
        """
        if len(self.trained) > 1:
            return _blocks([one.effects_table(draws, seed) for one in self.members])
        guide, shared = self._shared_draws(draws, seed)
        w = torch.stack([one["effects"] for one in shared]).numpy()
        open_gates = guide.inclusion()
        inclusion = np.ones(w.shape[1:]) if open_gates is None else open_gates.numpy()
        index = pd.MultiIndex.from_product([self.targets, range(w.shape[2])], names=["target", "latent"])
        values = {"mean": w.mean(0).ravel(), "sd": w.std(0).ravel(), "inclusion": inclusion.ravel()}
        return pd.DataFrame(values, index=index).reset_index()

    def edges_table(self, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """Edges of the latent graph at control: source, target, probability (of the hard gate), mean and sd of the weight (zero
        where the gate is closed), identified, note. One row for each edge that the latent order allows.

        A fit cannot know whether its edges mean something: identified is False and the note says "not identified". What restarts
        say is `agreeing_edges(fits)`. Members of an ensemble have blocks of their own, as in `effects_table`.
        """
        if len(self.trained) > 1:
            return _blocks([one.edges_table(draws, seed) for one in self.members])
        return edges_table(*self._shared_draws(draws, seed))

    def programs_table(self, top: int = 5, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """A responsive latent a row: latent, size (root mean square effect of a target, in control-cell sds), share of all
        squared effects, mean inclusion, its `top` targets with their effects, and the genes that it raises and lowers most.

        Own effects and loadings, without what the graph passes on. Signs, units and the arrays: `inference.programs.Programs`.
        Members of an ensemble have blocks of their own, as in `effects_table`.
        """
        if len(self.trained) > 1:
            return _blocks([one.programs_table(top, draws, seed) for one in self.members])
        return Programs.of(self, draws, seed).table(top)

    def penetrance_table(self, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """Share of each target's cells that respond, rho: target, mean, sd, q05, q95; 1 where the story has no escaping cells.

        It means the same in every member of an ensemble, whose draws are taken together.
        """
        shared = [one for member in self.members for one in member._shared_draws(draws, seed)[1]]
        return penetrance_table(self.targets, shared)

    def responding(self, screen: Screen) -> NDArray[np.float32]:
        """Probability (cells,) that each cell of a screen with these genes responds to its perturbation, globals at their centre.

        Raises InputError for a condition or a batch that was not trained. The mean over the members of an ensemble.
        """
        return np.mean([responding(one, screen) for one in self.members], axis=0)

    def _shared_draws(self, draws: int, seed: int) -> tuple[AmortizedGuide, list[dict[str, Any]]]:
        """The guide, and the story's shared values in the draws that predictions with this seed use."""
        from ..prediction.globals import draw_shared

        _, guide = self.modules()
        return guide, draw_shared(guide, draws, seed)

    def save(self, folder: str | Path) -> Path:
        """Write to a new folder: safetensors, npz and JSON, no pickle; members of an ensemble have folders of their own."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=False)
        arrays = {
            "genes": np.asarray(self.genes), "active": self.active, "design": self.design, "batch_counts": self.batch_counts,
            "library": self.library,
        }  # fmt: skip
        storage.save_arrays(path / "screen.npz", arrays)
        storage.save_arrays(path / "training.npz", self.training.arrays())
        if self.validation is not None:
            storage.save_arrays(path / "validation.npz", self.validation.arrays())
        plain = (
            "seed",
            "targets",
            "known_targets",
            "conditions",
            "batches",
            "scale",
            "notices",
            "versions",
            "date",
        )
        data: dict[str, Any] = {name: getattr(self, name) for name in plain}
        data |= {name: storage.part_to_dict(getattr(self, name)) for name in ("model", "guide", "settings")}
        places = _member_places(path, len(self.trained))
        data["members"] = [one.save(place) for one, place in zip(self.trained, places, strict=True)]
        storage.save_json(path / "fit.json", data)
        return path

    @classmethod
    def load(cls, folder: str | Path, parts: Sequence[type] = ()) -> Fit:
        """Read a saved fit; `parts` are classes of your own that its model uses. Raises InputError for what is not one."""
        path = Path(folder)
        path = path / "fit" if (path / "fit" / "fit.json").exists() else path  # a run of the command line
        data = storage.load_json(path / "fit.json")
        if "members" not in data:
            raise InputError(f"fit.json in {path} names no members: an older version wrote it; the fit has to be run again.")
        known = {c.__name__: c for c in (PerturbedVAE, FitSettings, *GUIDES.values(), *parts)}
        known |= {c.__name__: c for kind in PARTS.values() for c in kind.values()}
        for name in ("model", "guide", "settings"):
            data[name] = storage.part_from_dict(data[name], known)
        for name in ("targets", "known_targets", "conditions", "batches", "notices"):
            data[name] = tuple(data[name])
        arrays: dict[str, Any] = storage.load_arrays(path / "screen.npz")
        training = ConditionSummary.from_arrays(storage.load_arrays(path / "training.npz"))
        kept = path / "validation.npz"
        validation = ConditionSummary.from_arrays(storage.load_arrays(kept)) if kept.exists() else None
        members = data.pop("members")
        plan = restarts(data["guide"], data["seed"])
        runs = zip(_member_places(path, len(members)), plan, members, strict=True)
        trained = tuple(Trained.load(place, one.guide, facts) for place, one, facts in runs)
        return cls(trained=trained, training=training, validation=validation, **arrays, **data)


def fit(
    model: PerturbedVAE,
    screen: Screen,
    *,
    guide: Amortized | Ensemble | None = None,
    settings: FitSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    known_targets: Sequence[str] = (),
    checkpoint: str | Path | None = None,
) -> Fit:
    """Fit the story to every cell of `screen` (split it first: `split_screen`).

    Warm start in closed form, then SVI; see FitSettings. With an `Ensemble` for a guide, all of that for every member, one
    after the other. `checkpoint`: a folder that gets the state after every epoch and from which an interrupted fit goes on,
    bit for bit. `known_targets`: further targets that predictions may be asked for.
    Raises InputError for a screen that cannot be fitted and NotFinite when the loss stops being finite.
    """
    guide, settings = guide or Amortized(), settings or FitSettings()
    check_screen(model, screen, seed)
    where = choose_device(device)
    used = np.asarray(abs(screen.expression).sum(axis=0)).ravel() > 0
    if not used.all():
        log.warning(
            "%d of %d genes are zero in every training cell: predicted as zero.",
            int((~used).sum()),
            len(used),
        )
    inner = screen if used.all() else screen.select_genes([str(g) for g in screen.genes[used]])
    plan = restarts(guide, seed)
    names = [f"fit {i + 1}/{len(plan)}" for i in range(len(plan))] if len(plan) > 1 else ["fit"]
    places = [None] * len(plan) if checkpoint is None else _member_places(Path(checkpoint), len(plan))
    trained = tuple(
        train(model, inner, one, settings, where, place, progress, name)
        for one, place, name in zip(plan, places, names, strict=True)
    )
    _, held_out = validation_slice(inner, settings.validation, plan[0].seed)
    counts = np.zeros((len(screen.conditions), len(screen.batches)))
    np.add.at(counts, (screen.condition, screen.batch), 1.0)
    return Fit(
        model=model, guide=guide, settings=settings, seed=seed, trained=trained,
        genes=np.asarray(screen.genes).astype(str), active=used, targets=screen.targets,
        known_targets=tuple(sorted({*screen.targets, *known_targets})), conditions=screen.conditions,
        design=np.asarray(screen.design, dtype=np.float32), batches=screen.batches, batch_counts=counts,
        library=screen.library.astype(np.float32), scale=screen.scale, training=screen.summary(),
        validation=screen.cells(held_out).summary() if len(held_out) else None, notices=screen.notices,
        versions=versions(), date=date.today().isoformat(),
    )  # fmt: skip


def _member_places(folder: Path, n: int) -> list[Path]:
    """A folder for each of n runs: the folder itself for one, else one inside it for each."""
    return [folder] if n == 1 else [folder / f"member-{i}" for i in range(n)]


def _blocks(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables of an ensemble's members under each other, numbered by `member`."""
    return pd.concat(tables, keys=range(len(tables)), names=["member", None]).reset_index("member").reset_index(drop=True)


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
