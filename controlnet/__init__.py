"""ControlNet in a container: from prompt, image and conditioner to pictures whose structure follows the image."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlnet.api.opened import OpenModel


def open_model(bundle: str | None = None, *, log: bool = False) -> "OpenModel":
    """Load a bundle and return it as a function from a request to pictures, with the checks and bytes of the server.

        from controlnet import open_model

        with open_model("tiny") as model:
            pictures = model("a red ball on sand", "photo.jpg", conditioner="depth", seed=1)
            pictures[0].show()

    `bundle` is "tiny", "sd15" or another name of a manifest in weights/. Without it, the environment variable
    CONTROLNET_BUNDLE decides, then what is on disk, as for the server. `log` prints what the server's log has: the
    parts that are loaded, and the progress of each picture.

    Raises ManifestError for a bundle that is not known, and WeightsError, with the command that repairs it, if its
    files are missing.
    """
    from controlnet.settings import Settings
    from controlnet.weights.files import check_chosen

    settings = Settings.read(bundle=bundle)
    check_chosen(settings)

    from controlnet.api.opened import OpenModel  # only now, because it imports torch

    return OpenModel(settings, log=log)
