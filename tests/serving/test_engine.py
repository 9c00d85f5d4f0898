"""What an engine does with requests beyond answering one: chunks, preemption, shared prefixes, many at once, samples."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from served import Answer, ask, engine, expected, request

from foveate import ADSC, IPCV, LUVC, OIM, VTW, FastV, Method, Random

FAMILY = "qwen2_5_vl"
INNER: dict[str, Method] = {"luvc": LUVC(), "ipcv + adsc": IPCV() + ADSC(keep=0.4)}
EVERY: dict[str, Method] = {"oim": OIM(), "random": Random(keep=0.5), **INNER}


def many(n: int, shortest: int = 0) -> list[dict[str, Any]]:
    """Requests with none, one or two images of several sizes, and texts of several lengths."""
    sizes = [(24, 32), (48, 48), (40, 24), (32, 64)]
    found = []
    for i in range(n):
        chosen = [sizes[(i + k) % 4] for k in range(i % 3)]
        text = " ".join(["@"] * len(chosen) + ["the cat"] * (shortest + i % 5 + 1))
        found.append(request(FAMILY, text, *chosen, seed=i))
    return found


def agree(found: list[Answer], want: list[Answer]) -> None:
    assert [each.tokens for each in found] == [each.tokens for each in want]
    assert all(a.agrees(b) for a, b in zip(found, want, strict=True))


def leaves_to_the_matrix(name: str) -> bool:
    """Of two that act before the language model alone, `make test-vllm` asks one."""
    return name == "random"


@pytest.mark.parametrize("name", EVERY)
def test_many_at_once_say_what_each_says_alone(name: str) -> None:
    wanted = many(40)
    want = expected(FAMILY, EVERY[name], wanted)
    with engine(FAMILY, EVERY[name], max_num_seqs=16) as llm:
        agree(ask(llm, wanted), want)


@pytest.mark.parametrize("name", EVERY)
def test_chunks(name: str) -> None:
    """Prompts come in pieces of at most 96 tokens, several requests in a step; images whole where tokens leave later."""
    wanted = many(12, shortest=40)
    want = expected(FAMILY, EVERY[name], wanted)
    small: dict[str, Any] = dict(
        mm_processor_kwargs={"max_pixels": 64 * 64}, limit_mm_per_prompt={"image": 2, "video": 0}
    )
    with engine(FAMILY, EVERY[name], max_num_batched_tokens=96, **small) as llm:
        agree(ask(llm, wanted), want)


def test_an_image_waits_for_a_step_with_room() -> None:
    """A step takes 300 tokens: one image, and some text of another request, whose image would fit in part."""
    wanted = [request(FAMILY, "the cat@" + "the dog " * 60, (128, 128), seed=i) for i in range(4)]
    want = expected(FAMILY, VTW(layer=2), wanted)
    small: dict[str, Any] = dict(
        mm_processor_kwargs={"max_pixels": 128 * 128}, limit_mm_per_prompt={"image": 1, "video": 0}
    )
    with engine(FAMILY, VTW(layer=2), max_num_batched_tokens=300, **small) as llm:
        agree(ask(llm, wanted), want)


@pytest.mark.parametrize("name", INNER)
def test_preemption(name: str) -> None:
    """Too few blocks for all: some requests give theirs up and are computed again."""
    wanted = many(8, shortest=12)
    want = expected(FAMILY, INNER[name], wanted, new=40)
    # Each of the six layers is a group with blocks of its own.
    options: dict[str, Any] = dict(
        block_size=32, num_gpu_blocks_override=102, max_model_len=512, disable_log_stats=False
    )
    with engine(FAMILY, INNER[name], **options) as llm:
        agree(ask(llm, wanted, max_tokens=40), want)
        preempted = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
    assert sum(preempted) > 0, "nothing was preempted"


def hits(llm: Any) -> int:
    """Tokens that were found in the prefix cache."""
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == "vllm:prefix_cache_hits")


def test_shared_prefixes() -> None:
    """With a method before the language model, an image and the text behind it are shared, too."""
    wanted = [request(FAMILY, "the cat " * 40 + "@ " + word, (48, 48), seed=1) for word in ("dog", "bird", "cat")]
    want = expected(FAMILY, OIM(), wanted)
    with engine(FAMILY, OIM(), block_size=32, disable_log_stats=False) as llm:
        agree([ask(llm, [each])[0] for each in wanted], want)
        assert hits(llm) > 2 * 80


def test_the_text_before_an_image_is_shared() -> None:
    """With a method inside the language model, whose deeper layers have other slots behind an image: text alone, the same
    image with other words behind it, another image, and a budget of its own, one after another and at once."""
    method, system = IPCV() + ADSC(keep=0.4), "the cat " * 40
    wanted = [request(FAMILY, system + "@ " + word * 20, (48, 48), seed=1) for word in ("dog ", "bird ", "dog ")]
    wanted += [request(FAMILY, system + "the dog " * 20), request(FAMILY, system + "@ the", (40, 24), seed=2)]
    wanted += [request(FAMILY, system + "the dog " * 20 + "@", (40, 24), seed=2)]
    want = expected(FAMILY, method, wanted)
    with engine(FAMILY, method, block_size=32, disable_log_stats=False) as llm:
        length = want[0].prompt
        agree([ask(llm, [each])[0] for each in wanted], want)
        text = len(llm.get_tokenizer().encode("user: " + system)) // 32 * 32
        longer = len(llm.get_tokenizer().encode("user: " + system + "the dog " * 20)) // 32 * 32
        assert 32 <= text < longer < length
        assert hits(llm) == 4 * text + longer
        agree(ask(llm, wanted), want)
        agree(ask(llm, wanted[::-1]), want[::-1])


@pytest.mark.parametrize("name", INNER)
def test_several_samples(name: str) -> None:
    """Each is what it would be alone."""
    wanted = many(3)
    with engine(FAMILY, INNER[name]) as llm:
        together = ask(llm, wanted, n=3, temperature=1.0, seed=5)
        alone = [ask(llm, wanted, temperature=1.0, seed=5 + i) for i in range(3)]
    agree(together, [alone[i][k] for k in range(3) for i in range(3)])


def test_a_score_of_the_question_wants_whole_prompts() -> None:
    wanted = many(12, shortest=5)
    want = expected(FAMILY, FastV(ratio=0.5), wanted)
    options: dict[str, Any] = dict(enable_chunked_prefill=False, max_num_batched_tokens=1024, block_size=32)
    with engine(FAMILY, FastV(ratio=0.5), num_gpu_blocks_override=216, **options) as llm:
        agree(ask(llm, wanted), want)
        assert not llm.llm_engine.vllm_config.cache_config.enable_prefix_caching  # or a beginning might be missing
