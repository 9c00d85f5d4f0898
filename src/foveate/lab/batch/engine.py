"""vLLM's offline engine, asked in batches of chats as `foveate.lab.asker.Asker` is."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from foveate.errors import InputError, first_line, ours_in
from foveate.lab import needs
from foveate.lab.asker import Answer
from foveate.lab.chats import Chat
from foveate.lab.checks import REFERENCES
from foveate.lab.loading import load_processor
from foveate.lab.terminal import CommandError
from foveate.method import Method

#: words of ours, which would be said twice
_OURS = {"model": "--model", "additional_config": "--method", "dtype": "--dtype"}


class Offline:
    """An engine in which a method acts; it makes batches of whatever it is given, as its memory allows.

    Args:
        llm: a `vllm.LLM`.
        processor: of the model, whose chat template makes prompts of chats.
    """

    def __init__(self, llm: Any, processor: Any) -> None:
        self._llm, self._processor = llm, processor

    def generate(self, chats: Sequence[Chat], options: Mapping[str, Any], most: int) -> list[Answer]:
        """Continue each chat greedily, by at most so many tokens."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError

        prompts = [self._prompt(chat) for chat in chats]
        begin = getattr(self._processor.tokenizer, "bos_token", None)
        begun = bool(begin) and all(prompt["prompt"].startswith(begin) for prompt in prompts)
        penalty = self._llm.get_default_sampling_params().repetition_penalty  # as the model's own config says
        sampling = SamplingParams(temperature=0, max_tokens=most, repetition_penalty=penalty)
        words = {"add_special_tokens": not begun}
        try:
            asked = self._llm.generate(prompts, sampling, use_tqdm=False, tokenization_kwargs=words)
        except VLLMClientError as error:  # a prompt that is too long, or has more images than it may
            raise InputError(first_line(error)) from None
        said = [output.outputs[0] for output in asked]
        return [Answer(one.text.strip(), len(one.token_ids), None) for one in said]

    def _prompt(self, chat: Chat) -> dict[str, Any]:
        text = self._processor.apply_chat_template([chat.messages], tokenize=False, add_generation_prompt=True)[0]
        parts = [part for message in chat.messages for part in message["content"]]
        data: dict[str, list[Any]] = {}
        if images := [part["image"] for part in parts if part["type"] == "image"]:
            data["image"] = images
        if videos := [part["video"] for part in parts if part["type"] == "video"]:
            data["video"] = [(video, {**film, "do_sample_frames": False}) for video, film in zip(videos, chat.films)]
        return {"prompt": text, "multi_modal_data": data} if data else {"prompt": text}


@contextmanager
def opened(model: str, method: Method, dtype: str, words: str) -> Iterator[Offline]:
    """Start an engine, and stop it at the end.

    Args:
        model: a folder, a hub id, or a reference model.
        method: what acts in it.
        dtype: ``auto`` (as saved; the reference models: float32), or its name.
        words: further options, as ``vllm serve`` takes them.

    Raises:
        CommandError: there is no vLLM, or it does not know an option.
        FoveateError: the method cannot be served there.
    """
    needs.check("vllm", "--engine vllm")
    # Before vLLM is imported: what it says of itself is for a server's log, and must not be among what this command prints.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    folder = str(needs.reference().PATHS[REFERENCES[model]]) if model in REFERENCES else model
    options = {"dtype": "float32" if model in REFERENCES and dtype == "auto" else dtype, **_options(words)}
    processor = load_processor(model)
    try:
        llm: Any = LLM(folder, additional_config={"foveate": method.to_dict()}, **options)
    except (ValueError, RuntimeError, OSError) as error:
        raise CommandError(f"vLLM does not start: {ours_in(error) or first_line(error)}") from None
    try:
        yield Offline(llm, processor)
    finally:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def _options(words: str) -> dict[str, Any]:
    """What ``vllm serve`` would make of these words, where that is not what it does by default."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> NoReturn:
        raise CommandError(f"--engine-args {words!r}: {message}")

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    parser.error = refuse
    plain, given = (vars(parser.parse_args(args)) for args in ([], shlex.split(words)))
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    found = {name: value for name, value in given.items() if name in known and value != plain[name]}
    for name, option in _OURS.items():
        if name in found:
            refuse(f"{option} of this command says that")
    return found
