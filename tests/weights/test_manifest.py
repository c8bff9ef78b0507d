"""Reading manifests, refusing misspelt ones, and choosing a bundle."""

from collections.abc import Callable
from pathlib import Path

import pytest

from controlnet.conditioners import CONDITIONERS
from controlnet.maps.annotators import ANNOTATORS
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS, Manifest, ManifestError, bundle_names, choose_bundle
from controlnet.weights.parts import REFERENCE
from controlnet.weights.tables import Reference

MINIMAL = """
name = "small"
title = "A small bundle"
summary = "For tests."
needs = { memory = "1 GB", disk = "1 MB" }
safety_checker = "checker"

[defaults]
resolution = 64
num_inference_steps = 2
guidance_scale = 4
scheduler = "DDIM"

[limits]
pixels = 4096

[conditioners.canny]
annotator = "canny"

[[parts]]
name = "controlnet/canny"
repo = "someone/canny"
revision = "main"
folder = "net"
files = ["config.json", "model.safetensors"]
licence = "MIT"
purpose = "ControlNet for edges"

[[parts]]
name = "checker"
repo = "someone/checker"
revision = "main"
files = ["model.safetensors"]
licence = "MIT"
purpose = "Flags pictures"
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Manifest]:
    def read(text: str) -> Manifest:
        path = tmp_path / "small.toml"
        path.write_text(text)
        return Manifest.read(path)

    return read


def test_manifest_is_read_as_written(read: Callable[[str], Manifest]) -> None:
    manifest = read(MINIMAL)
    assert (manifest.name, manifest.embedded, manifest.made) == ("small", False, {})
    assert manifest.defaults.guidance_scale == 4.0
    assert manifest.limits.pixels == manifest.limits.upscaled_pixels == 4096
    assert read(MINIMAL.replace("pixels = 4096", "pixels = 4096\nupscaled_pixels = 9")).limits.upscaled_pixels == 9
    assert manifest.cpu_threads is None
    assert read(MINIMAL.replace('name = "small"', 'name = "small"\ncpu_threads = 2')).cpu_threads == 2
    assert manifest.conditioners["canny"].annotator == "canny"
    net = manifest.parts[0]
    assert net.paths == ("controlnet/canny/config.json", "controlnet/canny/model.safetensors")
    assert net.repo_paths == ("net/config.json", "net/model.safetensors")
    assert manifest.paths == (*net.paths, "checker/model.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('title = "A', 'titel = "A', "title: missing"),
        ("[limits]", "extra = 1\n[limits]", "defaults.extra: unknown key"),
        ("pixels = 4096", "pixels = 4096\nside = 3", "limits.side: unknown key"),
        ('annotator = "canny"', 'annotator = "canny"\nscale = 1', "conditioners.canny.scale: unknown key"),
        ('folder = "net"', 'foldr = "net"', "parts[1].foldr: unknown key"),
        ('title = "A small bundle"', 'title = ""', "title: expected some text"),
        ("resolution = 64", 'resolution = "64"', "defaults.resolution: expected a whole number"),
        ("resolution = 64", "resolution = true", "defaults.resolution: expected a whole number"),
        ("pixels = 4096", "pixels = 0", "limits.pixels: expected a number of at least 1"),
        ("[conditioners.canny]", "[conditioners.depth]", "no part named 'controlnet/depth'"),
        ('safety_checker = "checker"', 'safety_checker = "chekcer"', "safety_checker: expected a part's name"),
        ('safety_checker = "checker"', 'safety_checker = "none"', "safety_note: missing"),
        ('name = "checker"', 'name = "controlnet/canny"', "parts[2].name: another part is already named"),
        ('["model.safetensors"]', '["a.bin", "a.bin"]', "parts[2].files: 'checker/a.bin' is named twice"),
        ('["model.safetensors"]', "[]", "parts[2].files: expected at least one"),
        ('["model.safetensors"]', '["../x"]', "parts[2].files: expected a file name inside"),
        ('["model.safetensors"]', '["/etc/x"]', "parts[2].files: expected a file name inside"),
        ('["model.safetensors"]', '["a/../../x"]', "parts[2].files: expected a file name inside"),
        ('["model.safetensors"]', '["a\\\\b"]', "parts[2].files: expected a file name inside"),
        ('["model.safetensors"]', "[3]", "parts[2].files: expected a file name inside"),
        ('folder = "net"', 'folder = "../net"', "parts[1].folder: expected a name"),
        ('name = "checker"', 'name = "../checker"', "parts[2].name: expected a name"),
        ('repo = "someone/checker"', 'repo = "checker"', "parts[2].repo: expected a name"),
        ('repo = "someone/checker"', "", "parts[2].repo: missing"),
        ('name = "small"', 'name = "big"', "name: expected 'small'"),
        ('name = "small"', 'name = "small', "not readable as TOML"),
        ('name = "small"', 'name = "small"\nembedded = true', "parts[1].folder: unknown key"),
        ('name = "small"', 'name = "small"\ncpu_threads = 0', "cpu_threads: expected"),
        ('name = "small"', 'name = "small"\ncpu_threads = "one"', "cpu_threads: expected"),
    ],
)
def test_manifest_error_names_the_file_and_the_key(
    read: Callable[[str], Manifest], tmp_path: Path, old: str, new: str, key: str
) -> None:
    assert old in MINIMAL
    with pytest.raises(ManifestError) as error:
        read(MINIMAL.replace(old, new))
    assert str(error.value).startswith(f"{tmp_path.name}/small.toml: ")
    assert key in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_parts_of_one_repo_have_one_revision(read: Callable[[str], Manifest]) -> None:
    text = MINIMAL.replace("someone/checker", "someone/canny").replace(
        'revision = "main"\nfiles', 'revision = "v2"\nfiles'
    )
    with pytest.raises(ManifestError, match=r"parts\[2\]\.revision: expected 'main'"):
        read(text)


def test_embedded_manifest_has_no_repos_and_may_have_made(read: Callable[[str], Manifest]) -> None:
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(("repo", "revision", "folder"))]
    text = "\n".join(lines).replace('safety_checker = "checker"', 'safety_checker = "none"\nembedded = true')
    text = text.replace("embedded = true", 'embedded = true\nsafety_note = "It draws shapes."') + "\n[made]\nseed = 3\n"
    manifest = read(text)
    assert manifest.embedded
    assert manifest.made == {"seed": 3}
    assert manifest.parts[0].repo == ""


def test_unknown_bundle_lists_the_known_ones(read: Callable[[str], Manifest], tmp_path: Path) -> None:
    read(MINIMAL)
    with pytest.raises(ManifestError, match=r"no bundle named 'large'. Bundles with a manifest: small"):
        Manifest.read(tmp_path / "large.toml")


@pytest.mark.parametrize("name", bundle_names())
def test_manifests_have_the_parts_their_annotators_need(name: str) -> None:
    manifest = Manifest.read(WEIGHTS / f"{name}.toml")
    parts = {part.name for part in manifest.parts}
    assert manifest.conditioners
    entries = manifest.conditioners.values()
    annotators = {name for entry in entries for name in entry.annotators.values()}
    needed = {part for annotator in annotators for part in ANNOTATORS[annotator].parts}
    assert needed == {part for part in parts if part.startswith("annotator/")}, "a part that no annotator needs"
    needed_without_options = {name for entry in entries for name in ANNOTATORS[entry.annotator].parts}
    for part in manifest.parts:
        always = part.name in needed_without_options
        assert not (always and part.option), part.name
        if part.option != REFERENCE:
            assert not part.option or part.name in ANNOTATORS[part.option].parts


OPTIONAL = (
    MINIMAL.replace('annotator = "canny"', 'annotator = { plain = "canny", sharp = "sharp_edges" }')
    + """
