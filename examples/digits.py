"""What the studies share: training, scores and tables; and the pictures of those on handwritten digits.

The digits are those that scikit-learn ships. A picture has as many of them as found a free place, and every pixel of
ink is to be told which digit it belongs to. Training and test pictures have no digit in common.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

SIZE = 64  # of a picture, in pixels
CLASSES = 11  # the ten digits and the ground
BATCH = 8
SETTLE = 1 / 3  # of the steps: how long what is frozen at first stays so

Pictures = tuple[Tensor, Tensor]  # (N, C, SIZE, SIZE): the ink first; (N, SIZE, SIZE): classes
Scale = Callable[[int, np.random.Generator], float]  # of a digit centred at a row; one of scale 1 has 8 x 8 pixels
Scores = dict[str, float]


class Job(NamedTuple):
    """One network to be trained."""

    name: str
    optimizer: str
    learning_rate: float
    seed: int
    steps: int
    pictures: int
    device: str
    autocast: bool = False  # to bfloat16


class Result(NamedTuple):
    job: Job
    scores: Scores


# The pictures --------------------------------------------------------------------------------------------------------


@functools.lru_cache(1)
def make_pictures(scale: Scale, seed: int, count: int) -> tuple[Pictures, Pictures]:
    """For training and for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    rng = np.random.default_rng(seed)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.4, random_state=seed, stratify=digits.target)
    return (
        compose(images[train], labels[train], scale, count, rng),
        compose(images[test], labels[test], scale, 100, rng),
    )


def compose(images: Tensor, labels: Tensor, scale: Scale, count: int, rng: np.random.Generator) -> Pictures:
    ink = torch.zeros(count, SIZE, SIZE)
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for picture, truth in zip(ink, classes, strict=True):
        taken = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for _ in range(40):  # attempts, of which those count that find a free place
            y, x = rng.integers(0, SIZE, 2)
            size = round(8 * scale(y, rng))
            top, left = y - size // 2, x - size // 2
            if min(top, left) < 0 or max(top, left) + size > SIZE:
                continue
            place = slice(top, top + size), slice(left, left + size)
            if taken[place].any():
                continue
            taken[place] = True
            index = rng.integers(len(labels))
            drawn = F.interpolate(images[index][None, None], (size, size), mode="bilinear")[0, 0]
            picture[place] = drawn
            truth[place] = torch.where(drawn > 0.4, labels[index] + 1, 0)
    ink += 0.1 * torch.tensor(rng.standard_normal(ink.shape), dtype=torch.float32)
    return ink[:, None], classes


# Training ------------------------------------------------------------------------------------------------------------


def fit(network: nn.Module, pictures: Pictures, job: Job, frozen: Iterable[nn.Module] = ()) -> float:
    """Train all parameters alike, but for what is frozen at first. Return the mean loss of the last twenty steps."""
    torch.backends.cudnn.allow_tf32 = False  # so that float32 is the same for all convolutions
    network.to(job.device).train()
    images, classes = (tensor.to(job.device) for tensor in pictures)
    options = {"momentum": 0.9} if job.optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, job.optimizer)(network.parameters(), job.learning_rate, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 10 * step / job.steps, 1.5 * (1 - step / job.steps))
    )
    losses = []
    for step in range(job.steps):
        for module in frozen:
            module.requires_grad_(step >= SETTLE * job.steps)
        batch = torch.randint(len(images), (BATCH,)).to(job.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=job.autocast):
            output = network(images[batch])
        weight = torch.ones(output.shape[1], device=job.device)
        weight[0] = 0.3  # most of a picture is ground
        loss = F.cross_entropy(output.float(), classes[batch], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses[-20:]).mean().item()


@torch.no_grad()
def evaluate(network: nn.Module, pictures: Pictures, parts: Sequence[str] = ()) -> Scores:
    """In float32, whatever the network was trained in.

    The mean IoU of all classes but the ground, and the share of ink that is classified rightly in equal parts of the
    picture, named from the top to the bottom.
    """
    network.eval()
    device = next(network.parameters()).device
    images, classes = (tensor.to(device) for tensor in pictures)
    scores = torch.cat([network(part) for part in images.split(50)])
    predicted, things = scores.argmax(1), range(1, scores.shape[1])
    union = [((predicted == c) | (classes == c)).sum() for c in things]
    both = [((predicted == c) & (classes == c)).sum() for c in things]
    ink = classes > 0
    right = (predicted == classes) & ink
    rows = torch.arange(classes.shape[1]).chunk(max(1, len(parts)))
    return {
        "mIoU": torch.stack([b / u for b, u in zip(both, union, strict=True)]).mean().item(),
        **{name: (right[:, part].sum() / ink[:, part].sum()).item() for name, part in zip(parts, rows, strict=False)},
        "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
    }


# Running a study -----------------------------------------------------------------------------------------------------


def parser(description: str, steps: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, default=1, help="networks of every kind [%(default)s]")
    made.add_argument("--steps", type=int, default=steps, help="steps of training for each [%(default)s]")
    made.add_argument("--pictures", type=int, default=400, help="to train on [%(default)s]")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    made.add_argument("--workers", type=int, default=2, help="networks at a time, on a core each [%(default)s]")
    made.add_argument("--results", type=Path, help="file to write all scores to, as .json, and their table, as .md")
    return made


def side_by_side(
    train: Callable[[Any], Any], jobs: Sequence[Any], workers: int, seconds: float = math.inf
) -> Iterator[Any]:
    """What ``train`` makes of the jobs, in their order, so far as they are done in so many seconds."""
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        results = map(train, jobs)
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)))
            results = pool.map(train, jobs)
        done = 0
        for result in tqdm(results, "networks", len(jobs)):
            yield result
            done += 1
            if time.perf_counter() - start > seconds:
                if workers > 1:
                    pool.shutdown(cancel_futures=True)
                break
    print(f"{done} of {len(jobs)} networks: {time.perf_counter() - start:.0f} s")


def grouped(results: Iterable[Result], key: Callable[[Job], Any]) -> dict[Any, list[Scores]]:
    groups: dict[Any, list[Scores]] = {}
    for job, scores in results:
        groups.setdefault(key(job), []).append(scores)
    return groups


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and standard deviation, which one value has not."""
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values):.3f}" if len(values) > 1 else "")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in itertools.chain([header, ["---"] * len(header)], rows))


def write(path: Path | None, results: Sequence[Result], table: str) -> None:
    """The table, and the scores of every network, one a line."""
    print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(table, encoding="utf-8")
        lines = [
            json.dumps(job._asdict() | {key: round(score, 4) for key, score in scores.items()})
            for job, scores in results
        ]
        path.with_suffix(".json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
