"""In which words a model is asked the reference benchmark's questions: the benchmark's own, or English ones.

The small reference models know a closed vocabulary, and a question to them is four of its words. Any other tokenizer
writes English, so its model is asked as a person would ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveate.lab import needs

if TYPE_CHECKING:
    from foveate_reference import Sample


@dataclass(frozen=True)
class Speech:
    """How the benchmark speaks to a model.

    Attributes:
        english: questions and answers are English; else words of the benchmark, each of them a token.
        longest: tokens of an answer at most, its end included where it may have several.
    """

    english: bool = False
    longest: int = 1

    def question(self, task: str, text: str) -> str:
        """What a question of a task says, its four words given."""
        return needs.reference().language.question_in_english(task, text) if self.english else text

    def answer(self, word: str) -> str:
        """What an answer says."""
        return needs.reference().language.answer_in_english(word) if self.english else word

    def sample(self, sample: Sample) -> Sample:
        """A question of the benchmark with its answers, in these words."""
        return needs.reference().language.in_english(sample) if self.english else sample


def speech_of(processor: Any) -> Speech:
    """How the benchmark speaks to the model of a processor; in its own words where the tokenizer knows neither."""
    if not unknown(processor.tokenizer):
        return Speech()
    language, tokenizer = needs.reference().language, processor.tokenizer
    answers = [language.answer_in_english(word) for word in needs.reference().ANSWERS]
    written = tokenizer([*language.PHRASES.values(), *answers], add_special_tokens=False)["input_ids"]
    if any(tokenizer.unk_token_id in ids for ids in written):
        return Speech()
    return Speech(True, 1 + max(len(ids) for ids in written[-len(answers) :]))


def unknown(tokenizer: Any) -> list[str]:
    """Words of the benchmark for which a tokenizer has no token of their own."""
    words = needs.reference().vocabulary.WORDS
    ids = tokenizer(list(words), add_special_tokens=False)["input_ids"]
    return [word for word, tokens in zip(words, ids) if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id]
