"""The header of a LoRA's file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet.weights.lora_files import Header, Lora, LoraError, read_header


def test_a_header_has_shapes_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}, file, {"key": "value"})
    assert read_header(Lora(file, "", 1.0)) == Header({"a": (2, 3), "b": ()}, {"key": "value"})
    save_file({"a": torch.zeros(2)}, file)
    assert read_header(Lora(file, "", 1.0)) == Header({"a": (2,)}, {})


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 a pickled checkpoint", b"\xff" * 100):
        file = tmp_path / "a.safetensors"
        file.write_bytes(content)
        with pytest.raises(LoraError, match=r"lora_weights_2: expected a \.safetensors file"):
            read_header(Lora(file, "", 1.0, "lora_weights_2"))
