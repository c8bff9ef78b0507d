"""What all interfaces share: a request of another model is checked by its own signature and served as one of ours."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cog import Path

from controlnet.errors import plain_errors
from controlnet.model import Answer, Record
from controlnet.request.ignored import Ignored
from controlnet.request.inputs import check_inputs, declared_defaults
from controlnet.request.reading import read_request
from controlnet.request.request import Request
from controlnet.serving.files import sweep, write_pictures
from controlnet.stopwatch import Stopwatch
from predict import Predictor

Named = Mapping[str, tuple[str | None, Any]]
"""For each input of ours that a request sets: the name of the other model's input that it comes from, and its value.
The name is None if the other model has no such input."""


class Adapter:
    """Serves requests of another model with everything that predict.py loads."""

    def __init__(self, record: Record) -> None:
        """`record` is record_metric() of the predictor that uses it. Raises what setup() in predict.py raises."""
        main = Predictor()
        main.setup()
        self.model, self.record = main.model, record

    def answer(
        self,
        predict: Callable[..., Any],
        values: Mapping[str, Any],
        named: Callable[[dict[str, Any]], Named],
        changed: Callable[[Answer, Request], Answer] = lambda answer, request: answer,
        without_effect: Callable[[dict[str, Any]], Mapping[str, str]] = lambda inputs: {},
    ) -> list[Path]:
        """Answer a request that has arrived at `predict`: its locals(), since the signature is the only list of inputs.

        `named` makes our inputs of its checked ones; those that it leaves out have our defaults. `changed` makes the
        other model's answer of ours. `without_effect` says which of its checked inputs do nothing here, each with the
        reason. Errors and what is ignored name the inputs as the client knows them.
        """
        with plain_errors():
            inputs = check_inputs(predict, values)
            asked = named(inputs)
        names = {ours: theirs for ours, (theirs, _) in asked.items() if theirs is not None}
        with _in_their_words(names), plain_errors():
            request = read_request(
                Predictor.predict, {ours: value for ours, (_, value) in asked.items()}, self.model.bundle
            )
            sweep(keep=request.files)
            usual = declared_defaults(predict)
            sent = {theirs for theirs, value in inputs.items() if value != usual[theirs]}
            unused = [Ignored((name,), why) for name, why in without_effect(inputs).items() if name in sent]
            request = replace(request, ignored=(*_renamed(request.ignored, names, sent), *unused))
            answer = changed(self.model.answer(request, self.record), request)
            with Stopwatch(self.record)("output"):
                return write_pictures(answer.maps, answer.pictures, request.output_format, request.output_quality)


def _renamed(ignored: Iterable[Ignored], names: Mapping[str, str], sent: Collection[str]) -> Iterator[Ignored]:
    """The inputs that are ignored, by the names that the client knows. Those that it has not sent are left out."""
    for one in ignored:
        theirs = [names[name] for name in one.names if name in names]
        if known := tuple(name for name in theirs if name in sent):
            yield Ignored(known, _renaming(names)(one.reason))


def _renaming(names: Mapping[str, str]) -> Callable[[str], str]:
    """Replaces the names of our inputs in a text.

    A name without an underscore is also a word, as in "The image is too small". It is a name before a colon alone.
    """
    patterns = (re.escape(name) if "_" in name else rf"{re.escape(name)}(?=: )" for name in names)
    words = re.compile(rf"\b({'|'.join(patterns)})(?!\w)")
    return lambda text: words.sub(lambda found: names[found[0]], text)


@contextmanager
def _in_their_words(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the names of our inputs in the messages of errors, which are all written by us.

    What is said of image does not name it. If the client has another input of that name, it does.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("controlnet."):
            raise
        message, picture = str(error), names.get("image", "image")
        if picture != "image" and "image" in names.values() and message.startswith("The image "):
            message = f"image: {message}"
        raise type(error)(_renaming(names)(message)) from None