[[parts]]
name = "annotator/sharp_edges"
option = "sharp_edges"
repo = "someone/edges"
revision = "main"
files = ["edges.pth"]
licence = "non-commercial"
purpose = "Sharper edges"
"""
)


def test_another_annotator_is_used_only_if_its_word_is_chosen(read: Callable, tmp_path: Path) -> None:
    read(OPTIONAL)
    path = tmp_path / "small.toml"
    file = "annotator/sharp_edges/edges.pth"
    for words in ({}, {"canny": ""}, {"canny": "plain"}):
        off = Manifest.read(path, words)
        assert off.annotator("canny") == "canny" and file in off.paths and file not in off.needed_paths
        assert off.choices() == {}
    on = Manifest.read(path, {"canny": "sharp"})
    assert on.annotator("canny") == "sharp_edges" and on.needed_paths == on.paths == off.paths
    assert on.choices() == {"CONTROLNET_CANNY": "sharp"} and on.options == {"sharp_edges"}
    assert [part.name for part in on.parts if part not in off.needed_parts] == ["annotator/sharp_edges"]
    with pytest.raises(ManifestError, match=r"^CONTROLNET_CANNY: expected plain or sharp, got 'Sharp'"):
        Manifest.read(path, {"canny": "Sharp"})


def test_the_choice_defaults_to_the_process_environment(read: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLNET_CANNY", "sharp")
    assert read(OPTIONAL).options == {"sharp_edges"}


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, "openpose"),
        ({"CONTROLNET_OPENPOSE": "vitpose"}, "openpose"),
        ({"CONTROLNET_OPENPOSE": "cmu"}, "openpose_cmu"),
        ({"CONTROLNET_OPENPOSE_CMU": "1"}, "openpose_cmu"),
        ({"CONTROLNET_OPENPOSE_CMU": "0"}, "openpose"),
        ({"CONTROLNET_OPENPOSE_CMU": "1", "CONTROLNET_OPENPOSE": "vitpose"}, "openpose"),
    ],
)
def test_the_older_variable_still_chooses_cmu(environ: dict[str, str], kind: str) -> None:
    words = Settings.read(environ).annotators
    assert Manifest.read(WEIGHTS / "sd15.toml", words).annotator("openpose") == kind
    assert Manifest.read(WEIGHTS / "tiny.toml", environ).annotator("openpose") == "tiny_openpose"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('\noption = "sharp_edges"\nrepo', '\noption = "blunt"\nrepo', "parts[3].option: no conditioner can choose"),
        ('\noption = "sharp_edges"\nrepo', "\noption = true\nrepo", "parts[3].option: expected a string"),
        ('sharp = "sharp_edges"', "sharp = 1", "conditioners.canny.annotator.sharp: expected a string"),
        ('{ plain = "canny", sharp = "sharp_edges" }', "{}", "conditioners.canny.annotator: expected the name of an"),
        ('files = ["model.safetensors"]', 'files = ["a"]\noption = "sharp_edges"', "safety_checker: expected a part's"),
    ],
)
def test_misspelt_or_misplaced_option_is_an_error(read: Callable, old: str, new: str, message: str) -> None:
    assert old in OPTIONAL
    with pytest.raises(ManifestError) as caught:
        read(OPTIONAL.replace(old, new))
    assert message in str(caught.value)


REFERRING = (
    MINIMAL
    + """
