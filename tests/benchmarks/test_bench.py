"""The benchmarks measure what they say: equal gradients, counted arithmetic, waits, ratios, exponents."""

import itertools
import json
import sys
from pathlib import Path

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


class TestWaits:
    @pytest.mark.parametrize("cached", [False, True])
    def test_no_unlogged_step_of_an_image_model_waits_for_the_device(self, tiny, folder, cached):
        from contestants import _prepared, settings
        from host_syncs import counted_syncs, host_tensors

        config = settings(_model(tiny), folder, name=f"waits {cached}", pairs=2, cached=cached)
        loop, loader = _prepared(config)
        micro = next(iter(loader))
        batches = loop._batches(itertools.repeat(micro))
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


class TestRecords:
    def test_say_where_they_come_from_and_compare_by_ratio(self, tmp_path):
        import records

        where = records.machine()
        assert where["cores"] >= 1
        assert where["versions"]["torch"] == torch.__version__.partition("+")[0] or where["versions"]["torch"]
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
        "1 pairs": {"tax": 0.0123, "tax_low": 0.01, "tax_high": 0.02, "tax_of_minima": 0.011},
    }
    results = tmp_path / "bench.jsonl"
    records.append(results, [records.record("tax.sdxl", values, profile="cpu", where=where)])
    page = tmp_path / "page.md"
    markers = (
        f"<!-- bench_{name}:begin -->\n<!-- bench_{name}:end -->\n"
        for name in performance_page.PARTS_OF_THE_PAGE
    )
    page.write_text("".join(markers))
    performance_page.renew_page(page, results)
    text = page.read_text()
    assert "| 1 pairs | +1.2% | +1.0% to +2.0% | +1.1% |" in text
    assert "| a CPU, 1 of 2 cores | `abc` | torch 9 |" in text


@pytest.mark.usefixtures("_fresh_accelerator")
class TestGpu:
    def test_attention_of_every_kernel_is_compared_with_float32(self):
        import gpu

        found = gpu.attention_errors(torch.device("cpu"), dry=True)
        assert found["sdpa math, sdxl self"] < 0.01
        assert any("masked" in name for name in found)
        assert all(isinstance(value, str) or value < 0.02 for value in found.values())

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
        assert len(gaps) >= 3
        assert max(gaps) < 0.05

    def test_a_budget_that_is_over_is_said_and_not_guessed(self, tmp_path):
        import gpu

        rows = gpu.main(["--dry", "--only", "tango", "--minutes", "0", "--output", str(tmp_path / "x.jsonl")])
        assert [row["left_out"] for row in rows if "left_out" in row] == ["the minutes given were over"]
