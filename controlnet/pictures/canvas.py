"""The layout of a request: the size of its pictures, how each sent picture is fitted to it, the initial picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageChops

from controlnet.conditioners import BLACK, WHITE
from controlnet.log import say, silence
from controlnet.pictures.colours import lay_on
from controlnet.pictures.geometry import (
    Margins,
    canvas_size,
    check_pixels,
    check_upscaled,
    detect_size,
    extend,
    fit,
    in_steps,
    reshape,
    upscaled_size,
)
from controlnet.pictures.images import ImageError, open_image, sent_size
from controlnet.request.combinations import RequestError
from controlnet.request.pose import Pose, SentPoses
from controlnet.request.request import Request, RequestedControl


@dataclass(frozen=True)
class Canvas:
    """The area of the pictures to be made: a kept part of the requested size, and outpainted margins around it."""

    kept: tuple[int, int]
    margins: Margins
    """Multiples of 8."""
    mode: str
    """A key of geometry.RESIZE_MODES."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), both multiples of 8."""
        return self.margins.around(self.kept)

    def upscaled(self, size: tuple[int, int]) -> "Canvas":
        """This canvas at another `size` with the same content. Its margins need not be multiples of 8."""
        across, down = (after / before for after, before in zip(size, self.size, strict=True))
        left, top = round(self.margins.left * across), round(self.margins.top * down)
        right, bottom = (self.margins.left + self.kept[0]) * across, (self.margins.top + self.kept[1]) * down
        kept = round(right) - left, round(bottom) - top
        return Canvas(kept, Margins(left, top, size[0] - left - kept[0], size[1] - top - kept[1]), self.mode)

    def lay(self, image: Image.Image, size: tuple[int, int], blank: int | None = None) -> Image.Image:
        """The image at `size`. What the mode "fill" adds is `blank`, or the image's edges continued."""
        return fit(reshape(image, size, self.mode, blank), size, Image.Resampling.LANCZOS)

    def lay_mask(self, mask: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
        """Like lay(), with black where the mask does not reach. `name` is the name of its input.

        Raises RequestError if the result is black everywhere, because it would have no effect.
        """
        laid = self.lay(mask, size, blank=0)
        if laid.getextrema() == (0, 0):
            raise RequestError(
                f"{name} is black everywhere (what is transparent counts as black), so it does nothing: paint some "
                "white, or leave it out."
            )
        return laid


@dataclass(frozen=True)
class InitialPicture:
    """The picture that a request begins with in place of noise alone."""

    picture: Image.Image
    """RGB, of the size of the pictures to be made."""
    strength: float
    """Share of the steps that are taken, 0–1: how much noise is put on the picture first."""
    mask: Image.Image | None = None
    """Mode L, of the picture's size: 255 where it is repainted, 0 where it is kept, grey for a mixture of both."""

    @property
    def is_overwritten(self) -> bool:
        """Whether nothing of it is in the first latents, because a masked part is repainted from noise alone."""
        return self.mask is not None and self.strength == 1

    def restore(self, made: Image.Image) -> Image.Image:
        """`made` with this picture's pixels, bit for bit, where the mask is black, and a mixture where it is grey."""
        return made if self.mask is None else Image.composite(made, self.picture, self.mask)


@dataclass(frozen=True)
class ReferencePicture:
    """A picture whose content or style is taken over into those to be made."""

    picture: Image.Image
    """RGB, of any size: its encoder has a size of its own."""
    scale: float
    """How strongly it acts, above 0 to 1.5."""
    mode: str
    """One of controlnet.request.modes.REFERENCE_MODES."""
    mask: Image.Image | None = None
    """Mode L, of the canvas' size: 255 where it acts in full, 0 where not at all. None means everywhere."""

    def parameters(self) -> dict[str, Any]:
        """Its plain values, without pictures."""
        return {"scale": self.scale, "mode": self.mode}


MOST_KEPT = 8_000_000
"""Pixels of a second or third control's picture that is kept in memory. A larger one is opened again for its map."""


@dataclass(frozen=True)
class ControlArea:
    """One control of the request with its picture opened, and where its map lies on the canvas."""

    control: RequestedControl
    kept: Image.Image | None
    """The control's picture, unless it is too large to be kept."""
    margins: Margins
    """The part of the canvas on each side that its map does not cover: its picture does not have these margins."""
    size: tuple[int, int]
    """(width, height) of the map, without the margins."""
    region: Image.Image | None
    """Mode L, of the canvas' size: 255 where the control acts in full, 0 where not at all. None means everywhere."""
    people: tuple[Pose, ...] | None
    """The people of the request's pose_json, in pixels of the map. None if the map is not made of them."""

    def picture(self) -> Image.Image:
        """The control's picture as it was sent, of any size: RGB, or RGBA if a part is transparent."""
        if self.kept is not None:
            return self.kept
        with silence():  # the log has heard of it
            return open_input(self.control.image, self.control.input("image"))


@dataclass(frozen=True)
class Layout:
    """The pictures of a request, opened and placed on its canvas."""

    canvas: Canvas
    controls: tuple[ControlArea, ...]
    """One for each control of the request."""
    initial: InitialPicture | None
    """None if the request begins with noise alone."""
    size: tuple[int, int]
    """(width, height) of the final pictures: that of the canvas, or as much larger as the request says."""
    reference: ReferencePicture | None
    """None if the request has none."""
    original: InitialPicture | None
    """If a part is repainted and the pictures are enlarged: `initial` at the final size, from the sent pictures."""


def lay_out(request: Request, most_pixels: int, most_upscaled: int) -> Layout:
    """Open the request's pictures and place them. Everything that depends on their pixels is refused here.

    Raises ImageError for a file that is no picture, naming its input unless that is image; SizeError for more than
    `most_pixels` in all outputs together, for more than `most_upscaled` in all after they are enlarged, or for a
    detect_resolution that is too high for the canvas; RequestError for a mask that does nothing; and PoseError for a
    pose_json with people far beyond the canvas.
    """
    # One picture is opened at a time, and reduced to what is needed of it before the next: a large one takes 100 MB.
    first = open_input(request.controls[0].image, request.controls[0].input("image"))
    begun = first if request.init_image is None else open_input(request.init_image, "init_image")
    margins = in_steps(
        Margins(request.outpaint_left, request.outpaint_top, request.outpaint_right, request.outpaint_bottom)
    )
    canvas = Canvas(
        canvas_size(begun.size, request.resolution, request.width, request.height), margins, request.resize_mode
    )
    by_resolution = request.width is None and request.height is None and not margins
    check_pixels(canvas.size, request.num_outputs, most_pixels, by_resolution)
    check_upscaled(canvas.size, request.upscale, request.num_outputs, most_upscaled)
    mask = None if request.mask is None else open_mask(request.mask, "mask")
    initial = _initial_picture(request, begun, mask, canvas, request.mask_feather)
    size, original = canvas.size, None
    if request.upscale > 1:
        size = upscaled_size(canvas.size, request.upscale)
        if request.repaints:
            original = _initial_picture(
                request, begun, mask, canvas.upscaled(size), round(request.mask_feather * request.upscale)
            )
    del begun, mask
    areas = tuple(_area(request, control, first, canvas) for control in request.controls)
    return Layout(canvas, areas, initial, size, _reference_picture(request, canvas), original)


def open_input(file: Path, name: str) -> Image.Image:
    """The picture that was sent for the input `name`: RGB, or RGBA if a part is transparent.

    Raises ImageError, which names the input unless it is image.
    """
    try:
        return open_image(file, name)
    except ImageError as error:
        raise error if name == "image" else ImageError(f"{name}: {error}") from None


def open_mask(file: Path, name: str) -> Image.Image:
    """The mask that was sent for the input `name`, mode L, black where it is transparent. Raises as open_input."""
    return lay_on(open_input(file, name), BLACK).convert("L")


def _initial_picture(
    request: Request, picture: Image.Image, mask: Image.Image | None, canvas: Canvas, feathered: int
) -> InitialPicture | None:
    """The initial picture: init_image, or the image itself if it is repainted or painted beyond its edges.

    `picture` and `mask` are those that were sent. `feathered` is the mask_feather of this canvas.
    """
    if request.init_image is None and not request.repaints:
        return None
    laid = extend(canvas.lay(lay_on(picture, WHITE), canvas.kept), canvas.margins)
    if not request.repaints:
        return InitialPicture(laid, request.prompt_strength)
    inside = Image.new("L", canvas.kept) if mask is None else canvas.lay_mask(mask, canvas.kept, "mask")
    repainted = feather(extend(inside, canvas.margins, blank=255), feathered)
    return InitialPicture(laid, request.prompt_strength, repainted)


def feather(mask: Image.Image, pixels: int) -> Image.Image:
    """The mask, mode L, with soft edges: a Gaussian blur (σ is half of `pixels`) that reaches `pixels` to each side.

    Farther from an edge, black stays 0 and white stays 255. ControlNet's demo of inpainting blurs its mask, too. A hard
    edge shows as a seam, since the painted part never continues the kept one exactly.
    """
    if pixels == 0:
        return mask
    window = 2 * pixels + 1
    return Image.fromarray(cv2.GaussianBlur(np.asarray(mask), (window, window), pixels / 2))


def _reference_picture(request: Request, canvas: Canvas) -> ReferencePicture | None:
    """The reference picture as it was sent, white where it is transparent."""
    if request.reference_image is None:
        return None
    picture = lay_on(open_input(request.reference_image, "reference_image"), WHITE)
    mask = _region(request.reference_mask, "reference_mask", canvas)
    return ReferencePicture(picture, request.reference_scale, request.reference_mode, mask)


def _region(file: Path | None, name: str, canvas: Canvas) -> Image.Image | None:
    """The mask that was sent for the input `name`, on the whole canvas. None if none was."""
    return None if file is None else canvas.lay_mask(open_mask(file, name), canvas.size, name)


def _area(request: Request, control: RequestedControl, first: Image.Image, canvas: Canvas) -> ControlArea:
    """The area of one control. `first` is the first control's picture, which is used unless this one has its own."""
    region = _region(control.mask, control.input("mask"), canvas)
    margins, size = Margins(), canvas.size
    shows_initial = request.init_image is None and not control.has_own_image
    if canvas.margins and shows_initial and control.made_of != "holes":
        # The picture of this map does not have the margins, so the net does not act there.
        margins, size = canvas.margins, canvas.kept
        inside = extend(Image.new("L", size, 255), margins, blank=0)
        region = ImageChops.multiply(region, inside) if region else inside
    if request.annotates(control):
        detect_size(size, request.detect_resolution)  # refuses too many pixels
    people = (
        _sent_people(request.pose_json, control, size) if request.pose_json and control.made_of == "poses" else None
    )
    return ControlArea(control, _kept_picture(control, first), margins, size, region, people)


def _sent_people(poses: SentPoses, control: RequestedControl, size: tuple[int, int]) -> tuple[Pose, ...]:
    """The people of a pose_json in pixels of the canvas. The log names the size of theirs if it had to be assumed and
    does not hold all of them."""
    if poses.canvas is not None:
        return poses.on(size, size)
    width, height = picture = sent_size(control.image)
    people = poses.on(size, picture)
    joints = [joint for person in poses.people for joint in person.joints()]
    outside = sum(not (0 <= x <= width and 0 <= y <= height) for x, y in joints)
    if outside:
        say(
            f"pose_json: it names no canvas_width and canvas_height, so {width}×{height} are assumed, those of image; "
            f"{outside} of its {len(joints)} joints lie outside"
        )
    return people


def _kept_picture(control: RequestedControl, first: Image.Image) -> Image.Image | None:
    """The control's picture, opened so that a bad one is refused here. None if it is too large to be kept."""
    if not control.has_own_image:
        return first
    picture = open_input(control.image, control.input("image"))
    return picture if picture.width * picture.height <= MOST_KEPT else None
