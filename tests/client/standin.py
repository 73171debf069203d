"""A process that stands in for server, scheduler and worker: ready at once, ends on SIGTERM.

Run as ``python standin.py BEHAVIOUR``; it imports nothing of ours, so it starts quickly.
"""

import json
import os
import signal
import sys


def write_ready(**facts: object) -> None:
    path = os.environ["CYCLORA_READY_FILE"]
    with open(path + ".part", "w") as file:
        json.dump(facts, file)
    os.replace(path + ".part", path)


def end(*_: object) -> None:
    print("ended on request", flush=True)
    sys.exit(0)


behaviour = sys.argv[1]
signal.signal(signal.SIGTERM, end)
print("started", behaviour, os.environ.get("CYCLORA_PORT", ""), flush=True)
if behaviour.startswith("exit"):
    print("no such folder", flush=True)
    sys.exit(int(behaviour.removeprefix("exit")))
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "loading":
    write_ready(stage="loading weights", progress=0.25)
else:
    port = int(os.environ.get("CYCLORA_PORT", "0")) or 4321
    write_ready(pid=os.getpid(), port=port, tokenizer_path="/tokenizer", ready=True)
while True:
    signal.pause()
