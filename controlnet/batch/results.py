"""results.jsonl: a line for each job, in their order, made from the records that the workers write."""

import json
from collections import Counter
from collections.abc import Iterable

from controlnet.batch.folder import DONE, FAILED, Folder, NotReached
from controlnet.batch.jobs import Job

RESULTS = "results.jsonl"
LOST = "The process that made it ended without a word, several times. It may have run out of memory."


BROKEN = "Its record {} cannot be read, so it was removed. The same command makes the job again."


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
        record = record or _failed(LOST)
        counts[record["status"]] += 1
        lines.append(json.dumps({"line": job.line, "name": job.name} | record, ensure_ascii=False))
    # A lone surrogate is no text in UTF-8. As \\ud800 it is what JSON has for it.
    folder.write(RESULTS, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    return counts


def _record(folder: Folder, job: Job) -> dict | None:
    if job.fault is not None:
        return _failed(job.fault)
    for name in (f"{kind}/{job.name}.json" for kind in (DONE, FAILED)):
        try:
            if (content := folder.read(name)) is None:
                continue
            record = json.loads(content)
            if not isinstance(record, dict) or record.get("status") not in ("succeeded", "failed"):
                raise ValueError
        except NotReached as error:
            return _failed(str(error))
        except ValueError:  # cut short by a crash of the machine
            folder.remove(name)
            return _failed(BROKEN.format(name))
        return record
    return None


def _failed(error: str) -> dict:
    return {"status": "failed", "error": error}
