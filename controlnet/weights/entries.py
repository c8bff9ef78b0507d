"""The conditioners of a bundle as its manifest lists them, and the annotators that the environment chooses for them."""

from collections.abc import Mapping
from dataclasses import dataclass

from controlnet.settings import variable_of
from controlnet.weights.parts import BUNDLE_NAME
from controlnet.weights.toml_table import ManifestError, Table


@dataclass(frozen=True)
class ConditionerEntry:
    """A conditioner of the bundle."""

    annotators: dict[str, str]
    """Names of AnnotatorKinds that can draw its control map (keys of controlnet.maps.annotators.ANNOTATORS), by the
    words that choose them. The first is used unless the environment chooses another."""
    net: str
    """The name of its ControlNet. Several conditioners may share one."""
    type: int | None = None
    """What its maps are to a union: the number of the type that it was trained with. None for other nets."""
    hole: float = -1.0
    """What the net sees in place of a colour in the holes of a map."""
    line_width: float = 1.0
    """How wide the lines of skeletons are, as a multiple of OpenPose's own, which are meant for a short side of 512."""

    @property
    def part(self) -> str:
        """The part that its ControlNet is."""
        return f"controlnet/{self.net}"

    @property
    def annotator(self) -> str:
        """The AnnotatorKind that draws its maps unless another is chosen."""
        return next(iter(self.annotators.values()))

    @property
    def others(self) -> dict[str, str]:
        """The annotators that are used only if the environment chooses them, by the words that do."""
        return {word: kind for word, kind in self.annotators.items() if kind != self.annotator}


def read_entries(table: Table) -> dict[str, ConditionerEntry]:
    """The table [conditioners]: for each, the name of its annotator, or a table of several. Raises ManifestError."""
    entries = {}
    for conditioner in table.remaining_keys():
        entry = table.table(conditioner)
        entries[conditioner] = _read_entry(conditioner, entry)
        entry.close()
    return entries


def _read_entry(conditioner: str, entry: Table) -> ConditionerEntry:
    given = entry.remaining_keys()
    return ConditionerEntry(
        annotators=_read_annotators(entry),
        net=entry.name("net", BUNDLE_NAME, "union", default=conditioner),
        type=entry.number("type", 0) if "type" in given else None,
        hole=entry.take("hole", float, ConditionerEntry.hole),
        line_width=entry.take("line_width", float, ConditionerEntry.line_width),
    )


def _read_annotators(entry: Table) -> dict[str, str]:
    if not entry.is_table("annotator"):
        return {"": entry.text("annotator")}
    several = entry.table("annotator")
    if not (words := several.remaining_keys()):
        raise entry.error("annotator", "expected the name of an annotator, or several by the words that choose them")
    return {word: several.text(word) for word in words}


def chosen(entries: Mapping[str, ConditionerEntry], words: Mapping[str, str]) -> dict[str, str]:
    """For each conditioner whose annotator is not its first, the word that chooses it.

    `words` are those of Settings.annotators.

    Raises ManifestError for a word that is none of a conditioner's.
    """
    others = {}
    for conditioner, entry in entries.items():
        if not entry.others:
            continue
        first = next(iter(entry.annotators))
        word = words.get(conditioner) or first
        if word not in entry.annotators:
            *most, last = entry.annotators
            raise ManifestError(f"{variable_of(conditioner)}: expected {', '.join(most)} or {last}, got {word!r}.")
        if word != first:
            others[conditioner] = word
    return others
