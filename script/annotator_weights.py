"""Seeded random weights for every annotator, in the published file layout.

The tests use small models if the model's class allows it. script/make-random-bundle writes the published sizes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from controlnet.maps.annotators.network import quiet_controlnet_aux

with quiet_controlnet_aux():
    from controlnet_aux.hed import ControlNetHED_Apache2
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large


def make_hed(folder: Path) -> None:
    network = ControlNetHED_Apache2()
    network.norm.data += 127  # as in the trained model: the middle of the input range
    for block in (network.block1, network.block2, network.block3, network.block4, network.block5):
        block.projection.weight.data /= 4  # otherwise the edges are all 0 or all 1
    torch.save(network.half().state_dict(), folder / "ControlNetHED.pth")  # as published


def make_mlsd(folder: Path) -> None:
    torch.save(MobileV2_MLSD_Large().state_dict(), folder / "mlsd_large_512_fp32.pth")


def make_normal_bae(folder: Path) -> None:
    from controlnet.maps.annotators.normal_bae import build_bae

    network: Any = build_bae()
    network.decoder.out_conv_res1[-1].weight.data *= 20  # otherwise the map has only a few colours
    tensors = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": tensors, "iter": 1}, folder / "scannet.pt")


def make_depth_anything(folder: Path, full: bool = False) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor

    width, layers = (384, 12) if full else (16, 4)
    backbone = {
        "model_type": "dinov2",
        "image_size": 518 if full else 28,
        "patch_size": 14,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 6 if full else 2,
        "out_features": [f"stage{layers * quarter // 4}" for quarter in (1, 2, 3, 4)],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[48, 96, 192, 384] if full else [4, 4, 8, 8],
        fusion_hidden_size=64 if full else 8,
        head_hidden_size=32 if full else 4,
        initializer_range=0.02 if full else 0.3,  # with 0.02 the depth of a small model is flat
    )
    model: Any = DepthAnythingForDepthEstimation(config)
    model.head.conv3.bias.data += 1  # the head ends in a ReLU
    model.save_pretrained(folder)
    size = {"height": 518, "width": 518} if full else {"height": 70, "width": 70}
    DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)


def make_upernet(folder: Path, full: bool = False) -> None:
    from transformers import ConvNextConfig, SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    depths, widths = ([3, 3, 27, 3], [96, 192, 384, 768]) if full else ([1, 1, 1, 1], [4, 6, 8, 10])
    sizes: dict[str, Any] = {"depths": depths, "hidden_sizes": widths, "out_features": stages}
    backbone = ConvNextConfig(**sizes)
    heads: dict[str, Any] = {"hidden_size": 512 if full else 16, "auxiliary_channels": 256 if full else 8}
    heads |= {"auxiliary_in_channels": widths[2], "num_labels": 150}
    config = UperNetConfig(backbone_config=backbone, **heads)
    UperNetForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 512, "width": 512}).save_pretrained(folder)


def make_person_detector(folder: Path, full: bool = False) -> None:
    """A detector that finds people everywhere, so the pose network after it has work to do."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

    # The defaults of RTDetrConfig are those of the published detector, except for its 300 queries. Each query would
    # find a person here.
    labels = {i: f"class {i}" for i in range(79)} | {79: "person"}
    config = RTDetrConfig(num_queries=3, id2label=labels) if full else _small_rtdetr()
    model: Any = RTDetrForObjectDetection(config)
    for head in model.model.decoder.class_embed:
        head.bias.data[:-1] = -4.0
        head.bias.data[-1] = 4.0
    for head in model.model.decoder.bbox_embed:
        head.layers[-1].bias.data[2:] = 1  # large boxes
    model.save_pretrained(folder)
    size = {"height": 640, "width": 640} if full else {"height": 64, "width": 64}
    RTDetrImageProcessor(size=size).save_pretrained(folder)


def _small_rtdetr() -> Any:
    from transformers import RTDetrConfig

    backbone = {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    }
    return RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=3,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_denoising=0,
        id2label={0: "bicycle", 1: "person"},
    )


def make_vitpose(folder: Path, full: bool = False) -> None:
    from transformers import VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    (height, width), layers = ((256, 192), 12) if full else ((64, 48), 2)
    backbone = {
        "model_type": "vitpose_backbone",
        "image_size": [height, width],
        "patch_size": [16, 16],
        "hidden_size": 768 if full else 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 12 if full else 2,
        "out_features": [f"stage{layers}"],
    }
    head: dict[str, Any] = {"use_simple_decoder": True, "num_labels": 17}
    config = VitPoseConfig(backbone_config=backbone, **head)
    model: Any = VitPoseForPoseEstimation(config)
    model.head.conv.bias.data += 1  # every joint is found
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)


