from pathlib import Path

from support import ROOT

from controlnet.weights.choice import choose_bundle

WEIGHTS = ROOT / "weights"


def test_the_environment_decides() -> None:
    assert choose_bundle({"CONTROLNET_BUNDLE": "sd15"}, WEIGHTS) == ("sd15", "")


def test_without_sd15_weights_it_is_tiny_and_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sd15.toml").write_text((WEIGHTS / "sd15.toml").read_text())
    name, reason = choose_bundle({}, tmp_path)
    assert name == "tiny"
    assert "sd15 weights are not there: script/download-weights sd15" in reason and "\n" not in reason


def test_with_sd15_weights_on_disk_it_is_sd15(tmp_path: Path) -> None:
    (tmp_path / "sd15.toml").write_text((WEIGHTS / "sd15.toml").read_text())
    (tmp_path / "sd15" / "unet").mkdir(parents=True)
    assert choose_bundle({"CONTROLNET_BUNDLE": ""}, tmp_path)[0] == "tiny", "an empty folder is no weights"
    (tmp_path / "sd15" / "unet" / "config.json").write_text("{}")
    assert choose_bundle({"CONTROLNET_BUNDLE": ""}, tmp_path)[0] == "sd15", "damaged weights must not pass as tiny"
