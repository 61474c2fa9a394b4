"""What joins the targets of a combination in a file's labels; above all, whether "_" does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations, pairwise

from pvae_pyro.errors import InputError

STRONG_SEPARATORS = ("+", ",", "|", ";")
"""Never part of a gene name, so a separator wherever they stand."""

WEAK_SEPARATORS = ("/", "&", ":", "-")
"""Part of many gene names; doubtful where all they join are labels themselves."""

_MOST_TOKENS = 12  # readings of a label grow as 2^tokens


def segment(label: str, separator: str, whole: Collection[str] = ()) -> list[str]:
    """Parts of a label; from the left, the longest names of `whole`, which contain the separator, first."""
    tokens = label.split(separator)
    parts: list[str] = []
    start = 0
    while start < len(tokens):
        stop = start + 1
        for end in range(len(tokens), start + 1, -1):
            if separator.join(tokens[start:end]).strip() in whole:
                stop = end
                break
        parts.append(separator.join(tokens[start:stop]))
        start = stop
    return parts


def detect_separator(
    labels: Sequence[str], is_control: Callable[[str], bool], genes: Iterable[str] = ()
) -> tuple[str | None, tuple[str, ...]]:
    """What joins targets in these labels (control labels left out), and the target names that contain it.

    `is_control` says whether a part of a label means "no target"; `genes` are names that targets may well
    have. Raises InputError when the labels can be read in more than one way.
    """
    strong = {mark: [label for label in labels if mark in label] for mark in STRONG_SEPARATORS}
    used = [mark for mark in STRONG_SEPARATORS if strong[mark]]
    if len(used) > 1:
        found = " and ".join(f"{mark!r} (as in {strong[mark][0]!r})" for mark in used)
        raise InputError(
            f"the labels use several separators, {found}; set the one that joins targets (--separator)."
        )
    named = {gene for gene in genes if not gene.isdigit()}  # unnamed genes are numbered: no hint at a target
    if used:
        mark = used[0]
        targets = {part.strip() for label in labels for part in label.split(mark)}
        for label in labels:
            pieces = label.split("_")
            if mark not in label and len(pieces) > 1 and label not in named and targets.issuperset(pieces):
                _refuse(
                    f"the parts of {label!r} are targets by themselves, but others are joined by {mark!r}"
                )
        return mark, ()
    _refuse_if_joined(labels, is_control, named)
    return _underscore(labels, is_control, named)


def _refuse_if_joined(labels: Sequence[str], is_control: Callable[[str], bool], named: set[str]) -> None:
    """Refuse a label whose parts, at a mark that is no separator by itself, are labels or control words."""
    alone = set(labels)
    for mark in WEAK_SEPARATORS:
        for label in labels:
            parts = [part.strip() for part in label.split(mark)]
            targets = [part for part in parts if not is_control(part)]
            if len(parts) > 1 and targets and label not in named and alone.issuperset(targets):
                raise InputError(
                    f"it is unclear whether {mark!r} joins targets: the parts of {label!r} are labels by themselves; set "
                    f"--separator {mark} if it does, or 'none' if it is part of names."
                )


def _underscore(
    labels: Sequence[str], is_control: Callable[[str], bool], named: set[str]
) -> tuple[str | None, tuple[str, ...]]:
    marked = {label for label in labels if "_" in label}
    if not marked:
        return None, ()
    singles = {label for label in labels if "_" not in label}
    # "X_ctrl" shows that X is a target, even if no cell is labelled X alone.
    padded = {_without_control(label, is_control) for label in marked} - marked - {""}
    atoms = singles | {rest for rest in padded if "_" not in rest} | named
    used: set[str] = set()
    split: dict[str, frozenset[str]] = {}
    unresolved: set[str] = set()
    candidates = marked | {rest for rest in padded if "_" in rest}
    for label in sorted(candidates, key=lambda text: (text.count("_"), text)):
        readings = {
            frozenset(piece for piece in pieces if not is_control(piece))
            for pieces in _readings(label)
            if all(piece in atoms or is_control(piece) for piece in pieces)
        }
        if len(readings) > 1 or (readings and label in named):
            _refuse(f"the label {label!r} can be read as one target and as several")
        if readings:
            split[label] = next(iter(readings))
            used |= {piece for piece in split[label] if "_" in piece}
        else:
            atoms.add(label)
            if label in padded:
                used.add(label)
            elif label not in named:
                unresolved.add(label)
    if not split:
        _refuse_if_pairs(unresolved, singles)
        return None, ()
    # "gene_3" is a name where "gene_1" has been shown to be one.
    families = {(name.count("_"), name.split("_")[0]) for name in used}
    unresolved = {
        label for label in unresolved - used if (label.count("_"), label.split("_")[0]) not in families
    }
    for label in sorted(used & marked):
        if known := singles.intersection(label.split("_")):
            # a gene "A_B" beside B, or the pair, if "A_B_C" is a triple
            _refuse(f"{label!r} is a part of longer labels, but {min(known)!r} is a target by itself")
    if unresolved:
        label, pair = min(unresolved), min(split)
        _refuse(f"'_' joins targets in {pair!r}, but the parts of {label!r} are not known as single targets")
    names = tuple(sorted({label for label in atoms if label in marked or label in used} - set(split)))
    pieces_of_all = (piece for label in split for pieces in _readings(label) for piece in pieces)
    whole = {*names, *(piece for piece in pieces_of_all if is_control(piece))}
    for label, targets in split.items():
        if frozenset(part for part in segment(label, "_", whole) if not is_control(part)) != targets:
            _refuse(f"the label {label!r} can be read in several ways")
    return "_", names


def _refuse_if_pairs(labels: set[str], singles: set[str]) -> None:
    """No label is a sure combination: refuse where one still may be, else "_" belongs to the names."""
    places: dict[str, set[bool]] = {}
    for label in sorted(labels):
        tokens = label.split("_")
        for token in tokens:
            if token in singles:
                _refuse(f"{token!r} is a target by itself and the rest of {label!r} is not")
        for place, token in enumerate(tokens):
            if token and not token.isdigit():
                places.setdefault(token, set()).add(place == 0)
                # "HLA_A" and "HLA_B" share a family name; "A_B" and "B_C" share a target.
                if len(places[token]) > 1:
                    _refuse(f"{token!r} stands first in one label and later in another, such as {label!r}")


def _refuse(why: str) -> None:
    raise InputError(
        f"it is unclear whether '_' joins targets: {why}; set --separator _ to split at every '_', or "
        "another separator ('none' for none) to keep names such as this one whole."
    )


def _without_control(label: str, is_control: Callable[[str], bool]) -> str:
    """What is left of a label when control words at its beginning and end are taken away, the longest first.

    ("A_neg_ctrl" is A beside "neg_ctrl", not "A_neg" beside "ctrl".)
    """
    tokens = label.split("_")
    for cut in range(len(tokens) - 1, 0, -1):
        if is_control("_".join(tokens[:cut])):
            return _without_control("_".join(tokens[cut:]), is_control)
        if is_control("_".join(tokens[-cut:])):
            return _without_control("_".join(tokens[:-cut]), is_control)
    return "" if is_control(label) else label


def _readings(label: str) -> Iterable[list[str]]:
    """All ways to cut a label at "_" into two parts or more."""
    tokens = label.split("_")
    if len(tokens) > _MOST_TOKENS:
        return
    for cuts in range(1, len(tokens)):
        for places in combinations(range(1, len(tokens)), cuts):
            edges = (0, *places, len(tokens))
            yield ["_".join(tokens[a:b]) for a, b in pairwise(edges)]
