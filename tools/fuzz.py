"""Calls of every operator with arguments that no caller would think of; tests/support/fuzzing.py judges them.

    python tools/fuzz.py --examples 2000       the same calls in every run, shrunk where they fail
    python tools/fuzz.py --seconds 600         other calls, guided by the compiled code that they reach
    python tools/fuzz.py --seconds 600 --device cuda

A child process makes the calls and records each one first. If it crashes, hangs, or is ended by a sanitizer, the call
counts as a crash and the next child continues. Inputs that reached new code are kept in the corpus and tried first next
time. ``make fuzz`` runs this with an extension that has sanitizers and coverage marks; without the marks, inputs are
random. On CUDA it prints how many of the kernels, each in several types, were reached.
"""

import argparse
import collections
import ctypes
import faulthandler
import hashlib
import itertools
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
sys.path.append(str(ROOT / "tests" / "support"))

MEMORY = 6 << 30  # bytes of address space, or of the GPU: what is larger has to be refused
PATIENCE = 60  # seconds for one call
MAX_CRASHES = 20
# Kernels of operators that are not drawn here: those with learnable spacings, which test_dcls.py draws.
NOT_DRAWN = ("build_kernel", "differentiate_kernel", "sparse_sum_kernel", "sparse_dot_kernel")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, help="number of calls, determined by the seed alone")
    parser.add_argument("--seconds", type=float, help="time, with calls guided by coverage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--corpus", type=Path, default=ROOT / "build" / "corpus")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if (arguments.examples is None) == (arguments.seconds is None):
        parser.error("expected either --examples or --seconds")
    return arguments


# ---- The child: makes calls ----


