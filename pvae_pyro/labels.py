"""Condition labels: how files write control and combinations, and the one canonical way this package does."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pvae_pyro.errors import InputError
from pvae_pyro.separators import STRONG_SEPARATORS, detect_separator, segment

CONTROL = "control"
"""Canonical name of the unperturbed condition."""

NO_SEPARATOR = "none"
"""Given as separator: every label is one target."""

_GAP = r"[\s_.-]*"
# Gaps only between whole words: "NT_C" is the gene C beside "NT", not "NTC".
_CONTROL_WORDS = re.compile(
    rf"(?:controls?|ctrls?|nt|ntc|(?:un|non{_GAP}|not{_GAP})perturbed|scrambled?|safe{_GAP}(?:target(?:ing)?|harbou?r)"
    rf"|non{_GAP}target(?:ing)?(?:{_GAP}(?:guide|s?grna))?|(?:neg|negative|nt|non{_GAP}targeting){_GAP}(?:control|ctrl)s?)"
)


@dataclass(frozen=True)
class LabelConvention:
    """How one file writes its labels.

    control_labels: spellings of control; separator: what joins targets, None where nothing does;
    names: names of single targets that contain the separator themselves.
    """

    control_labels: tuple[str, ...]
    separator: str | None
    names: tuple[str, ...] = ()

    def describe(self) -> str:
        """One sentence for the user."""
        control = listing(self.control_labels, limit=4) if self.control_labels else "not in the file"
        joined = "no label is a combination"
        if self.separator:
            joined = f"combinations are joined by {self.separator!r}"
        whole = f", and {listing(self.names, limit=4)} read as one target each" if self.names else ""
        return f"Labels: control is written {control}, {joined}{whole}."


CANONICAL = LabelConvention((CONTROL,), "+")
"""The convention in which this package writes its own condition names."""


def listing(names: Iterable[str], limit: int = 8) -> str:
    """Names in quotes, separated by commas, the rest as a count."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def near(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, for an error message."""
    known = list(known)
    folded: dict[str, str] = {}
    for one in known:
        folded.setdefault(one.lower(), one)
    alike = [
        folded[match] for match in difflib.get_close_matches(name.lower(), list(folded), n=4, cutoff=0.5)
    ]
    return f"near matches: {listing(alike)}" if alike else f"there are {listing(sorted(known), limit=5)}"


def is_control_word(label: str) -> bool:
    """Whether a label is a known way to write control, in any case, also with a guide number ("NT_3")."""
    text = label.strip().lower()
    if not text or _CONTROL_WORDS.fullmatch(text):
        return True
    numbered = re.fullmatch(r"(.*?[a-z])([\s_\-.]*)\d+", text)
    if numbered is None or not _CONTROL_WORDS.fullmatch(numbered[1]):
        return False
    # "NT5" and "NT-3" are names of genes, "NT_3" is the third guide; longer words are no genes.
    return len(numbered[1]) > 2 or numbered[2] in ("_", " ")


def canonical(targets: Iterable[str], doses: Iterable[float] | None = None) -> str:
    """Canonical name of a set of targets: sorted, joined by "+", a dose other than 1 as "A@0.5".

    No targets, or only targets at dose 0, give "control". Raises InputError for a target named twice, for a
    name that could not be read back (empty, with "+", ending in "@" and a number), and for a negative or
    infinite dose.
    """
    names = [str(target) for target in targets]
    amounts = [1.0] * len(names) if doses is None else [float(dose) for dose in doses]
    if len(amounts) != len(names):
        raise InputError(
            f"{len(names)} targets {listing(names)} came with {len(amounts)} doses; give one dose each."
        )
    written: dict[str, str] = {}
    for name, dose in zip(names, amounts, strict=True):
        if name == CONTROL:
            continue
        if not name or name != name.strip() or "+" in name or _target_and_dose(name)[0] != name:
            raise InputError(
                f"the target name {name!r} cannot be used: names must not be empty, contain '+' or end in "
                "'@' and a number, which condition names use themselves; rename it or set another separator "
                "(--separator)."
            )
        if name in written:
            raise InputError(f"the target {name!r} is named twice in one condition; name each target once.")
        # The design matrix is float32: a dose it cannot hold would silently turn into 0 or infinity.
        if not 0.0 <= dose <= float(np.finfo(np.float32).max) or (dose > 0.0 and np.float32(dose) == 0.0):
            raise InputError(
                f"the dose {dose!r} of target {name!r} is not a usable number; give a dose of 0 or more."
            )
        written[name] = "" if dose == 1.0 else f"@{_number(dose)}" if dose > 0.0 else "absent"
    present = sorted(name for name in written if written[name] != "absent")
    return "+".join(name + written[name] for name in present) or CONTROL


