"""Object detectors behind one small protocol; Mask2Former and DETR-like ones through transformers.

A benchmark asks for detections above a low score and chooses among them itself. Each picture passes the
network at its own size: padding of a neighbour in the batch would move boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.rewards.card import Weights
from mmalign.rewards.weights import hashes, resolve

__all__ = [
    "MASK2FORMER_COCO",
    "Box",
    "Detection",
    "Detector",
    "TransformersDetector",
    "instances_from_queries",
    "load_detector",
]

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the picture."""

MASK2FORMER_COCO = "facebook/mask2former-swin-small-coco-instance"
"""The architecture of GenEval's detector, with weights of its own."""

_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")


@dataclass(frozen=True, eq=False)
class Detection:
    """One object found in a picture.

    Args:
        label: its class, in the detector's words.
        score: confidence in [0, 1].
        box: around it.
        mask: [height, width] of the picture, True where the object is; None for detectors of boxes.
    """

    label: str
    score: float
    box: Box
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)


@runtime_checkable
class Detector(Protocol):
    """What benchmarks ask of a detector.

    Attributes:
        name: what reports call it.
        labels: classes it knows.
        calibrated_for: benchmarks whose published numbers it was shown to reproduce.
    """

    name: str
    labels: Sequence[str]
    calibrated_for: Sequence[str]

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Objects of each picture, in any order; independent of the other pictures."""

    def provenance(self) -> Mapping[str, Any]:
        """What can change its answers: weights, thresholds, post-processing; JSON types."""


def instances_from_queries(
    class_logits: Float[Tensor, "query class"],
    mask_logits: Float[Tensor, "query mask_height mask_width"],
    size: tuple[int, int],
    *,
    min_score: float = 0.05,
    limit: int = 100,
) -> list[tuple[int, float, Box, NDArray[np.bool_]]]:
    """Instances as (class, score, box, mask) from what a mask transformer predicts for one picture.

    The `limit` best of all (query, class) pairs are candidates, the last class ("nothing") left out. A mask
    is where its logits, brought to the picture's size (bilinear), are above 0; its score is the class
    probability times the mean mask probability inside. Empty masks are left out. The right and bottom
    edge of a box lie behind its last pixel.

    Args:
        class_logits: one row per query; the last column is "nothing".
        mask_logits: of the same queries, covering the picture and nothing else.
        size: (height, width) of the picture.
        min_score: lowest score that is returned.
        limit: pairs considered.

    Source: Mask2Former's instance inference (2112.01527), at the picture's resolution.
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    classes = probabilities.shape[1]
    best, places = probabilities.flatten().topk(min(limit, probabilities.numel()))
    found: list[tuple[int, float, Box, NDArray[np.bool_]]] = []
    for probability, place in zip(best.tolist(), places.tolist(), strict=True):
        if probability < min_score:  # the mask's mean probability cannot lift it
            break
        query, label = divmod(place, classes)
        grown = torch.nn.functional.interpolate(
            mask_logits[query].float()[None, None], size=size, mode="bilinear", align_corners=False
        )[0, 0]
        mask = grown > 0
        if not bool(mask.any()):
            continue
        score = probability * float(grown[mask].sigmoid().mean())
        if score >= min_score:
            found.append((label, score, _box_of(mask), mask.cpu().numpy()))
    return found


