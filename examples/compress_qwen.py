"""Ask a vision-language model about an image, first as it is and then with half of its visual tokens.

python examples/compress_qwen.py --image cat.jpg --prompt "What is the cat doing?" --method luvc --keep 0.5
Needs torchvision of the same build as torch, for the processor of a Qwen: pip install torchvision
"""

import argparse

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="Qwen/Qwen2.5-VL-3B-Instruct", help="hub id or folder")
parser.add_argument("--image", required=True, help="file")
parser.add_argument("--prompt", default="Describe the image.")
parser.add_argument("--method", default="luvc", help="`foveate methods` lists them")
parser.add_argument("--keep", type=float, default=0.5, help="share of visual tokens in a decoder layer, on average")
parser.add_argument("--max-new-tokens", type=int, default=64)
args = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(args.model)
as_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
image = {"type": "image", "image": Image.open(args.image)}
chat = [{"role": "user", "content": [image, {"type": "text", "text": args.prompt}]}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **as_tensors).to(device)


def answer() -> str:
    ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print("stock model:", answer())
with foveate.compress(model, args.method, keep=args.keep) as handle:
    print(f"{args.method}, keep={args.keep}: {answer()}\n{handle.report()}")
