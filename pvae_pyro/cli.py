"""The commands of `pvae-pyro`: options in, files out; all the work is done elsewhere.

torch and everything that needs it is imported inside the commands, so that --help and refusals are quick.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pvae_pyro import outputs
from pvae_pyro.cli_scored import note_of, read_cells, read_test
from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from pvae_pyro.inference import Finding

app = typer.Typer(
    name="pvae-pyro",
    help="Predict what unseen combinations of gene perturbations do to cells, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: the output is read by scripts and logs, too
)

REPORT_KIND = "pvae_pyro report"
REPORT_MARKER = "evaluation.json"
_LOG = logging.getLogger("pvae_pyro")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `pvae-pyro fit` wrote.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output at the same place.")]


class _Echo(logging.Handler):
    """Notices of the package to standard output, its warnings to standard error, as plain sentences."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=record.levelno >= logging.WARNING)


@contextmanager
def command() -> Iterator[None]:
    """What every command shares: notices are shown; a user's mistake ends in one sentence and status 2."""
    handler, level = _Echo(logging.INFO), _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    except InputError as problem:
        _stop(str(problem), 2)
    except KeyboardInterrupt:
        _stop("interrupted, nothing was written.", 130)
    except BrokenPipeError:  # whoever read the output has enough
        raise
    except OSError as problem:  # a full disk, a folder without permission
        where = f" ({problem.filename})" if problem.filename else ""
        _stop(f"the system refused: {problem.strerror or problem}{where}.", 1)
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)


