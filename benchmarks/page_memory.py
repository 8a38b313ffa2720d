"""Resident memory of the page while visitors come and go, each with one photograph.

    python benchmarks/page_memory.py
    python benchmarks/page_memory.py --visitors 150 --image-size 518 --width 384 --heads 6

Serves the page with random weights in a process of its own. Each visitor speaks to it as a browser does (page, socket,
upload), waits for the pictures, and closes the tab. Prints a table in Markdown, with the memory after all tabs are
closed and their time to reconnect has passed. `--tiny` only shows that the script runs: its numbers mean nothing.
"""

import argparse
import ast
import asyncio
import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np
import socketio
import torch
from PIL import Image

from dinov2_hf.backbones import Dinov2Config, Dinov2Model

CLOSED = 12
"""Seconds after which a closed tab is forgotten: the page waits for it to reconnect."""


@contextlib.contextmanager
def served(args, folder: Path):
    """The page in a process of its own: its address and its process."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=args.width,
        num_hidden_layers=args.blocks,
        num_attention_heads=args.heads,
        patch_size=14,
        image_size=args.image_size,
    )
    Dinov2Model(config).save_pretrained(folder)
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    command = [sys.executable, "-m", "dinov2_hf", "visualize", "page", "--model", str(folder), "--device", "cpu"]
    process = subprocess.Popen([*command, "--image-size", str(args.image_size), "--port", str(port)])
    try:
        while process.poll() is None:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait()


async def visit(address: str, photograph: bytes, name: str) -> None:
    """Opens the page, gives it a photograph, waits for the pictures and closes the tab."""
    shown = asyncio.Event()
    async with aiohttp.ClientSession() as session, session.get(address) as response:
        page = await response.text()
        client = socketio.AsyncClient(reconnection=False)

        @client.on("update")
        def update(elements: dict) -> None:
            if "Similarity to row" in json.dumps(elements):
                shown.set()

        query = ast.literal_eval(re.search(r"query: (\{.*?\})", page)[1])
        query |= {"document_id": name, "tab_id": name, "old_tab_id": ""}
        words = "&".join(f"{key}={str(value).lower() if value is True else value}" for key, value in query.items())
        await client.connect(f"{address}/?{words}", socketio_path="/_nicegui_ws/socket.io", transports=["websocket"])
        form = aiohttp.FormData()
        form.add_field("file", photograph, filename=f"{name}.jpg", content_type="image/jpeg")
        async with session.post(f"{address}/upload/{query['client_id']}", data=form) as taken:
            taken.raise_for_status()
        await asyncio.wait_for(shown.wait(), 120)
        await client.disconnect()


def resident(process: subprocess.Popen) -> float:
    """Memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def photographs(side: int):
    """JPEG files of smooth noise, each another."""
    generator = np.random.default_rng(0)
    while True:
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        yield buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--every", type=int, default=10, help="visitors from one line of the table to the next")
    parser.add_argument("--image-size", type=int, default=518)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.visitors, args.every, args.image_size, args.width, args.heads, args.blocks = 2, 1, 56, 32, 2, 1

    with tempfile.TemporaryDirectory() as folder, served(args, Path(folder)) as (address, process):
        print(f"width {args.width}, {args.heads} heads, {args.blocks} blocks, images of {args.image_size} px\n")
        print("| visitors | resident memory, MB | above the empty page, MB |\n| ---: | ---: | ---: |")
        start = resident(process)
        print(f"| 0 | {start:,.0f} | |", flush=True)
        for number, photograph in zip(range(1, args.visitors + 1), photographs(800)):
            asyncio.run(visit(address, photograph, f"visitor-{number}"))
            if number % args.every == 0:
                memory = resident(process)
                print(f"| {number} | {memory:,.0f} | {memory - start:,.0f} |", flush=True)
        time.sleep(CLOSED * (not args.tiny))
        memory = resident(process)
        print(f"| {args.visitors}, all tabs closed | {memory:,.0f} | {memory - start:,.0f} |")


if __name__ == "__main__":
    main()
