"""Write a caption for every image of a folder, in batches, with half of the visual tokens.

python examples/batch_caption.py photos --batch-size 16 > captions.jsonl
Needs torchvision of the same build as torch, for the processor of a Qwen: pip install torchvision
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="with .jpg and .png files")
parser.add_argument("--model", default="Qwen/Qwen2.5-VL-3B-Instruct", help="hub id or folder")
parser.add_argument("--prompt", default="Describe the image in one sentence.")
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--max-new-tokens", type=int, default=48)
args = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(args.model, padding_side="left")  # answers begin where prompts end
as_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True}

foveate.compress(model, foveate.DivPrune(keep=0.5))  # images of any size, each with its own half
files = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
for start in range(0, len(files), args.batch_size):
    batch, ask = files[start : start + args.batch_size], {"type": "text", "text": args.prompt}
    asked = [[{"type": "image", "image": Image.open(path)}, ask] for path in batch]
    chats = [[{"role": "user", "content": content}] for content in asked]
    inputs = processor.apply_chat_template(chats, add_generation_prompt=True, **as_tensors).to(device)
    ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
    captions = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for path, caption in zip(batch, captions):
        print(json.dumps({"image": path.name, "caption": caption.strip()}), flush=True)
