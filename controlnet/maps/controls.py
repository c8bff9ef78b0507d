"""The controls of a request: up to three, each with its own picture, strength, window and region."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageChops

from controlnet.conditioners import (
    BY_NAME,
    DETECT_RESOLUTION,
    INPAINT,
    OPENPOSE,
    check_conditioner,
    check_knobs,
    detect_size,
    draw_control_map,
)
from controlnet.generation.job import Control, Request
from controlnet.generation.repaint import Start
from controlnet.maps.annotators import Annotator, LoadedAnnotator, knobs_of
from controlnet.maps.annotators.skeletons import PoseAnnotator, draw_poses
from controlnet.maps.cache import MapCache
from controlnet.pictures.canvas import Canvas, Pictures
from controlnet.pictures.geometry import extend, filled, reshape
from controlnet.request.inputs import pick_seed
from controlnet.request.pose import Pose, parse_poses, poses_to_json

SUFFIXES = ("", "_2", "_3")
"""What the inputs of the first, second and third control end with."""
BODY, ALL = "body", "all"
"""What is drawn of people (keys of POSE_PARTS): of those found, and of those sent, unless pose_parts says otherwise."""
KNOBS = ("low_threshold", "high_threshold", "mlsd_score_threshold", "mlsd_distance_threshold", "pose_parts")
"""Inputs that are annotators' own: each goes to those of the request's annotators that take it."""
DEFAULTS = {"preprocess": True, "conditioning_scale": 1.0, "control_start": 0.0, "control_end": 1.0}
"""Of the second and third: left out they are None, so that one without its conditioner can be told."""


def named(ask: SimpleNamespace) -> list[str]:
    """The suffixes of the controls that a request names."""
    return [suffix for suffix in SUFFIXES if getattr(ask, f"conditioner{suffix}") is not None]


def check_conditioners(ask: SimpleNamespace, annotators: Mapping[str, Annotator]) -> None:
    """Raise ConditionerError where the bundle whose annotators these are lacks a conditioner of the request."""
    for suffix in named(ask):
        check_conditioner(getattr(ask, f"conditioner{suffix}"), annotators)


def windows(ask: SimpleNamespace) -> list[tuple[str, float, float]]:
    """Suffix, start and end of each control."""
    return [(suffix, _value(ask, "control_start", suffix), _value(ask, "control_end", suffix)) for suffix in named(ask)]


def make_request(ask: SimpleNamespace, controls: tuple[Control, ...], start: Start | None) -> Request:
    """What the generator is asked for; its seed is the request's, or one drawn now."""
    return Request(
        prompt=ask.prompt,
        negative_prompt=ask.negative_prompt,
        controls=controls,
        num_outputs=ask.num_outputs,
        num_inference_steps=ask.num_inference_steps,
        guidance_scale=ask.guidance_scale,
        scheduler=ask.scheduler,
        seed=pick_seed(ask.seed),
        control_mode=ask.control_mode,
        clip_skip=ask.clip_skip,
        start=start,
    )


def check_knobs_sent(ask: SimpleNamespace, annotators: Mapping[str, Annotator]) -> None:
    """Raise KnobError where a knob that is sent is none of any control whose map is drawn."""
    for knob in (*KNOBS, DETECT_RESOLUTION):
        if getattr(ask, knob) is None:
            continue
        drawn = [(getattr(ask, f"conditioner{s}"), bool(_value(ask, "preprocess", s))) for s in named(ask)]
        if not any(draws and _takes(name, knob, annotators) for name, draws in drawn):
            name, draws = drawn[0]
            check_knobs(name, {knob: getattr(ask, knob)}, annotators, draws)


def draw_controls(
    ask: SimpleNamespace,
    pictures: Pictures,
    canvas: Canvas,
    start: Start | None,
    annotators: Mapping[str, Annotator],
    cache: MapCache | None = None,
) -> tuple[Control, ...]:
    """Every control that the request names, in order, its map and region of the canvas' size."""
    return tuple(_control(ask, suffix, pictures, canvas, start, annotators, cache) for suffix in named(ask))


