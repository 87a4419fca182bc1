"""The reward server: who may reach it, what it refuses, what it scores together, how it stops."""

import base64
import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign.errors import ConfigError
from mmalign.rewards import Sample, Scored
from mmalign.rewards.access import is_loopback, require_token
from mmalign.rewards.ensemble import Ensemble
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.merging import Merger
from mmalign.rewards.server import RewardServer
from mmalign.testing.simple_rewards import Brightness

TOKEN = "0123456789abcdef"


def ask(
    server: RewardServer,
    method: str = "POST",
    path: str = "/score",
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request, sent as it stands."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    sent = {"Content-Type": "application/json"} if data is not None else {}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, body=data, headers={**sent, **(headers or {})})
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


def red(value: float) -> dict[str, Any]:
    """A tiny picture on the wire."""
    pixels = torch.full((3, 2, 2), value).numpy()
    return {"tensor": base64.b64encode(pixels.tobytes()).decode(), "dtype": "float32", "shape": [3, 2, 2]}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.3.5.7", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.7", False),
        ("localhost.example.org", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "somewhere.example.org"])
def test_a_server_for_others_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"serve-reward --host: got .*when there is no token.*--token-file"):
        RewardServer(Brightness(), host=host, port=0)
    require_token(host, TOKEN)


@pytest.mark.parametrize("token", ["", "short", "fifteen-letters", "with a space in it", "ünïcödé-ünïcödé-"])
def test_a_token_that_is_guessed_or_mangled_easily_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=r"serve-reward token: got .*at least 16 printable ASCII"):
        RewardServer(Brightness(), port=0, token=token)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*another --port"):
            RewardServer(Brightness(), port=port)


def test_an_ensemble_that_compares_candidates_is_not_served() -> None:
    with pytest.raises(ConfigError, match=r"serve-reward ensemble: .*Serve its members"):
        RewardServer(Ensemble([Brightness()]), port=0)


# ------------------------------------------------------------------------------------------------ requests


def test_health_is_open_and_the_rest_asks_for_the_token() -> None:
    good = {"Authorization": f"Bearer {TOKEN}"}
    with RewardServer(Brightness(), port=0, token=TOKEN) as server:
        assert ask(server, "GET", "/health") == (200, {"status": "ok", "protocol": 1})
        bad = [
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer ÿ"},
        ]
        for headers in bad:
            assert ask(server, "GET", "/card", headers=headers)[0] == 401
            assert ask(server, body={"samples": []}, headers=headers)[0] == 401
        status, about = ask(server, "GET", "/card", headers=good)
        assert status == 200
        assert about["card"]["name"] == "brightness"
        assert about["fingerprint"] == Brightness().fingerprint()
        status, found = ask(server, body={"samples": [{"image": red(0.5)}]}, headers=good)
    assert (status, found["values"]) == (200, [[0.5, 0.0]])


def test_a_page_in_the_user_s_browser_cannot_score_through_a_server_without_a_token() -> None:
    """A page of another origin can send plain text, or any name that resolves to 127.0.0.1 as Host."""
    with RewardServer(Brightness(), port=0) as server:
        assert ask(server, "GET", "/card", headers={"Host": "evil.example.org"})[0] == 403
        text = {"Content-Type": "text/plain"}
        assert ask(server, body=b'{"samples": []}', headers=text)[0] == 415
        assert ask(server, "GET", "/card", headers={"Host": f"localhost:{server.port}"})[0] == 200


