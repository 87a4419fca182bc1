"""The benchmarks measure what they say: equal gradients, counted arithmetic, waits, ratios, exponents."""

import itertools
import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tiny():
    """A model that is smaller than the benchmarks' own, under a name of its own."""
    from tiny_models import TINY, TinyModel, write_photos

    from mmalign.testing.accelerator import forget_accelerator
    from mmalign.testing.tiny import RESOLUTION, write_tiny_sd15

    forget_accelerator()
    image = {"image": {"resolution": RESOLUTION, "flip": False}}
    TINY["test"] = TinyModel("sd15", image, write_tiny_sd15, lambda *given: write_photos(*given, side=40))
    yield "test"
    del TINY["test"]
    forget_accelerator()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def contestants(tiny, folder):
    from contestants import MAKERS

    return {name: make(tiny, folder, pairs=2) for name, make in MAKERS.items()}


class TestContestants:
    def test_compute_one_gradient_and_then_move(self, contestants):
        from contestants import TOLERANCE
        from vlm_contestants import largest_difference

        assert list(contestants) == ["mmalign", "mmalign, stored", "bare", "unoptimised"]
        assert largest_difference(list(contestants.values()), TOLERANCE) < TOLERANCE
        for contestant in contestants.values():
            before = {name: value.detach().clone() for name, value in contestant.parameters.items()}
            contestant.step()
            assert any(not torch.equal(before[name], contestant.parameters[name]) for name in before)

    def test_arithmetic_is_the_least_with_a_stored_reference_and_one_forward_more_with_a_live_one(
        self, contestants, tiny, folder
    ):
        from contestants import bare
        from inside_a_step import flops_of

        least = flops_of(bare(tiny, folder, pairs=2, compares=False).gradient)
        counted = {name: flops_of(contestant.step) for name, contestant in contestants.items()}
        assert counted["mmalign, stored"] == pytest.approx(least, rel=0.01)
        assert counted["mmalign"] == pytest.approx(counted["bare"], rel=0.01)
        assert 1.2 * least < counted["mmalign"] < 1.6 * least
        assert counted["unoptimised"] > 1.05 * counted["mmalign"]


class TestTax:
    def test_its_interval_is_that_of_the_median_and_narrows_with_blocks(self):
        from framework_tax import interval_of_median

        draw = random.Random(8)
        widths = []
        for blocks in (11, 401):
            ratios = [1.02 + draw.gauss(0.0, 0.1) for _ in range(blocks)]
            low, high = interval_of_median(ratios)
            assert low <= statistics.median(ratios) <= high
            widths.append(high - low)
        # Of a normal scatter s the median's standard error is 1.25 s / sqrt(n): 401 blocks span 0.025.
        assert widths[1] == pytest.approx(2 * 1.96 * 1.2533 * 0.1 / 401**0.5, rel=0.35)
        assert widths[1] < widths[0] / 3

    def test_one_block_has_no_interval(self):
        from framework_tax import interval_of_median

        assert interval_of_median([1.03]) == (1.03, 1.03)


