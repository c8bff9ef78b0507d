import pytest
from cog import CancelationException

from controlnet.errors import ServerFault, plain_errors
from controlnet.images import ImageError
from controlnet.output import OutputError


@pytest.mark.parametrize("kind", [ImageError, OutputError, CancelationException])
def test_what_is_written_for_the_client_and_cancellations_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), plain_errors():
        raise kind("as it is")


@pytest.mark.parametrize("error", [RuntimeError("at /home/me/x.py"), OSError(2, "no", "/etc/x"), ValueError("/etc/x")])
def test_errors_of_libraries_are_told_without_details_and_logged_with_them(error, capsys) -> None:
    with pytest.raises(ServerFault) as caught, plain_errors():
        raise error
    assert "/" not in str(caught.value) and type(error).__name__ in str(caught.value)
    assert caught.value.__cause__ is None
    logged = capsys.readouterr().err
    assert "Traceback" in logged and str(error) in logged
