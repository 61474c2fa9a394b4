"""Labels: every convention gives the same conditions, names round-trip, and what is unclear is refused."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, assume, given, settings

from pvae_pyro.errors import InputError
from pvae_pyro.labels import (
    CONTROL,
    LabelConvention,
    canonical,
    canonical_name,
    detect_convention,
    is_control_word,
    parse_condition,
    parse_request,
)

CONTROL_SPELLINGS = [
    *("", " ", "control", "Control", "CTRL", "ctrl", "non-targeting", "Non-Targeting", "non_targeting"),
    *(
        "nontargeting",
        "NT",
        "nt",
        "NTC",
        "unperturbed",
        "neg-control",
        "neg_ctrl",
        "NegCtrl0",
        "NT_3",
        "NTC-1",
    ),
    *("negative control", "safe-targeting", "non-targeting_0012", "scrambled"),
]
FIXED = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
GENES = st.from_regex(r"[A-Z][A-Z0-9]{0,4}([.-][A-Z0-9]{1,3})?", fullmatch=True).filter(
    lambda name: not is_control_word(name)
)
DOSES = st.floats(min_value=1e-30, max_value=1e30, allow_nan=False)


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    """The message, after checking that it is one sentence."""
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and not re.search(r"[.!?] ", message), message
    return message


def refused(labels: list[str], **options: str) -> str:
    with pytest.raises(InputError) as error:
        detect_convention(labels, **options)
    return one_sentence(error)


def read(labels: list[str], **options: str) -> list[str]:
    """Canonical names of labels by the convention detected in them."""
    convention = detect_convention(labels, **options)
    parsed = [parse_condition(label, convention) for label in labels]
    return [canonical(doses, doses.values()) for doses in parsed]


@pytest.mark.parametrize("label", CONTROL_SPELLINGS)
def test_control_words(label: str) -> None:
    assert is_control_word(label)
    assert read([label, "A", "A+B"]) == [CONTROL, "A", "A+B"]


@pytest.mark.parametrize(
    "label", ["NT5", "NT5E", "NT-3", "NTRK1", "CTRC", "CONTROLLER", "-", "A", "WT1", "0", "NT_C", "C-NT"]
)
def test_names_that_are_not_control(label: str) -> None:
    assert not is_control_word(label)


@settings(FIXED)
@given(st.dictionaries(GENES, DOSES, max_size=4), st.randoms())
def test_canonical_round_trip_in_any_order(doses: dict[str, float], random: object) -> None:
    items = list(doses.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    name = canonical([target for target, _ in items], [dose for _, dose in items])
    assert name == canonical(doses, doses.values())
    assert parse_condition(name) == {target: doses[target] for target in sorted(doses)}
    assert list(parse_condition(name)) == sorted(doses)
    assert canonical_name("+".join(reversed(name.split("+")))) == name


def test_canonical_by_hand() -> None:
    assert canonical([]) == CONTROL
    assert canonical(["B", "A"]) == "A+B"
    assert canonical(["B", "A"], [0.5, 2]) == "A@2+B@0.5"
    assert canonical(["B", "A"], [0, 1]) == "A"
    assert canonical(["A"], [1e22]) == "A@1e22"
    assert parse_condition("HLA-A+C1orf112.2") == {"C1orf112.2": 1.0, "HLA-A": 1.0}


@pytest.mark.parametrize(
    ("targets", "doses"),
    [
        (["A", "A"], None),
        (["A+B"], None),
        (["A@2"], None),
        ([""], None),
        ([" A"], None),
        (["A"], [-1]),
        (["A"], [float("nan")]),
        (["A"], [float("inf")]),
        (["A"], [1e-60]),
        (["A", "B"], [1]),
    ],
)
def test_canonical_refuses(targets: list[str], doses: list[float] | None) -> None:
    with pytest.raises(InputError) as error:
        canonical(targets, doses)
    one_sentence(error)


@st.composite
def screens(draw: st.DrawFn, largest: int = 4) -> list[tuple[str, ...]]:
    """Conditions of a screen: all singles, some combinations of up to `largest` of them."""
    singles = draw(st.lists(GENES, min_size=2, max_size=6, unique=True))
    combinations = st.lists(st.sampled_from(singles), min_size=2, max_size=largest, unique=True).map(tuple)
    return [(one,) for one in singles] + draw(st.lists(combinations, max_size=5))


@settings(FIXED, max_examples=200)
@given(screens(), st.sampled_from("+,|;_"), st.sampled_from(CONTROL_SPELLINGS), st.booleans(), st.randoms())
def test_all_conventions_give_the_same_conditions(
    conditions: list[tuple[str, ...]], separator: str, control: str, padded: bool, random: object
) -> None:
    def write(targets: tuple[str, ...]) -> str:
        parts = list(targets)
        if padded and len(parts) == 1 and control.strip():
            parts.append(control)
        random.shuffle(parts)  # type: ignore[attr-defined]
        return separator.join(parts)

    labels = [control, *(write(targets) for targets in conditions)]
    random.shuffle(labels)  # type: ignore[attr-defined]
    expected = sorted([CONTROL, *("+".join(sorted(targets)) for targets in conditions)])
    assert sorted(read(labels)) == expected
    assert sorted(read(labels, separator=separator)) == expected
    assert sorted(read(labels, control_label=control)) == expected


@settings(FIXED, max_examples=200)
@given(screens(largest=2), st.sets(st.integers(0, 10)))
def test_underscore_pairs_with_few_singles_are_read_rightly_or_refused(
    conditions: list[tuple[str, ...]], dropped: set[int]
) -> None:
    """With one sure pair in the file, no other pair may silently turn into a target of its own."""
    pair = ("XX1", "XX2")
    assume(not any(name in pair for targets in conditions for name in targets))
    kept = [targets for place, targets in enumerate(conditions) if place not in dropped or len(targets) > 1]
    kept += [("XX1",), ("XX2",), pair]
    try:
        found = read(["NT", *("_".join(targets) for targets in kept)])
    except InputError as problem:
        assert "--separator" in str(problem)
    else:
        assert found[1:] == ["+".join(sorted(targets)) for targets in kept]


@pytest.mark.parametrize("separator", ["+", ",", "|", ";"])
def test_underscore_in_names_beside_a_strong_separator(separator: str) -> None:
    labels = ["ctrl", "HLA_A", "B", f"HLA_A{separator}B", f"B{separator}ctrl", f"ctrl {separator} HLA_A"]
    assert read(labels) == [CONTROL, "HLA_A", "B", "B+HLA_A", "B", "HLA_A"]


def test_underscore_in_names_where_it_also_joins() -> None:
    labels = ["ctrl", "HLA_A", "B", "C", "B_HLA_A", "C_B", "HLA_A_C", "HLA_E"]
    assert read(labels) == [CONTROL, "HLA_A", "B", "C", "B+HLA_A", "B+C", "C+HLA_A", "HLA_E"]
    assert detect_convention(labels).names == ("HLA_A", "HLA_E")
    assert read(["NT", "gene_1", "gene_2", "gene_3", "gene_1_gene_2"])[-2:] == ["gene_3", "gene_1+gene_2"]
    assert read(["non_targeting", "A_non_targeting", "B", "A_B", "HLA_A_non_targeting"]) == [
        *(CONTROL, "A", "B", "A+B", "HLA_A")
    ]
    assert read(["NegCtrl0_NegCtrl0", "A_NegCtrl0", "NegCtrl0_B", "A_B"]) == [CONTROL, "A", "B", "A+B"]
    assert read(["", "HLA_A", "HLA_B", "D", "C_1", "C_2"]) == [CONTROL, "HLA_A", "HLA_B", "D", "C_1", "C_2"]


def test_measured_genes_tell_names_from_pairs() -> None:
    labels = ["ctrl", "A", "B", "A_B", "C_D", "HLA_DR"]
    assert "'C_D'" in refused(labels)
    convention = detect_convention(labels, genes=["C", "D", "HLA_DR"])
    assert convention == LabelConvention(("ctrl",), "_", ("HLA_DR",))
    assert parse_condition("C_D", convention) == {"C": 1.0, "D": 1.0}
    assert parse_condition("HLA_DR", convention) == {"HLA_DR": 1.0}
    assert parse_condition("HLA_DR_A", convention) == {"A": 1.0, "HLA_DR": 1.0}


@pytest.mark.parametrize(
    "labels",
    [
        ["ctrl", "A", "B", "A_B", "C_D"],  # C_D may be a gene or a pair
        ["ctrl", "A", "A_C"],  # C never stands alone
        ["ctrl", "A_B", "B_C", "A_C"],  # pairs without a single
        ["ctrl", "A", "B", "A+B", "A_B"],  # a gene A_B, or the pair again
        ["ctrl", "B", "C", "A_B", "A_B_C"],  # A_B and C, or three targets
    ],
)
def test_unclear_underscores_are_refused(labels: list[str]) -> None:
    assert "--separator" in refused(labels)


def test_separator_overrides() -> None:
    labels = ["ctrl", "A", "B", "A_B", "C_D"]
    assert read(labels, separator="_") == [CONTROL, "A", "B", "A+B", "C+D"]
    assert read(labels, separator="none") == [CONTROL, "A", "B", "A_B", "C_D"]
    assert read(["ctrl", "A/B", "C|D"], separator="/") == [CONTROL, "A+B", "C|D"]
    with pytest.raises(InputError) as error:
        read(["ctrl", "A+B", "B"], separator="none")
    assert "'A+B'" in one_sentence(error)


def test_several_separators_are_refused() -> None:
    message = refused(["ctrl", "A+B", "A,C"])
    assert "'A+B'" in message and "'A,C'" in message and "--separator" in message


@pytest.mark.parametrize("mark", ["/", "&", ":", "-"])
def test_a_mark_that_may_be_part_of_names_is_doubtful_where_it_joins_labels(mark: str) -> None:
    message = refused(["ctrl", "A", "B", f"A{mark}B"])
    assert repr(mark) in message and f"--separator {mark}" in message
    assert repr(mark) in refused(["ctrl", "A", f"A{mark}ctrl"])
    assert read(["ctrl", "A", "B", f"A{mark}B"], separator=mark)[-1] == "A+B"
    assert read(["ctrl", "A", "B", f"A{mark}B"], separator="none")[-1] == f"A{mark}B"
    assert read(["ctrl", "HLA", f"HLA{mark}A"])[-1] == f"HLA{mark}A"  # only one part is a label


@pytest.mark.parametrize("label", ["A+A", "A+ctrl+A", "A +A"])
def test_a_target_twice_in_a_label_is_refused(label: str) -> None:
    with pytest.raises(InputError) as error:
        read(["ctrl", "B", label])
    assert repr(label) in one_sentence(error)


def test_an_empty_part_is_control_only_where_empty_labels_are() -> None:
    assert read(["", "A,B", "A,"]) == [CONTROL, "A+B", "A"]
    with pytest.raises(InputError) as error:
        read(["ctrl", "A,B", "A,"])
    assert "'A,'" in one_sentence(error)


def test_a_gene_beside_a_control_word_is_not_another_control_word() -> None:
    assert read(["NT", "NT_C", "A_NT", "C_A"]) == [CONTROL, "C", "A", "A+C"]


def test_control_labels_are_pooled_or_chosen() -> None:
    labels = ["NT", "ctrl", "A", "B", "A+B", "A+ctrl"]
    assert detect_convention(labels).control_labels == ("NT", "ctrl")
    assert read(labels, control_label="NT") == [CONTROL, "ctrl", "A", "B", "A+B", "A+ctrl"]
    # "ctrl" that only pads pairs stays "no target" when control itself is called otherwise
    assert read(["DMSO", "A+ctrl", "A+B"], control_label="DMSO") == [CONTROL, "A", "A+B"]
    assert read(["ctrl+ctrl", "A+ctrl"], control_label="ctrl") == [CONTROL, "A"]
    assert read(["Non_Targeting", "A"], control_label="non-targeting") == [CONTROL, "A"]
    assert detect_convention(["A", "B"]).control_labels == ()


def test_wrong_control_label_lists_frequent_labels() -> None:
    message = refused(["A", "A", "mock", "mock", "mock", "B"], control_label="moc")
    assert "'mock', 'A', 'B'" in message and "--control-label" in message
    assert detect_convention(["A"], control_label="moc", require_control=False).control_labels == ()
    assert "'N-T', 'nt'" in refused(["N-T", "nt", "A"], control_label="n_t")
    assert "control" in refused(["control", "NT", "A"], control_label="NT")


def test_describe_says_what_was_detected() -> None:
    said = detect_convention(["NT", "HLA_A", "B", "B_HLA_A"]).describe()
    assert "'NT'" in said and "joined by '_'" in said and "'HLA_A'" in said


@settings(FIXED)
@given(screens(), st.sampled_from("+,|;_"), st.randoms())
def test_requests_in_any_convention(
    conditions: list[tuple[str, ...]], separator: str, random: object
) -> None:
    known = {name for targets in conditions for name in targets}
    unique = sorted({tuple(sorted(targets)) for targets in conditions})
    typed = []
    for targets in unique:
        shuffled = list(targets)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        typed.append(separator.join(shuffled))
    assert parse_request(typed, known) == ["+".join(targets) for targets in unique]


def test_requests_by_hand() -> None:
    known = ["HLA_A", "A", "B", "KLF1"]
    asked = ["B,A", "HLA_A_B", "ctrl", "KLF1+ctrl", "A@0.5|B", " B "]
    assert parse_request(asked, known) == ["A+B", "B+HLA_A", CONTROL, "KLF1", "A@0.5+B", "B"]
    for names, said in [
        (["A+B", "B_A"], "'B_A'"),
        (["KLF"], "'KLF1'"),
        (["A+KLF2"], "'KLF2'"),
        (["A+B,KLF1"], "unknown"),
        (["A+A"], "twice"),
        ([""], "control"),
    ]:
        with pytest.raises(InputError) as error:
            parse_request(names, known)
        assert said in one_sentence(error)


@settings(FIXED, max_examples=300)
@given(
    st.lists(
        st.text(alphabet="AB1_+,;|@.- ", max_size=8) | st.sampled_from(["ctrl", "NT_1", "A_ctrl", "A_B"])
    ),
    st.none() | st.sampled_from(["ctrl", "A", "", "NT"]),
    st.none() | st.sampled_from(["_", "+", "none", "@", "__"]),
)
def test_any_labels_are_read_or_refused_in_one_sentence(
    labels: list[str], control: str | None, separator: str | None
) -> None:
    try:
        convention = detect_convention(labels, control, separator)
        names = [
            canonical(doses, doses.values()) for doses in (parse_condition(one, convention) for one in labels)
        ]
    except InputError as problem:
        assert str(problem).endswith(".") and "\n" not in str(problem)
    else:
        assert [canonical_name(name) for name in names] == names
