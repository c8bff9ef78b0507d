"""How a request's pictures are placed on the canvas, and what a request begins with."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.requests import asked, laid_out, noise

from controlnet.pictures.canvas import Canvas, lay_out
from controlnet.pictures.geometry import Margins, SizeError, check_pixels
from controlnet.pictures.images import ImageError, open_image
from controlnet.request.combinations import RequestError
from controlnet.request.pose import PoseError


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ({}, (128, 64)),
        ({"width": 96}, (96, 64)),  # 48 + 16: never below 64
        ({"width": 256}, (256, 128)),
        ({"height": 100}, (208, 104)),
        ({"width": 100, "height": 300}, (104, 304)),
    ],
)
def test_size_follows_resolution_or_width_and_height(tmp_path: Path, sides: dict, size: tuple) -> None:
    assert laid_out(tmp_path, {"image": noise(200, 100)}, **sides)[1].canvas.size == size


def test_init_image_gives_the_aspect_ratio(tmp_path: Path) -> None:
    pictures = {"image": noise(200, 100), "init_image": noise(100, 200)}
    assert laid_out(tmp_path, pictures)[1].canvas.size == (64, 128)


def test_resize_mode_crops_fills_or_stretches() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))  # the middle third
    crop, fill, stretch = (
        np.asarray(Canvas((64, 64), Margins(), mode).lay(wide, (64, 64))) for mode in ("crop", "fill", "stretch")
    )
    assert (crop[2:-2, 2:-2] == (0, 0, 255)).all()
    assert (stretch[:, 26:38] == (0, 0, 255)).all() and (stretch[:, :16] == (255, 0, 0)).all()
    assert (fill[:, 26:38] == (0, 0, 255)).all() and (fill[0, :16] == (255, 0, 0)).all()  # its edges continued
    black = np.asarray(Canvas((64, 64), Margins(), "fill").lay(wide, (64, 64), blank=0))
    assert not black[:18].any() and not black[-18:].any() and black[24:40].any()


def test_rounding_the_canvas_does_not_crop_the_picture() -> None:
    picture = noise(451, 300)
    for mode in ("crop", "fill", "stretch"):
        canvas = Canvas((96, 64), Margins(), mode)
        assert canvas.lay(picture, canvas.size) == picture.resize((96, 64), Image.Resampling.LANCZOS)


def test_without_initial_picture_a_request_begins_with_noise(tmp_path: Path) -> None:
    assert laid_out(tmp_path, {"image": noise(64, 64)})[1].initial is None


def test_init_image_is_changed_and_a_mask_repaints(tmp_path: Path) -> None:
    pictures = {"image": noise(64, 64), "init_image": noise(64, 64, 1)}
    initial = laid_out(tmp_path, pictures)[1].initial
    assert initial and initial.strength == 0.8 and initial.mask is None and initial.picture == pictures["init_image"]
    masked = {"image": noise(64, 64), "mask": Image.new("L", (64, 64), 255)}
    initial = laid_out(tmp_path, masked)[1].initial
    assert initial and initial.strength == 1.0 and initial.picture == masked["image"] and initial.is_overwritten
    initial = laid_out(tmp_path, masked, prompt_strength=0.3)[1].initial
    assert initial and initial.strength == 0.3 and not initial.is_overwritten


def test_outpainting_grows_the_canvas_and_masks_the_margins(tmp_path: Path) -> None:
    pictures = {"image": noise(64, 64)}
    layout = laid_out(tmp_path, pictures, outpaint_left=9, outpaint_bottom=16, mask_feather=0)[1]
    assert layout.canvas.size == (80, 80) and layout.canvas.kept == (64, 64)  # 9 becomes 16
    initial = layout.initial
    assert initial and initial.mask is not None and initial.strength == 1.0
    mask, picture = np.asarray(initial.mask), np.asarray(initial.picture)
    assert (mask[:64, 16:] == 0).all() and (mask[:, :16] == 255).all() and (mask[64:] == 255).all()
    assert np.array_equal(picture[:64, 16:], np.asarray(pictures["image"]))
    assert (picture[:64, :16] == picture[:64, 16:17]).all()


def test_an_outpainted_controls_area_leaves_the_margins_free(tmp_path: Path) -> None:
    pictures = {"image": noise(64, 64), "image_2": noise(96, 64, 1)}
    first, second = laid_out(tmp_path, pictures, outpaint_right=32, conditioner_2="depth")[1].controls
    assert first.size == (64, 64) and first.margins == Margins(right=32) and first.region is not None
    region = np.asarray(first.region)
    assert (region[:, :64] == 255).all() and not region[:, 64:].any()
    assert second.size == (96, 64) and not second.margins and second.region is None


def test_the_pixel_limit_names_resolution_only_if_it_set_the_size(tmp_path: Path) -> None:
    with pytest.raises(SizeError, match="lower the sides, margins included, to 4096 pixels in all"):
        check_pixels((128, 64), 1, 4096, by_resolution=False)
    with pytest.raises(SizeError, match="lower resolution to"):
        check_pixels((128, 128), 1, 4096)
    image = {"image": noise(64, 64)}
    with pytest.raises(SizeError, match="lower resolution to"):
        laid_out(tmp_path, image, resolution=2048)
    for sides in ({"width": 2048}, {"height": 2048}, {"resolution": 1024, "outpaint_top": 8}):
        with pytest.raises(SizeError, match="lower the sides"):
            laid_out(tmp_path, image, **sides)


def test_a_detect_resolution_too_high_for_the_canvas_is_refused(tmp_path: Path) -> None:
    wide = {"image": noise(256, 64)}
    with pytest.raises(SizeError, match=r"At detect_resolution 2048 .* lower it to 1024"):
        laid_out(tmp_path, wide, detect_resolution=2048)
    laid_out(tmp_path, wide, detect_resolution=1024)


def test_a_mask_is_extended_by_the_margins(tmp_path: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 8, 8))
    initial = laid_out(tmp_path, {"image": noise(64, 64), "mask": mask}, outpaint_right=8, mask_feather=0)[1].initial
    assert initial and initial.mask is not None
    expected = np.zeros((64, 72), np.uint8)
    expected[:8, :8] = expected[:, 64:] = 255
    assert np.array_equal(np.asarray(initial.mask), expected)


@pytest.mark.parametrize(("sent", "reach"), [({}, 4), ({"mask_feather": 10}, 10), ({"mask_feather": 0}, 0)])
def test_mask_feather_softens_the_edge_and_reaches_no_further(tmp_path: Path, sent: dict, reach: int) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    initial = laid_out(tmp_path, {"image": noise(64, 64), "mask": mask}, **sent)[1].initial
    assert initial and initial.mask is not None
    row = np.asarray(initial.mask)[20].astype(int)
    assert (row[: 32 - reach] == 255).all() and (row[32 + reach :] == 0).all()
    assert (np.diff(row) <= 0).all() and set(row[32 - reach : 32 + reach] % 255 > 0) <= {True}


def test_mask_feather_softens_the_edge_of_an_outpainted_margin(tmp_path: Path) -> None:
    initial = laid_out(tmp_path, {"image": noise(64, 64)}, outpaint_right=16)[1].initial
    assert initial and initial.mask is not None
    row = np.asarray(initial.mask)[20]
    assert (row[:60] == 0).all() and (row[68:] == 255).all() and (row[60:68] % 255 > 0).all()


@pytest.mark.parametrize("name", ["mask", "control_mask", "control_mask_2", "reference_mask"])
def test_a_black_mask_is_refused_by_its_input(tmp_path: Path, name: str) -> None:
    pictures = {"image": noise(64, 64), name: Image.new("L", (64, 64))}
    with pytest.raises(RequestError, match=f"^{name} is black everywhere"):
        laid_out(tmp_path, {"reference_image": noise(64, 64)} | pictures, conditioner_2="depth")


@pytest.mark.parametrize("name", ["mask", "control_mask", "reference_mask"])
def test_a_mask_is_black_where_it_is_transparent(tmp_path: Path, name: str) -> None:
    mask = Image.new("RGBA", (64, 64))
    mask.paste((255, 255, 255, 255), (0, 0, 16, 64))
    mask.paste((255, 255, 255, 51), (16, 0, 32, 64))
    pictures: dict[str, Image.Image] = {"image": noise(64, 64), "reference_image": noise(64, 64)}
    layout = laid_out(tmp_path, pictures | {name: mask}, mask_feather=0)[1]
    laid = {
        "mask": layout.initial and layout.initial.mask,
        "control_mask": layout.controls[0].region,
        "reference_mask": layout.reference and layout.reference.mask,
    }[name]
    assert laid is not None and [laid.getpixel((x, 9)) for x in (8, 24, 48)] == [255, 51, 0]
    with pytest.raises(RequestError, match=f"^{name} is black everywhere .what is transparent counts as black"):
        laid_out(tmp_path, pictures | {name: Image.new("RGBA", (64, 64), (255, 255, 255, 0))})


@pytest.mark.parametrize("name", ["image", "init_image"])
def test_an_initial_picture_is_white_where_it_is_transparent(tmp_path: Path, name: str) -> None:
    cut_out = Image.new("RGBA", (64, 64))
    cut_out.paste((200, 100, 0, 255), (0, 0, 32, 64))
    pictures = {"image": noise(64, 64), name: cut_out, "mask": Image.new("L", (64, 64), 255)}
    initial = laid_out(tmp_path, pictures)[1].initial
    assert initial and [initial.picture.getpixel((x, 9)) for x in (8, 56)] == [(200, 100, 0), (255, 255, 255)]


def test_a_reference_picture_keeps_its_size_and_is_white_where_it_is_transparent(tmp_path: Path) -> None:
    cut_out = Image.new("RGBA", (90, 60))
    cut_out.paste((200, 100, 0, 255), (0, 0, 45, 60))
    pictures = {"image": noise(64, 64), "reference_image": cut_out}
    reference = laid_out(tmp_path, pictures, reference_scale=0.3, reference_mode="style")[1].reference
    assert reference and (reference.picture.size, reference.picture.mode) == ((90, 60), "RGB")
    assert [reference.picture.getpixel((x, 9)) for x in (8, 80)] == [(200, 100, 0), (255, 255, 255)]
    assert (reference.scale, reference.mode, reference.mask) == (0.3, "style", None)
    assert laid_out(tmp_path, {"image": noise(64, 64)})[1].reference is None


@pytest.mark.parametrize("sent", [{}, {"resize_mode": "fill"}, {"outpaint_right": 32}])
def test_a_reference_mask_is_placed_like_a_control_mask(tmp_path: Path, sent: dict) -> None:
    mask = noise(40, 70, 1).convert("L")
    pictures = {"image": noise(96, 64), "image_2": noise(96, 64), "reference_image": noise(80, 80)}
    pictures |= {"control_mask_2": mask, "reference_mask": mask}
    layout = laid_out(tmp_path, pictures, conditioner_2="depth", **sent)[1]
    assert layout.reference and layout.reference.mask and layout.reference.mask.size == layout.canvas.size
    assert layout.reference.mask == layout.controls[1].region


def test_a_large_picture_of_a_second_control_keeps_its_transparency_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = Image.fromarray(np.arange(64 * 64).astype(np.uint16).reshape(64, 64) // 4)
    pictures = {"image": noise(64, 64), "image_2": Image.new("RGBA", (64, 64), (9, 9, 9, 9)), "image_3": deep}
    monkeypatch.setattr("controlnet.pictures.canvas.MOST_KEPT", 1000)
    controls = laid_out(tmp_path, pictures, conditioner_2="depth", conditioner_3="depth")[1].controls
    assert controls[1].kept is controls[2].kept is None
    assert controls[1].picture().getpixel((0, 0)) == (9, 9, 9, 9) and controls[2].picture().mode == "RGB"
    assert capsys.readouterr().out.count("image_3: its 16-bit values") == 1


def test_every_sent_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the mask, which a request with upscale lays on two canvases."""
    opened: list[str] = []

    def count(file: Path, name: str) -> Image.Image:
        opened.append(name)
        return open_image(file, name)

    monkeypatch.setattr("controlnet.pictures.canvas.open_image", count)
    names = ["image", "init_image", "mask", "control_mask", "image_2", "reference_image", "reference_mask"]
    pictures = {name: noise(64, 64, seed) for seed, name in enumerate(names)}
    layout = laid_out(tmp_path, pictures, conditioner_2="depth", upscale=2.0)[1]
    assert sorted(opened) == sorted(names)
    assert layout.original and layout.original.mask and layout.original.mask.size == (128, 128)


