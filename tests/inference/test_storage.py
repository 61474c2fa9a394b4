"""Parts as plain data: what JSON gives back is the part that was written."""

from __future__ import annotations

import json

import pytest

from pvae_pyro.inference.storage import part_from_dict, part_to_dict
from pvae_pyro.story import MMD, PARTS, PerturbedVAE


@pytest.mark.parametrize("seam", PARTS)
def test_every_part_goes_through_json_unchanged(seam: str) -> None:
    known = {kind.__name__: kind for choices in PARTS.values() for kind in choices.values()} | {"PerturbedVAE": PerturbedVAE}
    for kind in PARTS[seam].values():
        model = PerturbedVAE(**{seam: kind()}, responsive=3)
        again = part_from_dict(json.loads(json.dumps(part_to_dict(model))), known)
        assert again == model and repr(again) == repr(model)
        assert hash(again) == hash(model)  # no list hides where a tuple was


def test_a_list_of_settings_comes_back_as_the_tuple_it_was() -> None:
    part = MMD(weight=3.0, bandwidths=(0.5, 3.0), matched=True)
    assert part_from_dict(json.loads(json.dumps(part_to_dict(part))), {"MMD": MMD}) == part
