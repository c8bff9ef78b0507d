"""The header of a LoRA's file."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet.weights.lora_files import Header, Lora, LoraError, LoraNotFetched, read_header


def test_a_header_has_shapes_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}, file, {"key": "value"})
    assert read_header(Lora(file, "", 1.0)) == Header(
        {"a": (2, 3), "b": ()}, {"key": "value"}, {"a": "F32", "b": "F32"}
    )
    save_file({"a": torch.zeros(2)}, file)
    assert read_header(Lora(file, "", 1.0)) == Header({"a": (2,)}, {}, {"a": "F32"})


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 a pickled checkpoint", b"\xff" * 100):
        file = tmp_path / "a.safetensors"
        file.write_bytes(content)
        with pytest.raises(LoraError, match=r"lora_weights_2: expected a \.safetensors file"):
            read_header(Lora(file, "", 1.0, "lora_weights_2"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"lora_unet_down_blocks_{i}_proj_in.lora_down.weight" for i in range(300_000)], "a header of 32 MB"),
        ([str(i) for i in range(10_001)], "10001 tensors, and at most 10000"),
        (["x" * 5_000_000], "a name of 5000000 characters, and at most 500"),
    ],
)
def test_a_file_with_more_than_any_lora_has_is_refused_at_once(tmp_path: Path, names: list[str], words: str) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    began = time.process_time()
    with pytest.raises(LoraError, match=words) as error:
        read_header(Lora(tmp_path / "a.safetensors", "", 1.0))
    assert time.process_time() - began < 3
    assert len(str(error.value)) < 200


def test_a_file_that_was_removed_meanwhile_may_come_back(tmp_path: Path) -> None:
    """As a cleaner of temporary files does."""
    with pytest.raises(LoraNotFetched, match="removed from this server meanwhile"):
        read_header(Lora(tmp_path / "a.safetensors", "", 1.0))
