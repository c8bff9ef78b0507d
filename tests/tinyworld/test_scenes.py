"""The procedural world: shapes are in the right place, a seed makes one scene, training continues from checkpoints."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.bundle import open_bundle
from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from controlnet.models.lora import adapted
from controlnet.settings import Settings
from controlnet.weights.lora_files import Lora
from controlnet.weights.manifest import WEIGHTS
from tinyworld import models, stages, train
from tinyworld.feed import batches
from tinyworld.loras import LORAS
from tinyworld.render import FIRST_SOLID, SKY, camera_rays, render
from tinyworld.scene import make_scene
from tinyworld.shapes import Capsule, Ellipsoid, Frustum, Polyhedron, box, pyramid, roof, vector
from tinyworld.truth import outlines

EYE = vector(0.3, 1.4, -4)
SIZE = vector(1.2, 0.8, 1.0)
SHAPES = {
    "box": box(vector(0, 0.5, 0), SIZE, 0.4),
    "roof": roof(vector(0, 0.2, 0), SIZE, 0.4),
    "pyramid": pyramid(vector(0, 0.2, 0), SIZE, 0.4),
    "ball": Ellipsoid(vector(0, 0.6, 0), vector(0.5, 0.6, 0.4)),
    "cone": Frustum(vector(0, 0, 0), 1.2, 0.6, 0.0),
    "cylinder": Frustum(vector(0, 0, 0), 1.2, 0.5, 0.5),
    "limb": Capsule(vector(-0.4, 0.2, 0), vector(0.3, 1.0, 0.2), 0.25),
}


def distance(shape, points: np.ndarray) -> np.ndarray:
    """How far outside (> 0) or inside (< 0) the shape points are, by another formula than the one for rays."""
    if isinstance(shape, Polyhedron):
        return (points @ shape.normals.T - shape.offsets).max(1)
    if isinstance(shape, Ellipsoid):
        return (np.linalg.norm((points - shape.centre) / shape.radii, axis=1) - 1) * shape.radii.min()
    if isinstance(shape, Capsule):
        axis = shape.b - shape.a
        along = np.clip((points - shape.a) @ axis / (axis @ axis), 0, 1)
        return np.linalg.norm(points - shape.a - along[:, None] * axis, axis=1) - shape.radius
    up = points[:, 1] - shape.base[1]
    radius = shape.bottom + (shape.top - shape.bottom) * up / shape.height
    sideways = np.hypot(points[:, 0] - shape.base[0], points[:, 2] - shape.base[2]) - radius
    return np.maximum(sideways, np.maximum(-up, up - shape.height))


def rays_through(shape) -> np.ndarray:
    centre, radius = shape.bounds()
    targets = centre + np.random.default_rng(0).normal(0, radius, (4000, 3))
    rays = targets - EYE
    return (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_rays_hit_the_surface_and_normals_point_outwards(name: str) -> None:
    shape, rays = SHAPES[name], rays_through(SHAPES[name])
    t, normals = shape.hit(EYE, rays)
    hit = np.isfinite(t)
    points = EYE + rays[hit] * t[hit, None]
    assert 200 < hit.sum() < len(rays)
    assert np.abs(distance(shape, points)).max() < 2e-3
    assert np.allclose(np.linalg.norm(normals[hit], axis=1), 1, atol=1e-3)
    assert ((normals[hit] * rays[hit]).sum(1) < 1e-3).all(), "a normal points away from the eye"
    assert (distance(shape, points + 0.02 * normals[hit]) > 0.003).mean() > 0.99


@pytest.mark.parametrize("name", SHAPES)
def test_no_ray_passes_through_a_shape_without_a_hit(name: str) -> None:
    shape, rays = SHAPES[name], rays_through(SHAPES[name])
    t, _ = shape.hit(EYE, rays)
    steps = np.linspace(2, 7, 400, dtype=np.float32)
    inside = np.stack([distance(shape, EYE + rays * step) < -5e-3 for step in steps], 1)
    first = np.where(inside.any(1), steps[inside.argmax(1)], np.inf)
    assert (t[np.isfinite(first)] <= first[np.isfinite(first)] + 1e-3).all()


def test_the_same_seed_makes_the_same_scene() -> None:
    one, other = render(make_scene(5), 32), render(make_scene(5), 32)
    assert np.array_equal(one.picture, other.picture) and make_scene(5).caption == make_scene(5).caption
    assert not np.array_equal(one.picture, render(make_scene(6), 32).picture)


def test_depth_normals_and_ids_are_of_the_scene_in_the_picture() -> None:
    for seed in range(12):
        scene = make_scene(seed)
        view = render(scene, 64)
        assert {thing.words.split()[0] for thing in scene.things} <= set(scene.caption.replace(",", "").split())
        assert (view.ids >= FIRST_SOLID).any(), "nothing is in view"
        assert np.isinf(view.depth[view.ids == SKY]).all() and np.isfinite(view.depth[view.ids != SKY]).all()
        facing = view.normals[view.ids != SKY]
        assert np.allclose(np.linalg.norm(facing, axis=-1), 1, atol=1e-3)
        assert outlines(view).any()


def test_camera_rays_begin_at_the_top_left() -> None:
    rays = camera_rays(make_scene(0).camera, 8).reshape(8, 8, 3)
    assert rays[0, 0, 1] > rays[-1, 0, 1] and rays[0, 0, 0] < rays[0, -1, 0]


def draw_numbers(generator: torch.Generator, batch: int) -> torch.Tensor:
    return torch.randn(batch, 4, generator=generator)


def test_batches_that_other_processes_draw_are_the_same() -> None:
    """As they do while a GPU works. Here none does, so only the drawing is tried."""
    steps = range(3, 8)
    own, others = (list(batches("stage", draw_numbers, steps, 8, torch.device(kind))) for kind in ("cpu", "meta"))
    assert len(own) == 5 and all(torch.equal(one, other) for one, other in zip(own, others, strict=True))


def test_a_stage_ends_when_its_time_is_over(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 1)

    def loss_of(drawn: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return layer(drawn).square().mean()

    plan = stages.Plan(10**6, 8, 1e-2, seconds=0.5)
    stages.train_stage("stage", plan, {"layer": layer}, draw_numbers, loss_of, torch.device("cpu"), tmp_path)
    assert 1 < len(torch.load(tmp_path / "stage.pt", weights_only=True)["losses"]) < 30


def test_training_in_two_runs_gives_the_weights_of_one_run(tmp_path: Path) -> None:
    def train_for(folder: str, *steps: int) -> torch.Tensor:
        (tmp_path / folder).mkdir()
        for count in steps:
            torch.manual_seed(0)
            layer = torch.nn.Linear(4, 1)

            def loss_of(drawn: torch.Tensor, layer: torch.nn.Linear = layer) -> torch.Tensor:
                return layer(drawn).square().mean()

            plan = stages.Plan(100, 8, 1e-2)
            stage = ("stage", plan, {"layer": layer}, draw_numbers, loss_of, torch.device("cpu"), tmp_path / folder)
            result = stages.train_stage(*stage, until=count)["layer"]
        return result.weight

    assert torch.equal(train_for("once", 100), train_for("twice", 50, 100))


def test_training_continues_only_from_a_part_of_the_same_shape(tmp_path: Path) -> None:
    earlier, other = TinyVisionModel(widths=(8, 8)), TinyVisionModel(widths=(8, 16))
    earlier.half().save_pretrained(tmp_path / "part", variant="fp16")
    fresh = stages.begin_as(TinyVisionModel(widths=(8, 8)), tmp_path / "part").state_dict()
    assert all(torch.equal(fresh[name], value.float()) for name, value in earlier.state_dict().items())
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for place in (tmp_path / "part", tmp_path / "nothing", None):
        after = stages.begin_as(other, place).state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_train_tiny_makes_a_bundle_that_opens(tmp_path: Path, monkeypatch) -> None:
    places = {"--runs": tmp_path / "runs", "--export": tmp_path / "weights/tiny", "--evaluator": tmp_path / "evaluator"}
    arguments = ["train-tiny", "--smoke", *(str(word) for pair in places.items() for word in pair)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(train, "SMOKE_STEPS", 1)
    train.main()
    words = json.loads((tmp_path / "runs/data/words.json").read_text(encoding="utf-8"))
    captions = [make_scene(seed).caption for seed in range(32)]
    assert [said[0] for said, _ in words] == captions, "training scenes are numbered from 0"
    assert (tmp_path / "runs/losses.png").stat().st_size > 10000
    for folder in (tmp_path / "evaluator", tmp_path / "weights/tiny/annotator/tiny"):
        network = load_pretrained(TinyVisionModel, folder, torch.device("cpu"))
        assert network(torch.zeros(1, 3, 32, 48)).nearness.shape == (1, 1, 32, 48)
    shutil.copy(WEIGHTS / "tiny.toml", tmp_path / "weights")
    lora = tmp_path / "weights/tiny/lora/fast/pytorch_lora_weights.safetensors"
    for further, place in ((["--lora", "few_steps"], lora), (["--reference"], tmp_path / "weights/tiny")):
        places = {"--runs": tmp_path / "runs", "--start": tmp_path / "weights/tiny", "--export": place}
        arguments = ["--smoke", *further, *(str(word) for pair in places.items() for word in pair)]
        monkeypatch.setattr("sys.argv", ["train-tiny", *arguments])
        train.main()
    bundle = open_bundle(Settings(bundle="tiny"), tmp_path / "weights")
    assert set(bundle.controlnets()) == set(bundle.manifest.conditioners)
    latents = torch.zeros(1, bundle.base()["unet"].config.in_channels, 4, 4)
    assert bundle.base()["vae"].decode(latents).sample.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "net", "many"], "--steps: expected a stage of "),
        (["--steps", "nest", "5"], "got nest 5"),
        (["--minutes", "8"], "--minutes needs --start and --export"),
        (["--minutes", "8", "--start", "weights/tiny", "--export", "elsewhere"], "so it needs --export weights/tiny"),
    ],
)
def test_a_wrong_command_trains_nothing(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train-tiny", *arguments])
    monkeypatch.setattr(train, "load_scenes", lambda *_: pytest.fail("it renders"))
    with pytest.raises(SystemExit):
        train.main()
    assert said in capsys.readouterr().err


def test_one_net_is_trained_next_to_a_bundle_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = shutil.copytree(WEIGHTS / "tiny", tmp_path / "tiny")
    before = {file: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    places = {"--runs": tmp_path / "runs", "--start": bundle, "--export": bundle}
    arguments = ["--smoke", "--net", "tile", *(str(word) for pair in places.items() for word in pair)]
    monkeypatch.setattr("sys.argv", ["train-tiny", *arguments])
    monkeypatch.setattr(train, "SMOKE_STEPS", 2)
    train.main()
    changed = [file for file, content in before.items() if file.read_bytes() != content]
    assert [file.relative_to(bundle).parts[:2] for file in changed] == [("controlnet", "tile")]
    monkeypatch.setattr("sys.argv", ["train-tiny", "--net", "tile"])
    with pytest.raises(SystemExit):
        train.main()


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_is_trained_that_acts_on_the_bundle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "made" / "lora.safetensors"
    places = {"--runs": tmp_path / "runs", "--start": WEIGHTS / "tiny", "--export": file}
    arguments = ["--smoke", "--lora", name, *(str(word) for pair in places.items() for word in pair)]
    monkeypatch.setattr("sys.argv", ["train-tiny", *arguments])
    (tmp_path / "runs").mkdir()
    train.main()
    base = open_bundle(Settings(bundle="tiny")).base()
    changed = adapted(base, [Lora(file, "", 1.0)])["unet"].state_dict()
    own = base["unet"].state_dict()
    committed = load_file(ROOT / LORAS[name])
    assert {key: tensor.shape for key, tensor in load_file(file).items()} == {k: t.shape for k, t in committed.items()}
    assert sum(not torch.equal(changed[key], own[key]) for key in own) == len(committed) / 2


def test_a_stage_that_runs_again_keeps_its_tokenizer(tmp_path: Path) -> None:
    """Trained twice on the same captions, the library's tokenizers number their tokens differently."""
    captions = ["a red ball on grass", "a blue box in a green room"]
    first, second = (train._tokenizer(captions, tmp_path, None).get_vocab() for _ in range(2))
    assert first == second