class TestWaits:
    @pytest.mark.parametrize("cached", [False, True])
    def test_no_unlogged_step_of_an_image_model_waits_for_the_device(self, tiny, folder, cached):
        from contestants import _prepared, settings
        from host_syncs import counted_syncs, host_tensors

        config = settings(_model(tiny), folder, name=f"waits {cached}", pairs=2, cached=cached)
        loop, loader = _prepared(config)
        micro = next(iter(loader))
        batches = loop._batches(itertools.repeat(micro))
        loop.updater.skips_on_device = True  # as on a card: the CPU's own look waits for nothing
        loop._update(batches, is_record=False)
        with counted_syncs(host_tensors(micro)) as found:
            loop._update(batches, is_record=False)
        assert dict(found) == {}

    def test_no_unlogged_step_of_a_language_model_waits_but_for_looks_that_the_cpu_alone_takes(
        self, folder, monkeypatch
    ):
        import host_syncs
        from contestants import _prepared, settings
        from tiny_models import TINY
        from vlm_pairs import Shape, write_model, write_pairs

        home = folder / "language"
        home.mkdir()
        write_model(Shape(64, 2, 64, 2, 512, 56), home / "model")
        write_pairs(home / "model", home / "pairs-8.parquet", 8)
        loop, loader = _prepared(settings(TINY["vlm"], home, name="waits", pairs=2, cached=False))
        micro = next(iter(loader))
        batches, places = loop._batches(itertools.repeat(micro)), set()
        loop.updater.skips_on_device = True
        loop._update(batches, is_record=False)
        plain = host_syncs._Values.__torch_dispatch__

        def noted(mode, func, types, args=(), kwargs=None):
            before = mode.found.total()
            result = plain(mode, func, types, args, kwargs)
            if mode.found.total() > before:
                frame = sys._getframe()
                while "mmalign" not in Path(frame.f_code.co_filename).parent.parts:
                    frame = frame.f_back
                places.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
            return result

        monkeypatch.setattr(host_syncs._Values, "__torch_dispatch__", noted)
        with host_syncs.counted_syncs(host_syncs.host_tensors(micro)) as found:
            loop._update(batches, is_record=False)
        # Both are behind `device.type == "cpu"`: ids are looked at where looking costs nothing.
        assert places <= {("tokens.py", "_mask"), ("token_head.py", "head_log_probs")}
        assert not set(found) - {"_local_scalar_dense", "equal"}

    def test_reads_copies_and_sizes_that_depend_on_values_are_counted(self):
        from host_syncs import counted_syncs

        value, held = torch.arange(5.0), torch.zeros(3)
        with counted_syncs([held]) as found:
            float(value.sum())
            bool(value[0] > 1)
            value.tolist()
            value.cpu()
            value.nonzero()
            value[value > 2]
            torch.tensor(1.0, device="cpu")
            held.to(torch.device("cpu"))
        assert found["_local_scalar_dense"] == 2
        assert found["tolist"] == found["cpu"] == 1
        assert found["nonzero"] >= 1
        assert found["boolean index"] == 1
        assert found["tensor of Python numbers"] == 1
        assert found["copy that waits"] == 1

    def test_what_does_not_wait_is_not_counted(self):
        from host_syncs import counted_syncs

        value, held = torch.arange(5.0), torch.zeros(3)
        with counted_syncs([held]) as found:
            moved = held.to(torch.device("cpu"), non_blocking=True)
            moved.to(torch.device("cpu"))
            torch.full((), 2.0, device="cpu")
            torch.where(value > 2, value, 0.0).sum()
        assert dict(found) == {}


def _model(name):
    from tiny_models import TINY

    return TINY[name]


class TestInsideAStep:
    def test_a_part_is_charged_without_the_parts_inside_it(self):
        from inside_a_step import Watch

        now = iter([0.0, 1.0, 3.0, 7.0, 12.0])
        watch = Watch(lambda: next(now))
        watch.enter("backward")
        watch.enter("optimiser")
        watch.leave()
        watch.leave()
        assert dict(watch.seconds) == {"other": 1.0, "backward": 2.0 + 5.0, "optimiser": 4.0}

    def test_the_real_loop_is_split_into_all_parts(self, tiny, folder):
        from inside_a_step import PARTS, breakdown

        found = breakdown(tiny, folder, pairs=2, steps=2, warm_up=1)
        assert tuple(found) == PARTS
        assert all(found[part] > 0 for part in PARTS)
        assert found["policy forward"] > found["log"]

    def test_folder_is_made_and_no_measured_step_is_the_last_one_which_is_always_logged(
        self, tiny, folder, monkeypatch
    ):
        import inside_a_step

        from mmalign.train.loop import Loop

        logged, plain = [], Loop._record

        def noted(loop, *args, **kwargs):
            logged.append(loop.progress.step)
            return plain(loop, *args, **kwargs)

        monkeypatch.setattr(Loop, "_record", noted)
        inside_a_step.breakdown(tiny, folder / "not there" / "yet", pairs=2, steps=2, warm_up=1)
        assert logged
        assert not {2, 3} & set(logged)