def _box_of(mask: Tensor) -> Box:
    """The smallest box around a mask that is not empty."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


class TransformersDetector:
    """A detector of transformers: instance segmentation by queries, or boxes.

    Args:
        model: `...ForUniversalSegmentation` or `...ForObjectDetection`.
        processor: its image processor.
        name: what reports call it.
        weights: file name to SHA-256, for provenance.
        min_score: lowest score that is returned.
        batch_size: pictures per network call; only pictures of one processed size share a call.
        size: what the processor brings pictures to ({"shortest_edge": 800, "longest_edge": 1333}, ...); None
            is its own choice.
    """

    calibrated_for: Sequence[str] = ()

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        weights: Mapping[str, str] | None = None,
        min_score: float = 0.05,
        batch_size: int = 4,
        size: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.labels = tuple(str(label) for _, label in sorted(model.config.id2label.items()))
        self._model = model.eval()
        self._processor = processor
        self._weights = dict(weights or {})
        self._min_score = min_score
        self._batch_size = batch_size
        self._size = dict(size if size is not None else processor.size)
        self._masks = type(model).__name__.endswith("ForUniversalSegmentation")

    def provenance(self) -> Mapping[str, Any]:
        """Name, hashes, thresholds and how masks become objects."""
        return {
            "name": self.name,
            "weights": self._weights,
            "min_score": self._min_score,
            "size": self._size,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "instances": "queries at picture size" if self._masks else "boxes",
            "calibrated_for": list(self.calibrated_for),
        }

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Objects of each picture with at least `min_score`, best first."""
        prepared = [self._processor(images=[image], size=self._size, return_tensors="pt") for image in images]
        found: list[list[Detection]] = [[] for _ in images]
        for places in self._calls([tuple(inputs["pixel_values"].shape) for inputs in prepared]):
            batch = {
                name: torch.cat([prepared[place][name] for place in places]).to(self._model.device)
                for name in ("pixel_values", "pixel_mask")
                if name in prepared[places[0]]
            }
            batch["pixel_values"] = batch["pixel_values"].to(self._model.dtype)
            outputs = self._model(**batch)
            for row, place in enumerate(places):
                size = (images[place].height, images[place].width)
                read = self._segmented if self._masks else self._boxed
                objects = read(outputs, row, size)
                found[place] = sorted(objects, key=lambda detection: detection.score, reverse=True)
        return found

    def _calls(self, shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Places of pictures that pass the network together."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, shape in enumerate(shapes):
            by_shape.setdefault(shape, []).append(place)
        return [
            places[start : start + self._batch_size]
            for places in by_shape.values()
            for start in range(0, len(places), self._batch_size)
        ]

    def _segmented(self, outputs: Any, row: int, size: tuple[int, int]) -> list[Detection]:
        instances = instances_from_queries(
            outputs.class_queries_logits[row],
            outputs.masks_queries_logits[row],
            size,
            min_score=self._min_score,
        )
        return [Detection(self.labels[label], score, box, mask) for label, score, box, mask in instances]

    def _boxed(self, outputs: Any, row: int, size: tuple[int, int]) -> list[Detection]:
        single = type(outputs)(
            logits=outputs.logits[row : row + 1].float(), pred_boxes=outputs.pred_boxes[row : row + 1].float()
        )
        (result,) = self._processor.post_process_object_detection(
            single, threshold=self._min_score, target_sizes=[size]
        )
        rows = zip(
            result["labels"].tolist(), result["scores"].tolist(), result["boxes"].tolist(), strict=True
        )
        return [
            Detection(self._model.config.id2label[label], score, (box[0], box[1], box[2], box[3]))
            for label, score, box in rows
        ]


def load_detector(
    weights: str | Path = MASK2FORMER_COCO,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    min_score: float = 0.05,
    batch_size: int = 4,
    size: Mapping[str, int] | None = None,
) -> TransformersDetector:
    """A detector from a folder or from the hub.

    Args:
        weights: folder in the layout of transformers (safetensors), or hub id.
        device: where it runs.
        dtype: of the network.
        revision: commit on the hub; None is its main branch.
        min_score: lowest score that is returned; below every threshold of the benchmarks that use it.
        batch_size: pictures per network call.
        size: what pictures are brought to; None is the checkpoint's own choice, which may be smaller than the
            1333 x 800 of mmdetection and then misses small objects.

    Raises:
        CheckpointError: the weights are nowhere, do not fill the network, or belong to no detector.
        ConfigError: a folder that lacks a file.
    """
    import transformers

    local = Path(weights)
    name = local.name if local.is_dir() else str(weights)
    wanted = Weights(name, _FILES, revision=revision, role="detector")
    folder = resolve(wanted, folder=local if local.is_dir() else None, reward="detector")
    config = transformers.AutoConfig.from_pretrained(folder)
    # Boxes first: DETR's configuration is also one of a segmentation model, whose head detectors lack.
    boxes = type(config) in transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING
    if not boxes and type(config) not in transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
        message = explain(
            f"{folder}/config.json model_type",
            got=config.model_type,
            expected="a universal segmentation or object detection model of transformers",
        )
        raise ConfigError(message)
    kind = "AutoModelForObjectDetection" if boxes else "AutoModelForUniversalSegmentation"
    model, report = getattr(transformers, kind).from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted([*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])])
        message = explain(
            str(folder),
            got=f"[no weights for {', '.join(lacking[:5])}{' and others' if len(lacking) > 5 else ''}]",
            expected=f"every weight of {type(model).__name__}",
            do="Without them parts of the detector would be random.",
        )
        raise CheckpointError(message)
    return TransformersDetector(
        model.to(device),
        transformers.AutoImageProcessor.from_pretrained(folder),
        name=name,
        weights=hashes(folder, _FILES),
        min_score=min_score,
        batch_size=batch_size,
        size=size,
    )
