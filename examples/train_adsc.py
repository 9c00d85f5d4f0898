"""Train a LoRA adapter with which a model answers from a third of its visual tokens, and use it.

    python examples/train_adsc.py --data chats.jsonl --out adapter

Each line of the data is a chat about images, as TRL and LLaMA-Factory have them: ``{"messages": [{"role": "user", "content":
"<image>What is it?"}, {"role": "assistant", "content": "A cat."}], "images": ["cat.jpg"]}``. Needs ``foveate[train]``,
and torchvision of the same build as torch, for the processor of a Qwen.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate.training import data
from foveate.training.recipe import Recipe
from foveate.training.run import Plan, Run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="Qwen/Qwen2.5-VL-3B-Instruct", help="hub id or folder")
parser.add_argument("--data", required=True, help="file, folder or hub id")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch", type=int, default=8)
args = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(args.model)
recipe = Recipe(steps=args.steps, batch=args.batch)
curriculum = "hard-to-easy"  # first a ninth of the tokens, then two ninths, then a third
method = foveate.ADSC(keep=1 / 3)
plan = Plan(out=args.out, model=args.model, method=method, curriculum=curriculum, recipe=recipe, device=device)
trained = Run(model, processor, data.load(args.data), plan, tell=print).train()
print(f"{trained.steps} steps, the loss went from {trained.losses[0]:.2f} to {trained.losses[-1]:.2f}")

model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(device)
print("The adapter and its method:", foveate.compress(model, str(trained.folder)))