class TestRun:
    def test_a_measurement_that_raises_is_written_and_the_others_go_on(self, tmp_path, monkeypatch, capsys):
        import run

        def broken(folder, profile):
            raise FileNotFoundError("no such folder")

        monkeypatch.setattr(run, "MEASUREMENTS", {"first": broken, "second": lambda *_: {"seconds": 1.0}})
        path = tmp_path / "x.jsonl"
        given = ["--profile", "quick", "--output", str(path), "--folder", str(tmp_path / "scratch")]
        with pytest.raises(SystemExit, match="first failed") as ended:
            run.main(given)
        assert ended.value.code != 0
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        assert first["values"]["error"] == "FileNotFoundError: no such folder"
        assert second["values"]["seconds"] == 1.0
        assert "failed: FileNotFoundError" in capsys.readouterr().out

    def test_records_that_are_not_there_are_told(self, tmp_path):
        import run

        page, results = tmp_path / "page.md", tmp_path / "x.jsonl"
        page.touch()
        with pytest.raises(SystemExit, match=r"x\.jsonl is not there, expected a page and a file of records"):
            run.main(["--page", str(page), "--output", str(results)])

    def test_gpu_profile_hands_on_what_was_asked_and_takes_back_the_single_thread(
        self, tmp_path, monkeypatch
    ):
        import gpu
        import run

        given, threads = [], []
        monkeypatch.setattr(gpu, "main", given.append)
        monkeypatch.setattr(run.torch, "set_num_threads", threads.append)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        run.main(["--profile", "gpu", "--only", "tango", "--output", str(tmp_path / "x.jsonl")])
        run.main(["--profile", "gpu"])
        assert given == [["--only", "tango", "--output", str(tmp_path / "x.jsonl")], []]
        assert threads[0] == os.cpu_count()
        assert "OMP_NUM_THREADS" not in os.environ

    def test_compare_says_what_is_missing_and_ends_with_an_error(self, tmp_path):
        import run

        one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
        one.write_text('{"id": "a", "values": {"x": 1}}\n')
        with pytest.raises(SystemExit, match=r"compare: .*other\.jsonl"):
            run.main(["compare", str(one), str(other)])
        other.write_text('{"id": "b", "values": {"x": 1}}\n')
        with pytest.raises(SystemExit, match="compare: nothing to compare"):
            run.main(["compare", str(one), str(other)])

    def test_starts_of_both_trainers_have_the_same_rows_model_and_pairs(self, tmp_path, monkeypatch):
        import start_up
        import vlm_step
        from vlm_pairs import Shape

        monkeypatch.setitem(vlm_step.SHAPES, "llava", Shape(64, 2, 64, 2, 512, 56))
        config = start_up._settings("vlm", tmp_path)
        assert config["train"]["batch_size"] == vlm_step.PAIRS
        assert config["model"]["source"] == str(tmp_path / "trl" / "model")
        assert config["data"]["source"] == str(tmp_path / "trl" / "pairs.parquet")
        assert (tmp_path / "trl" / "pairs.parquet").exists()

    def test_language_step_is_measured_and_its_record_fills_the_page(self, tmp_path, monkeypatch):
        import performance_page
        import run
        import tiny_models
        import vlm_step
        from vlm_pairs import Shape, write_model

        from mmalign.testing.accelerator import forget_accelerator

        forget_accelerator()
        shape = Shape(64, 2, 64, 2, 512, 56)
        monkeypatch.setitem(vlm_step.SHAPES, "llava", shape)
        small = replace(tiny_models.TINY["vlm"], write_model=lambda folder: write_model(shape, folder))
        monkeypatch.setitem(tiny_models.TINY, "vlm", small)
        values = run._vlm(tmp_path, run.PROFILES["quick"])
        forget_accelerator()
        assert values["gradient_difference"] < 1e-4
        assert values["flops_over_least"]["mmalign, stored"] == 1.0
        assert values["flops_over_least"]["trl, all positions"] > 1.0
        found = {"step.vlm": {"values": values}}
        for part in ("steps", "parts", "flops"):
            table = performance_page.PARTS_OF_THE_PAGE[part](found)
            assert "| vlm | " in table
        assert "(trl, answers alone)" in performance_page.PARTS_OF_THE_PAGE["steps"](found)


