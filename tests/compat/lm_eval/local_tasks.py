"""Two lm-eval tasks from the project's own documents: continuations, and a choice of four."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

CONTINUATIONS = """
task: local_continuations
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{continuation}}}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
  - metric: acc
"""

CHOICES = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
"""


def documents(count: int) -> list[dict[str, object]]:
    """Context and continuation of sentences and lines of code; three wrong continuations each."""
    text = "\n".join(
        path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    )
    lines = [line.strip() for line in re.split(r"[\n.]", text)]
    lines = [line for line in dict.fromkeys(lines) if len(line.split()) >= 6]
    found = []
    for index, line in enumerate(lines[:count]):
        words = line.split(" ")
        place = 2 + index % (len(words) - 3)
        rest = [" " + " ".join(words[place:])]
        for other in range(1, 4):
            wrong = lines[(index + 7 * other) % len(lines)].split(" ")
            rest.append(" " + " ".join(wrong[-3:]))
        found.append({"context": " ".join(words[:place]), "continuation": rest[0], "choices": rest})
    return found


def write_tasks(folder: Path, count: int) -> None:
    """Write both tasks and their data."""
    folder.mkdir(parents=True)
    data = folder / "documents.jsonl"
    rows = documents(count)
    if len(rows) < count:
        raise ValueError(f"only {len(rows)} documents")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "local_continuations.yaml").write_text(CONTINUATIONS.format(data=data))
    (folder / "local_choices.yaml").write_text(CHOICES.format(data=data))
