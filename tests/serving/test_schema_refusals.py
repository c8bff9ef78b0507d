"""A predict.py that Cog cannot resolve, or reads otherwise than Python does, is refused."""

import pytest
from support.predict_sources import LINE, schemas, source

from controlnet.serving.schema import SchemaError, openapi_schema


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ("str = Input(choices=IMPORTED)", "IMPORTED is not a literal constant of this file"),
        ("str = Input(choices=MADE)", "MADE is not a literal constant of this file"),
        ("str = Input(choices=[n for n in NAMES])", "Cog cannot resolve choices=[n for n in NAMES]"),
        ("str = Input(choices=TABLE.keys())", "Cog cannot resolve choices=TABLE.keys()"),
        ("str = Input(choices=list(REGISTRY.keys()))", "Cog cannot resolve choices=list(REGISTRY.keys())"),
        ("str = Input(choices=sorted(NAMES))", "Cog cannot resolve choices=sorted(NAMES)"),
        ('str = Input(choices=("a", "b"))', 'Cog cannot resolve choices=("a", "b")'),
        ("str = Input(choices=NAMES + IMPORTED)", "IMPORTED is not a literal constant"),
        ("str = Input(choices=[])", "choices are empty"),
        ("str = Input(choices=[1, 2])", "choices must be strings for a str"),
        ("float = Input(choices=[0.5])", "choices must be strings for a str"),
        ("int = Input(le=MAX_STEPS)", "the bound MAX_STEPS is not a plain decimal number"),
        ("int = Input(ge=2**3)", "the bound 2**3 is not a plain decimal number"),
        ("int = Input(le=4_096)", "the bound 4_096 is not a plain decimal number"),
        ("int = Input(le=0xff)", "the bound 0xff is not a plain decimal number"),
        ("int = Input(default=settings.STEPS)", "settings.STEPS is not a literal"),
        ("int = Input(default=2**3)", "2**3 is not a literal"),
        ("int = Input(default=9223372036854775808)", "9223372036854775808 is not a literal"),
        ("str = Input(default=IMPORTED)", "IMPORTED is not a literal constant"),
        ("int = Input(default=None)", "a default of None makes it required; write Optional[...]"),
        ('Literal["a", "b"]', 'Literal["a", "b"] is not a type that Cog takes'),
        ("list[list[str]]", "list[list[str]] is not a type that Cog takes"),
        ("Union[Path, str]", "a union may hold str, int, float, bool, dict only"),
        ("set", "set is not a type that Cog takes"),
        ("None", "None is not a type that Cog takes"),
        ("Union[str, Optional[int]]", "a union may hold str, int, float, bool, dict only"),
        ("Union[str, Union[int, float]]", "a union may hold str, int, float, bool, dict only"),
        ("Union[str, int] = Input(ge=1)", "a union takes no minimum"),
        ('str | int = Input(choices=["a"])', "a union takes no choices"),
        ("str | int = Input(max_length=9)", "a union takes no maxLength"),
        ('str = Input(accept="image/*")', "accept is for inputs of type Path"),
        (
            'list[str] = Input(choices=["a"])',
            "choices must be strings for a str, whole numbers for an int; its type is list",
        ),
        ('str = Input(choices={"a", "b"})', "Cog cannot resolve choices="),
        ("str = Input(choices=SET)", "SET is not a literal constant"),
        ("str = Input(choices=COMMENTED)", "COMMENTED is not a literal constant of this file without comments in it"),
        ('str = Input(choices=[("a"), "b"])', "a comment, or an element in brackets"),
        ('list[str] = Input(default=[ # one\n "a"])', "a comment, or an element in brackets"),
        ('str = Input(choices=["a", # one\n "b"])', "a comment, or an element in brackets"),
        ('str = Input(description=f"At most {MAX_STEPS}.")', "write one literal string"),
        ('str = Input(description="One " + "two.")', "write one literal string"),
        ('str = Input(description="One " "two.")', "write one literal string"),
        ('str = Input(description="A \\"quote\\".")', "write one literal string"),
        ('str = Input(description=("In brackets."))', "description is in brackets"),
        ("str = Input(description=MAX_STEPS)", "its description is not a string"),
        ("str = Input(regex=TEXT)", "write one literal string"),
        ('str = Input("a default")', "Input() is read by keyword only"),
        ("str = Input(**OPTIONS)", "Input() has no ** that Cog can read"),
        ("str = Input(gt=1)", "Input() has no gt that Cog can read"),
        ("list[str] = Input(default_factory=list)", "Input() has no default_factory that Cog can read"),
        ("bool = Input(deprecated=1)", "deprecated must be True or False"),
        ("str = cog.Input()", "cog.Input() is not a literal"),
    ],
)
def test_an_input_that_cog_does_not_resolve_is_refused(declaration: str, problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schemas(f"a: int, x: {declaration}")
    assert str(caught.value).startswith(f"predict.py line {LINE}: input 'x': ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "returns", "problem"),
    [
        ("x", "Path", "input 'x': has no type"),
        ("x=1", "Path", "input 'x': has no type"),
        ("*, x: str", "Path", "takes plain parameters only"),
        ("**options", "Path", "takes plain parameters only"),
        ("x: str", "", "the return type of predict(): is missing"),
        ("x: str", "Optional[Path]", "Optional[Path] is not known here"),
    ],
)
def test_a_signature_that_cog_does_not_accept_is_refused(parameters: str, returns: str, problem: str) -> None:
    with pytest.raises(SchemaError, match=rf"^predict\.py line {LINE}: ") as caught:
        schemas(parameters, returns)
    assert problem in str(caught.value)


@pytest.mark.parametrize("parameter", ["self: str", "self=1"])
def test_self_with_a_type_or_default_is_refused(parameter: str) -> None:
    with pytest.raises(SchemaError, match="takes self without a type or default; Cog would make it an input"):
        openapi_schema(source("x: int = 1").replace("(self,", f"({parameter},"))


def test_methods_that_cog_would_read_in_its_place_are_refused() -> None:
    method = "    def {}(self, y: int) -> str:\n        pass\n"
    once = source("x: str")
    for name, problem in [("run", "a method run\\(\\) too"), ("predict", "it is defined a second time")]:
        with pytest.raises(SchemaError, match=rf"^predict\.py line {LINE + 2}: predict\(\): .*{problem}"):
            openapi_schema(once + method.format(name))
        with pytest.raises(SchemaError, match=problem):
            openapi_schema(once + "    async " + method.format(name).lstrip())
    with pytest.raises(SchemaError, match="a second class Predictor"):
        openapi_schema(once + "class Predictor(BasePredictor):\n" + method.format("predict"))
    with pytest.raises(SchemaError, match="no base class but BasePredictor"):
        openapi_schema("class Base:\n" + method.format("run") + once.replace("(BasePredictor)", "(Base)"))


def test_a_byte_order_mark_is_skipped_as_by_python() -> None:
    assert openapi_schema("\ufeff" + source("x: int = 7")) == openapi_schema(source("x: int = 7"))


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(SchemaError, match=r"^predict\.py line 2: "):
        openapi_schema("x = 1\ndef predict(:\n")


def test_a_file_without_a_predictor_is_refused() -> None:
    with pytest.raises(SchemaError, match="no class Predictor with a method predict"):
        openapi_schema("class Other:\n    pass\n")
