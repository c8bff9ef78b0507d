"""The controls of a request with their control maps: up to three, each with its own strength, window and region."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from controlnet.conditioners import BY_NAME
from controlnet.maps.annotators import Annotator, knobs_of, line_width_of
from controlnet.maps.annotators.skeletons import PEOPLE, count_shown, draw_poses
from controlnet.maps.cache import MapCache
from controlnet.maps.drawing import draw_control_map
from controlnet.maps.transparency import opaque
from controlnet.pictures.canvas import ControlArea, Layout
from controlnet.pictures.geometry import extend, filled, reshape
from controlnet.request.pose import FOUND_PARTS, POSE_PARTS, SENT_PARTS, Pose, poses_to_json
from controlnet.request.request import Request


@dataclass(frozen=True)
class Control:
    """One control map and how it acts."""

    conditioner: str
    control_map: Image.Image
    """RGB, of the size of the pictures to be made."""
    scale: float = 1.0
    """Strength, 0–2."""
    start: float = 0.0
    end: float = 1.0
    """The share of the steps after which control begins and ends, 0 ≤ start < end ≤ 1."""
    region: Image.Image | None = None
    """Mode L, of the map's size: 255 where the control acts in full, 0 where not at all. None means everywhere."""
    holes: Image.Image | None = None
    """Mode L, of the map's size: where it is not 0 the net sees −1 in place of a colour. inpaint's net paints there."""
    pose_json: str | None = None
    """The people of an openpose map as OpenPose's JSON. None unless the request asks for it."""
    people: int | None = None
    """How many people an openpose map shows. None if they are not known, as in a ready-made map."""
    outside: int = 0
    """How many more people there are, of whom nothing lies on the map."""

    def parameters(self) -> dict[str, Any]:
        """Its plain values, without pictures."""
        return {"conditioner": self.conditioner, "scale": self.scale, "start": self.start, "end": self.end}


def draw_controls(
    request: Request, layout: Layout, annotators: Mapping[str, Annotator], cache: MapCache | None = None
) -> tuple[Control, ...]:
    """Every control of the request, in order, with its map and region of the canvas' size.

    `annotators` are the bundle's, by conditioner.
    """
    drawer = _Drawer(request, layout, annotators, cache)
    return tuple(drawer.control(area) for area in layout.controls)


def found_poses(controls: Sequence[Control]) -> str | None:
    """The poses of the request's first openpose map as JSON. None unless the request asks for them."""
    return next((control.pose_json for control in controls if control.pose_json is not None), None)


@dataclass(frozen=True)
class _Drawer:
    """Draws the controls of one request."""

    request: Request
    layout: Layout
    annotators: Mapping[str, Annotator]
    cache: MapCache | None

    def control(self, area: ControlArea) -> Control:
        control, people = area.control, area.people
        holes: Image.Image | None = None
        parts = self.request.knobs.pose_parts or (FOUND_PARTS if people is None else SENT_PARTS)
        if control.made_of == "holes":
            control_map, holes = self._with_holes()
        elif people is not None:
            control_map = draw_poses(people, area.size, parts, line_width_of(self.annotators[control.conditioner]))
        else:
            control_map, people = self._of_picture(area)
        if area.margins:
            control_map = extend(control_map, area.margins, BY_NAME[control.conditioner].blank)
        on_map, outside = (None, 0) if people is None else _count(people, area.size, parts)
        return Control(
            conditioner=control.conditioner,
            control_map=control_map,
            scale=control.scale,
            start=control.start,
            end=control.end,
            region=area.region,
            holes=holes,
            pose_json=None if people is None or not self.request.return_pose_json else poses_to_json(people, area.size),
            people=on_map,
            outside=outside,
        )

    def _with_holes(self) -> tuple[Image.Image, Image.Image]:
        """The initial picture, black where its mask is at least half white, and these holes, without soft edges."""
        initial = self.layout.initial
        assert initial is not None and initial.mask is not None  # combinations.py refuses the others
        holes = initial.mask.point([0] * 128 + [255] * 128)
        return Image.composite(Image.new("RGB", holes.size), initial.picture, holes), holes

    def _of_picture(self, area: ControlArea) -> tuple[Image.Image, tuple[Pose, ...] | None]:
        """The map of the control's picture, and the people that an annotator has found, in pixels of the map."""
        request, control, mode = self.request, area.control, self.layout.canvas.mode
        name = control.conditioner
        taken = knobs_of(self.annotators[name]) if control.drawn else ()
        knobs = {knob: value for knob, value in request.knobs.sent().items() if knob in taken}
        detect_resolution = request.detect_resolution if control.drawn else None
        picture = opaque(area.picture(), BY_NAME[name], control.drawn)
        free = filled(picture.size, area.size) if mode == "fill" else None
        settings = (control.preprocess, self.annotators, knobs, detect_resolution, self.cache)
        # No name for the shaped picture, which may be large: it goes when the annotator's smaller one is made.
        shaped = [reshape(picture, area.size, mode)]
        del picture
        control_map = draw_control_map(name, shaped.pop(), area.size, *settings)
        people, line_width = _found_people(control_map), line_width_of(self.annotators[name])
        if people is not None and line_width != 1:  # the annotator has drawn lines of the usual width
            parts = request.knobs.pose_parts or FOUND_PARTS
            control_map = draw_poses(people, control_map.size, parts, line_width)
        if free and (blank := BY_NAME[name].blank) is not None:
            # There the picture's edges were continued. Lines that an annotator sees there are not in the picture.
            control_map = extend(control_map.crop(free.inside(area.size)), free, blank)
        return control_map, people


def _count(people: Sequence[Pose], size: tuple[int, int], pose_parts: str) -> tuple[int, int]:
    """How many people a map of `size` shows, and of how many nothing lies on it. Those without joints are nobody."""
    drawn = [person.only(POSE_PARTS[pose_parts]) for person in people]
    known = [person for person in drawn if any(True for _ in person.joints())]
    shown = count_shown(known, size, pose_parts)
    return shown, len(known) - shown


def _found_people(control_map: Image.Image) -> tuple[Pose, ...] | None:
    """The people that an annotator has found, in pixels of the map that it drew."""
    if PEOPLE not in control_map.info:
        return None
    people, seen = control_map.info[PEOPLE]
    across, down = (side / before for side, before in zip(control_map.size, seen, strict=True))
    return tuple(person.scaled(across, down) for person in people)
