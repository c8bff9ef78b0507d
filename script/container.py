"""script/test-container: build the image as Cog does, and drive it as its users will.

Each way of running it starts a container with the embedded tiny bundle on the CPU, waits until it is ready, makes two
pictures and stops it. Needs Docker, and the cog command unless an image is given. Not part of script/test: building
takes minutes and about 10 GB.
"""

import argparse
import base64
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass

from controlnet.serving.api import Api
from controlnet.serving.server import LOCALHOST, ROOT, free_port

TAG = "controlnet-container-test"
WAYS: dict[str, list[str]] = {
    "as it is": [],
    # Kubernetes and OpenShift give a container a user id that its /etc/passwd does not have.
    "uid 1000": ["--user", "1000:1000"],
    "uid 1000, read-only": ["--user", "1000:1000", "--read-only", "--tmpfs", "/tmp"],
}
"""The ways to run the image, with the options of `docker run`."""
READY_SECONDS = 300
PREDICTION_SECONDS = 300
GRACE_SECONDS = 20
"""How long `docker stop` waits before it kills."""


class ContainerError(RuntimeError):
    """The image or a container of it did not do what it must."""


@dataclass(frozen=True)
class Measured:
    """What one way of running the image took. Times are in seconds."""

    way: str
    ready: float
    first: float
    second: float
    memory: str
    stop: float


def docker(*arguments: str) -> str:
    """Return what a docker command prints. Raises ContainerError with what it says if it fails."""
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise ContainerError(f"docker {arguments[0]} failed: {result.stderr.strip()}")
    return result.stdout.strip()


def coglet_pin() -> str:
    """The version of coglet in requirements.txt."""
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    return pins["coglet"]


def build() -> None:
    """Build the image with Cog, under TAG."""
    environ = dict(os.environ) | {"COGLET_WHEEL": f"pypi:{coglet_pin()}"}
    try:
        subprocess.run(["cog", "build", "-t", TAG], cwd=ROOT, env=environ, check=True)
    except FileNotFoundError:
        raise ContainerError("The cog command is not installed. See https://cog.run, or give --image.") from None
    except subprocess.CalledProcessError as error:
        raise ContainerError(f"cog build failed with exit code {error.returncode}.") from None


def check_image(image: str) -> str:
    """Check the image's coglet against its pin. Returns the image's size as text."""
    code = "import importlib.metadata as m; print(m.version('coglet'))"
    found = docker("run", "--rm", "--entrypoint", "python", image, "-c", code)
    if found != coglet_pin():
        raise ContainerError(f"The image has coglet {found}, but requirements.txt pins {coglet_pin()}.")
    return f"{int(docker('image', 'inspect', '-f', '{{.Size}}', image)) / 1e9:.2f} GB"


def wait_ready(name: str, api: Api) -> None:
    """Wait until the server in the container is ready."""
    deadline = time.monotonic() + READY_SECONDS
    status = "no answer"
    while time.monotonic() < deadline:
        status = api.health().get("status", "no answer")
        if status == "READY":
            return
        running = docker("inspect", "-f", "{{.State.Running}}", name)
        if running != "true" or status in ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY"):
            break
        time.sleep(0.2)
    raise ContainerError(f"The server is not ready ({status}).")


def predict(api: Api) -> float:
    """Make a picture and check that it is one. Returns the seconds that it took."""
    photo = base64.b64encode((ROOT / "examples/house.png").read_bytes()).decode()
    inputs = {"prompt": "a red house", "image": f"data:image/png;base64,{photo}", "conditioner": "canny", "seed": 1}
    started = time.monotonic()
    status, answer = api.predict(inputs, timeout=PREDICTION_SECONDS)
    output = (answer.get("output") if status == 200 else None) or [""]
    if not output[0].startswith("data:image/"):
        raise ContainerError(f"The prediction failed: {answer}")
    return time.monotonic() - started


def check_validation(api: Api) -> None:
    """Check that the image has the schema, without which Cog's server passes every input on unchecked."""
    status, answer = api.predict({"conditioner": "no such conditioner"}, timeout=PREDICTION_SECONDS)
    if status != 422:
        raise ContainerError(f"A request without the required inputs was not refused with 422: {answer}")


def stop(name: str) -> float:
    """Stop the container. Returns the seconds that it took. Raises ContainerError if it had to be killed."""
    started = time.monotonic()
    docker("stop", "-t", str(GRACE_SECONDS), name)
    seconds = time.monotonic() - started
    code = docker("inspect", "-f", "{{.State.ExitCode}}", name)
    if code != "0":
        raise ContainerError(f"docker stop ended the server with exit code {code}.")
    return seconds


def drive(image: str, way: str, options: list[str]) -> Measured:
    """Run the image one way and measure it. The container is removed in any case; after a failure its log is shown."""
    name, port = f"{TAG}-{uuid.uuid4().hex[:8]}", free_port()
    api = Api(f"http://{LOCALHOST}:{port}")
    published = ["-p", f"{LOCALHOST}:{port}:{port}", "-e", f"PORT={port}", "-e", "CONTROLNET_BUNDLE=tiny"]
    started = time.monotonic()
    docker("run", "-d", "--name", name, *published, *options, image)
    try:
        wait_ready(name, api)
        ready = time.monotonic() - started
        check_validation(api)
        first, second = predict(api), predict(api)
        memory = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name).split("/")[0].strip()
        return Measured(way, ready, first, second, memory, stop(name))
    except ContainerError:
        log = subprocess.run(["docker", "logs", "--tail", "40", name], capture_output=True, text=True)
        print(log.stdout + log.stderr, file=sys.stderr)
        raise
    finally:
        docker("rm", "-f", name)


def main(arguments: list[str] | None = None) -> int:
    """The command line of script/test-container."""
    parser = argparse.ArgumentParser(prog="script/test-container", description="Build the image and drive it.")
    parser.add_argument("--image", help="drive this image, do not build one")
    parser.add_argument("--run-options", default="", help='more options of docker run, such as "--network host"')
    options = parser.parse_args(arguments)
    try:
        if not options.image:
            build()
        image = options.image or TAG
        print(f"image {check_image(image)}, coglet {coglet_pin()}")
        print(f"{'way':<22}{'ready':>9}{'1st':>9}{'2nd':>9}{'stop':>9}  memory")
        for way, extra in WAYS.items():
            one = drive(image, way, extra + shlex.split(options.run_options))
            times = "".join(f"{seconds:>7.1f} s" for seconds in (one.ready, one.first, one.second, one.stop))
            print(f"{one.way:<22}{times}  {one.memory}", flush=True)
    except ContainerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