def test_requests_that_are_none_get_their_own_answer() -> None:
    with RewardServer(Brightness(), port=0, max_samples=2, max_body_bytes=5000) as server:
        assert ask(server, "GET", "/nothing") == (
            404,
            {"error": "got GET /nothing, expected GET /health, GET /card or POST /score."},
        )
        assert ask(server, body=b"{")[0] == 400
        assert ask(server, body=b"[" * 4999)[0] == 400
        assert ask(server, body={"sample": []}) == (400, {"error": 'expected {"samples": [...]}.'})
        status, found = ask(server, body={"samples": [{}] * 3})
        assert (status, found["error"]) == (413, "got 3 samples, expected at most 2 in one request.")
        status, found = ask(server, body=b" " * 200_000)
        assert (status, found["error"]) == (413, "got 200000 bytes, expected at most 5000 in one request.")
        assert ask(server, body=b"", headers={"Content-Length": "-5"})[0] == 411


def test_no_path_of_a_client_is_opened(tmp_path: Path) -> None:
    """Not as an image, not as a clip, not in extras, and not through the ending of a file."""
    Image.new("RGB", (5, 7)).save(tmp_path / "secret.png")
    path = str(tmp_path / "secret.png")
    seen: list[Sample] = []

    def keep(batch: Sequence[Sample]) -> list[float]:
        seen.extend(batch)
        return [1.0] * len(batch)

    clip = {"bytes": base64.b64encode(b"clip").decode(), "ending": "../../x"}
    with RewardServer(FunctionReward(keep, name="keep"), port=0) as server:
        made = [
            {"image": path},
            {"video": path},
            {"audio": path},
            {"frames": [path]},
            {"extras": {"a": path}},
        ]
        status, found = ask(server, body={"samples": [*made, {"video": clip}]})
    assert status == 200
    assert ["paths are not opened" in str(error) for error in found["errors"]] == [True] * 4 + [False] * 2
    assert [row == [None] for row in found["values"]] == [True] * 4 + [False] * 2
    text, file = seen
    assert text.extras == {"a": path}, "text in extras stays text"
    assert Path(str(file.video)).name == "video"


@pytest.mark.parametrize(
    "sample",
    [
        "text",
        {"picture": red(0.5)},
        {"prompt": 7},
        {"image": {"bytes": "not base64!"}},
        {"image": {"bytes": 7}},
        {"image": {"pickle": "gASVAAAA"}},
        {"image": {**red(0.5), "shape": [3, 2, 3]}},
        {"image": {**red(0.5), "shape": [3, -2, -2]}},
        {"image": {**red(0.5), "shape": "3"}},
        {"image": {**red(0.5), "dtype": "object"}},
        {"frames": red(0.5)},
        {"extras": [1]},
        {"extras": {"a": json.loads("[" * 40 + "]" * 40)}},
    ],
)
def test_a_malformed_sample_fails_alone(sample: Any) -> None:
    with RewardServer(Brightness(), port=0) as server:
        good = {"image": red(0.25)}
        status, found = ask(server, body={"samples": [good, sample, good]})
    assert status == 200
    assert found["values"] == [[0.25, 0.0], [None, None], [0.25, 0.0]]
    assert ", expected " in found["errors"][1]
    assert found["errors"][::2] == [None, None]


