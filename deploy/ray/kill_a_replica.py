"""What clients lose when a replica is killed under load, and how soon it is replaced.

    python deploy/ray/kill_a_replica.py --requests 40 --clients 6

Run it beside `serve run`, on the machine of the replicas. Clients ask greedily, each after its last answer;
in the middle one replica gets SIGKILL. Every answer is compared with what the same prompt got before.
"""

import argparse
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

PROMPTS = ["Why does bread rise?", "Name three rivers.", "What is a prime number?", "Tell me of the moon."]


def replicas() -> list[int]:
    """Return the ids of the replicas' processes."""
    titles = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return sorted(number for number, title in titles.items() if title.startswith(b"ray::ServeReplica"))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--clients", type=int, default=6)
    asked = parser.parse_args()
    client = openai.OpenAI(base_url=asked.url, api_key="none", max_retries=0, timeout=120)
    (model,) = client.models.list()

    def answer(prompt: str) -> str:
        chunks = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=32,
            temperature=0,
            stream=True,
        )
        told = [choice for chunk in chunks for choice in chunk.choices]
        if not told or told[-1].finish_reason is None:
            raise ConnectionError("the stream was cut off")
        return "".join(choice.delta.content or "" for choice in told)

    expected = {prompt: answer(prompt) for prompt in PROMPTS}
    before, done, lock = replicas(), [0], threading.Lock()
    killed = threading.Event()

    def ask(number: int) -> tuple[str, bool]:
        prompt, after = PROMPTS[number % len(PROMPTS)], killed.is_set()
        try:
            what = "right" if answer(prompt) == expected[prompt] else "wrong"
        except (openai.OpenAIError, ConnectionError) as error:
            what = f"lost ({type(error).__name__}: {error})"
        with lock:
            done[0] += 1
        return what, after

    with ThreadPoolExecutor(asked.clients) as pool:
        results = [pool.submit(ask, number) for number in range(asked.requests)]
        while done[0] < asked.requests // 3:
            time.sleep(0.05)
        os.kill(before[0], signal.SIGKILL)
        began = time.perf_counter()
        killed.set()
        while len([one for one in replicas() if one not in before]) < 1:
            time.sleep(0.05)
        found = [result.result() for result in results]
    while not client.models.list().data:
        time.sleep(0.05)
    print(f"{len(before)} replicas, {asked.requests} requests of {asked.clients} clients; one replica killed")
    print(f"right: {sum(what == 'right' for what, _ in found)}, wrong: {sum(w == 'wrong' for w, _ in found)}")
    for what, after in found:
        if what.startswith("lost"):
            print(f"{what}, asked {'after' if after else 'before'} the kill")
    print(f"another process began within {time.perf_counter() - began:.1f} s, while the load went on")


if __name__ == "__main__":
    main()
