"""Gene sets: which loadings are zero, and that training cannot move them."""

from __future__ import annotations

import pytest
import torch

from pvae_pyro.errors import InputError
from pvae_pyro.story.loadings import GeneSets
from pvae_pyro.story.networks import Decoder

SETS = GeneSets((("one", ("a", "b")), ("two", ("b", "absent"))))


def test_a_gene_is_outside_of_every_set_that_does_not_name_it() -> None:
    assert SETS.outside(["c", "b", "a"]).tolist() == [[True, False, False], [True, False, True]]
    with pytest.raises(InputError, match="no gene of the set 'two'"):
        SETS.outside(["a", "c"])


def test_mappings_lists_and_pairs_mean_the_same_sets() -> None:
    as_json = [["one", ["a", "b"]], ["two", ["b", "absent"]]]
    mapping = {"one": ["a", "b"], "two": ["b", "absent"]}
    assert GeneSets(as_json) == GeneSets(mapping) == SETS  # type: ignore[arg-type]


def test_masked_loadings_stay_exactly_zero_under_adam_and_the_others_move() -> None:
    torch.manual_seed(0)
    decoder, outside = Decoder(1, 2, 1, 3), SETS.outside(["c", "b", "a"])
    decoder.keep_zero(outside)
    begun = decoder.responsive.detach().clone()
    assert not begun[outside].any() and begun[~outside].all()
    optimiser = torch.optim.Adam(decoder.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        (decoder.linear(torch.randn(8, 1), torch.randn(8, 2)) - 1).square().sum().backward()
        optimiser.step()
    assert not decoder.responsive[outside].any() and (decoder.responsive[~outside] != begun[~outside]).all()
