"""Ask a model about images, whole and compressed, and keep what became of every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.handle import compress, host_of
from foveate.lab import cautions, needs, prompting
from foveate.lab.checks import REFERENCES, check_dtype, check_images_and_prompts, check_scenes, is_run
from foveate.lab.devices import device_of, put
from foveate.lab.loading import load
from foveate.lab.options import method_from_words
from foveate.lab.speech import speech_of
from foveate.lab.story import Case, Content, Told, tell
from foveate.lab.terminal import CommandError, warn_once
from foveate.lab.words import options_by_method
from foveate.method import Method
from foveate.methods import make

SYSTEMS = ("luvc", "ipcv", "adsc")  # what is shown when nothing is asked for
QUESTIONS = 4  # about each scene that is drawn
MOST_SCENES = 100


@dataclass(frozen=True)
class Request:
    """What to show.

    Attributes:
        model: a folder, an id on the Hugging Face hub, ``reference`` or a name of `foveate.lab.checks.REFERENCES`.
        images, prompts: as many of one as of the other, or one for all; no images: drawn scenes with their questions.
        methods: label -> method.
        scenes, seed: how many scenes, and which.
        dtype, device, attn, max_new_tokens: as in ``foveate run``.
    """

    model: str
    images: tuple[Path, ...]
    prompts: tuple[str, ...]
    methods: Mapping[str, Method]
    scenes: int = 3
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Question:
    """What is asked about an image, and the right answer if it is known; ``task``: of the benchmark, "" for others."""

    name: str
    image: Image.Image
    prompt: str
    truth: str | None = None
    task: str = ""


def methods_of(
    names: Sequence[str], options: Sequence[str], described: Sequence[str], keep: float | None = None
) -> dict[str, Method]:
    """Label -> method, from the words of a command line; without any, `SYSTEMS`. ``keep``: of all but those described."""
    if options and not names:
        raise CommandError(f"--option {options[0]!r} belongs to a method: say --method, too")
    named = [
        method_from_words(name, keep, own, None) for name, own in zip(names, options_by_method(names, options) or [])
    ]
    chosen = [*named, *(method_from_words(None, None, [], text) for text in described)]
    chosen = chosen or [make(name, **({} if keep is None else {"keep": keep})) for name in SYSTEMS]
    found = {label(method): method for method in chosen}
    if len(found) < len(chosen):
        raise CommandError(
            "a method is given twice: give each once, with other options for a second look (--method-json)"
        )
    return found


def label(method: Method) -> str:
    """The name, and every option that is not the default: ``fastv(layer=4)``."""
    terms = "+".join(map(_label, method.terms()))
    return f"({terms})(keep={method.keep})" if len(method.terms()) > 1 and method.keep is not None else terms


def collect(request: Request, tell_user: Callable[[str, float], None]) -> Content:
    """Load and ask. ``tell_user`` gets what happens and the share that is done."""
    check_dtype(request.dtype)
    questions = _questions(request)
    device = device_of(request.device)
    tell_user(f"loading {request.model}", 0.0)
    model, processor = load(request.model, request.dtype, request.attn)
    put(model, device, request.model)
    cautions.say(request.model, list(request.methods.values()), host_of(model), videos=False)
    for line in cautions.about_model(request.model, model, processor, request.prompts) if request.images else ():
        warn_once(line)
    if not request.images:
        speech = speech_of(processor)
        questions = [
            replace(each, prompt=speech.question(each.task, each.prompt), truth=speech.answer(each.truth or ""))
            for each in questions
        ]
    return ask(model, processor, request.model, questions, request.methods, request.max_new_tokens, tell_user)


def ask(
    model: Any,
    processor: Any,
    name: str,
    questions: Sequence[Question],
    methods: Mapping[str, Method],
    max_new_tokens: int,
    tell_user: Callable[[str, float], None],
) -> Content:
    """Ask the stock model, then again with each method; ``name`` is what the page calls the model."""
    inputs = [
        prompting.inputs_of(processor, [question.image], question.prompt, name).to(model.device, model.dtype)
        for question in questions
    ]
    work = len(questions) * (1 + len(methods))
    dense: list[str] = []
    for asked in inputs:
        tell_user("the stock model answers", len(dense) / work)
        dense.append(prompting.ask(model, processor, asked, max_new_tokens)[0])
    told: list[dict[str, Told]] = [{} for _ in questions]
    for turn, (short, method) in enumerate(methods.items()):
        with compress(model, method) as handle, handle.trace() as trace:
            for number, asked in enumerate(inputs):
                tell_user(f"{short} answers", (len(questions) * (1 + turn) + number) / work)
                answer, _ = prompting.ask(model, processor, asked, max_new_tokens)
                report = handle.report()
                told[number][short] = Told.of(answer, tell(trace(), report), report)
    tell_user("done", 1.0)
    cases = []
    for question, asked, answer, stories in zip(questions, inputs, dense, told, strict=True):
        (image,) = prompting.seen(processor, asked, [question.image])
        tiles = tuple(prompting.tiles(processor, asked, [question.image]))
        cases.append(Case(question.name, image, tiles, question.prompt, answer, question.truth, stories))
    shown = {short: repr(method) for short, method in methods.items()}
    return Content(name, model.config.model_type, shown, tuple(cases))


def _label(method: Method) -> str:
    own = {
        f.name: getattr(method, f.name)
        for f in fields(method)
        if f.default is MISSING or getattr(method, f.name) != f.default
    }
    return method.name() + (f"({', '.join(f'{name}={value}' for name, value in own.items())})" if own else "")


def _questions(request: Request) -> list[Question]:
    if not request.images:
        return _drawn(request)
    for prompt in request.prompts:
        prompting.check(prompt)
    check_images_and_prompts(request.images, request.prompts)
    images, prompts = len(request.images), len(request.prompts)
    opened = [(path.name, prompting.open_image(path)) for path in request.images]
    pairs = zip(
        opened * (prompts if images == 1 else 1), request.prompts * (images if prompts == 1 else 1), strict=True
    )
    return [Question(name, image, prompt) for (name, image), prompt in pairs]


def _drawn(request: Request) -> list[Question]:
    """Scenes that no reference model has seen, and questions about them with the right answers."""
    check_images_and_prompts((), request.prompts)
    if request.model not in REFERENCES and not is_run(request.model):
        raise CommandError(
            f"the drawn scenes are for the reference models: give --image and --prompt for {request.model!r}"
        )
    check_scenes(request.scenes, MOST_SCENES)
    reference = needs.reference()
    found = []
    for number in range(request.scenes):
        try:
            seed = reference.split_seed("test", request.seed * MOST_SCENES + number)
        except ValueError as error:
            raise CommandError(f"--seed {request.seed}: {error}") from None
        scene = reference.make_scene(seed)
        image = Image.fromarray(scene.image)
        of_task: dict[str, Any] = {}
        for question in reference.ask(scene, seed):
            of_task.setdefault(question.task, question)
        asked = [of_task[task] for task in _turned(sorted(of_task), number * QUESTIONS)][:QUESTIONS]
        found += [Question(f"scene {number + 1}", image, each.text, each.answer, each.task) for each in asked]
    return found


def _turned(words: list[str], by: int) -> list[str]:
    by %= max(len(words), 1)
    return words[by:] + words[:by]
