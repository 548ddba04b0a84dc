"""An epoch of ResNet50 by compiled PyTorch beside ours, turn by turn, by the depth that is trained.

    pip install torch timm        # in an environment of its own, whose Python --torch names; never a dependency
    python benchmarks/torch_peer.py --data ham10000_300x225.zip --weights FILE.h5 --torch VENV/bin/python

PyTorch trains what a user would write: timm's resnet50 in channels_last, bfloat16 by autocast, `torch.compile`,
BatchNorm in inference mode, AdamW on the last stages alone, batches in memory, nothing augmented; its epoch is the
median time of a step of 64 images times the steps, and validation's batches. Ours is the second epoch of a training
under Ray: augmented, with validation and checkpoint; depths 1 and 2 on ACTIVATIONS, made before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Annotated

import numpy as np
import typer

from ham_ray import console

BATCH, STEPS = 64, 12
PEER = """
import json, sys, time
import torch, timm

depth, size, steps = (int(word) for word in sys.argv[1:4])
torch.set_num_threads(int(sys.argv[4]))
torch.manual_seed(0)
model = timm.create_model("resnet50", num_classes=7).to(memory_format=torch.channels_last).eval()
stages = [[model.fc], [model.layer4], [model.layer3], [model.layer2], [model.layer1], [model.conv1]]
for parameter in model.parameters():
    parameter.requires_grad = False
for stage in stages[: depth + 1]:
    for module in stage:
        for parameter in module.parameters():
            parameter.requires_grad = True
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        for parameter in module.parameters():
            parameter.requires_grad = False
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
images = torch.rand(64, 3, size, size).to(memory_format=torch.channels_last)
labels = torch.randint(0, 7, (64,))
compiled = torch.compile(model)

def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(compiled(images).float(), labels)
    loss.backward()
    optimizer.step()

@torch.no_grad()
def forward():
    with torch.autocast("cpu", torch.bfloat16):
        compiled(images)

def seconds(work):
    for _ in range(3):
        work()
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]

print(json.dumps({"step": seconds(step), "forward": seconds(forward), "torch": torch.__version__}))
"""


def main(
    data: Annotated[str, typer.Option(help="HAM10000 archive or IMAGES table")],
    torch: Annotated[str, typer.Option(help="Python of an environment with torch and timm")],
    weights: Annotated[str, typer.Option(help="none, or a ResNet50 no-top .h5 file")] = "none",
    depths: Annotated[str, typer.Option(help="unfreeze depths, separated by commas")] = "5,2,1",
    rounds: Annotated[int, typer.Option(help="turns of each")] = 2,
    depth: Annotated[int | None, typer.Option(hidden=True)] = None,
    folder: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a table, a line a depth."""
    if depth is not None:
        print(json.dumps(_ours(data, weights, depth, folder)))
        return
    from ham_ray.hardware import cores, machine

    print(machine())
    print("| unfreeze depth | PyTorch, s an epoch | images/s | ours, s an epoch | images/s | PyTorch / ours |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for one in map(int, depths.split(",")):
            peers, own = [], []
            for turn in range(rounds):
                mine = [sys.executable, __file__, *sys.argv[1:], "--depth", str(one), "--folder", f"{place}/{one}"]
                own.append(_last(mine))
                peers.append(_last([torch, "-c", PEER, str(one), str(own[0]["size"]), str(STEPS), str(cores())]))
                print(f"depth {one}, turn {turn + 1}: {own[-1]} {peers[-1]}", file=console.terminal(), flush=True)
            print(_line(one, peers, own), flush=True)


def _ours(data: str, weights: str, depth: int, folder: str) -> dict[str, float]:
    """Time the second epoch of a training under Ray, in seconds."""
    import training

    from ham_ray.cluster import connected
    from ham_ray.recipe import baseline
    from ham_ray.training.input_pipeline import split_rows
    from ham_ray.workflows.steps import choices

    same = {"epochs": 2, "patience": 0, "batch_size": BATCH, "augmentation": "light", "unfreeze_depth": depth}
    recipe = baseline("resnet50_finetuned").changed(**same, head_epochs=0, precision=choices.precision("auto", False))
    with connected():
        images = choices.images(data, folder, None, False, [recipe])
        start = choices.weights([weights], [recipe], images)["resnet50"]
        tables, _ = training._tables(images, recipe, start, folder)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            timed = training._ours(images, recipe, start, 1, tables, place)
    rows = split_rows(images, recipe)
    steps = len(rows["training"]) // BATCH
    return {"seconds": timed.later, "steps": steps, "validation": len(rows["validation"]), "size": images.size}


def _line(depth: int, peers: list[dict], own: list[dict]) -> str:
    steps, held_out = own[0]["steps"], own[0]["validation"]
    theirs = np.median([steps * peer["step"] + held_out / BATCH * peer["forward"] for peer in peers])
    ours = np.median([one["seconds"] for one in own])
    pace = f"{BATCH / np.median([peer['step'] for peer in peers]):.0f}"
    return f"| {depth} | {theirs:.1f} | {pace} | {ours:.1f} | {steps * BATCH / ours:.0f} | {theirs / ours:.2f} |"


def _last(command: list[str]) -> dict:
    """Run a process and read the last line that it prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    console.run(main)
