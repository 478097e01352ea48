"""Ask a bundle that `serve_bundle.py` serves, and print the answer while it grows.

python deploy/triton/ask.py "Why does bread rise?"
"""

import argparse
import json

import numpy as np
from pytriton.client import DecoupledModelClient


def main() -> None:
    """Parse, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--name", default="bundle")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    asked = parser.parse_args()
    messages = json.dumps([{"role": "user", "content": asked.prompt}]).encode()
    with DecoupledModelClient(asked.url, asked.name) as client:
        for response in client.infer_sample(
            messages=np.array([messages]), max_new_tokens=np.array([asked.max_new_tokens], np.int32)
        ):
            print(response["text"].item().decode(), end="", flush=True)
            reason = response["finish_reason"].item().decode()
    print(f"\nfinish: {reason}")


if __name__ == "__main__":
    main()
