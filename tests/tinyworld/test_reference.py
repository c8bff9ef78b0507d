"""tiny's IP-Adapter: what it is trained on, and what it does to pictures. docs/quality.md is made from more scenes."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from controlnet.weights.manifest import WEIGHTS
from tinyworld import train, truth
from tinyworld.creatures import of_wing
from tinyworld.dataset import PICTURE, SEEN, load_scenes, sample_of
from tinyworld.diffusion import DrawControlled
from tinyworld.export import EVALUATOR
from tinyworld.feed import generator_of
from tinyworld.judge import Judge
from tinyworld.latents import encode_scenes
from tinyworld.likeness import Likeness, as_toml, measure, nearer, palette_distance
from tinyworld.painter import Painter
from tinyworld.palettes import facts_of, in_colours_of, palette_of, scene_like
from tinyworld.reference import NOISIEST, SURROUNDINGS, DrawReferred, Noisiest, References, shown_as
from tinyworld.render import GROUND, SKY
from tinyworld.scene import Scene, make_scene, without_paint

PAIRS = 8


def test_a_picture_takes_the_colours_of_its_reference_and_keeps_to_its_map() -> None:
    """With 6 steps; docs/quality.md has the figures of 64 pairs with the usual 20."""
    painter = Painter("tiny", "drawn")
    manifest = painter.bundle.manifest
    painter.bundle.manifest = replace(manifest, defaults=replace(manifest.defaults, num_inference_steps=6))
    judge = Judge(load_pretrained(TinyVisionModel, EVALUATOR, torch.device("cpu")))
    measured = measure("canny", painter, judge, PAIRS, (0.0, 1.0))
    print(measured)
    assert measured[1.0].nearer >= 0.75 > measured[0.0].nearer + 0.1
    assert measured[1.0].share > 0.9 * measured[0.0].share
    assert 0.6 < measured[1.0].rendered < 1.0 == measured[0.0].rendered


def test_ground_wall_and_sky_count_once_and_things_more() -> None:
    classes = [truth._classes(make_scene(seed)) for seed in range(200)]
    around = {int(found[place]) for found in classes for place in (SKY, GROUND)}
    assert around | {[name for name, _ in truth.CLASSES].index("wall")} == set(SURROUNDINGS)


def test_a_reference_is_another_scene_in_the_same_colours() -> None:
    for seed in range(20):
        scene = make_scene(seed)
        other, own = scene_like(scene, seed), palette_of(scene)
        found = palette_of(other)
        assert np.array_equal(found.ground, own.ground) and np.array_equal(found.above, own.above)
        assert {tuple(main) for main, _ in found.things} <= {tuple(main) for main, _ in own.things}
        assert other.caption != scene.caption and np.array_equal(other.light, scene.light)
        day, night = facts_of(scene, False), facts_of(scene, True)
        assert (day.isnan() == night.isnan()).all() and (night[:-1].nansum() < day[:-1].nansum()) and night[-1] == 1


def test_things_get_their_colours_from_left_to_right_and_all_of_an_owl_its_own() -> None:
    house = first_scene(lambda scene: [thing.words.split()[1] for thing in scene.things] == ["house", "tree"])
    owl = first_scene(lambda scene: [thing.words.split()[1] for thing in scene.things] == ["owl"])
    mirrored = replace(house, things=house.things[::-1])
    assert [tuple(main) for main, _ in palette_of(house).things] == [tuple(m) for m, _ in palette_of(mirrored).things]
    painted = {solid.label: solid.colour for solid in in_colours_of(house, owl).things[0].solids}
    (main, _), *_ = palette_of(house).things
    assert np.array_equal(painted["owl"], main) and np.array_equal(painted["wing"], of_wing(main))


def first_scene(fits: Callable[[Scene], bool]) -> Scene:
    return next(scene for scene in map(make_scene, range(1000)) if fits(scene))


def test_captions_without_colours_are_still_sentences() -> None:
    plain = {
        "an orange house with a red roof on snow under a blue sky": "a house with a roof under a sky",
        "many red, blue and green things in an orange room with a white floor": "many things in a room with a floor",
        "a white boat on water under a black sky with a moon": "a boat under a sky with a moon",
        "a person in a red shirt and blue trousers": "a person in a shirt and trousers",
    }
    assert {caption: without_paint(caption) for caption in plain} == plain


def test_palettes_are_compared_wherever_their_colours_are() -> None:
    scenes = [make_scene(seed) for seed in (1, 7)]
    one, other = (Image.fromarray(sample_of(scene).picture) for scene in scenes)
    like = Image.fromarray(sample_of(scene_like(scenes[0], 3)).picture)
    assert palette_distance(one, one.rotate(180)) == pytest.approx(0, abs=1e-4)
    assert palette_distance(one, like) < palette_distance(one, other) / 2
    assert nearer([one, other], [like, other]) == 1 and nearer([one, other], [other, like]) == 0


def test_batches_are_drawn_alike_in_other_processes_and_mostly_where_colours_are_chosen(tmp_path: Path) -> None:
    scenes = load_scenes(tmp_path, 8)
    bundle = WEIGHTS / "tiny"
    vae = AutoencoderTiny.from_pretrained(bundle / "vae", variant="fp16", torch_dtype=torch.float32)
    latents, _ = encode_scenes(vae, scenes, torch.device("cpu"), tmp_path, 1.0, shown_as)
    noising = Noisiest(latents, CLIPTokenizer.from_pretrained(bundle / "tokenizer"), scenes.seen.words)
    draw = DrawReferred(DrawControlled(noising, scenes, None, ("canny",)), References(scenes, tmp_path))
    again = pickle.loads(pickle.dumps(draw))
    drawn = [draw(generator_of("reference", step), 8) for step in range(20)]
    sides = {one.controlled.batch.noisy.shape[-1] for one in drawn}
    assert sides == {PICTURE // 8, SEEN // 8} and all(one.pixels.shape[-1] == 64 for one in drawn)
    assert all(one.weight.shape[2:] == one.controlled.batch.noisy.shape[2:] for one in drawn)
    other = again(generator_of("reference", 7), 8)
    assert torch.equal(other.pixels, drawn[7].pixels) and torch.equal(other.weight, drawn[7].weight)
    times = torch.cat([one.controlled.batch.times for one in drawn])
    assert 0.75 < (times >= NOISIEST).float().mean() < 1


def test_figures_are_written_as_toml_for_the_manifest() -> None:
    written = as_toml({"canny": {0.5: Likeness(0.75, 0.9, 0.95)}}, 64)
    assert "[made.reference]\nscenes = 64\n" in written
    assert "[made.reference.canny]\n50 = { nearer = 0.750, share = 0.900, rendered = 0.950 }" in written


def test_an_adapter_is_trained_for_a_bundle_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = shutil.copytree(WEIGHTS / "tiny", tmp_path / "tiny")
    before = {file: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    places = {"--runs": tmp_path / "runs", "--start": bundle, "--export": bundle}
    arguments = ["--smoke", "--reference", *(str(word) for pair in places.items() for word in pair)]
    monkeypatch.setattr("sys.argv", ["train-tiny", *arguments])
    train.main()
    changed = {file for file, content in before.items() if file.read_bytes() != content}
    assert changed == {bundle / "image_encoder/model.safetensors", bundle / "ip_adapter/ip_adapter.safetensors"}
    for file in changed:
        made, committed = load_file(file), load_file(WEIGHTS / "tiny" / file.relative_to(bundle))
        assert {name: one.shape for name, one in made.items()} == {name: one.shape for name, one in committed.items()}
    monkeypatch.setattr("sys.argv", ["train-tiny", "--reference"])
    with pytest.raises(SystemExit):
        train.main()
