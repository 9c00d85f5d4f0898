"""A page per method, from its docstring, its file and the committed results; and a table of all."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import curves
import evidence
import pairs
import verdicts
from repository import DOCS

import foveate
from foveate.lab.catalog import describe_method
from foveate.lab.declared import EXAMPLE
from foveate.lab.terminal import group_sites
from foveate.method import Method, Paper, Site

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
    for name, cls in foveate.list_methods().items():
        found[GROUPS[_group(cls)]].append(name)
    return {heading: names for heading, names in found.items() if names}


def table() -> str:
    """One line per method, for docs/catalog/index.md."""
    lines = []
    for heading, names in groups().items():
        lines += [f"## {heading}", "", "| method | what it does | paper | budget |", "| --- | --- | --- | --- |"]
        for name in names:
            facts = describe_method(name)
            budget = "fixed" if facts["fixed_budget"] else "by content"
            says = _inline(_paragraphs(facts["doc"])[0])
            lines.append(
                f"| [**{facts['class']}**]({name}.md) | {says} | {paper(foveate.list_methods()[name])} | {budget} |"
            )
        lines.append("")
    return "\n".join(lines)


def page(name: str) -> str:
    """The page of one method."""
    cls, facts = foveate.list_methods()[name], describe_method(name)
    first, *rest = _paragraphs(facts["doc"])
    parts = [f"# {facts['class']}", f"**{_inline(first)}**", _facts(cls, facts)]
    parts += ["## What is from where", "\n\n".join(map(_inline, rest))] if rest else []
    parts += ["## Accuracy", _accuracy(name), "## Use", _usage(cls), "## Options", _options(cls, facts)]
    code = Path(inspect.getfile(cls)).read_text(encoding="utf-8").rstrip()
    lines = len(code.splitlines())
    parts += ["## The file", f'??? example "All of it: {lines} lines"\n', _indent(f"```python\n{code}\n```")]
    return "\n\n".join(parts) + "\n"


def meanings(cls: type[Method]) -> dict[str, str]:
    """What each option means, from the ``Attributes:`` of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__doc__ or "")
        _, _, attributes = doc.partition("Attributes:\n")
        for names, says in re.findall(r"^    ([\w, ]+): (.*(?:\n     .*)*)", attributes, re.M):
            found |= dict.fromkeys(re.split(r",\s*", names), " ".join(says.split()))
    return found


def paper(cls: type[Method]) -> str:
    """``An Image is ... (ECCV 2024, [arXiv 2403.06764](https://arxiv.org/abs/2403.06764))``, or that it is a control."""
    found = cls.paper
    if found is None:
        return "control" if cls.control else "none"
    return f"{found.title} ({source(found)})"


def source(found: Paper) -> str:
    """``ECCV 2024, [arXiv 2403.06764](https://arxiv.org/abs/2403.06764)``; the venue is left out where it is arXiv."""
    link = f"[arXiv {found.arxiv}](https://arxiv.org/abs/{found.arxiv})"
    return link if found.venue == "arXiv" else f"{found.venue} {found.year}, {link}"


def _group(cls: type[Method]) -> int:
    if cls.control:
        return 0
    places = {PLACES[site.at] for site in _sites(cls)}
    return places.pop() if len(places) == 1 else 1


def _sites(cls: type[Method]) -> list[Site]:
    return list(cls().sites(EXAMPLE))


def _facts(cls: type[Method], facts: dict[str, Any]) -> str:
    signals = sorted({str(signal) for site in _sites(cls) for signal in site.asked})
    refused, others = pairs.exceptions(facts["name"])
    runs = f"all {len(foveate.list_families())} families" if not refused else "all families but " + _codes(refused)
    runs += "".join(f"; on `{family}` with `{words}`" for family, words in others.items())
    rows = {
        "paper": paper(cls),
        "acts at": f"{group_sites(facts['sites'])} (in a tower of {EXAMPLE.blocks} blocks before a language model of "
        f"{EXAMPLE.layers} layers)",
        "asks for": _codes(signals) or "nothing but hidden states and places",
        "budget": _budget(cls),
        "training": "none" if facts["training_free"] else "made to be trained for; runs untrained, too",
        "runs on": f"{runs} ([table](../pairs.md))",
    }
    if cls.paper and cls.paper.code:
        rows["authors' code"] = f"[{cls.paper.code}](https://github.com/{cls.paper.code})"
    if (DOCS / "methods" / f"{facts['name']}.md").exists():
        rows["study"] = f"[what was chosen, tried and measured](../methods/{facts['name']}.md)"
    listed = "\n\n".join(f"{key}\n:   {value}" for key, value in rows.items())
    return f'<div class="fv-facts" markdown>\n\n{listed}\n\n</div>'


def _budget(cls: type[Method]) -> str:
    if not (cls.fixed_budget and cls.usual_threshold is None):
        return "by content: a serving engine cannot plan for it"
    fixed = "fixed: how many tokens stay follows from the image's size"
    if not verdicts.verdict(cls.name()).served:
        return f"{fixed}; [not served](../serving.md#every-method)"
    return f"{fixed}, so it can be [served](../serving.md#every-method)"


def _accuracy(name: str) -> str:
    found = evidence.of_method(name)
    if not found:
        return _unmeasured(foveate.list_methods()[name])
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


def _unmeasured(cls: type[Method]) -> str:
    acting = [site for site in _sites(cls) if site.action != "remember"]
    if all(site.at == "decode" or site.into == "generated" for site in acting):
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


def _usage(cls: type[Method]) -> str:
    words = [
        f"foveate run --model reference --image scene.png --prompt 'color of star ?' --method {cls.name()}",
        f"foveate eval reference --method {cls.name()} --method random --method stride",
    ]
    return f"```python\n{EXAMPLE_CODE.format(name=cls.__name__)}```\n\n" + "```console\n" + "\n".join(words) + "\n```"


def _options(cls: type[Method], facts: dict[str, Any]) -> str:
    says = meanings(cls)
    lines = ["| option | type | default | what it is |", "| --- | --- | --- | --- |"]
    for name, option in sorted(facts["options"].items(), key=lambda pair: pair[0] == "positions"):
        kind = option["type"].replace("|", "\\|")
        lines.append(f"| `{name}` | `{kind}` | `{_default(option['default'])}` | {_inline(says.get(name, ''))} |")
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
