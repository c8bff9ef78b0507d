"""The list of conditioners: names, blank parts, and what maps are made of."""

import pytest

from controlnet.conditioners import BY_NAME, CONDITIONERS, ENLARGING
from controlnet.maps.annotators import ANNOTATORS
from controlnet.weights.manifest import WEIGHTS, Manifest, bundle_names


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CONDITIONERS)


@pytest.mark.parametrize("bundle", bundle_names())
def test_every_annotator_of_a_bundle_is_a_kind(bundle: str) -> None:
    for name, entry in Manifest.read(WEIGHTS / f"{bundle}.toml").conditioners.items():
        where = (
            f"weights/{bundle}.toml names it for {name}; controlnet/maps/annotators/__init__.py: ANNOTATORS lacks it"
        )
        assert set(entry.annotators.values()) <= set(ANNOTATORS), where


def test_only_lines_and_skeletons_have_blank_parts() -> None:
    blank = {conditioner.name for conditioner in CONDITIONERS if conditioner.blank is not None}
    assert blank == {"canny", "hed", "mlsd", "scribble", "lineart", "lineart_anime", "openpose"}
    assert all(conditioner.blank == 0 for conditioner in CONDITIONERS if conditioner.name in blank)


def test_the_enlarging_net_is_a_conditioner_and_some_maps_say_nothing_about_a_part() -> None:
    assert not BY_NAME[ENLARGING].acts_on_parts
    whole = {conditioner.name for conditioner in CONDITIONERS if not conditioner.acts_on_parts}
    assert whole == {"shuffle", "tile", "inpaint", "ip2p"}


def test_only_openpose_and_inpaint_maps_are_not_made_of_a_picture() -> None:
    other = {conditioner.name: conditioner.made_of for conditioner in CONDITIONERS if conditioner.made_of != "picture"}
    assert other == {"openpose": "poses", "inpaint": "holes"}
