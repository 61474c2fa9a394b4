"""Configuration: TOML to parts and back, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvae_pyro.config import Config, build, from_dict, load_config, named, to_dict, to_toml
from pvae_pyro.errors import InputError
from pvae_pyro.guides import GUIDES, Amortized, Ensemble, Flow, LowRank, Map
from pvae_pyro.inference import FitSettings
from pvae_pyro.story import PARTS, FixedGraph, PerturbedVAE


@dataclasses.dataclass(frozen=True)
class Sample:
    """Every kind of field that a part may have."""

    size: int = 3
    weight: float = 0.5
    on: bool = True
    label: str = "x"
    link: typing.Literal["log", "identity"] = "log"
    rank: int | None = None
    scales: tuple[float, ...] = (1.0, 2.0)
    pair: tuple[int, str] = (1, "a")
    unit: typing.ClassVar[str] = "not a setting"


SAMPLES = st.builds(
    Sample,
    size=st.integers(),
    weight=st.floats(allow_nan=False),
    on=st.booleans(),
    label=st.text(st.characters(exclude_categories=["Cs"])),
    link=st.sampled_from(["log", "identity"]),
    rank=st.none() | st.integers(),
    scales=st.lists(st.floats(allow_nan=False)).map(tuple),
    pair=st.tuples(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))),
)
SCALARS = (
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=0, max_size=6)
GUIDE = st.sampled_from([Amortized(initial_scale=0.2), LowRank(rank=3), Flow(layers=1, largest=5), Map()])
ANY_GUIDE = GUIDE | st.builds(Ensemble, n=st.integers(1, 9), member=GUIDE, resample=st.booleans())
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS), max_size=4),
    lambda inner: st.dictionaries(KEYS, SCALARS | inner, max_size=4),
    max_leaves=8,
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as problem:
        load_config(write(tmp_path, text))
    return str(problem.value)


@settings(deadline=None)
@given(TABLES)
def test_any_tables_written_as_toml_read_back_the_same(tables: dict[str, typing.Any]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables


@settings(deadline=None)
@given(SAMPLES)
def test_any_part_goes_through_toml_unchanged(part: Sample) -> None:
    table = tomllib.loads(to_toml({"part": {"name": "sample", **_settings(part)}}))["part"]
    again = named(table, {"sample": Sample}, "[story] part")
    assert again == part
    assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(part).values()]


def _settings(part: Sample) -> dict[str, typing.Any]:
    from pvae_pyro.config import settings_of

    return settings_of(part)


@settings(max_examples=40, deadline=None)
@given(
    names=st.fixed_dictionaries({kind: st.sampled_from(sorted(choices)) for kind, choices in PARTS.items()}),
    responsive=st.none() | st.integers(1, 60),
    guide=ANY_GUIDE,
    epochs=st.integers(0, 1000),
    rate=st.floats(1e-6, 1.0),
)
def test_a_configuration_goes_through_toml_and_json_unchanged(
    names: dict[str, str], responsive: int | None, guide: Amortized | Ensemble, epochs: int, rate: float
) -> None:
    parts = {kind: PARTS[kind][name]() for kind, name in names.items()}
    config = Config(
        PerturbedVAE(**parts, responsive=responsive),
        guide,
        FitSettings(epochs=epochs, learning_rate=rate),
    )
    assert from_dict(tomllib.loads(to_toml(to_dict(config)))) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    default = Config(PerturbedVAE(), Amortized(), FitSettings())
    assert load_config() == default
    assert load_config(write(tmp_path, "")) == default


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    text = """
    [story]
    graph = "none"
    effects = { name = "spike-slab", inclusion = 0.25 }
    responsive = 12
    [story.likelihood]
    name = "negative-binomial"
    [fit]
    epochs = 3
    learning_rate = 1
    """
    found = load_config(write(tmp_path, text))
    spike_slab, no_graph = PARTS["effects"]["spike-slab"], PARTS["graph"]["none"]
    expected = PerturbedVAE(
        graph=no_graph(),
        effects=spike_slab(inclusion=0.25),
        responsive=12,
        likelihood=PARTS["likelihood"]["negative-binomial"](),
    )
    assert found == Config(expected, Amortized(), FitSettings(epochs=3, learning_rate=1.0))
    assert type(found.settings.learning_rate) is float


def test_edges_go_through_a_file(tmp_path: Path) -> None:
    text = "[story.graph]\nname = 'fixed'\nedges = [[0, 3], [2, 1]]\nweight = 0.5"
    config = load_config(write(tmp_path, text))
    assert config.model.graph == FixedGraph(edges=((0, 3), (2, 1)), weight=0.5)
    assert load_config(write(tmp_path, to_toml(to_dict(config)))) == config


def test_auto_leaves_a_size_to_the_program(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, '[story]\nresponsive = "auto"')).model.responsive is None


@pytest.mark.parametrize(
    ("text", "named_parts"),
    [
        ("[stroy]", ["'stroy'", "'story', 'guide', 'fit'"]),
        ("story = 3", ["story must be a table", "[story]"]),
        ("[story]\nefects = 'normal'", ["'efects'", "'effects'", "'likelihood'", "'responsive'"]),
        ("[story]\neffects = 'cauchy'", ["'cauchy'", "'spike-slab', 'horseshoe', 'laplace', 'normal'"]),
        ("[story]\neffects = 3", ["effects", "found 3", "'spike-slab', 'horseshoe', 'laplace', 'normal'"]),
        ("[story.effects]\ninclusion = 0.2", ["effects has no name", "'spike-slab'"]),
        ("[story.effects]\nname = 'spike-slab'\nslab = 1", ["'slab'", "'inclusion'"]),
        ("[story.effects]\nname = 'spike-slab'\ninclusion = 'often'", ["inclusion", "a number", "'often'"]),
        ("[story.effects]\nname = 'spike-slab'\ninclusion = 2.0", ["inclusion", "2.0"]),
        ("[story.effects]\nname = 'spike-slab'\nstrength = nan", ["strength", "nan"]),
        ("[story.likelihood]\nname = 'gaussian'\nlink = 'log'", ["link", "'log'", "'softplus'"]),
        ("[story.graph]\nname = 'fixed'\nedges = [[0, 1.5]]", ["edges", "a whole number", "1.5"]),
        ("[story.graph]\nname = 'fixed'\nedges = [[0, 1, 2]]", ["edges", "a list"]),
        ("[story.graph]\nname = 'fixed'\nedges = [[0, 1], [1, 0]]", ["edges", "circle", "0 -> 1"]),
        ("[story.graph]\nname = 'modulated'\nmodulation = -0.1", ["modulation", "-0.1"]),
        ("[story]\nresponsive = 2.5", ["responsive", "a whole number or 'auto'", "2.5"]),
        ("[story]\nresponsive = true", ["responsive", "True"]),
        ("[story]\nbackground = 'auto'", ["background", "a whole number", "'auto'"]),
        ("[guide]\nname = 'diagonal'", ["'diagonal'", "'amortized'", "'low-rank'", "'flow'", "'map'", "'ensemble'"]),
        ("[guide]\nname = 'low-rank'\nrank = 0", ["rank", "0"]),
        ("[guide]\nname = 'ensemble'\nmembers = 3", ["'members'", "'n'", "'member'", "'resample'"]),
        ("[guide]\nname = 'ensemble'\nmember = 'diagonal'", ["'ensemble' member", "'diagonal'", "'low-rank'"]),
        ("[guide]\nname = 'ensemble'\nmember = {name = 'flow', rank = 3}", ["member 'flow'", "'rank'", "'layers'"]),
        ("[guide]\nname = 'ensemble'\nmember = {rank = 3}", ["member has no name"]),
        ("[guide]\nname = 'ensemble'\nmember = 'ensemble'", ["ensemble itself"]),
        ("[fit]\nepoch = 3", ["'epoch'", "'epochs'", "'batch_size'"]),
        ("[fit]\nepochs = '3'", ["epochs", "a whole number", "'3'"]),
        ("[fit]\nepochs = -1", ["epochs", "-1"]),
        ("[fit]\nwarm_start = 1", ["warm_start", "true or false"]),
        ("[fit\nepochs = 3", ["no valid TOML", "line 1"]),
    ],
)
def test_what_does_not_fit_is_refused_by_one_sentence_that_names_it(
    tmp_path: Path, text: str, named_parts: list[str]
) -> None:
    message = refusal(tmp_path, text)
    assert "config.toml" in message
    for part in named_parts:
        assert part in message
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "missing.toml")
    binary = tmp_path / "config.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(binary)


def test_numbers_too_large_for_a_float_are_refused() -> None:
    with pytest.raises(InputError, match="a number"):
        build(Sample, {"weight": 10**400}, "[fit]")


def test_a_member_is_named_as_any_guide_is(tmp_path: Path) -> None:
    text = "[guide]\nname = 'ensemble'\nn = 3\nmember = {name = 'low-rank', rank = 10}"
    found = load_config(write(tmp_path, text))
    assert found.guide == Ensemble(n=3, member=LowRank(rank=10))
    assert load_config(write(tmp_path, to_toml(to_dict(found)))) == found
    assert load_config(write(tmp_path, "[guide]\nname = 'ensemble'\nmember = 'map'")).guide == Ensemble(member=Map())


def test_every_guide_can_be_named_and_described() -> None:
    for name, cls in GUIDES.items():
        config = from_dict({"guide": {"name": name}})
        assert config.guide == cls() and to_dict(config)["guide"]["name"] == name


def test_every_shipped_part_can_be_named_and_described() -> None:
    for kind, choices in PARTS.items():
        for name in choices:
            config = from_dict({"story": {kind: name}})
            assert to_dict(config)["story"][kind]["name"] == name
