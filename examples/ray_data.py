"""Answer a file of questions about images with Ray Data: as many vLLM engines as you have GPUs, all with fewer visual tokens.

pip install 'foveate[vllm]'
pip install --no-deps 'ray>=2.60' msgpack pandas pyarrow jsonref python-dateutil six     # ray[llm] would bring an older vLLM
python examples/ray_data.py --data photos.jsonl --model Qwen/Qwen2.5-VL-7B-Instruct --method luvc --keep 0.5 --workers 4

A line of the file is {"image": "cat.jpg", "prompt": "What is the cat doing?"}; with "keep": 0.3 it asks for a budget of its
own, up to --limit. foveate must be installed wherever workers run, as vLLM finds it by its name. Answers are JSON lines.
"""

import argparse
from pathlib import Path

import ray
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--method", default="luvc")
parser.add_argument("--keep", type=float, default=0.5)
parser.add_argument("--limit", type=float, help="the largest keep that a line may ask for")
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--gpus", type=float, default=1, help="of each worker; 0 on a CPU")
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--dtype", default="auto")
parser.add_argument("--max-model-len", type=int, default=8192)
parser.add_argument("--max-tokens", type=int, default=64)
parser.add_argument("--out", type=Path, default=Path("answers"))
args = parser.parse_args()

FOLDER, TOKENS = args.data.parent.resolve(), args.max_tokens  # what workers are sent has no parser in it


def ask(row: dict) -> dict:
    """A question as the stages expect it: a chat with a place for the image, which goes to vLLM as it is."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]}]
    asked = {"messages": chat, "multimodal_data": {"image": Image.open(FOLDER / row["image"]).convert("RGB")}}
    asked["sampling_params"] = {"temperature": 0, "max_tokens": TOKENS}
    keep = row.get("keep")
    if keep is not None and keep == keep:  # a column has NaN where a line says nothing
        asked["mm_processor_kwargs"] = {"foveate": {"keep": keep}}
    return asked


def tell(row: dict) -> dict:
    """What is kept of an answer."""
    return {
        "image": row["image"],
        "prompt": row["question"],
        "answer": row["generated_text"],
        "tokens": row["num_input_tokens"],
    }


foveate = {"method": args.method, "keep": args.keep} | ({} if args.limit is None else {"limit": args.limit})
config = vLLMEngineProcessorConfig(
    model_source=args.model,
    engine_kwargs={
        "additional_config": {"foveate": foveate},
        "dtype": args.dtype,
        "max_model_len": args.max_model_len,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
    },
    placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": args.gpus}},
    concurrency=(args.workers, args.workers),
    batch_size=args.batch_size,
    log_engine_metrics=False,  # they need more of what ray[llm] would install
    tokenize_stage=False,
    detokenize_stage=False,
)
# `prompt` is what the stages call the text that they make, so the question has another name while they run.
questions = ray.data.read_json(str(args.data), lines=True).map(lambda row: {**row, "question": row["prompt"]})
answers = build_processor(config, preprocess=lambda row: {**row, **ask(row)}, postprocess=tell)(questions)
answers.write_json(str(args.out.resolve()))
print(f"{ray.data.read_json(str(args.out.resolve())).count()} answers in {args.out}")