def _control(
    ask: SimpleNamespace,
    suffix: str,
    pictures: Pictures,
    canvas: Canvas,
    start: Start | None,
    annotators: Mapping[str, Annotator],
    cache: MapCache | None,
) -> Control:
    name = getattr(ask, f"conditioner{suffix}")
    region = None
    if f"control_mask{suffix}" in pictures:
        region = canvas.lay_mask(pictures[f"control_mask{suffix}"], canvas.size, f"control_mask{suffix}")
    holes = pose_json = None
    if name == INPAINT:
        assert start is not None and start.mask is not None  # combinations.py refuses the others
        holes = start.mask.point([0] * 128 + [255] * 128)  # a hole is a hole or none, however soft its rim
        control_map = Image.composite(Image.new("RGB", canvas.size), start.picture, holes)
    else:
        source = pictures.get(f"image{suffix}", pictures["image"])
        # What is painted outwards is beyond the picture's own map: there its net does not act.
        within = bool(canvas.margins) and start is not None and source is pictures.get("init_image", pictures["image"])
        size = canvas.kept if within else canvas.size
        people = _people(ask, source, canvas, size, annotators) if name == OPENPOSE else None
        if ask.return_pose_json and people is not None:
            pose_json = poses_to_json(people, size)
        if ask.pose_json is not None and people is not None:
            control_map = draw_poses(people, size, ask.pose_parts or ALL)
        else:
            control_map = _map(ask, suffix, source, canvas, size, annotators, cache)
        if within:
            reach = extend(Image.new("L", canvas.kept, 255), canvas.margins, blank=0)
            control_map = extend(control_map, canvas.margins, BY_NAME[name].blank)
            region = reach if region is None else ImageChops.multiply(region, reach)
    return Control(
        conditioner=name,
        control_map=control_map,
        scale=_value(ask, "conditioning_scale", suffix),
        start=_value(ask, "control_start", suffix),
        end=_value(ask, "control_end", suffix),
        region=region,
        holes=holes,
        pose_json=pose_json,
    )


def found_poses(controls: Sequence[Control]) -> str | None:
    """The poses of the request's openpose map as JSON, where they are asked for."""
    return next((control.pose_json for control in controls if control.pose_json is not None), None)


def _people(
    ask: SimpleNamespace,
    source: Image.Image,
    canvas: Canvas,
    size: tuple[int, int],
    annotators: Mapping[str, Annotator],
) -> list[Pose] | None:
    """The people of an openpose map in pixels of `size`: those sent, or those found where they are to be returned."""
    if ask.pose_json is not None:
        return parse_poses(ask.pose_json, size)
    if not ask.return_pose_json:
        return None
    annotator = annotators[OPENPOSE]
    finder = annotator.draw if isinstance(annotator, LoadedAnnotator) else annotator
    assert isinstance(finder, PoseAnnotator)
    seen = detect_size(size, ask.detect_resolution)
    people = finder.poses(canvas.lay(source, seen), ask.pose_parts or BODY)
    return [person.scaled(size[0] / seen[0], size[1] / seen[1]) for person in people]


def _value(ask: SimpleNamespace, name: str, suffix: str) -> Any:
    sent = getattr(ask, name + suffix)
    return DEFAULTS[name] if sent is None else sent


def _takes(name: str, knob: str, annotators: Mapping[str, Annotator]) -> bool:
    return name != INPAINT and (knob == DETECT_RESOLUTION or knob in knobs_of(annotators[name]))


def _map(
    ask: SimpleNamespace,
    suffix: str,
    source: Image.Image,
    canvas: Canvas,
    size: tuple[int, int],
    annotators: Mapping[str, Annotator],
    cache: MapCache | None,
) -> Image.Image:
    """The control map of one picture, of `size`."""
    name, preprocess = getattr(ask, f"conditioner{suffix}"), _value(ask, "preprocess", suffix)
    knobs = {knob: getattr(ask, knob) for knob in KNOBS if preprocess and _takes(name, knob, annotators)}
    detect_resolution = ask.detect_resolution if preprocess else None
    shaped = reshape(source, size, canvas.mode)
    control_map = draw_control_map(name, shaped, size, preprocess, annotators, knobs, detect_resolution, cache)
    free = filled(source.size, size) if canvas.mode == "fill" else None
    if free and (blank := BY_NAME[name].blank) is not None:
        # There the picture's edges were continued, and what comes of that is no line of the picture.
        control_map = extend(control_map.crop(free.inside(size)), free, blank)
    return control_map