def _stop(sentence: str, status: int) -> NoReturn:
    typer.echo(f"Error: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(status) from None


@app.command("fit")
@command()
def fit_command(
    data: Annotated[Path, typer.Argument(metavar="DATA.h5ad", help="Screen: cells x genes, labels in obs.")],
    perturbation_key: Annotated[str, typer.Option(help="obs column that says what was perturbed.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder to write the fit to.")],
    control_label: Annotated[
        str | None, typer.Option(help="Label of control cells (default: found).")
    ] = None,
    separator: Annotated[str | None, typer.Option(help="What joins targets (default: found).")] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of batches.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to read instead of X.")] = None,
    genes: Annotated[
        str | None,
        typer.Option(metavar="all|N|FILE", help="Genes to fit (default: all, or the 5,000 most variable)."),
    ] = None,
    train: Annotated[
        str, typer.Option(metavar="all|singles|FILE", help="Conditions to train on (FILE: one a line).")
    ] = "all",
    hold_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Conditions never to train on, one a line.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Tables [story], [guide] and [fit].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit the model to a screen."""
    from pvae_pyro.runs import RunWriter, fingerprint

    _check_seed(seed)
    writer = RunWriter.check(out, resume, overwrite)

    from pvae_pyro.config import load_config, to_dict, to_toml
    from pvae_pyro.inference.admission import choose_device
    from pvae_pyro.screen import Screen, read_conditions, split_screen

    choose_device(device)
    parts = load_config(config)
    trained = train if train in ("all", "singles") else read_conditions(train)
    kept_back = read_conditions(hold_out) if hold_out else []
    screen = Screen.from_anndata(
        data,
        perturbation_key,
        control_label=control_label,
        separator=separator,
        batch_key=batch_key,
        layer=layer,
    )
    split = split_screen(screen, trained, kept_back)
    chosen = [str(gene) for gene in split.train.choose_genes(genes)]
    training = split.train.select_genes(chosen)
    held_out = split.held_out.select_genes(chosen).summary(seed) if split.held_out else None
    settings = {
        "perturbation_key": perturbation_key,
        "control_label": control_label,
        "separator": separator,
        "batch_key": batch_key,
        "layer": layer,
        "train": trained,
        "hold_out": kept_back,
        "genes": len(chosen),
        "seed": seed,
        "config": to_dict(parts),
        "data": fingerprint(training),
    }
    writer.match(settings)
    for notice in screen.notices:
        typer.echo(notice)
    how = "all"
    if len(chosen) < screen.n_genes:
        by_number = genes is None or genes.strip().isdecimal()
        how = "the most variable in training cells" if by_number else f"listed in {genes}"
    typer.echo(f"Genes: {len(chosen)} of {screen.n_genes} ({how}).")
    typer.echo(split.describe())
    if writer.complete:
        typer.echo(f"The fit in {out} is complete, there is nothing to resume.")
        return

    from pvae_pyro.inference import NotFinite
    from pvae_pyro.inference import fit as fit_model
    from pvae_pyro.inference.versions import versions

    facts = {
        "versions": versions(),
        "command": shlex.join(["pvae-pyro", *sys.argv[1:]]),
        "data": data.name,
        "note": note_of(data),
        "settings": settings,
    }
    writer.begin(facts, to_toml(to_dict(parts)), held_out)
    try:
        fit = fit_model(
            parts.model,
            training,
            guide=parts.guide,
            settings=parts.settings,
            seed=seed,
            device=device,
            progress=sys.stderr.isatty(),
            known_targets=screen.targets,
            checkpoint=writer.checkpoint,
        )
        fit.save(writer.work / "fit")
        writer.finish()
    except BaseException as problem:
        kept = writer.give_up()
        if isinstance(problem, KeyboardInterrupt) and kept:
            _stop(
                f"interrupted, the state is in {writer.work}; continue by the same command with --resume.",
                130,
            )
        if isinstance(problem, NotFinite):
            _stop(str(problem), 1)
        raise
    _show_findings(fit.diagnose())
    typer.echo(f"The fit is in {out}.")


@app.command()
@command()
def predict(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="PRED.h5ad", help="File of predicted pseudobulks to write.")],
    conditions: Annotated[
        str | None, typer.Option(metavar="'A+B,C+D'", help="Conditions to predict.")
    ] = None,
    conditions_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Conditions, one a line.")
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Every pair of trained targets.")] = False,
    n_cells: Annotated[int | None, typer.Option(help="Cells of each predicted pseudobulk.")] = None,
    n_cells_file: Annotated[
        Path | None, typer.Option(metavar="CSV", help="The same by condition: columns condition,n_cells.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Posterior draws.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    draws_out: Annotated[Path | None, typer.Option(metavar="D.npz", help="Write the draws, too.")] = None,
    cells_out: Annotated[
        Path | None, typer.Option(metavar="CELLS.h5ad", help="Write new cells, too.")
    ] = None,
    effects_out: Annotated[
        Path | None, typer.Option(metavar="EFFECTS.csv", help="Write the latent effects, too.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict conditions, measured or not, with their uncertainty."""
    from pvae_pyro.runs import open_run

    _check_seed(seed)
    if draws < 1:
        raise InputError(f"the number of draws is {draws}; give 1 or more.")
    targets = [path for path in (out, draws_out, cells_out, effects_out) if path is not None]
    for path in targets:
        outputs.check_new_file(path, overwrite)
    outputs.check_distinct(targets)
    opened = open_run(run)

    from pvae_pyro import cli_files as files
    from pvae_pyro import cli_request as request
    from pvae_pyro.inference import Fit

    request.check_one_source(conditions, conditions_file, all_pairs)
    fit = Fit.load(opened.fit)
    sizes = request.cell_numbers(n_cells, n_cells_file, fit.known_targets)
    asked = request.conditions(conditions, conditions_file, fit.known_targets)
    posterior = fit.predict(asked or request.all_pairs(fit.targets), draws=draws, n_cells=sizes, seed=seed)
    origin = {"run": run.name, "seed": seed, "draws": draws}
    with outputs.staged(*targets) as parts:
        place = dict(zip(targets, parts, strict=True))
        files.write_predictions(posterior, place[out], origin)
        if draws_out:
            files.write_draws(posterior, place[draws_out])
        if cells_out:
            files.write_cells(posterior, place[cells_out], origin)
        if effects_out:
            fit.effects_table(seed=seed).to_csv(place[effects_out], index=False)
    typer.echo(
        f"Predicted {len(posterior.conditions)} conditions x {len(posterior.genes)} genes from {draws} draws: "
        f"{', '.join(map(str, targets))}."
    )
    _show_findings(posterior.diagnose())


@app.command()
@command()
def evaluate(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the report to.")],
    test: Annotated[
        Path | None,
        typer.Option(metavar="TEST.h5ad", help="Cells to score on (default: what the fit held out)."),
    ] = None,
    cells: Annotated[
        bool, typer.Option("--cells", help="Score new cells as well, not only pseudobulks; needs --test.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score predictions of held-out conditions beside baselines, and write a report."""
    from pvae_pyro.runs import open_run

    outputs.check_new_folder(out, overwrite, REPORT_MARKER, REPORT_KIND)
    if cells and test is None:
        raise InputError("--cells needs the cells themselves, but a run keeps summaries only; give them with --test.")
    opened = open_run(run)

    from pvae_pyro.inference import Fit
    from pvae_pyro.report import evaluate_run

    fit = Fit.load(opened.fit)
    measured = None if test is None else read_cells(test, opened, fit)
    truth = opened.held_out() if measured is None else measured.summary()
    with outputs.staged(out) as (folder,):
        note = note_of(test) if test else opened.facts["note"]
        shown = measured if cells else None
        report = evaluate_run(fit, truth, folder, seed=opened.settings["seed"], data_note=note, cells=shown)
        facts = {"run": run.name, "test": test.name if test else None, "seed": opened.settings["seed"]}
        outputs.write_marker(folder, REPORT_MARKER, REPORT_KIND, facts)
    typer.echo(f"The report is in {out / report.name}.")


@app.command()
@command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of fits; the first is the reference.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the comparison to.")],
    test: Annotated[
        Path | None,
        typer.Option(metavar="TEST.h5ad", help="Cells to score on (default: what all runs held out)."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Posterior draws of each run.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the draws and of the resampling.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Compare fits on conditions none was trained on: paired differences with standard errors."""
    from pvae_pyro import cli_compare as parts
    from pvae_pyro.runs import open_run

    _check_seed(seed)
    if len(runs) < 2:
        raise InputError("a comparison needs two runs or more, but one was given; name another RUN.")
    outputs.check_new_folder(out, overwrite, parts.MARKER, parts.KIND)
    opened, names = [open_run(run) for run in runs], parts.run_names(runs)

    from pvae_pyro.evaluation.compare import compare as compare_fits
    from pvae_pyro.inference import Fit

    fits = [Fit.load(run.fit) for run in opened]
    truth = parts.shared_held_out(opened, names) if test is None else read_test(test, opened[0], fits[0])
    if test is None:
        typer.echo(f"Held out by all {len(runs)} runs: {len(truth.conditions)} conditions.")
    found = compare_fits(dict(zip(names, fits, strict=True)), truth, draws=draws, seed=seed)
    note = note_of(test) if test else opened[0].facts["note"]
    with outputs.staged(out) as (folder,):
        parts.write_comparison(found, folder, names, test, draws, seed, note)
    typer.echo(f"{found}\nThe comparison is in {out / 'comparison.md'}.")


@app.command()
@command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="RUN.nc", help="netCDF file to write.")],
    draws: Annotated[int, typer.Option(help="Posterior draws.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    genes: Annotated[
        str, typer.Option(metavar="all|N", help="Genes of pseudobulks: the N that move most, or all.")
    ] = "100",
    overwrite: Overwrite = False,
) -> None:
    """Write draws of everything as ArviZ groups, for netCDF readers; docs/arviz.md says what is in them."""
    from pvae_pyro import cli_export as parts
    from pvae_pyro.runs import open_run

    _check_seed(seed)
    if draws < 1:
        raise InputError(f"the number of draws is {draws}; give 1 or more.")
    number = parts.number_of_genes(genes)
    outputs.check_new_file(out, overwrite)
    opened = open_run(run)
    held_out = parts.held_out_cells(opened)

    from pvae_pyro.inference import Fit

    tree = Fit.load(opened.fit).to_datatree(draws, seed, genes=number, predictions=held_out)
    with outputs.staged(out) as (part,):
        parts.write_netcdf(tree, part, opened)
    sizes = tree["posterior_predictive"].sizes
    typer.echo(
        f"Wrote {sizes['chain'] * sizes['draw']} draws of {sizes['condition']} trained and {len(held_out)} held-out "
        f"conditions, {sizes['gene']} genes, to {out}."
    )


@app.command()
@command()
def simulate(
    out: Annotated[Path, typer.Option(metavar="SIM.h5ad", help="File to write.")],
    preset: Annotated[str, typer.Option(metavar="NAME", help="Which simulated world.")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of the world and its cells.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a simulated screen with known truth."""
    outputs.check_new_file(out, overwrite)

    from pvae_pyro.simulate import simulate as simulate_screen

    screen = simulate_screen(preset, seed)
    screen.write(out)
    cells, genes = screen.adata.shape
    typer.echo(
        f"Wrote {cells} simulated cells x {genes} genes, {len(screen.truth.conditions)} conditions in "
        f"obs['condition'], to {out}."
    )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed is {seed}; give a number from 0 to {2**32 - 1}.")


def _show_findings(findings: Sequence[Finding]) -> None:
    for finding in (one for one in findings if one.level != "fine"):
        typer.echo(f"{finding.topic} ({finding.level}): {finding.sentence} {finding.advice}")


if __name__ == "__main__":
    app()
