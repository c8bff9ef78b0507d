"""The conditioners of a bundle as its manifest lists them, and the annotators that the environment chooses for them."""

from collections.abc import Mapping
from dataclasses import dataclass

from controlnet.settings import variable_of
from controlnet.weights.toml_table import ManifestError, Table


@dataclass(frozen=True)
class ConditionerEntry:
    """A conditioner of the bundle. Its ControlNet is the part controlnet/<conditioner>."""

    annotators: dict[str, str]
    """Names of AnnotatorKinds that can draw its control map (keys of controlnet.maps.annotators.ANNOTATORS), by the
    words that choose them. The first is used unless the environment chooses another."""

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
        entries[conditioner] = ConditionerEntry(_read_annotators(entry))
        entry.close()
    return entries


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
