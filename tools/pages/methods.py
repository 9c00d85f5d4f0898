"""A page per method, from its docstring, its file and the committed results; and a table of all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import curves
import evidence
import facts
import pairs
from facts import Facts
from repository import DOCS

from foveate.lab.index import BLOCKS, LAYERS, group_sites

#: Headings of the list, in the order of the forward pass; the first one that fits a method is its own.
GROUPS = (
    "Controls",
    "At several places",
    "In the vision tower, or at its output",
    "Where image and text meet",
    "In the language model",
    "While decoding",
)
PLACES = {"pixels": 2, "tower": 2, "tower_output": 2, "lm_entry": 3, "decoder": 4, "cache": 5, "decode": 5}

EXAMPLE_CODE = """\
import foveate
import foveate_reference as reference

model, processor = reference.load()  # the model in the package; any supported one does
sample = reference.samples("test", tasks=["color"], per_task=1)[0]
inputs = processor.apply_chat_template(
    sample.messages[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)

with foveate.compress(model, foveate.{name}()) as handle:
    ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    print(sample.question, processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    print(handle.report())
"""


def groups() -> dict[str, list[str]]:
    """Heading -> names of the methods under it; headings without a method are left out."""
    found: dict[str, list[str]] = {heading: [] for heading in GROUPS}
    for name, method in facts.methods().items():
        found[GROUPS[_group(method)]].append(name)
    return {heading: names for heading, names in found.items() if names}


def table() -> str:
    """One line per method, for docs/catalog/index.md."""
    lines = []
    for heading, names in groups().items():
        lines += [f"## {heading}", "", "| method | what it does | paper | budget |", "| --- | --- | --- | --- |"]
        for name in names:
            method = facts.methods()[name]
            budget = "fixed" if method["fixed_budget"] else "by content"
            says = _inline(_paragraphs(method["doc"])[0])
            lines.append(f"| [**{method['class']}**]({name}.md) | {says} | {paper(method)} | {budget} |")
        lines.append("")
    return "\n".join(lines)


def page(name: str) -> str:
    """The page of one method."""
    method = facts.methods()[name]
    first, *rest = _paragraphs(method["doc"])
    parts = [f"# {method['class']}", f"**{_inline(first)}**", _facts(method)]
    parts += ["## What is from where", "\n\n".join(map(_inline, rest))] if rest else []
    parts += ["## Accuracy", _accuracy(name), "## Use", _usage(method), "## Options", _options(method)]
    code = facts.code(name)
    lines = len(code.splitlines())
    parts += ["## The file", f'??? example "All of it: {lines} lines"\n', _indent(f"```python\n{code}\n```")]
    return "\n\n".join(parts) + "\n"


def paper(method: Facts) -> str:
    """``An Image is ... (ECCV 2024, [arXiv 2403.06764](https://arxiv.org/abs/2403.06764))``, or that it is a control."""
    if method["paper"] is None:
        return "control" if method["control"] else "none"
    return f"{method['paper']['title']} ({source(method['paper'])})"


def source(found: Facts) -> str:
    """``ECCV 2024, [arXiv 2403.06764](https://arxiv.org/abs/2403.06764)``; the venue is left out where it is arXiv."""
    link = f"[arXiv {found['arxiv']}](https://arxiv.org/abs/{found['arxiv']})"
    return link if found["venue"] == "arXiv" else f"{found['venue']} {found['year']}, {link}"


def _group(method: Facts) -> int:
    if method["control"]:
        return 0
    places = {PLACES[place] for place in method["places"]}
    return places.pop() if len(places) == 1 else 1


def _facts(method: Facts) -> str:
    refused, others = pairs.exceptions(method["name"])
    runs = f"all {len(pairs.pairs())} families" if not refused else "all families but " + _codes(refused)
    runs += "".join(f"; on `{family}` with `{words}`" for family, words in others.items())
    rows = {
        "paper": paper(method),
        "acts at": f"{group_sites(method['sites'])} (in a tower of {BLOCKS} blocks before a language model of {LAYERS} layers)",
        "asks for": _codes(method["asks"]) or "nothing but hidden states and places",
        "budget": _budget(method),
        "training": "none" if method["training_free"] else "made to be trained for; runs untrained, too",
        "runs on": f"{runs} ([table](../pairs.md))",
    }
    if method["paper"] and method["paper"]["code"]:
        rows["authors' code"] = f"[{method['paper']['code']}](https://github.com/{method['paper']['code']})"
    if (DOCS / "methods" / f"{method['name']}.md").exists():
        rows["study"] = f"[what was chosen, tried and measured](../methods/{method['name']}.md)"
    listed = "\n\n".join(f"{key}\n:   {value}" for key, value in rows.items())
    return f'<div class="fv-facts" markdown>\n\n{listed}\n\n</div>'


def _budget(method: Facts) -> str:
    served = facts.asked(facts.SERVED)[method["name"]]
    if not method["fixed_budget"] and not served:
        return "by content: a serving engine cannot plan for it"
    if not method["fixed_budget"]:
        return "by content of a video, fixed for images, so it can be [served](../serving.md#every-method)"
    fixed = "fixed: how many tokens stay follows from the image's size"
    if not served:
        return f"{fixed}; [not served](../serving.md#every-method)"
    return f"{fixed}, so it can be [served](../serving.md#every-method)"


def _only_decodes(method: Facts) -> bool:
    return bool(method["places"] == ["decode"])


def _accuracy(name: str) -> str:
    found = evidence.of_method(name)
    if not found:
        return _unmeasured(facts.methods()[name])
    charts = "".join(curves.chart(run, name) for run in found)
    figure = (
        f'<figure class="fv-figure"><div class="fv-charts">{charts}</div>'
        f"<figcaption>{curves.legend(found, name)}</figcaption></figure>"
    )
    reports = ", ".join(f"[{curves.MODELS.get(run.model, run.model)}](../{run.report})" for run in found if run.report)
    says = (
        f"Mean over the twenty tasks of the [reference benchmark](../reference-benchmark.md). Whole reports: {reports}."
    )
    return "\n\n".join([figure, says, '??? note "The numbers"\n', _indent("\n".join(_numbers(name, found)))])


def _unmeasured(method: Facts) -> str:
    if _only_decodes(method):
        return (
            "There is no curve: the method acts after the first token of an answer, and the answers of the "
            "[reference benchmark](../reference-benchmark.md) have one."
        )
    return "There is no curve: no committed run of `foveate eval` has this method alone."


def _numbers(name: str, found: list[evidence.Run]) -> Iterator[str]:
    yield "| model | method | accuracy | 95 % interval | tokens | FLOPs | KV |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for run in found:
        rows = [("stock", run.dense), *((label, row) for label, rows in run.of(name).items() for row in rows)]
        for label, row in rows:
            accuracy, spent = row["accuracy"], row["spent"]
            yield (
                f"| {curves.MODELS.get(run.model, run.model)} | {label} | {accuracy['value']:.1%} | "
                f"{accuracy['low']:.1%} to {accuracy['high']:.1%} | {spent['tokens']:.1%} | {spent['flops']:.1%} | "
                f"{spent['kv']:.1%} |"
            )


def _usage(method: Facts) -> str:
    words = [
        f"foveate run --model reference --image scene.png --prompt 'color of star ?' --method {method['name']}",
        f"foveate eval reference --method {method['name']} --method random --method stride",
    ]
    return (
        f"```python\n{EXAMPLE_CODE.format(name=method['class'])}```\n\n" + "```console\n" + "\n".join(words) + "\n```"
    )


def _options(method: Facts) -> str:
    lines = ["| option | type | default | what it is |", "| --- | --- | --- | --- |"]
    for name, option in sorted(method["options"].items(), key=lambda pair: pair[0] == "positions"):
        kind = option["type"].replace("|", "\\|")
        lines.append(
            f"| `{name}` | `{kind}` | `{_default(option['default'])}` | {_inline(method['meanings'].get(name, ''))} |"
        )
    return "\n".join(lines)


def _default(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("[]", "()")


def _paragraphs(doc: str) -> list[str]:
    return [" ".join(part.split()) for part in doc.partition("Attributes:")[0].strip().split("\n\n")]


def _inline(text: str) -> str:
    """A docstring's text as Markdown: double backticks single, arXiv numbers and studies as links."""
    text = re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"docs/methods/(\w+)\.md", lambda m: f"[the study](../methods/{m[1]}.md)", text)


def _codes(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())