def split_label(name: str, convention: LabelConvention) -> list[str]:
    """Parts of a label as written, control parts included; a label that is control as a whole is one part."""
    text = name.strip()
    if convention.separator is None or text == CONTROL or text in convention.control_labels:
        return [text]
    whole = {
        *convention.names,
        *(label for label in convention.control_labels if convention.separator in label),
    }
    return [part.strip() for part in segment(text, convention.separator, whole)]


def is_control_part(part: str, convention: LabelConvention) -> bool:
    """Whether a part of a label stands for "no target"."""
    return part == CONTROL or part in convention.control_labels


def parse_condition(name: str, convention: LabelConvention = CANONICAL) -> dict[str, float]:
    """Targets of a label and their doses, sorted by target; {} for control.

    Raises InputError, naming the label, for a target that stands in it twice and for an empty part.
    """
    doses: dict[str, float] = {}
    for part in split_label(name, convention):
        if is_control_part(part, convention):
            continue
        if not part:
            raise InputError(
                f"the label {name!r} has an empty part next to {convention.separator!r}; mend the label or "
                "set what joins targets (--separator)."
            )
        target, dose = _target_and_dose(part)
        if target in doses:
            raise InputError(f"the label {name!r} names the target {target!r} twice; name each target once.")
        doses[target] = dose
    canonical(doses, doses.values())  # refuses names that could not be written back
    return {target: doses[target] for target in sorted(doses) if doses[target] > 0.0}


def canonical_name(name: str) -> str:
    """A "+"-joined name in canonical order: "B+A" gives "A+B"."""
    doses = parse_condition(name, CANONICAL)
    return canonical(doses, doses.values())


def detect_convention(
    labels: Sequence[str],
    control_label: str | None = None,
    separator: str | None = None,
    genes: Iterable[str] = (),
    require_control: bool = True,
) -> LabelConvention:
    """How `labels` (one a cell, or one a condition) write control and combinations.

    Labels that are known control words are control, all of them; `control_label` names the one that is
    instead. "+", "," "|" and ";" are separators wherever they stand; "_" only where the parts are known as
    labels, as control words or among `genes` (measured gene names, a hint). `separator` overrides; "none"
    means that nothing joins. `control_labels` is empty where no label is control. Raises InputError when
    labels can be read in several ways or, with `require_control`, when `control_label` is nowhere in them.
    """
    counts: dict[str, int] = {}
    for label in labels:
        counts[label.strip()] = counts.get(label.strip(), 0) + 1
    found = sorted(counts)

    if control_label is None:
        wholes = [label for label in found if is_control_word(label)]
    else:
        wholes = _matching(control_label, found)
        if CONTROL in found and CONTROL not in wholes:
            raise InputError(
                f"the control label was set to {control_label!r}, but the file also has cells labelled 'control', which "
                "always means unperturbed; set that one (--control-label control), or rename or remove those cells."
            )

    def filler(part: str) -> bool:
        if control_label is None:
            return is_control_word(part) and (bool(part) or "" in counts)
        # With a control label given, another control word still means "no target" where it only pads a pair.
        return _alike(part, control_label) or (bool(part) and is_control_word(part) and part not in counts)

    others = [label for label in found if label not in wholes]
    names: tuple[str, ...] = ()
    if separator is None:
        separator, names = detect_separator(others, filler, genes)
    elif separator.strip().lower() in ("", NO_SEPARATOR):
        separator = None
    else:
        separator = separator.strip()

    whole_parts: set[str] = set(names)
    if separator == "_":
        # "non_targeting" is one word although "_" joins targets.
        whole_parts |= {piece for label in others for piece in _pieces(label) if filler(piece)}
    fillers: set[str] = set()
    if separator is not None:
        for label in others:
            fillers.update(
                part.strip() for part in segment(label, separator, whole_parts) if filler(part.strip())
            )
        for label in wholes:
            parts = {part.strip() for part in label.split(separator)}
            if len(parts) == 1:  # "ctrl+ctrl": the part alone is control, too
                fillers |= parts
    met = bool(wholes) or any(_alike(part, control_label) for part in fillers)
    if require_control and control_label is not None and not met:
        frequent = sorted(counts, key=lambda label: (-counts[label], label))
        raise InputError(
            f"no cell has the control label {control_label!r}; frequent labels are "
            f"{listing(frequent, limit=6)}: set one of them (--control-label)."
        )
    return LabelConvention((*wholes, *sorted(fillers - set(wholes))), separator, names)


