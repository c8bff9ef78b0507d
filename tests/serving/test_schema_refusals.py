"""A predict.py that Cog cannot resolve, or reads otherwise than Python does, is refused."""

import pytest
from support.predict_sources import LINE, schemas, source

from controlnet.serving.schema import SchemaError, openapi_schema


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ("str = Input(choices=IMPORTED)", "expected a list, or the name of one in this file, got IMPORTED"),
        ("str = Input(choices=MADE)", "or the name of one in this file, got MADE"),
        ("str = Input(choices=[n for n in NAMES])", "or the name of one in this file, got [n for n in NAMES]"),
        ("str = Input(choices=TABLE.keys())", "or the name of one in this file, got TABLE.keys()"),
        ("str = Input(choices=list(TABLE.keys()))", "or the name of one in this file, got list(TABLE.keys())"),
        ("str = Input(choices=sorted(NAMES))", "or the name of one in this file, got sorted(NAMES)"),
        ('str = Input(choices=("a", "b"))', "or the name of one in this file, got"),
        ("str = Input(choices=TUPLE)", "or the name of one in this file, got TUPLE"),
        ('str = Input(choices={"a", "b"})', "or the name of one in this file, got"),
        ("str = Input(choices=NAMES + IMPORTED)", "or the name of one in this file, got IMPORTED"),
        ("str = Input(choices=[])", "expected choices that are strings for a str"),
        ("str = Input(choices=[1, 2])", "expected choices that are strings for a str"),
        ("float = Input(choices=[0.5])", "expected choices that are strings for a str"),
        ("str = Input(choices=COMMENTED)", "without comments and brackets"),
        ('str = Input(choices=[("a"), "b"])', "without comments and brackets"),
        ('str = Input(choices=["a", # one\n "b"])', "without comments and brackets"),
        ("int = Input(le=MAX_STEPS)", "expected a literal, got MAX_STEPS"),
        ("int = Input(ge=2**3)", "expected a literal, got 2**3"),
        ("int = Input(le=4_096)", "expected one literal, without escapes or brackets, got 4_096"),
        ("int = Input(le=0xff)", "expected one literal, without escapes or brackets, got 0xff"),
        ("float = Input(le=1e3)", "expected one literal, without escapes or brackets, got 1e3"),
        ("int = Input(default=settings.STEPS)", "expected a literal, got settings.STEPS"),
        ("int = Input(default=9223372036854775808)", "expected a number of 64 bits"),
        ("str = Input(default=TEXT)", "expected a literal, got TEXT"),
        ("int = Input(default=None)", "a default of None makes it required: write Optional[...]"),
        ('Literal["a", "b"]', "expected str, int, float, bool, Path or Optional of one of these, got Literal"),
        ("list[str]", "or Optional of one of these, got list[str]"),
        ("Union[str, int]", "or Optional of one of these, got Union[str, int]"),
        ("str | None", "or Optional of one of these, got str | None"),
        ("Secret", "or Optional of one of these, got Secret"),
        ('str = Input(description=f"At most {MAX_STEPS}.")', "expected a literal"),
        ('str = Input(description="One " + "two.")', "expected a literal"),
        ('str = Input(description="One " "two.")', "expected one literal, without escapes or brackets"),
        ('str = Input(description="A \\"quote\\".")', "expected one literal, without escapes or brackets"),
        ("str = Input(description='One.')", "expected one literal, without escapes or brackets"),
        ('str = Input(description=("In brackets."))', "expected one literal, without escapes or brackets"),
        ('str = Input(default=["a"])', "expected one literal"),
        ('str = Input("a default")', "expected a literal or Input() with keywords"),
        ("str = cog.Input()", "expected a literal or Input() with keywords"),
        ("str = Input(**OPTIONS)", "expected one of default, description, ge, le, choices, accept, got **"),
        ("str = Input(gt=1)", "expected one of default, description, ge, le, choices, accept, got gt"),
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
        ("x", "list[Path]", "input 'x': expected str, int, float, bool, Path or Optional of one of these, got no type"),
        ("*, x: str", "list[Path]", "expected plain parameters, without *, ** or /"),
        ("**options", "list[Path]", "expected plain parameters, without *, ** or /"),
        ("x: str", "", "the return type of predict(): expected list[Path] or Path"),
        ("x: str", "list[str]", "the return type of predict(): expected list[Path] or Path"),
    ],
)
def test_a_signature_that_cog_does_not_accept_is_refused(parameters: str, returns: str, problem: str) -> None:
    with pytest.raises(SchemaError, match=rf"^predict\.py line {LINE}: ") as caught:
        schemas(parameters, returns)
    assert problem in str(caught.value)


@pytest.mark.parametrize("parameter", ["self: str", "self=1"])
def test_self_with_a_type_or_default_is_refused(parameter: str) -> None:
    with pytest.raises(SchemaError, match="expected self first, without a type or a default"):
        openapi_schema(source("x: int = 1").replace("(self,", f"({parameter},"))


@pytest.mark.parametrize(
    "more", ["    def run(self): ...", "    async def run(self): ...", "    def predict(self): ..."]
)
def test_a_second_method_that_cog_would_read_is_refused(more: str) -> None:
    with pytest.raises(SchemaError, match=rf"^predict\.py line {LINE + 2}: predict\(\): expected one class Predictor"):
        openapi_schema(f"{source('x: str')}{more}\n")


def test_other_classes_that_cog_would_read_are_refused() -> None:
    once = source("x: str")
    for text in (f"{once}class Predictor(BasePredictor): ...\n", once.replace("(BasePredictor)", "(Base)")):
        with pytest.raises(SchemaError, match=r"expected one class Predictor\(BasePredictor\)"):
            openapi_schema(text)


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(SchemaError, match=r"^predict\.py line 2: "):
        openapi_schema("x = 1\ndef predict(:\n")


def test_a_file_without_a_predictor_is_refused() -> None:
    with pytest.raises(SchemaError, match="expected one class Predictor"):
        openapi_schema("class Other:\n    pass\n")
