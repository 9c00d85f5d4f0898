"""Say whether a server is ready, and with which methods: ``python deploy/ready.py [http://localhost:8000]``.

It needs nothing but Python. The exit status is 0 where the server answers and compresses, else 1.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request

INFO = re.compile(r'foveate_method_info\{budget="(.*?)",config="(.*?)",method="(.*?)",profile="(.*?)"\} 1\.0')


def ready(server: str) -> str:
    """Return what the server compresses with, a line for its own method and for each profile.

    Raises:
        OSError: it does not answer, or not yet.
        LookupError: it answers, and no method is on its model.
    """
    urllib.request.urlopen(f"{server}/health", timeout=5).close()
    with urllib.request.urlopen(f"{server}/metrics", timeout=5) as page:
        found = INFO.findall(page.read().decode())
    if not found:
        raise LookupError("it serves the stock model: no method is on it")
    lines = []
    for budget, config, method, profile in sorted(found, key=lambda each: each[3]):
        options = json.loads(config.replace('\\"', '"').replace("\\\\", "\\"))
        lines.append(f"{f'profile {profile}' if profile else 'ready'}: {method}, keep {budget} {json.dumps(options)}")
    return "\n".join(lines)


def main(server: str = "http://localhost:8000") -> int:
    """Print it; the exit status."""
    try:
        print(ready(server.rstrip("/")))
    except (OSError, LookupError) as error:
        print(f"{server} is not ready: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
