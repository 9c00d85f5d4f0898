"""Ask a server that compresses visual tokens. Its API is OpenAI's, so nothing here knows of foveate.

pip install openai                  # here; the server needs foveate[vllm]
foveate serve Qwen/Qwen2.5-VL-3B-Instruct --method luvc --keep 0.5     # in another terminal
python examples/serve_client.py --image cat.jpg --prompt "What is the cat doing?"
"""

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", default="http://localhost:8000/v1")
parser.add_argument("--model", help="by default the one that is served")
parser.add_argument("--image", type=Path, required=True)
parser.add_argument("--prompt", default="Describe the image.")
parser.add_argument("--max-tokens", type=int, default=64)
args = parser.parse_args()

client = OpenAI(base_url=args.url, api_key="none")
kind = mimetypes.guess_type(args.image)[0] or "image/png"
data = base64.b64encode(args.image.read_bytes()).decode()
image = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
answer = client.chat.completions.create(
    model=args.model or client.models.list().data[0].id,
    messages=[{"role": "user", "content": [image, {"type": "text", "text": args.prompt}]}],
    max_tokens=args.max_tokens,
    temperature=0,
)
print(answer.choices[0].message.content)
if answer.usage is not None:
    print("tokens of the prompt, with what is left of the image:", answer.usage.prompt_tokens)
