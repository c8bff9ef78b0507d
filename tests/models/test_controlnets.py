"""ControlNets that stay in their files are cast exactly, only those of one request at a time, and leave no state."""

import weakref
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from support.jobs import hint, job, pixels

from controlnet.bundle import open_bundle
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.models.controlnets import ControlNets, cast
from controlnet.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator(tiny_root: Path) -> Generator:
    return Generator(open_bundle(Settings(bundle="tiny"), tiny_root))


@pytest.fixture
def nets(generator: Generator) -> ControlNets:
    return generator.bundle.controlnets()


on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU no ControlNet is cast")


def plain(generator: Generator, name: str) -> ControlNetModel:
    folder = generator.bundle.folder(f"controlnet/{name}")
    return ControlNetModel.from_pretrained(folder, variant="fp16", torch_dtype=generator.bundle.dtype)


def test_a_controlnet_equals_from_pretrained_bit_for_bit_in_any_order(generator: Generator, nets) -> None:
    for name in ("canny", "scribble", "canny"):
        expected, got = plain(generator, name).state_dict(), nets[name].state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key].to(got[key].device), got[key]) for key in got), name
        assert nets[name].dtype == generator.bundle.dtype and not nets[name].training
        assert not any(parameter.requires_grad for parameter in nets[name].parameters())


@on_cpu
def test_a_cast_controlnet_keeps_its_config() -> None:
    """The composite reads from it whether the net pools."""
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "DownBlock2D")}
    stored = {name: ControlNetModel(**small, global_pool_conditions=name == "b").half() for name in ("a", "b")}
    nets = ControlNets(stored, torch.float32)
    assert [net.config["global_pool_conditions"] for net in nets.together(["a", "b", "a"])] == [False, True, False]


@on_cpu
def test_memory_holds_the_controlnets_of_one_request_only(nets: ControlNets) -> None:
    first, second = nets.together(["canny", "scribble"])
    assert first is not second and nets.together(["scribble", "canny", "scribble"]) == [second, first, second]
    gone = weakref.ref(first)
    del first
    assert nets.together(["scribble"]) == [second], "a net of the last request was cast again"
    assert gone() is None, "the copy of a net that no request uses is still held"


@on_cpu
def test_a_request_frees_the_controlnet_of_the_request_before(generator: Generator) -> None:
    """Without the garbage collector, which would run too late."""
    generator.generate(job())
    gone = weakref.ref(generator.controlnets["canny"])
    generator.generate(job(control={"conditioner": "scribble"}))
    assert gone() is None


def test_a_controlnet_in_the_right_precision_is_not_copied() -> None:
    net = torch.nn.Module()
    net.dtype = torch.float32
    assert ControlNets({"a": net}, torch.float32)["a"] is net


def test_changing_a_cast_controlnet_leaves_the_stored_one_unchanged(generator: Generator) -> None:
    stored = plain(generator, "canny").half()
    before = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
    made = cast(stored, torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert stored.dtype == torch.float16
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored.state_dict().items())


def test_a_cast_controlnet_shares_no_memory_with_the_stored_one() -> None:
    stored = torch.nn.Sequential(torch.nn.Linear(2, 2).half(), torch.nn.BatchNorm1d(2))  # has a counter
    made = cast(stored, torch.float32)
    places = [tensor.data_ptr() for net in (stored, made) for tensor in net.state_dict().values()]
    assert len(set(places)) == len(places) and made[0].weight.dtype == torch.float32
    assert made[1].num_batches_tracked.dtype == torch.int64


def test_an_unknown_controlnet_is_a_key_error_and_changes_nothing(nets: ControlNets) -> None:
    held = nets["canny"]
    with pytest.raises(KeyError):
        nets.together(["canny", "nothing"])
    assert nets["canny"] is held
    assert "nothing" not in nets and len(nets) == len(list(nets))


def test_pictures_do_not_depend_on_the_order_of_requests(generator: Generator) -> None:
    names = ["canny", "scribble"]
    alone = {name: pixels(generator.generate(job(control={"conditioner": name}))) for name in names}
    assert len({tuple(picture) for picture in alone.values()}) == len(names)
    for name in ("scribble", "canny", "canny", "scribble"):
        assert pixels(generator.generate(job(control={"conditioner": name}))) == alone[name]


def test_two_controls_of_one_request_use_two_controlnets(generator: Generator) -> None:
    def two(first: str, second: str) -> list[bytes]:
        one = job()
        controls = (Control(first, hint(1)), Control(second, hint(2)))
        return pixels(generator.generate(Job(**(vars(one) | {"controls": controls}))))

    pairs = (("canny", "scribble"), ("scribble", "canny"), ("canny", "canny"))
    assert len({tuple(two(*names)) for names in pairs}) == 3