def test_an_error_of_the_reward_is_answered_and_shown_here(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(batch: Sequence[Sample]) -> list[float]:
        raise ZeroDivisionError("by the test")

    with RewardServer(FunctionReward(fail, name="fail"), port=0) as server:
        for _ in range(2):  # it goes on serving
            status, found = ask(server, body={"samples": [{}]})
            assert (status, found) == (500, {"error": "ZeroDivisionError: by the test"})
    assert "ZeroDivisionError: by the test" in capfd.readouterr().err


def test_a_client_that_leaves_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    with RewardServer(Brightness(), port=0) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        assert ask(server, body={"samples": [{"image": red(0.5)}]})[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_closing_answers_the_requests_that_are_in() -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(batch: Sequence[Sample]) -> list[float]:
        entered.set()
        assert go.wait(10)
        return [1.0] * len(batch)

    server = RewardServer(FunctionReward(slow, name="slow"), port=0).start()
    with ThreadPoolExecutor() as pool:
        turn = pool.submit(ask, server, body={"samples": [{}]})
        assert entered.wait(10)
        closing = pool.submit(server.close)
        time.sleep(0.05)
        assert not closing.done()
        go.set()
        closing.result(timeout=10)
        assert turn.result(timeout=10)[1]["values"] == [[1.0]]
    with pytest.raises(ConnectionError):
        ask(server, body={"samples": []})


# ------------------------------------------------------------------------------------------------ merging


def scores(samples: Sequence[Sample]) -> Scored:
    """A sample's value is the number in its prompt."""
    values = torch.tensor([[float(sample.prompt)] for sample in samples], dtype=torch.float64).reshape(-1, 1)
    none = (None,) * len(samples)
    return Scored(values, ("score",), none, (False,) * len(samples), none)


class Gated:
    """`scores`, with a first call that waits until it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, samples: Sequence[Sample]) -> Scored:
        self.calls.append([sample.prompt for sample in samples])
        if len(self.calls) == 1:
            self.entered.set()
            assert self.go.wait(10)
        if any(sample.prompt == "bad" for sample in samples):
            raise ValueError("bad sample")
        return scores(samples)


def merged(prompts: Sequence[Sequence[str]], *, max_samples: int = 256) -> tuple[Gated, list[Any]]:
    """Results of orders that all arrive while a first one is scored."""
    gate = Gated()
    merger = Merger(gate, max_samples=max_samples)
    with ThreadPoolExecutor(max_workers=16) as pool:
        first = pool.submit(merger.score, [Sample(prompt="0")])
        assert gate.entered.wait(10)
        turns = []
        for number, order in enumerate(prompts, start=1):
            turns.append(pool.submit(merger.score, [Sample(prompt=prompt) for prompt in order]))
            while len(merger._waiting) < number:
                time.sleep(0.001)
        gate.go.set()
        assert first.result(timeout=10).first().tolist() == [0.0]
        results = [turn.exception(timeout=10) or turn.result().first().tolist() for turn in turns]
    merger.close()
    return gate, results


def test_what_waits_while_the_scorer_is_busy_is_scored_in_one_call() -> None:
    gate, results = merged([["1", "2"], ["3"], ["4", "5", "6"]])
    assert gate.calls == [["0"], ["1", "2", "3", "4", "5", "6"]]
    assert results == [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]


def test_a_merged_call_stays_within_its_size() -> None:
    gate, results = merged([["1", "2"], ["3"], ["4", "5", "6"], ["7"] * 7], max_samples=3)
    assert gate.calls[1:] == [["1", "2", "3"], ["4", "5", "6"], ["7"] * 7]
    assert results == [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0], [7.0] * 7]


def test_one_order_s_failure_is_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    gate, results = merged([["1"], ["bad"], ["2"]])
    assert results[0] == [1.0]
    assert isinstance(results[1], ValueError)
    assert results[2] == [2.0]
    assert gate.calls[1:] == [["1", "bad", "2"], ["1"], ["bad"], ["2"]]
    assert "a call of 3 samples failed" in caplog.text
    assert "ValueError" in caplog.text


def test_a_closed_merger_takes_no_more() -> None:
    merger = Merger(scores)
    merger.close()
    merger.close()
    with pytest.raises(ConfigError, match="shutting down"):
        merger.score([Sample(prompt="1")])


def test_many_clients_at_once_get_their_own_numbers() -> None:
    with RewardServer(Brightness(), port=0, max_requests=3) as server:

        def one(number: int) -> list[list[float]]:
            body = {"samples": [{"image": red(number / 64), "prompt": "a"}] * (1 + number % 3)}
            return ask(server, body=body)[1]["values"]

        with ThreadPoolExecutor(max_workers=12) as pool:
            found = list(pool.map(one, range(30)))
    assert found == [[[number / 64, 1.0]] * (1 + number % 3) for number in range(30)]
    assert not math.isnan(sum(row[0] for rows in found for row in rows))
