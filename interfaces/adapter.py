"""What all interfaces share: a request of another model is checked by its own signature and served as one of ours."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    ) -> list[Path]:
        """Answer a request that has arrived at `predict`: its locals(), since the signature is the only list of inputs.

        `named` makes our inputs of its checked ones; those that it leaves out have our defaults. `changed` makes the
        other model's answer of ours. Errors and the metric "ignored" name the inputs as the client knows them.
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
            sent = {ours for ours, theirs in names.items() if inputs[theirs] != usual[theirs]}
            request = replace(request, ignored=tuple(_renamed(request.ignored, {name: names[name] for name in sent})))
            answer = changed(self.model.answer(request, self.record), request)
            with Stopwatch(self.record)("output"):
                return write_pictures(answer.maps, answer.pictures, request.output_format, request.output_quality)


def _renamed(ignored: Iterable[Ignored], names: Mapping[str, str]) -> Iterator[Ignored]:
    """The inputs that are ignored, by the names that the client knows. Those without one are left out: not sent."""
    for one in ignored:
        if theirs := tuple(names[name] for name in one.names if name in names):
            yield replace(one, names=theirs)


@contextmanager
def _in_their_words(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the names of our inputs in the messages of errors, which are all written by us.

    A name without an underscore is also a word, as in "The image is too small". It is a name before a colon alone.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("controlnet."):
            raise
        patterns = (re.escape(name) if "_" in name else rf"{re.escape(name)}(?=: )" for name in names)
        words = re.compile(rf"\b({'|'.join(patterns)})(?!\w)")
        message = words.sub(lambda found: names[found[0]], str(error))
        raise type(error)(message) from None