class TestRecords:
    def test_say_where_they_come_from_and_compare_by_ratio(self, tmp_path):
        import records

        where = records.machine()
        assert where["cores"] >= 1
        assert where["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        path = tmp_path / "one.jsonl"
        records.append(path, [records.record("step.x", {"a": {"b": 2.0}}, profile="cpu", where=where)])
        records.append(path, [records.record("step.x", {"a": {"b": 4.0}}, profile="cpu", where=where)])
        first = records.read(path)
        second = [records.record("step.x", {"a": {"b": 5.0, "c": 1}}, profile="cpu", where=where)]
        assert records.compare(first, second) == [("step.x: a.b", "4", "5", "1.250")]
        assert records.other_machine(first[0], second[0]) == []

    def test_with_nothing_in_common_are_refused(self):
        import records

        with pytest.raises(ValueError, match="nothing to compare"):
            records.compare([{"id": "a", "values": {"x": 1}}], [{"id": "b", "values": {"x": 1}}])

    def test_unknown_names_are_refused_with_the_known_ones(self):
        import run

        assert run._chosen(["tax", "loader"]) == ["tax.sdxl", "loader"]
        with pytest.raises(SystemExit, match=r"got \['nothing'\], expected beginnings of .*step.sd15"):
            run._chosen(["nothing"])


class TestGrowth:
    def test_exponent_is_that_of_the_power_law(self):
        from growth import exponent

        sizes = [2, 3, 5, 7]
        assert exponent(sizes, [4 * size**1.7 for size in sizes]) == pytest.approx(1.7)
        assert exponent(sizes, [3.0] * 4) == pytest.approx(0.0)

    def test_costs_of_lists_are_measured_at_every_size(self):
        from growth import _lists

        points = _lists([2, 4])
        assert [point["size"] for point in points] == [2, 4]
        assert all(point["seconds"] > 0 for point in points)
        assert points[1]["mib"] > points[0]["mib"] > 0

    def test_curve_shows_every_series(self):
        from growth import svg

        points = [{"size": 1, "seconds": 1.0}, {"size": 4, "seconds": 5.0}]
        one = {"points": points, "seconds_exponent": 1.16}
        picture = svg({"rows": one, "words": one})
        assert picture.count("<polyline") == 3
        assert "rows 1.16" in picture


def test_the_page_is_made_of_the_records(tmp_path):
    import performance_page
    import records

    where = {
        "gpu": None,
        "cpu": "a CPU",
        "threads": 1,
        "cores": 2,
        "commit": "abc",
        "versions": {"torch": "9"},
    }
    values = {
        "rounds": 3,
        "1 pairs": {
            "tax": 0.0123,
            "interval": [0.009, 0.014],
            "tax_low": 0.01,
            "tax_high": 0.02,
            "tax_of_minima": 0.011,
        },
    }
    results = tmp_path / "bench.jsonl"
    records.append(results, [records.record("tax.sdxl", values, profile="cpu", where=where)])
    lean = {"layers": 560, "milliseconds": {"peft": 123.4, "lean": 111.1}}
    lean |= {"over_peft": 0.903, "over_peft_low": 0.894, "over_peft_high": 0.917}
    records.append(results, [records.record("lora.host", lean, profile="cpu", where=where)])
    page = tmp_path / "page.md"
    markers = (
        f"<!-- bench_{name}:begin -->\n<!-- bench_{name}:end -->\n"
        for name in [*performance_page.PARTS_OF_THE_PAGE, "gpu"]
    )
    page.write_text("".join(markers))
    performance_page.renew_page(page, results)
    assert "<!-- bench_gpu:begin -->\n\n<!-- bench_gpu:end -->" in page.read_text()
    failed = records.record("tax.sdxl", {"error": "OSError: full"}, profile="cpu", where=where)
    records.append(results, [failed])
    card = {**where, "gpu": "a card", "commit": "def"}
    measured = {
        "attention": {"sdpa math, llava": 0.00123, "xformers, llava": "refused: no"},
        "tango, 4 pairs, mmalign": {"pairs_per_second": 12.3, "peak_gib": 4.56, "mfu": 0.301},
        "tango, 4 pairs, peer, gradients": {"gradient_difference": 0.0042},
        "wan, 1 pairs": {"left_out": "does not fit into the memory"},
    }
    made = [records.record(name, one, profile="gpu", where=card) for name, one in measured.items()]
    records.append(results.with_name("gpu.jsonl"), made)
    performance_page.renew_page(page, results)
    on_gpu = page.read_text().partition("bench_gpu:begin")[2]
    for line in (
        "| a card | `def` | torch 9 |",
        "| tango, 4 pairs, mmalign | 12.3 | 4.6 |  | 30.1% |  |",
        "| wan, 1 pairs | does not fit into the memory | | | | |",
        "| sdpa math, llava | 1.2e-03 |",
        "| xformers, llava | refused: no |",
        "| tango, 4 pairs, peer, gradients | 4.2e-03 |",
    ):
        assert line in on_gpu
    text = page.read_text()
    assert "| 1 pairs | +1.2% | +0.9% to +1.4% | +1.0% to +2.0% | +1.1% |" in text
    assert "| a CPU, 1 of 2 cores | `abc` | torch 9 |" in text
    assert "| host | 560 | 123 | 111 | 0.90 | 0.89 to 0.92 |" in text


@pytest.mark.slow
def test_both_forward_passes_of_adapters_are_raced_on_one_trainer(tmp_path):
    import lora_step

    found = lora_step.measure("host", tmp_path, pairs=1, rounds=1, steps=1)
    assert found["layers"] == 560
    assert found["gradient_difference"] < 1e-5
    assert set(found["milliseconds"]) == {"peft", "lean"}
    assert found["over_peft"] == pytest.approx(found["milliseconds"]["lean"] / found["milliseconds"]["peft"])


def test_rates_and_growth_of_the_records_become_rows():
    import performance_page

    points = [{"size": 5.0, "seconds": 1.0, "mib": 2.0}, {"size": 33.0, "seconds": 7.0, "mib": 2.0}]
    fit = {"seconds_exponent": 1.03, "mib_exponent": 0.0}
    one = {"points": points, **fit, **{f"{name}_last": value for name, value in fit.items()}}
    found = {
        "start": {"values": {"help": 0.123, "over trl": 0.456, "wall_seconds": 9}},
        "loader": {"values": {"512 px": 78.9}},
        "scoring": {"values": {"items_per_second": 321.4}},
        "growth": {"values": dict.fromkeys(("rows", "list", "frames", "words"), one)},
    }
    rates = performance_page.PARTS_OF_THE_PAGE["rates"](found)
    for line in (
        "| start: help | 0.123 s |",
        "| start: first step of the language model over TRL's | 0.46 |",
        "| loader: 512 px | 78.9 rows/s |",
        "| evaluation store | 321 pictures/s |",
    ):
        assert line in rates
    assert "wall_seconds" not in rates
    growth = performance_page.PARTS_OF_THE_PAGE["growth"](found)
    assert "| frames of a clip | 5 to 33 | 1.03 (1.03) | 0.00 (0.00) |" in growth


def _bench(tmp_path, minutes=60.0):
    import gpu

    return gpu.Bench(
        torch.device("cpu"), dry=True, output=tmp_path / "x.jsonl", minutes=minutes, folder=tmp_path
    )


def _products(names, repeated=None):
    """Contestants whose step is one product of 5 x 7 and 7 x 11."""
    from gpu_subjects import Step

    left, right = torch.randn(5, 7), torch.nn.Parameter(torch.randn(7, 11))
    for name in names:
        yield Step(
            name,
            lambda: left @ right.detach(),
            lambda: (left @ right).sum().backward(),
            {"w": right},
            None,
            None if repeated is None else lambda: repeated,
        )


@pytest.mark.usefixtures("_fresh_accelerator")
class TestGpu:
    def test_attention_of_every_kernel_is_compared_with_float32(self):
        import gpu

        found = gpu.attention_errors(torch.device("cpu"), dry=True)
        assert found["sdpa math, sdxl self"] < 0.01
        assert any("masked" in name for name in found)
        assert all(isinstance(value, str) or value < 0.02 for value in found.values())

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (RuntimeError("No available kernel. Aborting execution."), "refused: RuntimeError: No available"),
            (
                RuntimeError("No viable backend for scaled_dot_product_attention"),
                "refused: RuntimeError: No viable",
            ),
            (NotImplementedError("No operator found for `memory_efficient"), "refused: NotImplementedError"),
            (RuntimeError("CUDA error: an illegal memory access"), "failed: RuntimeError: CUDA error"),
            (ValueError("bias of another shape"), "failed: ValueError: bias"),
            (torch.cuda.OutOfMemoryError("CUDA out of memory"), "left out: does not fit"),
        ],
    )
    def test_a_kernel_that_breaks_is_no_kernel_that_refuses(self, tmp_path, monkeypatch, error, said):
        import gpu

        def kernel(*given, mask):
            raise error

        monkeypatch.setattr(gpu, "_kernels", lambda: iter([("odd", kernel)]))
        bench = _bench(tmp_path)
        gpu.attention(bench)
        values = {key: value for key, value in bench.rows[-1].items() if key.startswith("odd")}
        assert len(values) == 4
        assert all(value.startswith(said) for value in values.values())
        assert len(bench.failed) == (4 if said.startswith("failed") else 0)

    def test_a_kernel_with_other_numbers_fails_and_a_good_one_does_not(self, tmp_path, monkeypatch):
        import gpu

        def transposed(*given, mask):
            return gpu._exact(*given, mask=mask).flip(-1)

        kernels = [("good", gpu._exact), ("bad", transposed)]
        monkeypatch.setattr(gpu, "_kernels", lambda: iter(kernels))
        bench = _bench(tmp_path)
        gpu.attention(bench)
        assert len(bench.failed) == 4
        assert all(name.startswith("attention (bad, ") for name in bench.failed)
        assert gpu.is_wrong("not finite")

    def test_what_xformers_adds_hides_the_same_keys_as_the_mask(self):
        import gpu

        mask = (torch.arange(7) < 4).expand(2, 1, 5, 7)
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(2, 3, n, 16, generator=generator) for n in (5, 7, 7))
        added = gpu._added(mask, like=query)
        assert added.shape == (2, 3, 5, 7)
        assert added.stride(-2) == 8
        attend = torch.nn.functional.scaled_dot_product_attention
        expected = attend(query, key, value, attn_mask=mask)
        torch.testing.assert_close(attend(query, key, value, attn_mask=added), expected)

    def test_gradients_that_are_not_finite_are_said_wherever_they_stand(self):
        import gpu

        good, bad = torch.ones(3), torch.full((3,), math.nan)
        assert gpu._largest_gap([good, bad], [good, good]) == "not finite"
        assert gpu._largest_gap([bad, good], [good, good]) == "not finite"
        assert gpu._largest_gap([good, 2 * good], [good, good]) == pytest.approx(1.0)

    @pytest.mark.parametrize(("seconds", "calls"), [(0.01, 1 + 1 + 2 + 10), (4.0, 1 + 1 + 2), (1.0, 3 + 6)])
    def test_steps_are_as_many_as_their_seconds_allow_and_two_at_least(self, monkeypatch, seconds, calls):
        import gpu

        clock, counted = [0.0], []
        monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

        def call():
            counted.append(1)
            clock[0] += seconds

        found = gpu.timed(call, torch.device("cpu"), steps=10, warm_up=4)
        assert found["seconds_per_step"] == pytest.approx(seconds)
        assert len(counted) == calls

    def test_graphs_of_networks_before_are_forgotten_before_compiling(self, monkeypatch):
        import gpu

        said = []
        monkeypatch.setattr(torch.compiler, "reset", lambda: said.append("reset"))
        block = SimpleNamespace(compile=lambda **_: said.append("compile"))
        model = SimpleNamespace(family="any", repeated_blocks=lambda network: [block])
        step = SimpleNamespace(model=model, network=torch.nn.Identity())
        gpu._compile(step, torch.device("cpu"))
        assert said == ["reset", "compile"]

    @pytest.mark.parametrize("place", ["build", "gradient", "step", "count"])
    def test_what_does_not_fit_is_left_out_wherever_that_shows_and_the_rest_goes_on(self, tmp_path, place):
        from gpu_subjects import Step

        bench = _bench(tmp_path)
        weight = torch.nn.Parameter(torch.ones(2, 3))
        calls = itertools.count()

        def full(here):
            if place == here:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        def gradient():
            full("gradient")
            weight.sum().backward()

        def repeated():
            full("count")
            return 0

        def steps():
            full("build")
            yield Step(
                "mmalign", lambda: next(calls) or full("step"), gradient, {"w": weight}, None, repeated
            )

        bench.race("big", steps(), 4, compiled=False)
        [row] = [row for row in bench.rows if "left_out" in row]
        assert row == {"id": "big, 4 pairs, mmalign", "left_out": "does not fit into the memory"}
        assert bench.failed == []

    def test_blocks_that_do_not_compile_fail_with_the_reason(self, tmp_path, monkeypatch):
        import gpu

        bench = _bench(tmp_path)

        def refuse(step, device):
            raise RuntimeError("no compiler\nand much more")

        monkeypatch.setattr(gpu, "_compile", refuse)
        bench.race("one", _products(["mmalign"]), 2, compiled=True)
        assert bench.rows[-1] == {
            "id": "one, 2 pairs, mmalign compiled",
            "error": "RuntimeError: no compiler",
        }
        assert bench.failed == ["one, 2 pairs, mmalign compiled"]

    def test_compiled_blocks_have_the_shares_of_the_arithmetic_that_was_counted_before(
        self, tmp_path, monkeypatch
    ):
        import gpu

        bench = _bench(tmp_path)
        monkeypatch.setattr(gpu, "_compile", lambda step, device: None)
        bench.race("one", _products(["mmalign"]), 2, compiled=True)
        plain, gradients, compiled = bench.rows
        assert gradients == {"id": "one, 2 pairs, mmalign compiled, gradients", "gradient_difference": 0.0}
        assert compiled["id"] == "one, 2 pairs, mmalign compiled"
        assert compiled["useful_tflop_per_pair"] == plain["useful_tflop_per_pair"] > 0
        assert compiled["of_product_rate"] > 0

    def test_arithmetic_that_is_done_twice_is_not_useful_for_anyone(self, tmp_path):
        bench = _bench(tmp_path)
        bench.race("one", _products(["mmalign", "peer"], repeated=200), 2, compiled=False)
        timed = [row for row in bench.rows if "pairs_per_second" in row]
        counted = 2 * 5 * 7 * 11
        assert [row["tflop_per_pair"] * 1e12 for row in timed] == pytest.approx([counted / 2] * 2)
        assert [row["useful_tflop_per_pair"] * 1e12 for row in timed] == pytest.approx(
            [(counted - 200) / 2] * 2
        )

    def test_gradients_of_other_weights_are_said_not_to_be_compared(self, tmp_path):
        bench = _bench(tmp_path)
        bench.gradients("x", {"a": torch.ones(2)}, {"b": torch.ones(2)})
        bench.gradients("y", {"a": torch.ones(2)}, {"a": torch.full((2,), math.nan)})
        assert bench.rows == [
            {"id": "x, gradients", "left_out": "not compared: 2 weights are of one alone, such as a"},
            {"id": "y, gradients", "gradient_difference": "not finite"},
        ]

    def test_nothing_is_built_when_the_minutes_are_over(self, tmp_path):
        bench = _bench(tmp_path, minutes=0)
        built = []

        def steps():
            built.append(1)
            yield

        bench.race("late", steps(), 2, compiled=False)
        assert built == []
        assert [row["left_out"] for row in bench.rows] == ["the minutes given were over"]

    def test_a_part_that_raises_does_not_lose_the_others(self, tmp_path, monkeypatch):
        import gpu

        def broken(bench):
            raise ValueError("odd shape")

        said = []
        monkeypatch.setitem(gpu.PARTS, "attention", broken)
        monkeypatch.setitem(gpu.PARTS, "tango", lambda bench: said.append("tango"))
        path = tmp_path / "x.jsonl"
        with pytest.raises(SystemExit, match="gpu: attention failed"):
            gpu.main(["--dry", "--only", "attention", "tango", "--output", str(path)])
        assert said == ["tango"]
        assert json.loads(path.read_text().splitlines()[-1])["values"] == {"error": "ValueError: odd shape"}

    def test_checkout_is_on_the_path_of_a_machine_that_has_no_mmalign(self, tmp_path):
        root = str(BENCHMARKS.parent)
        script = (
            f"import sys; sys.path = [p for p in sys.path if p != {root!r}]; "
            f"sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu; assert {root!r} in sys.path"
        )
        subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)

    @pytest.mark.slow
    def test_language_models_of_a_size_that_no_file_has_take_one_gradient_and_leave_the_memory(
        self, tmp_path, monkeypatch
    ):
        import gpu_subjects
        import vlm_contestants
        from vlm_contestants import gradients_of

        frozen, plain = [], vlm_contestants._by_layer

        def noted(network):
            frozen.append({weight.dtype for weight in network.parameters() if not weight.requires_grad})
            return plain(network)

        # Its first import logs an error; pytest keeps the record, and with it every frame that led there.
        monkeypatch.setattr(logging.getLogger("bitsandbytes.backends.cpu.ops"), "disabled", True)
        monkeypatch.setattr(vlm_contestants, "_by_layer", noted)
        text = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 64}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
        tower = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
        monkeypatch.setattr(gpu_subjects, "_SEVEN_BILLION", {"text_config": text, "vision_config": tower})
        steps = gpu_subjects.language_steps(tmp_path / "llava", torch.device("cpu"), pairs=1, dry=False)
        step = next(steps)
        assert {value.shape[1] for name, value in step.parameters.items() if "lora_A" in name} == {128, 256}
        first, held = gradients_of(step), weakref.ref(next(iter(step.parameters.values())))
        del step
        step = next(steps)
        assert held() is None
        second = gradients_of(step)
        assert first.keys() == second.keys()
        assert frozen == [{torch.bfloat16}] * 2
        gap = sum(float((second[name] - first[name]).float().square().sum()) for name in first)
        size = sum(float(value.float().square().sum()) for value in first.values())
        assert 0 < (gap / size) ** 0.5 < 0.1
        steps.close()

    def test_a_checkpointed_step_repeats_one_forward_pass(self, tmp_path):
        import gpu_subjects
        from inside_a_step import flops_of

        subject = gpu_subjects.DENOISERS["wan 1.3b 81 frames"]
        counted = []
        for number, checkpointing in enumerate((True, False)):
            one = replace(subject, checkpointing=checkpointing)
            steps = gpu_subjects.steps_of(one, tmp_path / str(number), torch.device("cpu"), pairs=1, dry=True)
            step = next(steps)
            repeated = step.repeated() if step.repeated is not None else 0
            assert (repeated > 0) is checkpointing
            assert step.dropped() == 0
            counted.append(flops_of(step.call) - repeated)
            steps.close()
        assert counted[0] == pytest.approx(counted[1], rel=0.03)

    @pytest.mark.slow
    def test_dry_run_takes_every_step_on_the_cpu(self, tmp_path):
        import gpu

        path = tmp_path / "gpu.jsonl"
        rows = gpu.main(["--dry", "--minutes", "60", "--output", str(path)])
        written = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["id"] for row in written] == [row["id"] for row in rows]
        timed = {row["id"] for row in rows if "pairs_per_second" in row}
        for begin in ("sdxl 1024", "tango 10 s", "wan 1.3b", "llava 7b"):
            assert len([name for name in timed if name.startswith(begin)]) == 2
        gaps = [row["gradient_difference"] for row in rows if "gradient_difference" in row]
        assert len(gaps) == 4
        assert all(math.isfinite(gap) and gap < 0.05 for gap in gaps)

    def test_a_budget_that_is_over_is_said_and_not_guessed(self, tmp_path):
        import gpu

        rows = gpu.main(["--dry", "--only", "tango", "--minutes", "0", "--output", str(tmp_path / "x.jsonl")])
        assert [row["left_out"] for row in rows if "left_out" in row] == ["the minutes given were over"]
