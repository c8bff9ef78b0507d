"""The list of conditioners: names, blank parts, and what maps are made of."""

from controlnet.conditioners import BY_NAME, CONDITIONERS


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CONDITIONERS)


def test_only_lines_and_skeletons_have_blank_parts() -> None:
    blank = {conditioner.name for conditioner in CONDITIONERS if conditioner.blank is not None}
    assert blank == {"canny", "hed", "mlsd", "scribble", "lineart", "lineart_anime", "openpose"}
    assert all(conditioner.blank == 0 for conditioner in CONDITIONERS if conditioner.name in blank)


def test_only_openpose_and_inpaint_maps_are_not_made_of_a_picture() -> None:
    other = {conditioner.name: conditioner.made_of for conditioner in CONDITIONERS if conditioner.made_of != "picture"}
    assert other == {"openpose": "poses", "inpaint": "holes"}
