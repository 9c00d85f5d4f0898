"""The model card of what was trained, for people and for the hub."""

from __future__ import annotations

from pathlib import Path

from foveate.method import Method

FILE = "README.md"

_CARD = """---
base_model: {model}
library_name: foveate
tags: [foveate]
---

# {name} for {model}

Trained with foveate for this model with fewer vision tokens: `{method!r}`{paper}. What was trained and the method belong
together:

```python
import foveate

handle = foveate.compress(model, "{folder}")   # this folder, or its id on the hub
handle.remove()                                # takes it off again
```

Trained for {steps} steps on `{source}`, curriculum `{curriculum}`; `foveate_training.json` has every setting.
"""


def write(folder: Path, model: str, source: str, method: Method, curriculum: str, steps: int) -> None:
    """Replace the card that PEFT writes, which knows neither the method nor how to load it."""
    text = _CARD.format(
        model=model,
        name=type(method).__name__,
        paper=f", from {method.paper}" if method.paper else "",
        method=method,
        folder=folder.name,
        source=source,
        curriculum=curriculum,
        steps=steps,
    )
    (folder / FILE).write_text(text, encoding="utf-8")