@pytest.mark.parametrize(
    "name", ["image_3", "init_image", "mask", "control_mask", "control_mask_3", "reference_image", "reference_mask"]
)
def test_a_bad_picture_is_refused_by_its_input(tmp_path: Path, name: str) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    noise(32, 32).save(good)
    bad.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=rf"^{name}: The image is not a picture") as refusal:
        sent = {"image": good, "reference_image": good, name: bad}
        lay_out(asked(conditioner_3="depth", **sent), most_pixels=2**20, most_upscaled=2**22)
    assert not re.search(str(tmp_path), str(refusal.value))
    with pytest.raises(ImageError, match=r"^The image is not a picture"):
        lay_out(asked(image=bad), most_pixels=2**20, most_upscaled=2**22)


def test_one_file_may_be_picture_and_mask(tmp_path: Path) -> None:
    file = tmp_path / "both.png"
    noise(64, 64).save(file)
    layout = lay_out(asked(image=file, mask=file, control_mask=file), most_pixels=2**20, most_upscaled=2**22)
    assert layout.initial is not None and layout.initial.mask is not None and layout.controls[0].region is not None
    assert (layout.controls[0].picture().mode, layout.initial.mask.mode, layout.controls[0].region.mode) == (
        "RGB", "L", "L",
    )  # fmt: skip