def parse_request(names: Iterable[str], known_targets: Iterable[str]) -> list[str]:
    """Canonical names of conditions typed by a user, in any convention, in the order asked.

    Raises InputError for an unknown target (with near matches) and for a condition asked for twice.
    """
    known = set(known_targets)
    asked: dict[str, str] = {}
    for name in names:
        text = name.strip()
        if not text:
            raise InputError("an empty condition name was asked for; write 'control' for unperturbed cells.")
        doses = _read_request(text, known)
        result = canonical(doses, doses.values())
        if result in asked:
            raise InputError(
                f"the condition {result!r} is asked for twice, as {asked[result]!r} and as {text!r}; ask for "
                "it once."
            )
        asked[result] = text
    return list(asked)


def _read_request(text: str, known: set[str]) -> Mapping[str, float]:
    def accepted(part: str) -> bool:
        return part in known or _target_and_dose(part)[0] in known or (bool(part) and is_control_word(part))

    options: list[list[str]] = [[text]]
    options += [[part.strip() for part in text.split(mark)] for mark in STRONG_SEPARATORS if mark in text]
    if "_" in text:
        options.append(segment(text, "_", {piece for piece in _pieces(text) if accepted(piece)}))
    for parts in options:
        if all(accepted(part) for part in parts):
            doses: dict[str, float] = {}
            for part in parts:
                target, dose = (part, 1.0) if part in known else _target_and_dose(part)
                if target not in known:
                    continue
                if target in doses:
                    raise InputError(f"the condition {text!r} names {target!r} twice; name each target once.")
                doses[target] = dose
            return doses
    # The reading with the fewest unknown parts is the one to complain about; a plain name before a split one.
    parts = min(options, key=lambda option: sum(not accepted(part) for part in option) / len(option))
    _unknown(next(part for part in parts if not accepted(part)), text, known)


def _unknown(part: str, text: str, known: set[str]) -> NoReturn:
    where = "" if part == text else f" in the condition {text!r}"
    raise InputError(
        f"unknown target {part!r}{where}: it stands in no condition of the data ({near(part, known)}); "
        "correct the name."
    )


def _pieces(label: str) -> set[str]:
    """All runs of "_"-joined tokens of a label."""
    tokens = label.split("_")
    return {"_".join(tokens[i:j]) for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)}


def _alike(label: str, given: str | None) -> bool:
    if given is None:
        return False
    return label == given.strip() or (bool(_word(label)) and _word(label) == _word(given))


def _word(label: str) -> str:
    """A label without case and punctuation."""
    return re.sub(r"[\s_\-.]+", "", label.lower())


def _matching(given: str, found: Sequence[str]) -> list[str]:
    """The label that was meant: as written, else the only one that differs in case or in "-", "_" and " "."""
    if given.strip() in found:
        return [given.strip()]
    alike = [label for label in found if _alike(label, given)]
    if len(alike) > 1:
        raise InputError(
            f"the control label {given!r} fits several labels, {listing(alike)}; write it exactly "
            "(--control-label)."
        )
    return alike


def _target_and_dose(part: str) -> tuple[str, float]:
    target, mark, amount = part.rpartition("@")
    if not mark or not target or not re.fullmatch(r"[0-9.]+(?:[eE][+-]?[0-9]+)?", amount):
        return part, 1.0
    try:
        dose = float(amount)
    except ValueError:
        return part, 1.0
    return (target, dose) if math.isfinite(dose) else (part, 1.0)


def _number(value: float) -> str:
    """Shortest text that reads back as the same number, without a "+" in its exponent."""
    return repr(value).removesuffix(".0").replace("e+", "e")
