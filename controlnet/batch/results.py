"""results.jsonl: a line for each job, in their order, made from the records that the workers write."""

import json
from collections import Counter
from collections.abc import Iterable

from controlnet.batch.folder import Folder
from controlnet.batch.jobs import Job
from controlnet.batch.worker import DONE, FAILED

RESULTS = "results.jsonl"
LOST = "The process that made it ended without a word, several times. It may have run out of memory."


def write_results(folder: Folder, jobs: Iterable[Job], stopped: bool) -> Counter[str]:
    """Write the line of each job that is over, and count the jobs by their status.

    A job without a record is "left" if the run was stopped, and has no line. Otherwise its process was lost.
    """
    counts: Counter[str] = Counter()
    lines = []
    for job in jobs:
        record = _record(folder, job)
        if record is None and stopped:
            counts["left"] += 1
            continue
        record = record or {"status": "failed", "error": LOST}
        counts[record["status"]] += 1
        lines.append(json.dumps({"line": job.line, "name": job.name} | record, ensure_ascii=False))
    folder.write(RESULTS, "".join(f"{line}\n" for line in lines).encode())
    return counts


def _record(folder: Folder, job: Job) -> dict | None:
    if job.fault is not None:
        return {"status": "failed", "error": job.fault}
    for kind in (DONE, FAILED):
        if (content := folder.read(f"{kind}/{job.name}.json")) is not None:
            return json.loads(content)
    return None
