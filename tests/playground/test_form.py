"""The form for every interface, and what it sends."""

import pytest
from support import ROOT

from controlnet.serving.schema import PREDICTOR, schema_of
from controlnet.serving.server import interfaces_in
from playground.form import MORE, Form, typed
from playground.pictures import File
from playground.tab import Made, Tab

PREDICTORS = [PREDICTOR, *interfaces_in(ROOT).values()]


def form(predictor: str = PREDICTOR) -> Form:
    return Form.read(schema_of(ROOT, predictor))


def document(**properties: dict) -> dict:
    return {"components": {"schemas": {"Input": {"properties": properties, "required": []}}}}


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_input_of_every_interface_has_its_place(predictor: str) -> None:
    read = form(predictor)
    grouped = [field.name for members in read.groups().values() for field in members]
    assert sorted([*grouped, *(["map_only"] if read.draws_maps else [])]) == sorted(read.fields)


def test_an_unknown_input_stands_under_more() -> None:
    read = Form.read(document(prompt={"type": "string"}, colour_of_moon={"anyOf": [{"type": "string"}]}))
    assert {group.title: [field.name for field in members] for group, members in read.groups().items()} == {
        "Request": ["prompt"],
        MORE: ["colour_of_moon"],
    }
    assert read.fields["colour_of_moon"].kind == "json"
    reference = Form.read(document(reference_image={"type": "string", "format": "uri"}))
    assert [group.title for group in reference.groups()] == ["Reference"]


def test_a_mask_is_painted_over_the_picture_whose_shape_it_gets() -> None:
    read = form()
    masks = [name for name, field in read.fields.items() if field.is_mask]
    assert masks == ["mask", "reference_mask", "control_mask", "control_mask_2", "control_mask_3"]
    there = ["image", "init_image", "image_2", "reference_image"]
    assert [read.over(mask, there) for mask in masks] == ["init_image", "init_image", "image", "image_2", "image"]
    assert read.over("reference_mask", ["reference_image", "image"]) == "image"
    assert not read.shapes_map("reference_image") and not read.shapes_map("reference_mask")


def test_knobs_are_shown_for_the_chosen_conditioners_alone() -> None:
    read = form()

    def knobs(**values: str) -> set[str]:
        return {name for name, field in read.fields.items() if field.conditioners and read.shown(field, values)}

    assert knobs(conditioner="canny") == {"low_threshold", "high_threshold"}
    assert knobs(conditioner="scribble", conditioner_2="tile") == {"tile_factor"}
    assert not read.shown(read.fields["image_2"], {}) and read.shown(read.fields["image_2"], {"conditioner_2": "hed"})
    theirs = form("interfaces/rossjillian.py:Predictor")
    assert not theirs.shown(theirs.fields["low_threshold"], {"structure": "depth"})
    assert theirs.shown(theirs.fields["low_threshold"], {"structure": "canny"})


def test_inputs_of_a_control_are_shown_when_it_is_chosen() -> None:
    theirs = form("interfaces/fofr.py:Sdxl")
    groups = {group.title: [field.name for field in members] for group, members in theirs.groups().items()}
    assert [groups[f"{title} control"][0] for title in ("First", "Second", "Third")] == [
        f"controlnet_{number}" for number in (1, 2, 3)
    ]
    shown = {name for name, field in theirs.fields.items() if theirs.shown(field, {"controlnet_2": "openpose"})}
    assert {"controlnet_1", "controlnet_2", "controlnet_2_image", "controlnet_2_start", "controlnet_3"} <= shown
    assert shown.isdisjoint({"controlnet_1_image", "controlnet_3_end"})


def test_only_what_differs_from_its_default_is_sent() -> None:
    values = {"prompt": "a house", "image": "data:x", "conditioner": "canny", "num_outputs": 1, "seed": 0}
    values |= {"tile_factor": 2.0, "mask_feather": 0, "negative_prompt": "", "image_2": "data:y", "eta": None}
    assert form().inputs(values) == {"prompt": "a house", "image": "data:x", "seed": 0, "mask_feather": 0}
    assert form().inputs({}) == {"prompt": ""}


