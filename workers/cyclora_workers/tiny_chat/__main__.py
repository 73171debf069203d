"""Rebuild the built-in model: ``python -m cyclora_workers.tiny_chat --out DIR``."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from cyclora_workers.tiny_chat.build import Recipe, build
from cyclora_workers.tiny_chat.measure import pair_accuracy


def main() -> None:
    """Build, then load the files back and measure them."""
    parser = argparse.ArgumentParser(
        prog="python -m cyclora_workers.tiny_chat", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--num-steps", type=int, default=Recipe.num_steps)
    args = parser.parse_args()

    started_mono_s = time.monotonic()
    loss = build(args.out, replace(Recipe(), num_steps=args.num_steps))
    minutes = (time.monotonic() - started_mono_s) / 60
    num_bytes = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"built in {minutes:.1f} min, answer loss {loss:.4f}, {num_bytes / 1e6:.1f} MB")

    tokenizer = AutoTokenizer.from_pretrained(args.out)
    model = AutoModelForCausalLM.from_pretrained(args.out)
    accuracy = pair_accuracy(model, tokenizer, num_problems=1000, seed=1)
    print(f"pair task, 1000 held-out problems at temperature 1: {accuracy:.3f} right")


if __name__ == "__main__":
    main()