def make_openpose_cmu(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Networks of the published sizes, because their classes allow no others. Tests use half of the precision."""
    from controlnet.maps.annotators import openpose_cmu

    body = _he_normal(openpose_cmu.bodypose_model)
    last: Any = body.model6_1.Mconv7_stage6_L1
    # All limbs point in the same direction, so the peaks of joints are connected to people.
    last.weight.data.zero_()
    last.bias.data = torch.randint(0, 2, last.bias.shape) * 1.4 - 0.7
    networks = {
        openpose_cmu.BODY_FILE: body,
        openpose_cmu.HAND_FILE: _he_normal(openpose_cmu.handpose_model),
        openpose_cmu.FACE_FILE: _he_normal(openpose_cmu.FaceNet),
    }
    for file, network in networks.items():
        published = {_without_block(name): tensor.to(dtype) for name, tensor in network.state_dict().items()}
        torch.save(published, folder / file)


def make_openpose_dwpose(folder: Path) -> None:
    """Networks with the published inputs and outputs, which find two people in every picture. Their size is not that
    of the published ones: they are a few constants, of which each picture changes the numbers a little."""
    from controlnet.maps.annotators import openpose_dwpose
    from controlnet.maps.annotators.whole_body import BINS, CELLS, JOINTS, POSE_HEIGHT, POSE_WIDTH, VALUES

    cells = torch.zeros(1, CELLS, VALUES)
    cells[0, :, 4:] = torch.rand(CELLS, VALUES - 4) / 4  # not enough for a person
    # The last 400 cells are those of 32 pixels. A square of 640 pixels is seen, whatever the picture's shape.
    for row, column in ((3, 2), (5, 6)):
        cells[0, CELLS - 400 + 20 * row + column, :6] = torch.tensor((0.5, 0.5, 1.5, 2.0, 0.9, 0.9))
    write_onnx(folder / openpose_dwpose.DETECTOR_FILE, "images", (1, 3, 640, 640), {"output": cells}, change=1e-4)
    across, down = (torch.rand(1, JOINTS, BINS * side) for side in (POSE_WIDTH, POSE_HEIGHT))
    outputs = {"simcc_x": across, "simcc_y": down}
    shape = ("batch", 3, POSE_HEIGHT, POSE_WIDTH)
    write_onnx(folder / openpose_dwpose.POSE_FILE, "input", shape, outputs, change=0.1)


def write_onnx(
    file: Path, name: str, shape: tuple[int | str, ...], outputs: dict[str, torch.Tensor], change: float = 0.0
) -> None:
    """Write an ONNX network whose outputs are constants plus `change` times the mean of its input, which has `shape`.

    Names and sides of `shape` are those of the file's graph; a word stands for any number of pictures.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("ReduceMean", [name], ["mean"], keepdims=0)]
    constants = [numpy_helper.from_array(torch.tensor(change).numpy(), "change")]
    nodes.append(helper.make_node("Mul", ["mean", "change"], ["added"]))
    results = []
    for output, tensor in outputs.items():
        constants.append(numpy_helper.from_array(tensor.numpy(), f"{output}_constant"))
        nodes.append(helper.make_node("Add", [f"{output}_constant", "added"], [output]))
        results.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [shape[0], *tensor.shape[1:]]))
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "stand_in", taken, results, constants)
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(file))


def _he_normal(build: Callable[[], torch.nn.Module]) -> Any:
    """A network whose outputs depend on its input, initialized as by K. He et al. (ICCV 2015).

    With PyTorch's default initialization almost nothing would be left after fifty layers.
    """
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    for name, tensor in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(tensor)
        else:
            torch.nn.init.kaiming_normal_(tensor, nonlinearity="relu")
    return network


def _without_block(name: str) -> str:
    """Remove the block from a tensor's name: "model0.conv1_1.weight" is "conv1_1.weight" in the published files."""
    block, _, layer = name.partition(".")
    return layer if block.startswith("model") else name


def make_lineart(folder: Path) -> None:
    from controlnet.maps.annotators.lineart import build_lineart

    torch.save(build_lineart().state_dict(), folder / "sk_model.pth")


def make_lineart_anime(folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """54 million numbers, of which tests use half of the published precision."""
    from controlnet.maps.annotators.lineart_anime import build_lineart_anime

    tensors = {f"module.{name}": tensor.to(dtype) for name, tensor in build_lineart_anime().state_dict().items()}
    torch.save(tensors, folder / "netG.pth")


def make_tiny(folder: Path) -> None:
    from controlnet.maps.annotators.tiny_network import TinyVisionModel

    network = TinyVisionModel(widths=(8, 8, 8), classes=(0, 2, 12, 119))
    for layer in (network.fine, network.coarse):
        layer.weight.data *= 20  # so there are some lines, classes and joints
    network.half().save_pretrained(folder, variant="fp16")


MAKERS: dict[str, Callable[[Path], Any]] = {
    "annotator/hed": make_hed,
    "annotator/mlsd": make_mlsd,
    "annotator/normal_bae": make_normal_bae,
    "annotator/depth_anything": make_depth_anything,
    "annotator/upernet": make_upernet,
    "annotator/person_detector": make_person_detector,
    "annotator/vitpose": make_vitpose,
    "annotator/openpose_dwpose": make_openpose_dwpose,
    "annotator/openpose_cmu": make_openpose_cmu,
    "annotator/lineart": make_lineart,
    "annotator/lineart_anime": make_lineart_anime,
    "annotator/tiny": make_tiny,
}
"""For each part of a bundle that an annotator may need, a function that writes it into an existing, empty folder."""


FULL_SIZE: dict[str, Callable[[Path], Any]] = {
    "annotator/depth_anything": partial(make_depth_anything, full=True),
    "annotator/upernet": partial(make_upernet, full=True),
    "annotator/person_detector": partial(make_person_detector, full=True),
    "annotator/vitpose": partial(make_vitpose, full=True),
    "annotator/openpose_cmu": partial(make_openpose_cmu, dtype=torch.float32),
    "annotator/lineart_anime": partial(make_lineart_anime, dtype=torch.float32),
}
"""Replacements for those in MAKERS that do not have the published size: these have it."""


def make_part(part: str, root: Path, full: bool = False, seed: int = 0) -> Path:
    """The folder of the part below `root`. Written if it does not exist; the seed determines the numbers."""
    folder = root / part
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (MAKERS | FULL_SIZE if full else MAKERS)[part](folder)
    return folder
