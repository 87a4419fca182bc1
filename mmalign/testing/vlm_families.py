"""What every vision-language family must do, as a test class: derive from it and say which model.

    class TestLlava(VlmFamilyConformance):
        family = "llava"

        @pytest.fixture
        def folder(self): ...

The comparisons are with plain transformers and peft: the model's own loss on what its processor makes of a
whole dialogue, its own generation, and loading of what we save.
"""

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from mmalign.batch import PreferenceRow
from mmalign.errors import RowError
from mmalign.testing.vlm_dialogues import (
    assert_same_gradient,
    batch_of,
    dialogue,
    load_vlm,
    own_sums,
    photo,
    shared_vlm,
    token_log_probs,
    with_adapter,
)
from mmalign.vlm.family import VlmModel

__all__ = ["VlmFamilyConformance", "VlmTrainingConformance"]


class _OfOneFamily:
    """A family and its tiny model.

    Attributes:
        family: name in the registry.
        visual_tokens: of a picture of 60 x 50 pixels; None for models that see nothing.
    """

    family: ClassVar[str]

    @pytest.fixture
    def folder(self) -> Path:
        """The tiny model's folder."""
        message = f"{type(self).__name__}: expected a fixture `folder` of its own, the tiny model's folder"
        raise NotImplementedError(message)

    def load(self, folder: Path, **options: Any) -> VlmModel:
        """A model of one's own."""
        return load_vlm(self.family, folder, **options)

    def model(self, folder: Path) -> VlmModel:
        """The model that no test changes."""
        return shared_vlm(self.family, folder)

    def rows(self, model: VlmModel) -> list[PreferenceRow]:
        """Rows as the family can see them: one picture, other pictures, two pictures, none."""
        if "image" not in model.traits.sees:
            return [dialogue(1, images=0), dialogue(2, images=0, prompt="And now?")]
        rows = [dialogue(1, other=True), dialogue(2, images=2, other=True)]
        return rows if model.family == "paligemma" else [*rows, dialogue(3, images=0)]


class VlmFamilyConformance(_OfOneFamily):
    """Scores of one family: what its log-probabilities are, and what must not change them."""

    def test_log_probabilities_are_those_of_the_models_own_loss(self, folder: Path) -> None:
        """On whole dialogues from the model's own processor, one at a time."""
        model = self.model(folder)
        rows = self.rows(model)
        found = token_log_probs(model, rows).sum(-1)
        for number, row in enumerate(rows):
            expected = own_sums(model, model.bare_network, row)
            torch.testing.assert_close(
                found[number, : len(expected)],
                torch.tensor(expected, dtype=torch.float64),
                rtol=1e-6,
                atol=1e-6,
            )

    def test_packed_rows_and_shared_images_change_neither_numbers_nor_gradients(self, folder: Path) -> None:
        """Three layouts, the last of them the model's own forward; LoRA weights get the same gradients."""
        results = []
        for tokens in (
            {"packing": "packed"},
            {"packing": "plain"},
            {"packing": "plain", "share_vision": "off"},
        ):
            model = self.load(folder, tokens=tokens)
            assert model.mode.packed == (tokens["packing"] == "packed")
            trainables = with_adapter(model)
            inner = token_log_probs(model, self.rows(model))
            weights = torch.linspace(-1.0, 1.0, inner.numel(), dtype=inner.dtype).view(inner.shape)
            (inner * weights).sum().backward()
            grads = [parameter.grad for parameter in trainables.parameters.values()]
            results.append((inner.detach(), grads))
        for inner, grads in results[1:]:
            torch.testing.assert_close(inner, results[0][0], rtol=0, atol=1e-7)
            for grad, expected in zip(grads, results[0][1], strict=True):
                assert_same_gradient(grad, expected)

    def test_adapters_go_on_the_decoder_alone(self, folder: Path) -> None:
        """Every linear layer of the decoder has one; tower, projector and head have none."""
        model = self.load(folder)
        trainables = with_adapter(model)
        adapted = {name.split(".lora_")[0] for name in trainables.parameters}
        decoder = model.traits.decoder(model.bare_network)
        modules = model.network.named_modules()
        assert adapted
        assert {model.traits.part_of(name) for name in adapted} == {"language"}
        assert not any("lm_head" in name for name in adapted)
        assert adapted == {name for name, module in modules if hasattr(module, "base_layer")}
        bare_ones = [
            name
            for name, module in decoder.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name and not name.endswith("base_layer")
        ]
        assert bare_ones == []

    def test_a_distinct_picture_is_encoded_once(self, folder: Path) -> None:
        """Whatever the number of answers, and of rows that show it."""
        model = self.model(folder)
        if "image" not in model.traits.sees:
            assert batch_of(model, self.rows(model)).context.features is None  # type: ignore[union-attr]
            return
        row = dialogue(1)
        batch = batch_of(model, [row, replace(row, id="twin", prompt="Another question?")])
        inputs: Any = batch.context
        (visual,) = inputs.visual.values()
        (features,) = inputs.features.values()
        assert visual.source.shape[0] == 2 * features.values.shape[0]
        assert int(visual.source.max()) == features.values.shape[0] - 1
        assert inputs.ids.shape[0] == 2

    def test_a_row_with_too_few_places_is_refused(self, folder: Path) -> None:
        """Before any forward pass, with the counts."""
        model = self.model(folder)
        row = replace(dialogue(1, images=2), prompt="One place <image> for two?")
        expected = "image_count" if "image" in model.traits.sees else "media_kind"
        with pytest.raises(RowError, match=r"test:1") as caught:
            model.example(row, key=0)
        assert caught.value.reason == expected

    def test_videos_are_scored_as_the_model_itself_would(self, folder: Path) -> None:
        """Clips of frames, packed and by the model's own forward."""
        model = self.model(folder)
        if "video" not in model.traits.sees:
            with pytest.raises(RowError, match="1 videos"):
                model.example(dialogue(1, images=0, videos=1), key=0)
            return
        rows = [dialogue(1, images=0, videos=1), dialogue(2, images=1, videos=1)]
        own = self.load(folder, tokens={"packing": "plain", "share_vision": "off"})
        torch.testing.assert_close(
            token_log_probs(model, rows), token_log_probs(own, rows), rtol=0, atol=1e-7
        )
        batch: Any = batch_of(model, rows)
        changed = replace(rows[0], videos=(tuple(photo(900 + frame) for frame in range(4)),))
        assert not torch.allclose(token_log_probs(model, [changed])[0], token_log_probs(model, rows[:1])[0])
        assert batch.context.ids.shape[0] == 2


