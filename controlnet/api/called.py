"""Calls with the inputs of a request, whose faults are in the words of every wrong request."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from controlnet.request.inputs import InputError

Call = TypeVar("Call", bound=Callable[..., Any])


def calls_make(call: Call) -> Call:
    """A method that hands the arguments to the object's make(), with the signature of `call`, whose body is not run.

    make() checks their names and what is missing. Python would raise a TypeError for both.
    """
    parameters = [each for each in inspect.signature(call).parameters.values() if each.name != "self"]
    by_position = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    @functools.wraps(call)
    def make(self: Any, *values: Any, **named: Any) -> Any:
        if len(values) > len(by_position):
            raise InputError(f"Only {', '.join(by_position)} may be given without names; got {len(values)} values.")
        inputs = dict(zip(by_position, values, strict=False))
        if twice := inputs.keys() & named.keys():
            raise InputError(f"{min(twice)} is given twice: by its place and by its name.")
        return self.make(inputs | named)

    return cast(Call, make)
