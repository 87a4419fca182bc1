"""The client of a reward server: same numbers and fingerprint, retries, no number where there is none."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import rewards
from mmalign.errors import ConfigError
from mmalign.rewards import Sample
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.remote import TOKEN_VARIABLE, RemoteError, RemoteReward
from mmalign.rewards.server import RewardServer
from mmalign.rewards.wire import ProtocolError, card_to_json
from mmalign.testing.simple_rewards import Brightness

TOKEN = "a token of this test".replace(" ", "-")


@pytest.fixture(autouse=True)
def _no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def rows(values: torch.Tensor) -> list[list[str]]:
    """Exact values, NaN included."""
    return [[float(one).hex() for one in row] for row in values.tolist()]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """The same kind of picture in every form a sample may take, and two that fail."""
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 5, 7), generator=noise, dtype=torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.save(tmp_path / "picture.png")
    see_through = image.copy()
    see_through.putalpha(128)
    return [
        Sample(prompt="file", image=tmp_path / "picture.png"),
        Sample(prompt="a path as text", image=str(tmp_path / "picture.png")),
        Sample(prompt="bytes", image=(tmp_path / "picture.png").read_bytes()),
        Sample(prompt="missing", image=tmp_path / "nowhere.png"),
        Sample(prompt="PIL", image=image),
        Sample(prompt="alpha", image=see_through),
        Sample(prompt="tensor", image=torch.rand(3, 5, 7, generator=noise)),
        Sample(prompt="half", image=torch.rand(3, 5, 7, generator=noise).half()),
        Sample(prompt="array", image=pixels.permute(1, 2, 0).numpy()),
        Sample(prompt="broken", image=b"no picture"),
        Sample(prompt="one two three four five six", image=image),
    ]


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_remote_reward_gives_the_very_numbers_of_the_local_one(
    samples: list[Sample], batch_size: int
) -> None:
    local = Brightness(gain=math.pi)
    expected = local.score(samples)
    with RewardServer(Brightness(gain=math.pi), port=0) as server:
        remote = RemoteReward(server.address)
        scored = remote.score(samples, batch_size=batch_size)
    assert rows(scored.values) == rows(expected.values)
    assert scored.values.dtype == torch.float64
    assert scored.outputs == expected.outputs
    assert scored.truncated == expected.truncated
    failed = [place for place, error in enumerate(scored.errors) if error]
    assert failed == [3, 9] == [place for place, error in enumerate(expected.errors) if error]
    assert "no such file" in str(scored.errors[3])


def test_the_server_s_fingerprint_card_and_provenance_are_the_client_s() -> None:
    local = Brightness(gain=2.0)
    with RewardServer(Brightness(gain=2.0), port=0) as server:
        remote = RemoteReward(server.address)
    assert remote.fingerprint() == local.fingerprint()
    assert remote.card == local.card
    assert dict(remote.provenance()) == dict(local.provenance())


def test_an_address_is_a_reward_wherever_a_name_is() -> None:
    with RewardServer(Brightness(), port=0, token=TOKEN) as server:
        reward = rewards.load(server.address, token=TOKEN, retries=0)
        values = reward.score([Sample(image=torch.ones(3, 2, 2))]).first()
    assert values.tolist() == [1.0]


def test_no_samples_are_no_request() -> None:
    with RewardServer(Brightness(), port=0) as server:
        scored = RemoteReward(server.address).score([])
    assert scored.values.shape == (0, 2)
    assert scored.errors == ()


def test_extras_arrive_as_they_were() -> None:
    seen: list[Any] = []

    def keep(batch: Any) -> list[float]:
        seen.extend(batch)
        return [1.0] * len(batch)

    extras = {
        "timestep": 7,
        "share": 0.1,
        "words": ["a", {"b": None, "bytes": "text that looks like media"}],
        "latent": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "mask": np.array([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    with RewardServer(FunctionReward(keep, name="keep"), port=0) as server:
        RemoteReward(server.address).score([Sample(prompt="é\ud83d", text="answer", extras=extras, id="7")])
    (sample,) = seen
    assert (sample.prompt, sample.text, sample.id) == ("é\ud83d", "answer", "7")
    assert sample.extras["timestep"] == 7
    assert sample.extras["share"] == 0.1
    assert sample.extras["words"] == extras["words"]
    assert torch.equal(sample.extras["latent"], extras["latent"])
    assert isinstance(sample.extras["mask"], np.ndarray)
    assert sample.extras["mask"].tolist() == [True, False]
    assert sample.extras["half"].tolist() == [1.5]


def test_clips_and_sounds_arrive_as_files_that_are_gone_afterwards(tmp_path: Path) -> None:
    seen: list[Path] = []

    def size(batch: Any) -> list[float]:
        seen.extend(path for one in batch for path in (one.video, one.audio))
        return [len(one.video.read_bytes()) + len(one.audio.read_bytes()) / 100 for one in batch]

    (tmp_path / "a.mp4").write_bytes(b"12345")
    (tmp_path / "b.WAV").write_bytes(b"1234567")
    sample = Sample(video=tmp_path / "a.mp4", audio=str(tmp_path / "b.WAV"))
    with RewardServer(FunctionReward(size, name="size"), port=0) as server:
        scored = RemoteReward(server.address).score([sample, sample])
    assert scored.first().tolist() == [5.07, 5.07]
    assert [path.suffix for path in seen] == [".mp4", ".wav"] * 2
    assert len({path.parent for path in seen}) == 2
    assert not any(path.exists() or path.is_relative_to(tmp_path) for path in seen)


def test_extras_that_cannot_be_sent_fail_alone() -> None:
    with RewardServer(Brightness(), port=0) as server:
        made = [Sample(image=torch.ones(3, 2, 2), extras={"odd": one}) for one in (object(), 1, {1: 2})]
        scored = RemoteReward(server.address).score(made)
    assert "Sample.extras['odd']: got 'object', expected text, numbers" in str(scored.errors[0])
    assert "expected text as keys" in str(scored.errors[2])
    assert [math.isnan(value) for value in scored.first().tolist()] == [True, False, True]


def test_large_samples_are_split_over_requests_and_too_large_ones_fail_alone() -> None:
    bright = Brightness()
    made = [Sample(image=torch.full((3, 20, 20), value)) for value in (0.25, 0.5, 0.75)]  # 6.4 kB each
    made.insert(1, Sample(image=torch.zeros(3, 40, 40)))  # 25.6 kB
    with RewardServer(bright, port=0, max_body_bytes=15_000) as server:
        scored = RemoteReward(server.address, connections=1).score(made)
    assert scored.first()[[0, 2, 3]].tolist() == [0.25, 0.5, 0.75]
    assert "expected at most 15000" in str(scored.errors[1])
    assert "Raise the server's --max-body-mb" in str(scored.errors[1])
    assert bright.calls == [1, 2], "the first stands before the failed one; the others fit one request"


def test_requests_hold_no_more_samples_than_the_server_takes() -> None:
    with RewardServer(Brightness(), port=0, max_samples=2) as server:
        made = [Sample(image=torch.full((3, 2, 2), number / 8)) for number in range(7)]
        scored = RemoteReward(server.address).score(made, batch_size=100)
    assert scored.first().tolist() == [number / 8 for number in range(7)]


# ------------------------------------------------------------------------------------------------ failures


@contextmanager
def scripted(*answers: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """A server that runs one of `answers` per request, the last one for ever; yields address and paths."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            paths.append(self.path)
            answers[min(len(paths), len(answers)) - 1](self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(status: int, content: Any) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(handler: BaseHTTPRequestHandler) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return send


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """No answer at all."""
    handler.close_connection = True


ABOUT = {
    "protocol": 1,
    "card": card_to_json(Brightness().card),
    "fingerprint": "f" * 64,
    "provenance": {},
    "limits": {"max_samples": 4, "max_body_bytes": 1 << 20},
}
ONE = {"values": [[0.5, 1]], "errors": [None], "truncated": [False], "raw": [None]}
GOOD = {"fingerprint": "f" * 64, "outputs": ["score", "words"], **ONE}
SAMPLE = Sample(prompt="a", image=torch.ones(3, 2, 2))


def test_a_server_that_hangs_up_or_is_busy_is_asked_again() -> None:
    busy = answer(503, {"error": "come again"})
    with scripted(answer(200, ABOUT), hang_up, busy, answer(200, GOOD)) as (address, paths):
        scored = RemoteReward(address, pause=0.001).score([SAMPLE])
    assert scored.values.tolist() == [[0.5, 1.0]]
    assert paths == ["/card", "/score", "/score", "/score"]


def test_pauses_double_and_attempts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("mmalign.rewards.remote.time.sleep", pauses.append)
    with scripted(answer(502, b"bad gateway")) as (address, paths):
        with pytest.raises(
            RemoteError, match=r"no answer after 4 attempts \(HTTP 502: bad gateway\)\. Is `mmalign"
        ):
            RemoteReward(address, retries=3, pause=20.0)
        assert len(paths) == 4
    assert pauses == [20.0, 30.0, 30.0]


def test_nobody_listening_is_a_message_that_says_what_to_start() -> None:
    with RewardServer(Brightness(), port=0) as server:
        address = server.address
    with pytest.raises(
        RemoteError, match=r"no answer after 1 attempts \(ConnectionRefusedError.*serve-reward"
    ):
        RemoteReward(address, retries=0)


def test_a_server_that_answers_too_late_is_given_up() -> None:
    late = threading.Event()
    with scripted(lambda handler: late.wait(5.0)) as (address, _):
        with pytest.raises(RemoteError, match=r"no answer after 1 attempts \(TimeoutError"):
            RemoteReward(address, retries=0, timeout=0.05)
        late.set()


def test_a_failed_call_of_the_reward_is_the_client_s_error_and_not_repeated() -> None:
    failed = answer(500, {"error": "ZeroDivisionError: division by zero"})
    with scripted(answer(200, ABOUT), failed) as (address, paths):
        remote = RemoteReward(address, pause=0.001)
        with pytest.raises(RemoteError, match="HTTP 500: ZeroDivisionError: division by zero"):
            remote.score([SAMPLE])
        assert paths == ["/card", "/score"]


@pytest.mark.parametrize("token", [None, "another-token-of-it"])
def test_a_wrong_token_is_refused_and_named(token: str | None) -> None:
    message = r"HTTP 401.*Give the server's token.*MMALIGN_REWARD_TOKEN"
    with RewardServer(Brightness(), port=0, token=TOKEN) as server, pytest.raises(RemoteError, match=message):
        RemoteReward(server.address, token=token)


def test_the_token_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with RewardServer(Brightness(), port=0, token=TOKEN) as server:
        assert RemoteReward(server.address).card.name == "brightness"


def test_values_of_another_fingerprint_are_refused() -> None:
    other = {**GOOD, "fingerprint": "e" * 64}
    with (
        scripted(answer(200, ABOUT), answer(200, other)) as (address, _),
        pytest.raises(ProtocolError, match=r"got \[values of fingerprint e{16}\], expected f{16}.*restarted"),
    ):
        RemoteReward(address).score([SAMPLE])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": [[0.5, 1.0], [0.5, 1.0]]}, "got .2 rows of score, words., expected 1 rows"),
        ({"values": [[0.5]]}, "expected 1 rows of score, words"),
        ({"outputs": ["words", "score"]}, "got .1 rows of words, score."),
        ({"values": [["0.5", 1.0]]}, "holds no scores .1 faults"),
        ({"errors": None}, "holds no scores"),
        ({"truncated": []}, "expected 1 rows"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    script = (answer(200, ABOUT), answer(200, {**GOOD, **changed}))
    with scripted(*script) as (address, _), pytest.raises(ProtocolError, match=message):
        RemoteReward(address).score([SAMPLE])


def test_a_null_is_no_number_and_never_without_an_error() -> None:
    empty = {**GOOD, "values": [[None, 2.0]]}
    with scripted(answer(200, ABOUT), answer(200, empty)) as (address, _):
        scored = RemoteReward(address).score([SAMPLE])
    assert math.isnan(float(scored.first()))
    assert "the value is not finite" in str(scored.errors[0])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (b"<html>", "the answer is no JSON; is this a server of `mmalign serve-reward`"),
        ([], "got 'list', expected a JSON object"),
        ({**ABOUT, "protocol": 99}, r"got \[protocol 99\], expected protocol 1.*same version"),
        ({**ABOUT, "card": {"name": "x"}}, "holds no reward card"),
        ({**ABOUT, "fingerprint": None}, "expected protocol 1"),
    ],
)
def test_what_is_no_reward_server_is_told_apart(about: Any, message: str) -> None:
    with scripted(answer(200, about)) as (address, _), pytest.raises(ProtocolError, match=message):
        RemoteReward(address)


def test_redirects_are_not_followed_with_the_token() -> None:
    with scripted(answer(200, ABOUT)) as (elsewhere, paths):

        def send(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", f"{elsewhere}/card")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with scripted(send) as (address, _), pytest.raises(RemoteError, match="HTTP 302"):
            RemoteReward(address, token=TOKEN)
        assert paths == []


@pytest.mark.parametrize(
    "address", ["http://", "ftp://host:1", "http://host/path", "http://user:word@host:1", "http://host:port"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"remote reward: got .*expected http://host:port without path"):
        RemoteReward(address)


@pytest.mark.parametrize(
    "setting", [{"timeout": 0.0}, {"retries": -1}, {"pause": -0.1}, {"connections": 0}, {"timeout": math.nan}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(setting))}: got .*expected at least"):
        RemoteReward("http://127.0.0.1:9", **setting)
