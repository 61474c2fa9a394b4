"""The data object: a perturbation screen with parsed conditions, design matrix and log expression."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from pvae_pyro.errors import InputError
from pvae_pyro.labels import (
    CONTROL,
    LabelConvention,
    canonical,
    detect_convention,
    is_control_part,
    is_control_word,
    listing,
    near,
    parse_condition,
    split_label,
)
from pvae_pyro.reading import (
    Source,
    canonical_csr,
    check_values,
    log_expression,
    read_lines,
    read_source,
    settle_scale,
    strings,
    text_column,
)
from pvae_pyro.splits import Split, read_conditions, split_screen, validation_slice
from pvae_pyro.summary import ConditionSummary, find_conditions, gene_variance, summarise

__all__ = [
    "CONTROL",
    "ConditionSummary",
    "Screen",
    "Split",
    "read_conditions",
    "split_screen",
    "validation_slice",
]

DEFAULT_GENES = 5000
"""Genes kept when nothing is said: all up to this number, else this many."""


@dataclass(frozen=True, eq=False)
class Screen:
    """Cells of a perturbation screen; N cells, G genes, T targets, C conditions.

    expression: (N, G) float32, log1p of counts per 10,000; the input's own scale if "normalised"
    counts:     (N, G) float32 raw counts, None where normalised
    library:    (N,) float64, total counts over all genes of the file; ones where normalised
    targets:    sorted, those that occur here; conditions: canonical, control first, then by size and name
    design:     (C, T) float32 doses, 0 where absent
    condition:  (N,) int64 index into conditions; batch: the same into batches; covariates: text, (N,) each
    notices:    what was detected or dropped, one sentence each
    """

    expression: sp.csr_matrix
    counts: sp.csr_matrix | None
    scale: str
    library: np.ndarray
    genes: np.ndarray
    targets: tuple[str, ...]
    conditions: tuple[str, ...]
    design: np.ndarray
    condition: np.ndarray
    batch: np.ndarray
    batches: tuple[str, ...]
    covariates: dict[str, np.ndarray]
    convention: LabelConvention
    notices: tuple[str, ...]

    @classmethod
    def from_anndata(
        cls,
        data: AnnData | str | Path,
        perturbation_key: str,
        *,
        control_label: str | None = None,
        separator: str | None = None,
        batch_key: str | None = None,
        covariate_keys: Sequence[str] = (),
        dose_key: str | None = None,
        layer: str | None = None,
        scale: str | None = None,
        require_control: bool = True,
    ) -> Screen:
        """Read a screen from an AnnData or an h5ad file, which is not modified and never made dense.

        `perturbation_key`: obs column of labels, in any convention of `labels.detect_convention`;
        `dose_key`: obs column of doses, one number (for every target of the cell) or several joined like the
        targets, in their order; `layer`: matrix to read instead of X; `scale`: overrides what is found;
        `require_control`: refuse a file without control or without perturbed cells (a test file may have
        none). All-zero cells are dropped and counted. Raises InputError for whatever cannot be used.
        """
        extra = [key for key in (batch_key, *covariate_keys, dose_key) if key is not None]
        source = read_source(data, [perturbation_key, *extra], layer)
        origin = source.origin if layer is None else f"layer {layer!r} of {source.origin}"
        check_values(source.matrix, origin)
        label_codes, labels = text_column(source, perturbation_key, labels=True, control_label=control_label)
        each = [labels[code] for code in label_codes]
        genes = source.genes.tolist()
        convention = detect_convention(each, control_label, separator, genes, require_control)
        codes, parsed = _conditions(source, label_codes, labels, convention, dose_key)

        names = [canonical(doses, doses.values()) for doses in parsed]
        is_control = np.array([name == CONTROL for name in names])[codes]
        if require_control:
            _require_control(is_control, label_codes, labels, perturbation_key)
        scale_found = settle_scale(source.matrix, is_control, scale, origin)
        kept = np.diff(source.matrix.indptr) > 0
        if not kept.any():
            raise InputError(
                f"no cell of {origin} has a single count; give a file or layer that holds counts."
            )
        if require_control:
            _require_control(is_control[kept], label_codes[kept], labels, perturbation_key)

        by_name = dict(zip(names, parsed, strict=True))
        conditions = sorted(by_name, key=lambda name: (len(by_name[name]), name))
        targets = sorted({target for doses in parsed for target in doses})
        row = {name: place for place, name in enumerate(conditions)}
        column = {target: place for place, target in enumerate(targets)}
        design = np.zeros((len(conditions), len(targets)), dtype=np.float32)
        for name, doses in by_name.items():
            for target, dose in doses.items():
                design[row[name], column[target]] = dose
        batch, batches = np.zeros(len(codes), dtype=np.int64), ["all"]
        if batch_key is not None:
            batch, batches = text_column(source, batch_key)
        covariates = {}
        for key in covariate_keys:
            level_codes, levels = text_column(source, key)
            covariates[key] = strings(levels)[level_codes]
        expression, counts, library = log_expression(source.matrix, scale_found)
        whole = cls(
            expression=expression,
            counts=counts,
            scale=scale_found,
            library=library,
            genes=source.genes,
            targets=tuple(targets),
            conditions=tuple(conditions),
            design=design,
            condition=np.array([row[name] for name in names], dtype=np.int64)[codes],
            batch=batch,
            batches=tuple(batches),
            covariates=covariates,
            convention=convention,
            notices=_notices(labels, convention, scale_found, scale, int((~kept).sum()), expression),
        )
        return whole if kept.all() else whole.cells(kept)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.expression.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self.expression.shape[1])

    def __len__(self) -> int:
        return self.n_cells

    def __repr__(self) -> str:
        held = f"{self.n_cells} cells x {self.n_genes} genes, {len(self.conditions)} conditions"
        return f"Screen({held}, {len(self.targets)} targets, {len(self.batches)} batches, {self.scale})"

    def cells(self, index: Any) -> Screen:
        """The cells that a mask, a slice or indices pick, in that order.

        Conditions, targets and batches that no longer occur are dropped.
        """
        chosen = np.arange(self.n_cells)[index]
        present, condition = np.unique(self.condition[chosen], return_inverse=True)
        design = self.design[present]
        kept = np.flatnonzero((design != 0).any(axis=0))
        levels, batch = np.unique(self.batch[chosen], return_inverse=True)
        expression = canonical_csr(self.expression[chosen])
        return dataclasses.replace(
            self,
            expression=expression,
            counts=None if self.counts is None else _same_places(self.counts[chosen], expression),
            library=self.library[chosen],
            targets=tuple(self.targets[place] for place in kept),
            conditions=tuple(self.conditions[place] for place in present),
            design=np.ascontiguousarray(design[:, kept]),
            condition=condition.astype(np.int64),
            batch=batch.astype(np.int64),
            batches=tuple(self.batches[place] for place in levels),
            covariates={key: strings(values[chosen]) for key, values in self.covariates.items()},
        )

    def restrict(self, conditions: Sequence[str]) -> Screen:
        """The cells of these conditions, in the order of the screen; InputError for one without cells."""
        return self.cells(np.isin(self.condition, find_conditions(conditions, self.conditions)))

    def select_genes(self, genes: Sequence[str]) -> Screen:
        """These genes, in the order given; library sizes stay those of the whole file.

        Raises InputError for a gene that is not here or named twice.
        """
        places = {str(gene): place for place, gene in enumerate(self.genes)}
        asked = [str(gene) for gene in genes]
        if absent := [gene for gene in asked if gene not in places]:
            raise InputError(
                f"{len(absent)} of {len(asked)} genes asked for are not in the data, such as {absent[0]!r} "
                f"({near(absent[0], places)}); correct or remove them."
            )
        if not asked:
            raise InputError("the list of genes is empty; name at least one gene.")
        if len(set(asked)) < len(asked):
            twice = next(gene for gene, times in Counter(asked).items() if times > 1)
            raise InputError(f"the gene {twice!r} is asked for twice; name each gene once.")
        columns = np.array([places[gene] for gene in asked])
        expression = canonical_csr(self.expression[:, columns])
        counts = None if self.counts is None else _same_places(self.counts[:, columns], expression)
        return dataclasses.replace(self, expression=expression, counts=counts, genes=strings(asked))

    def choose_genes(self, spec: str | int | Path | None = None) -> np.ndarray:
        """Names of genes to keep, in the order of this screen, chosen on its cells, the training cells.

        `spec`: "all"; a number, that many with the largest variance of log expression; a file with one gene
        a line; or None, all up to 5,000, else the 5,000 most variable. Raises InputError for a number below
        1, a file that cannot be read and a gene that is not here.
        """
        if isinstance(spec, str) and re.fullmatch(r"[+-]?\d+", spec.strip()):
            spec = int(spec)
        if spec is None:
            spec = DEFAULT_GENES
        if spec == "all":
            return self.genes.copy()
        if isinstance(spec, int):
            if isinstance(spec, bool) or spec < 1:
                raise InputError(
                    f"the number of genes is {spec}; give 'all', a number of at least 1 or a file."
                )
            ranked = np.argsort(-gene_variance(self.expression), kind="stable")
            return strings(self.genes[np.sort(ranked[:spec])])
        listed = read_lines(spec, "genes")
        wanted = set(self.select_genes(listed).genes.tolist())  # refuses what is not here
        return strings(gene for gene in self.genes if gene in wanted)

    def summary(self, seed: int = 0) -> ConditionSummary:
        """Moments of every condition; the seed cuts each condition's cells into halves."""
        return summarise(self, seed)

    def condition_table(self) -> pd.DataFrame:
        """One row a condition: condition, n_cells, n_targets."""
        n_cells = np.bincount(self.condition, minlength=len(self.conditions))
        n_targets = (self.design != 0).sum(axis=1)
        return pd.DataFrame({"condition": list(self.conditions), "n_cells": n_cells, "n_targets": n_targets})