def test_the_map_depends_on_picture_and_knobs_and_not_on_the_prompt() -> None:
    read = form()
    shaping = {name for name in read.fields if read.shapes_map(name)}
    assert {"image", "conditioner", "low_threshold", "preprocess", "resolution", "conditioner_2", "mask"} <= shaping
    assert shaping.isdisjoint({"prompt", "seed", "guidance_scale", "control_end", "conditioning_scale_2", "go_fast"})
    inputs = read.inputs({"prompt": "a", "image": "data:x", "low_threshold": 9, "seed": 1, "control_end": 0.5})
    assert read.map_inputs(inputs) == {"prompt": "a", "image": "data:x", "low_threshold": 9, "map_only": True}


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("go_fast takes 2 to 8 steps: got 50. Leave num_inference_steps out for 4.", "go_fast"),
        ("image: expected a picture, got text.", "image"),
        ("Expected conditioner_2 to be another one than conditioner.", "conditioner_2"),
        ("The server gave no reason.", None),
    ],
)
def test_a_sentence_stands_beside_the_input_that_it_names_first(sentence: str, name: str | None) -> None:
    assert form().named_in(sentence) == name


def test_what_is_entered_is_typed_or_left_for_the_server_to_refuse() -> None:
    fields = form().fields
    assert typed(fields["seed"], "12") == 12 and isinstance(typed(fields["seed"], "12.0"), int)
    assert typed(fields["guidance_scale"], "7.5") == 7.5
    assert typed(fields["low_threshold"], "999") == 999, "bounds are the server's"
    assert typed(fields["seed"], "1.5") == 1.5 and typed(fields["seed"], "many") == "many"
    assert typed(fields["seed"], "") is None


@pytest.mark.parametrize(
    ("name", "bundle", "usual"),
    [
        ("guidance_scale", "tiny", 3),
        ("guidance_scale", "sdxl", 6),
        ("guidance_scale", "", None),
        ("num_inference_steps", "tiny", 20),
        ("num_inference_steps", "sdxl", 30),
        ("reference_scale", "tiny", 1),
        ("reference_scale", "sd15", 0.6),
        ("low_threshold", "", 100),
        ("resolution", "sd15", 512),
        ("resolution", "of_my_own", None),
        ("clip_skip", "tiny", None),
        ("conditioning_scale", "tiny", 1),
    ],
)
def test_a_slider_stands_where_the_bundle_would_have_it(name: str, bundle: str, usual: float | None) -> None:
    assert form().fields[name].usual(bundle) == usual


def test_what_is_no_schema_of_cog_is_refused() -> None:
    for wrong in ({}, {"components": {"schemas": {"Input": []}}}, []):
        with pytest.raises(ValueError, match="does not describe inputs"):
            Form.read(wrong)  # type: ignore[arg-type]


def test_maps_come_before_the_pictures_that_were_asked_for() -> None:
    picture, poses = File(b"x", "image/webp"), File(b"{}", "application/json")
    made = Made.of({"num_outputs": 2, "return_control_map": True}, form(), [picture, poses, picture, picture], {})
    assert (len(made.maps), len(made.pictures), made.others) == (1, 2, (poses,))
    assert list(made.files()) == ["map.webp", "picture-1.webp", "picture-2.webp", "poses.json"]
    withheld = Made.of({"num_outputs": 2}, form(), [picture], {"withheld": 1})
    assert (len(withheld.maps), len(withheld.pictures)) == (0, 1)
    theirs = Made.of({"num_samples": "4"}, form("interfaces/jagilley.py:Scribble"), [picture] * 5, {})
    assert (len(theirs.maps), len(theirs.pictures)) == (1, 4), "the map is always first there"
    assert len(Made.of({"map_only": True}, form(), [picture], {}).maps) == 1


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_first_request_of_every_interface_is_complete(predictor: str) -> None:
    tab = Tab(form(predictor))
    assert tab.form.picture
    tab.take_upload(tab.form.picture, (ROOT / "examples/doodle.png").read_bytes())
    missing = {name for name, field in tab.form.fields.items() if field.required} - set(tab.inputs())
    assert missing == set()
    assert tab.inputs().get("seed", 0) == tab.inputs().get("seed", 0), "one seed until another is asked for"
