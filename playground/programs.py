"""A request as a program to copy, which writes the files that the page shows, byte for byte."""

import json
import shlex
from typing import Any

Json = dict[str, Any]
LANGUAGES = {"curl": "request.sh", "Python": "request.py", "Node": "request.mjs"}
"""Each language, and the name of the file that a program in it is downloaded as."""
SHOWN = 80
"""How much of a picture's data URL the page shows. What is copied has all of it."""

CURL = """\
#!/bin/bash
# The picture of the playground, with curl. A busy server answers 409: then it is asked again.
ask() {{
  curl -sS -w '\\n%{{http_code}}' {url} -H 'Content-Type: application/json' -d @- <<'JSON'
{body}
JSON
}}
while answer=$(ask); [ "${{answer##*$'\\n'}}" = 409 ]; do sleep 0.5; done
case "$answer" in *'"status":"succeeded"'*) ;; *) echo "$answer" >&2; exit 1 ;; esac
i=0
grep -o '"data:[^"]*"' <<< "$answer" | tr -d '"' | while IFS= read -r file; do
  i=$((i + 1)); kind=${{file%%;*}}
  base64 --decode <<< "${{file#*,}}" > "output-$i.${{kind##*/}}"
done
"""

PYTHON = """\
# The picture of the playground, with Python alone. A busy server answers 409: it is asked again.
import base64, json, sys, time, urllib.error, urllib.request

inputs = {literal}
body = json.dumps({{"input": inputs}}).encode()
request = urllib.request.Request({url}, body, {{"Content-Type": "application/json"}})
while True:
    try:
        answer = json.load(urllib.request.urlopen(request))
        break
    except urllib.error.HTTPError as error:
        if error.code != 409:
            sys.exit(error.read().decode())
        time.sleep(0.5)
if answer["status"] != "succeeded":
    sys.exit(answer["error"])
for i, url in enumerate(answer["output"], 1):
    kind, content = url.split(";base64,")
    with open(f"output-{{i}}.{{kind.split('/')[-1]}}", "wb") as file:
        file.write(base64.b64decode(content))
"""

NODE = """\
// The picture of the playground, with Node 18 or newer. A busy server answers 409: then it is asked again.
import {{ writeFileSync }} from "node:fs";

const input = {body};
let response;
do {{
  if (response) await new Promise((resolve) => setTimeout(resolve, 500));
  response = await fetch({url}, {{
    method: "POST",
    headers: {{ "Content-Type": "application/json" }},
    body: JSON.stringify({{ input }}),
  }});
}} while (response.status === 409);
const answer = await response.json();
if (answer.status !== "succeeded") throw new Error(answer.error ?? JSON.stringify(answer));
answer.output.forEach((url, i) => {{
  const [kind, content] = url.split(";base64,");
  writeFileSync(`output-${{i + 1}}.${{kind.split("/").pop()}}`, Buffer.from(content, "base64"));
}});
"""


def program(language: str, url: str, inputs: Json) -> str:
    """A program that sends `inputs` to the server at `url` and writes its answer's files. Raises KeyError."""
    endpoint = f"{url}/predictions"
    if language == "curl":
        # JSON in ASCII has no line of its own that could end the here-document.
        return CURL.format(url=shlex.quote(endpoint), body=json.dumps({"input": inputs}, indent=2))
    if language == "Node":
        return NODE.format(url=json.dumps(endpoint), body=json.dumps(inputs, indent=2))
    if language == "Python":
        lines = "".join(f"    {name!r}: {value!r},\n" for name, value in inputs.items())
        return PYTHON.format(url=repr(endpoint), literal=f"{{\n{lines}}}")
    raise KeyError(language)


def shortened(inputs: Json) -> Json:
    """The inputs with their pictures cut short, to be looked at."""
    return {
        name: f"{value[:SHOWN]}... ({len(value) / 1000:.0f} kB)"
        if isinstance(value, str) and value.startswith("data:") and len(value) > SHOWN
        else value
        for name, value in inputs.items()
    }
