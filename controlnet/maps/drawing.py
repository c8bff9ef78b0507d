"""One control map from one picture: drawn by the conditioner's annotator, or ready-made and only resized."""

from collections.abc import Mapping

from PIL import Image

from controlnet.conditioners import BY_NAME
from controlnet.maps.annotators import SHORT_SIDE, Annotator, knobs_of, own_side_of
from controlnet.maps.cache import MapCache, digest
from controlnet.maps.resizing import resize_map
from controlnet.pictures.geometry import detect_size, fit
from controlnet.pictures.images import white_on_black
from controlnet.request.knobs import KnobValue


def draw_control_map(
    name: str,
    picture: Image.Image,
    size: tuple[int, int],
    preprocess: bool,
    annotators: Mapping[str, Annotator],
    knobs: Mapping[str, KnobValue] = {},
    detect_resolution: int | None = None,
    cache: MapCache | None = None,
) -> Image.Image:
    """The control map of conditioner `name`, RGB, of exactly `size` (width, height).

    With `preprocess` the bundle's annotator draws it from `picture`, which it sees at its seen_size. Without, `picture`
    already is a control map: it is only resized, and inverted if the conditioner's maps are white on black and this one
    is not. `annotators` are the bundle's, by conditioner. `knobs` are settings that the annotator takes; it has a
    default for each. Maps are taken from `cache` if they are in it, and added if not. The map has the info that the
    annotator gave it.

    Raises SizeError as detect_size does.
    """
    conditioner, annotator = BY_NAME[name], annotators[name]
    settings = dict(knobs)
    if detect_resolution is not None and SHORT_SIDE in knobs_of(annotator):
        settings[SHORT_SIDE] = detect_resolution
    if preprocess:
        seen = seen_size(annotator, picture.size, size, detect_resolution)
        picture = fit(picture, seen, Image.Resampling.LANCZOS)

    def draw() -> Image.Image:
        if preprocess:
            control_map = annotator(picture, **settings)
        else:
            control_map = white_on_black(picture) if conditioner.lines else picture
        resized = resize_map(control_map, size, conditioner.form)
        resized.info.update(control_map.info)
        return resized

    if cache is None:
        return draw()
    key = (name, preprocess, size, tuple(sorted(settings.items())), digest(picture))
    return cache.fetch(key, draw)


def seen_size(
    annotator: Annotator, picture_size: tuple[int, int], size: tuple[int, int], detect_resolution: int | None
) -> tuple[int, int]:
    """The (width, height) at which the annotator sees a picture whose map has `size`.

    That is detect_size(size, detect_resolution). For a map that is smaller than the pictures of the annotator's network
    it is their size, if the picture has as many pixels: reduced to the map's size, it would lose details that the
    network could see. Raises SizeError as detect_size does.
    """
    own_side = own_side_of(annotator)
    if detect_resolution is None and own_side is not None:
        detect_resolution = max(min(size), min(own_side, *picture_size))
    return detect_size(size, detect_resolution)