def test_a_pose_far_beyond_the_canvas_is_refused(tmp_path: Path) -> None:
    far = '{"people": [{"pose_keypoints_2d": [99999, 1, 1' + ", 0" * 51 + "]}]}"
    with pytest.raises(PoseError, match="joints on the canvas or at most 10 canvases away"):
        laid_out(tmp_path, {"image": noise(64, 64)}, conditioner_2="openpose", pose_json=far)


def pose(*joints: tuple[float, float], **canvas: int) -> str:
    """A pose_json of one person with these joints."""
    numbers = [value for joint in joints for value in (*joint, 1)] + [0] * 3 * (18 - len(joints))
    return json.dumps({"people": [{"pose_keypoints_2d": numbers}]} | canvas)


def test_poses_without_a_canvas_are_in_pixels_of_the_sent_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As OpenPose itself writes them. The picture is halved when it is opened, if it is large."""
    monkeypatch.setattr("controlnet.pictures.images.FULL_SIZE", 10_000)
    sent = {"conditioner": "openpose", "pose_json": pose((640, 360), (1280, 720))}
    (area,) = laid_out(tmp_path, {"image": noise(1280, 720)}, **sent, width=128, height=64)[1].controls
    assert area.people is not None and area.people[0].body[:2] == ((64, 32), (128, 64))
    assert capsys.readouterr().out == ""


def test_the_log_names_the_canvas_that_was_assumed_if_joints_lie_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, joints = {"image": noise(64, 80)}, ((90, 10), (30, 81), (30, 30))
    laid_out(tmp_path, picture, conditioner="openpose", pose_json=pose(*joints))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("pose_json: it names no canvas_width and canvas_height, so 64×80 are assumed")
    assert line.endswith("2 of its 3 joints lie outside")
    laid_out(tmp_path, picture, conditioner="openpose", pose_json=pose(*joints, canvas_width=64, canvas_height=80))
    assert capsys.readouterr().out == "", "a canvas that is named was not assumed"
    with pytest.raises(PoseError, match=r"those of the picture, 64×80, as it has no canvas_width"):
        laid_out(tmp_path, picture, conditioner="openpose", pose_json=pose((900, 10)))


def test_sent_poses_are_laid_out_and_no_annotator_sees_the_picture(tmp_path: Path) -> None:
    """So a detect_resolution that would be too high for an annotator does not matter."""
    pose = '{"people": [{"pose_keypoints_2d": [0.5, 0.25, 1' + ", 0" * 51 + "]}]}"
    sent = {"conditioner": "openpose", "pose_json": pose, "detect_resolution": 2048}
    (area,) = laid_out(tmp_path, {"image": noise(256, 64)}, **sent, outpaint_left=32)[1].controls
    assert area.people is not None and area.people[0].body[0] == (128, 16)


def test_a_large_picture_of_a_second_control_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {"image": noise(64, 64), "image_2": noise(80, 64, 1), "image_3": noise(16, 16, 2)}
    monkeypatch.setattr("controlnet.pictures.canvas.MOST_KEPT", 1000)
    controls = laid_out(tmp_path, pictures, conditioner_2="depth", conditioner_3="hed")[1].controls
    assert [control.kept is None for control in controls] == [False, True, False]
    assert [control.picture() for control in controls] == list(pictures.values())


def test_a_repainted_picture_is_laid_out_at_the_final_size_too(tmp_path: Path) -> None:
    """From the pixels that were sent, so what is kept is as fine as they are."""
    fine, mask = noise(256, 256), Image.new("L", (256, 256))
    mask.paste(255, (0, 0, 128, 256))
    pictures = {"image": fine, "mask": mask}
    layout = laid_out(tmp_path, pictures, upscale=4.0, mask_feather=2, outpaint_right=13, prompt_strength=0.5)[1]
    original = layout.original
    assert layout.canvas.size == (80, 64) and layout.size == (320, 256)
    assert original and original.mask is not None and original.picture.size == original.mask.size == (320, 256)
    assert np.array_equal(np.asarray(original.picture)[:, :256], np.asarray(fine))
    row = np.asarray(original.mask)[100]
    assert (row[:120] == 255).all() and (row[136:248] == 0).all() and (row[264:] == 255).all()
    assert 0 < (row[120:136] % 255 > 0).sum() <= 16


def test_a_request_that_is_not_enlarged_has_no_second_layout(tmp_path: Path) -> None:
    pictures = {"image": noise(64, 64), "mask": noise(64, 64).convert("L")}
    layout = laid_out(tmp_path, pictures)[1]
    assert layout.size == layout.canvas.size and layout.original is None
    assert laid_out(tmp_path, {"image": noise(64, 64)}, upscale=2.0)[1].original is None
    with pytest.raises(SizeError, match="more than upscale may make"):
        laid_out(tmp_path, pictures, resolution=1024, upscale=4.0)


@pytest.mark.parametrize("size", [(96, 96), (101, 99), (304, 200)])
def test_an_upscaled_canvas_has_the_same_content(size: tuple[int, int]) -> None:
    canvas = Canvas((64, 48), Margins(left=8, bottom=16), "crop")
    larger = canvas.upscaled(size)
    assert larger.size == size and larger.mode == "crop"
    assert larger.margins.left / size[0] == pytest.approx(8 / 72, abs=0.01)
    assert larger.margins.bottom / size[1] == pytest.approx(16 / 64, abs=0.01)
    assert (larger.margins.right, larger.margins.top) == (0, 0)
