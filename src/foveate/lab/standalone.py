"""A page in one file that asks nobody for anything: style and scripts are in it, and its own policy lets no other run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from foveate.lab.terminal import CommandError


def render(package: str, name: str, scripts: Sequence[str], **parts: str) -> str:
    """A template of a package's folder ``assets``, filled in.

    Args:
        package: whose.
        name: of the template and of its style sheet, without ``.html`` and ``.css``.
        scripts: names of files, one after the other.
        parts: what ``{{NAME}}`` stands for, besides ``style``, ``script`` and ``policy``; markup that is safe already.
    """
    folder = resources.files(package) / "assets"
    style = (folder / f"{name}.css").read_text(encoding="utf-8")
    script = "\n".join((folder / file).read_text(encoding="utf-8") for file in scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {**parts, "style": style, "script": script, "policy": policy}
    template = (folder / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], template)


def write(path: Path, text: str) -> Path:
    """The page as a file; whoever looks at the file meanwhile sees the old one."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")  # the policy names the very bytes
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"cannot write the page {str(path)!r}: {error}") from None
    return path


def _hash(text: str) -> str:
    """As a policy names what it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