def _require_control(is_control: np.ndarray, codes: np.ndarray, labels: list[str], key: str) -> None:
    if not len(is_control) or (is_control.any() and not is_control.all()):
        return
    frequent = np.argsort(-np.bincount(codes, minlength=len(labels)), kind="stable")
    shown = listing([labels[place] for place in frequent], 6)
    if is_control.any():
        raise InputError(
            f"every cell is a control in the obs column {key!r} (labels: {shown}); add perturbed cells."
        )
    raise InputError(
        f"there are no control cells in the obs column {key!r} (frequent labels: {shown}); name the control "
        "label (--control-label) or add control cells."
    )


def _conditions(
    source: Source, codes: np.ndarray, labels: list[str], convention: LabelConvention, dose_key: str | None
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Targets and doses of each kind of cell, and the kind of each cell."""
    if dose_key is None:
        return codes, [parse_condition(label, convention) for label in labels]
    # Doses may be missing for control cells, where they mean nothing.
    column = source.columns[dose_key].astype(object)
    column = column.where(column.notna(), "")
    dose_codes, levels = pd.factorize(column)
    kinds, kind_codes = np.unique(codes * len(levels) + dose_codes, return_inverse=True)
    parsed = [
        _dosed(labels[kind // len(levels)], str(levels[kind % len(levels)]), convention) for kind in kinds
    ]
    return kind_codes, parsed


def _dosed(label: str, dose: str, convention: LabelConvention) -> dict[str, float]:
    targets = list(parse_condition(label, convention))
    if not targets:
        return {}
    parts = split_label(label, convention)
    aligned = [part for part in parts if not is_control_part(part, convention)]
    try:
        doses = [float(dose)] * len(aligned)
    except ValueError:
        joint = convention.separator if convention.separator and convention.separator in dose else None
        pieces = dose.split(joint) if joint else re.split(r"[+,|;_]", dose)
        try:
            doses = [float(piece) for piece in pieces]
        except ValueError:
            doses = []
        if len(doses) == len(parts):  # "A+ctrl" with "0.5+1": control parts have a dose, too
            doses = [d for d, part in zip(doses, parts, strict=True) if not is_control_part(part, convention)]
    if len(doses) != len(aligned) or set(aligned) != set(targets) or not all(0 <= d < np.inf for d in doses):
        raise InputError(
            f"the dose {dose!r} does not fit the label {label!r}; give one number of 0 or more, or one a "
            "target joined by '+' in the order of the label."
        )
    written = canonical(aligned, doses)
    return parse_condition(written)


def _same_places(counts: sp.csr_matrix, expression: sp.csr_matrix) -> sp.csr_matrix:
    """Counts on the index arrays of the expression, which are the same, to hold them once."""
    return sp.csr_matrix(
        (canonical_csr(counts).data, expression.indices, expression.indptr), expression.shape
    )


def _notices(
    labels: list[str],
    convention: LabelConvention,
    scale: str,
    asked: str | None,
    dropped: int,
    expression: sp.csr_matrix,
) -> tuple[str, ...]:
    notices = [convention.describe()]
    pooled = [label for label in labels if label in convention.control_labels]
    if len(pooled) > 1:
        notices.append(f"{len(pooled)} labels mean control and are pooled: {listing(pooled)}.")
    spared = [label for label in labels if is_control_word(label) and label not in pooled]
    if spared := [label for label in spared if parse_condition(label, convention)]:
        notices.append(f"{listing(spared)} is read as a target, since another control label was given.")
    cases: dict[str, list[str]] = {}
    for label in labels:
        cases.setdefault(label.casefold(), []).append(label)
    if slips := [one for one in cases.values() if len(one) > 1 and not set(one) & set(pooled)]:
        notices.append(f"{listing(slips[0])} differ in case only and are read as different conditions.")
    odd = [label for label in labels if "_" in label and label not in pooled]
    if odd and convention.separator is None:
        notices.append(f"'_' is read as part of the name in {listing(odd, 3)}.")
    found = {"counts": "every value is a whole number", "normalised": "values are not whole numbers"}[scale]
    found = "as asked" if asked else found
    if scale == "counts":
        notices.append(
            f"The matrix is read as raw counts ({found}); expression is log1p of counts per 10,000."
        )
    else:
        notices.append(f"The matrix is read as normalised expression ({found}) and used as it is.")
        if expression.nnz and expression.data.max() > 50:
            notices.append(
                f"Its largest value is {expression.data.max():.4g}, which is large for a log scale."
            )
    if dropped:
        notices.append(f"{dropped} cells without a single count were dropped.")
    return tuple(notices)