[reference]
adapter = "ip_adapter"
encoder = "image_encoder"
scale = 0.6
style = ["up_blocks.1"]
"""
    + "".join(
        f'''
[[parts]]
name = "{name}"
option = "reference"
repo = "someone/adapter"
revision = "main"
files = ["model.safetensors"]
licence = "MIT"
purpose = "References"
'''
        for name in ("image_encoder", "ip_adapter")
    )
)


def test_reference_pictures_are_on_if_asked_for_or_if_their_files_are_there(read: Callable, tmp_path: Path) -> None:
    read(REFERRING)
    path = tmp_path / "small.toml"
    files = {"image_encoder/model.safetensors", "ip_adapter/model.safetensors"}

    def takes(asked: bool | None) -> bool:
        manifest = Manifest.read(path, {}, asked)
        needed = files <= {*manifest.needed_paths}
        assert needed == (manifest.reference is not None) and files <= {*manifest.paths}
        assert manifest.choices() == ({"CONTROLNET_REFERENCE": "1"} if needed else {})
        return needed

    assert Manifest.read(path, {}, True).reference == Reference("ip_adapter", "image_encoder", 0.6, ("up_blocks.1",))
    assert (takes(True), takes(False), takes(None)) == (True, False, False)
    for there, file in zip((False, True), sorted(files), strict=True):
        (tmp_path / "small" / file).parent.mkdir(parents=True)
        (tmp_path / "small" / file).touch()
        assert takes(None) == there, "both files are needed"
    assert (takes(True), takes(False)) == (True, False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('adapter = "ip_adapter"', 'adapter = "unet2"', "parts[4].option: the table [reference] does not name this"),
        ('name = "ip_adapter"\noption = "reference"', 'name = "other"', "reference: there is no part named 'ip_ad"),
        ('["up_blocks.1"]', '["up_blocks.1", ""]', "style: expected names of layers"),
        ('style = ["up_blocks.1"]', "layers = 1", "reference.layers"),
        ("scale = 0.6", "scale = -1", "reference.scale"),
    ],
)
def test_a_wrong_table_of_references_is_an_error(read: Callable, old: str, new: str, message: str) -> None:
    assert old in REFERRING
    with pytest.raises(ManifestError) as caught:
        read(REFERRING.replace(old, new))
    assert message in str(caught.value)


def test_sd15_has_every_conditioner() -> None:
    manifest = Manifest.read(WEIGHTS / "sd15.toml")
    assert list(manifest.conditioners) == [conditioner.name for conditioner in CONDITIONERS]
    parts = {part.name for part in manifest.parts}
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"} <= parts


def test_readme_and_manifest_say_whose_licence_annotators_have() -> None:
    """lllyasviel/Annotators is licensed "other", so the manifest names the licences of the upstream projects."""
    annotators = {part.repo: part.licence for part in Manifest.read(WEIGHTS / "sd15.toml").parts}
    assert annotators["lllyasviel/Annotators"] in ("Apache-2.0", "MIT")
    for text in ((WEIGHTS / "sd15.toml").read_text(), (WEIGHTS.parent / "README.md").read_text()):
        (sentence,) = (part for part in " ".join(text.split()).split(". ") if "other" in part and "upstream" in part)
        assert "lllyasviel/Annotators" in sentence


def test_environment_variable_chooses_the_bundle() -> None:
    assert choose_bundle("sd15", WEIGHTS) == ("sd15", "")


def test_bundle_is_tiny_without_sd15_weights(tmp_path: Path) -> None:
    (tmp_path / "sd15.toml").write_text((WEIGHTS / "sd15.toml").read_text())
    name, reason = choose_bundle("", tmp_path)
    assert name == "tiny"
    assert reason == "no sd15 weights: script/download-weights sd15"


def test_bundle_is_sd15_if_any_of_its_files_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "sd15.toml").write_text((WEIGHTS / "sd15.toml").read_text())
    (tmp_path / "sd15" / "unet").mkdir(parents=True)
    assert choose_bundle("", tmp_path)[0] == "tiny", "an empty folder holds no weights"
    (tmp_path / "sd15" / "unet" / "config.json").write_text("{}")
    assert choose_bundle("", tmp_path)[0] == "sd15", "damaged weights must not lead to tiny"