def test_a_text_encoder_keeps_the_words_that_it_knows(tmp_path: Path) -> None:
    """Its bundle's tokenizer numbers them otherwise."""
    tokenizer = models.make_tokenizer(["a zebra beside a red ball on grass"])
    encoder = models.with_words_of(models.make_text_encoder(tokenizer), tokenizer, WEIGHTS / "tiny")
    own = CLIPTokenizer.from_pretrained(WEIGHTS / "tiny/tokenizer").get_vocab()
    before = CLIPTextModel.from_pretrained(WEIGHTS / "tiny/text_encoder", variant="fp16", torch_dtype=torch.float32)
    (earlier, now) = (each.get_input_embeddings().weight for each in (before, encoder))
    vocabulary = tokenizer.get_vocab()
    assert "zebra</w>" not in own and torch.equal(now[vocabulary["ball</w>"]], earlier[own["ball</w>"]])
    assert models.knows(tokenizer, ["a red zebra"]) and not models.knows(tokenizer, ["a blue zebra"])
    others = {name: tensor for name, tensor in before.state_dict().items() if "token_embedding" not in name}
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in others.items())


def test_a_vae_keeps_the_scale_that_the_other_networks_know(tmp_path: Path) -> None:
    """It is in the configuration, not among the weights. With another, UNet and nets would see unknown latents."""
    plan, device = stages.Plan(0, 1, 1e-3), torch.device("cpu")
    vae = train.train_vae(SimpleNamespace(), plan, device, tmp_path, WEIGHTS / "tiny")
    config = json.loads((WEIGHTS / "tiny/vae/config.json").read_text(encoding="utf-8"))
    assert vae.config["scaling_factor"] == config["scaling_factor"]


def test_a_network_with_more_classes_keeps_what_it_has_learnt(tmp_path: Path) -> None:
    earlier = TinyVisionModel(widths=(8, 8), classes=(0, 2))
    earlier.half().save_pretrained(tmp_path / "part", variant="fp16")
    wider = stages.begin_as(TinyVisionModel(widths=(8, 8), classes=(0, 2, 3)), tmp_path / "part")
    pictures = torch.rand(1, 3, 32, 32)
    before, after = earlier.float()(pictures), wider(pictures)
    assert torch.equal(after.nearness, before.nearness) and torch.equal(after.classes[:, :2], before.classes)
