"""Whether the public database of known holes can be asked: exit code 0 if so, else 1 and why.

    python tools/can_audit.py

It is asked as `pip-audit` asks it, for one version of a package. Mirrors of packages do not have
it, or only for the latest versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request

URL = "https://pypi.org/pypi/pip-audit/2.10.1/json"
PATIENCE = 5.0
"""Seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default=URL, help="what to ask")
    url = parser.parse_args().url
    why = unreachable(url)
    if why:
        print(f"{url}: {why}", file=sys.stderr)
    return 1 if why else 0


def unreachable(url: str) -> str:
    """Why nothing can be asked there; empty where it can."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            found = json.load(answer)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        return str(error)
    except ValueError:
        return "the answer is no JSON"
    known = isinstance(found, dict) and "vulnerabilities" in found
    return "" if known else "the answer says nothing of vulnerabilities"


if __name__ == "__main__":
    sys.exit(main())