class Child:
    """Records each call and its outcome in a folder that the parent reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: dict[str, str] = {}
        self.last = (folder / "last").open("w", encoding="utf-8")

    def judge(self, call) -> None:
        from fuzzing import judge

        self.last.seek(0)
        self.last.truncate()
        self.last.write(repr(call))
        self.last.flush()
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        self.counts["tried"] += 1
        try:
            self.counts[judge(call)] += 1
        finally:
            self.check_the_gpu()
            faulthandler.cancel_dump_traceback_later()

    def check_the_gpu(self) -> None:
        """Kernels fail after their call has returned, and so does everything after them: this counts as a crash."""
        import torch

        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                print(error, file=sys.stderr)
                self.save()
                os._exit(1)

    def note(self, call: str, error: BaseException) -> None:
        """Keeps one call for each kind of failure."""
        lines = f"{type(error).__name__}: {error}".splitlines() or [""]
        self.counts["wrong"] += 1
        self.wrong.setdefault("".join(c for c in lines[0] if not c.isdigit())[:80], f"{lines[0]}\n  {call}")

    def save(self) -> None:
        import ddu_ops

        report = {"counts": self.counts, "wrong": list(self.wrong.values()), "launches": ddu_ops._C.cuda_launches()}
        text = json.dumps(report)
        (self.folder / "report").write_text(text, encoding="utf-8")


def run_child(arguments: argparse.Namespace) -> None:
    os.environ["DDU_FUZZ_DEVICE"] = arguments.device
    sanitized = "asan" in os.environ.get("LD_PRELOAD", "")
    # The shadow memory of a sanitizer would not fit, ASAN_OPTIONS has the limit there; nor would CUDA's addresses.
    if not sanitized and arguments.device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch

    import ddu_ops  # noqa: F401

    if arguments.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY / total))
        torch.backends.cudnn.allow_tf32 = False  # the convolution is judged as one in float32
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_num_threads(2)
    child = Child(arguments.child)
    try:
        if arguments.examples is not None:
            tried_by_hypothesis(child, arguments.examples, arguments.seed)
        else:
            led_by_coverage(child, arguments.seconds, arguments.seed, arguments.corpus)
    finally:
        child.save()


def tried_by_hypothesis(child: Child, examples: int, seed: int) -> None:
    import hypothesis

    from fuzzing import calls

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    @hypothesis.given(calls())
    def test(call):
        child.judge(call)

    try:
        test()
    except Exception as error:
        child.note((child.folder / "last").read_text(encoding="utf-8"), error)


def led_by_coverage(child: Child, seconds: float, seed: int, corpus: Path) -> None:
    import hypothesis

    from fuzzing import calls

    @hypothesis.settings(database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(calls())
    def test(call):
        child.judge(call)

    coverage = Coverage()
    rng = random.Random(seed)
    corpus.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in sorted(corpus.iterdir())]
    waiting = list(kept)
    end = time.monotonic() + seconds
    saved = time.monotonic()
    while time.monotonic() < end:
        data = waiting.pop() if waiting else mutated(rng, kept)
        try:
            used = test.hypothesis.fuzz_one_input(data)
        except Exception as error:
            child.note((child.folder / "last").read_text(encoding="utf-8"), error)
            used = None
        if used and coverage.grew():
            kept.append(used)
            (corpus / hashlib.sha256(used).hexdigest()[:16]).write_bytes(used)
        if time.monotonic() - saved > 1:
            child.counts["corpus"], child.counts["places"] = len(kept), coverage.places
            child.save()
            saved = time.monotonic()
    child.counts["corpus"], child.counts["places"] = len(kept), coverage.places


class Coverage:
    """The places in the compiled code that were reached: see tools/coverage.cpp."""

    def __init__(self) -> None:
        import ddu_ops._C

        library = ctypes.CDLL(ddu_ops._C.__file__)
        try:
            self.map = (ctypes.c_ubyte * (1 << 16)).in_dll(library, "ddu_coverage")
        except ValueError:
            self.map = None
        self.places = 0

    def grew(self) -> bool:
        if self.map is None:
            return False
        places = len(self.map) - bytes(self.map).count(0)
        grew, self.places = places > self.places, places
        return grew


def mutated(rng: random.Random, kept: list[bytes]) -> bytes:
    """Something new, or something old with a few changes."""
    if not kept or rng.random() < 0.2:
        return rng.randbytes(rng.randrange(64, 2048))
    data = bytearray(rng.choice(kept))
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at : at + rng.randrange(1, 9)] = b""
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                other = rng.choice(kept)
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data) + rng.randbytes(256)  # enough for draws that follow


# ---- The parent: survives them ----


def main() -> int:
    arguments = parse()
    if arguments.child:
        run_child(arguments)
        return 0
    counts: collections.Counter[str] = collections.Counter()
    state = {"corpus": 0, "places": 0}
    launches: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    crashes: list[str] = []
    start = time.monotonic()
    end = start + (arguments.seconds or math.inf)
    seed = arguments.seed
    while len(crashes) < MAX_CRASHES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--seed", str(seed)]
            command += ["--device", arguments.device]
            if arguments.seconds is not None:
                command += ["--seconds", str(max(end - time.monotonic(), 0)), "--corpus", str(arguments.corpus)]
            else:
                command += ["--examples", str(arguments.examples)]
            status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
            report = folder / "report"
            if report.exists():
                found = json.loads(report.read_text(encoding="utf-8"))
                latest = {key: found["counts"].pop(key, 0) for key in ("corpus", "places")}
                counts.update(found["counts"])
                launches.update(found["launches"])
                state = {key: max(state[key], value) for key, value in latest.items()}
                wrong += found["wrong"]
            if status == 0:
                break
            last = folder / "last"
            crashes.append(
                f"exit status {status}\n  {last.read_text(encoding='utf-8') if last.exists() else 'at start'}"
            )
        if arguments.examples is not None or time.monotonic() >= end:
            break
        seed += 1
    for text in [*crashes, *wrong]:
        print(text)
    drawn = [name for name in launches if not name.startswith(NOT_DRAWN)]
    kernels = sorted(drawn) if arguments.device == "cuda" else []
    for kernel, group in itertools.groupby(kernels, lambda name: name.partition("<")[0]):
        names = list(group)
        print(f"{kernel}: {sum(launches[name] > 0 for name in names)} of {len(names)} reached")
    figures = {key: counts[key] for key in ("tried", "answered", "shaped", "refused", "unmade", "wrong")}
    figures |= {"crashes": len(crashes), **state, "seconds": round(time.monotonic() - start)}
    print(", ".join(f"{value} {key}" for key, value in figures.items()))
    return 1 if crashes or counts["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