class VlmTrainingConformance(_OfOneFamily):
    """What training, saving and writing answers need of one family."""

    def test_checkpointed_layers_give_the_same_gradients(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Packed rows, LoRA, layers recomputed in the backward pass; small products are kept, too."""
        monkeypatch.setattr("mmalign.train.recomputing.KEPT_FROM", 16)
        grads = []
        for checkpointing in (False, True, "selective"):
            model = self.load(folder, model={"gradient_checkpointing": checkpointing})
            trainables = with_adapter(model)
            token_log_probs(model, self.rows(model)[:1]).sum().backward()
            grads.append([parameter.grad for parameter in trainables.parameters.values()])
        for found, expected in zip(grads[1], grads[0], strict=True):
            assert_same_gradient(found, expected)
        for found, expected in zip(grads[2], grads[0], strict=True):
            assert found is not None
            assert expected is not None
            assert torch.equal(found, expected)

    def test_a_saved_adapter_works_in_plain_transformers_and_peft(self, folder: Path, tmp_path: Path) -> None:
        """The same log-probabilities, and the same answer written."""
        from peft import PeftModel

        model, plain = (self.load(folder, dtype=torch.float32) for _ in range(2))
        with_adapter(model)
        loaded = PeftModel.from_pretrained(plain.bare_network, str(model.save_adapter(tmp_path / "adapter")))
        row = self.rows(model)[0]
        ours = token_log_probs(model, [row]).sum(-1)[0]
        theirs = torch.tensor(own_sums(model, loaded, row))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
        assert model.generate([row], max_new_tokens=5) == plain.generate([row], max_new_tokens=5)

    def test_a_saved_model_has_the_adapter_in_it(self, folder: Path, tmp_path: Path) -> None:
        """Loaded again as a model, with its processor, it gives the same log-probabilities."""
        model = self.load(folder, dtype=torch.float32)
        with_adapter(model)
        row = self.rows(model)[0]
        again = self.load(model.save_model(tmp_path / "merged"), dtype=torch.float32)
        torch.testing.assert_close(
            token_log_probs(again, [row]), token_log_probs(model, [row]), rtol=1e-4, atol=1e-3
        )

    def test_answers_written_together_are_those_written_alone(self, folder: Path) -> None:
        """Prompts of different lengths are filled up in front without an effect; the seed decides draws."""
        model = self.model(folder)
        rows = self.rows(model)
        together = model.generate(rows, max_new_tokens=5)
        assert together == [model.generate([row], max_new_tokens=5)[0] for row in rows]
        drawn = [model.generate(rows, max_new_tokens=5, temperature=1.5, seed=seed) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2]

    def test_a_trained_projector_gets_its_gradients_from_every_answer(self, folder: Path) -> None:
        """Features are then made in the forward pass, once, and equal to those of the model's own."""
        grads = []
        for tokens in ({"packing": "packed"}, {"packing": "plain", "share_vision": "off"}):
            model = self.load(folder, tokens={**tokens, "train_projector": True})
            if "image" not in model.traits.sees:
                assert not model.parameter_groups(dict(model.network.named_parameters()))["projector"]
                return
            named = dict(model.network.named_parameters())
            projector = model.parameter_groups(named)["projector"]
            assert projector
            for parameter in projector:
                parameter.requires_grad_(True)
            token_log_probs(model, self.rows(model)[:1]).sum().backward()
            grads.append([parameter.grad for parameter in projector])
        for found, expected in zip(*grads, strict=True):
            assert_same_gradient(found, expected)

    def test_readers_travel_to_workers(self, folder: Path) -> None:
        """A reader that was sent to another process makes the same tokens."""
        model = self.model(folder)
        row = self.rows(model)[0]
        example = ForkingPickler.loads(bytes(ForkingPickler.dumps(model.reader)))(row, key=3)
        for found, expected in zip(example["answers"], model.example(row, key=3)["answers"], strict=True):
            assert torch.equal(found.ids, expected.ids)
