"""How time and memory grow: with rows of the data, candidates, frames of a clip, words of an answer.

Each is measured at some sizes, about twice the one before (clips have 4 n + 1 frames), and a power law is
fitted: `cost = a * size ** p`. An exponent of 1 is linear; 0 does not grow. A base that does not grow (the
loaded model) is not taken off, so exponents of small sizes are low; the last two sizes alone say where it is
going.

    rows      opening a parquet file and its order, time and Python memory
    list      Plackett-Luce over k candidates, scores [512, k], forward and backward
    frames    Wan's step on clips of 5 to 33 frames
    words     DPO of a language model on answers of 16 to 128 words
"""

import math
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["exponent", "measure", "svg"]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of a line through the logarithms, by least squares."""
    points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len(points) < 2:
        return math.nan
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread


def _least(call: Callable[[], object], rounds: int = 3) -> float:
    """CPU seconds of a call, the least of some."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def _saved_mib(call: Callable[[], object]) -> float:
    """MiB that autograd holds at once during a call."""
    from split_backward import peak_of_saved

    with peak_of_saved(()) as counter:
        call()
    return counter.most / 2**20


def _rows(folder: Path, sizes: Sequence[int]) -> list[dict[str, float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmalign.data import DataConfig, RowOrder, open_rows

    found = []
    for size in sizes:
        path = folder / f"rows-{size}.parquet"
        rows = [
            {"prompt": f"prompt {number % 997}", "chosen": "a good answer", "rejected": "a poor one"}
            for number in range(size)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path)
        config = DataConfig(source={"path": str(path), "media": "text"})

        def opened(config: Any = config) -> None:
            RowOrder.for_table(open_rows(config), seed=0).at(0)

        opened()
        tracemalloc.start()
        opened()
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        found.append({"size": size, "seconds": _least(opened), "mib": peak})
    return found


def _lists(sizes: Sequence[int]) -> list[dict[str, float]]:
    from mmalign import objectives
    from mmalign.batch import Labels
    from mmalign.objectives import Scores

    loss = objectives.build("plackett_luce_dpo", beta=0.1)
    found = []
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        policy = torch.randn(512, size, generator=generator, requires_grad=True)
        scores = Scores(policy=policy, reference=torch.zeros(512, size))
        labels = Labels(relevance=torch.rand(512, size, generator=generator))

        def step(scores: Any = scores, labels: Any = labels, policy: Any = policy) -> None:
            torch.autograd.grad(loss(scores, labels).loss.sum(), policy)

        step()
        found.append({"size": size, "seconds": _least(step, 5), "mib": _saved_mib(step)})
    return found


def _frames(folder: Path, sizes: Sequence[int]) -> list[dict[str, float]]:
    from split_backward import step_of
    from tiny_models import TINY

    source, _ = TINY["video"].files(folder / "video", 2)
    found = []
    for size in sizes:
        media = {"video": {"num_frames": size, "height": 128, "width": 128, "fps": 8.0}}
        step, _ = step_of("wan", media, source, folder / "growth")
        step()
        found.append({"size": size, "seconds": _least(step, 2), "mib": _saved_mib(step)})
    return found


def _words(folder: Path, sizes: Sequence[int]) -> list[dict[str, float]]:
    import vlm_pairs
    from contestants import mmalign

    found = []
    for size in sizes:
        home = folder / f"words-{size}"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "model").exists():
            vlm_pairs.write_model(vlm_pairs.Shape(vocabulary=1024, side=56, tower_layers=1), home / "model")
            vlm_pairs.write_pairs(home / "model", home / "pairs-4.parquet", 4, words=(size, size))
        contestant = mmalign("vlm", home, pairs=1)
        contestant.step()
        found.append(
            {"size": size, "seconds": _least(contestant.step, 2), "mib": _saved_mib(contestant.gradient)}
        )
    return found


def measure(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Costs at every size, and exponents over all of them and over the last two."""
    count = 2 if quick else 4
    series = {
        "rows": _rows(folder, [(2000 if quick else 20_000) * 2**step for step in range(count)]),
        "list": _lists([4 * 2**step for step in range(count)]),
        "frames": _frames(folder, [5, 9, 17, 33][:count]),
        "words": _words(folder, [16 * 2**step for step in range(count)]),
    }
    result: dict[str, Any] = {}
    for name, points in series.items():
        sizes = [point["size"] for point in points]
        result[name] = {"points": points}
        for cost in ("seconds", "mib"):
            costs = [point[cost] for point in points]
            result[name][f"{cost}_exponent"] = exponent(sizes, costs)
            result[name][f"{cost}_exponent_last"] = exponent(sizes[-2:], costs[-2:])
    return result


def svg(values: dict[str, Any], cost: str = "seconds", *, width: int = 520, height: int = 300) -> str:
    """Cost over size, both relative to the first, on logarithmic axes; a line of exponent 1 beside them."""
    colours = {"rows": "#2563eb", "list": "#16a34a", "frames": "#dc2626", "words": "#9333ea"}
    most = max(point["size"] / one["points"][0]["size"] for one in values.values() for point in one["points"])
    top = max(
        [most] + [point[cost] / one["points"][0][cost] for one in values.values() for point in one["points"]]
    )
    low = min(
        [1.0] + [point[cost] / one["points"][0][cost] for one in values.values() for point in one["points"]]
    )
    left, bottom = 46, height - 34

    def place(size: float, value: float) -> str:
        across = math.log(size) / math.log(most)
        up = (math.log(value) - math.log(low)) / (math.log(top) - math.log(low))
        return f"{left + across * (width - left - 90):.1f},{bottom - up * (bottom - 16):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<polyline points="{place(1, 1)} {place(most, most)}" fill="none" stroke="#9ca3af" '
        'stroke-dasharray="4 3"/>',
    ]
    for row, (name, one) in enumerate(values.items()):
        first = one["points"][0]
        path = " ".join(
            place(point["size"] / first["size"], point[cost] / first[cost]) for point in one["points"]
        )
        colour = colours[name]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = f"{name} {one[f'{cost}_exponent']:.2f}"
        parts.append(f'<text x="{width - 84}" y="{28 + 18 * row}" fill="{colour}">{label}</text>')
    parts.append(f'<text x="{width - 84}" y="{28 + 18 * len(values)}" fill="#6b7280">linear 1.00</text>')
    parts.append(f'<text x="{left}" y="{height - 10}">size over the smallest, up to {most:.0f} x</text>')
    parts.append(f'<text x="6" y="12">{cost} over those of the smallest, up to {top:.1f} x</text>')
    return "\n".join([*parts, "</svg>", ""])
