"""VisionReward-Video's rule: yes-or-no questions about a clip, each answer +1 or -1, weighted and averaged.

Its own network (CogVLM2-Video) runs code from its repository, which nothing here does: the questions and
weights of the publisher's files are asked of a chat model in the same folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import CheckpointError, RowError, ShapeError, explain
from mmalign.evals.video.footage import Footage, read_footage
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample
from mmalign.rewards.vision_language import ChatModel
from mmalign.rewards.weights import hashes

__all__ = ["CARD", "CAVEAT", "VisionRewardVideo", "checklist_score", "frame_per_second", "load_vision_reward"]

QUESTIONS = "VisionReward_video_qa_select.txt"
WEIGHTS = "weight.json"
_MOST_FRAMES = 24

CAVEAT = (
    "VisionReward-Video prefers a frozen copy of a clip about 70 % of the time (2506.03517, appendix): read "
    "it beside a measure of motion, never as the judge of one."
)

CARD = Card(
    name="visionreward_video",
    title="VisionReward-Video's checklist: 29 questions about a clip, weighted answers of a chat model",
    modality="video",
    scale="mean of weight * (+1 for yes, -1 for anything else), the publisher's weights",
    paper="2412.21059",
    official_code="THUDM/VisionReward",
    departures=("Asked of a chat model of yours; the published network needs code from its repository.",),
)


def checklist_score(answers: Sequence[str], weights: Sequence[float]) -> float:
    """Mean over questions of weight * (1 where the answer is "yes", else -1), as released.

    Two clips are compared by the sign of sum of weight * (answer of one - answer of the other), which is that
    of the difference of their scores.

    Args:
        answers: the first token each, decoded. "Yes", " yes" and errors are no "yes", as released.
        weights: of the questions.

    Raises:
        ShapeError: another number of answers than weights, or none.

    Source: THUDM/VisionReward, inference-video.py.
    """
    if not answers or len(answers) != len(weights):
        message = explain("answers", got=f"[{len(answers)}]", expected=f"{len(weights)}, one per weight")
        raise ShapeError(message)
    signed = (weight if answer == "yes" else -weight for answer, weight in zip(answers, weights, strict=True))
    return sum(signed) / len(weights)


def frame_per_second(clip: Footage) -> list[int]:
    """Indices of the frames nearest to second 0, 1, 2, ..., at most 24, the earlier of two as near.

    Source: THUDM/VisionReward, inference-video.py.
    """
    moments = [place / clip.fps for place in range(len(clip.frames))]
    seconds = range(min(_MOST_FRAMES, round(moments[-1]) + 1))
    return [
        min(range(len(moments)), key=lambda place, second=second: abs(moments[place] - second))  # type: ignore[misc]
        for second in seconds
    ]


class VisionRewardVideo(ModelReward):
    """The checklist, asked of a chat model.

    Args:
        model: who is asked.
        questions: with `[[prompt]]` where the prompt goes.
        weights: one each.
        files: hashes of what they were read from.

    Raises:
        CheckpointError: another number of weights than questions.
    """

    def __init__(
        self,
        model: ChatModel,
        questions: Sequence[str],
        weights: Sequence[float],
        *,
        files: Mapping[str, str],
    ) -> None:
        super().__init__(CARD, device=model.device, dtype=model.network.dtype)
        if not questions or len(questions) != len(weights):
            got = f"[{len(weights)} weights of {len(questions)} questions]"
            raise CheckpointError(explain(WEIGHTS, got=got, expected="one weight per question"))
        self.model, self.questions, self.weights = model, tuple(questions), tuple(weights)
        self._files = dict(files)

    def prepare(self, sample: Sample) -> Prepared:
        """The frames and the questions.

        Raises:
            RowError: there is no clip (`missing_video`), or it cannot be read.
        """
        if sample.video is None:
            message = explain(f"reward {CARD.name}", got="[a sample without video]", expected="a clip")
            raise RowError(message, reason="missing_video")
        clip = read_footage(sample.video)
        frames: list[Any] = [clip.frames[place].float() / 255.0 for place in frame_per_second(clip)]
        shown = [self.model.shown(frames, where="Sample.video")]
        prompt = self.model.safe(sample.prompt)
        asked = [self.model.question(text.replace("[[prompt]]", prompt), shown) for text in self.questions]
        return Prepared({"questions": asked})

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """One score per clip."""
        found = []
        for sample in batch:
            answers = []
            for question in sample.inputs["questions"]:  # one by one: a clip is long
                token = int(self.model.logits([question])[0, 0].argmax())
                answers.append(str(self.model.tokenizer.decode([token])))
            found.append(checklist_score(answers, self.weights))
        return torch.tensor(found, dtype=torch.float64)[:, None]

    def settings(self) -> Mapping[str, Any]:
        """The model's hashes, those of the questions and weights, the frames."""
        return {
            **self.model.settings(),
            "templates": [self._files[QUESTIONS]],
            "checklist weights": self._files[WEIGHTS],
            "frames": f"nearest to each second, at most {_MOST_FRAMES}",
            "answer": "first token, greedy, exactly yes",
        }


def load_vision_reward(
    folder: str | Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> VisionRewardVideo:
    """The checklist from a folder: the publisher's two files beside a chat model of transformers' own.

    Args:
        folder: holds `VisionReward_video_qa_select.txt`, `weight.json`, and a model as `save_pretrained`
            writes it.
        device: where the model stands.
        dtype: of the model.

    Raises:
        CheckpointError: something of it is missing, or the model needs code from its repository.
    """
    do = (
        f"Put {QUESTIONS} and {WEIGHTS} of THUDM/VisionReward (VisionReward-Video/) beside a chat model that "
        f"sees clips, and name the folder: {CARD.name}=FOLDER."
    )
    expected = "a folder with questions, weights and a chat model"
    if folder is None:
        raise CheckpointError(explain(CARD.name, got="[no folder]", expected=expected, do=do))
    root = Path(folder)
    lacking = [name for name in (QUESTIONS, WEIGHTS, "config.json") if not (root / name).is_file()]
    if lacking:
        got = f"[{root} without {', '.join(lacking)}]"
        raise CheckpointError(explain(CARD.name, got=got, expected=expected, do=do))
    if "auto_map" in json.loads((root / "config.json").read_text(encoding="utf-8")):
        message = explain(
            CARD.name,
            got=f"[{root}: a model with code of its own (auto_map)]",
            expected="one that transformers has the code of",
            do="CogVLM2-Video's code is not run here. Take another chat model, or the official script.",
        )
        raise CheckpointError(message)
    lines = (root / QUESTIONS).read_text(encoding="utf-8").splitlines()
    weights = [float(weight) for weight in json.loads((root / WEIGHTS).read_text(encoding="utf-8"))]
    model = ChatModel(root, device=device, dtype=dtype)
    return VisionRewardVideo(
        model, [line for line in lines if line.strip()], weights, files=hashes(root, (QUESTIONS, WEIGHTS))
    )
